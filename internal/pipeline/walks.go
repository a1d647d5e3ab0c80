package pipeline

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// walk returns the inputs of one run of a body after the other, nil at the end.
type walk func(ctx context.Context) (engine.Feeds, error)

// branch is a body of an If, which runs it once, or not.
type branch struct {
	cond  string
	when  bool
	outer []*graph.Value // that the body reads from outside
}

func (b *branch) start(values engine.Feeds) (walk, error) {
	c, err := condition(values[b.cond])
	if err != nil {
		return nil, err
	}
	over := c != b.when
	return func(context.Context) (engine.Feeds, error) {
		if over {
			return nil, nil
		}
		over = true
		return reading(b.outer, values), nil
	}, nil
}

// reading returns a body's inputs from outside.
func reading(outer []*graph.Value, values engine.Feeds) engine.Feeds {
	feeds := engine.Feeds{}
	for _, v := range outer {
		feeds[v.Name] = values[v.Name]
	}
	return feeds
}

func condition(t *tensor.Tensor) (bool, error) {
	if t == nil || t.Type != tensor.Bool || len(t.Data) != 1 {
		return false, fmt.Errorf("%w: its condition is no single truth value", ErrCalibration)
	}
	return t.Data[0] != 0, nil
}

// loop is a Loop: the body's own inputs are the number of the iteration, the
// condition and what is carried on, its outputs the next condition and what is
// carried on.
type loop struct {
	node          *graph.Node
	formal, outer []*graph.Value
	*carried
}

func (l *loop) start(values engine.Feeds) (walk, error) {
	trips := int64(-1) // no bound
	if name := l.node.In(0); name != "" {
		t := values[name]
		if t == nil || t.Type != tensor.Int64 || len(t.Data) != 8 {
			return nil, fmt.Errorf("%w: its number of iterations is no single number", ErrCalibration)
		}
		trips = max(0, int64(binary.LittleEndian.Uint64(t.Data)))
	}
	state := make([]*tensor.Tensor, len(l.formal)-1) // the condition first
	state[0] = tensor.From([]bool{true})
	if name := l.node.In(1); name != "" {
		state[0] = values[name]
	}
	for i := range l.formal[2:] {
		state[1+i] = values[l.node.In(2+i)]
	}
	var last engine.Feeds
	at := int64(0)
	return func(ctx context.Context) (engine.Feeds, error) {
		if last != nil {
			var err error
			if state, err = l.after(ctx, last); err != nil {
				return nil, err
			}
			at++
		}
		on, err := condition(state[0])
		if err != nil || !on || at == trips {
			return nil, err
		}
		feeds := reading(l.outer, values)
		feeds[l.formal[0].Name] = like(l.formal[0], tensor.From([]int64{at}))
		feeds[l.formal[1].Name] = like(l.formal[1], state[0])
		for i, v := range l.formal[2:] {
			feeds[v.Name] = state[1+i]
		}
		last = feeds
		return feeds, nil
	}, nil
}

// like gives a single value the rank that v declares: a scalar, or one dimension.
func like(v *graph.Value, t *tensor.Tensor) *tensor.Tensor {
	c := *t
	if c.Dims = []int64{}; len(v.Dims) == 1 {
		c.Dims = []int64{1}
	}
	return &c
}

// scan is a Scan: the body's own inputs are what is carried on, then an element of
// each of the count inputs that are scanned, its outputs what is carried on.
type scan struct {
	node          *graph.Node
	formal, outer []*graph.Value
	count         int
	*carried
}

func (s *scan) start(values engine.Feeds) (walk, error) {
	states := len(s.formal) - s.count
	state := make([]*tensor.Tensor, states)
	for i := range state {
		state[i] = values[s.node.In(i)]
	}
	axes, back := s.node.Ints("scan_input_axes"), s.node.Ints("scan_input_directions")
	length := int64(-1)
	for i := range s.count {
		t := values[s.node.In(states+i)]
		axis, err := axisOf(t, axes, i)
		if err != nil {
			return nil, err
		}
		if n := t.Dims[axis]; length >= 0 && n != length {
			return nil, fmt.Errorf("%w: it scans inputs of %d and of %d elements", ErrCalibration, length, n)
		}
		length = t.Dims[axis]
	}
	var last engine.Feeds
	at := int64(0)
	return func(ctx context.Context) (engine.Feeds, error) {
		if last != nil {
			var err error
			if state, err = s.after(ctx, last); err != nil {
				return nil, err
			}
			at++
		}
		if at == length {
			return nil, nil
		}
		feeds := reading(s.outer, values)
		for i, v := range s.formal[:states] {
			feeds[v.Name] = state[i]
		}
		for i, v := range s.formal[states:] {
			t, k := values[s.node.In(states+i)], at
			axis, err := axisOf(t, axes, i)
			if err != nil {
				return nil, err
			}
			if i < len(back) && back[i] == 1 {
				k = length - 1 - at
			}
			feeds[v.Name] = element(t, axis, k)
		}
		last = feeds
		return feeds, nil
	}, nil
}

