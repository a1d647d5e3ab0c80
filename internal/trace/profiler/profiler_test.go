package profiler

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// envChild makes TestChild do its part: the profilers' code reads the environment
// once in a process.
const envChild = "FEWBIT_PROFILER_CHILD"

// library compiles one of testdata.
func library(t *testing.T, name string) string {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	out := filepath.Join(t.TempDir(), name+".so")
	if b, err := exec.Command(cc, "-shared", "-fPIC", "-I.", "-Iittapi", "-o", out, filepath.Join("testdata", name+".c")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// child runs TestChild with the environment and returns what it says.
func child(t *testing.T, env ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, envChild+"=1")...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return string(b)
}

func TestChild(t *testing.T) {
	if os.Getenv(envChild) == "" {
		t.Skip("only as a child of the other tests")
	}
	ms, err := Open()
	fmt.Printf("markers %v\nerror %v, %v\n", ms, errors.Is(err, ErrLibrary), err)
	for _, m := range ms {
		// Ranges overlap, and end on another thread than they began on.
		whole := m.Begin("request news")
		part := m.Begin("infer news")
		var wg sync.WaitGroup
		wg.Go(func() {
			runtime.LockOSThread()
			part()
		})
		wg.Wait()
		again := m.Begin("infer news")
		again()
		whole()
		for i := range 8 {
			wg.Go(func() {
				for j := range 100 {
					m.Begin(fmt.Sprint("many ", i*100+j))()
				}
			})
		}
		wg.Wait()
		m.kept = maxNames
		m.Begin("one too many")()
		m.Begin("and another")()
	}
}

func TestMarkers(t *testing.T) {
	for name, want := range map[string]struct{ env, marker string }{"nvtx": {EnvNVTX, "NVTX"}, "itt": {EnvITT, "ITT"}} {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			said := child(t, want.env+"="+library(t, name), "FAKE_LOG="+log)
			if !strings.Contains(said, "markers ["+want.marker+"]\nerror false, <nil>\n") {
				t.Fatalf("%s", said)
			}
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			// begin N ours NAME, end N ours
			begin := regexp.MustCompile(`^` + name + ` begin (\d+) ours (.+)$`)
			end := regexp.MustCompile(`^` + name + ` end (\d+) ours$`)
			open, seen := map[string]string{}, []string{}
			for i, l := range lines {
				if i == 0 && l == name+" domain fewbit" { // ITT's own part makes the first one
					continue
				}
				if m := begin.FindStringSubmatch(l); m != nil && open[m[1]] == "" {
					open[m[1]] = m[2]
					seen = append(seen, "+"+m[2])
				} else if m := end.FindStringSubmatch(l); m != nil && open[m[1]] != "" {
					seen = append(seen, "-"+open[m[1]])
					delete(open, m[1])
				} else {
					t.Fatalf("line %q", l)
				}
			}
			if len(open) != 0 || len(seen) != 2*(3+800+2) {
				t.Errorf("%d ranges left open, %d events", len(open), len(seen))
			}
			if got, want := strings.Join(seen[:6], " "), "+request news +infer news -infer news +infer news -infer news -request news"; got != want {
				t.Errorf("%s, want %s", got, want)
			}
			if got, want := strings.Join(seen[len(seen)-4:], " "), "+other models -other models +other models -other models"; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

// Without a profiler nothing is loaded; a library that is none is an error that
// names the variable and not the path.
func TestNoProfiler(t *testing.T) {
	if said := child(t, EnvNVTX+"=", EnvITT+"="); !strings.Contains(said, "markers []\nerror false, <nil>\n") {
		t.Errorf("%s", said)
	}
	none := filepath.Join(t.TempDir(), "none.so")
	if err := os.WriteFile(none, bytes.Repeat([]byte("no library "), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	said := child(t, EnvNVTX+"="+none, EnvITT+"="+none+".missing")
	if !strings.Contains(said, "markers []\nerror true, ") || !strings.Contains(said, EnvNVTX) || !strings.Contains(said, EnvITT) || strings.Contains(said, "none.so") {
		t.Errorf("%s", said)
	}
}
