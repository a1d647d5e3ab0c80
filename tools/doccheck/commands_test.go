package doccheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/report"
)

// command is one shell command of a page.
type command struct {
	page string
	line int
	args []string
}

var shells = []string{"sh", "bash", "console"}

// commands returns the commands in the sh blocks of all pages, and the
// backticked `fewbit ...` and `make ...` of prose, when the first word is name.
func commands(t *testing.T, name string) []command {
	t.Helper()
	var found []command
	for _, p := range pages(t) {
		prose, blocks := p.blocks()
		for _, b := range blocks {
			if !slices.Contains(shells, b.lang) {
				continue
			}
			text := strings.ReplaceAll(b.text, "\\\n", " ")
			for i, line := range splitLines(text) {
				line, typed := strings.CutPrefix(strings.TrimSpace(line), "$ ")
				if b.lang == "console" && !typed {
					continue // output
				}
				args := words(line)
				if len(args) > 0 && filepath.Base(args[0]) == name {
					found = append(found, command{p.path, b.line + i, args})
				}
			}
		}
		for _, m := range codePattern.FindAllStringSubmatch(prose, -1) {
			if args := words(m[1]); len(args) > 1 && args[0] == name {
				found = append(found, command{page: p.path, args: args})
			}
		}
	}
	return found
}

// splitLines splits text at line ends outside single quotes.
func splitLines(text string) []string {
	var lines []string
	var b strings.Builder
	quoted := false
	for _, r := range text {
		switch {
		case r == '\'':
			quoted = !quoted
		case r == '\n' && !quoted:
			lines = append(lines, b.String())
			b.Reset()
			continue
		}
		b.WriteRune(r)
	}
	return append(lines, b.String())
}

// words splits a command at spaces outside quotes, up to a pipe, a comment or
// the next command.
func words(line string) []string {
	var list []string
	var b strings.Builder
	var quote rune
	some := false
	end := func() {
		if some {
			list = append(list, b.String())
		}
		b.Reset()
		some = false
	}
	for _, r := range line {
		switch {
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				b.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, some = r, true
		case r == ' ' || r == '\t':
			end()
		case r == '#' && !some, r == '|', r == ';', r == '&':
			end()
			return list
		default:
			b.WriteRune(r)
			some = true
		}
	}
	end()
	return list
}

// build compiles the command line once.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "fewbit")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/fewbit")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build ./cmd/fewbit: %v\n%s", err, out)
	}
	return bin
}

// notRun are commands that would serve, or fetch.
var notRun = []string{"serve", "pull"}

// exitUsage is the status of wrong use (docs/cli.md).
const exitUsage = 2

// TestCommands: every fewbit command of the documentation has flags and
// arguments that exist. Run in an empty folder a right command fails for want of
// its files (1), a wrong one for wrong use (2). With --help flags are only parsed.
func TestCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this builds the command line")
	}
	bin, empty := build(t), t.TempDir()
	status := func(args []string) (int, string) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin, args...)
		cmd.Dir = empty
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			return exit.ExitCode(), string(out)
		case err != nil:
			t.Fatal(err)
		}
		return 0, string(out)
	}
	list := commands(t, "fewbit")
	if len(list) < 4 {
		t.Fatalf("only %d commands found", len(list))
	}
	done := map[string]bool{}
	for _, c := range list {
		args := c.args[1:]
		if key := strings.Join(args, " "); done[key] || placeholder(args) {
			continue
		} else {
			done[key] = true
		}
		// Prose names a command without its arguments.
		parse := c.line == 0 || slices.ContainsFunc(args, func(a string) bool { return slices.Contains(notRun, a) })
		if parse {
			args = append(slices.Clone(args), "--help")
		}
		if code, out := status(args); code == exitUsage || parse && code != 0 {
			t.Errorf("%s:%d: %s: exit status %d: %s", c.page, c.line, strings.Join(c.args, " "), code, out)
		}
	}
}

// placeholder reports whether a command is a pattern for people: MODEL.onnx -o
// OUT.onnx [flags].
func placeholder(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.ContainsAny(a, "[]<>") || a == "..." })
}

var targetPattern = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)

// TestMakeTargets: every make target of the documentation exists.
func TestMakeTargets(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range targetPattern.FindAllStringSubmatch(string(b), -1) {
		targets = append(targets, m[1])
	}
	for _, c := range commands(t, "make") {
		for _, a := range c.args[1:] {
			if !strings.Contains(a, "=") && !slices.Contains(targets, a) {
				t.Errorf("%s: make %s: the Makefile has no such target", c.page, a)
			}
		}
	}
}

// noModels is a server's models when there are none.
type noModels struct{}

func (noModels) List() []http.ModelInfo { return nil }
func (noModels) Acquire(context.Context, string, string) (http.Lease, error) {
	return nil, registry.ErrNotFound
}
func (noModels) Load(context.Context, string) error   { return registry.ErrNotFound }
func (noModels) Unload(context.Context, string) error { return registry.ErrNotFound }

