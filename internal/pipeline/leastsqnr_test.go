package pipeline

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestMinSQNR: one convolution with weights that 8 bits cannot hold stays in float,
// the others do not; what is met without changes nothing.
func TestMinSQNR(t *testing.T) {
	m := cnn()
	k2 := tensor.View[float32](m.Graph.Init("k2"))
	tensor.View[float32](m.Graph.Init("b1"))[0] = -100 // the input of dw's channel 0 is 0
	k2[4] = 5000                                       // and its weight takes all codes of a tensor
	p := testPipeline(t)
	src, calib := save(t, m), npy(t, 3, 60, 3, 16, 16)
	run := func(least float64) (*report.Report, string) {
		t.Helper()
		rep, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"), MinSQNR: least,
			Config: quant.Config{Granularity: quant.PerTensor}, Calib: calib, Samples: 24, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var kept []string
		for _, o := range rep.Operators {
			if o.Precision == "fp32" {
				kept = append(kept, o.Name)
			}
		}
		return rep, strings.Join(kept, " ")
	}
	plain, kept := run(0)
	before := float64(plain.Evaluation.SQNR)
	if kept != "" || before > 26 {
		t.Fatalf("without: %q in float, %.1f dB", kept, before)
	}
	rep, kept := run(30)
	if kept != "dw" || float64(rep.Evaluation.SQNR) < 29 {
		t.Errorf("30 dB asked for: %q in float, %.1f dB on other samples", kept, float64(rep.Evaluation.SQNR))
	}
	if last := rep.Passes[len(rep.Passes)-1]; last.Name != "keep-float" || last.Changed != 1 {
		t.Errorf("its pass: %+v", last)
	}
	met, kept := run(before - 5)
	if kept != "" || met.Quantized.SHA256 != plain.Quantized.SHA256 {
		t.Errorf("what is met already: %q in float, or another file", kept)
	}
	// More than the cap on work in float allows: the best within it, and a warning.
	if rep, kept = run(MaxMinSQNR); !strings.Contains(strings.Join(rep.Warnings, "\n"), "where 60.0 dB are asked for: more would leave over 30 %") || strings.Contains(kept, "stem") {
		t.Errorf("%q in float; %q", kept, rep.Warnings)
	}
}

// TestMinSQNRLeavesSomething: where rules leave one operator in 8 bits it is not kept in
// float too; the result stands and a warning says so.
func TestMinSQNRLeavesSomething(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, cnn()), npy(t, 3, 40, 3, 16, 16)
	rules := []quant.Rule{{Match: "*", Precision: quant.PrecisionFP32}, {Match: "dw", Precision: quant.PrecisionINT8}}
	rep, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"), MinSQNR: MaxMinSQNR,
		Config: quant.Config{Rules: rules}, Calib: calib, Samples: 16, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(rep.Warnings, "\n"); !strings.Contains(all, "more would leave nothing to quantize") {
		t.Errorf("%q", rep.Warnings)
	}
}

func TestMinSQNRRefuses(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, mlp()), npy(t, 3, 12, 4, 64)
	for _, c := range []struct {
		least float64
		cfg   quant.Config
		calib string
		want  string
	}{
		{-1, quant.Config{}, calib, "a least SQNR of -1 dB: give more than 0 and at most 60 dB"},
		{math.NaN(), quant.Config{}, calib, "a least SQNR of NaN dB"},
		{61, quant.Config{}, calib, "a least SQNR of 61 dB"},
		{24, quant.Config{Scheme: quant.FP16}, calib, "scheme fp16 has none to choose from"},
		{24, quant.Config{Scheme: quant.INT8Dynamic}, "", "a least SQNR is measured on calibration samples: give calibration data"},
	} {
		_, err := p.Quantize(context.Background(), Request{Model: src, MinSQNR: c.least, Config: c.cfg, Calib: c.calib}, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, quant.ErrConfig) && !errors.Is(err, ErrNeedsCalibration) {
			t.Errorf("%g, %v: %v", c.least, c.cfg.Scheme, err)
		}
	}
}

// TestMore: as few units as bring the noise down if it adds up, and always one.
func TestMore(t *testing.T) {
	units := []harm{{search.Unit{}, 6}, {search.Unit{}, 3}, {search.Unit{}, 1}}
	for _, c := range []struct {
		now         int
		noise, want float64
		n           int
	}{
		{0, 10, 10, 1}, {0, 10, 4, 1}, {0, 10, 3.9, 2}, {0, 20, 4, 2}, {0, 10, .5, 3}, {1, 4, 1, 2}, {1, 8, 1, 3}, {3, 1, .1, 3},
	} {
		if n := more(units, c.now, c.noise, c.want); n != c.n {
			t.Errorf("%+v: %d", c, n)
		}
	}
}
