package pipeline

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestMixedPrecision: one precision an operator, and the report says which.
func TestMixedPrecision(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, mlp()), npy(t, 3, 1, 4, 64)
	target := quant.ORTCPU
	run := func(rules ...quant.Rule) map[string]string {
		t.Helper()
		rep, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"), Config: quant.Config{Scheme: quant.Mixed, Target: target, Rules: rules},
			Calib: calib, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, o := range rep.Operators {
			got[o.Name] = o.Precision
		}
		if rep.Evaluation.SQNR < 10 {
			t.Errorf("%v: SQNR %.1f dB", rules, rep.Evaluation.SQNR)
		}
		return got
	}
	for _, c := range []struct {
		down string
		rule quant.Rule
	}{
		{"int4", quant.Rule{Match: "down", Precision: quant.PrecisionINT4}},
		{"int8", quant.Rule{Match: "down", Precision: quant.PrecisionDynamic}},
		{"fp16", quant.Rule{Match: "d*n", Precision: quant.PrecisionFP16}},
		{"fp32", quant.Rule{Match: "down", Precision: quant.PrecisionFP32}},
	} {
		if got := run(c.rule); got["down"] != c.down || got["up"] != "int8" {
			t.Errorf("%v: %v", c.rule, got)
		}
	}
	// The later rule wins.
	if got := run(quant.Rule{Match: "MatMul", Precision: quant.PrecisionINT4}, quant.Rule{Match: "up", Precision: quant.PrecisionINT8}); got["up"] != "int8" || got["down"] != "int4" {
		t.Errorf("two rules: %v", got)
	}
	target = quant.CPU // where both take their input by row
	if got := run(quant.Rule{Match: "down", Precision: quant.PrecisionINT4}); got["up"] != "int8" || got["down"] != "int4" {
		t.Errorf("target cpu: %v", got)
	}
}

// TestFloatConvolutionStaysFloat: ONNX Runtime quantizes the weight of a float
// convolution between codes with one scale for all channels, unless the form
// prevents it. Here a large weight of a channel that is always 0 would take all codes.
func TestFloatConvolutionStaysFloat(t *testing.T) {
	m := cnn()
	tensor.View[float32](m.Graph.Init("b1"))[0] = -100
	tensor.View[float32](m.Graph.Init("k2"))[4] = 5000
	p := testPipeline(t)
	src, calib := save(t, m), npy(t, 3, 40, 3, 16, 16)
	for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ, quant.QOperator, quant.CPU} {
		for _, precision := range []quant.Precision{quant.PrecisionFP32, quant.PrecisionFP16} {
			rep, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"),
				Config: quant.Config{Target: target, Rules: []quant.Rule{{Match: "dw", Precision: precision}}}, Calib: calib, Samples: 16, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := float64(rep.Evaluation.SQNR); got < 30 {
				t.Errorf("%s, %s: SQNR %.1f dB", target, precision, got)
			}
		}
	}
}

