package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// halfSamples is how many calibration samples say whether values fit FP16.
const halfSamples = 16

// overflow gives, by an operator's first output, the largest magnitude past FP16
// that it reads or gives. An engine that computes in FP16 what is stored in FP16
// would make infinities of it. Without samples nothing is known.
func (r *run) overflow(ctx context.Context) (map[string]float64, error) {
	if r.req.Calib == "" {
		return nil, nil
	}
	if r.reuse != nil && r.reuse.overflow != nil {
		return r.reuse.overflow, nil
	}
	if _, table, err := OpenTable(r.req.Calib); table || err != nil {
		return nil, err
	}
	ops := map[*graph.Node][]string{} // its float values
	var taps []string
	seen := map[string]bool{}
	for _, v := range r.m.Graph.Inputs {
		seen[v.Name] = true
	}
	for _, n := range r.m.Graph.Nodes {
		if !quant.HalfWeight(r.m, n) {
			continue
		}
		for _, t := range append(append([]string(nil), n.Inputs...), n.Outputs...) {
			if i := r.m.Graph.Info[t]; t == "" || r.m.Graph.Init(t) != nil || !seen[t] && (i == nil || i.Type != tensor.Float32) {
				continue
			}
			ops[n] = append(ops[n], t)
			if !seen[t] {
				seen[t] = true
				taps = append(taps, t)
			}
		}
	}
	most, err := r.magnitudes(ctx, taps)
	if err != nil {
		return nil, fmt.Errorf("look for values past FP16: %w", err)
	}
	past := map[string]float64{}
	for n, values := range ops {
		var x float64
		for _, t := range values {
			x = max(x, most[t])
		}
		if x > quant.HalfMax {
			past[n.Outputs[0]] = x
		}
	}
	if r.reuse != nil {
		r.reuse.overflow = past
	}
	return past, nil
}

// magnitudes runs the float model on the first calibration samples and returns
// the largest magnitude of each value.
func (r *run) magnitudes(ctx context.Context, taps []string) (map[string]float64, error) {
	most := map[string]float64{}
	for _, part := range r.lab.split(taps) {
		if err := r.raise(ctx, part, most); err != nil {
			return nil, err
		}
	}
	return most, nil
}

// raise raises most to the magnitudes of taps and of the inputs.
func (r *run) raise(ctx context.Context, taps []string, most map[string]float64) error {
	s, err := r.lab.Open(ctx, r.m, taps, engine.Options{ShrinkMemory: true})
	if err != nil {
		return err
	}
	defer s.Close()
	ds, err := r.openCalib()
	if err != nil {
		return fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	note := func(values engine.Feeds) error {
		for name, t := range values {
			if t.Type != tensor.Float32 {
				continue
			}
			x, err := t.F32()
			if err != nil {
				return err
			}
			var top float32
			for _, v := range x {
				top = max(top, float32(math.Abs(float64(v))))
			}
			if float64(top) > most[name] {
				most[name] = float64(top)
			}
		}
		return nil
	}
	for n := range halfSamples {
		x, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		res, err := s.Run(ctx, x.Feeds, taps)
		if err == nil {
			err = note(res.Tensors())
			res.Close()
		}
		if err == nil {
			err = note(x.Feeds)
		}
		if err != nil {
			return fmt.Errorf("sample %s: %w", x.ID, err)
		}
		r.progress.say("look for values past fp", float64(n+1)/halfSamples)
	}
	return nil
}

// fits returns the operators of only (nil: all) whose values FP16 holds, and
// warns of the others, which stay FP32.
func (r *run) fits(ctx context.Context, only map[*graph.Node]bool) (map[*graph.Node]bool, error) {
	past, err := r.overflow(ctx)
	if err != nil || len(past) == 0 {
		return only, err
	}
	left := map[*graph.Node]bool{}
	var first *graph.Node
	count, top := 0, 0.0
	for _, n := range r.m.Graph.Nodes {
		if len(n.Outputs) == 0 || only != nil && !only[n] {
			continue
		}
		x, over := past[n.Outputs[0]]
		if !over {
			left[n] = true
			continue
		}
		count++
		if x > top {
			first, top = n, x
		}
		if r.rules != nil {
			r.rules[n] = quant.PrecisionFP32
		}
	}
	if count > 0 {
		name := first.Name
		if name == "" {
			name = first.Op
		}
		r.rep.Warnings = append(r.rep.Warnings, fmt.Sprintf("%d operators stay FP32: they read or give values past FP16's %d, %.3g at %q", count, int(quant.HalfMax), top, name))
	}
	return left, nil
}

// halves returns the operators whose weights a rule stores in FP16.
func (r *run) halves(ctx context.Context) (map[*graph.Node]bool, error) {
	only := r.rules.with(quant.PrecisionFP16)
	if len(only) == 0 {
		return nil, nil
	}
	return r.fits(ctx, only)
}
