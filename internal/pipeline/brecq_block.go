package pipeline

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/tensor"
)

// student makes blocks of the model that is being quantized.
type student struct {
	*blocksPass
	m   *graph.Model
	ix  *graph.Index
	ops map[*graph.Node]planned
}

// name is that of the first operator with a weight.
func (s *student) name(seg *reconstruct.Segment) string {
	for _, n := range seg.Nodes {
		if op, ok := s.ops[n]; ok && hasWeight(op.Op) {
			return n.Name
		}
	}
	return ""
}

// part returns a model of the segment's nodes alone that gives outs, with the constants
// of from. Values inside carry what is known of their shape.
func (s *student) part(from *graph.Model, seg *reconstruct.Segment, outs []string) *graph.Model {
	c := from.Clone()
	g := c.Graph
	known := func(v string) *graph.Value {
		x := &graph.Value{Name: v, Type: tensor.Float32}
		for _, in := range s.m.Graph.Inputs {
			if in.Name == v {
				x.Type, x.Dims = in.Type, in.Dims
			}
		}
		if i := s.m.Graph.Info[v]; i != nil {
			x.Dims = i.Dims
			if i.Type != tensor.Undefined {
				x.Type = i.Type
			}
		}
		return x
	}
	g.Nodes = nil
	for _, n := range seg.Nodes {
		x := *n
		x.Inputs, x.Outputs = append([]string(nil), n.Inputs...), append([]string(nil), n.Outputs...)
		g.Nodes = append(g.Nodes, &x)
	}
	g.Inputs, g.Outputs = nil, nil
	for _, v := range seg.In {
		g.Inputs = append(g.Inputs, known(v))
	}
	for _, v := range outs {
		g.Outputs = append(g.Outputs, known(v))
	}
	return c
}

// trim removes what the outputs do not need, inputs too.
func trim(m *graph.Model) *graph.Model {
	m.Graph.Prune()
	ix := m.Graph.Index()
	kept := m.Graph.Inputs[:0]
	for _, v := range m.Graph.Inputs {
		if len(ix.Uses(v.Name)) > 0 || ix.Captured(v.Name) || ix.IsOutput(v.Name) {
			kept = append(kept, v)
		}
	}
	m.Graph.Inputs = kept
	return m
}

// float is the segment of the float model.
func (s *student) float(seg *reconstruct.Segment, outs []string) (*graph.Model, error) {
	m := trim(s.part(s.teacher, seg, outs))
	return m, m.Check()
}

// quantized is a block with what is to be learned.
type quantized struct {
	reconstruct.Block              // its Model has weights and numbers as constants
	open              *graph.Model // the same with inputs instead
	adopters          []func()
}

// adopt puts what was learned into the pass's weights, biases and ranges.
func (q *quantized) adopt() {
	for _, f := range q.adopters {
		f()
	}
}

// quantized is the segment of the quantized model as it stands, imitated in float
// operators: weights are what their codes stand for, activations with a range go
// through QuantizeLinear and DequantizeLinear. Ranges that are found as the model runs
// are taken as exact.
func (s *student) quantized(seg *reconstruct.Segment, outs []string) (*quantized, error) {
	m := s.part(s.m, seg, outs)
	b := &blockBuilder{student: s, g: m.Graph, names: m.Graph.Namer(), q: &quantized{}, fake: map[string]string{}, values: engine.Feeds{}}
	if len(outs) == 1 {
		b.q.Out = outs[0]
	}
	quantOut := map[string]planned{}
	for _, op := range s.ops {
		if op.QuantOut {
			quantOut[op.Out] = op
		}
	}
	for i, n := range append([]*graph.Node(nil), m.Graph.Nodes...) {
		op, ok := s.ops[seg.Nodes[i]]
		for at, in := range n.Inputs {
			own := ok && at < len(op.X)
			by, all := quantOut[in]
			switch {
			case own:
				by = op
			case !all:
				continue
			}
			x, err := b.activation(in, by, own)
			if err != nil {
				return nil, err
			}
			n.Inputs[at] = x
		}
		if ok && hasWeight(op.Op) {
			if err := b.weight(n, op); err != nil {
				return nil, fmt.Errorf("operator %q: %w", n.Name, err)
			}
			if err := b.bias(op); err != nil {
				return nil, fmt.Errorf("operator %q: %w", n.Name, err)
			}
		}
	}
	m.Graph.Nodes = append(m.Graph.Nodes, b.added...)
	if err := m.Graph.Sort(); err != nil {
		return nil, err
	}
	b.q.open = m.Clone()
	for name, t := range b.values {
		m.Graph.SetInit(name, t)
		v := &graph.Value{Name: name, Type: tensor.Float32, Dims: []graph.Dim{}}
		for _, d := range t.Dims {
			v.Dims = append(v.Dims, graph.Dim{N: d})
		}
		b.q.open.Graph.DropInit(name)
		b.q.open.Graph.Inputs = append(b.q.open.Graph.Inputs, v)
	}
	b.q.Model = trim(m)
	trim(b.q.open)
	return b.q, b.q.Model.Check()
}