// TestRoutes: every curl line of the documentation has a method and a path that
// openapi.json lists, and docs/api.md has every route (TestAPIDocs in
// internal/app compares what it says of them, and sends its requests).
func TestRoutes(t *testing.T) {
	s, err := http.New(http.Config{Models: noModels{}})
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	s.AdminHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/openapi.json", nil))
	var api struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &api); err != nil || len(api.Paths) == 0 {
		t.Fatalf("openapi.json: %v: %.200s", err, rec.Body)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/api.md"))
	if err != nil {
		t.Fatal(err)
	}
	for path, methods := range api.Paths {
		if strings.HasPrefix(path, "/debug/pprof/") { // at the administrators' own address only
			continue
		}
		for method := range methods {
			if title := "### `" + strings.ToUpper(method) + " " + path + "`\n"; !bytes.Contains(page, []byte(title)) {
				t.Errorf("docs/api.md has no heading %swrite one with a request below it, then run go test ./internal/app -run TestAPIDocs -update", title)
			}
		}
	}
	for _, c := range commands(t, "curl") {
		method, path := curl(c.args[1:])
		if path == "" {
			t.Errorf("%s:%d: no address in %q", c.page, c.line, c.args)
			continue
		}
		if method == "OPTIONS" { // a browser's question, for every route that pages may use
			method = "GET"
		}
		if !listed(api.Paths, method, path) {
			t.Errorf("%s:%d: openapi.json has no %s %s", c.page, c.line, method, path)
		}
	}
}

// valueFlags are curl's options that take a value, as the documentation uses
// them.
var valueFlags = []string{"-X", "--request", "-d", "--data", "--data-binary", "-H", "--header", "-T", "--upload-file", "-o", "-w"}

func curl(args []string) (method, path string) {
	method = "GET"
	explicit := ""
	for i := 0; i < len(args); i++ {
		a := args[i]
		if slices.Contains(valueFlags, a) {
			i++
			switch {
			case a == "-X" || a == "--request":
				explicit = args[min(i, len(args)-1)]
			case strings.HasPrefix(a, "-d") || strings.HasPrefix(a, "--data"):
				method = "POST"
			case a == "-T" || a == "--upload-file":
				method = "PUT"
			}
			continue
		}
		if combined := strings.TrimPrefix(a, "-"); a != combined && strings.HasSuffix(combined, "X") && i+1 < len(args) { // -sX DELETE
			i++
			explicit = args[i]
			continue
		}
		if strings.HasPrefix(a, "-") {
			continue
		}
		if !strings.Contains(a, "://") {
			a = "http://" + a
		}
		if u, err := url.Parse(a); err == nil {
			if path = u.Path; path == "" {
				path = "/"
			}
		}
	}
	if explicit != "" {
		method = explicit
	}
	return method, path
}

func listed(paths map[string]map[string]any, method, path string) bool {
	parts := strings.Split(path, "/")
	for pattern, methods := range paths {
		want := strings.Split(pattern, "/")
		if methods[strings.ToLower(method)] == nil || len(want) != len(parts) {
			continue
		}
		same := true
		for i := range want {
			same = same && (want[i] == parts[i] || strings.HasPrefix(want[i], "{") && parts[i] != "")
		}
		if same {
			return true
		}
	}
	return false
}

const (
	outputBegin = "<!-- output: made from benchmarks/results/demo.json -->"
	outputEnd   = "<!-- /output -->"
	demoResult  = root + "/benchmarks/results/demo.json"
)

// TestOutput: the README shows what make run printed, as it is kept in
// benchmarks/results/demo.json (a copy of the demonstration's demo.json),
// without the lists of operators.
func TestOutput(t *testing.T) {
	b, err := os.ReadFile(demoResult)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("benchmarks/results/demo.json is missing; make run, then copy fewbit-data/demo.json there")
	} else if err != nil {
		t.Fatal(err)
	}
	var demo struct {
		Report report.Report `json:"report"`
	}
	if err := json.Unmarshal(b, &demo); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := report.Text(&text, demo.Report); err != nil {
		t.Fatal(err)
	}
	shown := "\n```text\n" + excerpt(text.String()) + "```\n\n"
	const path = root + "/README.md"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(old), outputBegin)
	_, tail, ok2 := strings.Cut(rest, outputEnd)
	if !ok1 || !ok2 {
		t.Fatalf("README.md has no markers %s ... %s", outputBegin, outputEnd)
	}
	page := head + outputBegin + shown + outputEnd + tail
	if page == string(old) {
		return
	}
	if !*update {
		t.Fatal("README.md does not show benchmarks/results/demo.json; run go test ./tools/doccheck -update")
	}
	if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
}

// excerpt leaves the indented lists of operators out.
func excerpt(text string) string {
	var b strings.Builder
	skip := false
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == "lowest SQNR", line == "not in integers":
			if !skip {
				b.WriteString("...\n")
			}
			skip = true
		case skip && strings.HasPrefix(line, " "):
		default:
			skip = false
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
