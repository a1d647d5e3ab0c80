package calib

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

var schemes = []Scheme{
	U8, S8,
	{Type: tensor.Int8},
	{Type: tensor.Uint8, Symmetric: true},
	{Type: tensor.Uint8, ReduceRange: true},
	{Type: tensor.Int8, Symmetric: true, ReduceRange: true},
	{Type: tensor.Uint4},
	{Type: tensor.Int4, Symmetric: true},
	{Type: tensor.Uint8, Bits: 2},
	{Type: tensor.Uint16},
	{Type: tensor.Int16, Symmetric: true},
}

func TestSchemeCodes(t *testing.T) {
	for _, c := range []struct {
		s      Scheme
		lo, hi int32
	}{
		{U8, 0, 255},
		{S8, -127, 127},
		{Scheme{Type: tensor.Int8}, -128, 127},
		{Scheme{Type: tensor.Uint8, Symmetric: true}, 1, 255},
		{Scheme{Type: tensor.Uint8, ReduceRange: true}, 0, 127},
		{Scheme{Type: tensor.Int8, ReduceRange: true}, -64, 63},
		{Scheme{Type: tensor.Int8, Symmetric: true, ReduceRange: true}, -63, 63},
		{Scheme{Type: tensor.Int4, Symmetric: true}, -7, 7},
		{Scheme{Type: tensor.Uint4}, 0, 15},
		{Scheme{Type: tensor.Uint8, Bits: 4}, 0, 15},
		{Scheme{Type: tensor.Int16, Symmetric: true}, -32767, 32767},
	} {
		if err := c.s.Check(); err != nil {
			t.Errorf("%+v: %v", c.s, err)
		}
		if lo, hi := c.s.Codes(); lo != c.lo || hi != c.hi {
			t.Errorf("%+v: codes %d..%d, expected %d..%d", c.s, lo, hi, c.lo, c.hi)
		}
	}
	for _, s := range []Scheme{{}, {Type: tensor.Float32}, {Type: tensor.Uint8, Bits: 9}, {Type: tensor.Uint8, Bits: 1}, {Type: tensor.Int8, Bits: -1}} {
		if err := s.Check(); !errors.Is(err, ErrScheme) {
			t.Errorf("%+v: %v, expected ErrScheme", s, err)
		}
	}
}

// tolRounding: x/scale is rounded to float32 before the code is, which near
// code 255 costs 2^-17, near code 32767 up to 2^-9 of a step.
const tolRounding = 1. / 256

func checkParams(t *testing.T, r Range, s Scheme, rng *rand.Rand) {
	t.Helper()
	q := ParamsFor(r, s)
	lo, hi := s.Codes()
	if !(q.Scale > 0) || math.IsInf(float64(q.Scale), 0) || q.Zero < lo || q.Zero > hi && r != (Range{}) {
		t.Fatalf("%+v of %v: %+v", s, r, q)
	}
	if v := q.Dequantize(q.Quantize(0, s)); v != 0 {
		t.Fatalf("%+v of %v: 0 becomes %v", s, r, v)
	}
	r = r.WithZero()
	if s.Symmetric {
		r = Range{-r.AbsMax(), r.AbsMax()}
	}
	for i := range 50 {
		x := r.Lo + rng.Float32()*(r.Hi-r.Lo)
		switch i {
		case 0:
			x = r.Lo
		case 1:
			x = r.Hi
		}
		if x != x || x < r.Lo || x > r.Hi {
			continue
		}
		back := float64(q.Scale) * float64(q.Quantize(x, s)-q.Zero)
		if e := math.Abs(back - float64(x)); e > float64(q.Scale)*(.5+tolRounding) {
			t.Fatalf("%+v of %v: %v becomes %v, off by %v steps", s, r, x, back, e/float64(q.Scale))
		}
	}
}

func TestParamsErrorIsHalfAStep(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	ranges := []Range{{}, {0, 1}, {-1, 0}, {3, 4}, {-4, -3}, {0, math.SmallestNonzeroFloat32}, {-1e-40, 1e-41},
		{-math.MaxFloat32, math.MaxFloat32}, {-math.MaxFloat32, 5}, {5, 5}, {-7, -7}, {0, 1e-37}}
	for range 300 {
		a, b := float32(math.Ldexp(r.NormFloat64(), r.IntN(200)-100)), float32(math.Ldexp(r.NormFloat64(), r.IntN(200)-100))
		ranges = append(ranges, Range{min(a, b), max(a, b)})
		b = a * float32(r.NormFloat64())
		ranges = append(ranges, Range{min(a, b), max(a, b)})
	}
	for _, s := range schemes {
		for _, x := range ranges {
			checkParams(t, x, s, r)
		}
	}
}

func TestParamsOfHopelessRanges(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, s := range schemes {
		for _, r := range []Range{{nan, nan}, {-inf, inf}, {nan, 1}, {inf, -inf}, {2, 1}} {
			q := ParamsFor(r, s)
			if lo, hi := s.Codes(); !(q.Scale > 0) || q.Scale > math.MaxFloat32 || q.Zero < lo && q.Zero != 0 || q.Zero > hi {
				t.Errorf("%+v of %v: %+v", s, r, q)
			}
			if c := q.Quantize(nan, s); c != q.Zero {
				t.Errorf("%+v: NaN becomes %d", s, c)
			}
		}
	}
}

func TestParamsKnown(t *testing.T) {
	for _, c := range []struct {
		r Range
		s Scheme
		q QParams
	}{
		{Range{0, 255}, U8, QParams{1, 0}},
		{Range{-128, 127}, U8, QParams{1, 128}},
		{Range{-127, 100}, S8, QParams{1, 0}},
		{Range{-100, 1}, S8, QParams{100. / 127, 0}}, // defect 7: the larger magnitude counts
		{Range{10, 51}, U8, QParams{.2, 0}},
		{Range{-51, -10}, U8, QParams{.2, 255}},
		{Range{0, 0}, U8, QParams{1, 0}},
		{Range{0, 0}, S8, QParams{1, 0}},
		{Range{0, 0}, Scheme{Type: tensor.Uint8, Symmetric: true}, QParams{1, 128}},
	} {
		q := ParamsFor(c.r, c.s)
		if q.Zero != c.q.Zero || math.Abs(float64(q.Scale-c.q.Scale)) > 1e-7*float64(c.q.Scale) {
			t.Errorf("%v %+v: %+v, expected %+v", c.r, c.s, q, c.q)
		}
	}
}
