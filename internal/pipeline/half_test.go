package pipeline

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestHalfOverflow: operators whose values FP16 cannot hold stay FP32, with the
// scheme and with a rule, and the report says so. Without samples nothing is known.
func TestHalfOverflow(t *testing.T) {
	p := testPipeline(t)
	m := mlp()
	w := append([]float32(nil), tensor.View[float32](m.Graph.Init("w1"))...)
	for i := range 64 {
		w[i*256+7] = 4e4 // fits FP16 itself, the sum does not
	}
	m.Graph.SetInit("w1", tensor.From(w, 64, 256))
	m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", "side", "x w3", "other"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("other", -1, -1, 32))
	m.Graph.SetInit("w3", tensor.From(append([]float32(nil), w[:64*32]...), 64, 32))
	for i := range tensor.View[float32](m.Graph.Init("w3")) {
		tensor.View[float32](m.Graph.Init("w3"))[i] = 0.01
	}
	src, calib := save(t, m), npy(t, 3, 96, 9, 64)
	run := func(c quant.Config, calib string) (*graph.Model, string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "q.onnx")
		rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: calib, Config: c, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		q, err := graph.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { q.Close() })
		return q, strings.Join(rep.Warnings, "\n")
	}
	const warning = "operators stay FP32: they read or give values past FP16's 65504"
	for name, c := range map[string]quant.Config{
		"scheme": {Scheme: quant.FP16},
		"rules":  {Rules: []quant.Rule{{Match: "MatMul", Precision: quant.PrecisionFP16}, {Match: "down", Precision: quant.PrecisionINT8}}},
	} {
		q, warned := run(c, calib)
		if q.Graph.Init("w1_fp16") != nil || q.Graph.Init("w1") == nil || q.Graph.Init("w3_fp16") == nil || !strings.Contains(warned, warning) {
			t.Errorf("%s: %q\n%s", name, warned, q.Text())
		}
	}
	if q, warned := run(quant.Config{Scheme: quant.FP16}, ""); q.Graph.Init("w1_fp16") == nil || strings.Contains(warned, warning) {
		t.Errorf("without samples: %q", warned)
	}
}
