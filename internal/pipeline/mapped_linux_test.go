package pipeline

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/engine"
)

func TestDropMapped(t *testing.T) {
	const size = 32 << 20
	dir := t.TempDir()
	path := filepath.Join(dir, "m1.onnx.data")
	want := bytes.Repeat([]byte{7}, size)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	if err := os.Remove(path); err != nil { // as the lab does once the engine has it
		t.Fatal(err)
	}
	mapped := func() int64 {
		m, err := engine.ReadMemory()
		if err != nil {
			t.Skip(err)
		}
		return m.RSS - m.Anon
	}
	if !bytes.Equal(b, want) {
		t.Fatal("the mapping is not the file")
	}
	before := mapped()
	dropMapped(filepath.Join(dir, "other"))
	if kept := before - mapped(); kept > size/2 {
		t.Errorf("another folder's files lost %d bytes", kept)
	}
	dropMapped(dir)
	if gone := before - mapped(); gone < size*3/4 {
		t.Errorf("%d of %d bytes were given back", gone, size)
	}
	if !bytes.Equal(b, want) {
		t.Error("the mapping is no longer the file")
	}
	b[5] = 9 // from here on the mapping is more than the file
	dropMapped(dir)
	if b[5] != 9 {
		t.Error("what was written to the mapping is gone")
	}
}
