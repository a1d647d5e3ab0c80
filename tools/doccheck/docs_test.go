package doccheck

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var update = flag.Bool("update", false, "write the generated parts of the documentation anew")

// root is the repository as this package's tests see it.
const root = "../.."

// page is one Markdown file.
type page struct {
	path string // from the root
	text string
}

// pages returns all Markdown files of the documentation.
func pages(t *testing.T) []page {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "benchmarks/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	var all []page
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(root, f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page{filepath.ToSlash(rel), string(b)})
	}
	if len(all) < 5 {
		t.Fatalf("only %d pages found", len(all))
	}
	return all
}

// block is a fenced block of a page.
type block struct {
	lang string
	line int
	text string
}

// blocks splits the fenced blocks from the prose, which keeps its line count.
func (p page) blocks() (prose string, found []block) {
	var b *block
	var out strings.Builder
	for i, line := range strings.Split(p.text, "\n") {
		mark := strings.TrimSpace(line)
		switch {
		case b == nil && strings.HasPrefix(mark, "```"):
			b = &block{lang: strings.TrimPrefix(mark, "```"), line: i + 2}
		case b != nil && mark == "```":
			found = append(found, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		default:
			out.WriteString(line)
		}
		out.WriteString("\n")
	}
	return out.String(), found
}

var (
	linkPattern    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingPattern = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	codePattern    = regexp.MustCompile("`([^`\n]+)`")
	filePattern    = regexp.MustCompile(`^(internal|cmd|tools|benchmarks|docs|examples)/[A-Za-z0-9_./*-]*$`)
)

// anchor is the fragment that GitHub gives a heading.
func anchor(heading string) string {
	heading = linkPattern.ReplaceAllString(strings.ReplaceAll(heading, "[", ""), "")
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
}

func anchors(p page) []string {
	prose, _ := p.blocks()
	var list []string
	for _, m := range headingPattern.FindAllStringSubmatch(prose, -1) {
		list = append(list, anchor(m[1]))
	}
	return list
}

// TestLinks: every relative link leads to a file, and to a heading of it.
func TestLinks(t *testing.T) {
	all := pages(t)
	byPath := map[string]page{}
	for _, p := range all {
		byPath[p.path] = p
	}
	for _, p := range all {
		prose, _ := p.blocks()
		for _, m := range linkPattern.FindAllStringSubmatch(prose, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			to := p.path
			if target != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(p.path), target))
				if _, err := os.Stat(filepath.Join(root, to)); err != nil {
					t.Errorf("%s: link to %s, which does not exist", p.path, m[1])
					continue
				}
			}
			if fragment != "" {
				if q, ok := byPath[to]; ok && !slices.Contains(anchors(q), fragment) {
					t.Errorf("%s: link to %s: %s has no such heading, it has %v", p.path, m[1], to, anchors(q))
				}
			}
		}
	}
}

// TestFilesExist: every file of the repository that prose names in code font
// is there. results/*.json are made by the benchmarks.
func TestFilesExist(t *testing.T) {
	for _, p := range pages(t) {
		prose, _ := p.blocks()
		for _, m := range codePattern.FindAllStringSubmatch(prose, -1) {
			name := strings.TrimSuffix(m[1], "/")
			if !filePattern.MatchString(name) || strings.HasPrefix(name, "benchmarks/results") {
				continue
			}
			found, err := filepath.Glob(filepath.Join(root, name))
			if err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which does not exist", p.path, m[1])
			}
		}
	}
}

const (
	importsBegin = "<!-- imports -->"
	importsEnd   = "<!-- /imports -->"
	module       = "github.com/fewbit/fewbit/"
)

// importTable lists who imports whom among the module's packages, tests left out.
func importTable(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./cmd/...", "./internal/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var b strings.Builder
	b.WriteString("| package | imports |\n|---|---|\n")
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Fields(line)
		var imports []string
		for _, i := range f[1:] {
			if rest, ok := strings.CutPrefix(i, module); ok {
				imports = append(imports, strings.TrimPrefix(rest, "internal/"))
			}
		}
		slices.Sort(imports)
		b.WriteString("| " + strings.TrimPrefix(strings.TrimPrefix(f[0], module), "internal/") + " | " + strings.Join(imports, ", ") + " |\n")
	}
	return b.String()
}

