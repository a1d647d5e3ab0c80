package quant

import (
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestShapesOfInputs: a size is taken from an input that the value is made of, though another
// has a dimension of the same name, and only where the value has that dimension.
func TestShapesOfInputs(t *testing.T) {
	dims := func(names ...string) (d []graph.Dim) {
		for _, n := range names {
			d = append(d, graph.Dim{N: -1, Name: n})
		}
		return append(d, graph.Dim{N: 4})
	}
	for name, tc := range map[string]struct {
		index []int64
		want  []string // the inputs of the Gather
		axis  int64
	}{
		"its batch":        {[]int64{0}, []string{"x_shape", "size_axis"}, 0},
		"its length":       {[]int64{-2}, []string{"x_shape", "size_axis"}, 1},
		"a number":         {[]int64{2}, []string{"shape", "at"}, 0},
		"two sizes":        {[]int64{0, 1}, []string{"shape", "at"}, 0},
		"beyond its sizes": {[]int64{3}, []string{"shape", "at"}, 0},
	} {
		m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &graph.Graph{
			Inputs:  []*graph.Value{{Name: "other", Type: tensor.Float32, Dims: dims("batch", "length")}, {Name: "x", Type: tensor.Float32, Dims: dims("batch", "length")}},
			Outputs: []*graph.Value{{Name: "y"}, {Name: "size"}},
			Info:    map[string]*graph.Value{},
		}}
		g := m.Graph
		g.SetInit("w", tensor.From(make([]float32, 16), 4, 4))
		g.SetInit("at", tensor.From(tc.index, int64(len(tc.index))))
		g.Nodes = []*graph.Node{
			graph.NewNode("", "Relu", "relu", []string{"x"}, []string{"r"}),
			graph.NewNode("", "MatMul", "product", []string{"r", "w"}, []string{"y"}),
			graph.NewNode("", "Shape", "shape", []string{"r"}, []string{"shape"}),
			graph.NewNode("", "Gather", "size", []string{"shape", "at"}, []string{"size"}),
		}
		graph.InferShapes(m)
		n := shapesOfInputs(m, projected)
		got := g.Index().Producer("size")
		if changed := tc.want[0] == "x_shape"; (n == 1) != changed || !slices.Equal(got.Inputs, tc.want) {
			t.Errorf("%s: %d changed, %v; want %v", name, n, got.Inputs, tc.want)
			continue
		} else if changed {
			if v := tensor.View[int64](g.Init("size_axis")); !slices.Equal(v, []int64{tc.axis}) {
				t.Errorf("%s: axis %v", name, v)
			}
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
