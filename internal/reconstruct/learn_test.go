package reconstruct

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

const rows, in, hidden = 24, 3, 3

// twoLayers is y = relu(x W1) W2 with weights on a coarse grid, rounded to nearest, and
// samples that are all alike, so that what judges is what is learned from.
func twoLayers(seed uint64) (*Block, []Sample) {
	rng := rand.New(rand.NewPCG(seed, 1))
	normal := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	g := &graph.Graph{Name: "net", Info: map[string]*graph.Value{}, Inputs: []*graph.Value{value("x", []int64{rows, in}), value("w1", []int64{in, hidden}), value("w2", []int64{hidden, 1})},
		Nodes:   []*graph.Node{graph.NewNode("", "MatMul", "", []string{"x", "w1"}, []string{"h"}), graph.NewNode("", "Relu", "", []string{"h"}, []string{"r"}), graph.NewNode("", "MatMul", "", []string{"r", "w2"}, []string{"y"})},
		Outputs: []*graph.Value{{Name: "y", Type: tensor.Float32}}}
	b := &Block{Model: &graph.Model{IR: 8, Opsets: map[string]int64{"": 13}, Graph: g}, Out: "y"}
	for _, d := range []struct {
		name string
		dims []int64
	}{{"w1", []int64{in, hidden}}, {"w2", []int64{hidden, 1}}} {
		n := int(d.dims[0] * d.dims[1])
		w := &Weight{Name: d.name, Dims: d.dims, Values: normal(n), Steps: make([]float32, n), Codes: make([]int8, n), Lo: -8, Hi: 7}
		for i, v := range w.Values {
			w.Steps[i] = 0.7
			w.Codes[i] = int8(math.RoundToEven(float64(v / 0.7)))
		}
		b.Weights = append(b.Weights, w)
	}
	x := normal(rows * in)
	want := forward(x, b.Weights[0].Values, b.Weights[1].Values)
	s := Sample{In: engine.Feeds{"x": tensor.From(x, rows, in)}, Want: tensor.From(want, rows, 1)}
	return b, slices.Repeat([]Sample{s}, 8)
}

// forward is written without the engine.
func forward(x, w1, w2 []float32) []float32 {
	y := make([]float32, rows)
	for r := range y {
		for h := range hidden {
			var sum float32
			for i := range in {
				sum += x[r*in+i] * w1[i*hidden+h]
			}
			y[r] += max(sum, 0) * w2[h]
		}
	}
	return y
}

func relative(got, want []float32) float64 {
	var e, p float64
	for i, w := range want {
		e += float64(got[i]-w) * float64(got[i]-w)
		p += float64(w) * float64(w)
	}
	return e / p
}

// best tries every choice of up or down.
func best(b *Block, s Sample) float64 {
	x, want := tensor.View[float32](s.In["x"]), tensor.View[float32](s.Want)
	n := in*hidden + hidden
	w := [][]float32{make([]float32, in*hidden), make([]float32, hidden)}
	least := math.Inf(1)
	for pick := range 1 << n {
		bit := 0
		for k, src := range b.Weights {
			for i, v := range src.Values {
				w[k][i] = (float32(math.Floor(float64(v/src.Steps[i]))) + float32(pick>>bit&1)) * src.Steps[i]
				bit++
			}
		}
		least = math.Min(least, relative(forward(x, w[0], w[1]), want))
	}
	return least
}

// Of all 4,096 ways to round a net of two layers, learning finds better ones than rounding
// to nearest and none that the enumeration does not know; for some nets the best.
func TestLearningAgainstAllRoundings(t *testing.T) {
	l, found, nets := newLab(t), 0, 8
	var logs float64
	for seed := range uint64(nets) {
		b, s := twoLayers(seed)
		least := best(b, s[0])
		res, err := Learn(context.Background(), l, b, s, func(float64) {})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("net %d: nearest %.4f, learned %.4f, best %.4f", seed, res.Before, res.After, least)
		if res.After < least*0.999 {
			t.Errorf("net %d: %g is below the best of all, %g", seed, res.After, least)
		}
		if res.Kept != (res.After < res.Before) {
			t.Errorf("net %d: %+v", seed, res)
		}
		x, want := tensor.View[float32](s[0].In["x"]), tensor.View[float32](s[0].Want)
		got := relative(forward(x, b.Weights[0].now(), b.Weights[1].now()), want)
		if shown := min(res.After, res.Before); math.Abs(got-shown) > 1e-3*shown {
			t.Errorf("net %d: the codes give %g and the result says %+v", seed, got, res)
		}
		if got <= least*1.001 {
			found++
		}
		logs += math.Log(got / res.Before)
	}
	if mean := math.Exp(logs / float64(nets)); found == 0 || mean > leftOfNearest {
		t.Errorf("the best of all in %d of %d nets, error %.2f of that of rounding to nearest", found, nets, mean)
	}
}

