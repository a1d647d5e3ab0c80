package eval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/tensor"
)

// list is a data set in memory.
type list struct {
	samples []Sample
	next    int
}

func (l *list) Next(ctx context.Context) (Sample, error) {
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	if l.next >= len(l.samples) {
		return Sample{}, io.EOF
	}
	l.next++
	return l.samples[l.next-1], nil
}

// vectors makes a data set of rows [1, d]; label -1 is none.
func vectors(labels []int, rows ...[]float32) *list {
	l := &list{}
	for i, r := range rows {
		s := Sample{Feeds: engine.Feeds{"x": tensor.From(r, 1, int64(len(r)))}, ID: fmt.Sprint("row ", i)}
		if i < len(labels) && labels[i] >= 0 {
			s.Label, s.HasLabel = labels[i], true
		}
		l.samples = append(l.samples, s)
	}
	return l
}

// session is a model that computes out from its only input x by f.
func session(t testing.TB, out string, f func(x *tensor.Tensor) *tensor.Tensor) engine.Session {
	t.Helper()
	return sessionOf(t, engine.IOSpec{
		Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, -1}}},
		Outputs: []engine.IO{{Name: out, Type: tensor.Float32, Dims: []int64{1, -1}}},
	}, func(in engine.Feeds) (engine.Feeds, error) { return engine.Feeds{out: f(in["x"])}, nil })
}

