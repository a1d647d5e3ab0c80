package quant

import (
	"fmt"
	"math"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestSameValues: values that are computed alike have one name, others their own.
func TestSameValues(t *testing.T) {
	g := &graph.Graph{Info: map[string]*graph.Value{}}
	for name, v := range map[string]float32{"zero": 0, "zero2": 0, "least": -1, "nan": float32(math.NaN())} {
		g.SetInit(name, tensor.From([]float32{v}, 1))
	}
	g.SetInit("scalar", tensor.From([]float32{0}))
	big := make([]float32, maxSameConstant+1)
	g.SetInit("big", tensor.From(big, int64(len(big))))
	g.SetInit("big2", tensor.From(big, int64(len(big))))
	node := func(op, out string, in []string, axis int64) {
		g.Nodes = append(g.Nodes, graph.NewNode("", op, out, in, []string{out}, graph.AttrInt("axis", axis)))
	}
	node("Where", "a", []string{"x", "zero", "least"}, 0)
	node("Where", "b", []string{"x", "zero2", "least"}, 0)
	node("Where", "axis", []string{"x", "zero", "least"}, 1)
	node("Where", "order", []string{"x", "least", "zero"}, 0)
	node("Where", "shape", []string{"x", "scalar", "least"}, 0)
	node("Where", "other", []string{"y", "zero", "least"}, 0)
	node("Add", "c", []string{"a", "big"}, 0)
	node("Add", "d", []string{"b", "big"}, 0)
	node("Add", "e", []string{"b", "big2"}, 0)
	node("RandomUniform", "r", nil, 0)
	node("RandomUniform", "r2", nil, 0)
	last := "a"
	for i := range 3 * maxSameDepth { // longer than values are followed
		next := fmt.Sprint("deep", i)
		node("Neg", next, []string{last}, 0)
		last = next
	}
	s := newSameValues(g)
	for _, tc := range []struct{ value, want string }{
		{"a", "a"}, {"b", "a"}, {"axis", "axis"}, {"order", "order"}, {"shape", "shape"}, {"other", "other"}, {"c", "c"}, {"d", "c"},
		{"e", "e"}, {"r", "r"}, {"r2", "r2"}, {"x", "x"}, {"", ""}, {last, last}, {"b", "a"},
	} {
		if got := s.name(tc.value); got != tc.want {
			t.Errorf("%q is the same as %q, want %q", tc.value, got, tc.want)
		}
	}
}
