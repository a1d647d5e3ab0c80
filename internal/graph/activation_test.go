package graph

import (
	"math"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// steps makes a graph from x to y of nodes "output op input ...", in which a word
// that is a number is a constant.
func steps(nodes ...*Node) *Graph {
	g := &Graph{Info: map[string]*Value{}, Inputs: []*Value{{Name: "x", Type: tensor.Float32}}, Outputs: []*Value{{Name: "y", Type: tensor.Float32}}, Nodes: nodes}
	for name, v := range map[string]float64{"half": .5, "one": 1, "two": 2, "three": 3, "quick": 1.702, "root2": math.Sqrt2, "inverse": math.Sqrt2 / 2,
		"cube": .044715, "beta": math.Sqrt(2 / math.Pi), "almost": 1.7} {
		g.SetInit(name, tensor.From([]float32{float32(v)}))
	}
	g.SetInit("vector", tensor.From([]float32{1, 1}, 2))
	return g
}

func step(y, op string, in ...string) *Node { return NewNode("", op, y, in, []string{y}) }

func TestActivationOf(t *testing.T) {
	erf := []*Node{step("d", "Div", "x", "root2"), step("e", "Erf", "d"), step("s", "Add", "e", "one"), step("p", "Mul", "x", "s"), step("y", "Mul", "p", "half")}
	output := func(g *Graph, name string) *Graph {
		g.Outputs = append(g.Outputs, &Value{Name: name, Type: tensor.Float32})
		return g
	}
	for name, tc := range map[string]struct {
		g    *Graph
		want string
	}{
		"GELU":             {steps(erf...), "gelu"},
		"GELU, half first": {steps(step("h", "Mul", "half", "x"), step("d", "Mul", "x", "inverse"), step("e", "Erf", "d"), step("s", "Add", "one", "e"), step("y", "Mul", "s", "h")), "gelu"},
		"GELU, half of the sum": {steps(step("d", "Mul", "x", "inverse"), step("e", "Erf", "d"), step("s", "Add", "one", "e"), step("h", "Mul", "s", "half"),
			step("y", "Mul", "x", "h")), "gelu"},
		"QuickGELU":                    {steps(step("s", "Mul", "quick", "x"), step("g", "Sigmoid", "s"), step("y", "Mul", "g", "x")), "quick_gelu"},
		"QuickGELU of another factor":  {steps(step("s", "Mul", "almost", "x"), step("g", "Sigmoid", "s"), step("y", "Mul", "g", "x")), ""},
		"SiLU":                         {steps(step("g", "Sigmoid", "x"), step("y", "Mul", "x", "g")), "silu"},
		"a gate of something else":     {steps(step("g", "Sigmoid", "x"), step("y", "Mul", "g", "other")), ""},
		"a vector":                     {steps(step("g", "Sigmoid", "x"), step("v", "Mul", "x", "vector"), step("y", "Mul", "v", "g")), ""},
		"ReLU":                         {steps(step("y", "Relu", "x")), "relu"},
		"tanh alone":                   {steps(step("y", "Tanh", "x")), ""},
		"a number":                     {steps(step("y", "Mul", "x", "half")), ""},
		"the approximation":            {steps(step("c", "Pow", "x", "three"), step("k", "Mul", "c", "cube"), step("a", "Add", "x", "k"), step("i", "Mul", "a", "beta"), step("h", "Tanh", "i"), step("s", "Add", "h", "one"), step("m", "Mul", "x", "half"), step("y", "Mul", "m", "s")), "gelu_tanh"},
		"the approximation, otherwise": {steps(step("q", "Mul", "x", "x"), step("k", "Mul", "cube", "q"), step("o", "Add", "k", "one"), step("b", "Mul", "x", "beta"), step("i", "Mul", "b", "o"), step("h", "Tanh", "i"), step("s", "Add", "one", "h"), step("p", "Mul", "x", "s"), step("y", "Mul", "half", "p")), "gelu_tanh"},
		"the approximation, square":    {steps(step("c", "Pow", "x", "two"), step("k", "Mul", "c", "cube"), step("a", "Add", "x", "k"), step("i", "Mul", "a", "beta"), step("h", "Tanh", "i"), step("s", "Add", "h", "one"), step("m", "Mul", "x", "half"), step("y", "Mul", "m", "s")), ""},
		"another reader":               {output(steps(append(erf[:len(erf):len(erf)], step("n", "Neg", "x"))...), "n"), ""},
		"an inner value is an output":  {output(steps(erf...), "s"), ""},
		"x is an output":               {output(steps(erf...), "x"), ""},
		"more behind it":               {output(steps(append(erf[:len(erf):len(erf)], step("z", "Relu", "y"))...), "z"), "gelu"},
		"the operator":                 {steps(NewNode(DomainMS, "Gelu", "y", []string{"x"}, []string{"y"})), "gelu"},
		"the approximating operator":   {steps(NewNode("", "Gelu", "y", []string{"x"}, []string{"y"}, AttrString("approximate", "tanh"))), "gelu_tanh"},
		"Microsoft's operator":         {steps(NewNode(DomainMS, "FastGelu", "y", []string{"x"}, []string{"y"})), "gelu_tanh"},
		"with a bias":                  {steps(NewNode(DomainMS, "FastGelu", "y", []string{"x", "vector"}, []string{"y"})), ""},
		"QuickGelu":                    {steps(NewNode(DomainMS, "QuickGelu", "y", []string{"x"}, []string{"y"}, AttrFloat("alpha", 1.702))), "quick_gelu"},
		"QuickGelu with 1":             {steps(NewNode(DomainMS, "QuickGelu", "y", []string{"x"}, []string{"y"}, AttrFloat("alpha", 1))), "silu"},
		"QuickGelu with another":       {steps(NewNode(DomainMS, "QuickGelu", "y", []string{"x"}, []string{"y"}, AttrFloat("alpha", 1.5))), ""},
		"nobody reads x":               {steps(step("y", "Relu", "half")), ""},
	} {
		y, act, nodes := ActivationOf(tc.g, tc.g.Index(), "x")
		if act != tc.want || (y == "y") != (tc.want != "") || (len(nodes) > 0) != (tc.want != "") {
			t.Errorf("%s: %q %q of %d nodes, want %q", name, y, act, len(nodes), tc.want)
		}
	}
}
