package data

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
)

// kinds are the errors that hostile bytes may cause.
var kinds = []error{ErrEmpty, ErrFormat, ErrUnsupported, ErrMismatch, ErrLabel, ErrTooLarge}

// fuzzLimit bounds what is read of a data set in fuzzing.
const fuzzLimit = 50

// memory is a file of bytes.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// openBytes is Open of a file with these bytes.
func openBytes(b []byte, o Options) (Dataset, error) {
	if len(b) == 0 {
		return nil, ErrEmpty
	}
	src, err := openFile(memory{bytes.NewReader(b)}, int64(len(b)), "f", o)
	if err != nil {
		return nil, err
	}
	return newSet(src, o)
}

// fuzzFile opens the bytes as a data set and reads the first samples.
func fuzzFile(t *testing.T, b []byte, specs ...engine.IOSpec) {
	check := func(err error) {
		if !slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) }) {
			t.Fatalf("an error of no kind: %v", err)
		}
	}
	if facts, err := checkFile(t.Context(), memory{bytes.NewReader(b)}, int64(len(b)), "f"); err != nil {
		check(err)
	} else if facts.Samples < 0 {
		t.Fatalf("%+v", facts)
	}
	for _, spec := range specs {
		d, err := openBytes(b, Options{Spec: spec, ModelDir: modelDir})
		if err != nil {
			check(err)
			continue
		}
		for i := 0; i < min(d.Len(), fuzzLimit); i++ {
			s, err := d.Next(t.Context())
			if errors.Is(err, io.EOF) {
				t.Fatalf("the end after %d of %d", i, d.Len())
			}
			if err != nil {
				check(err)
				break
			}
			if err := engine.CheckFeeds(spec, s.Feeds); err != nil {
				t.Fatalf("sample %d: %v", i, err)
			}
			if d.Labelled() != s.HasLabel {
				t.Fatalf("sample %d: label %v, set %v", i, s.HasLabel, d.Labelled())
			}
		}
		if err := d.Reset(); err != nil {
			check(err)
		}
		d.Close()
	}
}

func addFiles(f *testing.F, pattern string) {
	files, _ := filepath.Glob(pattern)
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

func FuzzNPY(f *testing.F) {
	addFiles(f, "testdata/*.npy")
	f.Fuzz(func(t *testing.T, b []byte) { fuzzFile(t, b, pixelSpec) })
}

func FuzzNPZ(f *testing.F) {
	addFiles(f, "testdata/*.npz")
	f.Fuzz(func(t *testing.T, b []byte) { fuzzFile(t, b, textSpec, pixelSpec) })
}

func FuzzHeader(f *testing.F) {
	f.Add("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }")
	f.Add("{'descr': [('a', '<f4'), ('b', '<i8', (2, 2))], 'fortran_order': True, 'shape': (4L,), }  \n")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseNPYDict(s)
		if err == nil && (h.rowSize < 0 || h.rowSize > maxRowBytes || h.dims[0] > maxRows || h.dataSize() < 0) {
			t.Fatalf("out of bounds: %+v", h)
		}
	})
}

func FuzzJSONL(f *testing.F) {
	f.Add([]byte(`{"text":"Hello worlds!","label":"pos"}` + "\n\r\n" + `{"text":"bad","label":"neg","text_pair":"good."}`))
	f.Add([]byte("\ufeff" + `{"text":"\ud800\u0000é","label":3}`))
	f.Fuzz(func(t *testing.T, b []byte) { fuzzFile(t, b, textSpec) })
}

func FuzzImageZip(f *testing.F) {
	px := pixel(f, 9)
	f.Add(zipOf(f, "cat/a.png", px, "dog/b.png", px))
	f.Add(zipOf(f, "a.png", px, "labels.csv", []byte("file,label\na.png,cat\n")))
	f.Fuzz(func(t *testing.T, b []byte) { fuzzFile(t, b, pixelSpec) })
}
