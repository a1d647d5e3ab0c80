package pipeline

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// TestNativeIsClose: on a trained encoder the native form is closer to FP32 than
// the CPU's, whose activations have one scale for all rows. Least cosines are
// measured ones less a quarter of what was lost (with all 64 calibration texts
// and 200 texts of up to 128 tokens: static .9995 and .9982, dynamic .9989 and
// .9949).
func TestNativeIsClose(t *testing.T) {
	p := testPipeline(t)
	model, texts := need(t, "models/minilm/model.onnx"), need(t, "data/bbc/calib.jsonl")
	eval := firstLines(t, need(t, "data/bbc/test.jsonl"), 8)
	for _, c := range []struct {
		scheme quant.Scheme
		calib  string
		cosine float64
	}{{quant.INT8, texts, .9992}, {quant.INT8Dynamic, "", .9985}} {
		cosines := map[quant.Target]float64{}
		for _, target := range []quant.Target{quant.CUDA, quant.ORTCPU} {
			rep, err := p.Quantize(context.Background(), Request{Model: model, Config: quant.Config{Scheme: c.scheme, Target: target},
				Calib: c.calib, Samples: 8, Eval: eval, MaxTokens: 32, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			cosines[target] = rep.Evaluation.Cosine.Mean
		}
		t.Logf("%s: mean cosine %.5f, for the CPU %.5f", c.scheme, cosines[quant.CUDA], cosines[quant.ORTCPU])
		if got := cosines[quant.CUDA]; got < c.cosine || got < cosines[quant.ORTCPU] {
			t.Errorf("%s: mean cosine %.5f, want at least %.4f and the CPU's %.5f", c.scheme, got, c.cosine, cosines[quant.ORTCPU])
		}
	}
}

func firstLines(t *testing.T, path string, n int) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	for s := bufio.NewScanner(f); n > 0 && s.Scan(); n-- {
		b.Write(append(s.Bytes(), '\n'))
	}
	out := filepath.Join(t.TempDir(), "texts.jsonl")
	if err := os.WriteFile(out, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNativeReport: what the report says of a native model, and that the
// written file is one.
func TestNativeReport(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, cnn()), npy(t, 3, 40, 3, 16, 16)
	out := filepath.Join(t.TempDir(), "q.onnx")
	rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: quant.Config{Target: quant.CUDA}, Calib: calib, Samples: 32, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, c := range rep.Tensors {
		switch c.Granularity {
		case "per-row":
			rows++
			if c.Scale.Finite() || c.Operator != "head" {
				t.Errorf("%s read by %s has the scale %v", c.Name, c.Operator, c.Scale)
			}
		case "per-tensor":
			if !c.Scale.Finite() {
				t.Errorf("%s has no scale", c.Name)
			}
		}
	}
	if rows != 1 || len(rep.Tensors) < 5 {
		t.Errorf("%d of %d tensors by row, want 1 of several", rows, len(rep.Tensors))
	}
	m, err := graph.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := ops.Verify(m); err != nil || len(m.Functions()) != 2 {
		t.Errorf("%d functions, %v", len(m.Functions()), err)
	}
	in, err := Inspect(context.Background(), out, quant.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if share, _ := in.Integer.Share(); share < .999 || in.Quantized == "" {
		t.Errorf("inspect: %.3f of the work in integers, quantized %q", share, in.Quantized)
	}
	if _, err := p.Quantize(context.Background(), Request{Model: out, Config: quant.Config{Scheme: quant.INT8Dynamic}}, nil); err == nil || !strings.Contains(err.Error(), "already quantized") {
		t.Errorf("quantized twice: %v", err)
	}
}

// TestNativeGate: on an engine that only stands in for the GPU, latency is no
// reason to refuse.
func TestNativeGate(t *testing.T) {
	for target, slower := range map[quant.Target]bool{quant.CUDA: true, quant.ORTCPU: false} {
		r := &run{Pipeline: &Pipeline{Engine: &fake.Engine{}}, req: Request{Config: quant.Config{Target: target}}, rep: &report.Report{}}
		if g := r.gate(true); g.AllowSlower != slower || (g.SLOMS == 0) != slower || (len(r.rep.Warnings) > 0) != slower {
			t.Errorf("%s: %+v, warnings %v", target, g, r.rep.Warnings)
		}
	}
}
