package graph

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

type bnCase struct {
	Op    string
	Attrs []goldenAttr
	Eps   float32
	X     []int64
	W     goldenTensor
	B     *goldenTensor
	BN    [4]goldenTensor
	W2    goldenTensor
	B2    goldenTensor
}

// model builds x -> op -> BatchNormalization -> y.
func (c *bnCase) model() *Model {
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: fixed(c.X)}},
		Outputs: []*Value{{Name: "y"}},
		Info:    map[string]*Value{},
	}}
	g := m.Graph
	g.SetInit("w", c.W.Tensor)
	params := []string{"scale", "shift", "mean", "var"}
	for i, p := range params {
		g.SetInit(p, c.BN[i].Tensor)
	}
	in := []string{"x", "w"}
	if c.B != nil {
		g.SetInit("b", c.B.Tensor)
		in = append(in, "b")
	}
	switch c.Op {
	case "MatMul+Add":
		g.Nodes = []*Node{NewNode("", "MatMul", "op", in[:2], []string{"p"}), NewNode("", "Add", "add", []string{"b", "p"}, []string{"h"})}
	default:
		n := NewNode("", c.Op, "op", in, []string{"h"})
		for _, a := range c.Attrs {
			n.Attrs = append(n.Attrs, a.AttributeProto)
		}
		g.Nodes = []*Node{n}
	}
	g.Nodes = append(g.Nodes, NewNode("", "BatchNormalization", "bn", append([]string{"h"}, params...), []string{"y"}, AttrFloat("epsilon", c.Eps)))
	return m
}

func bnCases(t *testing.T) []bnCase {
	var cases []bnCase
	goldenFile(t, "batchnorm.json", &cases)
	return cases
}

func TestFoldBatchNorm(t *testing.T) {
	for i, c := range bnCases(t) {
		m := c.model()
		label := fmt.Sprintf("case %d: %s", i, m.Graph.Nodes[0])
		if FoldBatchNorm(m) != 1 {
			t.Errorf("%s: not folded", label)
			continue
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", label, err)
		}
		g := m.Graph
		last := g.Nodes[len(g.Nodes)-1]
		bias := last.Inputs[len(last.Inputs)-1]
		if c.Op == "MatMul+Add" {
			bias = last.Inputs[0]
		}
		for _, n := range g.Nodes {
			if n.Op == "BatchNormalization" || n.Attr("beta") != nil {
				t.Errorf("%s: left %s", label, n)
			}
		}
		if last.Outputs[0] != "y" || len(g.Inits()) != 2 {
			t.Errorf("%s: ends in %s, initializers %v", label, last, g.Inits())
		}
		for _, p := range []struct {
			what      string
			got, want *tensor.Tensor
		}{{"weight", g.Init(g.Nodes[0].Inputs[1]), c.W2.Tensor}, {"bias", g.Init(bias), c.B2.Tensor}} {
			if p.got == nil || !slices.Equal(p.got.Dims, p.want.Dims) || string(p.got.Data) != string(p.want.Data) {
				t.Errorf("%s: %s %v, want %v", label, p.what, p.got, p.want)
			}
		}
	}
}

