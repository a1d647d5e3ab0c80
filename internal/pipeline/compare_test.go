package pipeline

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// sqnrTolerance in dB: Quantize measures operators on the portable form,
// Compare on the file as written, whose integer operators round once more.
const sqnrTolerance = 1.5

// TestCompareFindsEveryOperator: whatever the form, Compare matches each
// quantized operator with its float one, by the tensors' names alone, and
// measures what Quantize measured.
func TestCompareFindsEveryOperator(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		calib, ev := npy(t, 3, k.data...), npy(t, 4, k.data...)
		src := save(t, k.m)
		for _, c := range []quant.Config{{}, {Target: quant.QDQ}, {Target: quant.QOperator}, {Scheme: quant.INT8Dynamic}, {NoSmooth: true}} {
			if c.Scheme == quant.INT8Dynamic && k.name == "cnn" {
				continue // convolutions stay in float
			}
			t.Run(k.name+"/"+string(c.Target)+string(c.Scheme), func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "q.onnx")
				made, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: c, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
				if err != nil {
					t.Fatal(err)
				}
				rep, err := p.Compare(context.Background(), CompareRequest{Float: src, Quant: out, Data: ev, NoLatency: true, MaxLoss: 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				want := map[string]report.Operator{}
				for _, o := range made.Operators {
					want[o.Name] = o
				}
				if rep.Integer != made.Integer {
					t.Errorf("integer work %+v, Quantize says %+v", rep.Integer, made.Integer)
				}
				for _, o := range rep.Operators {
					w, ok := want[o.Name]
					switch {
					case !ok:
						t.Errorf("operator %q is not one that Quantize lists", o.Name)
					case o.Integer && !o.SQNR.Finite():
						t.Errorf("%s %s: not measured", o.Op, o.Name)
					case o.Integer && w.SQNR.Finite() && math.Abs(float64(o.SQNR-w.SQNR)) > sqnrTolerance:
						t.Errorf("%s %s: %.1f dB, Quantize measured %.1f dB", o.Op, o.Name, o.SQNR, w.SQNR)
					}
				}
				// One session of the float model judged there, whose inner tensors are outputs: what
				// the engine fuses otherwise it rounds in between.
				if d := math.Abs(rep.Evaluation.SQNR - made.Evaluation.SQNR); d > 1e-3 {
					t.Errorf("output SQNR %.3f dB, Quantize measured %.3f dB", rep.Evaluation.SQNR, made.Evaluation.SQNR)
				}
			})
		}
	}
}

