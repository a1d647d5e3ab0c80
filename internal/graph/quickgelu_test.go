package graph

import (
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

func TestQuickGeluOf(t *testing.T) {
	build := func(edit func(g *Graph)) *Graph {
		g := &Graph{Info: map[string]*Value{}, Inputs: []*Value{{Name: "x", Type: tensor.Float32}}, Outputs: []*Value{{Name: "y", Type: tensor.Float32}}}
		g.SetInit("c", tensor.From([]float32{1.702}))
		g.Nodes = []*Node{
			NewNode("", "Mul", "scale", []string{"c", "x"}, []string{"scaled"}),
			NewNode("", "Sigmoid", "sigmoid", []string{"scaled"}, []string{"share"}),
			NewNode("", "Mul", "join", []string{"x", "share"}, []string{"y"}),
		}
		edit(g)
		return g
	}
	for name, tc := range map[string]struct {
		edit func(g *Graph)
		want string
	}{
		"decomposed":    {func(*Graph) {}, "y"},
		"the other way": {func(g *Graph) { g.Nodes[2].Inputs = []string{"share", "x"} }, "y"},
		"SiLU":          {func(g *Graph) { g.SetInit("c", tensor.From([]float32{1})) }, ""},
		"a gate":        {func(g *Graph) { g.Nodes[2].Inputs = []string{"share", "c"} }, ""},
		"a share that is an output": {func(g *Graph) {
			g.Outputs = append(g.Outputs, &Value{Name: "share", Type: tensor.Float32})
		}, ""},
		"a third reader": {func(g *Graph) { g.Nodes = append(g.Nodes, NewNode("", "Neg", "n", []string{"x"}, []string{"n"})) }, ""},
		"the operator": {func(g *Graph) {
			g.Nodes = []*Node{NewNode(DomainMS, "QuickGelu", "q", []string{"x"}, []string{"y"}, AttrFloat("alpha", 1.702))}
		}, "y"},
		"the operator with another factor": {func(g *Graph) {
			g.Nodes = []*Node{NewNode(DomainMS, "QuickGelu", "q", []string{"x"}, []string{"y"}, AttrFloat("alpha", 1))}
		}, ""},
	} {
		g := build(tc.edit)
		if y, nodes := QuickGeluOf(g, g.Index(), "x"); y != tc.want || (y != "") != (len(nodes) > 0) {
			t.Errorf("%s: %q, want %q", name, y, tc.want)
		}
	}
}
