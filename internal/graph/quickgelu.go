package graph

// quickGelu is the factor of x sigmoid(1.702 x), Hendrycks and Gimpel 2016
// (arXiv:1606.08415), as CLIP has it.
const quickGelu = 1.702

// QuickGeluOf returns the value that is x sigmoid(1.702 x) and the nodes that
// compute it, when all that read x do so: the operator QuickGelu, or
//
//	x -> Mul 1.702 -> Sigmoid -> Mul x
func QuickGeluOf(g *Graph, ix *Index, x string) (string, []*Node) {
	if n := ix.Only(x); n != nil {
		d := n.Float("alpha", quickGelu) - quickGelu
		if n.Op == "QuickGelu" && n.Domain == DomainMS && d*d < 1e-10 {
			return n.Outputs[0], []*Node{n}
		}
		return "", nil
	}
	if ix.IsOutput(x) || ix.Captured(x) || len(ix.Uses(x)) != 2 {
		return "", nil
	}
	for i, u := range ix.Uses(x) {
		scale, join := u.Node, ix.Uses(x)[1-i].Node
		if !scale.Is("Mul") || !join.Is("Mul") || !isNumber(g, operand(scale, x), quickGelu) {
			continue
		}
		sigmoid := ix.Only(scale.Outputs[0])
		if sigmoid == nil || !sigmoid.Is("Sigmoid") || ix.Only(sigmoid.Outputs[0]) != join || operand(join, x) != sigmoid.Outputs[0] {
			continue
		}
		return join.Outputs[0], []*Node{scale, sigmoid, join}
	}
	return "", nil
}
