package quant

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestWeightFactsTellWhatIsWritten: for each method the facts name it, and their
// SQNR is that of the codes that the pass puts into the graph.
func TestWeightFactsTellWhatIsWritten(t *testing.T) {
	const k, n = 96, 20
	x := randoms(5, 200*k)
	for _, c := range []struct {
		scheme  Scheme
		weights WeightMethod
		by      WeightMethod
	}{
		{INT8Dynamic, RTN, RTN}, {INT8Dynamic, MSEWeights, MSEWeights}, {INT8Dynamic, HQQ, HQQ}, {INT8Dynamic, AutoWeights, GPTQ}, {INT8Dynamic, AdaRound, AdaRound},
		{INT4, RTN, RTN}, {INT4, MSEWeights, MSEWeights}, {INT4, HQQ, HQQ}, {INT4, GPTQ, GPTQ},
	} {
		t.Run(string(c.scheme)+" "+string(c.weights), func(t *testing.T) {
			ctx := context.Background()
			m := model([]*graph.Value{value("x", -1, k)}, []*graph.Value{value("y", -1, n)}, node("MatMul", "mm", "x w", "y"))
			w := randoms(7, k*n)
			m.Graph.SetInit("w", tensor.From(w, k, n))
			cfg, err := Config{Scheme: c.scheme, Weights: c.weights}.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			p, err := NewPlan(m, cfg)
			if err != nil {
				t.Fatal(err)
			}
			s, choices := NewSolved(), Choices{}
			if p.Solves() != "" {
				g := &Gram{K: k, Groups: 1}
				if err := errors.Join(g.Observe(ctx, PlainAlgebra{}, x), g.Flush(ctx, PlainAlgebra{})); err != nil {
					t.Fatal(err)
				}
				if _, err := s.SolveGPTQ(ctx, PlainAlgebra{}, p, m.Graph, p.Ops, g, choices); err != nil {
					t.Fatal(err)
				}
			}
			facts, err := WeightFacts(m.Graph, p, p.Ops[0], choices, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			var pass Pass = &Insert{Plan: p, Choices: choices, Solved: s}
			if c.scheme == INT4 {
				pass = &BlockWeights{Plan: p, Solved: s}
			}
			st, err := pass.Run(ctx, m)
			if err != nil {
				t.Fatal(err)
			}
			if facts.Method != c.by || !strings.Contains(st.Note, "("+string(c.by)+" 1)") {
				t.Errorf("found by %q, and the pass says %q; want %s", facts.Method, st.Note, c.by)
			}
			var power, noise float64
			for i, v := range w {
				d := float64(v) - written(m.Graph, i/n, i%n, n)
				power, noise = power+float64(v)*float64(v), noise+d*d
			}
			if want := 10 * math.Log10(power/noise); math.Abs(facts.SQNR-want) > 1e-6 {
				t.Errorf("SQNR %.4f dB, and the graph's codes have %.4f", facts.SQNR, want)
			}
		})
	}
}

// written is a weight as the graph holds it after quantization.
func written(g *graph.Graph, row, col, n int) float64 {
	if q := g.Init("w_int4"); q != nil {
		blocks := int(q.Dims[1])
		at := col*blocks + row/Int4Block
		c := tensor.View[uint8](q)[at*Int4Block/2+row%Int4Block/2] >> (4 * (row % 2)) & 15
		return (float64(c) - 8) * float64(tensor.View[float32](g.Init("w_int4_scale"))[at])
	}
	return float64(tensor.View[int8](g.Init("w_quantized"))[row*n+col]) * float64(tensor.View[float32](g.Init("w_scale"))[col])
}

// TestMethodOfPrecision: which method finds the codes of what, with samples and without.
func TestMethodOfPrecision(t *testing.T) {
	for _, c := range []struct {
		weights        WeightMethod
		p              Precision
		solves, rounds WeightMethod
	}{
		{AutoWeights, PrecisionINT8, GPTQ, RTN}, {AutoWeights, PrecisionINT4, GPTQ, MSEWeights}, {GPTQ, PrecisionDynamic, GPTQ, RTN},
		{AdaRound, PrecisionINT8, AdaRound, RTN}, {AdaRound, PrecisionINT4, GPTQ, MSEWeights},
		{AWQ, PrecisionINT4, AWQ, MSEWeights}, {AWQ, PrecisionINT8, GPTQ, RTN},
		{HQQ, PrecisionINT8, "", HQQ}, {RTN, PrecisionINT4, "", RTN}, {MSEWeights, PrecisionINT8, "", MSEWeights},
	} {
		cfg := Config{Weights: c.weights}
		if s, r := cfg.Solves(c.p), cfg.Rounds(c.p); s != c.solves || r != c.rounds {
			t.Errorf("weights %s, %s: %q, else %q; want %q, %q", c.weights, c.p, s, r, c.solves, c.rounds)
		}
	}
}
