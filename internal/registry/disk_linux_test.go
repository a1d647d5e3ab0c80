package registry

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestRealFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small tmpfs (needs root): %v; TestFullDiskAtEveryPoint covers it with injected errors", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	r := open(t, filepath.Join(dir, "data"), Options{})
	upload(t, r, "old", "graph")
	big := strings.NewReader(strings.Repeat("x", 2<<20))
	if _, err := r.Upload(t.Context(), "m", big, -1, About{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("streamed: %v", err)
	}
	if _, err := r.Upload(t.Context(), "m", strings.NewReader(""), 2<<20, About{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("declared: %v", err)
	}
	zeros := makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("\x00", 3<<20)})
	if _, err := r.Upload(t.Context(), "m", bytes.NewReader(zeros), -1, About{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("zip: %v", err)
	}
	if _, err := r.PutDataset(t.Context(), "d", strings.NewReader("{"+strings.Repeat(" ", 2<<20)), -1, ""); !errors.Is(err, ErrNoSpace) {
		t.Errorf("data set: %v", err)
	}
	upload(t, r, "m", "fits") // all room is back
}
