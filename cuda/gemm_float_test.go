//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// Tolerances of a product of standard normal values, relative to sqrt(k): sums
// in another order, on tensor cores with less than correct rounding; results in
// F16 are rounded once more.
const (
	gemmTolerance   = 2e-5
	gemmTolerance16 = 6e-4
)

// toTF32 rounds to 10 bits of fraction, ties away from zero.
func toTF32(x float32) float32 {
	return math.Float32frombits((math.Float32bits(x) + 0x1000) &^ 0x1fff)
}

type gemmFloatCase struct {
	GemmFloat
	bias, residual bool
	offset         int64 // of A, B and C from where they are allocated, in elements
}

// shapes fills the leading dimensions with pad more than needed, and the batch.
func (c gemmFloatCase) shape(m, n, k, pad, batch int64) gemmFloatCase {
	c.M, c.N, c.K, c.Batch = m, n, k, batch
	cols := n
	if c.TransB {
		cols = k
	}
	c.LdA, c.LdB, c.LdC = k+pad, cols+pad, n+pad
	if batch > 1 {
		rows := k
		if c.TransB {
			rows = n
		}
		c.StrideA, c.StrideB, c.StrideC = m*c.LdA+pad, rows*c.LdB+pad, m*c.LdC+pad
	}
	return c
}

func (c gemmFloatCase) String() string {
	return fmt.Sprintf("%v %dx%dx%d trans=%v tf32=%v batch=%d ldc=%d %v->%v", c.Act, c.M, c.N, c.K, c.TransB, c.TF32, c.Batch, c.LdC, c.In, c.Out)
}

// run compares one product with float64. tf32 says whether the device rounds so.
func (c gemmFloatCase) run(t *testing.T, tf32 bool) {
	t.Helper()
	r := random(uint64(c.M*c.N + c.K))
	rows := c.K
	if c.TransB {
		rows = c.N
	}
	last := c.Batch - 1
	a := normal(r, int(last*c.StrideA+c.M*c.LdA))
	b := normal(r, int(last*c.StrideB+rows*c.LdB))
	n := int(last*c.StrideC + (c.M-1)*c.LdC + c.N)
	bias, residual := normal(r, int(c.N)), normal(r, n)

	input := func(v []float32) Ptr {
		if c.In == F16 {
			h := halves(v)
			copy(v, floats(h))
			return in(t, append(make([]uint16, c.offset), h...)).Add(2 * c.offset)
		}
		p := in(t, append(make([]float32, c.offset), v...)).Add(4 * c.offset)
		if c.TF32 && tf32 {
			for i := range v {
				v[i] = toTF32(v[i])
			}
		}
		return p
	}
	pa, pb := input(a), input(b)
	var pBias, pResidual Ptr
	if c.bias {
		pBias = in(t, bias)
	}
	if c.residual {
		pResidual = in(t, residual)
	}

	const untouched = -7
	before := make([]float32, n)
	for i := range before {
		before[i] = untouched
	}
	want := append([]float32(nil), before...)
	for z := range c.Batch {
		for i := range c.M {
			for j := range c.N {
				var sum float64
				for l := range c.K {
					at := z*c.StrideB + l*c.LdB + j
					if c.TransB {
						at = z*c.StrideB + j*c.LdB + l
					}
					sum += float64(a[z*c.StrideA+i*c.LdA+l]) * float64(b[at])
				}
				if c.Alpha != 0 {
					sum *= float64(c.Alpha)
				}
				if c.bias {
					sum += float64(bias[j])
				}
				sum = activate(c.Act, sum, float64(c.ActMin), float64(c.ActMax))
				at := z*c.StrideC + i*c.LdC + j
				if c.residual {
					sum += float64(residual[at])
				}
				want[at] = float32(sum)
			}
		}
	}

	floor := math.Sqrt(float64(c.K))
	if c.Out == F16 {
		p := in(t, halves(append(make([]float32, c.offset), before...))).Add(2 * c.offset)
		ok(t, c.Run(pa, pb, pBias, pResidual, p, 0))
		near(t, c.String(), floats(out[uint16](t, p, n)), want, gemmTolerance16, floor)
	} else {
		p := in(t, append(make([]float32, c.offset), before...)).Add(4 * c.offset)
		ok(t, c.Run(pa, pb, pBias, pResidual, p, 0))
		near(t, c.String(), out[float32](t, p, n), want, gemmTolerance, floor)
	}
}

