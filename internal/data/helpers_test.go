package data

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// textSpec and pixelSpec are the models that the files of testdata fit.
var (
	textSpec = engine.IOSpec{Inputs: []engine.IO{
		{Name: "input_ids", Type: tensor.Int64, Dims: []int64{-1, -1}},
		{Name: "attention_mask", Type: tensor.Int64, Dims: []int64{-1, -1}},
		{Name: "token_type_ids", Type: tensor.Int64, Dims: []int64{-1, -1}},
	}}
	pixelSpec = engine.IOSpec{Inputs: []engine.IO{{Name: "pixels", Type: tensor.Float32, Dims: []int64{-1, 3, 2, 2}}}}
)

// all reads every sample.
func all(t testing.TB, d Dataset) []Sample {
	t.Helper()
	var out []Sample
	for {
		s, err := d.Next(context.Background())
		if errors.Is(err, io.EOF) {
			if len(out) != d.Len() {
				t.Fatalf("%d samples, Len says %d", len(out), d.Len())
			}
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
}

// open opens and closes with the test.
func open(t testing.TB, path string, o Options) Dataset {
	t.Helper()
	d, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// refuse checks that opening or reading fails with the sentinel, and that the
// one-line error has all of the words and no folder.
func refuse(t *testing.T, path string, o Options, sentinel error, words ...string) {
	t.Helper()
	d, err := Open(path, o)
	if err == nil {
		defer d.Close()
		for err == nil {
			_, err = d.Next(context.Background())
		}
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s was read without an error", filepath.Base(path))
		}
	}
	if !errors.Is(err, sentinel) {
		t.Errorf("got the error %q, want %q", err, sentinel)
	}
	for _, w := range words {
		if !bytes.Contains([]byte(err.Error()), []byte(w)) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if bytes.Contains([]byte(err.Error()), []byte(filepath.Dir(path)+"/")) || bytes.ContainsRune([]byte(err.Error()), '\n') {
		t.Errorf("error %q has a folder or more than one line", err)
	}
}

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// npy is an .npy as numpy writes it.
func npy(descr string, fortran bool, shape []int64, data []byte) []byte {
	py := "("
	for _, d := range shape {
		py += fmt.Sprintf("%d, ", d)
	}
	order := map[bool]string{true: "True", false: "False"}[fortran]
	return npyRaw(fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': %s), }", descr, order, py), data)
}

// npyRaw is a version 1 .npy with any header.
func npyRaw(dict string, data []byte) []byte {
	b := append([]byte(npyMagic), 1, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(dict)+1))
	b = append(b, dict...)
	b = append(b, '\n')
	return append(b, data...)
}

func bytesOf(v any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// npzOf is an archive of the arrays, by name.
func npzOf(t testing.TB, method uint16, arrays map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, a := range arrays {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: method})
		if err == nil {
			_, err = w.Write(a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ramp is 0, 1, 2 ... as float32.
func ramp(n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(i)
	}
	return v
}

// twice is an archive with two entries of one name.
func twice(t testing.TB, a []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for range 2 {
		w, err := z.Create("pixels.npy")
		if err == nil {
			_, err = w.Write(a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	z.Close()
	return b.Bytes()
}

// zipOf is an archive of pairs of name and contents.
func zipOf(t testing.TB, pairs ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		w, err := z.Create(pairs[i].(string))
		if err == nil {
			_, err = w.Write(pairs[i+1].([]byte))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	z.Close()
	return b.Bytes()
}
