package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// TestEmbeddingsAlone: a recipe that leaves everything but the tables in float
// needs no calibration data, and makes of the real encoder a model that is smaller
// by what the tables save and answers as before.
func TestEmbeddingsAlone(t *testing.T) {
	p := testPipeline(t)
	src, texts := need(t, "models/minilm/model.onnx"), need(t, "data/bbc/test.jsonl")
	for _, c := range []struct {
		precision quant.Precision
		lookup    string
		share     float64 // of the file, at most: the tables are half of its weights
		cosine    float64
	}{
		{quant.PrecisionINT8, "Gather", .63, .9995},
		{quant.PrecisionINT4, "GatherBlockQuantized", .60, .985},
	} {
		t.Run(string(c.precision), func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "q.onnx")
			rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Eval: texts, EvalSamples: 16, MaxTokens: 64, NoLatency: true, MaxLoss: .02,
				Config: quant.Config{Rules: []quant.Rule{{Match: "*", Precision: quant.PrecisionFP32}, {Match: "@embeddings", Precision: c.precision}}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := float64(rep.Quantized.Bytes) / float64(rep.Model.Bytes); got > c.share {
				t.Errorf("the file is %.3f of the float model's, want at most %.2f", got, c.share)
			}
			if got := rep.Evaluation.Cosine.Mean; got < c.cosine {
				t.Errorf("cosine %.5f, want at least %.4f", got, c.cosine)
			}
			m, err := graph.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			lookups := 0
			for _, n := range m.Graph.Nodes {
				if n.Op == c.lookup && m.Graph.Init(n.In(0)) != nil {
					lookups++
				}
				if n.Op == "MatMulIntegerToFloat" || n.Op == "MatMulNBits" || n.Op == "DynamicQuantizeLinear" {
					t.Errorf("%s %s", n.Op, n.Name)
				}
			}
			if lookups == 0 {
				t.Errorf("no %s reads a table", c.lookup)
			}
		})
	}
	if _, err := p.Quantize(context.Background(), Request{Model: src, Config: quant.Config{NoEmbeddings: true, Rules: []quant.Rule{{Match: "*", Precision: quant.PrecisionFP32}}}}, nil); !errors.Is(err, quant.ErrNothing) {
		t.Errorf("without the tables: %v", err)
	}
	all := quant.Config{Rules: []quant.Rule{{Match: "@embeddings", Precision: quant.PrecisionINT4}, {Match: "*", Precision: quant.PrecisionFP32}}}
	if _, err := p.Quantize(context.Background(), Request{Model: src, Config: all}, nil); !errors.Is(err, quant.ErrNothing) {
		t.Errorf("with a later rule for all: %v", err)
	}
}