// TestImportTable: docs/architecture.md shows the imports as they are.
func TestImportTable(t *testing.T) {
	const path = root + "/docs/architecture.md"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(old), importsBegin)
	_, tail, ok2 := strings.Cut(rest, importsEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no markers %s ... %s", path, importsBegin, importsEnd)
	}
	text := head + importsBegin + "\n" + importTable(t) + importsEnd + tail
	if text == string(old) {
		return
	}
	if !*update {
		t.Fatal("the import table of docs/architecture.md is not current; run go test ./tools/doccheck -update")
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestResultsTable: the README, docs/benchmarks.md and its plots show the
// committed results of the benchmarks.
func TestResultsTable(t *testing.T) {
	results, err := filepath.Glob(filepath.Join(root, "benchmarks/results/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	results = slices.DeleteFunc(results, func(f string) bool { return filepath.Base(f) == "demo.json" }) // see TestOutput
	if len(results) == 0 {
		t.Skip("no benchmark results are committed; make bench makes them")
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is missing; it makes the table")
	}
	cmd := exec.Command(python, "-B", "tools/benchtable/benchtable.py", "--check")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestCommandsOfResults: what is said to make a result can be typed: its benchmark is
// one of benchmarks/run.sh, its target one of the Makefile, its program is there.
func TestCommandsOfResults(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	all := regexp.MustCompile(`ONLY:-([a-z0-9_ ]+)`).FindStringSubmatch(read("benchmarks/run.sh"))
	if all == nil {
		t.Fatal("benchmarks/run.sh: no list of benchmarks")
	}
	makefile, seen := read("Makefile"), 0
	for _, m := range regexp.MustCompile("(?m)^`([^`]+)` · ").FindAllStringSubmatch(read("docs/benchmarks.md"), -1) {
		seen++
		words := strings.Fields(m[1])
		for len(words) > 0 && strings.Contains(words[0], "=") {
			if name, ok := strings.CutPrefix(words[0], "ONLY="); ok && !slices.Contains(strings.Fields(all[1]), name) {
				t.Errorf("%s: benchmarks/run.sh has no %s", m[1], name)
			}
			words = words[1:]
		}
		switch {
		case len(words) > 1 && words[0] == "make":
			if !strings.Contains(makefile, "\n"+words[1]+":") {
				t.Errorf("%s: the Makefile has no such target", m[1])
			}
		case len(words) > 2 && words[0] == "go" && words[1] == "run":
			if _, err := os.Stat(filepath.Join(root, words[2])); err != nil {
				t.Errorf("%s: %v", m[1], err)
			}
		default:
			t.Errorf("%s: neither make nor go run", m[1])
		}
	}
	if seen < 20 {
		t.Errorf("docs/benchmarks.md: %d commands of results", seen)
	}
}

// TestPlots: every plot is well-formed, named for who cannot see it, has colours
// for dark pages and is shown by docs/benchmarks.md.
func TestPlots(t *testing.T) {
	plots, err := filepath.Glob(filepath.Join(root, "docs/plots/*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range plots {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
		for _, want := range []string{"<title id=", "prefers-color-scheme: dark", "viewBox="} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
		if strings.Contains(string(b), "NaN") || strings.Contains(string(b), "inf ") {
			t.Errorf("%s holds a coordinate that is no number", name)
		}
		if !strings.Contains(string(page), "(plots/"+name+")") {
			t.Errorf("docs/benchmarks.md does not show %s", name)
		}
	}
}

// TestAgreedPages: what other pages and people rely on is there.
func TestAgreedPages(t *testing.T) {
	for _, f := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "THIRD_PARTY_NOTICES.md",
		"docs/architecture.md", "docs/numerics.md", "docs/testing.md", "docs/roadmap.md"} {
		if _, err := os.Stat(filepath.Join(root, f)); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is missing", f)
		}
	}
	adrs, err := filepath.Glob(filepath.Join(root, "docs/adr/[0-9]*.md"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(root, "docs/adr/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range adrs {
		if !strings.Contains(string(index), "("+filepath.Base(a)+")") {
			t.Errorf("docs/adr/README.md does not list %s", filepath.Base(a))
		}
	}
}
