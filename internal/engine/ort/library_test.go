package ort

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ortgo "github.com/yalue/onnxruntime_go"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func touch(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindLibrary(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	given := touch(t, filepath.Join(dir, "given", "libonnxruntime.so"))
	env := touch(t, filepath.Join(dir, "env", "libonnxruntime.so.1.25.0"))
	for _, v := range []string{"1.9.0", "1.32.0", "1.24.1"} {
		touch(t, filepath.Join(dir, "repo", ".deps", "ort-"+v, "libonnxruntime.so."+v))
	}
	deps := filepath.Join(dir, "repo", ".deps", "ort-1.32.0", "libonnxruntime.so.1.32.0")
	work := filepath.Join(dir, "repo", "internal", "engine", "ort")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(work)

	t.Setenv(EnvLibrary, env)
	for _, tc := range []struct{ explicit, want string }{{given, given}, {filepath.Dir(given), given}, {"", env}} {
		if got, err := FindLibrary(tc.explicit); err != nil || got != tc.want {
			t.Errorf("FindLibrary(%q) = %q, %v; want %q", tc.explicit, got, err, tc.want)
		}
	}
	t.Setenv(EnvLibrary, "")
	if got, err := FindLibrary(""); err != nil || got != deps {
		t.Errorf("from .deps: %q, %v; want %q", got, err, deps)
	}
	t.Setenv(EnvLibrary, filepath.Join(dir, "nothing"))
	for _, explicit := range []string{"", filepath.Join(dir, "missing.so"), filepath.Join(dir, "repo"), os.DevNull} {
		_, err := FindLibrary(explicit)
		if !errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), "make deps") || !strings.Contains(err.Error(), EnvLibrary) {
			t.Errorf("FindLibrary(%q): %v, want ErrUnavailable with the remedy", explicit, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		file string
		want []int
	}{
		{"/x/libonnxruntime.so.1.32.0", []int{1, 32, 0}}, {"/x/ort-1.24.1/libonnxruntime.so", []int{1, 24, 1}},
		{"/x/ort-1.24.1/libonnxruntime.so.1.9", []int{1, 9}}, {"libonnxruntime.so.x", nil}, {"", nil},
	} {
		if got := versionOf(tc.file); !slices.Equal(got, tc.want) {
			t.Errorf("versionOf(%q) = %v, want %v", tc.file, got, tc.want)
		}
	}
	for v, ok := range map[string]bool{
		"1.24.0": true, "1.32.0": true, "1.100.0": true, "2.0.0": true, "1.24": true, "1.33.0-dev": true,
		"1.23.9": false, "1.9.0": false, "0.99.0": false, "": false, "one": false,
	} {
		if err := checkVersion(v, "lib"); (err == nil) != ok || err != nil && !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("version %q: %v, want accepted %v", v, err, ok)
		}
	}
}

func TestNewTwice(t *testing.T) {
	e := newEngine(t)
	for _, c := range []Config{{}, {Threads: e.Threads()}, {Library: e.Library()}} {
		if again, err := New(c); err != nil || again != e {
			t.Errorf("New(%+v) = %p, %v; want the same engine", c, again, err)
		}
	}
	other := touch(t, filepath.Join(t.TempDir(), "libonnxruntime.so"))
	for _, c := range []Config{{Threads: e.Threads() + 1}, {Library: other}, {Library: "/missing"}, {Threads: -1}, {Threads: MaxThreads + 1}} {
		if again, err := New(c); !errors.Is(err, engine.ErrUnavailable) || again != nil {
			t.Errorf("New(%+v) = %p, %v; want ErrUnavailable", c, again, err)
		}
	}
	d, err := e.Probe(t.Context())
	if err != nil || !strings.Contains(d.Name, d.Version) || checkVersion(d.Version, "") != nil || e.Name() != "ort-cpu" {
		t.Errorf("Probe: %+v, %v", d, err)
	}
}

