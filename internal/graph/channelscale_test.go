package graph

import (
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// scaledProduct is x [2, 2, 3] -> MatMul -> [Add] -> [Transpose] -> Mul -> y.
func scaledProduct(c *tensor.Tensor, bias *tensor.Tensor, perm ...int64) *Model {
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: fixed([]int64{2, 2, 3})}},
		Outputs: []*Value{{Name: "y"}},
		Info:    map[string]*Value{},
	}}
	g := m.Graph
	g.SetInit("w", tensor.From([]float32{1, 2, 3, 4, 5, 6}, 3, 2))
	g.SetInit("c", c)
	g.Nodes = []*Node{NewNode("", "MatMul", "product", []string{"x", "w"}, []string{"p"})}
	v := "p"
	if bias != nil {
		g.SetInit("b", bias)
		g.Nodes = append(g.Nodes, NewNode("", "Add", "bias", []string{"b", v}, []string{"s"}))
		v = "s"
	}
	if perm != nil {
		g.Nodes = append(g.Nodes, NewNode("", "Transpose", "turn", []string{v}, []string{"t"}, AttrInts("perm", perm...)))
		v = "t"
	}
	g.Nodes = append(g.Nodes, NewNode("", "Mul", "scale", []string{"c", v}, []string{"y"}))
	return m
}

func TestFoldChannelScales(t *testing.T) {
	c, b := tensor.From([]float32{2, -.5}, 2), tensor.From([]float32{10, 20}, 2)
	for name, tc := range map[string]struct {
		m    *Model
		edit func(m *Model)
		want int
		ends string // the operator that gives y
	}{
		"product":                    {scaledProduct(c, nil), nil, 1, "MatMul"},
		"bias":                       {scaledProduct(c, b), nil, 1, "Add"},
		"the other way round":        {scaledProduct(c, b), func(m *Model) { slices.Reverse(m.Graph.Nodes[2].Inputs) }, 1, "Add"},
		"three dimensions":           {scaledProduct(tensor.From([]float32{2, -.5}, 1, 1, 2), b), nil, 1, "Add"},
		"two dimensions of the bias": {scaledProduct(c, tensor.From([]float32{10, 20}, 1, 2)), nil, 1, "Add"},
		"channels first":             {scaledProduct(tensor.From([]float32{2, -.5}, 2, 1), b, 0, 2, 1), nil, 1, "Transpose"},
		"one number":                 {scaledProduct(tensor.From([]float32{2}, 1), b), nil, 0, "Mul"},
		"a number for each row":      {scaledProduct(tensor.From([]float32{2, -.5}, 2, 1), b), nil, 0, "Mul"},
		"rows behind a Transpose":    {scaledProduct(c, b, 0, 2, 1), nil, 0, "Mul"},
		"more dimensions":            {scaledProduct(tensor.From([]float32{2, -.5}, 1, 1, 1, 2), b), nil, 0, "Mul"},
		"a matrix":                   {scaledProduct(tensor.From([]float32{2, -.5, 1, 1}, 2, 2), b), nil, 0, "Mul"},
		"infinite":                   {scaledProduct(tensor.From([]float32{2, float32(math.Inf(1))}, 2), b), nil, 0, "Mul"},
		"too large":                  {scaledProduct(tensor.From([]float32{2, math.MaxFloat32}, 2), b), nil, 0, "Mul"},
		"others read the sum":        {scaledProduct(c, b), func(m *Model) { m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "s"}) }, 0, "Mul"},
		"others read the product":    {scaledProduct(c, b), func(m *Model) { m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "p"}) }, 0, "Mul"},
		"others read the weight":     {scaledProduct(c, b), func(m *Model) { m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "w"}) }, 0, "Mul"},
		"no constant": {scaledProduct(c, b), func(m *Model) {
			m.Graph.Inputs = append(m.Graph.Inputs, &Value{Name: "d", Type: tensor.Float32, Dims: fixed([]int64{2})})
			m.Graph.Nodes[2].Inputs[0] = "d"
		}, 0, "Mul"},
		"others read bias and scale": {scaledProduct(c, b), func(m *Model) {
			m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "b"}, &Value{Name: "c"})
		}, 1, "Add"},
	} {
		if tc.edit != nil {
			tc.edit(tc.m)
		}
		got := FoldChannelScales(tc.m)
		g := tc.m.Graph
		if err := tc.m.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if end := g.Index().Producer("y"); got != tc.want || end == nil || end.Op != tc.ends {
			t.Errorf("%s: %d folded, y of %v; want %d, %s", name, got, end, tc.want, tc.ends)
			continue
		}
		if got == 0 {
			continue
		}
		want := []float32{2, -1, 6, -2, 10, -3}
		if v := tensor.View[float32](g.Init("w")); !slices.Equal(v, want) {
			t.Errorf("%s: weight %v, want %v", name, v, want)
		}
		for _, n := range g.Nodes {
			if slices.Contains([]string{"p", "s", "t"}, n.Outputs[0]) {
				t.Errorf("%s: %s still stands for another value", name, n.Outputs[0])
			}
			if n.Op == "Add" {
				t2 := g.Init(n.In(0))
				if v := tensor.View[float32](t2); !slices.Equal(v, []float32{20, -10}) || name == "two dimensions of the bias" && len(t2.Dims) != 2 {
					t.Errorf("%s: bias %v %v", name, v, t2.Dims)
				}
			}
		}
		if name == "others read bias and scale" {
			if v := tensor.View[float32](g.Init("b")); !slices.Equal(v, []float32{10, 20}) {
				t.Errorf("%s: they read %v", name, v)
			}
		} else if len(g.Inits()) > 2 {
			t.Errorf("%s: %v are left", name, g.Inits())
		}
	}
}

// TestFoldChannelScalesTwice: two scales one behind the other.
func TestFoldChannelScalesTwice(t *testing.T) {
	m := scaledProduct(tensor.From([]float32{2, -.5}, 2), nil)
	g := m.Graph
	g.SetInit("d", tensor.From([]float32{3, 4}, 2))
	g.Nodes[1].Outputs[0] = "z"
	g.Nodes = append(g.Nodes, NewNode("", "Mul", "again", []string{"z", "d"}, []string{"y"}))
	if n := FoldChannelScales(m); n != 2 {
		t.Fatal(n)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if v, want := tensor.View[float32](g.Init("w")), []float32{6, -4, 18, -8, 30, -12}; !slices.Equal(v, want) {
		t.Errorf("%v, want %v", v, want)
	}
}
