package pipeline

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestAbsorbBiases: a channel that lies high widens the range of all; with its bias
// absorbed the codes are finer, and the report says by how much.
func TestAbsorbBiases(t *testing.T) {
	p := testPipeline(t)
	r := rand.New(rand.NewPCG(11, 0))
	m := newModel([]*graph.Value{value("x", -1, 3, 8, 8)}, []*graph.Value{value("logits", -1, 24)},
		node("Conv", "one", "x k1 b1", "c1"), node("Relu", "relu1", "c1", "r1"), node("Conv", "two", "r1 k2 b2", "c2"), node("Relu", "relu2", "c2", "r2"),
		node("GlobalAveragePool", "gap", "r2", "p"), node("Flatten", "flat", "p", "f"), node("Gemm", "head", "f w b", "logits", graph.AttrInt("transB", 1)))
	m.Graph.SetInit("k1", tensor.From(gauss(r, 16*3, .3), 16, 3, 1, 1))
	high := gauss(r, 16, .1)
	high[5] = 30 // reaches down to some 26
	m.Graph.SetInit("b1", tensor.From(high, 16))
	two := gauss(r, 16*16, .3)
	for o := range 16 {
		two[o*16+5] *= .05
	}
	m.Graph.SetInit("k2", tensor.From(two, 16, 16, 1, 1))
	m.Graph.SetInit("b2", tensor.From(gauss(r, 16, .1), 16))
	m.Graph.SetInit("w", tensor.From(gauss(r, 24*16, .5), 24, 16))
	m.Graph.SetInit("b", tensor.From(gauss(r, 24, .1), 24))
	src, calib, ev := save(t, m), npy(t, 3, 96, 3, 8, 8), npy(t, 4, 96, 3, 8, 8)
	run := func(c quant.Config) *report.Report {
		t.Helper()
		rep, err := p.Quantize(context.Background(), Request{Model: src, Config: c, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	plain, absorbed := run(quant.Config{}), run(quant.Config{Equalize: true})
	if a, b := plain.Evaluation.SQNR, absorbed.Evaluation.SQNR; b < a+3 {
		t.Errorf("SQNR %.1f dB, %.1f without", b, a)
	}
	for _, pass := range absorbed.Passes {
		if pass.Name == "absorb-biases" {
			if pass.Changed != 1 || !strings.HasPrefix(pass.Gain, "1 channels of 1 of 1 tensors; the range of these is ") {
				t.Errorf("%+v", pass)
			}
			return
		}
	}
	t.Error("the report has no line about it")
}
