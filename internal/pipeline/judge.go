package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

func (r *run) judge(ctx context.Context, path string) error {
	if r.lean() && !r.req.NoLatency {
		r.req.NoLatency = true
		r.rep.Warnings = append(r.rep.Warnings, "latency was not measured: both models as they are served do not fit below "+r.req.Words.maxMemory()+"; fewbit compare measures it")
	}
	if r.fp32Peak == nil {
		r.fp32Peak = r.beginPeak(ctx, r.req.Model)
	}
	peak := r.beginPeak(ctx, path)
	defer peak.end()
	taps := r.taps()
	float, err := r.tappedFloat(taps)
	if err != nil {
		return fmt.Errorf("open the float model: %w", err)
	}
	if float != nil {
		defer float.Close()
	} else if err := r.operators(ctx, taps); err != nil {
		return fmt.Errorf("compare operators: %w", err)
	}
	opens := []open{func() (engine.Session, error) { return r.openJudged(ctx, path) }}
	if float == nil {
		opens = append(opens, func() (engine.Session, error) { return r.openJudged(ctx, r.req.Model) })
	} else {
		opens = append(opens, func() (engine.Session, error) { return r.lab.Open(ctx, float, refs(taps), engine.Options{}) },
			func() (engine.Session, error) { return r.openTapped(ctx, taps) })
	}
	sessions, err := r.together([]string{"open the quantized model", "open the float model", "open the quantized model to compare operators"}, opens)
	if err != nil {
		return err
	}
	defer closeAll(sessions)
	q, ref := sessions[0], sessions[1]
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
	if float != nil {
		o.Taps, o.Inner, o.TapSamples = taps, sessions[2], operatorSamples
	}
	if !r.req.NoLatency {
		for _, p := range []*beside[int64]{r.fp32Peak, peak} { // nothing else runs beside what is timed
			_, _ = p.wait() // peaks reads what it gave
		}
		o.Latency = &eval.InterleaveOptions{Warmup: 3, MinTime: minLatencyTime, MaxTime: maxLatencyTime}
	}
	res, err := eval.Compare(ctx, ref, q, ds, o)
	if err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	if float != nil {
		r.operatorErrors(res.Tensors)
		res.Tensors = nil // the report has them by operator
	}
	r.rep.Evaluation = res
	r.rep.Warnings = append(r.rep.Warnings, res.Warnings...)
	r.rep.Gate = r.gate(ds.Labelled() && res.Difference != nil)
	return r.peaks(ctx, path, r.fp32Peak, peak)
}

// open opens one session.
type open func() (engine.Session, error)

// together opens sessions beside each other, since an engine opens a model on one
// core; one after the other below a ceiling, where each takes memory of its own
// while it is opened. When one fails none stays open; what says what each is for.
func (r *run) together(what []string, opens []open) ([]engine.Session, error) {
	all, errs := make([]engine.Session, len(opens)), make([]error, len(opens))
	var wg sync.WaitGroup
	for i, f := range opens {
		one := func() {
			s, err := f()
			if err != nil { // s may be an engine's nil of a type
				errs[i] = fmt.Errorf("%s: %w", what[i], err)
				return
			}
			all[i] = s
		}
		if r.lab.limits != nil {
			one()
		} else {
			wg.Go(one)
		}
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			closeAll(slices.DeleteFunc(all, func(s engine.Session) bool { return s == nil }))
			return nil, err
		}
	}
	return all, nil
}

func closeAll(all []engine.Session) {
	for _, s := range all {
		s.Close()
	}
}

// tappedFloat returns the float model as it is in its file where one session of it
// can answer both what the result is judged by and what its operators are compared
// with; else nil. A session with more outputs is not the one whose speed or memory
// means anything. What equalization scaled is not in the file.
func (r *run) tappedFloat(taps []eval.Tap) (*graph.Model, error) {
	if len(taps) == 0 || !r.req.NoLatency || r.lab.limits != nil || r.req.Config.Equalize {
		return nil, nil
	}
	m, err := graph.Open(r.req.Model)
	if err != nil {
		return nil, err
	}
	ix := m.Graph.Index()
	for _, t := range taps {
		if ix.Producer(t.Ref) == nil {
			return nil, m.Close()
		}
	}
	return m, nil
}

func refs(taps []eval.Tap) (names []string) {
	for _, t := range taps {
		names = append(names, t.Ref)
	}
	return names
}

// openTapped opens the quantized model in the form whose inner tensors compare with
// the float model's.
func (r *run) openTapped(ctx context.Context, taps []eval.Tap) (engine.Session, error) {
	var names []string
	for _, t := range taps {
		names = append(names, t.Quant)
	}
	return r.lab.Open(ctx, r.qdq, names, engine.Options{})
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
