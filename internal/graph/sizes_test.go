package graph

import (
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

func TestSizes(t *testing.T) {
	m := &Model{Opsets: map[string]int64{"": 17}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "n"}, {N: 8}}}, {Name: "free", Type: tensor.Float32}},
		Outputs: []*Value{{Name: "z"}},
		Nodes: []*Node{
			NewNode("", "MatMul", "", []string{"x", "w"}, []string{"y"}),
			NewNode("", "Cast", "", []string{"y"}, []string{"h"}, AttrInt("to", int64(tensor.Float16))),
			NewNode("", "Add", "", []string{"free", "h"}, []string{"z"}),
		}}}
	m.Graph.SetInit("w", tensor.From(make([]float32, 8*3), 8, 3))
	got := Sizes(m, map[string]int64{"x[0]": 5})
	for name, want := range map[string]int64{"x": 5 * 8 * 4, "y": 5 * 3 * 4, "h": 5 * 3 * 2} {
		if got[name] != want {
			t.Errorf("%s: %d bytes, want %d", name, got[name], want)
		}
	}
	for _, name := range []string{"z", "free"} {
		if n, ok := got[name]; ok {
			t.Errorf("%s: %d bytes of what nobody knows", name, n)
		}
	}
	if n, ok := Sizes(m, nil)["y"]; ok {
		t.Errorf("y: %d bytes with an unknown dimension", n)
	}
	if n, ok := Sizes(m, map[string]int64{"x[0]": 1 << 60})["y"]; ok {
		t.Errorf("y: %d bytes of more than there are", n)
	}
}
