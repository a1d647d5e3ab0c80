package quant

import (
	"sort"

	"github.com/fewbit/fewbit/internal/graph"
)

// Coverage is one operator with multiply-accumulates and where it runs.
type Coverage struct {
	Node    *graph.Node
	MACs    int64
	Integer bool
	Rule    string // why not, when not
}

// Cover lists every operator of the float model m that multiplies and
// accumulates, largest first, with what the plan makes of it. shapes gives the
// model's inputs their sizes: exporters' symbolic names cannot be relied on
// (one calls both batch and length "batch").
func (p *Plan) Cover(m *graph.Model, shapes map[string][]int64) []Coverage {
	rules := map[*graph.Node]string{}
	for _, f := range p.Float {
		rules[f.Node] = f.Rule
	}
	planned, small := map[*graph.Node]bool{}, map[*graph.Node]bool{} // small: convolutions with 4-bit weights
	for _, op := range p.Ops {
		if op.Kind == Linear || op.Kind == Conv || op.Kind == Recurrent {
			planned[op.Node] = true
			small[op.Node] = op.Kind == Conv && op.Precision == PrecisionINT4
		}
	}
	macs := macsAt(m, shapes)
	var out []Coverage
	for _, n := range m.Graph.Nodes {
		if len(n.Outputs) == 0 {
			continue
		}
		rule, float := rules[n]
		four := planned[n] && small[n]
		if four {
			rule = "4-bit weight: floats are made of it when the model is loaded"
		}
		if macs[n.Outputs[0]] == 0 && !planned[n] && !float {
			continue
		}
		if !planned[n] && !float {
			rule = "no integer form is known for it"
		}
		out = append(out, Coverage{n, macs[n.Outputs[0]], planned[n] && !four, rule})
	}
	own := map[*graph.Node]bool{}
	for _, n := range m.Graph.Nodes {
		own[n] = true
	}
	for _, f := range p.Float {
		if !own[f.Node] && len(f.Node.Outputs) > 0 { // in a body
			out = append(out, Coverage{Node: f.Node, Rule: f.Rule})
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].MACs > out[j].MACs })
	return out
}

// macsAt counts multiply-accumulates by a node's first output, for inputs of
// the given shapes.
func macsAt(m *graph.Model, shapes map[string][]int64) map[string]int64 {
	c := m.Clone()
	c.Graph.Info = map[string]*graph.Value{} // inferred anew from the shapes
	for _, v := range c.Graph.Inputs {
		for i, n := range shapes[v.Name] {
			if i < len(v.Dims) {
				v.Dims[i] = graph.Dim{N: n}
			}
		}
	}
	for _, v := range c.Graph.Outputs {
		v.Dims = nil
	}
	count := map[string]int64{}
	for n, k := range graph.MACs(c, nil) {
		if len(n.Outputs) > 0 {
			count[n.Outputs[0]] = k
		}
	}
	return count
}
