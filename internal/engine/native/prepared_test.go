package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// These make a process of this test one that only opens a model.
const (
	envModel    = "FEWBIT_TEST_MODEL"
	envPrepared = "FEWBIT_TEST_PREPARED"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envModel); path != "" {
		if err := child(path, os.Getenv(envPrepared)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(path, prepared string) error {
	e, err := ort.New(ort.Config{})
	if err != nil {
		return err
	}
	s, err := New(e, "").OpenFile(context.Background(), path, engine.Options{Threads: 1, Prepared: prepared})
	if err != nil {
		return err
	}
	defer s.Close()
	r, err := s.Run(context.Background(), opstest.TinyBERT.Feeds(1, 1, 5), nil)
	if err != nil {
		return err
	}
	r.Close()
	return s.Close()
}

// tiny is a native encoder with large enough weights to lie in a file of data.
func tiny(t *testing.T) string {
	t.Helper()
	return opstest.Save(t, opstest.Native(t, opstest.TinyBERT.Model(), quant.INT8Dynamic))
}

// answer opens the model and runs it once.
func answer(t *testing.T, e *Engine, path, prepared string) map[string][]byte {
	t.Helper()
	s, err := e.OpenFile(context.Background(), path, engine.Options{Threads: 1, Prepared: prepared})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Run(context.Background(), opstest.TinyBERT.Feeds(1, 2, 9), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := map[string][]byte{}
	for name, x := range r.Tensors() {
		out[name] = bytes.Clone(tensor.View[byte](&tensor.Tensor{Type: tensor.Uint8, Dims: []int64{int64(len(x.Data))}, Data: x.Data}))
	}
	return out
}

func sameAnswer(a, b map[string][]byte) bool {
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return len(a) == len(b) && len(a) > 0
}

// TestPrepared: the second session opens what the first one kept, and gives the
// same; its weights lie in pages that all processes share.
func TestPrepared(t *testing.T) {
	e, path := newEngine(t), tiny(t)
	folder := filepath.Join(t.TempDir(), "kept")
	want := answer(t, e, path, "")
	if !sameAnswer(want, answer(t, e, path, folder)) {
		t.Error("the first session differs")
	}
	first, err := os.Stat(filepath.Join(folder, stampFile))
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.OpenFile(context.Background(), path, engine.Options{Threads: 1, Prepared: folder})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err == nil {
		at := regexp.MustCompile(`(?s)` + regexp.QuoteMeta(files(folder, path)[1]) + `\n.*?Private_Dirty: +(\d+)`).FindSubmatch(maps)
		if at == nil || string(at[1]) != "0" {
			t.Errorf("the data is not mapped, or copied: %q", at)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !sameAnswer(want, answer(t, e, path, folder)) {
		t.Error("the second session differs")
	}
	if again, err := os.Stat(filepath.Join(folder, stampFile)); err != nil || !os.SameFile(first, again) {
		t.Errorf("it was made anew: %v", err)
	}
}

// TestPreparedIsChecked: whatever lies in the folder, the session is right and
// the folder good again.
func TestPreparedIsChecked(t *testing.T) {
	e, path := newEngine(t), tiny(t)
	want := answer(t, e, path, "")
	folder := filepath.Join(t.TempDir(), "kept")
	all := files(folder, path)
	label := filepath.Join(folder, stampFile)
	edit := func(name string, f func([]byte) []byte) func() error {
		return func() error {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(name, f(b), 0o644)
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	replace := func(old, to string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(to)) }
	}
	link := func(name string) func() error {
		return func() error {
			if err := os.Rename(name, folder+".elsewhere"); err != nil {
				return err
			}
			return os.Symlink(folder+".elsewhere", name)
		}
	}
	for name, harm := range map[string]func() error{
		"a bit of the data":    edit(all[1], flip),
		"a bit of the model":   edit(all[0], flip),
		"data cut":             edit(all[1], func(b []byte) []byte { return b[:len(b)-1] }),
		"data longer":          edit(all[1], func(b []byte) []byte { return append(b, 0) }),
		"data gone":            func() error { return os.Remove(all[1]) },
		"model gone":           func() error { return os.Remove(all[0]) },
		"model a folder":       func() error { return errors.Join(os.Remove(all[0]), os.Mkdir(all[0], 0o755)) },
		"stamp gone":           func() error { return os.Remove(label) },
		"stamp of nothing":     edit(label, func([]byte) []byte { return nil }),
		"stamp without files":  edit(label, func([]byte) []byte { return []byte(`{"format":1}`) }),
		"stamp too long":       edit(label, func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), maxStamp)...) }),
		"stamp of three files": edit(label, replace(`"files":[`, `"files":[{"name":"x"},`)),
		"another library":      edit(label, replace("ABI ", "ABI 9")),
		"another program":      edit(label, replace(`"build":"`, `"build":"x`)),
		"another name":         edit(label, replace(`"name":"`, `"name":"../`)),
		"negative size":        edit(label, replace(`"bytes":`, `"bytes":-`)),
		"another format":       edit(label, replace(`"format":1`, `"format":2`)),
		"data behind a link":   link(all[1]),
		"folder behind a link": link(folder),
		"folder a file":        func() error { return errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o644)) },
		"others may write":     func() error { return os.Chmod(all[1], 0o666) },
		"what a killed one left": func() error {
			return errors.Join(os.MkdirAll(folder+".new/x", 0o755), os.Rename(folder, folder+".old"))
		},
		"a broken one beside that": func() error { return errors.Join(os.RemoveAll(folder), os.MkdirAll(folder+".new", 0o755)) },
	} {
		for _, f := range []string{folder, folder + ".elsewhere"} {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}
		answer(t, e, path, folder)
		if err := e.checkPrepared(folder, path); err != nil {
			t.Fatalf("%s: before: %v", name, err)
		}
		if err := harm(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.checkPrepared(folder, path) == nil {
			t.Errorf("%s: not seen", name)
		}
		if !sameAnswer(want, answer(t, e, path, folder)) {
			t.Errorf("%s: another answer", name)
		}
		if err := e.checkPrepared(folder, path); err != nil {
			t.Errorf("%s: not made anew: %v", name, err)
		}
		for _, f := range []string{folder + ".new", folder + ".old"} {
			if _, err := os.Lstat(f); err == nil {
				t.Errorf("%s: %s stays", name, filepath.Base(f))
			}
		}
	}
	// Where nothing can be kept the model opens all the same.
	for _, f := range []string{filepath.Join(path, "below a file"), filepath.Join(t.TempDir(), "no", "such", "folder")} {
		if !sameAnswer(want, answer(t, e, path, f)) {
			t.Errorf("%s: another answer", f)
		}
	}
}

