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
// accumulates, largest first, with what the plan makes of it. bind gives the
// symbolic dimensions their sizes.
func (p *Plan) Cover(m *graph.Model, bind map[string]int64) []Coverage {
	rules := map[*graph.Node]string{}
	for _, f := range p.Float {
		rules[f.Node] = f.Rule
	}
	planned := map[*graph.Node]bool{}
	for _, op := range p.Ops {
		if op.Kind == Linear || op.Kind == Conv {
			planned[op.Node] = true
		}
	}
	macs := graph.MACs(m, bind)
	var out []Coverage
	for _, n := range m.Graph.Nodes {
		rule, float := rules[n]
		if macs[n] == 0 && !planned[n] && !float {
			continue
		}
		if !planned[n] && !float {
			rule = "no integer form is known for it"
		}
		out = append(out, Coverage{n, macs[n], planned[n], rule})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].MACs > out[j].MACs })
	return out
}
