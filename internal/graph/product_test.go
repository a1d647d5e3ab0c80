package graph

import (
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// TestProductsOfSymbols: batch*heads and what a Reshape leaves open beside it
// are known, and made-up names stay inside.
func TestProductsOfSymbols(t *testing.T) {
	b, l := Dim{N: -1, Name: "batch"}, Dim{N: -1, Name: "length"}
	four, six := Dim{N: 4}, Dim{N: 6}
	if times(b, four) != times(four, b) || times(times(b, l), four) != times(l, times(four, b)) || times(b, four) == times(b, six) || times(b, four) == times(l, four) {
		t.Error("products do not say what they are of")
	}
	if times(times(b, four), six) != times(b, Dim{N: 24}) || times(b, Dim{N: 1}) != b || times(b, unknownDim) != unknownDim {
		t.Error("numbers are not multiplied")
	}
	huge := times(b, Dim{N: maxSize})
	if times(huge, four) != unknownDim {
		t.Error("a product beyond the limit is known")
	}
	many := b
	for range maxFactors {
		many = times(many, b)
	}
	if many != unknownDim {
		t.Error("more symbols than the limit")
	}
	x := []Dim{b, four, l, {N: 16}}
	for _, tc := range []struct {
		by   []Dim
		want Dim
	}{
		{[]Dim{times(b, four), {N: 16}}, l},
		{[]Dim{b, {N: 1}, {N: 16}}, times(four, l)},
		{[]Dim{times(b, Dim{N: 8}), {N: 8}}, l},
		{[]Dim{times(b, Dim{N: 3})}, unknownDim},
		{[]Dim{times(l, l)}, unknownDim},
		{[]Dim{{N: 0}}, unknownDim},
		{[]Dim{unknownDim}, unknownDim},
	} {
		if got := quotient(x, tc.by); got != tc.want {
			t.Errorf("by %v: %v, want %v", tc.by, got, tc.want)
		}
	}
	// x -> Reshape [batch*4, -1, 16], where the graph multiplies the batch.
	g := &Graph{Inputs: []*Value{{Name: "x", Type: tensor.Float32, Dims: x}}}
	g.SetInit("zero", tensor.From([]int64{0}, 1))
	g.SetInit("heads", tensor.From([]int64{4}, 1))
	g.SetInit("open", tensor.From([]int64{-1, 16}, 2))
	for _, n := range [][3]string{{"Shape", "x", "shape"}, {"Gather", "shape zero", "batch"}, {"Mul", "batch heads", "all"}, {"Concat", "all open", "to"}, {"Reshape", "x to", "y"}} {
		g.Nodes = append(g.Nodes, NewNode("", n[0], n[2], strings.Fields(n[1]), []string{n[2]}, AttrInt("axis", 0)))
	}
	m := &Model{IR: 10, Opsets: map[string]int64{"": 17}, Graph: g}
	InferShapes(m)
	if d := g.Dims("y"); len(d) != 3 || d[0] != unknownDim || d[1] != l || d[2].N != 16 {
		t.Errorf("%v", d)
	}
}
