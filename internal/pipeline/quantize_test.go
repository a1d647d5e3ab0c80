package pipeline

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

func testPipeline(t *testing.T) *Pipeline {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	return &Pipeline{Engine: e, Threads: 2, Version: "test", Scratch: t.TempDir()}
}

func need(t *testing.T, path string) string {
	t.Helper()
	p := filepath.Join("../../.deps", path)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("needs .deps/%s (make deps)", path)
	}
	return p
}

func gauss(r *rand.Rand, n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * scale)
	}
	return x
}

func node(op, name, in, out string, attrs ...*pb.AttributeProto) *graph.Node {
	return graph.NewNode("", op, name, strings.Fields(in), strings.Fields(out), attrs...)
}

func newModel(in, out []*graph.Value, nodes ...*graph.Node) *graph.Model {
	return &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "g", Inputs: in, Outputs: out, Nodes: nodes, Info: map[string]*graph.Value{}}}
}

func value(name string, dims ...int64) *graph.Value {
	v := &graph.Value{Name: name, Type: tensor.Float32}
	for i, d := range dims {
		dim := graph.Dim{N: d}
		if d < 0 {
			dim.Name = []string{"batch", "length", "rows", "columns"}[i]
		}
		v.Dims = append(v.Dims, dim)
	}
	return v
}

// mlp is a small network with one outlier channel, the case that smoothing is for.
func mlp() *graph.Model {
	m := newModel([]*graph.Value{value("x", -1, -1, 64)}, []*graph.Value{value("logits", -1, -1, 32)},
		node("MatMul", "up", "x w1", "h"), node("Add", "up/bias", "h b1", "hb"),
		node("Relu", "act", "hb", "a"), node("MatMul", "down", "a w2", "logits"))
	r := rand.New(rand.NewPCG(1, 0))
	w1 := gauss(r, 64*256, .1)
	for i := range 64 {
		w1[i*256+7] *= 40 // channel 7 of the hidden layer is 40 times the others
	}
	m.Graph.SetInit("w1", tensor.From(w1, 64, 256))
	m.Graph.SetInit("b1", tensor.From(gauss(r, 256, .1), 256))
	m.Graph.SetInit("w2", tensor.From(gauss(r, 256*32, .1), 256, 32))
	return m
}

// cnn has depthwise and pointwise convolutions, ReLU6, a residual and a head.
func cnn() *graph.Model {
	m := newModel([]*graph.Value{value("x", -1, 3, 16, 16)}, []*graph.Value{value("logits", -1, 24)},
		node("Conv", "stem", "x k1 b1", "c1", graph.AttrInts("pads", 1, 1, 1, 1), graph.AttrInts("strides", 2, 2)),
		node("Clip", "relu6", "c1 zero six", "r1"),
		node("Conv", "dw", "r1 k2", "c2", graph.AttrInts("pads", 1, 1, 1, 1), graph.AttrInt("group", 16)),
		node("Relu", "relu", "c2", "r2"),
		node("Conv", "pw", "r2 k3 b3", "c3"),
		node("Add", "residual", "c3 r1", "s"),
		node("GlobalAveragePool", "gap", "s", "p"),
		node("Flatten", "flat", "p", "f"),
		node("Gemm", "head", "f w b", "logits", graph.AttrInt("transB", 1)))
	r := rand.New(rand.NewPCG(2, 0))
	set := func(name string, scale float64, dims ...int64) {
		n, _ := tensor.Elems(dims)
		m.Graph.SetInit(name, tensor.From(gauss(r, int(n), scale), dims...))
	}
	set("k1", .3, 16, 3, 3, 3)
	set("b1", .2, 16)
	set("k2", .4, 16, 1, 3, 3)
	set("k3", .3, 16, 16, 1, 1)
	set("b3", .1, 16)
	set("w", .5, 24, 16)
	set("b", .1, 24)
	m.Graph.SetInit("zero", tensor.From([]float32{0}))
	m.Graph.SetInit("six", tensor.From([]float32{6}))
	return m
}