// gemmFloatSweep runs every kernel: all input types and layouts over shapes
// that fit tiles and that do not, aligned and not.
func gemmFloatSweep(t *testing.T, tf32 bool) {
	for _, kind := range []GemmFloat{{In: F32}, {In: F32, TF32: true}, {In: F16}} {
		for _, trans := range []bool{false, true} {
			for _, s := range []struct {
				m, n, k, pad, batch int64
				offset              int64
				out                 Type
				act                 Act
				bias, residual      bool
			}{
				{1, 1, 1, 0, 1, 0, F32, None, false, false},
				{1, 40, 72, 0, 1, 0, F32, None, true, false}, // few rows
				{8, 37, 131, 1, 3, 1, F16, Silu, true, true}, // few rows, ragged
				{17, 19, 23, 3, 2, 1, F32, Gelu, true, true}, // one small ragged tile
				{70, 72, 48, 8, 1, 0, F16, Relu, true, true}, // small tiles, aligned
				{64, 64, 104, 0, 2, 0, F32, GeluTanh, false, true},
				{77, 65, 64, 0, 1, 0, F32, QuickGelu, true, false}, // n does not fit a vector
				{130, 264, 72, 16, 1, 0, F32, None, true, true},    // large tiles
				{129, 136, 40, 8, 2, 0, F16, Clip, true, false},
				{131, 131, 17, 0, 2, 0, F32, None, false, true}, // large tiles, unaligned
			} {
				c := gemmFloatCase{GemmFloat: kind, bias: s.bias, residual: s.residual, offset: s.offset}
				c.TransB, c.Out, c.Act, c.ActMin, c.ActMax = trans, s.out, s.act, -1, 6
				if s.m%2 == 0 {
					c.Alpha = 0.125
				}
				c.shape(s.m, s.n, s.k, s.pad, s.batch).run(t, tf32 && s.m > 8) // few rows are not rounded
			}
		}
	}
}

func TestGemmFloat(t *testing.T) {
	dev, err := Device()
	ok(t, err)
	schedules(t, func(t *testing.T) { gemmFloatSweep(t, dev.SM >= 80) })
}

// A stride of 0 shares an operand between the items of a batch.
func TestGemmFloatShares(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, in := range []Type{F32, F16} {
			c := gemmFloatCase{GemmFloat: GemmFloat{In: in, TransB: true}}.shape(20, 24, 32, 0, 3)
			c.StrideB = 0
			c.run(t, true)
			c = gemmFloatCase{GemmFloat: GemmFloat{In: in}}.shape(5, 24, 32, 0, 3)
			c.StrideA = 0
			c.run(t, true)
		}
	})
}

func TestGemmFloatRefusesArguments(t *testing.T) {
	x := device[float32](t, 4096)
	good := GemmFloat{M: 16, N: 16, K: 16}
	ok(t, good.Run(x, x, 0, 0, x.Add(8192), 0))
	for name, change := range map[string]func(*GemmFloat){
		"negative":        func(g *GemmFloat) { g.M = -1 },
		"no k":            func(g *GemmFloat) { g.K = 0 },
		"large":           func(g *GemmFloat) { g.N = 1 << 40 },
		"short rows of A": func(g *GemmFloat) { g.LdA = 15 },
		"short rows of B": func(g *GemmFloat) { g.LdB = 15 },
		"short rows of C": func(g *GemmFloat) { g.LdC = 15 },
		"type":            func(g *GemmFloat) { g.In = S8 },
		"result":          func(g *GemmFloat) { g.Out = BF16 },
		"tf32 of f16":     func(g *GemmFloat) { g.In, g.TF32 = F16, true },
		"activation":      func(g *GemmFloat) { g.Act = 99 },
		"batch":           func(g *GemmFloat) { g.Batch = -1 },
		"overlap":         func(g *GemmFloat) { g.Batch, g.StrideC = 2, 16 },
		"grid":            func(g *GemmFloat) { g.N, g.LdB, g.LdC, g.Batch, g.StrideC = 1<<30, 1<<30, 1<<30, 1<<20, 1<<40 },
	} {
		g := good
		change(&g)
		if g.Run(x, x, 0, 0, x, 0) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if good.Run(0, x, 0, 0, x, 0) == nil || good.Run(x, x, 0, 0, 0, 0) == nil {
		t.Error("null: accepted")
	}
}

// The choice is a pure function, so it can be read.
func TestGemmFloatPick(t *testing.T) {
	var text strings.Builder
	for _, d := range devices {
		for _, c := range [][3]int64{{1, 768, 768}, {16, 3072, 768}, {128, 768, 768}, {4096, 3072, 768}} {
			for _, in := range []GemmFloat{{In: F32}, {In: F32, TF32: true}, {In: F16}, {In: F16, Own: true}} {
				in.M, in.N, in.K = c[0], c[1], c[2]
				fmt.Fprintf(&text, "%s %dx%dx%d, f16 %v, tf32 %v, own %v: %s\n", d.name, c[0], c[1], c[2], in.In == F16, in.TF32, in.Own, in.Pick(d.Info))
			}
		}
	}
	golden(t, "testdata/gemm_float_pick.txt", text.String())
	for _, bad := range []GemmFloat{{N: 1, K: 1}, {M: 1, N: 1 << 40, K: 1}, {M: -1, N: 1, K: 1}} {
		if got := bad.Pick(devices[0].Info); got != "" {
			t.Errorf("%+v: %q", bad, got)
		}
	}
	if got := (&GemmFloat{M: 1, N: 1, K: 1}).Pick(Info{SM: 90}); got != "" {
		t.Errorf("a device without multiprocessors: %q", got)
	}
}
