package registry

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestUploadAccepts(t *testing.T) {
	for _, c := range []struct {
		name string
		body []byte
		want []string
	}{
		{"raw", []byte("\x08\x08graph"), []string{"model.onnx"}},
		{"zip", makeZip(t, zipEntry{name: "model.onnx", body: "g"}, zipEntry{name: "labels.txt", body: "a\nb\n"}), []string{"labels.txt", "model.onnx"}},
		{"folder in a zip", makeZip(t, zipEntry{name: "my model/"}, zipEntry{name: "my model/model.onnx", body: "g"}, zipEntry{name: "my model/1_Pooling/config.json", body: "{}"},
			zipEntry{name: "__MACOSX/my model/._model.onnx", body: "x"}, zipEntry{name: "my model/.DS_Store", body: "x"}), []string{"1_Pooling/config.json", "model.onnx"}},
		{"other name", makeZip(t, zipEntry{name: "net.onnx", body: "g"}, zipEntry{name: "net.onnx.data", body: "w"}), []string{"model.onnx", "net.onnx.data"}},
		{"stored", makeZip(t, zipEntry{name: "model.onnx", body: "g", change: func(h *zip.FileHeader) { h.Method = zip.Store }}), []string{"model.onnx"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t, "", Options{})
			v, err := r.Upload(t.Context(), "m", bytes.NewReader(c.body), int64(len(c.body)), About{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range v.Files {
				got = append(got, f.Name)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("files %q, want %q", got, c.want)
			}
		})
	}
}

// lie changes the declared uncompressed size of the first entry in the central
// directory (APPNOTE.TXT 4.3.12: offset 24 of the header).
func lie(b []byte, size uint32) []byte {
	b = bytes.Clone(b)
	i := bytes.Index(b, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(b[i+24:], size)
	return b
}

func TestUploadRefuses(t *testing.T) {
	graph := zipEntry{name: "model.onnx", body: "g"}
	many := make([]zipEntry, MaxModelEntries+1)
	for i := range many {
		many[i].name = fmt.Sprint("f", i)
	}
	mode := func(m fs.FileMode) func(*zip.FileHeader) { return func(h *zip.FileHeader) { h.SetMode(m) } }
	good := makeZip(t, graph)
	for _, c := range []struct {
		name string
		body []byte
		want error
		text string
	}{
		{"empty", nil, ErrInvalid, "empty"},
		{"empty zip", []byte("PK\x05\x06" + strings.Repeat("\x00", 18)), ErrInvalid, "empty"},
		{"truncated zip", good[:len(good)-10], ErrInvalid, "complete"},
		{"only magic", []byte("PK\x03\x04"), ErrInvalid, "complete"},
		{"no graph", makeZip(t, zipEntry{name: "a.txt", body: "x"}), ErrInvalid, "model.onnx"},
		{"two graphs", makeZip(t, zipEntry{name: "a.onnx"}, zipEntry{name: "b.onnx"}), ErrInvalid, "model.onnx"},
		{"parent", makeZip(t, graph, zipEntry{name: "../evil", body: "x"}), ErrName, "dot"},
		{"deep parent", makeZip(t, graph, zipEntry{name: "a/../../evil", body: "x"}), ErrName, "dot"},
		{"absolute", makeZip(t, graph, zipEntry{name: "/etc/evil", body: "x"}), ErrName, "absolute"},
		{"backslash", makeZip(t, graph, zipEntry{name: `..\evil`, body: "x"}), ErrName, ""},
		{"NUL", makeZip(t, graph, zipEntry{name: "a\x00b", body: "x"}), ErrName, ""},
		{"subfolder", makeZip(t, graph, zipEntry{name: "sub/x", body: "x"}), ErrName, "1_Pooling"},
		{"file and folder", makeZip(t, graph, zipEntry{name: "1_Pooling", body: "x"}, zipEntry{name: "1_Pooling/x", body: "x"}), ErrName, ""},
		{"long name", makeZip(t, graph, zipEntry{name: strings.Repeat("n", 10_000), body: "x"}), ErrName, ""},
		{"twice", makeZip(t, graph, graph), ErrInvalid, "twice"},
		{"twice after stripping", makeZip(t, zipEntry{name: "d/model.onnx"}, zipEntry{name: "d/model.onnx"}), ErrInvalid, "twice"},
		{"symbolic link", makeZip(t, graph, zipEntry{name: "link", body: "/etc/passwd", change: mode(fs.ModeSymlink | 0o777)}), ErrInvalid, "link"},
		{"device", makeZip(t, graph, zipEntry{name: "dev", change: mode(fs.ModeDevice | 0o666)}), ErrInvalid, "device"},
		{"encrypted", makeZip(t, zipEntry{name: "model.onnx", body: "g", change: func(h *zip.FileHeader) { h.Flags |= 1 }}), ErrInvalid, "encrypted"},
		{"many entries", makeZip(t, many...), ErrTooLarge, "entries"},
		{"bomb", makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("\x00", 3<<20)}), ErrTooLarge, "unpacks"},
		{"sum of entries", makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("\x00", 1<<20)}, zipEntry{name: "b", body: strings.Repeat("\x00", 1<<20)}), ErrTooLarge, "unpacks"},
		{"longer than declared", lie(makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("\x00", 3<<20)}), 10), ErrInvalid, ""},
		{"shorter than declared", lie(makeZip(t, zipEntry{name: "model.onnx", body: "g"}), 1<<20), ErrInvalid, ""},
		{"declared as 4 GiB", lie(makeZip(t, zipEntry{name: "model.onnx", body: "g"}), 1<<32-2), ErrTooLarge, ""},
		{"body too large", bytes.Repeat([]byte("x"), 2<<20+1), ErrTooLarge, "body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t, "", Options{MaxUpload: 2 << 20, MaxExpanded: 2<<20 - 1})
			for _, size := range []int64{-1, int64(len(c.body))} {
				_, err := r.Upload(t.Context(), "m", bytes.NewReader(c.body), size, About{})
				if !errors.Is(err, c.want) {
					t.Fatalf("error %v, want %v", err, c.want)
				}
				if err == nil {
					continue
				}
				if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), r.root) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q, want %q in it and no path", err, c.text)
				}
				if _, err := r.Model("m"); !errors.Is(err, ErrNotFound) {
					t.Errorf("something was published: %v", err)
				}
			}
		})
	}
}

