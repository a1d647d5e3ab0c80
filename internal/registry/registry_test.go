package registry

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// open returns a registry in dir ("": a new one). At its end every test checks
// that all published files have their digests and nothing temporary is left.
func open(t *testing.T, dir string, o Options) *Registry {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	r, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Verify(context.Background()); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, r); len(left) > 0 {
			t.Errorf("temporary files are left: %q", left)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func leftovers(t *testing.T, r *Registry) []string {
	t.Helper()
	var left []string
	es, err := os.ReadDir(r.session)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if e.Name() != ".lock" {
			left = append(left, e.Name())
		}
	}
	return left
}

func upload(t *testing.T, r *Registry, name, content string) Version {
	t.Helper()
	v, err := r.Upload(t.Context(), name, strings.NewReader(content), -1, About{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

type zipEntry struct {
	name, body string
	change     func(*zip.FileHeader)
}

func makeZip(t testing.TB, es ...zipEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range es {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.change != nil {
			e.change(h)
		}
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestVersionsAndDefault(t *testing.T) {
	r := open(t, "", Options{})
	for i := 1; i <= 3; i++ {
		v := upload(t, r, "m", fmt.Sprint("graph ", i))
		if v.Number != i || v.ID() != fmt.Sprint(i) || len(v.Files) != 1 || v.Files[0].SHA256 != digest(fmt.Sprint("graph ", i)) {
			t.Fatalf("version %d: %+v", i, v)
		}
	}
	wantDefault := func(n int) {
		t.Helper()
		if v, err := r.Version("m", ""); err != nil || v.Number != n {
			t.Fatalf("default is %d (%v), want %d", v.Number, err, n)
		}
	}
	wantDefault(1)
	for _, n := range []string{"2", "3"} {
		if err := r.Promote("m", n); err != nil {
			t.Fatal(err)
		}
	}
	wantDefault(3)
	if err := r.DeleteVersion("m", "3"); !errors.Is(err, ErrInUse) {
		t.Errorf("deleting the default: %v", err)
	}
	if v, err := r.Rollback("m"); err != nil || v.Number != 2 {
		t.Errorf("roll-back: %v, %v", v.Number, err)
	}
	if err := r.DeleteVersion("m", "1"); err != nil { // the history must skip it
		t.Fatal(err)
	}
	if _, err := r.Rollback("m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("roll-back past the beginning: %v", err)
	}
	wantDefault(2)
	if err := r.DeleteVersion("m", "3"); err != nil {
		t.Fatal(err)
	}
	if v := upload(t, r, "m", "graph 4"); v.Number != 4 {
		t.Errorf("number %d was used again, want 4", v.Number)
	}
	if err := r.DeleteVersion("m", "4"); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteVersion("m", "2"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "delete the model itself") {
		t.Errorf("deleting the only version: %v", err)
	}
	wantDefault(2)
	if err := r.DeleteModel("m"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Model("m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
	if ms, err := r.Models(); err != nil || len(ms) != 0 {
		t.Errorf("after deletion: %v, %v", ms, err)
	}
}

func TestPathHoldsFilesUnderTheirNames(t *testing.T) {
	r := open(t, "", Options{})
	body := makeZip(t, zipEntry{name: "model.onnx", body: "graph"}, zipEntry{name: "model.onnx_data", body: "weights"},
		zipEntry{name: "1_Pooling/config.json", body: "{}"})
	v, err := r.Upload(t.Context(), "m", bytes.NewReader(body), int64(len(body)), About{Scheme: "int8"})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := r.Path("m", "1")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range v.Files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil || digest(string(b)) != f.SHA256 || int64(len(b)) != f.Size {
			t.Errorf("%s: %q, %v", f.Name, b, err)
		}
		st, err := os.Lstat(filepath.Join(dir, f.Name))
		if err != nil || !st.Mode().IsRegular() || st.Mode().Perm() != 0o444 {
			t.Errorf("%s: %v, %v", f.Name, st.Mode(), err)
		}
	}
	// A damaged view is made again.
	if err := os.Remove(filepath.Join(dir, "model.onnx_data")); err != nil {
		t.Fatal(err)
	}
	if again, err := r.Path("m", ""); err != nil || again != dir {
		t.Fatalf("%s, %v", again, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "model.onnx_data")); err != nil || string(b) != "weights" {
		t.Errorf("after repair: %q, %v", b, err)
	}
}

func TestStageLinksWithoutCopying(t *testing.T) {
	r := open(t, "", Options{})
	body := makeZip(t, zipEntry{name: "model.onnx", body: "graph"}, zipEntry{name: "tokenizer.json", body: "{}"})
	v1, err := r.Upload(t.Context(), "m", bytes.NewReader(body), -1, About{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Link(v1, "tokenizer.json", "labels.txt"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), ModelFile), []byte("quantized"), 0o644); err != nil {
		t.Fatal(err)
	}
	v2, err := r.Publish(t.Context(), "m", s, About{Scheme: "int8", Source: "m/1", Key: "job"})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := v1.File("tokenizer.json")
	if b, ok := v2.File("tokenizer.json"); !ok || a != b {
		t.Errorf("%+v and %+v", a, b)
	}
	// The same job again, as after a crash: no third version.
	s2, err := r.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if err := os.WriteFile(filepath.Join(s2.Dir(), ModelFile), []byte("quantized"), 0o644); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Publish(t.Context(), "m", s2, About{Key: "job"}); err != nil || v.Number != v2.Number {
		t.Errorf("version %d, %v; want %d", v.Number, err, v2.Number)
	}
}

func TestPublishRefuses(t *testing.T) {
	r := open(t, "", Options{})
	stage := func(t *testing.T) *Stage {
		s, err := r.NewStage()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	t.Run("no graph", func(t *testing.T) {
		if _, err := r.Publish(t.Context(), "m", stage(t), About{}); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("symbolic link", func(t *testing.T) {
		s := stage(t)
		if err := os.Symlink("/etc/passwd", filepath.Join(s.Dir(), ModelFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Publish(t.Context(), "m", s, About{}); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("pipe", func(t *testing.T) {
		s := stage(t)
		if err := syscall.Mkfifo(filepath.Join(s.Dir(), ModelFile), 0o600); err != nil {
			t.Skip("no named pipes here:", err)
		}
		if _, err := r.Publish(t.Context(), "m", s, About{}); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
	if _, err := r.Model("m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("something was published: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, s := range []string{"m", "bert-base_v2.1", "0", strings.Repeat("a", 128)} {
		if err := CheckName(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", ".", "..", "a..b", ".a", "-a", "a/b", `a\b`, "a b", "a\x00", "ä", "а", "%2e%2e", strings.Repeat("a", 129), "a\n"} {
		if err := CheckName(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"model.onnx", "model.onnx_data", "1_Pooling/config.json", "_x", "a+b"} {
		if err := CheckFile(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", "/a", "../a", "a/b", "1_Pooling", "1_Pooling/", "1_Pooling/../a", "1_Pooling/a/b", "2_Dense/x", ".lock", "a..b", `a\b`} {
		if err := CheckFile(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"0", "01", "+1", "-1", "1.0", "x", "99999999999999999999", " 1"} {
		if _, err := parseVersion(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestSameNameFiftyTimesAtOnce(t *testing.T) {
	const n = 50
	dir := t.TempDir()
	two := []*Registry{open(t, dir, Options{}), open(t, dir, Options{})} // as two processes
	var wg sync.WaitGroup
	numbers := make(chan int, n)
	for i := range n {
		wg.Go(func() {
			v, err := two[i%2].Upload(t.Context(), "m", strings.NewReader(fmt.Sprint("graph ", i%7)), -1, About{})
			if err != nil {
				t.Error(err)
			}
			numbers <- v.Number
		})
	}
	wg.Wait()
	close(numbers)
	seen := map[int]bool{}
	for v := range numbers {
		if seen[v] || v < 1 || v > n {
			t.Errorf("version %d twice or out of range", v)
		}
		seen[v] = true
	}
	m, err := two[0].Model("m")
	if err != nil || len(m.Versions) != n {
		t.Fatalf("%d versions, %v", len(m.Versions), err)
	}
}

func TestOpenRemovesWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, Options{})
	alive, err := a.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	dead := filepath.Join(dir, tmpDir, "s-dead")
	if err := os.MkdirAll(filepath.Join(dead, "stage-1", "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir, Options{})
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead session is still there: %v", err)
	}
	if _, err := os.Stat(alive.Dir()); err != nil {
		t.Errorf("a living session was removed: %v", err)
	}
	if _, err := b.Models(); err != nil {
		t.Error(err)
	}
}

func TestGarbage(t *testing.T) {
	r := open(t, "", Options{})
	upload(t, r, "m", "one")
	upload(t, r, "m", "two")
	upload(t, r, "other", "two")
	dir, err := r.Path("m", "2")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteVersion("m", "2"); err != nil {
		t.Fatal(err)
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if err := r.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if !there(r.blobPath(digest("one"))) || !there(r.blobPath(digest("two"))) {
		t.Fatal("contents in use were removed")
	}
	if !there(dir) {
		t.Fatal("a view that another version shares was removed")
	}
	if err := r.DeleteModel("other"); err != nil {
		t.Fatal(err)
	}
	if err := r.GC(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if !there(r.blobPath(digest("two"))) || !there(dir) {
		t.Error("removed within the grace period")
	}
	if err := r.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if there(r.blobPath(digest("two"))) || there(dir) {
		t.Error("garbage stays")
	}
	if !there(r.blobPath(digest("one"))) {
		t.Error("contents in use were removed")
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	r, err := Open(t.Context(), t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	upload(t, r, "m", "graph")
	blob := r.blobPath(digest("graph"))
	if err := os.Chmod(blob, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob, []byte("grapf"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(t.Context()); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), r.root) {
		t.Error(err)
	}
}

// One damaged manifest must not take the rest down, nor let garbage collection
// believe that its files are not needed.
func TestDamagedManifest(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{})
	upload(t, r, "a", "one")
	upload(t, r, "a", "two")
	upload(t, r, "b", "three")
	path := r.manifest("a", 2)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", "[]", `{"files":[{"name":"../x","sha256":"` + digest("x") + `","size":1}]}`, `{"files":[{"name":"x","sha256":"..","size":1}]}`} {
		if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatalf("%q: %v", bad, err)
		}
		ms, err := again.Models()
		if !errors.Is(err, ErrInvalid) || len(ms) != 2 || len(ms[0].Versions) != 1 || strings.Contains(err.Error(), dir) {
			t.Errorf("%q: %+v, %v", bad, ms, err)
		}
		if _, err := again.Path("b", ""); err != nil {
			t.Error(err)
		}
		if err := again.GC(t.Context(), 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: collecting garbage: %v", bad, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Path("a", "2"); err != nil {
		t.Error(err)
	}
}

// TestConcurrentDeletes: of many who delete the same thing one succeeds, and the
// others are told that it is not there.
func TestConcurrentDeletes(t *testing.T) {
	r := open(t, "", Options{})
	for round := range 20 {
		upload(t, r, "m", fmt.Sprint("graph ", round))
		upload(t, r, "m", fmt.Sprint("graph ", round, "b"))
		if _, err := r.PutDataset(t.Context(), "d", strings.NewReader("{}\n"), -1, ""); err != nil {
			t.Fatal(err)
		}
		deleteAtOnce(t, "data set", func() error { return r.DeleteDataset("d") })
		deleteAtOnce(t, "version", func() error { return r.DeleteVersion("m", "2") })
		deleteAtOnce(t, "model", func() error { return r.DeleteModel("m") })
	}
}

func deleteAtOnce(t *testing.T, what string, f func() error) {
	t.Helper()
	const n = 8
	errs := make(chan error, n)
	for range n {
		go func() { errs <- f() }()
	}
	done := 0
	for range n {
		switch err := <-errs; {
		case err == nil:
			done++
		case !errors.Is(err, ErrNotFound):
			t.Errorf("%s: %v", what, err)
		}
	}
	if done != 1 {
		t.Errorf("%s: %d of %d deletions succeeded", what, done, n)
	}
}
