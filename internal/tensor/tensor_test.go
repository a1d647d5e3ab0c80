package tensor

import (
	"errors"
	"math"
	"testing"
)

func TestDTypeNames(t *testing.T) {
	for d := Undefined; d <= Float4E2M1; d++ {
		got, ok := ParseDType(d.String())
		if d != Undefined && (!ok || got != d) {
			t.Errorf("%d -> %s -> %d, %v", d, d, got, ok)
		}
	}
	if _, ok := ParseDType("FP31"); ok {
		t.Error("FP31 parsed")
	}
}

func TestElems(t *testing.T) {
	for _, c := range []struct {
		dims []int64
		n    int64
		ok   bool
	}{
		{nil, 1, true}, {[]int64{0, 1 << 60}, 0, true}, {[]int64{2, 3, 4}, 24, true}, {[]int64{1 << 38}, 1 << 38, true},
		{[]int64{-1}, 0, false}, {[]int64{1 << 20, 1 << 20}, 0, false}, {[]int64{math.MaxInt64}, 0, false},
		{[]int64{math.MaxInt64, math.MaxInt64}, 0, false}, {make([]int64, MaxRank+1), 0, false},
	} {
		n, err := Elems(c.dims)
		if (err == nil) != c.ok || n != c.n || (err != nil && !errors.Is(err, ErrShape)) {
			t.Errorf("%v: %d, %v", c.dims, n, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		t  Tensor
		ok bool
	}{
		{Tensor{Type: Float32, Dims: []int64{2}, Data: make([]byte, 8)}, true},
		{Tensor{Type: Float32, Dims: []int64{2}, Data: make([]byte, 7)}, false},
		{Tensor{Type: Float32, Dims: []int64{2}, Data: make([]byte, 12)}, false},
		{Tensor{Type: Int4, Dims: []int64{3}, Data: make([]byte, 2)}, true},
		{Tensor{Type: Int4, Dims: []int64{3}, Data: make([]byte, 1)}, false},
		{Tensor{Type: String, Dims: []int64{1}, Strings: [][]byte{nil}}, true},
		{Tensor{Type: String, Dims: []int64{2}, Strings: [][]byte{nil}}, false},
		{Tensor{Type: 99, Dims: []int64{1}, Data: make([]byte, 4)}, false},
	} {
		if err := c.t.Check(); (err == nil) != c.ok {
			t.Errorf("%v%v with %d bytes: %v", c.t.Type, c.t.Dims, len(c.t.Data), err)
		}
	}
}

// TestView: aligned bytes are shared, unaligned ones copied, and both read the
// same values.
func TestView(t *testing.T) {
	want := []float32{1, -2, 3.5}
	raw := From(want, 3).Data
	buf := append(make([]byte, 1, 64), raw...)
	for off := range 4 {
		b := append(make([]byte, off, 64), raw...)
		got := View[float32](&Tensor{Type: Float32, Data: b[off:]})
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("offset %d: %v", off, got)
			}
		}
	}
	if got := View[float32](&Tensor{Data: buf[:0]}); got != nil {
		t.Errorf("empty: %v", got)
	}
	shared := newTensor(t, Float32, 2)
	View[float32](shared)[1] = 7
	if v, _ := shared.F32(); v[1] != 7 {
		t.Error("an aligned view was copied")
	}
	c := shared.Clone()
	View[float32](c)[1] = 8
	if v, _ := shared.F32(); v[1] != 7 {
		t.Error("a clone shares memory")
	}
}

func newTensor(t *testing.T, d DType, dims ...int64) *Tensor {
	t.Helper()
	x, err := New(d, dims...)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestF16 takes every half through float32 and back, and checks the values by
// the definition sign * 2^e * (1 + m/1024).
func TestF16(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		f := F16ToF32(h)
		e, m := int(h>>10&31), float64(h&1023)
		var want float64
		switch {
		case e == 31 && m != 0:
			if !math.IsNaN(float64(f)) || !math.IsNaN(float64(F16ToF32(F32ToF16(f)))) {
				t.Fatalf("%04x: NaN lost", h)
			}
			continue
		case e == 31:
			want = math.Inf(1)
		case e == 0:
			want = math.Ldexp(m, -24)
		default:
			want = math.Ldexp(1+m/1024, e-15)
		}
		if h>>15 == 1 {
			want = -want
		}
		if float64(f) != want || F32ToF16(f) != h {
			t.Fatalf("%04x: %v, want %v; back %04x", h, f, want, F32ToF16(f))
		}
	}
}

// TestF32ToBF16 takes every bfloat16 through float32 and back; halfway goes to even.
func TestF32ToBF16(t *testing.T) {
	for i := range 1 << 16 {
		f := math.Float32frombits(uint32(i) << 16)
		if f != f {
			if got := F32ToBF16(f); got&0x7f80 != 0x7f80 || got&0x7f == 0 {
				t.Fatalf("%04x: NaN becomes %04x", i, got)
			}
			continue
		}
		if got := F32ToBF16(f); got != uint16(i) {
			t.Fatalf("%04x becomes %04x", i, got)
		}
		if e := i >> 7 & 255; e == 255 {
			continue
		}
		half, above := math.Float32frombits(uint32(i)<<16|0x8000), math.Float32frombits(uint32(i)<<16|0x8001)
		if got, want := F32ToBF16(half), uint16(i+i&1); got != want {
			t.Fatalf("halfway after %04x: %04x, want %04x", i, got, want)
		}
		if got := F32ToBF16(above); got != uint16(i+1) {
			t.Fatalf("above halfway after %04x: %04x", i, got)
		}
	}
}

// TestF32ToF16Rounds: halfway goes to the even half, everything else to the nearest.
func TestF32ToF16Rounds(t *testing.T) {
	for i := range 0x7bff {
		a, b := F16ToF32(uint16(i)), F16ToF32(uint16(i+1))
		mid := (a + b) / 2 // exact in float32
		want := uint16(i)
		if i%2 == 1 {
			want++
		}
		if got := F32ToF16(mid); got != want {
			t.Fatalf("halfway between %04x and %04x: %04x", i, i+1, got)
		}
		if got := F32ToF16(math.Nextafter32(mid, 0)); got != uint16(i) {
			t.Fatalf("below halfway of %04x: %04x", i, got)
		}
		if got := F32ToF16(math.Nextafter32(mid, 1e9)); got != uint16(i+1) {
			t.Fatalf("above halfway of %04x: %04x", i, got)
		}
	}
	for _, v := range []float32{65520, 1e30, float32(math.Inf(1))} {
		if F32ToF16(v) != 0x7c00 || F32ToF16(-v) != 0xfc00 {
			t.Errorf("%v does not become infinity", v)
		}
	}
	if F32ToF16(65519.99) != 0x7bff {
		t.Error("65519.99 must round to 65504")
	}
}

func TestF32(t *testing.T) {
	for _, x := range []*Tensor{
		From([]float64{1.5}, 1), From([]float32{1.5}, 1),
		{Type: Float16, Dims: []int64{1}, Data: []byte{0x00, 0x3e}}, {Type: BFloat16, Dims: []int64{1}, Data: []byte{0xc0, 0x3f}},
	} {
		if v, err := x.F32(); err != nil || v[0] != 1.5 {
			t.Errorf("%v: %v, %v", x.Type, v, err)
		}
	}
	if _, err := From([]int64{1}, 1).F32(); !errors.Is(err, ErrShape) {
		t.Errorf("INT64 as float: %v", err)
	}
}
