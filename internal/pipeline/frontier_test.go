package pipeline

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// branching has convolutions one after the other, sums over a short and a long branch,
// and an operator in float between two of them.
func branching() *graph.Model {
	r := rand.New(rand.NewPCG(21, 0))
	m := newModel([]*graph.Value{value("x", -1, 3, 12, 12)}, []*graph.Value{value("logits", -1, 24)},
		node("Conv", "one", "x k1 b1", "c1"), node("Relu", "relu1", "c1", "r1"),
		node("Conv", "two", "r1 k2 b2", "c2", graph.AttrInt("group", 16), graph.AttrInts("pads", 1, 1, 1, 1)), node("Relu", "relu2", "c2", "r2"),
		node("Conv", "three", "r2 k3 b3", "c3"), node("Add", "short", "c3 r1", "s1"),
		node("Conv", "side", "r1 k4 b4", "c4"), node("Softplus", "float", "c4", "f4"),
		node("Conv", "five", "s1 k5 b5", "c5"), node("Relu", "relu5", "c5", "r5"),
		node("Add", "long", "r5 f4", "s2"), node("Conv", "six", "s2 k6 b6", "c6"), node("Relu", "relu6", "c6", "r6"),
		node("GlobalAveragePool", "gap", "r6", "p"), node("Flatten", "flat", "p", "f"), node("Gemm", "head", "f w b", "logits", graph.AttrInt("transB", 1)))
	for name, dims := range map[string][]int64{"k1": {16, 3, 1, 1}, "k2": {16, 1, 3, 3}, "k3": {16, 16, 1, 1}, "k4": {16, 16, 1, 1}, "k5": {16, 16, 1, 1}, "k6": {16, 16, 1, 1}, "w": {24, 16}} {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		m.Graph.SetInit(name, tensor.From(gauss(rand.New(rand.NewPCG(uint64(name[0]), uint64(name[len(name)-1]))), int(n), .3), dims...))
	}
	for _, name := range []string{"b1", "b2", "b3", "b4", "b5", "b6"} {
		m.Graph.SetInit(name, tensor.From(gauss(r, 16, .1), 16))
	}
	m.Graph.SetInit("b", tensor.From(gauss(r, 24, .1), 24))
	return m
}

// TestFrontier: biases corrected from codes that are held are those corrected from the
// inputs each time, whatever may be held; and what was run is not run again.
func TestFrontier(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	req := Request{Model: save(t, branching()), Calib: npy(t, 3, 40, 3, 12, 12), Config: mustDefaults(t, quant.Config{NoBiasCorrection: true})}
	r, err := p.start(ctx, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, step := range []func() error{func() error { return r.prepare(ctx) }, r.planned, func() error { return r.calibrate(ctx) }, func() error { return r.decide(ctx) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	plan := byScheme(r.plans, quant.INT8)[0]
	corrected := func(limit int64) (all []float32) {
		m := r.m.Clone()
		stats, err := (&biasPass{r.lab, plan, r.choices, r.solved, r.openCalib, nil, limit}).Run(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		if stats.Changed != 6 {
			t.Fatalf("%d biases: %s", stats.Changed, stats.Note)
		}
		for _, op := range plan.Ops {
			if op.Kind == quant.Conv {
				v, err := m.Graph.Init(op.Bias).F32()
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, v...)
			}
		}
		return all
	}
	want := corrected(0)
	for _, limit := range []int64{1 << 30, 1, biasSamples * 16 * 12 * 12, biasSamples * 16 * 12 * 12 * 3 / 2} {
		if got := corrected(limit); !slices.Equal(got, want) {
			t.Errorf("with %d bytes: other biases", limit)
		}
	}

	q := r.m.Clone()
	if _, err := (&quant.Insert{Plan: plan.On(q), Choices: r.choices, Solved: r.solved}).Run(ctx, q); err != nil {
		t.Fatal(err)
	}
	feeds, err := (&biasPass{samples: r.openCalib}).feeds(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{1 << 30, 1} {
		front, ran := newFrontier(q, slices.Clone(feeds), limit), 0
		raw := []string{"c1", "c2", "c3", "c4", "c5", "c6"}
		for i, v := range raw {
			part, made := front.part(v, raw[i+1:])
			s, err := r.lab.Open(ctx, part, made, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for j, f := range front.held {
				res, err := s.Run(ctx, only(s.Spec(), f), nil)
				if err != nil {
					t.Fatal(err)
				}
				front.keep(j, res.Tensors())
				res.Close()
			}
			front.advance()
			s.Close()
			for _, n := range part.Graph.Nodes {
				if n.Op == "Conv" {
					ran++
				}
			}
			for _, h := range front.held {
				if len(h) > 4 {
					t.Errorf("after %s the frontier holds %d values", v, len(h)-1)
				}
			}
		}
		if from := map[int64]int{1 << 30: 11, 1: 1 + 2 + 3 + 2 + 4 + 6}[limit]; ran != from {
			t.Errorf("with %d bytes %d convolutions ran, expected %d", limit, ran, from)
		}
	}
}