// TestCompareSecondOutput: labels are those of the first output, also where another has fewer classes.
func TestCompareSecondOutput(t *testing.T) {
	p := testPipeline(t)
	m := cnn()
	m.Graph.Nodes = append(m.Graph.Nodes, node("Relu", "", "p", "q"), node("Flatten", "", "q", "two"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("two", -1, 16))
	src, out, ev := save(t, m), filepath.Join(t.TempDir(), "q.onnx"), npy(t, 4, 8, 3, 16, 16)
	if _, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: ev, NoLatency: true, Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	x, err := os.ReadFile(ev)
	if err != nil {
		t.Fatal(err)
	}
	head := "{'descr': '|u1', 'fortran_order': False, 'shape': (8,), }"
	labels := append([]byte("\x93NUMPY\x01\x00"+string([]byte{byte(len(head) + 1), 0})+head+"\n"), 0, 23, 1, 2, 3, 20, 5, 6)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, v := range map[string][]byte{"x.npy": x, "label.npy": labels} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	labelled := filepath.Join(t.TempDir(), "x.npz")
	if err := os.WriteFile(labelled, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	rep, err := p.Compare(context.Background(), CompareRequest{Float: src, Quant: out, Data: labelled, NoLatency: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := rep.Evaluation; e.Output != "logits" || e.Labelled != 8 {
		t.Errorf("judged by %q, %d labels", e.Output, e.Labelled)
	}
}

func TestCompareRefusesStrangers(t *testing.T) {
	p := testPipeline(t)
	a, b := save(t, mlp()), save(t, cnn())
	_, err := p.Compare(context.Background(), CompareRequest{Float: a, Quant: b, Data: npy(t, 4, 8, 9, 64), NoLatency: true}, nil)
	if err == nil {
		t.Fatal("two unrelated models were compared")
	}
	rep, err := p.Compare(context.Background(), CompareRequest{Float: a, Quant: a, Data: npy(t, 4, 8, 9, 64), NoLatency: true}, nil)
	if err != nil || rep.Evaluation.Cosine.Min < 1-1e-6 || rep.Verdict.Status != report.Accepted {
		t.Fatalf("a model against itself: %+v, %v", rep, err)
	}
}

func TestEvaluateNeedsLabels(t *testing.T) {
	p := testPipeline(t)
	_, err := p.Evaluate(context.Background(), EvalRequest{Model: save(t, cnn()), Data: npy(t, 4, 8, 3, 16, 16)}, nil)
	if err == nil {
		t.Fatal("evaluated without labels")
	}
}

func TestBench(t *testing.T) {
	p := testPipeline(t)
	src := save(t, mlp())
	r, err := p.Bench(context.Background(), BenchRequest{Model: src, Versus: src, Duration: 1, Shape: Shape{Batch: 3, Seq: 5}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Models) != 2 || r.Batch != 3 || r.Seq != 5 || r.Speedup == nil || r.Speedup.N < benchRounds {
		t.Fatalf("%+v", r)
	}
	for _, m := range r.Models {
		if m.N < benchRounds || m.P50MS <= 0 || m.P99MS < m.P50MS || math.Abs(m.Throughput*m.MeanMS/1000-3) > 1e-6 {
			t.Errorf("%+v", m)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Bench(ctx, BenchRequest{Model: src}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSyntheticFits: synthetic inputs are what the model takes, for shapes and
// types of every kind, ids stay inside their tables, and they never change.
func TestSyntheticFits(t *testing.T) {
	p := testPipeline(t)
	for _, path := range []string{"models/minilm-fused/model.onnx", "models/efficientnet-lite0/model.onnx"} {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			r, err := p.Bench(context.Background(), BenchRequest{Model: need(t, path), Duration: 1, Shape: Shape{Seq: 8}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.Models[0].N < 2 {
				t.Errorf("%+v", r.Models[0])
			}
		})
	}
	m, err := graph.Open(save(t, mlp()))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	a, err := Synthetic(m, Shape{})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Synthetic(m, Shape{})
	if string(a["x"].Data) != string(b["x"].Data) {
		t.Error("two calls differ")
	}
	if _, err := Synthetic(m, Shape{Batch: 1 << 40}); !errors.Is(err, ErrSynthetic) {
		t.Errorf("a huge batch: %v", err)
	}
}

func TestInspectPlansWhatQuantizeDoes(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		src := save(t, k.m)
		in, err := Inspect(context.Background(), src, quant.Config{})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "q.onnx")
		data := npy(t, 3, append([]int64{8}, k.data[1:]...)...)
		if _, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: data, NoLatency: true, Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		after, err := Inspect(context.Background(), out, quant.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if in.Quantized != "" || after.Quantized == "" || in.Integer != after.Integer || in.Integer.Total == 0 {
			t.Errorf("%s: planned %+v, made %+v (%q)", k.name, in.Integer, after.Integer, after.Quantized)
		}
	}
}

func TestPeakOf(t *testing.T) {
	p := testPipeline(t)
	peak, err := p.PeakOf(context.Background(), save(t, mlp()))
	if err != nil {
		t.Fatal(err)
	}
	if peak.Bytes < 1<<20 || peak.Anonymous > peak.Bytes {
		t.Errorf("%+v", peak)
	}
	if _, err := p.PeakOf(context.Background(), filepath.Join(t.TempDir(), "no.onnx")); err == nil {
		t.Error("a missing model has a peak")
	}
}
