// Package drivetest is what the tests of the examples share.
package drivetest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/tools/drive"
)

// root is the project's folder, seen from an example's.
const root = "../.."

// Programs builds the named commands into dir, with ONNX Runtime for them to find;
// without it the test is skipped.
func Programs(t *testing.T, dir string, names ...string) {
	t.Helper()
	if os.Getenv("FEWBIT_ORT_LIB") == "" {
		lib, err := filepath.Glob(root + "/.deps/ort-*/libonnxruntime.so*")
		if err != nil || len(lib) == 0 {
			t.Skip("ONNX Runtime is missing in .deps: make deps")
		}
		abs, err := filepath.Abs(lib[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("FEWBIT_ORT_LIB", abs)
	}
	args := []string{"build", "-o", dir + "/"}
	for _, n := range names {
		args = append(args, "./cmd/"+n)
	}
	build := exec.Command("go", args...)
	build.Dir = root
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, b)
	}
}

// StopAt keeps what is written and calls Stop when a line that holds Text is.
type StopAt struct {
	bytes.Buffer
	Text string
	Stop context.CancelFunc
}

func (w *StopAt) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.Text) {
		w.Stop()
	}
	return w.Buffer.Write(b)
}

// Page checks that README.md shows what the committed result says: text reads it
// from its path. target makes both.
func Page(t *testing.T, result, target string, text func(path string) (string, error)) {
	t.Helper()
	name := "benchmarks/results/" + result
	shown, err := text(filepath.Join(root, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("%s is missing; make %s FULL=1", name, target)
	} else if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := drive.Shown(string(b), shown)
	if err != nil || want != string(b) {
		t.Errorf("README.md does not show %s (%v); run make %s FULL=1", name, err, target)
	}
}
