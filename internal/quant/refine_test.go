package quant

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// TestRefineFindsTheBest: on small problems the codes are as good as the best of
// all choices up or down, by brute force over all of them, in most cases and never
// much worse; and never worse than what came in.
func TestRefineFindsTheBest(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(5, 6))
	const k, top, trials = 8, 7, 60
	hit := 0
	for range trials {
		g := &Gram{K: k, Groups: 1}
		x := make([]float32, 40*k)
		for i := range x {
			x[i] = float32(rng.NormFloat64()) + x[max(0, i-1)]/2 // neighbours correlate
		}
		if err := errors.Join(g.Observe(ctx, PlainAlgebra{}, x), g.Flush(ctx, PlainAlgebra{})); err != nil {
			t.Fatal(err)
		}
		f, err := newFactor(ctx, PlainAlgebra{}, g.Sum, k, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		w := make([]float32, k)
		for i := range w {
			w[i] = float32(rng.NormFloat64())
		}
		scales := columnScales(nil, w, k, 1, top, f.importance(), PerChannel)
		r, err := f.round(ctx, PlainAlgebra{}, w, 1, grid{lo: -top, hi: top, scales: scales})
		if err != nil {
			t.Fatal(err)
		}
		h := f.hessian(g.Sum, nil)
		before := f.columnCosts(h, w, 1, r)[0]
		f.descend(h, w, 1, top, r)
		after := f.columnCosts(h, w, 1, r)[0]
		if after > before*(1+1e-9) {
			t.Fatalf("the error rose from %v to %v", before, after)
		}
		least := math.Inf(1)
		for choice := range 1 << k {
			q := &rounded{codes: make([]int8, k), scales: r.scales}
			for i := range k {
				c := math.Floor(float64(w[i] / r.scales[0]))
				if choice>>i&1 == 1 {
					c++
				}
				q.codes[i] = int8(min(max(c, -top), top))
			}
			least = math.Min(least, f.columnCosts(h, w, 1, q)[0])
		}
		if after <= least*(1+1e-6) {
			hit++
		} else if after > 2*least {
			t.Errorf("error %v where %v is possible", after, least)
		}
	}
	if hit < trials/2 {
		t.Errorf("the best choice was found in %d of %d", hit, trials)
	}
}

// TestRefineScales: with the scale searched too, the error never rises, falls on
// average, and codes stay inside.
func TestRefineScales(t *testing.T) {
	c := readGPTQ(t).Columns
	ctx := context.Background()
	g := &Gram{K: c.K, Groups: 1}
	if err := errors.Join(g.Observe(ctx, PlainAlgebra{}, c.X), g.Flush(ctx, PlainAlgebra{})); err != nil {
		t.Fatal(err)
	}
	f := c.factor(t, true)
	scales := columnScales(nil, c.W, c.K, c.N, 127, f.importance(), PerChannel)
	r, err := f.round(ctx, PlainAlgebra{}, c.W, c.N, grid{lo: -127, hi: 127, scales: scales})
	if err != nil {
		t.Fatal(err)
	}
	h := f.hessian(g.Sum, nil)
	before := f.columnCosts(h, c.W, c.N, r)
	if err := f.refine(ctx, PlainAlgebra{}, c.W, c.N, Config{Granularity: PerChannel}, g.Sum, nil, r); err != nil {
		t.Fatal(err)
	}
	var a, b float64
	for i, v := range f.columnCosts(h, c.W, c.N, r) {
		if v > before[i]*(1+1e-9) {
			t.Errorf("column %d: error %v after %v", i, v, before[i])
		}
		a, b = a+v, b+before[i]
	}
	if !(a < .9*b) {
		t.Errorf("errors sum to %v after %v", a, b)
	}
	for _, q := range r.codes {
		if q < -127 {
			t.Fatalf("code %d", q)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.refine(done, PlainAlgebra{}, c.W, c.N, Config{Granularity: PerChannel}, g.Sum, nil, r); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestCentered is the covariance by its definition.
func TestCentered(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(7, 8))
	const k, rows = 5, 30
	x := make([]float32, rows*k)
	for i := range x {
		x[i] = float32(rng.NormFloat64()) + float32(i%k)
	}
	g := &Gram{K: k, Groups: 1}
	if err := errors.Join(g.Observe(ctx, PlainAlgebra{}, x[:7*k]), g.Observe(ctx, PlainAlgebra{}, x[7*k:]), g.Flush(ctx, PlainAlgebra{})); err != nil {
		t.Fatal(err)
	}
	var mean [k]float64
	for i, v := range x {
		mean[i%k] += float64(v) / rows
	}
	got := g.centered(0)
	for i := range k {
		for j := range i + 1 {
			var want float64
			for r := range rows {
				want += (float64(x[r*k+i]) - mean[i]) * (float64(x[r*k+j]) - mean[j])
			}
			if math.Abs(float64(got[TriangleRow(i)+j])-want) > 1e-3 {
				t.Errorf("[%d,%d] is %v, want %v", i, j, got[TriangleRow(i)+j], want)
			}
		}
	}
}
