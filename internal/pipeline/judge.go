package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/quant"
)

func (r *run) judge(ctx context.Context, path string) error {
	if err := r.operators(ctx); err != nil {
		return fmt.Errorf("compare operators: %w", err)
	}
	ref, err := r.openJudged(ctx, r.req.Model)
	if err != nil {
		return fmt.Errorf("open the float model: %w", err)
	}
	defer ref.Close()
	q, err := r.openJudged(ctx, path)
	if err != nil {
		return fmt.Errorf("open the quantized model: %w", err)
	}
	defer q.Close()
	r.rep.Warnings = append(r.rep.Warnings, hampered(path, q)...)
	ds, err := r.openEval()
	if err != nil {
		return fmt.Errorf("evaluation data: %w", err)
	}
	defer ds.Close()
	if !ds.Labelled() {
		r.rep.Warnings = append(r.rep.Warnings, "the evaluation data has no labels: judged by fidelity to the float model")
	}
	o := eval.Options{Progress: func(done int) { r.progress.say("evaluate", float64(done)/float64(max(ds.Len(), done))) }}
	if r.lean() && !r.req.NoLatency {
		r.req.NoLatency = true
		r.rep.Warnings = append(r.rep.Warnings, "latency was not measured: both models as they are served do not fit below "+r.req.Words.maxMemory()+"; fewbit compare measures it")
	}
	if !r.req.NoLatency {
		o.Latency = &eval.InterleaveOptions{Warmup: 3, MinTime: minLatencyTime, MaxTime: maxLatencyTime}
	}
	res, err := eval.Compare(ctx, ref, q, ds, o)
	if err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	r.rep.Evaluation = res
	r.rep.Warnings = append(r.rep.Warnings, res.Warnings...)
	r.rep.Gate = r.gate(ds.Labelled() && res.Difference != nil)
	return r.peaks(ctx, path)
}

// The interleaved latency measurement goes on for this long.
const (
	minLatencyTime = 2 * time.Second
	maxLatencyTime = 20 * time.Second
)

func (r *run) gate(labelled bool) eval.Gate {
	loss := r.req.MaxLoss
	if loss == 0 {
		loss = DefaultMaxLoss
	}
	slo := r.req.SLO
	if slo == 0 {
		slo = DefaultSLO
	}
	g := eval.Gate{SLOMS: float64(slo) / float64(time.Millisecond)}
	if r.lean() {
		g.SLOMS, g.AllowSlower = 0, true
	}
	if r.fallback() {
		g.SLOMS, g.AllowSlower = 0, true
		if !r.req.NoLatency {
			r.rep.Warnings = append(r.rep.Warnings, "latency was measured in ONNX Runtime on the CPU, which only stands in for the GPU that the form is for: it is no part of the gate")
		}
	}
	if labelled {
		g.MaxLoss = &loss
	} else {
		cos := 1 - loss
		g.MinCosine, g.MaxChanged = &cos, &loss
	}
	return g
}

// fallback reports whether the result was measured on an engine that the form
// is not for.
func (r *run) fallback() bool {
	return r.req.Config.Target == quant.CUDA && r.Engine.Name() != string(quant.CUDA)
}

func (r *run) peaks(ctx context.Context, path string) error {
	if r.PeakMemory == nil {
		return nil
	}
	if r.req.MaxMemory > 0 && !r.roomy {
		r.rep.Warnings = append(r.rep.Warnings, "the models' own peak memory was not measured: they do not fit below "+r.req.Words.maxMemory()+" as they are served")
		return nil
	}
	r.progress.say("measure memory", 0)
	var err error
	if r.rep.Memory.FP32Peak, err = r.PeakMemory(ctx, r.req.Model); err == nil {
		r.rep.Memory.QuantPeak, err = r.PeakMemory(ctx, path)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.rep.Memory.FP32Peak, r.rep.Memory.QuantPeak = 0, 0
		r.rep.Warnings = append(r.rep.Warnings, "peak memory was not measured: "+err.Error())
	}
	return nil
}