// TestLayout fails when onnxruntime_go's wrappers no longer hold the pointers
// that the shim takes from them, or its header is not the one here.
func TestLayout(t *testing.T) {
	if err := checkLayout(); err != nil {
		t.Fatal(err)
	}
	for _, path := range [][]string{{"nope"}, {"s", "nope"}, {"s", "inputNames"}, {"s", "ortSession", "x"}} {
		if p, err := field(&ortgo.DynamicAdvancedSession{}, path...); !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("field %q: %v, %v; want ErrUnavailable", path, p, err)
		}
	}

	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Skipf("go list is missing: %v", err)
	}
	for _, h := range []string{"onnxruntime_c_api.h", "onnxruntime_ep_c_api.h"} {
		theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), h))
		if err != nil {
			t.Skipf("the module's source is missing: %v", err)
		}
		ours, err := os.ReadFile(h)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(ours, theirs) {
			t.Errorf("%s differs from the one of onnxruntime_go: copy it here and read what changed", h)
		}
	}
}

// TestChild is what the tests below run in a process of their own.
func TestChild(t *testing.T) {
	lib := os.Getenv("FEWBIT_TEST_CHILD")
	if lib == "" {
		t.Skip("only run by other tests")
	}
	e, err := New(Config{Library: lib})
	if err != nil {
		fmt.Println("error:", err, errors.Is(err, engine.ErrUnavailable))
		return
	}
	if _, err = e.OpenFile(t.Context(), touch(t, filepath.Join(t.TempDir(), "bad.onnx")), engine.Options{}); err == nil {
		t.Error("a text file was opened")
	}
	s := open(t, identity(tensor.Float32, nil), engine.Options{})
	run(t, s, engine.Feeds{"x": tensor.From([]float32{1}, 1)})
	fmt.Println("fine")
}

func child(t *testing.T, lib string, env ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(append(os.Environ(), "FEWBIT_TEST_CHILD="+lib), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.Bytes(), errs.Bytes())
	}
	return out.String(), errs.String()
}

// TestSilent: ONNX Runtime prints nothing, not even on errors, and the process
// ends well although the environment is never released.
func TestSilent(t *testing.T) {
	out, errs := child(t, newEngine(t).Library())
	if !strings.Contains(out, "fine\n") || errs != "" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
}

// TestNoTelemetry: ONNX Runtime leaves nothing in the user's folders, where it
// keeps what it has to tell its maker.
func TestNoTelemetry(t *testing.T) {
	lib := newEngine(t).Library()
	t.Setenv(envTelemetry, "") // this process has set it
	home := t.TempDir()
	// On the machines of continuous integration it tells nothing anyhow.
	out, _ := child(t, lib, "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "XDG_DATA_HOME="+filepath.Join(home, "data"), "CI=")
	if !strings.Contains(out, "fine\n") {
		t.Fatal(out)
	}
	left, err := os.ReadDir(home)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("%s was left in the home folder", f.Name())
	}
}

func TestBadLibraries(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("needs a C compiler as cc, on Linux")
	}
	dir := t.TempDir()
	build := func(name, source string) string {
		c, so := filepath.Join(dir, name+".c"), filepath.Join(dir, name+".so")
		if err := os.WriteFile(c, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(cc, "-shared", "-fPIC", "-o", so, c).CombinedOutput(); err != nil {
			t.Skipf("cc does not work: %v\n%s", err, out)
		}
		return so
	}
	// The layout of OrtApiBase: GetApi, GetVersionString.
	version := func(v string) string {
		return `static const void *api(unsigned v) { return 0; } static const char *version(void) { return "` + v + `"; }
static const struct { const void *(*a)(unsigned); const char *(*v)(void); } base = {api, version};
const void *OrtGetApiBase(void) { return &base; }`
	}
	for _, tc := range []struct{ name, lib, want string }{
		{"text", touch(t, filepath.Join(dir, "text.so")), "cannot be loaded"},
		{"no symbol", build("nosymbol", "int x;"), "not an ONNX Runtime library"},
		{"no base", build("nobase", "const void *OrtGetApiBase(void) { return 0; }"), "OrtGetApiBase returned nothing"},
		{"old", build("old", version("1.17.3")), "is ONNX Runtime 1.17.3, 1.24 or newer is needed"},
		{"no API", build("noapi", version("1.99.0")), "lacks the API of 1.24"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, errs := child(t, tc.lib)
			line, _, _ := strings.Cut(out, "\n")
			if !strings.HasPrefix(line, "error: ") || !strings.HasSuffix(line, " true") || !strings.Contains(line, tc.want) ||
				!strings.Contains(line, remedy) || errs != "" {
				t.Errorf("stdout %q\nstderr %q\nwant one line with %q and the remedy", out, errs, tc.want)
			}
		})
	}
}
