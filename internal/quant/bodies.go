package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
)

// Unobserved ends the rule of operators in bodies that calibration does not reach.
const Unobserved = ", whose inner tensors cannot be observed"

// Multiplies reports whether a body of n, itself and not one inside it, holds an
// operator with multiply-accumulates.
func Multiplies(n *graph.Node) bool {
	for _, a := range n.Attrs {
		for _, p := range a.GetG().GetNode() {
			if hasMACs(&graph.Node{Op: p.GetOpType()}) {
				return true
			}
		}
	}
	return false
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
