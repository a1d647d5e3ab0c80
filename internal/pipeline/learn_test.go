package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
)

// TestLearningEnds: a run that is stopped while a block is learned ends at once, with the
// context's error, and leaves nothing: no model and no scratch folder.
func TestLearningEnds(t *testing.T) {
	p := testPipeline(t)
	p.Scratch = t.TempDir()
	src, calib, out := save(t, cnn()), npy(t, 3, 48, 3, 16, 16), filepath.Join(t.TempDir(), "q.onnx")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var at time.Time
	last := 0.0
	_, err := p.Quantize(ctx, Request{Model: src, Out: out, Config: quant.Config{Weights: quant.BRECQ}, Calib: calib, NoLatency: true, Force: true}, func(phase string, f float64) {
		if phase != "learn blocks" {
			return
		}
		if f < last || f > 1 {
			t.Errorf("progress %v after %v", f, last)
		}
		if last = f; f > 0.01 && at.IsZero() {
			at = time.Now()
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || at.IsZero() || last > 0.5 || time.Since(at) > 20*time.Second {
		t.Errorf("%v at %v, %v after it was stopped", err, last, time.Since(at))
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("there is a model")
	}
	if left, _ := os.ReadDir(p.Scratch); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// TestLearningBelowACeiling: blocks are learned below a ceiling from as many samples as fit,
// and where the fewest do not the error has the figures.
func TestLearningBelowACeiling(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, cnn()), npy(t, 3, 48, 3, 16, 16)
	now, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	req := Request{Model: src, Config: quant.Config{Weights: quant.BRECQ}, Calib: calib, NoLatency: true, Force: true, MaxMemory: max(now.RSS+512<<20, 1<<30)}
	rep, err := p.Quantize(context.Background(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := json.Marshal(rep.Passes); !strings.Contains(string(text), "relative error by block: ") || rep.Memory.RunPeak > req.MaxMemory {
		t.Errorf("%d bytes of %d: %s", rep.Memory.RunPeak, req.MaxMemory, text)
	}
	m := cnn()
	plan, err := quant.NewPlan(m, quant.Config{Scheme: quant.INT8, Target: quant.ORTCPU})
	if err != nil {
		t.Fatal(err)
	}
	b := &blocksPass{lab: &Lab{limits: &limits{unknown: 1 << 20}}, plans: []*quant.Plan{plan}, budget: blocksBytes}
	b.ceiling = func() (int64, int64) { return 1 << 30, 2 << 30 }
	if err := b.room(m); err != nil || b.budget >= 1<<30 {
		t.Errorf("%d bytes for samples: %v", b.budget, err)
	}
	b.ceiling = func() (int64, int64) { return 8 << 20, 2 << 30 }
	if err := b.room(m); !errors.Is(err, ErrCeiling) || !strings.Contains(err.Error(), "or use weights gptq") {
		t.Errorf("what does not fit: %v", err)
	}
}

// TestSearchLearns: who asks for it gets a trial with blocks learned where INT8 loses too much,
// which another start does not make again; with no time no block is begun.
func TestSearchLearns(t *testing.T) {
	p := testPipeline(t)
	dir := t.TempDir()
	req := SearchRequest{Model: save(t, cnn()), Calib: npy(t, 3, 96, 3, 16, 16), Out: filepath.Join(dir, "q.onnx"), Journal: filepath.Join(dir, "j"), Samples: 32, EvalSamples: 48, TimeLimit: time.Hour}
	req.Config.Weights = quant.BRECQ
	probe, err := p.Quantize(context.Background(), Request{Model: req.Model, Calib: req.Calib, Samples: req.Samples, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.MaxLoss = (1 - probe.Evaluation.Cosine.Mean) / 1.5 // which INT8 does not keep
	first, err := p.Search(context.Background(), req, nil)
	if first == nil {
		t.Fatal(err)
	}
	var learned *report.Trial
	for i, x := range first.Trials {
		if len(x.Learned) > 0 {
			learned = &first.Trials[i]
		}
	}
	if learned == nil || learned.Label != "INT8, blocks learned" || !learned.Loss.Finite() {
		t.Fatalf("no trial has learned blocks: %+v", first.Trials)
	}
	again, err := p.Search(context.Background(), req, nil)
	if again == nil || again.Resumed != len(first.Trials) {
		t.Errorf("a second start: %v, %+v", err, again)
	}
	s := &searching{Pipeline: p, req: req, bases: map[quant.Target]*run{}}
	defer s.close()
	s.req.Config, s.req.TimeLimit = mustDefaults(t, req.Config), time.Nanosecond
	r, err := s.build(context.Background(), search.Candidate{Scheme: quant.INT8, Target: quant.ORTCPU, Learn: learned.Learned})
	if err != nil || len(r.learnt) > 0 {
		t.Errorf("without time: %v, %q were learned", err, r.learnt)
	}
}

func mustDefaults(t *testing.T, c quant.Config) quant.Config {
	t.Helper()
	c, err := c.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
