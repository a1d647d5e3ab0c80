//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
)

// rne rounds to the nearest integer, ties to even, as docs/ops.md wants.
func rne(x float32) int { return int(math.RoundToEven(float64(x))) }

func clamp(v, lo, hi int) int { return min(max(v, lo), hi) }

// quantizeRows is docs/ops.md, QuantizeRows, on s8.
func quantizeRows(x []float32, m, k, ldq int, divisor []float32) (q []int8, scale []float32, zero []int32) {
	q, scale, zero = make([]int8, m*ldq), make([]float32, m), make([]int32, m)
	for i := range m {
		var lo, hi float32
		row := make([]float32, k)
		for j := range k {
			row[j] = x[i*k+j]
			if divisor != nil {
				row[j] /= divisor[j]
			}
			lo, hi = min(lo, row[j]), max(hi, row[j])
		}
		s, z := (hi-lo)/255, 0
		if s > 0 {
			z = clamp(rne(-lo/s), 0, 255)
		} else {
			s = 1
		}
		for j := range k {
			q[i*ldq+j] = int8(clamp(rne(row[j]/s)+z, 0, 255) - 128)
		}
		scale[i], zero[i] = s, int32(z-128)
	}
	return q, scale, zero
}

func TestQuantizeRows(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range []struct {
			m, k, ldq int
			smooth    bool
		}{{1, 1, 1, false}, {3, 7, 16, true}, {2, 64, 64, false}, {5, 511, 512, true}, {2, 768, 768, true}, {1, 1000, 1008, false}, {2, 3072, 3072, false}, {2, 4099, 4112, true}, {1, 9000, 9008, false}} {
			r := random(uint64(c.k))
			x := normal(r, c.m*c.k)
			if c.m > 2 {
				clear(x[c.k : 2*c.k]) // a row of zeros
				for j := range c.k {
					x[2*c.k+j] = float32(math.Abs(float64(x[2*c.k+j]))) + 1
				}
			}
			var divisor []float32
			var d Ptr
			if c.smooth {
				divisor = make([]float32, c.k)
				for i := range divisor {
					divisor[i] = 0.25 + r.Float32()
				}
				d = in(t, divisor)
			}
			q, scale, zero := device[int8](t, c.m*c.ldq), device[float32](t, c.m), device[int32](t, c.m)
			ok(t, QuantizeRows(in(t, x), int64(c.m), int64(c.k), d, q, int64(c.ldq), scale, zero, 0))
			wantQ, wantS, wantZ := quantizeRows(x, c.m, c.k, c.ldq, divisor)
			name := fmt.Sprintf("%dx%d ", c.m, c.k)
			equal(t, name+"scale", out[float32](t, scale, c.m), wantS)
			equal(t, name+"zero", out[int32](t, zero, c.m), wantZ)
			equal(t, name+"q", out[int8](t, q, c.m*c.ldq), wantQ)
			y := device[float32](t, c.m*c.k)
			for _, points := range []Ptr{zero, 0} {
				ok(t, DequantizeRows(q, int64(c.m), int64(c.k), int64(c.ldq), scale, points, y, 0))
				back := make([]float32, c.m*c.k)
				for i := range back {
					row, z := i/c.k, int32(0)
					if points != 0 {
						z = wantZ[row]
					}
					back[i] = float32(int32(wantQ[row*c.ldq+i%c.k])-z) * wantS[row]
				}
				equal(t, name+"dequantized", out[float32](t, y, c.m*c.k), back)
			}
		}
	})
}