func save(t *testing.T, m *graph.Model) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(p, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// npy writes samples of the given shape (first axis: samples).
func npy(t *testing.T, seed int64, shape ...int64) string {
	t.Helper()
	n, _ := tensor.Elems(shape)
	x := tensor.From(gauss(rand.New(rand.NewPCG(uint64(seed), 0)), int(n), 1), shape...)
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = itoa(d)
	}
	head := "{'descr': '<f4', 'fortran_order': False, 'shape': (" + strings.Join(dims, ", ") + ",), }"
	for (10+len(head)+1)%64 != 0 {
		head += " "
	}
	head += "\n"
	var b bytes.Buffer
	b.WriteString("\x93NUMPY\x01\x00")
	b.Write([]byte{byte(len(head)), byte(len(head) >> 8)})
	b.WriteString(head)
	b.Write(x.Data)
	p := filepath.Join(t.TempDir(), "x.npy")
	if err := os.WriteFile(p, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func itoa(n int64) string {
	if n >= 10 {
		return itoa(n/10) + string(rune('0'+n%10))
	}
	return string(rune('0' + n))
}

type kase struct {
	name string
	m    *graph.Model
	data []int64
}

func cases() []kase {
	return []kase{{"mlp", mlp(), []int64{96, 9, 64}}, {"cnn", cnn(), []int64{96, 3, 16, 16}}}
}

// TestEveryForm quantizes both networks into every form, runs them with ONNX
// Runtime and demands that little is lost and that the portable and the integer
// form agree.
func TestEveryForm(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		calib, ev := npy(t, 3, k.data...), npy(t, 4, k.data...)
		src := save(t, k.m)
		for _, c := range []struct {
			name     string
			c        quant.Config
			mlp, cnn float64 // least SQNR in dB, 1 to 2 below what was measured
		}{
			{"ort-cpu", quant.Config{}, 24, 28},
			{"qdq", quant.Config{Target: quant.QDQ}, 24, 28},
			{"qoperator", quant.Config{Target: quant.QOperator}, 17, 24},
			{"minmax", quant.Config{Method: "minmax"}, 24, 26},
			{"entropy", quant.Config{Method: "entropy"}, 8, 8},
			{"percentile", quant.Config{Method: "percentile"}, 17, 24},
			{"mse", quant.Config{Method: "mse"}, 23, 26},
			{"moving average", quant.Config{Method: quant.MovingAverage}, 9, 14},
			{"symmetric", quant.Config{Symmetric: true}, 22, 22},
			{"per-tensor", quant.Config{Granularity: quant.PerTensor}, 18, 18},
			{"7-bit", quant.Config{ReduceRange: true}, 22, 22},
			{"int4", quant.Config{Scheme: quant.INT4}, 14, 20},
			{"int4 hqq", quant.Config{Scheme: quant.INT4, Weights: quant.HQQ}, 14, 20},
			{"int4 awq", quant.Config{Scheme: quant.INT4, Weights: quant.AWQ}, 15, 20},
			{"adaround", quant.Config{Weights: quant.AdaRound}, 24, 28},
			{"equalize", quant.Config{Equalize: true}, 24, 28},
			{"int8 hqq", quant.Config{Weights: quant.HQQ}, 23, 25},
			{"fp16", quant.Config{Scheme: quant.FP16}, 50, 50},
			{"dynamic", quant.Config{Scheme: quant.INT8Dynamic}, 24, 24},
			{"cuda", quant.Config{Target: quant.CUDA}, 24, 24},
			{"cuda dynamic", quant.Config{Target: quant.CUDA, Scheme: quant.INT8Dynamic}, 24, 24},
			{"cuda int4", quant.Config{Target: quant.CUDA, Scheme: quant.INT4}, 14, 20},
			{"cpu int4", quant.Config{Target: quant.CPU, Scheme: quant.INT4}, 14, 20},
			{"cpu int4 awq", quant.Config{Target: quant.CPU, Scheme: quant.INT4, Weights: quant.AWQ}, 14, 20},
		} {
			if k.name == "cnn" && c.c.Steps() {
				continue // it has no product of whole blocks
			}
			t.Run(k.name+"/"+c.name, func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "q.onnx")
				rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: c.c, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
				if err != nil {
					t.Fatal(err)
				}
				least := c.mlp
				if k.name == "cnn" {
					least = c.cnn
				}
				if got := rep.Evaluation.SQNR; got < least {
					t.Errorf("SQNR %.1f dB, want at least %.1f", got, least)
				}
				share, _ := rep.Integer.Share()
				if (c.c.Scheme == "" || c.c.Scheme == quant.INT8) && share < .999 {
					t.Errorf("%.3f of the work in integers: %+v", share, rep.Operators)
				}
				left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), ".fewbit-*"))
				if len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}

// TestIntegerFormMatchesPortable: ort-cpu and qdq files of the same choices give
// the same numbers up to one output step of rounding.
func TestIntegerFormMatchesPortable(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		calib := npy(t, 3, k.data...)
		src := save(t, k.m)
		var files [2]string
		for i, target := range []quant.Target{quant.ORTCPU, quant.QDQ} {
			files[i] = filepath.Join(t.TempDir(), "q.onnx")
			if _, err := p.Quantize(context.Background(), Request{Model: src, Out: files[i], Config: quant.Config{Target: target}, Calib: calib, NoLatency: true, Force: true}, nil); err != nil {
				t.Fatal(err)
			}
		}
		worst := maxRelative(t, p.Engine, files, npy(t, 5, k.data...))
		// Rounding to codes between layers can differ by one in a few places.
		if worst > .03 {
			t.Errorf("%s: outputs differ by %.4f of their largest value", k.name, worst)
		}
	}
}

