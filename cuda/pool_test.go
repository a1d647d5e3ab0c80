//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
)

var pools = []Pool{
	{N: 1, H: 1, W: 1, C: 1, OH: 1, OW: 1, KH: 1, KW: 1, StrideH: 1, StrideW: 1},
	{N: 2, H: 8, W: 6, C: 3, OH: 4, OW: 3, KH: 2, KW: 2, StrideH: 2, StrideW: 2},
	{N: 1, H: 7, W: 9, C: 4, OH: 4, OW: 5, KH: 3, KW: 3, StrideH: 2, StrideW: 2, PadH: 1, PadW: 1, PadHEnd: 1, PadWEnd: 1},
	{N: 2, H: 6, W: 6, C: 16, OH: 4, OW: 4, KH: 3, KW: 3, StrideH: 2, StrideW: 2, PadH: 1, PadW: 1, PadHEnd: 1, PadWEnd: 1}, // the last windows reach beyond the padding
	{N: 1, H: 5, W: 11, C: 32, OH: 5, OW: 3, KH: 3, KW: 4, StrideH: 1, StrideW: 4, PadH: 2, PadW: 0, PadHEnd: 0, PadWEnd: 1},
	{N: 3, H: 7, W: 7, C: 20, OH: 1, OW: 1, KH: 7, KW: 7, StrideH: 1, StrideW: 1},
}

// pooled calls f for every output with the indices of the inputs in its window
// and ONNX AveragePool's divisor; indices are those of NCHW or NHWC.
func pooled(p Pool, f func(y int, x []int, count int)) {
	at := func(n, c, h, w, height, width int) int {
		if p.NHWC {
			return ((n*height+h)*width+w)*p.C + c
		}
		return ((n*p.C+c)*height+h)*width + w
	}
	for n := range p.N {
		for c := range p.C {
			for oh := range p.OH {
				for ow := range p.OW {
					var x []int
					count := 0
					for kh := range p.KH {
						for kw := range p.KW {
							h, w := oh*p.StrideH-p.PadH+kh, ow*p.StrideW-p.PadW+kw
							inside := h >= 0 && h < p.H && w >= 0 && w < p.W
							if inside {
								x = append(x, at(n, c, h, w, p.H, p.W))
							}
							if inside || p.CountIncludePad && h < p.H+p.PadHEnd && w < p.W+p.PadWEnd {
								count++
							}
						}
					}
					f(at(n, c, oh, ow, p.OH, p.OW), x, count)
				}
			}
		}
	}
}

func variants(p Pool, nhwc ...bool) (v []Pool) {
	for _, p.NHWC = range nhwc {
		p.Average, p.CountIncludePad = false, false
		v = append(v, p)
		p.Average = true
		v = append(v, p)
		p.CountIncludePad = true
		v = append(v, p)
	}
	return v
}

func TestPoolF32(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, base := range pools {
			x := normal(random(uint64(base.C)), base.N*base.C*base.H*base.W)
			dx := in(t, x)
			for _, p := range variants(base, false, true) {
				want := make([]float32, p.N*p.C*p.OH*p.OW)
				pooled(p, func(y int, window []int, count int) {
					sum, hi := float32(0), float32(math.Inf(-1))
					for _, i := range window {
						sum, hi = sum+x[i], max(hi, x[i])
					}
					want[y] = hi
					if p.Average {
						want[y] = sum / float32(count)
					}
				})
				y := device[float32](t, len(want))
				ok(t, PoolF32(p, dx, y, 0))
				equal(t, fmt.Sprintf("%+v", p), out[float32](t, y, len(want)), want)
			}
		}
	})
}

