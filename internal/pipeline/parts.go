package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
)

// parted is a model whose weights do not fit below the ceiling as a whole: it runs in
// parts, and what is mapped is let go before a part would make it more than fits.
type parted struct {
	spec  engine.IOSpec
	parts []part
	room  *mappedRoom
}

var _ engine.Session = (*parted)(nil)

// part is one of them.
type part struct {
	s       engine.Session
	weights int64
	outs    []string // what later parts, or the model's outputs, read
	last    int      // the last part that reads any of outs
}

// mappedRoom is shared by all sessions of a lab: how much of their weights may be resident.
type mappedRoom struct {
	part    int64 // bytes of weights of a part, but for single operators with more
	bytes   int64
	touched atomic.Int64 // since the last release, at most
	release func()
}

// enter makes room for a part that reads n bytes of weights.
func (r *mappedRoom) enter(n int64) {
	if r.touched.Add(n) > r.bytes {
		r.release()
		r.touched.Store(n)
	}
}

// openParts opens m in parts. It returns nil where m cannot be cut, or has no need to
// be; what the engine refuses in parts, for types that were inferred wrongly, is tried
// as a whole.
func (l *Lab) openParts(ctx context.Context, m *graph.Model, taps []string, o engine.Options) (engine.Session, error) {
	if l.limits == nil || l.limits.room == nil {
		return nil, nil
	}
	m = Tapped(m, taps).Clone()
	graph.InferShapes(m)
	parts := m.Parts(l.limits.room.part)
	if parts == nil {
		return nil, nil
	}
	p := &parted{spec: SpecOf(m), room: l.limits.room}
	reads := make([][]string, len(parts))
	for i, of := range parts {
		s, err := l.openWhole(ctx, of, nil, o)
		if err != nil {
			p.Close()
			if errors.Is(err, engine.ErrModel) {
				return nil, nil
			}
			return nil, fmt.Errorf("part %d of %d: %w", i+1, len(parts), err)
		}
		k := part{s: s, weights: weightBytes(of)}
		for _, v := range of.Graph.Outputs {
			k.outs = append(k.outs, v.Name)
		}
		for _, v := range of.Graph.Inputs {
			reads[i] = append(reads[i], v.Name)
		}
		p.parts = append(p.parts, k)
	}
	for i := range p.parts {
		k := &p.parts[i]
		for j := i + 1; j < len(parts); j++ {
			if slices.ContainsFunc(reads[j], func(v string) bool { return slices.Contains(k.outs, v) }) {
				k.last = j
			}
		}
		for _, io := range k.s.Spec().Outputs { // the engine knows more of them
			if at := slices.IndexFunc(p.spec.Outputs, func(o engine.IO) bool { return o.Name == io.Name }); at >= 0 {
				p.spec.Outputs[at] = io
			}
		}
	}
	return p, nil
}

func (p *parted) Spec() engine.IOSpec { return p.spec }

// Close implements engine.Session.
func (p *parted) Close() error {
	var first error
	for _, k := range p.parts {
		if err := k.s.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Run implements engine.Session.
func (p *parted) Run(ctx context.Context, in engine.Feeds, outs []string) (_ engine.Result, err error) {
	if err := engine.CheckFeeds(p.spec, in); err != nil {
		return nil, err
	}
	if len(outs) == 0 {
		for _, o := range p.spec.Outputs {
			outs = append(outs, o.Name)
		}
	}
	for _, o := range outs {
		if !slices.ContainsFunc(p.spec.Outputs, func(io engine.IO) bool { return io.Name == o }) {
			return nil, fmt.Errorf("%w: the model has no output %q", engine.ErrInput, o)
		}
	}
	res := &partedResult{outs: engine.Feeds{}}
	live := make([]engine.Result, len(p.parts))
	defer func() {
		for _, r := range live {
			if r != nil {
				r.Close()
			}
		}
		if err != nil {
			res.Close()
		}
	}()
	values := engine.Feeds{}
	for name, t := range in {
		values[name] = t
	}
	for i, k := range p.parts {
		p.room.enter(k.weights)
		r, err := k.s.Run(ctx, only(k.s.Spec(), values), k.outs)
		if err != nil {
			return nil, err
		}
		live[i] = r
		for name, t := range r.Tensors() {
			values[name] = t
			if slices.Contains(outs, name) {
				res.outs[name] = t
			}
		}
		if slices.ContainsFunc(k.outs, func(o string) bool { return slices.Contains(outs, o) }) {
			live[i] = nil
			res.of = append(res.of, r)
		}
		for j, k := range p.parts[:i+1] { // its values have been read
			if live[j] != nil && k.last <= i {
				live[j].Close()
				live[j] = nil
			}
		}
	}
	return res, nil
}

// partedResult holds the outputs of several parts.
type partedResult struct {
	outs engine.Feeds
	of   []engine.Result
}

func (r *partedResult) Tensors() engine.Feeds { return r.outs }

func (r *partedResult) Close() {
	for _, of := range r.of {
		of.Close()
	}
}