func TestQuantizeTensor(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 1, 1}, {3, 5, 16}, {7, 130, 144}} {
			m, k, ldq := c[0], c[1], c[2]
			x := normal(random(3), m*k)
			x[0] = 1e30 // saturates
			q := device[int8](t, m*ldq)
			ok(t, QuantizeTensor(in(t, x), int64(m), int64(k), 0, 0.01, 100, q, int64(ldq), 0))
			want := make([]int8, m*ldq)
			for i := range m {
				for j := range k {
					v := math.RoundToEven(float64(x[i*k+j]/0.01)) + 100
					want[i*ldq+j] = int8(math.Max(0, math.Min(255, v)) - 128)
				}
			}
			equal(t, "q", out[int8](t, q, m*ldq), want)
			y := device[float32](t, m*ldq)
			ok(t, DequantizeTensor(q, int64(m*ldq), 0.01, 100-128, y, 0))
			back := make([]float32, m*ldq)
			for i := range back {
				back[i] = float32(int(want[i])-(100-128)) * float32(0.01)
			}
			equal(t, "dequantized", out[float32](t, y, m*ldq), back)
		}
	})
}

func TestQuantizeChannels(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 1, 1}, {2, 3, 5}, {1, 33, 9}, {40, 7, 1}} {
			outer, ch, inner := c[0], c[1], c[2]
			n := outer * ch * inner
			r := random(5)
			x, scale := normal(r, n), make([]float32, ch)
			for i := range scale {
				scale[i] = 0.005 + r.Float32()/50
			}
			q, y := device[int8](t, n), device[float32](t, n)
			ok(t, QuantizeChannels(in(t, x), int64(outer), int64(ch), int64(inner), in(t, scale), q, 0))
			ok(t, DequantizeChannels(q, int64(outer), int64(ch), int64(inner), in(t, scale), y, 0))
			want, back := make([]int8, n), make([]float32, n)
			for i := range want {
				s := scale[i/inner%ch]
				want[i] = int8(clamp(rne(x[i]/s), -127, 127))
				back[i] = float32(want[i]) * s
			}
			equal(t, "q", out[int8](t, q, n), want)
			equal(t, "dequantized", out[float32](t, y, n), back)
		}
	})
}

func TestQuantizeBlocks(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 16, 16}, {3, 64, 32}, {5, 256, 128}, {2, 512, 256}} {
			n, k, block := c[0], c[1], c[2]
			x := normal(random(9), n*k)
			clear(x[:block])
			q, scale, y := device[uint8](t, n*k/2), device[float32](t, n*k/block), device[float32](t, n*k)
			ok(t, QuantizeBlocksS4(in(t, x), int64(n), int64(k), block, q, scale, 0))
			ok(t, DequantizeBlocksS4(q, scale, int64(n), int64(k), block, y, 0))
			gotQ, gotS, gotY := out[uint8](t, q, n*k/2), out[float32](t, scale, n*k/block), out[float32](t, y, n*k)
			for b := range n * k / block {
				var extreme float32
				for _, v := range x[b*block : (b+1)*block] {
					if math.Abs(float64(v)) > math.Abs(float64(extreme)) {
						extreme = v
					}
				}
				s := extreme / -8
				if s == 0 {
					s = 1
				}
				if gotS[b] != s {
					t.Errorf("%v: scale %d is %v, want %v", c, b, gotS[b], s)
				}
				for i := b * block; i < (b+1)*block; i++ {
					want := clamp(rne(x[i]/s), -8, 7)
					if got := int(gotQ[i/2]>>(4*(i&1))&15) - 8; got != want {
						t.Fatalf("%v: value %d is %d, want %d", c, i, got, want)
					}
					if gotY[i] != float32(want)*s {
						t.Fatalf("%v: dequantized %d is %v, want %v", c, i, gotY[i], float32(want)*s)
					}
				}
			}
		}
	})
}

func TestQuantizeRefusesArguments(t *testing.T) {
	x := device[float32](t, 64)
	for name, err := range map[string]error{
		"null":       QuantizeRows(0, 1, 1, 0, x, 1, x, x, 0),
		"short rows": QuantizeRows(x, 1, 8, 0, x, 4, x, x, 0),
		"scale":      QuantizeTensor(x, 1, 8, 0, -1, 0, x, 8, 0),
		"block":      QuantizeBlocksS4(x, 1, 48, 24, x, x, 0),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
