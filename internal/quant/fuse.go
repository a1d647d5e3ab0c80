package quant

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// normOpset is the first standard opset with LayerNormalization.
const normOpset = 17

// constTolerance is how far a decomposed constant may be from the one it stands
// for: exporters write sqrt(2) and its inverse in 6 to 8 digits.
const constTolerance = 1e-5

// FuseNormalization is the pass that writes the layer normalization that
// exporters decompose as LayerNormalization:
//
//	x -> ReduceMean -> Sub(x, .) -> Pow 2 -> ReduceMean -> Add epsilon -> Sqrt
//	                   \--------------------------------------------> Div -> Mul gamma -> Add beta
//
// Models below opset 17 are raised to it. Runtimes fuse the same pattern
// themselves; in the native form it stands in the file for the executor.
type FuseNormalization struct{}

var _ Pass = FuseNormalization{}

// Name implements Pass.
func (FuseNormalization) Name() string { return "fuse-normalization" }

// Run implements Pass. Shapes must have been inferred.
func (FuseNormalization) Run(_ context.Context, m *graph.Model) (Stats, error) {
	f := newFuser(m)
	if raisable(m) {
		for _, n := range m.Graph.Nodes {
			if n.Is("Div") {
				f.normalization(n)
			}
		}
	}
	if len(f.added) > 0 {
		m.Require(graph.DomainONNX, normOpset)
	}
	return f.finish(len(f.added), "layer normalizations")
}

// FuseGelu is the pass that writes x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and
// Gimpel 2016, arXiv:1606.08415), which exporters decompose in two orders, as
// com.microsoft's Gelu.
type FuseGelu struct{}

var _ Pass = FuseGelu{}

// Name implements Pass.
func (FuseGelu) Name() string { return "fuse-gelu" }

// Run implements Pass.
func (FuseGelu) Run(_ context.Context, m *graph.Model) (Stats, error) {
	f := newFuser(m)
	for _, n := range m.Graph.Nodes {
		if n.Is("Erf") {
			f.gelu(n)
		}
	}
	if len(f.added) > 0 {
		m.Require(graph.DomainMS, 1)
	}
	return f.finish(len(f.added), "activations")
}

// raisable reports whether the model means the same when it declares opset 17.
// From 13 on the versions before it added types and attributes with defaults;
// only RoiAlign changed a default. Subgraphs and functions are not looked into.
func raisable(m *graph.Model) bool {
	if m.Opset() >= normOpset {
		return true
	}
	if m.Opset() < perAxisOpset || len(m.Functions()) > 0 {
		return false
	}
	for _, n := range m.Graph.Nodes {
		if n.Is("RoiAlign") || n.HasSubgraph() || (n.Is("BatchNormalization") && len(n.Outputs) > 1) {
			return false
		}
	}
	return true
}

// fuser replaces several nodes by one.
type fuser struct {
	m     *graph.Model
	g     *graph.Graph
	ix    *graph.Index
	drop  map[*graph.Node]bool
	added []*graph.Node
}

func newFuser(m *graph.Model) *fuser {
	return &fuser{m: m, g: m.Graph, ix: m.Graph.Index(), drop: map[*graph.Node]bool{}}
}

