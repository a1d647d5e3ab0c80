package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDatasetKinds(t *testing.T) {
	image := makeZip(t, zipEntry{name: "pets/cat/my photo ü.jpg", body: "c"}, zipEntry{name: "pets/dog/2.PNG", body: "d"}, zipEntry{name: "pets/labels.csv", body: "x"})
	npz := makeZip(t, zipEntry{name: "input_ids.npy", body: "a"}, zipEntry{name: "label.npy", body: "b"})
	for _, c := range []struct {
		name, contentType string
		body              []byte
		kind              Kind
		files             int
		err               error
	}{
		{"npz", "", npz, KindNPZ, 1, nil},
		{"npz sent as zip", "application/zip", npz, KindNPZ, 1, nil},
		{"npy", "application/octet-stream", []byte("\x93NUMPY\x01\x00"), KindNPY, 1, nil},
		{"jsonl", "application/x-ndjson", []byte(`{"text":"a"}` + "\n"), KindJSONL, 1, nil},
		{"jsonl with a mark", "", []byte("\xef\xbb\xbf\n {\"text\":\"a\"}"), KindJSONL, 1, nil},
		{"images", "", image, KindImages, 2, nil},
		{"empty", "", nil, "", 0, ErrInvalid},
		{"text", "text/plain", []byte("hello"), "", 0, ErrInvalid},
		{"array declared as lines", "application/x-ndjson; charset=utf-8", []byte(`["a"]`), "", 0, ErrInvalid},
		{"gzip", "", []byte("\x1f\x8b\x08"), "", 0, ErrInvalid},
		{"zip of text", "", makeZip(t, zipEntry{name: "a.txt", body: "a"}), "", 0, ErrInvalid},
		{"images and a link up", "", makeZip(t, zipEntry{name: "a.jpg", body: "a"}, zipEntry{name: "../b.jpg", body: "a"}), "", 0, ErrName},
		{"too deep", "", makeZip(t, zipEntry{name: "0.jpg"}, zipEntry{name: "1/2/3/4/5/a.jpg", body: "a"}), "", 0, ErrName},
	} {
		t.Run(c.name, func(t *testing.T) {
			var saw Kind
			r := open(t, "", Options{ValidateDataset: func(_ context.Context, path string, kind Kind) (Facts, error) {
				saw = kind
				st, err := os.Stat(path)
				if err == nil && st.IsDir() != (kind == KindImages) {
					err = errors.New("a folder is for images only")
				}
				return Facts{Samples: 7, Labelled: true}, err
			}})
			d, err := r.PutDataset(t.Context(), "d", bytes.NewReader(c.body), int64(len(c.body)), c.contentType)
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if c.err != nil {
				if _, err := r.Dataset("d"); !errors.Is(err, ErrNotFound) {
					t.Errorf("it was stored: %v", err)
				}
				return
			}
			if d.Kind != c.kind || saw != c.kind || d.Files != c.files || d.Facts != (Facts{7, true}) || d.Size != int64(len(c.body)) || d.SHA256 != digest(string(c.body)) {
				t.Errorf("%+v, validated as %s", d, saw)
			}
			path, kind, err := r.DatasetPath(t.Context(), "d")
			if err != nil || kind != c.kind {
				t.Fatal(err)
			}
			if kind == KindImages {
				checkImages(t, r, path)
				return
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, c.body) || filepath.Ext(path) != "."+string(kind) {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		})
	}
}

func checkImages(t *testing.T, r *Registry, dir string) {
	t.Helper()
	for range 2 {
		if b, err := os.ReadFile(filepath.Join(dir, "cat", "my photo ü.jpg")); err != nil || string(b) != "c" {
			t.Errorf("%q, %v", b, err)
		}
		// The unpacked folder is a cache.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		var err error
		if dir, _, err = r.DatasetPath(t.Context(), "d"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDatasetReplaceListDelete(t *testing.T) {
	r := open(t, "", Options{})
	put := func(name, text string) {
		t.Helper()
		if _, err := r.PutDataset(t.Context(), name, strings.NewReader(fmt.Sprintf("{%q:1}", text)), -1, ""); err != nil {
			t.Fatal(err)
		}
	}
	put("b", "one")
	put("a", "one")
	old, _, err := r.DatasetPath(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	put("b", "two")
	if b, err := os.ReadFile(old); err != nil || string(b) != `{"one":1}` {
		t.Errorf("a reader of the replaced data sees %q, %v", b, err)
	}
	path, _, err := r.DatasetPath(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != `{"two":1}` {
		t.Errorf("%q, %v", b, err)
	}
	ds, err := r.Datasets()
	if err != nil || len(ds) != 2 || ds[0].Name != "a" || ds[1].Name != "b" {
		t.Errorf("%+v, %v", ds, err)
	}
	if err := r.DeleteDataset("a"); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteDataset("a"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for _, bad := range []string{"", "..", "a/b"} {
		if _, err := r.PutDataset(t.Context(), bad, strings.NewReader("{}"), -1, ""); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, _, err := r.DatasetPath(t.Context(), bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := r.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.blobPath(digest(`{"one":1}`))); err == nil {
		t.Error("the deleted data set's contents stay")
	}
	if _, _, err := r.DatasetPath(t.Context(), "b"); err != nil {
		t.Error(err)
	}
}
