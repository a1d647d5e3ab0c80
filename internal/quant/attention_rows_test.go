package quant

import (
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestQueriesOfPartsOfAValue: what has fewer or other rows than the value that it is made of
// does not count as a projection of it.
func TestQueriesOfPartsOfAValue(t *testing.T) {
	node := func(op string, in []string, out string, axis int64) *graph.Node {
		return graph.NewNode("", op, out, in, []string{out}, graph.AttrInt("axis", axis))
	}
	for name, c := range map[string]struct {
		before *graph.Node // of the projection of q
		same   bool
	}{
		"normalized":           {node("LayerNormalization", []string{"x", "w"}, "p", -1), true},
		"columns":              {node("Split", []string{"x"}, "p", 2), true},
		"rows":                 {node("Split", []string{"x"}, "p", 1), false},
		"rows, from behind":    {node("Split", []string{"x"}, "p", -2), false},
		"other rows by weight": {graph.NewNode("", "MatMul", "p", []string{"w", "x"}, []string{"p"}), false},
	} {
		g := &graph.Graph{Inputs: []*graph.Value{{Name: "x", Type: tensor.Float32, Dims: []graph.Dim{{N: -1}, {N: -1}, {N: 4}}}},
			Nodes: []*graph.Node{c.before, graph.NewNode("", "MatMul", "q", []string{"p", "w"}, []string{"q"}), graph.NewNode("", "MatMul", "k", []string{"x", "w"}, []string{"k"})}}
		g.SetInit("w", tensor.From(make([]float32, 16), 4, 4))
		f := &attentionFuser{g: g, ix: g.Index()}
		if got := f.queries(&attention{q: "q", k: "k"}); (got == "") != c.same {
			t.Errorf("%s: %q", name, got)
		}
	}
}
