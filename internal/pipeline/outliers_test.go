package pipeline

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestRareOutliers: where a sample has few values, those that candidate ranges are tried
// on are more samples and rows, so that a range that clips rare outliers, which make
// most of the output, does not look good for want of them. Judged on a copy of the
// calibration data the default is nearly as good as min-max, or better.
func TestRareOutliers(t *testing.T) {
	p := testPipeline(t)
	r := rand.New(rand.NewPCG(5, 0))
	rare := []*graph.Node{node("Mul", "square", "x x", "x2"), node("Mul", "fourth", "x2 x2", "x4"), node("Mul", "eighth", "x4 x4", "x8"), node("Mul", "ninth", "x8 x", "x9")}
	product := newModel([]*graph.Value{value("x", -1, 24, 8)}, []*graph.Value{value("y", -1, 24, 16)}, append(rare[:4:4], node("MatMul", "mm", "x9 w", "y"))...)
	product.Graph.SetInit("w", tensor.From(gauss(r, 8*16, .3), 8, 16))
	conv := newModel([]*graph.Value{value("x", -1, 4, 3, 3)}, []*graph.Value{value("y", -1, 16, 3, 3)}, append(rare[:4:4], node("Conv", "conv", "x4 k", "c"), node("LeakyRelu", "leaky", "c", "l"), node("Abs", "abs", "l", "y"))...)
	conv.Graph.SetInit("k", tensor.From(gauss(r, 16*4, .3), 16, 4, 1, 1))
	for name, c := range map[string]struct {
		m     *graph.Model
		shape []int64
		tried string
	}{
		"product": {product, []int64{96, 24, 8}, "on 2304 rows"}, "convolution": {conv, []int64{96, 4, 3, 3}, "on 96 samples"},
	} {
		calib, same := npy(t, 3, c.shape...), npy(t, 3, c.shape...)
		run := func(cfg quant.Config) float64 {
			t.Helper()
			rep, err := p.Quantize(context.Background(), Request{Model: save(t, c.m), Config: cfg, Calib: calib, Eval: same, Samples: 96, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if why := rep.Tensors[0].Why; cfg.Method == "" && !strings.Contains(why, c.tried) {
				t.Errorf("%s: the range of %s was chosen by the %s, not %s", name, rep.Tensors[0].Name, why, c.tried)
			}
			return float64(rep.Evaluation.SQNR)
		}
		auto, minmax := run(quant.Config{NoSmooth: true}), run(quant.Config{NoSmooth: true, Method: "minmax"})
		t.Logf("%s: SQNR %.1f dB, min-max %.1f dB", name, auto, minmax)
		if auto < minmax-1 {
			t.Errorf("%s: SQNR %.1f dB, min-max has %.1f dB", name, auto, minmax)
		}
	}
}

// TestRangesOfNarrowTensors: one with few values is tried on as many samples beside wide
// ones as without them.
func TestRangesOfNarrowTensors(t *testing.T) {
	p := testPipeline(t)
	r := rand.New(rand.NewPCG(5, 0))
	m := newModel([]*graph.Value{value("x", -1, 4, 96, 96)}, []*graph.Value{value("y", -1, 16, 1, 1)}, node("Conv", "wide", "x k", "c"), node("LeakyRelu", "leaky", "c", "a"),
		node("GlobalAveragePool", "pool", "a", "g"), node("Conv", "narrow", "g k2", "d"), node("Abs", "abs", "d", "y"))
	m.Graph.SetInit("k", tensor.From(gauss(r, 16*4, .3), 16, 4, 1, 1))
	m.Graph.SetInit("k2", tensor.From(gauss(r, 16*16, .3), 16, 16, 1, 1))
	src, calib := save(t, m), npy(t, 3, 40, 4, 96, 96)
	for _, rules := range [][]quant.Rule{nil, {{Match: "wide", Precision: quant.PrecisionFP32}}} {
		rep, err := p.Quantize(context.Background(), Request{Model: src, Config: quant.Config{Rules: rules}, Calib: calib, Samples: 40, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range rep.Tensors {
			want := map[string]string{"g": "on 40 samples", "a": "on 8 samples"}[x.Name]
			if !strings.Contains(x.Why, want) {
				t.Errorf("%d rules: the range of %s was chosen by the %s, not %s", len(rules), x.Name, x.Why, want)
			}
		}
	}
}