// finish writes the replacements into the graph; count of them are patterns.
func (f *fuser) finish(count int, unit string) (Stats, error) {
	if len(f.added) > 0 {
		f.g.Nodes = append(without(f.g.Nodes, f.drop), f.added...)
		if err := f.g.Sort(); err != nil {
			return Stats{}, err
		}
		f.g.Prune()
		graph.InferShapes(f.m)
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d %s", count, unit)}, nil
}

// replace puts n in the place of last. The pattern's other nodes have no reader
// left and are pruned.
func (f *fuser) replace(last, n *graph.Node) {
	f.drop[last] = true
	f.added = append(f.added, n)
}

// only returns the single reader of n's output when it is op.
func (f *fuser) only(n *graph.Node, op string) *graph.Node {
	if n == nil || len(n.Outputs) != 1 {
		return nil
	}
	if r := f.ix.Only(n.Outputs[0]); r != nil && r.Is(op) && len(r.Outputs) == 1 {
		return r
	}
	return nil
}

// producer returns the node that makes value when it is op.
func (f *fuser) producer(value, op string) *graph.Node {
	if n := f.ix.Producer(value); n != nil && n.Is(op) && len(n.Outputs) == 1 {
		return n
	}
	return nil
}

// operand returns the constant among the two inputs of n and the other input;
// nil when there is none.
func (f *fuser) operand(n *graph.Node) (c *tensor.Tensor, name, other string) {
	if n == nil || len(n.Inputs) != 2 {
		return nil, "", ""
	}
	for i, in := range n.Inputs {
		if t := f.g.Init(in); t != nil && t.Type == tensor.Float32 && f.g.Init(n.Inputs[1-i]) == nil {
			return t, in, n.Inputs[1-i]
		}
	}
	return nil, "", ""
}

// times returns x when n is x multiplied by (or, for Div, divided by) v.
func (f *fuser) times(n *graph.Node, v float64) string {
	if n == nil || !(n.Is("Mul") || n.Is("Div")) {
		return ""
	}
	c, _, x := f.operand(n)
	if c == nil || c.Len() != 1 || len(c.Dims) > 1 || (n.Is("Div") && n.In(0) != x) {
		return ""
	}
	have := float64(tensor.View[float32](c)[0])
	if n.Is("Div") {
		have = 1 / have
	}
	if math.Abs(have-v) > constTolerance*v {
		return ""
	}
	return x
}

// normalization matches from the division by the deviation.
func (f *fuser) normalization(div *graph.Node) {
	centred := f.producer(div.In(0), "Sub")
	root := f.producer(div.In(1), "Sqrt")
	if centred == nil || root == nil {
		return
	}
	x := centred.In(0)
	safe := f.producer(root.In(0), "Add")
	eps, _, variance := f.operand(safe)
	if eps == nil || eps.Len() != 1 || len(eps.Dims) > 1 {
		return
	}
	mean, spread := f.lastMean(centred.In(1)), f.lastMean(variance)
	if mean == nil || spread == nil || mean.In(0) != x || !f.square(spread.In(0), centred) {
		return
	}
	scaled := f.only(div, "Mul")
	gamma, gammaName, _ := f.operand(scaled)
	last := f.only(scaled, "Add")
	beta, betaName, _ := f.operand(last)
	if !f.vector(gamma, x) || !f.vector(beta, x) {
		return
	}
	f.replace(last, graph.NewNode(graph.DomainONNX, "LayerNormalization", last.Name, []string{x, gammaName, betaName}, last.Outputs,
		graph.AttrInt("axis", -1), graph.AttrFloat("epsilon", tensor.View[float32](eps)[0])))
}

// lastMean returns the ReduceMean over the last axis that makes value.
func (f *fuser) lastMean(value string) *graph.Node {
	n := f.producer(value, "ReduceMean")
	if n == nil || n.Int("keepdims", 1) != 1 {
		return nil
	}
	axes := n.Ints("axes")
	if t := f.g.Init(n.In(1)); t != nil && t.Type == tensor.Int64 {
		axes = tensor.View[int64](t)
	}
	rank := int64(len(f.dims(n.In(0))))
	if len(axes) != 1 || (axes[0] != -1 && (rank == 0 || axes[0] != rank-1)) {
		return nil
	}
	return n
}

// square reports whether value is the square of what sub computes, by Pow or
// Mul; some exporters subtract twice.
func (f *fuser) square(value string, sub *graph.Node) bool {
	same := func(v string) bool {
		n := f.producer(v, "Sub")
		return n == sub || (n != nil && slices.Equal(n.Inputs, sub.Inputs))
	}
	if n := f.producer(value, "Mul"); n != nil {
		return n.In(0) == n.In(1) && same(n.In(0))
	}
	n := f.producer(value, "Pow")
	if n == nil || !same(n.In(0)) {
		return false
	}
	c := f.g.Init(n.In(1))
	if c == nil || c.Len() != 1 {
		return false
	}
	v, err := c.F32()
	return err == nil && v[0] == 2
}

func (f *fuser) dims(value string) []graph.Dim {
	if v := f.g.Info[value]; v != nil {
		return v.Dims
	}
	for _, v := range f.g.Inputs {
		if v.Name == value {
			return v.Dims
		}
	}
	return nil
}

// vector reports whether t has one value for each channel of x.
func (f *fuser) vector(t *tensor.Tensor, x string) bool {
	d := f.dims(x)
	return t != nil && len(t.Dims) == 1 && len(d) > 0 && d[len(d)-1].N == t.Dims[0]
}

// gelu matches from the error function:
//
//	x -> Div sqrt2 -> Erf -> Add 1 -> Mul x -> Mul 0.5
//	x -> Div sqrt2 -> Erf -> Add 1 -> Mul (x * 0.5)
func (f *fuser) gelu(erf *graph.Node) {
	before := f.ix.Producer(erf.In(0))
	x := f.times(before, math.Sqrt2/2)
	plus := f.only(erf, "Add")
	one, _, _ := f.operand(plus)
	if x == "" || one == nil || one.Len() != 1 || len(one.Dims) > 1 || tensor.View[float32](one)[0] != 1 {
		return
	}
	last := f.only(plus, "Mul")
	if last == nil || len(last.Inputs) != 2 {
		return
	}
	other := last.In(0)
	if other == plus.Outputs[0] {
		other = last.In(1)
	}
	if other == x {
		last = f.only(last, "Mul")
		if f.times(last, .5) == "" {
			return
		}
	} else if f.times(f.ix.Producer(other), .5) != x {
		return
	}
	f.replace(last, graph.NewNode(graph.DomainMS, "Gelu", last.Name, []string{x}, last.Outputs))
}