// TestFloatProductStaysFloat: the same of a matrix product and its bias, of which ONNX
// Runtime makes a Gemm, and of a convolution with weights in 4 bits, which it unpacks first.
func TestFloatProductStaysFloat(t *testing.T) {
	p := testPipeline(t)
	set := func(m *graph.Model, r *rand.Rand, name string, dims ...int64) []float32 {
		n, _ := tensor.Elems(dims)
		m.Graph.SetInit(name, tensor.From(gauss(r, int(n), .3), dims...))
		return tensor.View[float32](m.Graph.Init(name))
	}
	build := func(behind ...*graph.Node) *graph.Model {
		m := newModel([]*graph.Value{value("x", -1, 3, 8, 8)}, []*graph.Value{value("y", -1, 16)}, slices.Concat([]*graph.Node{
			node("Conv", "first", "x k1 b1", "c1"), node("Relu", "r1", "c1", "a1")}, behind, []*graph.Node{node("MatMul", "last", "a3 w2", "y")})...)
		r := rand.New(rand.NewPCG(3, 0))
		set(m, r, "k1", 32, 3, 3, 3)
		set(m, r, "b1", 32)[0] = -100 // so the first channel is always 0
		for i, k2 := 0, set(m, r, "k2", 32, 32, 1, 1); i < len(k2); i += 32 {
			k2[i] = 0
		}
		tensor.View[float32](m.Graph.Init("k2"))[0] = 5000
		set(m, r, "b2", 32)
		set(m, r, "k3", 24, 32, 3, 3)
		set(m, r, "b3", 24)
		set(m, r, "w", 32, 24)[0] = 5000
		set(m, r, "b", 24)
		set(m, r, "w2", 24, 16)
		return m
	}
	product := func(nodes ...*graph.Node) *graph.Model {
		return build(slices.Concat([]*graph.Node{node("GlobalAveragePool", "pool", "a1", "p"), node("Flatten", "flat", "p", "f")}, nodes, []*graph.Node{node("Relu", "r3", "g", "a3")})...)
	}
	calib := npy(t, 3, 40, 3, 8, 8)
	full := []quant.Precision{quant.PrecisionFP32, quant.PrecisionFP16}
	for name, c := range map[string]struct {
		m          *graph.Model
		precisions []quant.Precision
		sqnr       float64
	}{
		"MatMul": {product(node("MatMul", "kept", "f w", "h"), node("Add", "bias", "h b", "g")), full, 30},
		"Gemm":   {product(node("Gemm", "kept", "f w b", "g")), full, 30},
		"Conv": {build(node("Conv", "kept", "a1 k2 b2", "c2"), node("Relu", "r2", "c2", "a2"), node("Conv", "third", "a2 k3 b3", "c3"), node("Relu", "r4", "c3", "a4"),
			node("GlobalAveragePool", "pool", "a4", "p"), node("Flatten", "a3", "p", "a3")), []quant.Precision{quant.PrecisionINT4}, 10},
	} {
		src := save(t, c.m)
		for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ, quant.QOperator, quant.CPU} {
			for _, precision := range c.precisions {
				if precision == quant.PrecisionINT4 && target != quant.ORTCPU {
					continue
				}
				out := filepath.Join(t.TempDir(), "q.onnx")
				rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: calib, Samples: 16,
					Config: quant.Config{Target: target, NoSmooth: true, Rules: []quant.Rule{{Match: "kept", Precision: precision}}}, NoLatency: true, Force: true}, nil)
				if err != nil {
					t.Fatal(name, target, err)
				}
				q, err := graph.Open(out)
				if err != nil {
					t.Fatal(err)
				}
				ix := q.Graph.Index()
				for _, c := range q.Graph.Inits() {
					if len(ix.Uses(c)) == 0 {
						t.Errorf("%s, %s: %s: nothing reads %q, which is in the file", name, target, precision, c)
					}
				}
				q.Close()
				if got := float64(rep.Evaluation.SQNR); got < c.sqnr {
					t.Errorf("%s, %s: %s: SQNR %.1f dB", name, target, precision, got)
				}
			}
		}
	}
}

