package graph

import (
	"strconv"

	"github.com/fewbit/fewbit/internal/tensor"
)

// sliceOpset is the first standard opset whose Slice takes its bounds as inputs.
const sliceOpset = 10

// SplitToSlices replaces each Split of known sizes, for which keep (may be nil) is false, by
// one Slice an output: the same values by operators with one result. It returns how many it
// replaced; shapes must have been inferred.
func SplitToSlices(m *Model, keep func(*Node) bool) int {
	g := m.Graph
	names, nodeNames := g.Namer(), g.NodeNamer()
	var nodes []*Node
	count := 0
	for _, n := range g.Nodes {
		axis, sizes := splitSizes(g, n)
		if sizes == nil || m.Opset() < sliceOpset || keep != nil && keep(n) {
			nodes = append(nodes, n)
			continue
		}
		count++
		at := int64(0)
		integer := func(name string, v int64) string {
			name = names.Name(name)
			g.SetInit(name, tensor.From([]int64{v}, 1))
			return name
		}
		axes := integer(n.Outputs[0]+"_axes", int64(axis))
		start := integer(n.Outputs[0]+"_start", 0)
		for i, out := range n.Outputs {
			at += sizes[i]
			end := integer(out+"_end", at)
			if out != "" {
				nodes = append(nodes, NewNode(DomainONNX, "Slice", nodeNames.After(n, "_"+strconv.Itoa(i)), []string{n.In(0), start, end, axes}, []string{out}))
			}
			start = end
		}
	}
	if count > 0 {
		g.Nodes = nodes
	}
	return count
}

// splitSizes returns the axis of a Split and the size of each output along it, nil where
// they are not known or contradict its input.
func splitSizes(g *Graph, n *Node) (axis int, sizes []int64) {
	d := g.Dims(n.In(0))
	if !n.Is("Split") || len(n.Outputs) == 0 || len(d) == 0 {
		return 0, nil
	}
	a := n.Int("axis", 0)
	if a < 0 {
		a += int64(len(d))
	}
	if a < 0 || a >= int64(len(d)) || d[a].N < 1 {
		return 0, nil
	}
	whole, parts := d[a].N, int64(len(n.Outputs))
	sizes = n.Ints("split")
	if n.In(1) != "" {
		t := g.Init(n.In(1))
		if t == nil || t.Check() != nil {
			return 0, nil
		}
		v, ok := t.Ints()
		if !ok {
			return 0, nil
		}
		sizes = v
	}
	if sizes == nil {
		each := (whole + parts - 1) / parts
		for i := range parts { // the last one takes what is left
			sizes = append(sizes, min(each, whole-i*each))
		}
	}
	sum := int64(0)
	for _, s := range sizes {
		if s < 1 || s > whole {
			return 0, nil
		}
		sum += s
	}
	if int64(len(sizes)) != parts || sum != whole {
		return 0, nil
	}
	return int(a), sizes
}
