package quant

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FoldDivisors is the pass that moves a multiplication by a vector, as
// smoothing inserts it, into the operator before it, wherever that one is
// linear in each channel and nothing else reads its result:
//
//	MatMulIntegerToFloat    its column scales and bias; the codes stay
//	attention               what makes its values: a head's output is a mean of them
//	LayerNormalization      its scale and bias, decomposed or not
//
// After a residual LayerNormalization (BERT) the multiplication stays: the
// residual reads the same tensor.
type FoldDivisors struct{}

var _ Pass = FoldDivisors{}

// Name implements Pass.
func (FoldDivisors) Name() string { return "fold-divisors" }

// Run implements Pass. It comes after Lower, which makes the first form.
func (FoldDivisors) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	f := &divisorFolder{g: g, ix: g.Index(), names: g.Namer()}
	drop := map[*graph.Node]bool{}
	for _, n := range g.Nodes {
		c := f.vector(n.In(1))
		if !n.Is("Mul") || c == nil || f.ix.IsOutput(n.Outputs[0]) || f.ix.Captured(n.Outputs[0]) {
			continue
		}
		edits := f.absorb(n.In(0), int64(len(c)))
		if edits == nil {
			continue
		}
		for _, e := range edits {
			f.scale(e, c)
		}
		for _, u := range f.ix.Uses(n.Outputs[0]) {
			u.Node.Inputs[u.Input] = n.In(0)
		}
		drop[n] = true
	}
	if len(drop) > 0 {
		g.Nodes = without(g.Nodes, drop)
		g.Prune()
	}
	return Stats{Changed: len(drop), Note: fmt.Sprintf("%d multiplications folded", len(drop))}, nil
}

type divisorFolder struct {
	g     *graph.Graph
	ix    *graph.Index
	names graph.Namer
}

// operand is one input of a node.
type operand struct {
	node  *graph.Node
	input int
}

// vector returns the values of a constant [n], nil for anything else.
func (f *divisorFolder) vector(name string) []float32 {
	t := f.g.Init(name)
	if t == nil || t.Type != tensor.Float32 || len(t.Dims) != 1 {
		return nil
	}
	return tensor.View[float32](t)
}

// absorb returns the constants to multiply by a vector of width channels so
// that value is multiplied by it, or nil when there are none.
func (f *divisorFolder) absorb(value string, width int64) []operand {
	n := f.ix.Producer(value)
	if n == nil || f.ix.Only(value) == nil || value != n.Outputs[0] {
		return nil
	}
	fits := func(i int) bool { return int64(len(f.vector(n.In(i)))) == width }
	switch {
	case n.Domain == graph.DomainMS && n.Op == "MatMulIntegerToFloat":
		t := f.g.Init(n.In(3))
		if t == nil || t.Type != tensor.Float32 || !(fits(3) || t.Len() == 1) || (n.In(6) != "" && !fits(6)) {
			return nil
		}
		out := []operand{{n, 3}}
		if n.In(6) != "" {
			out = append(out, operand{n, 6})
		}
		return out
	case n.Domain == graph.DomainMS && n.Op == "MultiHeadAttention":
		// With a past or a bias of its own the values are more than one product's.
		if len(n.Outputs) > 1 || n.In(3) != "" || n.In(6) != "" || n.In(7) != "" {
			return nil
		}
		return f.absorb(n.In(2), width)
	case n.Is("LayerNormalization"):
		if len(n.Outputs) > 1 || !fits(1) || (n.In(2) != "" && !fits(2)) {
			return nil
		}
		out := []operand{{n, 1}}
		if n.In(2) != "" {
			out = append(out, operand{n, 2})
		}
		return out
	case n.Is("Mul") && fits(1):
		return []operand{{n, 1}}
	case n.Is("Add") && fits(1):
		if before := f.absorb(n.In(0), width); before != nil {
			return append(before, operand{n, 1})
		}
	}
	return nil
}

// scale gives the operand a constant of its own, multiplied by c.
func (f *divisorFolder) scale(o operand, c []float32) {
	old := o.node.Inputs[o.input]
	v := tensor.View[float32](f.g.Init(old))
	scaled := make([]float32, len(c))
	for i := range scaled {
		scaled[i] = v[i%len(v)] * c[i]
	}
	o.node.Inputs[o.input] = f.names.Name(old + "_divided")
	f.g.SetInit(o.node.Inputs[o.input], tensor.From(scaled, int64(len(c))))
}
