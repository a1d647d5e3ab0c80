//go:build cuda

package cuda

import (
	"math"
	"testing"
)

const (
	halfSmallest     = 0x1p-24
	halfFirstNormal  = 0x1p-14
	halfLargest      = 65504
	halfOverflowFrom = 65520
)

// toHalf rounds to the nearest half, ties to even.
func toHalf(x float32) uint16 {
	sign := uint16(math.Float32bits(x) >> 16 & 0x8000)
	v := math.Abs(float64(x))
	switch {
	case x != x:
		return 0x7e00
	case v >= halfOverflowFrom:
		return sign | 0x7c00
	case v < halfFirstNormal:
		return sign | uint16(math.RoundToEven(v/halfSmallest)) // up to 0x400, the first normal
	}
	fraction, exponent := math.Frexp(v)                // v = fraction * 2^exponent, fraction in [0.5, 1)
	steps := uint16(math.RoundToEven(fraction * 2048)) // 1024 to 2048
	return sign | (uint16(exponent+13)<<10 + steps)
}

func fromHalf(h uint16) float32 {
	v, exponent, fraction := 0.0, int(h>>10&31), float64(h&1023)
	switch exponent {
	case 0:
		v = fraction * halfSmallest
	case 31:
		v = math.Inf(1)
		if fraction != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1024+fraction, exponent-25)
	}
	if h&0x8000 != 0 {
		v = -v
	}
	return float32(v)
}

func TestHalves(t *testing.T) {
	for h := range 1 << 16 {
		v := fromHalf(uint16(h))
		if v == v && toHalf(v) != uint16(h) {
			t.Fatalf("%#x is %v and comes back as %#x", h, v, toHalf(v))
		}
	}
	for x, want := range map[float32]uint16{1 + 0x1p-11: 0x3c00, 1 + 3*0x1p-11: 0x3c02, halfLargest + 15: 0x7bff, halfOverflowFrom: 0x7c00, 0x1p-25: 0, 0x1.8p-25: 1, -0x1.ffep-15: 0x8400} {
		if got := toHalf(x); got != want {
			t.Errorf("%v becomes %#x, want %#x", x, got, want)
		}
	}
}

func halves(x []float32) []uint16 {
	h := make([]uint16, len(x))
	for i, v := range x {
		h[i] = toHalf(v)
	}
	return h
}

func floats(h []uint16) []float32 {
	x := make([]float32, len(h))
	for i, v := range h {
		x[i] = fromHalf(v)
	}
	return x
}

// activate in float64.
func activate(a Act, x, lo, hi float64) float64 {
	switch a {
	case Relu:
		return max(x, 0)
	case Gelu:
		return 0.5 * x * (1 + math.Erf(x/math.Sqrt2))
	case GeluTanh:
		return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	case QuickGelu:
		return x / (1 + math.Exp(-1.702*x))
	case Silu:
		return x / (1 + math.Exp(-x))
	case Clip:
		return min(max(x, lo), hi)
	}
	return x
}
