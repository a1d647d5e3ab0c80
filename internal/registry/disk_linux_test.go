package registry

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fewbit/fewbit/internal/registry/disk"
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

// TestUploadsLeaveRoom: an upload of unknown length does not take the last bytes
// of the disk, where jobs and manifests are written.
func TestUploadsLeaveRoom(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("cannot mount a small tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	r := open(t, filepath.Join(dir, "data"), Options{})
	least := uint64(1 << 62)
	r.wrap = func(w writer) writer { return watched{w, dir, &least} }
	endless := struct{ io.Reader }{io.LimitReader(zeros{}, 1<<30)}
	if _, err := r.Upload(t.Context(), "m", endless, -1, About{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v", err)
	}
	if least < 2<<20 || least > 8<<20 {
		t.Errorf("%d bytes were left of 64 MiB, want about a twentieth", least)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// watched notes the least room that a write left.
type watched struct {
	writer
	dir   string
	least *uint64
}

func (w watched) Write(p []byte) (int, error) {
	n, err := w.writer.Write(p)
	if free, _, ok := disk.Space(w.dir); ok {
		*w.least = min(*w.least, free)
	}
	return n, err
}
