package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/engine/ort"
)

var update = flag.Bool("update", false, "write docs/cli.md")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fewbit": main})
}

// TestScripts runs the files of testdata/script: one behaviour of the command
// line each.
func TestScripts(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	lib, ortErr := ort.FindLibrary("")
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: false,
		Setup: func(e *testscript.Env) error {
			e.Setenv(ort.EnvLibrary, lib)
			e.Setenv("ROOT", root)
			e.Setenv("TMPDIR", filepath.Join(e.WorkDir, "tmp"))
			return os.Mkdir(filepath.Join(e.WorkDir, "tmp"), 0o755)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "ort":
				return ortErr == nil, nil
			case "tmpfs":
				return canMount(t), nil
			}
			if path, ok := strings.CutPrefix(cond, "deps:"); ok {
				_, err := os.Stat(filepath.Join(root, ".deps", path))
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"mkmodel": mkmodel, "mkdata": mkdata, "one-line": oneLineCmd, "json": jsonCmd, "tmpfs": tmpfs, "same": same, "smaller": smaller, "no-leftovers": noLeftovers,
		},
	})
}

// mkmodel KIND FILE
func mkmodel(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || modelKinds[args[0]] == nil {
		ts.Fatalf("usage: mkmodel KIND FILE")
	}
	ts.Check(modelKinds[args[0]](ts.MkAbs(args[1])))
}

// mkdata KIND FILE.npz
func mkdata(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || dataKinds[args[0]] == nil {
		ts.Fatalf("usage: mkdata KIND FILE.npz")
	}
	ts.Check(writeNPZ(ts.MkAbs(args[1]), dataKinds[args[0]]()))
}

var progressLine = regexp.MustCompile(`^[a-z ]+( [0-9]+ %(, [0-9ms]+ left)?)?\n`)

// one-line checks that the last command wrote one line of error, that it names
// no Go type, no stack and not the folder it ran in.
func oneLineCmd(ts *testscript.TestScript, neg bool, args []string) {
	out := ts.ReadFile("stderr")
	for progressLine.MatchString(out) { // on a machine so busy that it appears
		_, out, _ = strings.Cut(out, "\n")
	}
	switch {
	case strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "fewbit: "):
		ts.Fatalf("expected one line from fewbit, got %q", out)
	case strings.Contains(out, ts.Getenv("WORK")):
		ts.Fatalf("the error names the folder: %q", out)
	}
	for _, bad := range []string{"goroutine", "0x", "panic", "&{", "map[", "%!", "<nil>"} {
		if strings.Contains(out, bad) {
			ts.Fatalf("the error has %q in it: %q", bad, out)
		}
	}
}

// json PATH [WANT] checks that standard output is one JSON object and that the
// value at the dotted path is there (and prints as WANT).
func jsonCmd(ts *testscript.TestScript, neg bool, args []string) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	var v any
	ts.Check(dec.Decode(&v))
	if _, err := dec.Token(); err != io.EOF {
		ts.Fatalf("there is more than one JSON value on standard output")
	}
	if _, ok := v.(map[string]any); !ok {
		ts.Fatalf("standard output is not a JSON object")
	}
	for _, key := range strings.Split(args[0], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			var i int
			if _, err := fmt.Sscan(key, &i); err != nil || i >= len(x) {
				ts.Fatalf("no element %s of %d", key, len(x))
			}
			v = x[i]
		default:
			v = nil
		}
	}
	if (v != nil) == neg {
		ts.Fatalf("%s is %v", args[0], v)
	}
	if len(args) > 1 && fmt.Sprint(v) != args[1] {
		ts.Fatalf("%s is %v, want %s", args[0], v, args[1])
	}
}

// same A B compares two files byte by byte.
func same(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("equal: %v", !neg)
	}
}

// smaller A B checks that A is smaller than B.
func smaller(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if a.Size() >= b.Size() {
		ts.Fatalf("%d and %d bytes", a.Size(), b.Size())
	}
}

// no-leftovers checks that nothing half made is left, in any folder.
func noLeftovers(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(filepath.WalkDir(ts.MkAbs("."), func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(path), ".fewbit") {
			return fmt.Errorf("left behind: %s", filepath.Base(path))
		}
		return err
	}))
}

// canMount reports whether this process may mount a small file system.
func canMount(t *testing.T) bool {
	dir := t.TempDir()
	if unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k") != nil {
		return false
	}
	return unix.Unmount(dir, 0) == nil
}

// tmpfs DIR SIZE mounts a file system of that size for the rest of the script.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}
