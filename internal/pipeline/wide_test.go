package pipeline

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// quantizeTo quantizes src by c, whatever the gate says.
func quantizeTo(t *testing.T, p *Pipeline, src, calib string, samples, judged int, c quant.Config) (string, *report.Report) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "q.onnx")
	rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: calib, Samples: samples, EvalSamples: judged, MaxTokens: 32, Config: c, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out, rep
}

// TestWideActivations: with 16-bit activations and the same weights ONNX Runtime's
// outputs are nearer to FP32 than with 8, on both small networks and on a real one,
// in models older and newer than the standard operators for it.
func TestWideActivations(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		for _, opset := range []int64{17, 21} {
			k.m.Opsets[""] = opset
			src, calib := save(t, k.m), npy(t, 3, k.data...)
			_, narrow := quantizeTo(t, p, src, calib, 60, 30, quant.Config{Target: quant.QDQ})
			out, wide := quantizeTo(t, p, src, calib, 60, 30, quant.Config{Scheme: quant.A16W8})
			if wide.Evaluation.SQNR < narrow.Evaluation.SQNR+1.5 {
				t.Errorf("%s, opset %d: SQNR %.1f dB with 16 bits, %.1f dB with 8", k.name, opset, wide.Evaluation.SQNR, narrow.Evaluation.SQNR)
			}
			if wide.Recipe.Scheme != "a16w8" || wide.Integer.MACs != 0 {
				t.Errorf("%s: recipe %q, %d integer MACs", k.name, wide.Recipe.Scheme, wide.Integer.MACs)
			}
			m, err := graph.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			domains := map[string]int{}
			for _, n := range m.Graph.Nodes {
				if z := m.Graph.Init(n.In(2)); n.Op == "QuantizeLinear" && z != nil && z.Type == tensor.Uint16 {
					domains[n.Domain]++
				}
			}
			want := graph.DomainMS
			if opset >= 21 {
				want = graph.DomainONNX
			}
			if domains[want] == 0 || len(domains) != 1 {
				t.Errorf("%s, opset %d: 16-bit quantizers by domain: %v", k.name, opset, domains)
			}
			m.Close()
		}
	}
	for _, c := range []quant.Config{{Scheme: quant.A16W8, Target: quant.ORTCPU}, {Scheme: quant.A16W8, Target: quant.QOperator}, {Scheme: quant.INT4, Wide: true}} {
		if _, err := c.WithDefaults(); !errors.Is(err, quant.ErrConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestWideMiniLM is the same on all-MiniLM-L6-v2: what is left is the weights' error.
func TestWideMiniLM(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	p := testPipeline(t)
	src, calib := need(t, "models/minilm/model.onnx"), need(t, "data/bbc/calib.jsonl")
	c := quant.Config{Target: quant.QDQ, Weights: quant.RTN, NoBiasCorrection: true, NoEmbeddings: true}
	_, narrow := quantizeTo(t, p, src, calib, 12, 12, c)
	c.Target, c.Scheme = "", quant.A16W8
	_, wide := quantizeTo(t, p, src, calib, 12, 12, c)
	t.Logf("12 texts: SQNR %.2f dB, cosine %.5f with 16-bit activations; %.2f dB, %.5f with 8", wide.Evaluation.SQNR, wide.Evaluation.Cosine.Mean, narrow.Evaluation.SQNR, narrow.Evaluation.Cosine.Mean)
	if wide.Evaluation.SQNR < narrow.Evaluation.SQNR+2 {
		t.Errorf("SQNR %.2f dB with 16 bits, %.2f dB with 8", wide.Evaluation.SQNR, narrow.Evaluation.SQNR)
	}
}

// TestBF16: weights in bfloat16 run in ONNX Runtime, half the size, and differ from
// FP32 by the rounding of 8 bits; exclusions and what does not fit stay FP32.
func TestBF16(t *testing.T) {
	p := testPipeline(t)
	m := mlp()
	side := append([]float32(nil), tensor.View[float32](m.Graph.Init("w1"))[:64*32]...)
	side[5] = math.MaxFloat32 // rounds to infinity
	m.Graph.SetInit("w3", tensor.From(side, 64, 32))
	m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", "side", "x w3", "other"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("other", -1, -1, 32))
	src, calib := save(t, m), npy(t, 3, 96, 9, 64)
	types := func(path string) map[string]tensor.DType {
		q, err := graph.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		found := map[string]tensor.DType{}
		for _, name := range q.Graph.Inits() {
			found[name] = q.Graph.Init(name).Type
		}
		return found
	}
	out, rep := quantizeTo(t, p, src, calib, 60, 30, quant.Config{Scheme: quant.BF16, Exclude: []string{"down"}})
	if s := rep.Evaluation.SQNR; s < 45 || s > 70 {
		t.Errorf("SQNR %.1f dB", s)
	}
	if found := types(out); found["w1_bf16"] != tensor.BFloat16 || found["w2"] != tensor.Float32 || found["w3"] != tensor.Float32 {
		t.Errorf("weights %v", found)
	}
	if note := rep.Passes[len(rep.Passes)-1].Gain; !strings.Contains(note, "2 weights in BF16, 1 kept in FP32 for values past 3.38953e+38; relative error 0.00") {
		t.Errorf("note %q", note)
	}
	out, rep = quantizeTo(t, p, src, calib, 60, 30, quant.Config{Rules: []quant.Rule{{Match: "up", Precision: quant.PrecisionBF16}}})
	if found := types(out); found["w1_bf16"] != tensor.BFloat16 || found["w2_quantized"] != tensor.Int8 {
		t.Errorf("by a rule: weights %v", found)
	}
	for _, o := range rep.Operators {
		if o.Name == "up" && o.Precision != "bf16" {
			t.Errorf("the report calls it %s", o.Precision)
		}
	}
	old := mlp()
	old.Opsets[""] = 12
	_, err := p.Quantize(context.Background(), Request{Model: save(t, old), Out: filepath.Join(t.TempDir(), "q.onnx"), Config: quant.Config{Scheme: quant.BF16}}, nil)
	if !errors.Is(err, quant.ErrConfig) || !strings.Contains(err.Error(), "opset 13") {
		t.Errorf("opset 12: %v", err)
	}
}
