package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// shapesOfInputs takes sizes that a model reads off its layers from the inputs that those are made
// of, where both are known to be the same, and returns how many:
//
//	value -> Shape -> Gather 1        becomes        input -> Shape -> Gather 1
//
// T5's first layer makes its bias by distance of sizes of keys and of normalized rows. A Shape
// is a reader, which would keep them apart from attention and projections. of tells
// which values are meant.
func shapesOfInputs(m *graph.Model, of func(ix *graph.Index, value string) bool) int {
	g, ix, names := m.Graph, m.Graph.Index(), m.Graph.Namer()
	shapes := map[string]string{} // input -> its Shape
	var added []*graph.Node
	count := 0
	for _, n := range g.Nodes {
		at := g.Init(n.In(1))
		s := ix.Producer(n.In(0))
		if !n.Is("Gather") || n.Int("axis", 0) != 0 || at == nil || at.Type != tensor.Int64 || at.Len() != 1 || s == nil || !s.Is("Shape") || len(s.Attrs) > 0 || ix.Producer(s.In(0)) == nil || !of(ix, s.In(0)) {
			continue
		}
		d := g.Dims(s.In(0))
		i := tensor.View[int64](at)[0]
		if i < 0 {
			i += int64(len(d))
		}
		if i < 0 || i >= int64(len(d)) {
			continue
		}
		input, axis := sizeOf(g, ix, s.In(0), d[i])
		if input == "" {
			continue
		}
		if shapes[input] == "" {
			name := names.Name(input + "_shape")
			shapes[input] = name
			added = append(added, graph.NewNode("", "Shape", name, []string{input}, []string{name}))
		}
		index := names.Name(n.Outputs[0] + "_axis")
		g.SetInit(index, &tensor.Tensor{Type: tensor.Int64, Dims: at.Dims, Data: tensor.From([]int64{axis}, 1).Data})
		n.Inputs = []string{shapes[input], index}
		count++
	}
	if count > 0 {
		g.Nodes = append(added, g.Nodes...)
		g.Prune()
	}
	return count
}

// turnedForShape: a Transpose that only Shapes read.
func turnedForShape(ix *graph.Index, value string) bool {
	return ix.Producer(value).Is("Transpose") && !ix.IsOutput(value) && !ix.Captured(value) &&
		!slices.ContainsFunc(ix.Uses(value), func(u graph.Use) bool { return !u.Node.Is("Shape") })
}

// projected: a product takes the value.
func projected(ix *graph.Index, value string) bool {
	return slices.ContainsFunc(ix.Uses(value), func(u graph.Use) bool { return u.Node.Is("MatMul") && u.Input == 0 })
}

// sizeOf returns an input of the model that value is made of, and its axis that has this named
// size. Another input may have a dimension of the same name, and another size when the
// exporter was told wrong.
func sizeOf(g *graph.Graph, ix *graph.Index, value string, d graph.Dim) (input string, axis int64) {
	if d.N >= 0 || d.Name == "" {
		return "", 0
	}
	has := map[string]int64{}
	for _, v := range g.Inputs {
		if i := slices.Index(v.Dims, d); i >= 0 && g.Init(v.Name) == nil {
			has[v.Name] = int64(i)
		}
	}
	seen := map[string]bool{value: true}
	for next := []string{value}; len(next) > 0 && len(has) > 0; next = next[1:] {
		if i, ok := has[next[0]]; ok {
			return next[0], i
		}
		if p := ix.Producer(next[0]); p != nil {
			for _, in := range p.Inputs {
				if !seen[in] {
					seen[in] = true
					next = append(next, in)
				}
			}
		}
	}
	return "", 0
}
