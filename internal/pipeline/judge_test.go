package pipeline

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/report"
)

// One session of the float model answers for operators and result where no latency
// is measured; else there are two. Both find the same.
func TestOneFloatSessionJudgesAlike(t *testing.T) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			p := testPipeline(t)
			counting := &opened{Engine: p.Engine}
			p.Engine = counting
			model, calib, ev := save(t, c.m), npy(t, 3, c.data...), npy(t, 4, c.data...)
			var reps [2]*report.Report
			var sessions [2]int64
			for i := range reps {
				before := counting.n.Load()
				rep, err := p.Quantize(t.Context(), Request{Model: model, Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: calib, Eval: ev, Force: true, NoLatency: i == 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				reps[i], sessions[i] = rep, counting.n.Load()-before
			}
			if sessions[1] >= sessions[0] {
				t.Errorf("%d sessions without latency, %d with it: the float model is opened twice", sessions[1], sessions[0])
			}
			a, b := reps[0], reps[1]
			measured := 0
			for i, o := range a.Operators {
				x, y := float64(o.SQNR), float64(b.Operators[i].SQNR)
				if math.IsNaN(x) != math.IsNaN(y) || math.Abs(x-y) > .1 {
					t.Errorf("operator %s: %g dB, with one session %g dB", o.Name, x, y)
				}
				if !math.IsNaN(x) {
					measured++
				}
			}
			if measured == 0 || a.Evaluation.Samples != b.Evaluation.Samples || math.Abs(a.Evaluation.SQNR-b.Evaluation.SQNR) > .1 || len(a.Evaluation.Outputs) != len(b.Evaluation.Outputs) || len(b.Evaluation.Tensors) != 0 {
				t.Errorf("%d operators measured; %d samples, %g dB, with one session %d, %g dB", measured, a.Evaluation.Samples, a.Evaluation.SQNR, b.Evaluation.Samples, b.Evaluation.SQNR)
			}
		})
	}
}

// opened counts the sessions that an engine opens.
type opened struct {
	engine.Engine
	n atomic.Int64
}

func (e *opened) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	e.n.Add(1)
	return e.Engine.OpenFile(ctx, path, o)
}

// Both peaks are measured at once, before latency is; what fails is a warning; and a
// run that ends before them ends them.
func TestPeaksBesideTheRun(t *testing.T) {
	c := cases()[0]
	model, calib, ev := save(t, c.m), npy(t, 3, c.data...), npy(t, 4, c.data...)
	quantize := func(ctx context.Context, p *Pipeline) (*report.Report, error) {
		return p.Quantize(ctx, Request{Model: model, Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: calib, Eval: ev, Force: true, NoLatency: true}, nil)
	}
	p := testPipeline(t)
	begun := make(chan struct{}, 2)
	p.PeakMemory = func(ctx context.Context, path string) (int64, error) {
		begun <- struct{}{}
		for len(begun) < 2 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		if path == model {
			return 7, nil
		}
		return 5, nil
	}
	rep, err := quantize(t.Context(), p)
	if err != nil || rep.Memory.FP32Peak != 7 || rep.Memory.QuantPeak != 5 {
		t.Fatalf("%v, memory %+v", err, rep.Memory)
	}

	p.PeakMemory = func(_ context.Context, path string) (int64, error) {
		if path == model {
			return 7, nil
		}
		return 0, errors.New("no child today")
	}
	rep, err = quantize(t.Context(), p)
	if err != nil || rep.Memory.FP32Peak != 0 || !strings.Contains(strings.Join(rep.Warnings, "\n"), "no child today") {
		t.Fatalf("%v, memory %+v, warnings %q", err, rep.Memory, rep.Warnings)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended atomic.Int64
	p.PeakMemory = func(ctx context.Context, path string) (int64, error) {
		if path != model { // which is begun last
			cancel()
		}
		<-ctx.Done()
		ended.Add(1)
		return 0, ctx.Err()
	}
	if _, err := quantize(ctx, p); !errors.Is(err, context.Canceled) || ended.Load() != 2 {
		t.Errorf("%v with %d measurements ended, expected both and the cancellation", err, ended.Load())
	}
}