func TestPoolS8(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, base := range pools {
			x := bytes8(random(uint64(base.C)), base.N*base.C*base.H*base.W)
			dx := in(t, x)
			const xScale, xZero = float32(0.031), -7
			for _, grid := range []struct {
				scale float32
				zero  int
			}{{xScale, xZero}, {0.027, 20}} {
				for _, p := range variants(base, true) {
					want := make([]int8, p.N*p.C*p.OH*p.OW)
					pooled(p, func(y int, window []int, count int) {
						sum, hi := 0, math.MinInt
						for _, i := range window {
							sum, hi = sum+int(x[i])-xZero, max(hi, int(x[i])-xZero)
						}
						v := float32(hi) * xScale
						if p.Average {
							v = float32(sum) * xScale / float32(count)
						}
						want[y] = int8(clamp(rne(v/grid.scale)+grid.zero, -128, 127))
					})
					y := device[int8](t, len(want))
					ok(t, PoolS8(p, dx, xScale, xZero, y, grid.scale, int32(grid.zero), 0))
					equal(t, fmt.Sprintf("%+v to %v", p, grid), out[int8](t, y, len(want)), want)
				}
			}
		}
	})
}

func TestMeans(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 1, 1}, {2, 3, 49}, {3, 70, 20}, {1, 8, 100}} {
			n, ch, hw := c[0], c[1], c[2]
			x := normal(random(uint64(hw)), n*ch*hw)
			dx := in(t, x)
			for _, nhwc := range []bool{false, true} {
				want := make([]float32, n*ch)
				for i := range want {
					sum := 0.0
					for p := range hw {
						if nhwc {
							sum += float64(x[(i/ch*hw+p)*ch+i%ch])
						} else {
							sum += float64(x[i*hw+p])
						}
					}
					want[i] = float32(sum / float64(hw))
				}
				y := device[float32](t, len(want))
				ok(t, GlobalAverage(dx, n, ch, int64(hw), nhwc, y, 0))
				near(t, fmt.Sprintf("%v nhwc=%v", c, nhwc), out[float32](t, y, len(want)), want, sumTolerance, 1)
			}

			b, tokens, d := n, hw, ch
			mask, want := make([]float32, b*tokens), make([]float32, b*d)
			for i := range mask {
				if i%tokens < 1+tokens/2 && i/tokens != 2 { // the last item has no token
					mask[i] = 1
				}
			}
			for i := range want {
				sum, count := 0.0, 0.0
				for k := range tokens {
					m := float64(mask[i/d*tokens+k])
					sum, count = sum+m*float64(x[(i/d*tokens+k)*d+i%d]), count+m
				}
				want[i] = float32(sum / math.Max(count, 1e-9))
			}
			y := device[float32](t, len(want))
			ok(t, MaskedMean(dx, in(t, mask), int64(b), int64(tokens), int64(d), y, 0))
			near(t, fmt.Sprintf("%v masked", c), out[float32](t, y, len(want)), want, sumTolerance, 1)
		}
	})
}

func TestPoolRefusesArguments(t *testing.T) {
	p := device[float32](t, 64)
	good := pools[2]
	good.NHWC = true
	change := func(f func(p *Pool)) Pool {
		p := good
		f(&p)
		return p
	}
	for name, err := range map[string]error{
		"null":              PoolF32(good, 0, p, 0),
		"wide padding":      PoolF32(change(func(p *Pool) { p.PadH = 3 }), p, p, 0),
		"beyond the image":  PoolF32(change(func(p *Pool) { p.OH = 5 }), p, p, 0),
		"no stride":         PoolF32(change(func(p *Pool) { p.StrideW = 0 }), p, p, 0),
		"too large":         PoolF32(change(func(p *Pool) { p.N, p.C = 1<<15, 1<<15 }), p, p, 0),
		"planes of s8":      PoolS8(change(func(p *Pool) { p.NHWC = false }), p, 1, 0, p, 1, 0, 0),
		"scale":             PoolS8(good, p, 0, 0, p, 1, 0, 0),
		"zero point":        PoolS8(good, p, 1, 0, p, 1, 128, 0),
		"no pixel":          GlobalAverage(p, 1, 1, 0, false, p, 0),
		"no columns":        MaskedMean(p, p, 1, 1, 0, p, 0),
		"too many to index": MaskedMean(p, p, 1<<40, 1, 1<<40, p, 0),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