// blockBuilder writes one block.
type blockBuilder struct {
	*student
	g      *graph.Graph
	names  graph.Namer
	q      *quantized
	added  []*graph.Node
	fake   map[string]string // activation -> its quantized copy
	values engine.Feeds      // of what is learned
}

// activation is the value that stands for x behind its quantizer: x itself where its
// range is found when the model runs. own is false of operators that stay in float.
func (b *blockBuilder) activation(x string, op planned, own bool) (string, error) {
	src := op.plan.Source(x)
	static := op.plan.Static(op.Op) || !own
	key := x
	if !static {
		key += " as it runs"
	}
	if v, ok := b.fake[key]; ok {
		return v, nil
	}
	c := b.choices[src]
	if static && c == nil {
		return "", fmt.Errorf("%w: %q", quant.ErrUncalibrated, src)
	}
	v := x
	if c != nil && c.Smooth != nil && src == x && op.plan.Config.Smooths() {
		inv := make([]float32, len(c.Smooth))
		for i, s := range c.Smooth {
			inv[i] = 1 / s
		}
		v = b.node("Mul", v, b.constant(tensor.From(inv, int64(len(inv)))))
	}
	if static && src == x { // what only moves codes has them already
		scale := b.names.Name(x + "_learned_scale")
		zero := b.constant(zeroPoint(c))
		v = b.node("DequantizeLinear", b.node("QuantizeLinear", v, scale, zero), scale, zero)
		if b.fake[key] = v; c.Fixed {
			b.g.SetInit(scale, tensor.From([]float32{c.Params.Scale}))
			return v, nil
		}
		n := &reconstruct.Number{Name: scale, Values: []float32{c.Params.Scale}, Scale: true, Most: op.plan.MostScale(b.m.Graph, src, c)}
		b.number(n)
		b.q.adopters = append(b.q.adopters, func() {
			lo, hi := c.Scheme.Codes()
			s := n.Values[0]
			c.Params.Scale = s
			c.Range = calib.Range{Lo: float32(lo-c.Params.Zero) * s, Hi: float32(hi-c.Params.Zero) * s}
			c.Why = "scale learned with its block, beginning at " + c.Method
		})
	}
	b.fake[key] = v
	return v, nil
}

func zeroPoint(c *quant.Choice) *tensor.Tensor {
	switch c.Scheme.Type {
	case tensor.Int8:
		return tensor.From([]int8{int8(c.Params.Zero)})
	case tensor.Uint16:
		return tensor.From([]uint16{uint16(c.Params.Zero)})
	}
	return tensor.From([]uint8{uint8(c.Params.Zero)})
}

// number makes the values of n an input of the block.
func (b *blockBuilder) number(n *reconstruct.Number) {
	b.q.Numbers = append(b.q.Numbers, n)
	b.values[n.Name] = tensor.From(n.Values, n.Dims...)
}

func (b *blockBuilder) constant(t *tensor.Tensor) string {
	name := b.names.Name("block_constant")
	b.g.SetInit(name, t)
	return name
}

func (b *blockBuilder) node(op string, in ...string) string {
	out := b.names.Name("block_" + op)
	b.added = append(b.added, graph.NewNode(graph.DomainONNX, op, out, in, []string{out}))
	return out
}

// weight makes n read what the codes of its weight stand for. A weight that others read
// too is left as it is.
func (b *blockBuilder) weight(n *graph.Node, op planned) error {
	r, err := op.plan.Rounded(b.m.Graph, op.Op, b.choices, b.solved, b.stats)
	if err != nil {
		return err
	}
	name := b.names.Name(op.W + "_learned")
	n.Inputs[1] = name
	values := make([]float32, len(r.Codes))
	for i, c := range r.Codes {
		values[i] = float32(c) * r.Steps[i]
	}
	t := tensor.From(values, r.Dims...)
	b.g.SetInit(name, t)
	if len(b.ix.Uses(op.W)) > 1 || b.ix.Captured(op.W) {
		return nil
	}
	b.values[name] = t
	b.q.Weights = append(b.q.Weights, &reconstruct.Weight{Name: name, Dims: r.Dims, Values: r.Values, Steps: r.Steps, Codes: r.Codes, Lo: r.Lo, Hi: r.Hi})
	b.q.adopters = append(b.q.adopters, func() { b.solved.Learned(op.Op, r) })
	return nil
}

// bias makes the bias of op a number that is learned, if nothing else reads it.
func (b *blockBuilder) bias(op planned) error {
	t := b.m.Graph.Init(op.Bias)
	if t == nil || len(b.ix.Uses(op.Bias)) > 1 || b.ix.Captured(op.Bias) {
		return nil
	}
	v, err := t.F32()
	if err != nil {
		return err
	}
	n := &reconstruct.Number{Name: op.Bias, Dims: t.Dims, Values: append([]float32(nil), v...)}
	b.number(n)
	b.q.adopters = append(b.q.adopters, func() { b.m.Graph.SetInit(op.Bias, tensor.From(n.Values, n.Dims...)) })
	return nil
}
