package graph

import (
	"maps"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Clone returns a copy whose nodes, values and initializer table can be edited
// without touching m. Tensor bytes and attributes are shared: replace them,
// never write in place. The clone does not own the mapped file: it is valid
// until m is closed.
func (m *Model) Clone() *Model {
	c := *m
	c.close = nil
	c.Opsets, c.Metadata = maps.Clone(m.Opsets), maps.Clone(m.Metadata)
	g := *m.Graph
	g.Inputs, g.Outputs = cloneValues(g.Inputs), cloneValues(g.Outputs)
	g.Info = make(map[string]*Value, len(m.Graph.Info))
	for k, v := range m.Graph.Info {
		x := *v
		g.Info[k] = &x
	}
	g.Nodes = make([]*Node, len(m.Graph.Nodes))
	for i, n := range m.Graph.Nodes {
		x := *n
		x.Inputs, x.Outputs, x.Attrs = slices.Clone(n.Inputs), slices.Clone(n.Outputs), slices.Clone(n.Attrs)
		g.Nodes[i] = &x
	}
	g.inits = make(map[string]*tensor.Tensor, len(m.Graph.inits))
	maps.Copy(g.inits, m.Graph.inits)
	g.order = slices.Clone(m.Graph.order)
	c.Graph = &g
	return &c
}

func cloneValues(v []*Value) []*Value {
	out := make([]*Value, len(v))
	for i, x := range v {
		c := *x
		c.Dims = slices.Clone(x.Dims)
		out[i] = &c
	}
	return out
}
