//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
)

// normTolerance: a few roundings of float32 on values of order one.
const normTolerance = 4e-6

// layerNorm in float64, of one row.
func layerNorm(v []float32, gamma, beta []float32, epsilon float64) []float32 {
	var mean, variance float64
	for _, x := range v {
		mean += float64(x) / float64(len(v))
	}
	for _, x := range v {
		variance += (float64(x) - mean) * (float64(x) - mean) / float64(len(v))
	}
	y := make([]float32, len(v))
	for i, x := range v {
		n := (float64(x) - mean) / math.Sqrt(variance+epsilon) * float64(gamma[i])
		if beta != nil {
			n += float64(beta[i])
		}
		y[i] = float32(n)
	}
	return y
}

func TestLayerNorm(t *testing.T) {
	const epsilon = 1e-5
	schedules(t, func(t *testing.T) {
		for _, c := range []struct {
			m, k, ldq              int
			residual, beta, smooth bool
			offset                 float32 // a large mean would drown a one-pass variance
		}{
			{1, 1, 16, false, false, false, 0}, {3, 7, 16, true, true, true, 0}, {2, 64, 64, true, true, false, 100}, {3, 511, 512, false, true, true, 0},
			{2, 768, 768, true, true, false, 0}, {2, 1000, 1013, true, false, true, 0}, {1, 3072, 3072, true, true, false, 0}, {2, 4098, 4112, true, true, true, 0}, {1, 4100, 4100, false, true, false, 0},
		} {
			r := random(uint64(c.k))
			x, residual, gamma, beta, divisor := normal(r, c.m*c.k), normal(r, c.m*c.k), normal(r, c.k), normal(r, c.k), make([]float32, c.k)
			for i := range divisor {
				divisor[i] = 0.25 + r.Float32()
			}
			for i := range x {
				x[i] += c.offset
			}
			sum := append([]float32(nil), x...)
			l := LayerNorm{M: int64(c.m), K: int64(c.k), LdQ: int64(c.ldq), Epsilon: epsilon, Input: in(t, x), Gamma: in(t, gamma),
				Sum: device[float32](t, c.m*c.k), Y: device[float32](t, c.m*c.k), Q: device[int8](t, c.m*c.ldq), Scale: device[float32](t, c.m), Zero: device[int32](t, c.m)}
			if c.residual {
				l.Residual = in(t, residual)
				for i := range sum {
					sum[i] += residual[i]
				}
			}
			if c.beta {
				l.Beta = in(t, beta)
			} else {
				beta = nil
			}
			if c.smooth {
				l.Divisor = in(t, divisor)
			} else {
				divisor = nil
			}
			ok(t, l.Run(0))
			name := fmt.Sprintf("%dx%d ", c.m, c.k)
			var want []float32
			for i := range c.m {
				want = append(want, layerNorm(sum[i*c.k:(i+1)*c.k], gamma, beta, epsilon)...)
			}
			y := out[float32](t, l.Y, c.m*c.k)
			equal(t, name+"sum", out[float32](t, l.Sum, c.m*c.k), sum)
			near(t, name+"y", y, want, normTolerance*(1+float64(c.offset)), 1)

			// The integers are those of the rows that it returned.
			wantQ, wantS, wantZ := quantizeRows(y, c.m, c.k, c.ldq, divisor)
			q, scale, zero := out[int8](t, l.Q, c.m*c.ldq), out[float32](t, l.Scale, c.m), out[int32](t, l.Zero, c.m)
			equal(t, name+"q", q, wantQ)
			equal(t, name+"scale", scale, wantS)
			equal(t, name+"zero", zero, wantZ)

			// Neither what else is asked for nor writing in place changes a bit.
			alone := l
			alone.Sum, alone.Y, alone.Q = 0, 0, device[int8](t, c.m*c.ldq)
			ok(t, alone.Run(0))
			equal(t, name+"q alone", out[int8](t, alone.Q, c.m*c.ldq), q)
			inPlace := l
			inPlace.Input, inPlace.Q = in(t, x), device[int8](t, c.m*c.ldq)
			inPlace.Y = inPlace.Input
			if c.residual {
				inPlace.Residual = in(t, residual)
				inPlace.Sum = inPlace.Residual
			}
			ok(t, inPlace.Run(0))
			equal(t, name+"y in place", out[float32](t, inPlace.Y, c.m*c.k), y)
			equal(t, name+"q in place", out[int8](t, inPlace.Q, c.m*c.ldq), q)
		}
	})
}

// softmax in float64 of one row; minus infinity counts as the lowest float.
func softmax(x []float32) []float32 {
	most := -math.MaxFloat32
	for _, v := range x {
		most = max(most, float64(v))
	}
	var total float64
	p, y := make([]float64, len(x)), make([]float32, len(x))
	for i, v := range x {
		p[i] = math.Exp(max(float64(v), -math.MaxFloat32) - most)
		total += p[i]
	}
	for i := range x {
		y[i] = float32(p[i] / total)
	}
	return y
}

func TestSoftmax(t *testing.T) {
	lowest, none := float32(-math.MaxFloat32), float32(math.Inf(-1))
	schedules(t, func(t *testing.T) {
		for _, c := range [][2]int{{1, 1}, {5, 3}, {9, 128}, {3, 129}, {5, 384}, {2, 777}, {3, 1024}, {2, 1027}, {1, 3000}} {
			m, k := c[0], c[1]
			x := normal(random(uint64(k)), m*k)
			for i := range x {
				x[i] *= 5
			}
			if m > 2 {
				for j := range k {
					x[j] = none
					x[k+j] = lowest
					if j > 0 {
						x[2*k+j] = none
					}
				}
			}
			var want []float32
			for i := range m {
				want = append(want, softmax(x[i*k:(i+1)*k])...)
			}
			y := device[float32](t, m*k)
			ok(t, Softmax(in(t, x), int64(m), int64(k), y, 0))
			near(t, fmt.Sprint(c), out[float32](t, y, m*k), want, normTolerance, 1e-6)

			p := in(t, x)
			ok(t, Softmax(p, int64(m), int64(k), p, 0))
			equal(t, fmt.Sprint(c, " in place"), out[float32](t, p, m*k), out[float32](t, y, m*k))
		}
		x := []float32{1, float32(math.NaN()), 2}
		y := device[float32](t, 3)
		ok(t, Softmax(in(t, x), 1, 3, y, 0))
		for _, v := range out[float32](t, y, 3) {
			if v == v {
				t.Errorf("softmax of a NaN is %v", v)
			}
		}
	})
}

func TestNormRefusesArguments(t *testing.T) {
	x := device[float32](t, 64)
	good := LayerNorm{M: 1, K: 8, Input: x, Gamma: x, Y: x}
	for name, change := range map[string]func(*LayerNorm){
		"no input":   func(l *LayerNorm) { l.Input = 0 },
		"no gamma":   func(l *LayerNorm) { l.Gamma = 0 },
		"rows":       func(l *LayerNorm) { l.M = 1 << 31 },
		"no columns": func(l *LayerNorm) { l.K = 0 },
		"epsilon":    func(l *LayerNorm) { l.Epsilon = float32(math.NaN()) },
		"no scale":   func(l *LayerNorm) { l.Q, l.LdQ = x, 8 },
		"short rows": func(l *LayerNorm) { l.Q, l.Scale, l.Zero, l.LdQ = x, x, x, 4 },
	} {
		l := good
		change(&l)
		if l.Run(0) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if Softmax(x, 1, 0, x, 0) == nil || Softmax(0, 1, 8, x, 0) == nil {
		t.Error("softmax: accepted")
	}
}