// leftOfNearest is the most that learning leaves of the error, over the nets of the test.
const leftOfNearest = 0.65

func (w *Weight) now() []float32 {
	v := make([]float32, len(w.Codes))
	w.dequantize(v)
	return v
}

// Where the samples that judge differ from those that teach, what is worse is not kept.
func TestWorseOnHeldBackSamplesIsLeft(t *testing.T) {
	l := newLab(t)
	kept := 0
	for seed := range uint64(4) {
		b, s := twoLayers(seed)
		_, other := twoLayers(seed + 100)
		x := tensor.View[float32](other[0].In["x"])
		for i := HoldBack - 1; i < len(s); i += HoldBack { // wants what the start gives
			s[i] = Sample{In: other[0].In, Want: tensor.From(forward(x, b.Weights[0].now(), b.Weights[1].now()), rows, 1)}
		}
		start := [][]int8{slices.Clone(b.Weights[0].Codes), slices.Clone(b.Weights[1].Codes)}
		res, err := Learn(context.Background(), l, b, s, func(float64) {})
		if err != nil {
			t.Fatal(err)
		}
		if res.Kept {
			kept++
		}
		if !slices.Equal(start[0], b.Weights[0].Codes) || !slices.Equal(start[1], b.Weights[1].Codes) {
			t.Errorf("net %d: %+v, and the codes changed", seed, res)
		}
	}
	if kept > 0 {
		t.Errorf("%d blocks kept what is worse", kept)
	}
}

func TestLearningIsDeterministicAndStops(t *testing.T) {
	l := newLab(t)
	a, s := twoLayers(3)
	b, _ := twoLayers(3)
	a.Numbers = []*Number{}
	for _, x := range []*Block{a, b} {
		if _, err := Learn(context.Background(), l, x, s, func(float64) {}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(a.Weights[0].Codes, b.Weights[0].Codes) || !slices.Equal(a.Weights[1].Codes, b.Weights[1].Codes) {
		t.Error("two runs differ")
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := Learn(ctx, l, a, s, func(float64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Learn(context.Background(), l, a, s[:MinSamples-1], func(float64) {}); !errors.Is(err, ErrFewSamples) {
		t.Errorf("too few samples: %v", err)
	}
}

func TestSoftRounding(t *testing.T) {
	for _, h := range []float32{0.02, 0.3, 0.5, 0.98} {
		v := harden(h)
		got, slope := soften(v)
		if abs32(got-h) > 1e-5 {
			t.Errorf("h(%g) = %g, want %g", v, got, h)
		}
		up, _ := soften(v + 1e-3)
		down, _ := soften(v - 1e-3)
		if d := (up - down) / 2e-3; abs32(d-slope) > 1e-3 {
			t.Errorf("slope at %g: %g, difference %g", v, slope, d)
		}
		if p := newCurve().at(v); abs32(p.h-h) > 1e-3 || abs32(p.slope-slope) > 1e-3 {
			t.Errorf("table at %g: %+v", v, p)
		}
	}
	w := &Weight{Values: []float32{0, 0.34, 9, -9, 0.5}, Steps: []float32{1, 1, 1, 1, -1}, Codes: []int8{0, 3, 7, -8, -1}, Lo: -8, Hi: 7, Dims: []int64{5}}
	r := relax(w)
	if want := []int8{fixed, 2, 6, -8, -1}; !slices.Equal(r.base, want) {
		t.Errorf("lower codes %v, want %v", r.base, want)
	}
	r.settle()
	if r.Codes[0] != 0 || r.Codes[2] != 7 || r.Codes[3] != -8 {
		t.Errorf("codes %v", r.Codes)
	}
}