func sessionOf(t testing.TB, spec engine.IOSpec, run func(engine.Feeds) (engine.Feeds, error)) engine.Session {
	t.Helper()
	var e fake.Engine
	e.Add(fake.Any, fake.Model{Spec: spec, Run: run})
	s, err := e.OpenFile(t.Context(), "m", engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func same(x *tensor.Tensor) *tensor.Tensor { return x }

// each applies f to every element.
func each(f func(i int, v float32) float32) func(*tensor.Tensor) *tensor.Tensor {
	return func(x *tensor.Tensor) *tensor.Tensor {
		v, _ := x.F32()
		r := make([]float32, len(v))
		for i := range v {
			r[i] = f(i, v[i])
		}
		return tensor.From(r, x.Dims...)
	}
}

func TestCompareClassifier(t *testing.T) {
	set := func() *list {
		return vectors([]int{0, 1, 1, 0, -1}, []float32{2, 1, 0}, []float32{0, 1, 0}, []float32{3, 0, 1}, []float32{1, 0, .9}, []float32{0, 0, 1})
	}
	// The quantized model loses .2 in class 0: sample 3 flips to class 2.
	quant := session(t, "logits", each(func(i int, v float32) float32 {
		if i == 0 {
			return v - .2
		}
		return v
	}))
	done := 0
	r, err := Compare(t.Context(), session(t, "logits", same), quant, set(), Options{Progress: func(n int) { done = n }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Samples != 5 || r.Labelled != 4 || done != 5 || r.Kind != Classifier || r.Output != "logits" {
		t.Errorf("got %+v", r)
	}
	if *r.Paired != (Paired{BothRight: 2, RefOnly: 1, Neither: 1}) || r.RefAccuracy.Value != .75 || r.QuantAccuracy.Value != .5 || r.Difference.Value != -.25 {
		t.Errorf("accuracy %+v, difference %+v", r.Paired, r.Difference)
	}
	if r.Agreement.Value != .8 || r.Agreement.N != 5 {
		t.Errorf("agreement %+v, expected 4 of 5", r.Agreement)
	}
	if want := 10 * math.Log10((4+1+1+9+1+1+.81+1)/(5*.04)); !near(r.SQNR, want, 1e-6) {
		t.Errorf("SQNR %g, expected %g", r.SQNR, want)
	}
	if want := (3*2.8 + 1) / math.Sqrt(10*(2.8*2.8+1)); !near(r.Cosines[2], want, 1e-6) {
		t.Errorf("cosine of sample 2 is %g, expected %g", r.Cosines[2], want)
	}
	if r.Neighbours != nil || r.TokenCosine != nil || r.Latency != nil {
		t.Errorf("measures that do not apply: %+v", r)
	}
	if len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "1 of 5 samples have no label") {
		t.Errorf("warnings %q", r.Warnings)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestCompareBroken(t *testing.T) {
	quant := session(t, "logits", each(func(i int, v float32) float32 {
		if v == 7 {
			return nan32
		}
		return v
	}))
	r, err := Compare(t.Context(), session(t, "logits", same), quant, vectors([]int{0, 0}, []float32{7, 1}, []float32{2, 1}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.BrokenSamples != 1 || r.QuantAccuracy.Value != .5 || r.RefAccuracy.Value != 1 || r.Cosines[0] != 0 || r.Agreement.Value != .5 {
		t.Errorf("got %+v", r)
	}
	if refusals, _ := (Gate{}).Check(r); len(refusals) != 1 || !strings.Contains(refusals[0], "NaN") {
		t.Errorf("refusals %q", refusals)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

// TestCompareEmbedding: padding takes no part in any measure.
func TestCompareEmbedding(t *testing.T) {
	spec := engine.IOSpec{
		Inputs: []engine.IO{{Name: "ids", Type: tensor.Float32, Dims: []int64{1, -1}}, {Name: "attention_mask", Type: tensor.Int64, Dims: []int64{1, -1}}},
		Outputs: []engine.IO{{Name: "last_hidden_state", Type: tensor.Float32, Dims: []int64{1, -1, 2}},
			{Name: "pooler_output", Type: tensor.Float32, Dims: []int64{1, 2}}},
	}
	// Token i of value v becomes (v, 1); the quantized model ruins masked tokens
	// and, when off is set, swaps the two numbers of the last real one.
	model := func(off bool) engine.Session {
		return sessionOf(t, spec, func(in engine.Feeds) (engine.Feeds, error) {
			ids, _ := in["ids"].F32()
			mask := tensor.View[int64](in["attention_mask"])
			var h []float32
			last := 0
			for i, v := range ids {
				h = append(h, v, 1)
				if mask[i] != 0 {
					last = i
				} else if off {
					h[2*i] = nan32
				}
			}
			if off {
				h[2*last], h[2*last+1] = h[2*last+1], h[2*last]
			}
			return engine.Feeds{"last_hidden_state": tensor.From(h, 1, int64(len(ids)), 2), "pooler_output": tensor.From(h[:2], 1, 2)}, nil
		})
	}
	l := &list{}
	for _, ids := range [][]float32{{1, 2, 9}, {3, 3, 9}, {-2, 5, 9}} {
		l.samples = append(l.samples, Sample{Feeds: engine.Feeds{"ids": tensor.From(ids, 1, 3), "attention_mask": tensor.From([]int64{1, 1, 0}, 1, 3)}})
	}
	r, err := Compare(t.Context(), model(false), model(true), l, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != Embedding || r.BrokenSamples != 0 || r.Fidelity.Count != 3*2*2 || r.TokenCosine.N != 6 || r.Neighbours.N != 3 {
		t.Errorf("got %+v", r)
	}
	// Sample 0: FP32 pools to (1.5, 1), the other to (1, 1.5).
	if want := (1.5 + 1.5) / (1.5*1.5 + 1); !near(r.Cosines[0], want, 1e-6) {
		t.Errorf("cosine %g, expected %g", r.Cosines[0], want)
	}
	// The worst token is (5, 1) against (1, 5).
	if want := 10. / 26; !near(r.TokenCosine.Min, want, 1e-6) {
		t.Errorf("worst token %g, expected %g", r.TokenCosine.Min, want)
	}
	if len(r.Outputs) != 2 || r.Outputs[0].Name != "last_hidden_state" || r.Outputs[1].SQNR != MaxSQNR {
		t.Errorf("outputs %+v", r.Outputs)
	}
}

func TestCompareRefuses(t *testing.T) {
	boom := errors.New("boom")
	fails := sessionOf(t, session(t, "logits", same).Spec(), func(engine.Feeds) (engine.Feeds, error) { return nil, boom })
	row := []float32{1, 2}
	ok := func() *list { return vectors([]int{1}, row) }
	good := session(t, "logits", same)
	longer := session(t, "logits", func(x *tensor.Tensor) *tensor.Tensor { return tensor.From([]float32{1, 2, 3}, 1, 3) })
	text := session(t, "logits", func(*tensor.Tensor) *tensor.Tensor {
		return &tensor.Tensor{Type: tensor.String, Dims: []int64{1}, Strings: [][]byte{[]byte("a")}}
	})
	for _, c := range []struct {
		name       string
		ref, quant engine.Session
		data       Samples
		o          Options
		want       error
		says       string
	}{
		{"no samples", good, good, &list{}, Options{}, ErrNoSamples, ""},
		{"label out of range", good, good, vectors([]int{2}, row), Options{}, data.ErrLabel, "row 0"},
		{"other shape", good, longer, ok(), Options{}, ErrOutput, "[1 3]"},
		{"strings", good, text, ok(), Options{}, ErrOutput, "BYTES"},
		{"unknown output", good, good, ok(), Options{Output: "nope"}, ErrOutput, "nope"},
		{"unknown kind", good, good, ok(), Options{Kind: "odd"}, ErrOptions, "odd"},
		{"negative", good, good, ok(), Options{MaxSamples: -1}, ErrOptions, ""},
		{"reference fails", fails, good, ok(), Options{}, boom, "reference"},
		{"quantized fails", good, fails, ok(), Options{}, boom, "quantized"},
		{"wrong feeds", good, good, &list{samples: []Sample{{Feeds: engine.Feeds{}}}}, Options{}, engine.ErrInput, ""},
		{"negative taps", good, good, ok(), Options{TapSamples: -1}, ErrOptions, "-1"},
		{"inner fails", good, good, ok(), Options{Inner: fails, Taps: []Tap{{"x", "logits", "logits"}}}, boom, "inside"},
		{"unknown tap", good, good, ok(), Options{Taps: []Tap{{"h", "h", "h"}}}, engine.ErrInput, "h"},
	} {
		r, err := Compare(t.Context(), c.ref, c.quant, c.data, c.o)
		if !errors.Is(err, c.want) || r != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, expected %v saying %q", c.name, err, c.want, c.says)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, good, good, ok(), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Taps may come from another session of the quantized model than the outputs, and from
// the first samples only.
func TestCompareInner(t *testing.T) {
	tapped := func(runs *int, h float32) engine.Session {
		io := func(name string) engine.IO {
			return engine.IO{Name: name, Type: tensor.Float32, Dims: []int64{1, -1}}
		}
		return sessionOf(t, engine.IOSpec{Inputs: []engine.IO{io("x")}, Outputs: []engine.IO{io("logits"), io("h")}}, func(in engine.Feeds) (engine.Feeds, error) {
			*runs++
			return engine.Feeds{"logits": in["x"], "h": tensor.From([]float32{h}, 1, 1)}, nil
		})
	}
	var refs, inners int
	set := vectors(nil, []float32{1, 2}, []float32{3, 4}, []float32{5, 6})
	r, err := Compare(t.Context(), tapped(&refs, 10), session(t, "logits", same), set, Options{Taps: []Tap{{"h", "h", "h"}, {"out", "logits", "logits"}}, Inner: tapped(&inners, 11), TapSamples: 2})
	if err != nil {
		t.Fatal(err)
	}
	if r.Samples != 3 || refs != 3 || inners != 2 || len(r.Outputs) != 1 || r.Outputs[0].Name != "logits" || r.SQNR != MaxSQNR || r.Agreement.N != 3 {
		t.Errorf("%d runs of the reference, %d of the inner model: %+v", refs, inners, r)
	}
	if len(r.Tensors) != 2 || r.Tensors[0].Name != "h" || !near(r.Tensors[0].SQNR, 20, 1e-6) || r.Tensors[0].Count != 2 || r.Tensors[1].Count != 4 {
		t.Errorf("taps %+v", r.Tensors)
	}
}

func TestCompareOutputsByPosition(t *testing.T) {
	r, err := Compare(t.Context(), session(t, "logits", same), session(t, "logits_q", same), vectors(nil, []float32{1, 2}), Options{})
	if err != nil || r.Output != "logits" || r.SQNR != MaxSQNR || r.Agreement.Value != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestCompareStrings: outputs that are texts, as names of classes are, do not keep
// those of numbers from being compared.
func TestCompareStrings(t *testing.T) {
	named := func(scores ...string) engine.Session {
		spec := engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, -1}}}, Outputs: []engine.IO{{Name: "class", Type: tensor.String, Dims: []int64{1}}}}
		for _, s := range scores {
			spec.Outputs = append(spec.Outputs, engine.IO{Name: s, Type: tensor.Float32, Dims: []int64{1, -1}})
		}
		return sessionOf(t, spec, func(in engine.Feeds) (engine.Feeds, error) {
			out := engine.Feeds{"class": {Type: tensor.String, Dims: []int64{1}}}
			for _, s := range scores {
				out[s] = in["x"]
			}
			return out, nil
		})
	}
	set := func() *list { return vectors(nil, []float32{1, 2}) }
	for name, o := range map[string]Options{"by name": {}, "only tapped": {Taps: []Tap{{"logits", "logits", "logits"}}}} {
		r, err := Compare(t.Context(), named("logits"), named("logits"), set(), o)
		if err != nil || r.Output != "logits" || len(r.Outputs) != 1 || r.SQNR != MaxSQNR {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
	if _, err := Compare(t.Context(), named(), named(), set(), Options{}); !errors.Is(err, ErrOutput) || !strings.Contains(err.Error(), "no output of numbers") {
		t.Errorf("texts alone: %v", err)
	}
}

func TestEvaluateErrors(t *testing.T) {
	s := session(t, "logits", same)
	for _, c := range []struct {
		name string
		sess engine.Session
		data Samples
		want error
	}{
		{"empty", s, &list{}, ErrNoSamples},
		{"no labels", s, vectors(nil, []float32{1, 2}), data.ErrNoLabels},
		{"label", s, vectors([]int{5}, []float32{1, 2}), data.ErrLabel},
		{"one number", s, vectors([]int{0}, []float32{1}), ErrOutput},
		{"embedding", session(t, "sentence_embedding", same), vectors([]int{0}, []float32{1, 2}), ErrOutput},
	} {
		if e, err := Evaluate(t.Context(), c.sess, c.data, Options{}); !errors.Is(err, c.want) || e != nil {
			t.Errorf("%s: got %v, expected %v", c.name, err, c.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		name string
		dims []int64
		want Kind
	}{
		{"logits", []int64{1, 10}, Classifier}, {"logits", []int64{-1, -1}, Classifier}, {"Softmax:0", []int64{1, 1000, 1, 1}, Classifier},
		{"y", []int64{1, 1}, Other}, {"y", []int64{1}, Other}, {"y", nil, Other}, {"map", []int64{1, 3, 8, 8}, Other},
		{"last_hidden_state", []int64{1, -1, 384}, Embedding}, {"sentence_embedding", []int64{1, 384}, Embedding}, {"pooler_output", []int64{1, 384}, Embedding},
	} {
		if got := KindOf(c.name, c.dims); got != c.want {
			t.Errorf("%s%v is %q, expected %q", c.name, c.dims, got, c.want)
		}
	}
}

func TestArgMax(t *testing.T) {
	for _, c := range []struct {
		x    []float32
		want int
	}{{nil, -1}, {[]float32{1}, 0}, {[]float32{1, 3, 3}, 1}, {[]float32{-2, -1}, 1}, {[]float32{1, nan32}, -1}, {[]float32{nan32, 1}, -1}, {[]float32{-inf32, inf32}, 1}} {
		if got := ArgMax(c.x); got != c.want {
			t.Errorf("%v: %d, expected %d", c.x, got, c.want)
		}
	}
}

func TestGate(t *testing.T) {
	tenth, tight := .1, .999
	score := func(p Paired) *Result {
		a, b, d := p.Ref(), p.Quant(), p.Difference()
		return &Result{Samples: p.N(), Labelled: p.N(), RefAccuracy: &a, QuantAccuracy: &b, Difference: &d, Cosine: Summary{N: 1, Mean: .99}}
	}
	speed := func(lo, mid, hi, p99 float64) *Result {
		return &Result{Cosine: Summary{N: 1, Mean: .99}, Latency: &Latency{Candidates: []LatencyStats{{}, {P99MS: p99}}, Ratios: []Ratio{{}, {Median: mid, Lo: lo, Hi: hi, N: 50}}}}
	}
	for _, c := range []struct {
		name              string
		g                 Gate
		r                 *Result
		refused, warnings string
	}{
		{"same", Gate{MaxLoss: &tenth}, score(Paired{BothRight: 900, Neither: 100}), "", ""},
		{"within", Gate{MaxLoss: &tenth}, score(Paired{BothRight: 880, RefOnly: 20, Neither: 100}), "", ""},
		{"past", Gate{MaxLoss: &tenth}, score(Paired{BothRight: 800, RefOnly: 100, Neither: 100}), "accuracy fell", ""},
		{"unproven", Gate{MaxLoss: &tenth}, score(Paired{BothRight: 17, RefOnly: 1, Neither: 2}), "", "do not prove"},
		{"no bar", Gate{}, score(Paired{RefOnly: 100}), "", ""},
		{"cosine", Gate{MinCosine: &tight}, speed(2, 3, 4, 0), "mean cosine", ""},
		{"labels decide", Gate{MaxLoss: &tenth, MinCosine: &tight}, score(Paired{BothRight: 900, Neither: 100}), "", ""},
		{"faster", Gate{SLOMS: 50}, speed(2, 3, 4, 40), "", ""},
		{"slower", Gate{}, speed(.7, .8, .9, 40), "slower", ""},
		{"slower allowed", Gate{AllowSlower: true}, speed(.7, .8, .9, 40), "", "not proven faster"},
		{"perhaps faster", Gate{}, speed(.9, 1.1, 1.3, 40), "", "not proven faster"},
		{"late", Gate{SLOMS: 50}, speed(2, 3, 4, 60), "", "past the target of 50 ms"},
		{"late by less than 1 ms", Gate{SLOMS: 2.5}, speed(2, 3, 4, 3), "", "past the target of 2.5 ms"},
	} {
		refused, warned := c.g.Check(c.r)
		for _, x := range []struct {
			got  []string
			want string
		}{{refused, c.refused}, {warned, c.warnings}} {
			if (x.want == "") != (len(x.got) == 0) || len(x.got) > 0 && !strings.Contains(x.got[0], x.want) {
				t.Errorf("%s: got %q, expected %q", c.name, x.got, x.want)
			}
		}
	}
}

// TestRealModels compares two real models in ONNX Runtime with what NumPy says
// about them (testdata/models.py).
func TestRealModels(t *testing.T) {
	ref, quant := open(t, "testdata/fp32.onnx"), open(t, "testdata/int8.onnx")
	var want struct {
		Samples       int
		RefAccuracy   float64   `json:"ref_accuracy"`
		QuantAccuracy float64   `json:"quant_accuracy"`
		Difference    float64   `json:"difference"`
		Agreement     float64   `json:"agreement"`
		CosineMean    float64   `json:"cosine_mean"`
		CosineMin     float64   `json:"cosine_min"`
		CosineP5      float64   `json:"cosine_p5"`
		SQNR          float64   `json:"sqnr"`
		SQNRHidden    float64   `json:"sqnr_hidden"`
		MaxAbs        float64   `json:"max_abs"`
		ByClass       []float64 `json:"by_class"`
	}
	b, err := os.ReadFile("testdata/models.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	set, err := data.Open("testdata/samples.npz", data.Options{Spec: ref.Spec()})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	r, err := Compare(t.Context(), ref, quant, set, Options{
		Output: "logits", Taps: []Tap{{"/relu", "h2", "h2"}}, Latency: &InterleaveOptions{Warmup: 2, Rounds: 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Integer kernels differ between processors (with and without VNNI) in the
	// last bit of a float scale, far below what is compared here.
	const tol = 1e-3
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"samples", float64(r.Samples), float64(want.Samples)}, {"FP32 accuracy", r.RefAccuracy.Value, want.RefAccuracy}, {"INT8 accuracy", r.QuantAccuracy.Value, want.QuantAccuracy},
		{"difference", r.Difference.Value, want.Difference}, {"agreement", r.Agreement.Value, want.Agreement}, {"cosine", r.Cosine.Mean, want.CosineMean}, {"cosine minimum", r.Cosine.Min, want.CosineMin},
		{"cosine p5", r.Cosine.P5, want.CosineP5}, {"SQNR", r.SQNR, want.SQNR}, {"largest difference", r.Fidelity.MaxAbs, want.MaxAbs}, {"hidden SQNR", r.Tensors[0].SQNR, want.SQNRHidden},
	} {
		if !near(c.got, c.want, tol) {
			t.Errorf("%s: %g, expected %g", c.name, c.got, c.want)
		}
	}
	if l := r.Latency; l == nil || l.Candidates[1].N != 20 || !(l.Ratios[1].Median > 0) {
		t.Errorf("latency %+v", l)
	}
	if len(r.Outputs) != 1 || r.CosineMean.Lo > want.CosineMean || r.CosineMean.Hi < want.CosineMean {
		t.Errorf("outputs %+v, cosine %+v", r.Outputs, r.CosineMean)
	}

	if err := set.Reset(); err != nil {
		t.Fatal(err)
	}
	e, err := Evaluate(t.Context(), ref, set, Options{Output: "logits"})
	if err != nil {
		t.Fatal(err)
	}
	if !near(e.Accuracy.Value, want.RefAccuracy, tol) || e.Classes != len(want.ByClass) {
		t.Errorf("evaluated %+v", e)
	}
	for i, s := range e.ByClass {
		if !near(s.Value, want.ByClass[i], tol) {
			t.Errorf("class %d: %g, expected %g", i, s.Value, want.ByClass[i])
		}
	}
	if !slices.IsSortedFunc(r.Tensors, func(a, b TensorFidelity) int { return int(math.Copysign(1, a.SQNR-b.SQNR)) }) {
		t.Error("tensors are not ranked")
	}
}

func open(t *testing.T, path string) engine.Session {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("ONNX Runtime is missing: %v", err)
	}
	s, err := e.OpenFile(t.Context(), path, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestCompareBlind: where FP32 itself gives no number, nothing was proven and
// the gate says so.
func TestCompareBlind(t *testing.T) {
	r, err := Compare(t.Context(), session(t, "logits", same), session(t, "logits", same), vectors([]int{0, 0}, []float32{nan32, nan32}, []float32{2, 1}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.BlindSamples != 1 || r.Cosines[0] != 0 || r.BrokenSamples != 0 {
		t.Errorf("got %+v", r)
	}
	if refusals, _ := (Gate{}).Check(r); len(refusals) != 1 || !strings.Contains(refusals[0], "FP32 itself") {
		t.Errorf("refusals %q", refusals)
	}
}
