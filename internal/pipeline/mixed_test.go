package pipeline

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
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
