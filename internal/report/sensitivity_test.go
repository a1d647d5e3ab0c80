package report

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func sensitivitySample() Sensitivity {
	loss := func(v float64) *Loss {
		return &Loss{Cosine: Num(v), SQNR: 20, Accuracy: Num(math.NaN()), Disagreement: Num(math.NaN())}
	}
	s := Sensitivity{Model: Model{Name: "m.onnx"}, Samples: 8, Whole: *loss(.2), Operators: []OperatorLoss{
		{Name: "rest", Op: "MatMul", Precision: "int8", Proxy: .5, Weight: WeightFacts{SQNR: 40}},
		{Name: "quiet", Op: "MatMul", Precision: "int8", Proxy: .1, Weight: WeightFacts{SQNR: 40}, Only: loss(.001), AllBut: loss(.2)},
		{Name: "<b>loud</b>", Op: "Conv", Precision: "int8", MACs: 10, Proxy: .2, Weight: WeightFacts{SQNR: 40}, Only: loss(.1), AllBut: loss(.05)},
		{Name: "weight", Op: "MatMul", Precision: "int8", MACs: 30, Proxy: .3, Weight: WeightFacts{Method: "hqq", SQNR: 20}, Only: loss(.02), AllBut: loss(.1)},
		{Name: "small", Op: "MatMul", Precision: "int4", Proxy: .3, Weight: WeightFacts{SQNR: 20}, Only: loss(.03), AllBut: loss(.1)},
		{Name: "outlier", Op: "MatMul", Precision: "int8", Proxy: .3, Weight: WeightFacts{SQNR: 40}, Outlier: 50, Only: loss(.01), AllBut: loss(.1)},
	}}
	s.Rank()
	return s
}

func TestSensitivityRank(t *testing.T) {
	var names []string
	remedies := map[string]string{}
	for _, o := range sensitivitySample().Operators {
		names = append(names, o.Name)
		remedies[o.Name] = o.Remedy
	}
	if got := strings.Join(names, " "); got != "<b>loud</b> small weight outlier quiet rest" {
		t.Errorf("order %s", got)
	}
	for name, want := range map[string]string{"<b>loud</b>": "fp32} (25.0 % of the work), or as few as suffice: --min-sqnr", "small": "int8-dynamic", "weight": "its weight loses most by hqq", "outlier": "outlier channels"} {
		if !strings.Contains(remedies[name], want) {
			t.Errorf("%s: %q", name, remedies[name])
		}
	}
	conv := OperatorLoss{Name: "c", Op: "Conv", Precision: "int8", Weight: WeightFacts{SQNR: 40}}
	if got := conv.remedy(.1, .2, false, false); !strings.Contains(got, "--equalize; then keep it") {
		t.Errorf("a convolution: %q", got)
	}
	if got := conv.remedy(.1, .2, true, false); !strings.Contains(got, "--method mse") || strings.Contains(got, "--equalize") {
		t.Errorf("an equalized convolution: %q", got)
	}
	for _, share := range []float64{.1, .9} {
		if got := conv.remedy(share, .2, true, true); !strings.Contains(got, "--weights brecq (of this one alone: --learn c); then keep it in float") {
			t.Errorf("a convolution whose block can be learned: %q", got)
		}
	}
	conv.Weight = WeightFacts{SQNR: 20, Method: "gptq"}
	if got := conv.remedy(.1, .2, true, true); !strings.Contains(got, "for gptq, or learn its block from the float model: --weights brecq") {
		t.Errorf("a weight that loses most: %q", got)
	}
	linear := OperatorLoss{Name: "l", Op: "MatMul", Precision: "int8", Weight: WeightFacts{SQNR: 40}}
	if got := linear.remedy(.1, .2, true, true); strings.Contains(got, "brecq") {
		t.Errorf("a matrix product: %q", got)
	}
	if remedies["quiet"] != "" || remedies["rest"] != "" {
		t.Errorf("remedies without need: %q", remedies)
	}
}

func TestSensitivityForms(t *testing.T) {
	s := sensitivitySample()
	s.Warnings = []string{"few samples"}
	var page, text, doc bytes.Buffer
	if err := SensitivityHTML(&page, s); err != nil {
		t.Fatal(err)
	}
	if p := page.String(); strings.Contains(p, "<b>loud") || !strings.Contains(p, "&lt;b&gt;loud") || strings.Contains(p, "NaN") || strings.Contains(p, "<script") {
		t.Error("the page does not escape names, or shows NaN")
	}
	if err := SensitivityText(&text, s); err != nil || !strings.Contains(text.String(), "-> keep it in float") || !strings.HasSuffix(text.String(), "warning: few samples\n") {
		t.Errorf("%v: %s", err, text.String())
	}
	if err := WriteSensitivityJSON(&doc, s); err != nil {
		t.Fatal(err)
	}
	var back Sensitivity
	if err := json.Unmarshal(doc.Bytes(), &back); err != nil || back.Schema != SensitivitySchema || len(back.Operators) != 6 || back.Operators[5].Only != nil {
		t.Errorf("%v: %+v", err, back)
	}
}
