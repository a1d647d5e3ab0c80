package registry

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Names of models and data sets become file names and parts of URLs.
var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	fileRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$`)
)

// poolingDir is the one folder allowed inside a model: where
// sentence-transformers keeps the configuration of the pooling layer.
const poolingDir = "1_Pooling"

// CheckName returns ErrName unless s can name a model or a data set.
func CheckName(s string) error {
	if !nameRE.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("%w: %.40q, use letters, digits, '.', '_' and '-', first a letter or digit, at most 128", ErrName, s)
	}
	return nil
}

// CheckFile returns ErrName unless s can name a file of a model: a plain name,
// or one inside 1_Pooling/.
func CheckFile(s string) error {
	base := strings.TrimPrefix(s, poolingDir+"/")
	if !fileRE.MatchString(base) || strings.Contains(base, "..") || base == poolingDir {
		return fmt.Errorf("%w: file %.60q, a model has plain file names (and %s/config.json), letters, digits, '.', '_', '+' and '-'", ErrName, s, poolingDir)
	}
	return nil
}

// checkEntry returns ErrName unless s can be a path inside a data set: relative,
// at most maxEntryDepth deep, no dot files, printable.
func checkEntry(s string) error {
	bad := func(why string) error { return fmt.Errorf("%w: archive entry %.60q %s", ErrName, s, why) }
	if !utf8.ValidString(s) || len(s) > 1024 {
		return bad("is not valid UTF-8 of at most 1024 bytes")
	}
	parts := strings.Split(s, "/")
	if len(parts) > maxEntryDepth {
		return bad(fmt.Sprintf("is more than %d folders deep", maxEntryDepth-1))
	}
	for _, p := range parts {
		switch {
		case p == "":
			return bad("is absolute or has an empty part")
		case p[0] == '.':
			return bad("has a part that begins with a dot")
		case len(p) > 255:
			return bad("has a part of more than 255 bytes")
		case strings.ContainsFunc(p, func(c rune) bool { return c == '\\' || c == ':' || !unicode.IsPrint(c) }):
			return bad("has characters that are not allowed")
		}
	}
	return nil
}

const maxEntryDepth = 5

// parseVersion reads a version number: 1, 2, ...
func parseVersion(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxVersions || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("%w: version %.20q, versions are whole numbers from 1", ErrName, s)
	}
	return n, nil
}
