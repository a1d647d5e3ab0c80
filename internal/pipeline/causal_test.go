package pipeline

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// causalTokens is the length of the texts that causal takes.
	causalTokens = 16
	// causalMask is what exporters of causal text towers add above the diagonal.
	causalMask = -1e4
)

// causal is a block of attention with such a mask, a constant.
func causal() *graph.Model {
	m := attention(false, true)
	g := m.Graph
	g.Inputs[0].Dims[1] = graph.Dim{N: causalTokens}
	g.Outputs[0].Dims[1] = graph.Dim{N: causalTokens}
	mask := make([]float32, causalTokens*causalTokens)
	for i := range mask {
		if i%causalTokens > i/causalTokens {
			mask[i] = causalMask
		}
	}
	g.SetInit("causal", tensor.From(mask, causalTokens, causalTokens))
	at := slices.IndexFunc(g.Nodes, func(n *graph.Node) bool { return n.Op == "Softmax" })
	g.Nodes[at].Inputs[0] = "masked"
	g.Nodes = slices.Insert(g.Nodes, at, node("Add", "mask", "sc causal", "masked"))
	return m
}

// TestCausalMask: a mask of -10,000 stretches the range of the scores so far that 8
// bits for them leave nothing, as happens with tools that quantize every operator. The
// defaults keep what the block says.
func TestCausalMask(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	m := causal()
	lab, err := NewLab(p.Engine, 2, p.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	feeds := engine.Feeds{"x": tensor.From(gauss(rand.New(rand.NewPCG(10, 0)), 32*causalTokens*32, 1), 32, causalTokens, 32)}
	ask := func(m *graph.Model) []float32 {
		t.Helper()
		s, err := lab.Open(ctx, m, nil, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return logits(t, s, feeds)
	}
	float := ask(m)

	// The trap: scores and mask in the 256 steps of their whole range.
	trap := m.Clone()
	g := trap.Graph
	at := slices.IndexFunc(g.Nodes, func(n *graph.Node) bool { return n.Op == "Softmax" })
	g.Nodes[at].Inputs[0] = "rounded"
	g.Nodes = slices.Insert(g.Nodes, at, node("QuantizeLinear", "quantize", "masked step zero", "codes"), node("DequantizeLinear", "dequantize", "codes step zero", "rounded"))
	g.SetInit("step", tensor.From([]float32{-causalMask / 255}))
	g.SetInit("zero", tensor.From([]uint8{255}))
	if c := cosineOf(float, ask(trap)); c > 0.9 {
		t.Errorf("cosine %.4f with the scores in 8 bits: this is no trap", c)
	}

	for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ} {
		out := filepath.Join(t.TempDir(), "small.onnx")
		rep, err := p.Quantize(ctx, Request{Model: save(t, m), Out: out, Calib: npy(t, 3, 96, causalTokens, 32), Config: quant.Config{Target: target}, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Integer.MACs == 0 {
			t.Fatalf("%s: nothing is in integers", target)
		}
		q, err := graph.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		if c := cosineOf(float, ask(q)); c < 0.99 {
			t.Errorf("%s: cosine %.4f: the mask has reached the ranges", target, c)
		}
	}
}

func cosineOf(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+float64(a[i])*float64(b[i]), aa+float64(a[i])*float64(a[i]), bb+float64(b[i])*float64(b[i])
	}
	return ab / math.Sqrt(aa*bb)
}
