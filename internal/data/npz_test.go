package data

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestTextArrays(t *testing.T) {
	for _, file := range []string{"text.npz", "text_deflated.npz", "text_int32.npz"} {
		t.Run(file, func(t *testing.T) {
			d := open(t, "testdata/"+file, Options{Spec: textSpec})
			if d.Kind() != "npz" || !d.Labelled() || d.Len() != 10 {
				t.Fatalf("kind %s, labelled %v, %d samples", d.Kind(), d.Labelled(), d.Len())
			}
			for pass := range 2 {
				for i, s := range all(t, d) {
					n := 1 + i%6 // see gen_arrays.py
					want := make([]int64, n)
					ones := make([]int64, n)
					for j := range want {
						want[j], ones[j] = int64(100+6*i+j), 1
					}
					if err := engine.CheckFeeds(textSpec, s.Feeds); err != nil {
						t.Fatal(err)
					}
					if got := tensor.View[int64](s.Feeds["input_ids"]); !slices.Equal(got, want) || s.Feeds["input_ids"].Dims[1] != int64(n) {
						t.Errorf("pass %d row %d: ids %v, want %v", pass, i, got, want)
					}
					if got := tensor.View[int64](s.Feeds["attention_mask"]); !slices.Equal(got, ones) {
						t.Errorf("row %d: mask %v", i, got)
					}
					if s.Tokens != n || s.Label != i%3 || !s.HasLabel {
						t.Errorf("row %d: %d tokens, label %d", i, s.Tokens, s.Label)
					}
				}
				if err := d.Reset(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("padding kept", func(t *testing.T) {
		for i, s := range all(t, open(t, "testdata/text.npz", Options{Spec: textSpec, KeepPadding: true})) {
			if s.Feeds["input_ids"].Dims[1] != 6 {
				t.Errorf("row %d: %v", i, s.Feeds["input_ids"].Dims)
			}
		}
	})
	t.Run("fixed length keeps padding", func(t *testing.T) {
		spec := engine.IOSpec{Inputs: slices.Clone(textSpec.Inputs)}
		for i := range spec.Inputs {
			spec.Inputs[i].Dims = []int64{1, 6}
		}
		for _, s := range all(t, open(t, "testdata/text.npz", Options{Spec: spec})) {
			if err := engine.CheckFeeds(spec, s.Feeds); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestPixelArrays(t *testing.T) {
	for _, file := range []string{"image_f4.npy", "image_f8.npy", "image_f2.npy", "image_arr0.npz", "version1.npy", "version2.npy", "version3.npy", "zip64.npz"} {
		t.Run(file, func(t *testing.T) {
			d := open(t, "testdata/"+file, Options{Spec: pixelSpec})
			if d.Labelled() || d.Len() != 4 {
				t.Fatalf("labelled %v, %d samples", d.Labelled(), d.Len())
			}
			if err := RequireLabels(d); !errors.Is(err, ErrNoLabels) {
				t.Errorf("RequireLabels: %v", err)
			}
			k := 0
			for _, s := range all(t, d) {
				for _, v := range tensor.View[float32](s.Feeds["pixels"]) {
					if want := float32(k)/8 - 2; v != want {
						t.Fatalf("element %d is %v, want %v", k, v, want)
					}
					k++
				}
			}
			if _, err := d.Next(context.Background()); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

func TestArraysRefused(t *testing.T) {
	pixels := Options{Spec: pixelSpec}
	text := Options{Spec: textSpec}
	for _, c := range []struct {
		file  string
		o     Options
		err   error
		words []string
	}{
		{"fortran.npy", pixels, ErrUnsupported, []string{"Fortran", "ascontiguousarray"}},
		{"big_endian.npy", pixels, ErrUnsupported, []string{"big-endian", `astype("<f4")`}},
		{"objects.npy", pixels, ErrUnsupported, []string{"Python objects"}},
		{"records.npy", pixels, ErrUnsupported, []string{"structured"}},
		{"strings.npy", pixels, ErrUnsupported, []string{"strings"}},
		{"scalar.npy", pixels, ErrMismatch, []string{"sample axis"}},
		{"bzip2.npz", pixels, ErrUnsupported, []string{"compression method 12"}},
		{"image_u1.npy", pixels, ErrMismatch, []string{"UINT8", "expects FP32", "scale"}},
		{"image_nhwc.npy", pixels, ErrMismatch, []string{"[4, 2, 2, 3] looks like NHWC; the model wants [n, 3, 2, 2]", "transpose(0, 3, 1, 2)"}},
		{"text.npz", pixels, ErrMismatch, []string{`"pixels"`, "got attention_mask, input_ids, label, token_type_ids"}},
		{"image_f4.npy", text, ErrMismatch, []string{"one array", "input_ids, attention_mask, token_type_ids"}},
		{"image_arr0.npz", text, ErrMismatch, []string{`"input_ids"`, "got arr_0"}},
		{"gen_arrays.py", pixels, ErrFormat, []string{"gen_arrays.py", ".npz"}},
		{"missing.npz", pixels, ErrNotFound, []string{"missing.npz"}},
	} {
		t.Run(c.file, func(t *testing.T) { refuse(t, filepath.Join("testdata", c.file), c.o, c.err, c.words...) })
	}
}

func TestArraysRefusedMade(t *testing.T) {
	x := npy("<f4", false, []int64{4, 3, 2, 2}, bytesOf(ramp(48)))
	ids := func(n, l int64) []byte { return npy("<i8", false, []int64{n, l}, make([]byte, n*l*8)) }
	for name, c := range map[string]struct {
		file  string
		bytes []byte
		spec  engine.IOSpec
		err   error
		words []string
	}{
		"empty file":     {"a.npz", nil, pixelSpec, ErrEmpty, []string{"a.npz"}},
		"empty archive":  {"a.npz", npzOf(t, zip.Store, nil), pixelSpec, ErrEmpty, []string{"no entries"}},
		"text":           {"a.npz", []byte("hello, world, this is text"), pixelSpec, ErrFormat, []string{"a.npz"}},
		"truncated zip":  {"a.npz", npzOf(t, zip.Store, map[string][]byte{"pixels": x})[:200], pixelSpec, ErrFormat, []string{"not a whole zip"}},
		"truncated npy":  {"a.npy", x[:len(x)-1], pixelSpec, ErrFormat, []string{"191 bytes", "192"}},
		"too long npy":   {"a.npy", append(slices.Clone(x), 0), pixelSpec, ErrFormat, []string{"193 bytes"}},
		"cut deflated":   {"a.npz", npzOf(t, zip.Deflate, map[string][]byte{"pixels": x[:len(x)-4]}), pixelSpec, ErrFormat, []string{`"pixels"`, "cut off"}},
		"no samples":     {"a.npy", npy("<f4", false, []int64{0, 3, 2, 2}, nil), pixelSpec, ErrEmpty, []string{"[0 3 2 2]"}},
		"rank":           {"a.npy", npy("<f4", false, []int64{3, 2, 2}, bytesOf(ramp(12))), pixelSpec, ErrMismatch, []string{"rank 3", "rank 4", "x[None]"}},
		"flat":           {"a.npy", npy("<f4", false, []int64{12}, bytesOf(ramp(12))), pixelSpec, ErrMismatch, []string{"[12] (rank 1)", "[n, 3, 2, 2] (rank 4)"}},
		"size":           {"a.npy", npy("<f4", false, []int64{1, 3, 2, 3}, bytesOf(ramp(18))), pixelSpec, ErrMismatch, []string{"[1, 3, 2, 3]", "expects [n, 3, 2, 2]"}},
		"dtype":          {"a.npy", npy("<i8", false, []int64{1, 3, 2, 2}, make([]byte, 96)), pixelSpec, ErrMismatch, []string{"INT64", "expects FP32"}},
		"float ids":      {"a.npz", npzOf(t, zip.Store, map[string][]byte{"input_ids": npy("<f4", false, []int64{1, 2}, make([]byte, 8)), "attention_mask": ids(1, 2), "token_type_ids": ids(1, 2)}), textSpec, ErrMismatch, []string{"FP32", "expects INT64"}},
		"counts":         {"a.npz", npzOf(t, zip.Store, map[string][]byte{"input_ids": ids(3, 2), "attention_mask": ids(2, 2), "token_type_ids": ids(3, 2)}), textSpec, ErrMismatch, []string{"2 samples", "first axes"}},
		"missing input":  {"a.npz", npzOf(t, zip.Store, map[string][]byte{"input_ids": ids(3, 2), "attention_mask": ids(3, 2)}), textSpec, ErrMismatch, []string{`"token_type_ids"`, "got attention_mask, input_ids"}},
		"label count":    {"a.npz", npzOf(t, zip.Store, map[string][]byte{"pixels": x, "label": npy("<i8", false, []int64{3}, make([]byte, 24))}), pixelSpec, ErrMismatch, []string{`"label"`, "3 samples"}},
		"label floats":   {"a.npz", npzOf(t, zip.Store, map[string][]byte{"pixels": x, "label": npy("<f4", false, []int64{4}, make([]byte, 16))}), pixelSpec, ErrLabel, []string{"FP32", "integer"}},
		"label one-hot":  {"a.npz", npzOf(t, zip.Store, map[string][]byte{"pixels": x, "label": ids(4, 3)}), pixelSpec, ErrLabel, []string{"[4 3]"}},
		"label negative": {"a.npz", npzOf(t, zip.Deflate, map[string][]byte{"pixels": x, "label": npy("<i8", false, []int64{4}, bytesOf([]int64{0, 1, -1, 2}))}), pixelSpec, ErrLabel, []string{"row 2", "-1"}},
		"shape bomb":     {"a.npy", npy("<f4", false, []int64{1 << 40, 3, 2, 2}, nil), pixelSpec, ErrFormat, nil},
		"row bomb":       {"a.npy", npy("<f4", false, []int64{1, 1 << 37}, nil), pixelSpec, ErrTooLarge, nil},
		"negative":       {"a.npy", npy("<f4", false, []int64{-1, 3, 2, 2}, nil), pixelSpec, ErrFormat, nil},
		"overflow":       {"a.npy", npy("<f4", false, []int64{math.MaxInt64, math.MaxInt64}, nil), pixelSpec, ErrFormat, nil},
		"two of a name":  {"a.npz", twice(t, x), pixelSpec, ErrFormat, []string{"two arrays"}},
		"no images":      {"a.zip", zipOf(t, "readme.md", []byte("hi")), pixelSpec, ErrFormat, []string{"neither arrays"}},
	} {
		t.Run(name, func(t *testing.T) {
			refuse(t, write(t, c.file, c.bytes), Options{Spec: c.spec}, c.err, c.words...)
		})
	}
}

func TestNarrowingChecksRange(t *testing.T) {
	spec := engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Int32, Dims: []int64{-1, 1}}}}
	p := write(t, "a.npy", npy("<i8", false, []int64{3, 1}, bytesOf([]int64{math.MaxInt32, math.MinInt32, 1 << 31})))
	refuse(t, p, Options{Spec: spec}, ErrMismatch, `"x"`, "row 2", "INT32")
	d := open(t, p, Options{Spec: spec})
	for _, want := range []int32{math.MaxInt32, math.MinInt32} {
		s, err := d.Next(context.Background())
		if err != nil || tensor.View[int32](s.Feeds["x"])[0] != want {
			t.Fatalf("got %v, %v", s.Feeds["x"], err)
		}
	}
}

func TestHeaderLiteral(t *testing.T) {
	good := "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
	if h, err := parseNPYDict(good); err != nil || !slices.Equal(h.dims, []int64{2, 3}) || h.dtype != tensor.Float32 {
		t.Fatal(h, err)
	}
	if h, err := parseNPYDict(`{"shape": (2L, 3L,), "fortran_order": False, "descr": "|u1"}` + "  \n"); err != nil || h.rowSize != 3 {
		t.Fatal(h, err)
	}
	for _, bad := range []string{
		"", "{", "}", "{}", "[]", "{'descr'}", "{'descr': }", "{'descr': '<f4}", "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
		"{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}", "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
		"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2}", "{'descr': '<f4', 'fortran_order': False}",
		"{'fortran_order': False, 'shape': (1,)}", "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
		good + "x", "{'descr': '<f4', 'fortran_order': False, 'shape': (1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8), }",
		"{'descr': [[[[[[[[[[[]]]]]]]]]]], 'fortran_order': False, 'shape': (1,)}", `{'descr': '<f\x34', 'fortran_order': False, 'shape': (1,)}`,
		"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (1,)}",
	} {
		if h, err := parseNPYDict(bad); err == nil {
			t.Errorf("%q gave %v", bad, h)
		} else if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// maxStreamed bounds what reading a few samples of a large compressed file may
// allocate: buffers of the decompressor and of the rows read.
const maxStreamed = 1 << 20

func TestDeflatedIsStreamed(t *testing.T) {
	const rows = 1024 // 16 MiB of zeros, 16 KiB in the archive
	spec := engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 4096}}}}
	p := write(t, "a.npz", npzOf(t, zip.Deflate, map[string][]byte{"x": npy("<f4", false, []int64{rows, 4096}, make([]byte, rows*4096*4))}))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d := open(t, p, Options{Spec: spec, Samples: 8})
	if n := len(all(t, d)); n != 8 {
		t.Fatal(n)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > maxStreamed {
		t.Errorf("%d bytes allocated to read 8 rows of 16 KiB", got)
	}
}

// What a zip entry says about its size is not believed.
func TestLyingEntry(t *testing.T) {
	x := npy("<f4", false, []int64{4, 3, 2, 2}, bytesOf(ramp(48)))
	honest := npzOf(t, zip.Deflate, map[string][]byte{"pixels": x})
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(x)))
	at := bytes.LastIndex(honest, size) // in the central directory
	if at < 0 {
		t.Fatal("no size in the archive")
	}
	for _, lie := range []uint32{0, uint32(len(x)) - 4, uint32(len(x)) + 4, 1 << 30} {
		b := slices.Clone(honest)
		binary.LittleEndian.PutUint32(b[at:], lie)
		refuse(t, write(t, "a.npz", b), Options{Spec: pixelSpec}, ErrFormat, "a.npz")
	}
	// A damaged element is found by the checksum at the end.
	stored := npzOf(t, zip.Deflate, map[string][]byte{"pixels": x})
	crc := bytes.LastIndex(stored, []byte("PK\x01\x02")) + 16
	stored[crc]++
	refuse(t, write(t, "a.npz", stored), Options{Spec: pixelSpec}, ErrFormat, `"pixels"`, "damaged")
}