// axisOf returns the axis along which scanned input i runs.
func axisOf(t *tensor.Tensor, axes []int64, i int) (int, error) {
	axis := int64(0)
	if i < len(axes) {
		axis = axes[i]
	}
	if t != nil && axis < 0 {
		axis += int64(len(t.Dims))
	}
	if t == nil || axis < 0 || axis >= int64(len(t.Dims)) || t.Type.Bits()%8 != 0 || t.Type.Bits() == 0 {
		return 0, fmt.Errorf("%w: it scans an input that has no axis %d, or no numbers", ErrCalibration, axis)
	}
	return int(axis), nil
}

// element returns a copy of element k along an axis, which it does not have.
func element(t *tensor.Tensor, axis int, k int64) *tensor.Tensor {
	size, rows := t.Type.Bits()/8, 1
	for _, d := range t.Dims[axis+1:] {
		size *= int(d)
	}
	for _, d := range t.Dims[:axis] {
		rows *= int(d)
	}
	stride := size * int(t.Dims[axis])
	out := &tensor.Tensor{Type: t.Type, Dims: slices.Delete(slices.Clone(t.Dims), axis, axis+1), Data: make([]byte, 0, rows*size)}
	for i := range rows {
		from := i*stride + int(k)*size
		out.Data = append(out.Data, t.Data[from:from+size]...)
	}
	return out
}

// carried computes what one iteration of a body carries on to the next.
type carried struct {
	names []string       // of the outputs that do
	sess  engine.Session // of what has to run for it, nil is nothing
	taps  []string       // what it gives
	fixed engine.Feeds   // outputs that are constants
}

// carries opens what computes the first outputs of body, which have the types of as.
func (r *run) carries(ctx context.Context, body *graph.Model, as []*graph.Value, t *aroundBody) (*carried, error) {
	outs := body.Graph.Outputs
	if len(as) > len(outs) {
		return nil, fmt.Errorf("%w: it carries %d values on and has %d outputs", graph.ErrInvalid, len(as), len(outs))
	}
	c := &carried{fixed: engine.Feeds{}}
	given := map[string]bool{}
	for _, v := range body.Graph.Inputs {
		given[v.Name] = true
	}
	types := map[string]tensor.DType{}
	for i, v := range as {
		name := outs[i].Name
		c.names = append(c.names, name)
		if f := body.Graph.Init(name); f != nil {
			c.fixed[name] = f
		} else if _, ok := types[name]; !ok && !given[name] {
			c.taps, types[name] = append(c.taps, name), v.Type
		}
	}
	if len(c.taps) == 0 {
		return c, nil
	}
	part := upTo(body, c.taps)
	for _, o := range part.Graph.Outputs {
		o.Type = types[o.Name]
	}
	var err error
	if c.sess, err = r.lab.Open(ctx, part, nil, engine.Options{ShrinkMemory: true}); err != nil {
		return nil, err
	}
	t.ends = append(t.ends, func() { c.sess.Close() })
	return c, nil
}

// after runs an iteration on feeds and returns what it carries on.
func (c *carried) after(ctx context.Context, feeds engine.Feeds) ([]*tensor.Tensor, error) {
	values := engine.Feeds{}
	if c.sess != nil {
		res, err := c.sess.Run(ctx, only(c.sess.Spec(), feeds), c.taps)
		if err != nil {
			return nil, err
		}
		defer res.Close()
		for name, v := range res.Tensors() {
			values[name] = v.Clone()
		}
	}
	out := make([]*tensor.Tensor, len(c.names))
	for i, name := range c.names {
		for _, from := range []engine.Feeds{values, c.fixed, feeds} {
			if out[i] == nil {
				out[i] = from[name]
			}
		}
		if out[i] == nil {
			return nil, fmt.Errorf("%w: %q has no value", ErrCalibration, name)
		}
	}
	return out, ctx.Err()
}