// TestPreparedByManyProcesses: processes that race, and processes that are killed
// at any moment, leave a folder that is good or made anew.
func TestPreparedByManyProcesses(t *testing.T) {
	e, path := newEngine(t), tiny(t)
	folder := filepath.Join(t.TempDir(), "kept")
	start := func() (*exec.Cmd, *bytes.Buffer) {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), envModel+"="+path, envPrepared+"="+folder)
		said := &bytes.Buffer{}
		c.Stderr = said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c, said
	}
	for range 12 {
		c, _ := start()
		time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
		_ = os.RemoveAll(folder) // so that the next one has work to do
	}
	var all []*exec.Cmd
	var said []*bytes.Buffer
	for range 4 {
		c, s := start()
		all, said = append(all, c), append(said, s)
	}
	for i, c := range all {
		if err := c.Wait(); err != nil {
			t.Errorf("process %d: %v: %s", i, err, said[i])
		}
	}
	if err := e.checkPrepared(folder, path); err != nil {
		t.Error(err)
	}
	if !sameAnswer(answer(t, e, path, ""), answer(t, e, path, folder)) {
		t.Error("another answer")
	}
}

// TestPack: a packed model gives what the native one does, and says what it
// needs where that is missing.
func TestPack(t *testing.T) {
	e, path := newEngine(t), tiny(t)
	out := filepath.Join(t.TempDir(), "packed.onnx")
	p, err := e.Pack(context.Background(), path, out)
	if err != nil || p.Operators < 4*opstest.TinyBERT.Layers {
		t.Fatalf("%+v, %v", p, err)
	}
	if !sameAnswer(answer(t, e, path, ""), answer(t, e, out, "")) {
		t.Error("another answer")
	}
	if _, err := e.Pack(context.Background(), out, out+"2"); !errors.Is(err, ErrNotNative) || !strings.Contains(err.Error(), "packed already") {
		t.Errorf("packed twice: %v", err)
	}
	if _, err := e.Pack(context.Background(), opstest.Save(t, opstest.TinyBERT.Model()), out+"2"); !errors.Is(err, ErrNotNative) {
		t.Errorf("a float model: %v", err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, bytes.ReplaceAll(b, []byte("libfewbit_cpu ABI"), []byte("libfewbit_cpu abi")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = e.OpenFile(context.Background(), out, engine.Options{})
	if !errors.Is(err, engine.ErrModel) || !errors.Is(err, ErrPackedFor) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), filepath.Dir(out)) {
		t.Errorf("packed for another library: %v", err)
	}
	none := &Engine{Engine: &ort.Engine{}}
	if err := none.fits(p.For); !errors.Is(err, ErrPackedFor) {
		t.Errorf("without the library: %v", err)
	}
	if _, err := none.Pack(context.Background(), path, out); !errors.Is(err, ErrNoKernels) {
		t.Errorf("pack without the library: %v", err)
	}
}
