package graph

import "github.com/fewbit/fewbit/internal/onnx/pb"

// maxBodies bounds how deep bodies lie in bodies.
const maxBodies = 16

// Bodies calls f with every node in the bodies of n (If, Loop, Scan), those in
// bodies of bodies too, and with the constants of the body that it stands in by
// name. They are copies: changing them changes nothing.
func (n *Node) Bodies(f func(inner *Node, constants map[string]bool)) {
	bodies(n.Attrs, map[string]bool{}, 0, f)
}

func bodies(attrs []*pb.AttributeProto, outer map[string]bool, depth int, f func(*Node, map[string]bool)) {
	if depth == maxBodies {
		return
	}
	for _, a := range attrs {
		walkGraphs(a, func(g *pb.GraphProto) {
			constants := map[string]bool{}
			for name := range outer {
				constants[name] = true
			}
			for _, v := range g.Input { // hides what lies outside
				delete(constants, v.GetName())
			}
			for _, t := range g.Initializer {
				constants[t.GetName()] = true
			}
			for _, p := range g.Node {
				for _, o := range p.Output {
					delete(constants, o)
					if p.GetOpType() == "Constant" {
						constants[o] = true
					}
				}
			}
			nodes := make([]*Node, len(g.Node))
			for i, p := range g.Node {
				nodes[i] = NewNode(p.GetDomain(), p.GetOpType(), p.GetName(), p.Input, p.Output, p.Attribute...)
			}
			nameNodes(nodes) // as FromProto does
			for _, inner := range nodes {
				f(inner, constants)
				bodies(inner.Attrs, constants, depth+1, f)
			}
		})
	}
}
