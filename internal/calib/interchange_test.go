package calib

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestTensorRTCacheGolden(t *testing.T) {
	ranges := map[string]Range{"input": {-1, .5}, "a: b": {0, 127}, "zero": {}, "tiny": {0, math.SmallestNonzeroFloat32}, "neg": {-254, 3}}
	var b bytes.Buffer
	if err := WriteTensorRT(&b, ranges); err != nil {
		t.Fatal(err)
	}
	golden(t, "tensorrt.cache", b.String())
	if !strings.Contains(b.String(), "\ninput: 3c010204\n") {
		t.Errorf("1/127 is not 3c010204:\n%s", b.String())
	}
	s, err := ParseTensorRT(&b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float32{"input": 1. / 127, "a: b": 1, "zero": 1. / 127, "tiny": minScale, "neg": 2} {
		if s[name] != want {
			t.Errorf("%s: %v, expected %v", name, s[name], want)
		}
	}
	// The example of TensorRT's own tools.
	s, err = ParseTensorRT(strings.NewReader("TRT-7103-EntropyCalibration2\r\nactual: x: 3c010a14\r\n\r\n"))
	if err != nil || s["actual: x"] != math.Float32frombits(0x3c010a14) {
		t.Error(s, err)
	}
}

func TestORTCacheGolden(t *testing.T) {
	var b bytes.Buffer
	if err := WriteORT(&b, map[string]Range{"b": {-100, 1}, "a": {0, .1}, "c": {}, "d": {-1, 3e20}}); err != nil {
		t.Fatal(err)
	}
	if want := "a 0.1\nb 100\nc 0\nd 3e+20\n"; b.String() != want {
		t.Errorf("%q, expected %q", b.String(), want)
	}
	for _, name := range []string{"", "with space", "new\nline", "tab\t"} {
		if err := WriteORT(&b, map[string]Range{name: {0, 1}}); !errors.Is(err, ErrTable) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := WriteTensorRT(&b, map[string]Range{"new\nline": {0, 1}}); !errors.Is(err, ErrTable) {
		t.Error(err)
	}
}

func TestParseTensorRTRefuses(t *testing.T) {
	const h = TensorRTHeader + "\n"
	for text, says := range map[string]string{
		"":                                    "empty",
		"x: 3c010a14\n":                       "header",
		h + "x 3c010a14":                      "line 2",
		h + ": 3c010a14":                      "expected name",
		h + "x: 3c010a1":                      "8 hexadecimal",
		h + "x: 03c010a14":                    "8 hexadecimal",
		h + "x: 3c01zz14":                     "8 hexadecimal",
		h + "x: 00000000":                     "positive",
		h + "x: bc010a14":                     "positive",
		h + "x: 7f800000":                     "positive",
		h + "x: 7fc00000":                     "positive",
		h + "x: 3c010a14\nx: 3c010a14\n":      "twice",
		h + strings.Repeat("x", MaxCacheLine): "too long",
	} {
		if _, err := ParseTensorRT(strings.NewReader(text)); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, expected it to say %q", text, err, says)
		}
	}
}

func FuzzParseTensorRT(f *testing.F) {
	f.Add([]byte(TensorRTHeader + "\ninput: 3c010a14\na: b: 3f800000\n"))
	f.Add([]byte("TRT-\r\n\r\nx: 00000001\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseTensorRT(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrTable) {
				t.Fatalf("not ErrTable: %v", err)
			}
			return
		}
		var out bytes.Buffer
		fmt.Fprintln(&out, TensorRTHeader)
		for n, v := range s {
			if !(v > 0 && v <= math.MaxFloat32) {
				t.Fatalf("%q: scale %v", n, v)
			}
			fmt.Fprintf(&out, "%s: %08x\n", n, math.Float32bits(v))
		}
		back, err := ParseTensorRT(&out)
		if err != nil || len(back) != len(s) {
			t.Fatalf("%v of %d: %v", len(back), len(s), err)
		}
	})
}