// TestFoldBatchNormSharing: a weight that another node reads keeps its values
// for that node.
func TestFoldBatchNormSharing(t *testing.T) {
	for i, c := range bnCases(t) {
		m := c.model()
		g := m.Graph
		g.Nodes = append(g.Nodes, NewNode("", "Relu", "other", []string{"w"}, []string{"z"}))
		g.Outputs = append(g.Outputs, &Value{Name: "z"})
		if c.B != nil { // the bias is a graph output itself
			g.Outputs = append(g.Outputs, &Value{Name: "b"})
		}
		if FoldBatchNorm(m) != 1 {
			t.Errorf("case %d: not folded", i)
			continue
		}
		if err := m.Check(); err != nil {
			t.Errorf("case %d: %v", i, err)
		}
		if string(g.Init("w").Data) != string(c.W.Data) || (c.B != nil && string(g.Init("b").Data) != string(c.B.Data)) {
			t.Errorf("case %d: a shared tensor changed", i)
		}
		if name := g.Nodes[0].Inputs[1]; name != "w_folded" || string(g.Init(name).Data) != string(c.W2.Data) {
			t.Errorf("case %d: weight %q", i, name)
		}
	}
	// Two convolutions on one weight, both normalized: each gets its own copy.
	c := bnCases(t)[0]
	m := c.model()
	g := m.Graph
	two := c.model().Graph.Nodes
	for _, n := range two {
		n.Outputs[0] += "2"
		if n.Op == "BatchNormalization" {
			n.Inputs[0] += "2"
		}
	}
	g.Nodes = append(g.Nodes, two...)
	g.Outputs = append(g.Outputs, &Value{Name: "y2"})
	if n := FoldBatchNorm(m); n != 2 {
		t.Fatalf("%d folded", n)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	for _, n := range g.Nodes {
		if string(g.Init(n.Inputs[1]).Data) != string(c.W2.Data) || string(g.Init(n.Inputs[2]).Data) != string(c.B2.Data) {
			t.Errorf("%s: wrong weights", n)
		}
	}
	if len(g.Inits()) != 4 || g.Init("w") != nil {
		t.Errorf("initializers: %v", g.Inits())
	}
}

func TestFoldBatchNormKeeps(t *testing.T) {
	conv, matmul := bnCases(t)[0], bnCases(t)[10]
	for name, edit := range map[string]func(*Model){
		"second reader": func(m *Model) {
			m.Graph.Nodes = append(m.Graph.Nodes, NewNode("", "Relu", "", []string{"h"}, []string{"z"}))
			m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "z"})
		},
		"intermediate is an output": func(m *Model) { m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "h"}) },
		"training":                  func(m *Model) { m.Graph.Nodes[1].Attrs = append(m.Graph.Nodes[1].Attrs, AttrInt("training_mode", 1)) },
		"training outputs":          func(m *Model) { m.Graph.Nodes[1].Outputs = append(m.Graph.Nodes[1].Outputs, "rm", "rv") },
		"negative variance":         func(m *Model) { m.Graph.SetInit("var", tensor.From([]float32{-1, 1, 1, 1}, 4)) },
		"NaN scale":                 func(m *Model) { m.Graph.SetInit("scale", tensor.From([]float32{float32(math.NaN()), 1, 1, 1}, 4)) },
		"overflow": func(m *Model) {
			m.Graph.SetInit("scale", tensor.From([]float32{math.MaxFloat32, 1, 1, 1}, 4))
			m.Graph.SetInit("var", tensor.From([]float32{0, 1, 1, 1}, 4))
		},
		"wrong channel count": func(m *Model) { m.Graph.SetInit("scale", tensor.From([]float32{1, 1}, 2)) },
		"empty parameters": func(m *Model) {
			for _, p := range m.Graph.Nodes[1].Inputs[1:] {
				m.Graph.SetInit(p, tensor.From([]float32{}, 0))
			}
		},
		"weight is computed": func(m *Model) {
			m.Graph.Nodes[0].Inputs[1] = "x"
		},
		"other domain": func(m *Model) { m.Graph.Nodes[1].Domain = DomainMS },
	} {
		for _, c := range []bnCase{conv, matmul} {
			m := c.model()
			edit(m)
			before := m.Text()
			if n := FoldBatchNorm(m); n != 0 || m.Text() != before {
				t.Errorf("%s, %s: folded %d\n%s", c.Op, name, n, m.Text())
			}
		}
	}
	// Rank 3: axis 1, the channels of BatchNormalization, is not the product's columns.
	m := matmul.model()
	m.Graph.Inputs[0].Dims = fixed([]int64{2, 4, 3})
	if FoldBatchNorm(m) != 0 {
		t.Error("a rank-3 MatMul was folded")
	}
}
