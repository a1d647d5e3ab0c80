package quant

import (
	"fmt"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
)

// Unobserved ends the rule of operators in bodies that calibration does not reach.
const Unobserved = ", whose inner tensors cannot be observed"

// Unobserved counts the operators in bodies, which calibration of the model's own
// nodes does not reach.
func (p *Plan) Unobserved() (n int) {
	for _, f := range p.Float {
		if strings.HasSuffix(f.Rule, Unobserved) {
			n++
		}
	}
	return n
}

// Multiplies reports whether a body of n, or one inside it, holds an operator with
// multiply-accumulates.
func Multiplies(n *graph.Node) (found bool) {
	n.Bodies(func(inner *graph.Node, _ map[string]bool) { found = found || hasMACs(inner) })
	return found
}

// bodies lists the operators with multiply-accumulates in the bodies of If, Loop and
// Scan that would be quantized elsewhere: calibration observes the outputs of the
// model's own nodes, and of a body the engine gives only what the node returns.
func bodies(g *graph.Graph) (left []Float) {
	for _, n := range g.Nodes {
		if !n.HasSubgraph() {
			continue
		}
		name := n.Name
		if name == "" && len(n.Outputs) > 0 {
			name = n.Outputs[0]
		}
		n.Bodies(func(inner *graph.Node, constants map[string]bool) {
			if !hasMACs(inner) || len(inner.Outputs) == 0 {
				return
			}
			rule := fmt.Sprintf("it is in the body of %s %q%s", n.Op, name, Unobserved)
			if w := inner.In(1); (inner.Is("MatMul") || inner.Is("Gemm")) && !constants[w] && g.Init(w) == nil {
				rule = "both inputs are activations (attention scores stay in float)"
			}
			left = append(left, Float{inner, rule})
		})
	}
	return left
}
