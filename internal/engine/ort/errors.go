package ort

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/fewbit/fewbit/internal/engine"
)

// modelError words a refused model: ErrModel or ErrMemory, and the reason.
func modelError(path string, err error) error {
	kind := engine.ErrModel
	if outOfMemory(err) {
		kind = engine.ErrMemory
	}
	return fmt.Errorf("%w: %s: %w", kind, fileName(path), clean(path, err))
}

// fileName returns how errors name a model: without its folder.
func fileName(path string) string { return oneLine(filepath.Base(path)) }

// runError words a failed run. ONNX Runtime does not tell a bad input (a token
// id past the vocabulary, a shape no Reshape can take) from a bad model, but a
// model that loaded mostly fails for its input: so failures of kernels are
// ErrInput, what the runtime cannot do at all is ErrModel.
func runError(path string, err error) error {
	kind := engine.ErrModel
	var se *statusError
	switch {
	case errors.Is(err, engine.ErrMemory):
		return err
	case outOfMemory(err):
		kind = engine.ErrMemory
	case errors.As(err, &se) && (se.code == codeFail || se.code == codeInvalidArgument || se.code == codeRuntimeException):
		kind = engine.ErrInput
	}
	return fmt.Errorf("%w: %w", kind, clean(path, err))
}

func outOfMemory(err error) bool {
	s := err.Error()
	return strings.Contains(s, "Failed to allocate memory") || strings.Contains(s, "bad_alloc") || strings.Contains(s, "vector::_M_default_append")
}

// clean returns ONNX Runtime's message as one line without paths of the file
// system or of ONNX Runtime's sources.
func clean(path string, err error) error {
	return errors.New(cleanText(path, err.Error()))
}

// maxErrorBytes cuts messages that quote a whole model.
const maxErrorBytes = 1000

func cleanText(path, s string) string {
	s = strings.TrimPrefix(s, "Load model from ")
	s = stripSource(s)
	for _, dir := range foldersOf(path) {
		s = strings.ReplaceAll(s, dir+"/", "")
		s = replaceWhole(s, dir, "the model's folder")
	}
	s = oneLine(stripFiles(s))
	s = strings.TrimPrefix(s, filepath.Base(path)+" failed:")
	if s = strings.TrimSpace(s); s == "" {
		s = "no reason given"
	}
	return s
}

// foldersOf returns the spellings under which a message may name the folder of
// path, longest first.
func foldersOf(path string) []string {
	if path == "" {
		return nil
	}
	var dirs []string
	add := func(d string) {
		if d != "." && d != "/" && d != "" {
			dirs = append(dirs, d)
		}
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if real, err = filepath.Abs(real); err == nil {
			add(filepath.Dir(real))
		}
	}
	if abs, err := filepath.Abs(path); err == nil {
		add(filepath.Dir(abs))
	}
	add(strings.TrimRight(path[:len(path)-len(filepath.Base(path))], "/"))
	add(filepath.Dir(path))
	return dirs
}

// replaceWhole replaces old where it is not the beginning of a longer path.
func replaceWhole(s, old, repl string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, old)
		if i < 0 {
			break
		}
		end := i + len(old)
		b.WriteString(s[:i])
		if end < len(s) && (isWord(s[end]) || s[end] == '/' || s[end] == '.') {
			b.WriteString(old)
		} else {
			b.WriteString(repl)
		}
		s = s[end:]
	}
	b.WriteString(s)
	return b.String()
}

func isWord(c byte) bool {
	return c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
}

// sourceRE matches ONNX Runtime's CodeLocation: file, line, then a
// __PRETTY_FUNCTION__ that stripSource skips.
var sourceRE = regexp.MustCompile(`[^\s:"'(]*\.(?:cc|cpp|cxx|c|cu|cuh|h|hpp|inc|inl):\d+ ?`)

// nameRE matches the bare name of a function of that place, CamelCase.
var nameRE = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*[a-z][A-Z][A-Za-z0-9]* `)

func stripSource(s string) string {
	for {
		m := sourceRE.FindStringIndex(s)
		if m == nil {
			return s
		}
		s = s[:m[0]] + nameRE.ReplaceAllString(skipFunction(s[m[1]:]), "")
	}
}

// skipFunction drops a leading __PRETTY_FUNCTION__ ("T ns::f(A, B<C>) const
// [with C = D]", also followed by "::<lambda(int)>") from s, or nothing when s
// does not begin with one.
func skipFunction(s string) string {
	i, angle := 0, 0
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '<':
			angle++
		case c == '>':
			angle = max(angle-1, 0)
		case c == '(' && angle == 0:
			end := closing(s, i)
			if end < 0 {
				return s
			}
			return skipQualifiers(s[end:])
		case c == '\n' || c == '.' || c == '"' || c == '\'':
			return s // prose, not a signature
		}
	}
	return s
}

func skipQualifiers(s string) string {
	for {
		t := strings.TrimLeft(s, " ")
		switch {
		case strings.HasPrefix(t, "const ") || t == "const":
			s = strings.TrimPrefix(t, "const")
		case strings.HasPrefix(t, "mutable "):
			s = strings.TrimPrefix(t, "mutable")
		case strings.HasPrefix(t, "&"):
			s = strings.TrimLeft(t, "&")
		case strings.HasPrefix(t, "[with "):
			end := closing(t, 0)
			if end < 0 {
				return t
			}
			s = t[end:]
		case strings.HasPrefix(t, "::"):
			end := strings.IndexByte(t, '(')
			if end < 0 {
				return t
			}
			if end = closing(t, end); end < 0 {
				return t
			}
			s = strings.TrimPrefix(t[end:], ">")
		default:
			return t
		}
	}
}

// closing returns the index after the bracket that closes the one at s[i], or -1.
func closing(s string, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

var absoluteRE = regexp.MustCompile(`/[^\s:,;"'()\[\]]+`)

// stripFiles shortens absolute paths that exist on this machine to their last
// element. Names of nodes and tensors look the same ("/encoder/layer.0/MatMul")
// and stay.
func stripFiles(s string) string {
	return absoluteRE.ReplaceAllStringFunc(s, func(p string) string {
		if strings.Count(p, "/") < 2 {
			return p
		}
		if _, err := os.Lstat(strings.TrimRight(p, ".")); err != nil {
			return p
		}
		return filepath.Base(p)
	})
}

// oneLine joins the lines of s, drops control characters and cuts it at
// maxErrorBytes.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)), " ")
	if len(s) > maxErrorBytes {
		cut := maxErrorBytes
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + " ..."
	}
	return s
}