func TestCorruptCompressedDataIsTheClientsFault(t *testing.T) {
	body := makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("graph ", 1000)})
	i := bytes.Index(body, []byte("model.onnx")) + len("model.onnx")
	body[i+5] ^= 0xff
	r := open(t, "", Options{})
	if _, err := r.Upload(t.Context(), "m", bytes.NewReader(body), -1, About{}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestValidateRefusesWithoutPath(t *testing.T) {
	var saw string
	r := open(t, "", Options{ValidateModel: func(dir string) error {
		saw = dir
		return fmt.Errorf("reading %s: node 3 is part of a cycle", filepath.Join(dir, ModelFile))
	}})
	_, err := r.Upload(t.Context(), "m", strings.NewReader("graph"), -1, About{})
	if !errors.Is(err, ErrInvalid) || err.Error() != "invalid content: reading model.onnx: node 3 is part of a cycle" {
		t.Error(err)
	}
	if _, err := os.Stat(saw); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
}

func TestUploadEndsWithItsContext(t *testing.T) {
	r := open(t, "", Options{})
	ctx, cancel := context.WithCancel(t.Context())
	body := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), readerFunc(func(p []byte) (int, error) {
		cancel() // the client leaves
		return copy(p, "more"), nil
	}))
	if _, err := r.Upload(ctx, "m", body, -1, About{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// fullDisk lets n bytes (or syncs) through, then the disk is full.
type fullDisk struct {
	w    writer
	left *int
}

func (f fullDisk) Write(p []byte) (int, error) {
	if *f.left -= len(p); *f.left < 0 {
		return 0, &fs.PathError{Op: "write", Path: "/srv/secret", Err: syscall.ENOSPC}
	}
	return f.w.Write(p)
}

func (f fullDisk) Sync() error {
	if *f.left--; *f.left < 0 {
		return &fs.PathError{Op: "sync", Path: "/srv/secret", Err: syscall.ENOSPC}
	}
	return f.w.Sync()
}

func TestFullDiskAtEveryPoint(t *testing.T) {
	body := makeZip(t, zipEntry{name: "model.onnx", body: strings.Repeat("graph", 100)}, zipEntry{name: "labels.txt", body: "a\nb\n"})
	for left := 0; ; left += 97 {
		r := open(t, "", Options{})
		upload(t, r, "old", "graph")
		n := left
		r.wrap = func(w writer) writer { return fullDisk{w, &n} }
		v, err := r.Upload(t.Context(), "m", bytes.NewReader(body), -1, About{})
		r.wrap = nil
		if err == nil {
			if left < 500 || v.Number != 1 {
				t.Fatalf("published with room for %d bytes: %+v", left, v)
			}
			return
		}
		if !errors.Is(err, ErrNoSpace) || strings.Contains(err.Error(), "/srv") {
			t.Fatalf("after %d bytes: %v", left, err)
		}
		// Either nothing, or (full between manifest and state) the whole version.
		m, err := r.Model("m")
		if !errors.Is(err, ErrNotFound) && (err != nil || len(m.Versions) != 1 || len(m.Versions[0].Files) != 2 || m.Default != 1) {
			t.Fatalf("after %d bytes: %+v, %v", left, m, err)
		}
	}
}

// FuzzUpload: whatever the bytes, an error or a whole version, nothing outside
// the store, nothing left over.
func FuzzUpload(f *testing.F) {
	f.Add([]byte("\x08\x08graph"))
	f.Add(makeZip(f, zipEntry{name: "model.onnx", body: "g"}))
	f.Add(makeZip(f, zipEntry{name: "d/model.onnx", body: "g"}, zipEntry{name: "d/1_Pooling/config.json", body: "{}"}))
	f.Add(makeZip(f, zipEntry{name: "../model.onnx", body: "g"}))
	f.Add(lie(makeZip(f, zipEntry{name: "model.onnx", body: strings.Repeat("g", 100)}), 10))
	f.Add(lie(makeZip(f, zipEntry{name: "a.npy", body: strings.Repeat("g", 100)}), crc32.IEEE))
	f.Add(makeZip(f, zipEntry{name: "cat/a.jpg", body: "g"}, zipEntry{name: "dog/a.png", body: "g"}))
	outer := f.TempDir()
	r, err := Open(context.Background(), filepath.Join(outer, "data"), Options{MaxUpload: 1 << 20, MaxExpanded: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close() })
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := r.Upload(t.Context(), "m", bytes.NewReader(body), -1, About{})
		if err == nil {
			if _, err := r.Path("m", v.ID()); err != nil {
				t.Error(err)
			}
		} else if strings.Contains(err.Error(), r.root) {
			t.Errorf("path in %q", err)
		}
		_, err = r.PutDataset(t.Context(), "d", bytes.NewReader(body), -1, "")
		if err == nil {
			if _, _, err := r.DatasetPath(t.Context(), "d"); err != nil {
				t.Error(err)
			}
		} else if strings.Contains(err.Error(), r.root) {
			t.Errorf("path in %q", err)
		}
		if left := leftovers(t, r); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
		if es, err := os.ReadDir(outer); err != nil || len(es) != 1 {
			t.Errorf("outside the store: %v, %v", es, err)
		}
		if _, err := r.Model("m"); err == nil { // keep the number of versions small
			if err := r.DeleteModel("m"); err != nil {
				t.Error(err)
			}
		}
	})
}
