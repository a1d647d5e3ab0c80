package quant

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
)

// TestQuantizeColumns: channels on the last axis, which several goroutines quantize,
// are what the same channels on the first axis are; a value that is no number is
// refused wherever it stands.
func TestQuantizeColumns(t *testing.T) {
	const k, n = 700, 600 // more than one part
	r := rand.New(rand.NewPCG(31, 0))
	w := make([]float32, k*n)
	for i := range w {
		w[i] = float32(r.NormFloat64()) * float32(1+i%n)
	}
	got, err := QuantizeWeight(w, []int64{k, n}, 1, PerChannel, calib.S8)
	if err != nil {
		t.Fatal(err)
	}
	want, err := QuantizeWeight(transpose2D(w, k, n), []int64{n, k}, 0, PerChannel, calib.S8)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Scales, want.Scales) || !slices.Equal(got.Codes, transpose2D(want.Codes, n, k)) {
		t.Error("other codes or scales")
	}
	if !slices.Equal(got.Dequantize(), transpose2D(want.Dequantize(), n, k)) {
		t.Error("other values")
	}
	for _, at := range []int{0, len(w) / 2, len(w) - 1} {
		bad := slices.Clone(w)
		bad[at] = float32(math.NaN())
		if _, err := QuantizeWeight(bad, []int64{k, n}, 1, PerChannel, calib.S8); !errors.Is(err, ErrWeight) {
			t.Errorf("NaN at %d: %v", at, err)
		}
	}
}

// TestColumnScales: the search that stops early finds what trying everything finds.
func TestColumnScales(t *testing.T) {
	const k, n, top = 300, 40, 127
	r := rand.New(rand.NewPCG(32, 0))
	w, imp := make([]float32, k*n), make([]float32, k)
	for i := range w {
		w[i] = float32(math.Pow(r.NormFloat64(), 3)) // with a long tail, so that clipping pays
	}
	for i := range imp {
		imp[i] = float32(r.ExpFloat64())
	}
	clipped := 0
	for _, by := range [][]float32{nil, imp} {
		got := columnScales(nil, w, k, n, top, by, PerChannel)
		for c := range n {
			var amax float32
			for i := range k {
				amax = max(amax, float32(math.Abs(float64(w[i*n+c]))))
			}
			full := weightScale(amax, top)
			best, least := full, math.Inf(1)
			for step := range clipSteps {
				s := full * float32(1-(1-clipLeast8)*float64(step)/(clipSteps-1))
				var e float64
				for i := range k {
					d := w[i*n+c] - nearest(w[i*n+c], s, -top, top)*s
					if by != nil {
						e += float64(d * d * by[i])
					} else {
						e += float64(d * d)
					}
				}
				if e < least {
					best, least = s, e
				}
			}
			if got[c] != best {
				t.Errorf("column %d: %v, want %v", c, got[c], best)
			}
			if best != full {
				clipped++
			}
		}
	}
	if clipped == 0 {
		t.Error("nothing is clipped: the test shows nothing")
	}
}

// TestGainOfSome: the gain that looks at the measured columns only is that of all.
func TestGainOfSome(t *testing.T) {
	const k, n, rows = 24, 150, 80
	r := rand.New(rand.NewPCG(33, 0))
	x, w := make([]float32, rows*k), make([]float32, k*n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range w {
		w[i] = float32(r.NormFloat64())
	}
	gram := make([]float32, TriangleRow(k))
	for i := range k {
		for j := range i + 1 {
			for row := range rows {
				gram[TriangleRow(i)+j] += x[row*k+i] * x[row*k+j]
			}
		}
	}
	ctx, alg := context.Background(), PlainAlgebra{}
	f, err := newFactor(ctx, alg, gram, k, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	scales := columnScales(nil, w, k, n, 127, f.importance(), PerChannel)
	q, err := f.round(ctx, alg, w, n, grid{lo: -127, hi: 127, scales: scales})
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.gain8(ctx, alg, w, n, q, 127, PerChannel)
	if err != nil {
		t.Fatal(err)
	}
	want, err := f.gain(ctx, alg, w, n, q.dequantize(k, n, 0), nearestColumns(w, n, 127, PerChannel))
	if err != nil {
		t.Fatal(err)
	}
	if got != want || got.Solved >= got.Nearest {
		t.Errorf("%+v, want %+v", got, want)
	}
}
