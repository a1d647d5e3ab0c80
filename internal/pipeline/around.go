package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// aroundBody are the inputs of a body each time that the samples of the model around
// it run it. A Loop and a Scan are run here, one iteration after the other, as the
// engine would: what is carried on may change its size, which an additional output
// that stacks the iterations cannot, and no more than one iteration is held.
type aroundBody struct {
	data.Dataset                // of the model around it
	sess         engine.Session // of that model, nil: it need not run
	taps         []string       // what it gives
	reads        []string       // all values from outside
	constants    engine.Feeds   // of these
	start        func(values engine.Feeds) (walk, error)
	sample       data.Sample // that runs
	walk         walk        // of it
	ran          int         // times
	of           int         // times of this sample
	ends         []func()
}

// around opens the samples of body, which is in attribute attr of n.
func (r *run) around(ctx context.Context, n *graph.Node, attr string, body *graph.Model) (_ data.Dataset, err error) {
	t := &aroundBody{constants: engine.Feeds{}}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	g := r.float.Graph
	formal, outer := body.Graph.Inputs[:n.Formal()], body.Graph.Inputs[n.Formal():]
	types := map[string]tensor.DType{}
	for _, v := range outer {
		types[v.Name] = v.Type
	}
	switch n.Op {
	case "If":
		if g.Init(n.In(0)) != nil {
			return nil, fmt.Errorf("%w: its condition is a constant", ErrCalibration)
		}
		types[n.In(0)] = tensor.Bool
		t.start = (&branch{n.In(0), attr == "then_branch", outer}).start
	case "Loop":
		types[n.In(0)], types[n.In(1)] = tensor.Int64, tensor.Bool
		for i, v := range formal[2:] {
			types[n.In(2+i)] = v.Type
		}
		l := &loop{node: n, formal: formal, outer: outer}
		if l.carried, err = r.carries(ctx, body, slices.Concat([]*graph.Value{{Type: tensor.Bool}}, formal[2:]), t); err != nil {
			return nil, err
		}
		t.start = l.start
	case "Scan":
		s := &scan{node: n, formal: formal, outer: outer, count: int(n.Int("num_scan_inputs", 0))}
		if s.count < 1 || s.count > len(formal) {
			return nil, fmt.Errorf("%w: it scans %d of %d inputs", graph.ErrInvalid, s.count, len(formal))
		}
		for i, v := range formal {
			types[n.In(i)] = v.Type
		}
		if s.carried, err = r.carries(ctx, body, formal[:len(formal)-s.count], t); err != nil {
			return nil, err
		}
		t.start = s.start
	}
	delete(types, "") // omitted inputs
	given := map[string]bool{}
	for _, v := range g.Inputs {
		given[v.Name] = true
	}
	for _, name := range sortedKeys(types) {
		t.reads = append(t.reads, name)
		if c := g.Init(name); c != nil {
			t.constants[name] = c
		} else if !given[name] {
			t.taps = append(t.taps, name)
		}
	}
	if len(t.taps) > 0 {
		part := upTo(r.float, t.taps)
		for _, o := range part.Graph.Outputs {
			o.Type = types[o.Name]
		}
		if t.sess, err = r.lab.Open(ctx, part, nil, engine.Options{ShrinkMemory: true}); err != nil {
			return nil, err
		}
		t.ends = append(t.ends, func() { t.sess.Close() })
	}
	t.Dataset, err = r.openCalib()
	return t, err
}

// Next implements data.Dataset.
func (t *aroundBody) Next(ctx context.Context) (data.Sample, error) {
	for {
		if t.walk != nil {
			feeds, err := t.walk(ctx)
			if err != nil {
				return t.sample, fmt.Errorf("sample %s: %w", t.sample.ID, err)
			}
			if feeds != nil {
				s := t.sample
				s.Feeds = feeds
				if t.of++; t.of > 1 {
					s.ID = fmt.Sprintf("%s, run %d", s.ID, t.of)
				}
				t.ran++
				return s, nil
			}
			t.walk = nil
		}
		s, err := t.Dataset.Next(ctx)
		if errors.Is(err, io.EOF) && t.ran == 0 {
			return s, fmt.Errorf("%w: none of %d samples runs it", ErrCalibration, t.Dataset.Len())
		}
		if err != nil {
			return s, err
		}
		if t.walk, err = t.begin(ctx, s.Feeds); err != nil {
			return s, fmt.Errorf("sample %s: %w", s.ID, err)
		}
		t.sample, t.of = s, 0
	}
}

// begin runs what is around the body.
func (t *aroundBody) begin(ctx context.Context, in engine.Feeds) (walk, error) {
	values := engine.Feeds{}
	if t.sess != nil {
		res, err := t.sess.Run(ctx, only(t.sess.Spec(), in), t.taps)
		if err != nil {
			return nil, err
		}
		defer res.Close()
		values = res.Tensors()
	}
	all := engine.Feeds{}
	for _, name := range t.reads {
		v := values[name]
		if v == nil {
			v = in[name]
		}
		if v != nil {
			all[name] = v.Clone()
		} else if v = t.constants[name]; v != nil {
			all[name] = v
		} else {
			return nil, fmt.Errorf("%w: %q has no value", ErrCalibration, name)
		}
	}
	return t.start(all)
}

// Reset implements data.Dataset.
func (t *aroundBody) Reset() error {
	t.walk, t.ran = nil, 0
	return t.Dataset.Reset()
}

// Close implements data.Dataset.
func (t *aroundBody) Close() error {
	for _, end := range t.ends {
		end()
	}
	t.ends = nil
	if t.Dataset == nil {
		return nil
	}
	return t.Dataset.Close()
}
