package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
)

// TestSearchTrials: a trial gives the bytes that quantize gives with its settings,
// whatever was tried before.
func TestSearchTrials(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		src, calib := save(t, k.m), npy(t, 3, k.data...)
		s := &searching{Pipeline: p, req: SearchRequest{Model: src, Calib: calib}, bases: map[quant.Target]*run{}}
		defer s.close()
		first, second := quant.Rule{Match: "up", Precision: quant.PrecisionFP16}, quant.Rule{Match: "down", Precision: quant.PrecisionINT4}
		if k.name == "cnn" {
			first, second = quant.Rule{Match: "dw", Precision: quant.PrecisionFP32}, quant.Rule{Match: "pw", Precision: quant.PrecisionFP16}
		}
		learn := []string{"up"}
		if k.name == "cnn" {
			learn = []string{"pw"}
		}
		for _, c := range []search.Candidate{
			{Scheme: quant.INT8, Target: quant.ORTCPU},
			{Scheme: quant.INT8, Target: quant.ORTCPU, Learn: learn},
			{Scheme: quant.INT8Dynamic, Target: quant.ORTCPU},
			{Scheme: quant.INT8, Target: quant.ORTCPU, Rules: []quant.Rule{first}},
			{Scheme: quant.INT8, Target: quant.ORTCPU, Rules: []quant.Rule{second}},
			{Scheme: quant.FP16, Target: quant.ORTCPU},
			{Scheme: quant.INT8, Target: quant.QDQ},
			{Scheme: quant.INT8, Target: quant.ORTCPU},
		} {
			cfg, err := quant.Config{Scheme: c.Scheme, Target: c.Target, Rules: c.Rules}.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			s.req.Config = cfg
			s.req.TimeLimit = time.Hour
			if len(c.Learn) > 0 {
				cfg.Weights, cfg.Learn = quant.BRECQ, c.Learn
			}
			dir := t.TempDir()
			r, err := s.build(context.Background(), c)
			if err != nil {
				t.Fatalf("%s: %s: %v", k.name, c.Key(), err)
			}
			got, want := filepath.Join(dir, "got.onnx"), filepath.Join(dir, "want.onnx")
			if err := r.m.Save(got, onnx.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Quantize(context.Background(), Request{Model: src, Out: want, Config: cfg, Calib: calib, NoLatency: true, Force: true}, nil); err != nil {
				t.Fatal(err)
			}
			a, err1 := os.ReadFile(got)
			b, err2 := os.ReadFile(want)
			if err1 != nil || err2 != nil || !slices.Equal(a, b) {
				t.Errorf("%s: %s is not what quantize makes (%v, %v)", k.name, c.Key(), err1, err2)
			}
		}
		if r := s.bases[quant.ORTCPU]; r.reuse.evidence == nil || len(r.reuse.choices) == 0 || len(r.reuse.int8) == 0 {
			t.Errorf("%s: nothing is kept for the next trial", k.name)
		}
	}
}

// TestSearchEqualizes: with it every trial is made of the equalized model, and another
// search does not go on in its journal.
func TestSearchEqualizes(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, relu(cnn())), npy(t, 3, 48, 3, 16, 16)
	var files [2][]byte
	for i, equalize := range []bool{false, true} {
		cfg, err := quant.Config{Equalize: equalize}.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		s := &searching{Pipeline: p, req: SearchRequest{Model: src, Calib: calib, Config: cfg}, bases: map[quant.Target]*run{}}
		defer s.close()
		r, err := s.build(context.Background(), search.Candidate{Scheme: quant.INT8, Target: quant.ORTCPU})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := r.m.Save(filepath.Join(dir, "got.onnx"), onnx.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Quantize(context.Background(), Request{Model: src, Out: filepath.Join(dir, "want.onnx"), Config: cfg, Calib: calib, NoLatency: true, Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		var err1, err2 error
		files[i], err1 = os.ReadFile(filepath.Join(dir, "got.onnx"))
		want, err2 := os.ReadFile(filepath.Join(dir, "want.onnx"))
		if err1 != nil || err2 != nil || !slices.Equal(files[i], want) {
			t.Errorf("equalize %v: not what quantize makes (%v, %v)", equalize, err1, err2)
		}
	}
	if slices.Equal(files[0], files[1]) {
		t.Error("equalization changes nothing")
	}
	out := t.TempDir()
	req := SearchRequest{Model: src, Calib: calib, Out: filepath.Join(out, "q.onnx"), Journal: filepath.Join(out, "j"), Samples: 16, EvalSamples: 16, MaxLoss: .5}
	ctx, cancel := context.WithCancel(context.Background())
	req.OnTrial = func(report.Search) error { cancel(); return nil }
	if _, err := p.Search(ctx, req, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	req.Config.Equalize = true
	if _, err := p.Search(context.Background(), req, nil); !errors.Is(err, search.ErrOther) {
		t.Errorf("another search in the same journal: %v", err)
	}
	req.Calib = filepath.Join(out, "none.npy")
	if _, err := p.Search(context.Background(), req, nil); err == nil {
		t.Error("no data to equalize by")
	}
}

// relu gives m an activation that equalization passes in place of each Clip.
func relu(m *graph.Model) *graph.Model {
	for _, n := range m.Graph.Nodes {
		if n.Is("Clip") {
			n.Op, n.Inputs = "Relu", n.Inputs[:1]
		}
	}
	return m
}

// TestSearchEnds: what ends a search, and what it leaves.
func TestSearchEnds(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, mlp()), npy(t, 3, 96, 9, 64)
	req := func(dir string) SearchRequest {
		return SearchRequest{Model: src, Calib: calib, Out: filepath.Join(dir, "q.onnx"), Journal: filepath.Join(dir, "j"), Samples: 32, EvalSamples: 32, MaxLoss: 0.5}
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	r := req(dir)
	r.OnTrial = func(s report.Search) error {
		cancel() // Ctrl-C after the first trial
		return nil
	}
	s, err := p.Search(ctx, r, nil)
	if !errors.Is(err, context.Canceled) || s == nil || len(s.Trials) != 1 || s.Stopped != "interrupted" {
		t.Fatalf("%+v, %v", s, err)
	}
	r = req(dir)
	s, err = p.Search(context.Background(), r, nil)
	if s == nil || s.Resumed != 1 || len(s.Trials) < 3 || err != nil && !errors.Is(err, ErrGoal) {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, x := range s.Trials {
		if x.Accepted && x.SpeedHi < 1 || x.Accepted && float64(x.LossHi) > 0.5 || !x.Measured() {
			t.Errorf("%+v", x)
		}
	}
	r = req(t.TempDir())
	r.TimeLimit = time.Nanosecond
	if _, err = p.Search(context.Background(), r, nil); !errors.Is(err, ErrGoal) {
		t.Errorf("no time: %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(r.Out)); len(entries) > 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestSharedInput: a 4-bit weight reads its input as it is, though another reader
// of it is smoothed.
func TestSharedInput(t *testing.T) {
	p := testPipeline(t)
	m := mlp()
	m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", "side", "a w3", "other"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("other", -1, -1, 32))
	m.Graph.SetInit("w3", m.Graph.Init("w2"))
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: npy(t, 3, 96, 9, 64), NoLatency: true, Force: true,
		Config: quant.Config{Rules: []quant.Rule{{Match: "side", Precision: quant.PrecisionINT4}, {Match: "up", Precision: quant.PrecisionFP32}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rep.Evaluation.Outputs {
		if o.Name == "other" && o.SQNR < 12 {
			t.Errorf("the 4-bit weight's output has %.1f dB", o.SQNR)
		}
	}
}