// TestProductsOfOldOpsets: below opset 13 ONNX Runtime refuses what it makes itself of a
// product with scales by channel, its bias and a quantizer behind them, unless the form
// prevents it.
func TestProductsOfOldOpsets(t *testing.T) {
	p := testPipeline(t)
	for _, form := range []string{"MatMul", "Gemm"} {
		m := newModel([]*graph.Value{value("x", -1, 32)}, []*graph.Value{value("y", -1, 16)})
		m.Opsets[""] = 12
		if m.Graph.Nodes = []*graph.Node{node("Gemm", "", "x w1 b1", "h")}; form == "MatMul" {
			m.Graph.Nodes = []*graph.Node{node("MatMul", "", "x w1", "p"), node("Add", "", "b1 p", "h")}
		}
		m.Graph.Nodes = append(m.Graph.Nodes, node("Relu", "", "h", "a"), node("MatMul", "", "a w2", "y"))
		r := rand.New(rand.NewPCG(3, 0))
		m.Graph.SetInit("w1", tensor.From(gauss(r, 32*24, .3), 32, 24))
		m.Graph.SetInit("b1", tensor.From(gauss(r, 24, 1), 24))
		m.Graph.SetInit("w2", tensor.From(gauss(r, 24*16, .3), 24, 16))
		src, calib := save(t, m), npy(t, 3, 64, 32)
		for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ, quant.QOperator, quant.CPU} {
			rep, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: calib,
				Config: quant.Config{Target: target, NoSmooth: true}, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Errorf("%s, %s: %v", form, target, err)
			} else if got := float64(rep.Evaluation.SQNR); got < 30 {
				t.Errorf("%s, %s: SQNR %.1f dB", form, target, got)
			}
		}
	}
}

func TestMixedRefuses(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, cnn()), npy(t, 3, 1, 3, 16, 16)
	for _, c := range []struct {
		rule quant.Rule
		want string
	}{
		{quant.Rule{Match: "stemm", Precision: quant.PrecisionINT8, Where: "recipe, line 3"}, `recipe, line 3: operators: "stemm" names no operator and no operator type of the model; did you mean "stem"?`},
		{quant.Rule{Match: "stem", Precision: quant.PrecisionINT4}, `operators: "stem": int4 is not possible: 27 weights an output: 4-bit blocks have 32`},
		{quant.Rule{Match: "dw", Precision: quant.PrecisionINT4}, `operators: "dw": int4 is not possible: it has groups, and 4-bit blocks reach over all input channels`},
		{quant.Rule{Match: "nothing*", Precision: quant.PrecisionINT4}, `operators: "nothing*" names no operator`},
	} {
		out := filepath.Join(t.TempDir(), "q.onnx")
		_, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: quant.Config{Rules: []quant.Rule{c.rule}}, Calib: calib, NoLatency: true, Force: true}, nil)
		if !errors.Is(err, quant.ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.rule, err)
		}
	}
}

// TestInt4Embeddings: ONNX Runtime looks up what the codes stand for.
func TestInt4Embeddings(t *testing.T) {
	p := testPipeline(t)
	const rows, width = 1024, 64
	m := newModel([]*graph.Value{{Name: "ids", Type: tensor.Int64, Dims: []graph.Dim{{N: -1, Name: "batch"}, {N: -1, Name: "length"}}}}, []*graph.Value{value("y", -1, -1, 32)},
		node("Gather", "words", "table ids", "e", graph.AttrInt("axis", 0)), node("MatMul", "proj", "e w", "y"))
	r := rand.New(rand.NewPCG(5, 0))
	table := gauss(r, rows*width, 1)
	m.Graph.SetInit("table", tensor.From(table, rows, width))
	m.Graph.SetInit("w", tensor.From(gauss(r, width*32, .1), width, 32))
	q := m.Clone()
	words := q.Graph.Nodes[0]
	if _, err := (quant.Embeddings{Precision: map[*graph.Node]quant.Precision{words: quant.PrecisionINT4}}).Run(context.Background(), q); err != nil {
		t.Fatal(err)
	}
	lab, err := NewLab(p.Engine, 1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	s, err := lab.Open(context.Background(), q, []string{"e"}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ids := []int64{0, 7, 1023, 7}
	res, err := s.Run(context.Background(), engine.Feeds{"ids": tensor.From(ids, 1, 4)}, []string{"e"})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	got, err := res.Tensors()["e"].F32()
	if err != nil {
		t.Fatal(err)
	}
	var signal, noise float64
	for i, id := range ids {
		for j := range width {
			want := table[int(id)*width+j]
			d := float64(got[i*width+j] - want)
			signal += float64(want) * float64(want)
			noise += d * d
		}
	}
	if noise > .02*signal {
		t.Errorf("the lookup is off by %.3g of its power", noise/signal)
	}
}