func maxRelative(t *testing.T, e engine.Engine, files [2]string, dataPath string) float64 {
	t.Helper()
	ctx := context.Background()
	var outs [2][]float32
	for i, f := range files {
		s, err := e.OpenFile(ctx, f, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ds, err := data.Open(dataPath, data.Options{Spec: s.Spec(), ModelDir: filepath.Dir(f), Samples: 16})
		if err != nil {
			t.Fatal(err)
		}
		defer ds.Close()
		for {
			x, err := ds.Next(ctx)
			if err != nil {
				break
			}
			r, err := s.Run(ctx, x.Feeds, nil)
			if err != nil {
				t.Fatal(err)
			}
			v, err := r.Tensors()["logits"].F32()
			if err != nil {
				t.Fatal(err)
			}
			outs[i] = append(outs[i], v...)
			r.Close()
		}
	}
	var big, diff float64
	for i := range outs[0] {
		big = math.Max(big, math.Abs(float64(outs[0][i])))
		diff = math.Max(diff, math.Abs(float64(outs[0][i]-outs[1][i])))
	}
	return diff / big
}

// TestSmoothingPays: with an outlier channel, the joint search must beat plain
// ranges clearly, and pick smoothing for the input that has it.
func TestSmoothingPays(t *testing.T) {
	p := testPipeline(t)
	src, calib, ev := save(t, mlp()), npy(t, 3, 96, 9, 64), npy(t, 4, 96, 9, 64)
	sqnr := func(no bool) (float64, *report.Report) {
		rep, err := p.Quantize(context.Background(), Request{Model: src, Config: quant.Config{NoSmooth: no}, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep.Evaluation.SQNR, rep
	}
	plain, _ := sqnr(true)
	smooth, rep := sqnr(false)
	if smooth < plain+3 {
		t.Errorf("SQNR %.1f dB with smoothing, %.1f without", smooth, plain)
	}
	found := false
	for _, c := range rep.Tensors {
		found = found || c.Name == "a" && strings.HasPrefix(c.Method, "smooth")
	}
	if !found {
		t.Errorf("the hidden layer was not smoothed: %+v", rep.Tensors)
	}
}

// TestBiasCorrectionPays: coarse 7-bit per-tensor weights shift the means of
// channels; correction must bring the output nearer to FP32.
func TestBiasCorrectionPays(t *testing.T) {
	p := testPipeline(t)
	src, calib, ev := save(t, cnn()), npy(t, 3, 96, 3, 16, 16), npy(t, 4, 96, 3, 16, 16)
	sqnr := func(no bool) float64 {
		rep, err := p.Quantize(context.Background(), Request{Model: src, Config: quant.Config{NoBiasCorrection: no, Granularity: quant.PerTensor, ReduceRange: true}, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep.Evaluation.SQNR
	}
	without, with := sqnr(true), sqnr(false)
	if with < without+1 {
		t.Errorf("SQNR %.1f dB with bias correction, %.1f without", with, without)
	}
}

// TestOpsets: from opset 11, where DequantizeLinear has no axis, to the newest
// that the pinned runtime knows.
func TestOpsets(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		calib, ev := npy(t, 3, k.data...), npy(t, 4, k.data...)
		for _, opset := range []int64{11, 12, 13, 17, 21, newestOpset} {
			k.m.Opsets[""] = opset
			src := save(t, k.m)
			for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ} {
				rep, err := p.Quantize(context.Background(), Request{Model: src, Config: quant.Config{Target: target, Method: "minmax", NoBiasCorrection: true}, Calib: calib, Eval: ev, NoLatency: true, Force: true, Samples: 16, EvalSamples: 16}, nil)
				if err != nil {
					t.Errorf("%s opset %d %s: %v", k.name, opset, target, err)
				} else if rep.Evaluation.SQNR < 20 {
					t.Errorf("%s opset %d %s: SQNR %.1f dB", k.name, opset, target, rep.Evaluation.SQNR)
				}
			}
		}
	}
}

// newestOpset is the newest standard opset of ONNX Runtime 1.32.
const newestOpset = 25

func TestDeterministic(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		src, calib := save(t, k.m), npy(t, 3, k.data...)
		var first []byte
		for range 2 {
			out := filepath.Join(t.TempDir(), "q.onnx")
			if _, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: calib, NoLatency: true, Force: true}, nil); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if first != nil && !bytes.Equal(first, b) {
				t.Errorf("%s: two runs give different files", k.name)
			}
			first = b
		}
	}
}

