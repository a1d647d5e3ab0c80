package pipeline

import (
	"context"
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
)

// TestSensitivity: an operator whose 4-bit weight ruins the output is found, the
// others are not blamed, and leaving it out mends the whole.
func TestSensitivity(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		calib := npy(t, 3, k.data...)
		s, err := p.Sensitivity(context.Background(), SensitivityRequest{Model: save(t, k.m), Calib: calib, Top: -1, EvalSamples: 8}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.Samples != 8 || len(s.Operators) < 2 {
			t.Fatalf("%s: %d operators on %d samples", k.name, len(s.Operators), s.Samples)
		}
		for i, o := range s.Operators {
			if o.Only == nil || o.AllBut == nil || !o.Proxy.Finite() || !o.Weight.SQNR.Finite() {
				t.Fatalf("%s: %+v", k.name, o)
			}
			if i > 0 && o.Only.Cosine > s.Operators[i-1].Only.Cosine {
				t.Errorf("%s: %s is out of order", k.name, o.Name)
			}
		}
	}
	rules := []quant.Rule{{Match: "down", Precision: quant.PrecisionINT4}}
	s, err := p.Sensitivity(context.Background(), SensitivityRequest{Model: save(t, mlp()), Calib: npy(t, 3, 1, 4, 64), Top: 1, EvalSamples: 8,
		Config: quant.Config{Scheme: quant.Mixed, Rules: rules}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	worst := s.Operators[0]
	if worst.Name != "down" || worst.Only == nil || s.Operators[1].Only != nil || !(worst.AllBut.Cosine < s.Whole.Cosine/2) || worst.Remedy == "" {
		t.Errorf("%+v of %+v", worst, s.Whole)
	}
	// Four rows suffice to solve for the weights of 64 channels, not of 256.
	for _, o := range s.Operators {
		if want := map[string]quant.WeightMethod{"up": quant.GPTQ, "down": quant.MSEWeights}[o.Name]; o.Weight.Method != string(want) {
			t.Errorf("the codes of %s were found by %q, want %s", o.Name, o.Weight.Method, want)
		}
	}
	if _, err := p.Sensitivity(context.Background(), SensitivityRequest{Model: save(t, mlp())}, nil); !errors.Is(err, ErrNeedsCalibration) {
		t.Errorf("without data: %v", err)
	}
	if _, err := p.Sensitivity(context.Background(), SensitivityRequest{Model: save(t, mlp()), Calib: "x", Config: quant.Config{Scheme: quant.FP16}}, nil); !errors.Is(err, quant.ErrConfig) {
		t.Errorf("fp16: %v", err)
	}
}
