package report

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/eval"
)

// TestDetectedForms: of a detector text and page show the boxes that agree, and no cosine,
// which it has not; of a token classifier the tokens.
func TestDetectedForms(t *testing.T) {
	score := eval.Score{Value: .93, Lo: .91, Hi: .95, N: 40, HigherIsBetter: true}
	detector := eval.Result{Samples: 40, Output: "boxes", Kind: eval.Detections, Cosine: eval.Summary{N: 40, Mean: .93},
		Detected: &eval.Detected{Agreement: score, Overlap: .88, Ref: 120, Quant: 118, Matched: 110}}
	tagger := eval.Result{Samples: 40, Output: "logits", Kind: eval.TokenClassifier, Cosine: eval.Summary{N: 40, Mean: .99}, Tokens: &score}
	for _, c := range []struct {
		name     string
		e        eval.Result
		has, not []string
	}{
		{"detector", detector, []string{"detections", "93.00 %", "110 boxes of FP32's 120 and 118"}, []string{"osine to FP32"}},
		{"tagger", tagger, []string{"class of token", "93.00 %", "osine to FP32"}, []string{"detections"}},
	} {
		r := Report{Model: Model{Name: "m.onnx"}, Evaluation: &c.e}
		var text, page bytes.Buffer
		if err := Text(&text, r); err != nil {
			t.Fatal(err)
		}
		if err := HTML(&page, r); err != nil {
			t.Fatal(err)
		}
		for form, s := range map[string]string{"text": text.String(), "page": strings.ReplaceAll(page.String(), "&#39;", "'")} {
			for _, want := range c.has {
				if !strings.Contains(s, want) {
					t.Errorf("%s: the %s lacks %q", c.name, form, want)
				}
			}
			for _, bad := range c.not {
				if strings.Contains(s, bad) {
					t.Errorf("%s: the %s has %q", c.name, form, bad)
				}
			}
		}
	}
}