func TestGateRefuses(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, mlp()), npy(t, 3, 96, 9, 64)
	out := filepath.Join(t.TempDir(), "q.onnx")
	// A cosine of 1 - 1e-9 cannot be met by eight bits.
	req := Request{Model: src, Out: out, Calib: calib, NoLatency: true, MaxLoss: 1e-9}
	rep, err := p.Quantize(context.Background(), req, nil)
	if !errors.Is(err, ErrRefused) || rep == nil || rep.Verdict.Status != report.Refused {
		t.Fatalf("error %v, want a refusal with its report", err)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Error("a refused model was written")
	}
	req.Force = true
	if rep, err = p.Quantize(context.Background(), req, nil); err != nil || rep.Verdict.Status != report.Forced {
		t.Fatalf("forced: %v", err)
	}
	if _, err := os.Stat(out); err != nil {
		t.Error("a forced model was not written")
	}
}

func TestRefusesBadRequests(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, mlp()), npy(t, 3, 8, 9, 64)
	q := filepath.Join(t.TempDir(), "q.onnx")
	if _, err := p.Quantize(context.Background(), Request{Model: src, Out: q, Calib: calib, NoLatency: true, Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		req  Request
		want error
	}{
		{"no calibration", Request{Model: src}, ErrNeedsCalibration},
		{"quantized already", Request{Model: q, Calib: calib}, quant.ErrQuantized},
		{"wrong shape", Request{Model: src, Calib: npy(t, 1, 8, 9, 63)}, data.ErrMismatch},
		{"no such data", Request{Model: src, Calib: "nowhere.npz"}, data.ErrNotFound},
		{"bad setting", Request{Model: src, Calib: calib, Config: quant.Config{Method: "?"}}, quant.ErrConfig},
	} {
		if _, err := p.Quantize(context.Background(), c.req, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	p := testPipeline(t)
	ctx, cancel := context.WithCancel(context.Background())
	dir := t.TempDir()
	_, err := p.Quantize(ctx, Request{Model: save(t, cnn()), Out: filepath.Join(dir, "q.onnx"), Calib: npy(t, 3, 96, 3, 16, 16)}, func(phase string, _ float64) {
		if phase == "bias correction" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	for _, d := range []string{dir, p.Scratch} {
		if left, _ := os.ReadDir(d); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestMiniLM is the product's main claim on the real encoder (fewer samples
// than benchmarks/fidelity, which holds the published numbers).
func TestMiniLM(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	p := testPipeline(t)
	rep, err := p.Quantize(context.Background(), Request{
		Model: need(t, "models/minilm-fused/model.onnx"), Calib: need(t, "data/bbc/calib.jsonl"), Eval: need(t, "data/bbc/test.jsonl"),
		EvalSamples: 40, Samples: 32, MaxTokens: 64, NoLatency: true,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := rep.Evaluation.Cosine; c.Mean < .997 || c.Min < .978 {
		t.Errorf("cosine mean %.4f minimum %.4f", c.Mean, c.Min)
	}
	if share, _ := rep.Integer.Share(); share < .85 {
		t.Errorf("%.2f of the work in integers", share)
	}
}

// TestDeadChannelKeepsItsBias: a channel whose weights are all zero (what
// folding a batch normalization with gamma 0 leaves) is its bias, also in INT8.
func TestDeadChannelKeepsItsBias(t *testing.T) {
	p := testPipeline(t)
	m := cnn()
	k := append([]float32(nil), tensor.View[float32](m.Graph.Init("k1"))...)
	clear(k[3*27 : 4*27])
	m.Graph.SetInit("k1", tensor.From(k, 16, 3, 3, 3))
	b := append([]float32(nil), tensor.View[float32](m.Graph.Init("b1"))...)
	b[3] = 5
	m.Graph.SetInit("b1", tensor.From(b, 16))
	for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ} {
		rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Calib: npy(t, 3, 96, 3, 16, 16), Eval: npy(t, 4, 96, 3, 16, 16), Config: quant.Config{Target: target}, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Evaluation.SQNR < 28 {
			t.Errorf("%s: SQNR %.1f dB", target, rep.Evaluation.SQNR)
		}
	}
}

// TestUnnamedOperatorsAreToldApart: two operators without names get the errors
// of their own outputs.
func TestUnnamedOperatorsAreToldApart(t *testing.T) {
	p := testPipeline(t)
	m := mlp()
	for _, n := range m.Graph.Nodes {
		n.Name = ""
	}
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Calib: npy(t, 3, 96, 9, 64), Eval: npy(t, 4, 96, 9, 64), NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Operators) != 2 || rep.Operators[0].SQNR == rep.Operators[1].SQNR || !rep.Operators[0].SQNR.Finite() {
		t.Errorf("operators: %+v", rep.Operators)
	}
}
