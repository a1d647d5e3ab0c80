package graph

import (
	"math"

	"github.com/fewbit/fewbit/internal/tensor"
)

// GeluOf returns the value that is GELU(x) and the nodes that compute it, when
// all that read x do so: the operator Gelu, or 0.5 x (1 + erf(x / sqrt 2)) in
// the orders in which exporters write it.
func GeluOf(g *Graph, ix *Index, x string) (string, []*Node) {
	if n := ix.Only(x); n != nil {
		if n.Op == "Gelu" && (n.Domain == DomainMS || n.Domain == DomainONNX && n.Str("approximate", "none") == "none") {
			return n.Outputs[0], []*Node{n}
		}
		return "", nil
	}
	if ix.IsOutput(x) || ix.Captured(x) || len(ix.Uses(x)) != 2 {
		return "", nil
	}
	// Of the two readers one scales for erf, the other multiplies.
	for i, u := range ix.Uses(x) {
		scale, other := u.Node, ix.Uses(x)[1-i].Node
		if !(scale.Is("Div") && isNumber(g, scale.In(1), math.Sqrt2) && u.Input == 0 || scale.Is("Mul") && isNumber(g, operand(scale, x), math.Sqrt2/2)) {
			continue
		}
		erf := ix.Only(scale.Outputs[0])
		if erf == nil || !erf.Is("Erf") {
			continue
		}
		one := ix.Only(erf.Outputs[0])
		if one == nil || !one.Is("Add") || !isNumber(g, operand(one, erf.Outputs[0]), 1) {
			continue
		}
		join := ix.Only(one.Outputs[0])
		if join == nil || !join.Is("Mul") || !other.Is("Mul") {
			continue
		}
		nodes := []*Node{scale, erf, one, join, other}
		if other == join { // x (1 + erf) 0.5
			half := ix.Only(join.Outputs[0])
			if half != nil && half.Is("Mul") && isNumber(g, operand(half, join.Outputs[0]), 0.5) {
				return half.Outputs[0], append(nodes, half)
			}
			continue
		}
		// (0.5 x) (1 + erf)
		if isNumber(g, operand(other, x), 0.5) && ix.Only(other.Outputs[0]) == join {
			return join.Outputs[0], nodes
		}
	}
	return "", nil
}

// operand returns the operand of n beside x.
func operand(n *Node, x string) string {
	if n.In(0) == x {
		return n.In(1)
	}
	return n.In(0)
}

// isNumber reports whether the initializer is the one number v, as far as floats of
// different exporters agree.
func isNumber(g *Graph, name string, v float64) bool {
	const tolerance = 1e-5
	t := g.Init(name)
	if t == nil || t.Type != tensor.Float32 || t.Len() != 1 {
		return false
	}
	f, err := t.F32()
	return err == nil && math.Abs(float64(f[0])-v) <= tolerance*v
}
