package graph

import (
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// A Split becomes one Slice for each result, its bounds those of ONNX: equal parts, the
// last one with what is left, or the given sizes. What contradicts itself is left alone.
func TestSplitToSlices(t *testing.T) {
	for name, c := range map[string]struct {
		outs  []string
		sizes []int64
		want  []int64 // bounds: 0 and the end of each part; nil is left
	}{
		"equal parts":             {[]string{"a", "b", "y"}, nil, []int64{0, 2, 4, 6}},
		"parts without anything":  {[]string{"a", "b", "c", "y"}, nil, nil},
		"given sizes":             {[]string{"a", "y"}, []int64{1, 5}, []int64{0, 1, 6}},
		"a result nobody reads":   {[]string{"", "y"}, []int64{1, 5}, []int64{0, 1, 6}},
		"more than there is":      {[]string{"a", "y"}, []int64{4, 4}, nil},
		"a negative size":         {[]string{"a", "y"}, []int64{-1, 7}, nil},
		"sizes for other results": {[]string{"y"}, []int64{3, 3}, nil},
	} {
		n := NewNode("", "Split", "s", []string{"x"}, c.outs, AttrInt("axis", -1))
		m := model(n)
		m.Graph.Inputs = []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1}, {N: 6}}}}
		if c.sizes != nil {
			m.Graph.SetInit("sizes", tensor.From(c.sizes, int64(len(c.sizes))))
			n.Inputs = append(n.Inputs, "sizes")
		}
		InferShapes(m)
		count := SplitToSlices(m, nil)
		if c.want == nil {
			if count != 0 || len(m.Graph.Nodes) != 1 {
				t.Errorf("%s: rewritten to %d operators, expected none", name, len(m.Graph.Nodes))
			}
			continue
		}
		bounds := []int64{0}
		for _, s := range m.Graph.Nodes {
			start, _ := m.Graph.Init(s.In(1)).Ints()
			end, _ := m.Graph.Init(s.In(2)).Ints()
			if start[0] != bounds[len(bounds)-1] && c.outs[0] != "" || s.Op != "Slice" {
				t.Errorf("%s: %s begins at %d, expected %d", name, s.Op, start[0], bounds[len(bounds)-1])
			}
			if c.outs[0] == "" {
				bounds = append(bounds, start[0])
			}
			bounds = append(bounds, end[0])
		}
		if count != 1 || !slices.Equal(bounds, c.want) {
			t.Errorf("%s: bounds %v, expected %v", name, bounds, c.want)
		}
		if d := m.Graph.Dims("y"); len(d) != 2 {
			t.Errorf("%s: the shape of its last result is lost", name)
		}
	}
	n := NewNode("", "Split", "s", []string{"x"}, []string{"a", "y"})
	m := model(n)
	m.Graph.Inputs = []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: 4}}}}
	InferShapes(m)
	if SplitToSlices(m, func(*Node) bool { return true }) != 0 {
		t.Error("a Split that is to be kept was rewritten")
	}
}

// Slices have names of their own, whatever the Split is called, or is not.
func TestSplitNames(t *testing.T) {
	m := model(NewNode("", "Split", "", []string{"x"}, []string{"a", "b"}, AttrInt("axis", 1)),
		NewNode("", "Split", "", []string{"x"}, []string{"c", "d"}, AttrInt("axis", 1)),
		NewNode("", "Split", "s", []string{"x"}, []string{"e", "f"}, AttrInt("axis", 1)),
		NewNode("", "Add", "s_0", []string{"a", "c"}, []string{"y"}))
	m.Graph.Inputs = []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1}, {N: 6}}}}
	InferShapes(m)
	if n := SplitToSlices(m, nil); n != 3 {
		t.Fatalf("%d rewritten, expected 3", n)
	}
	names := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		if n.Name == "" || names[n.Name] {
			t.Errorf("a second %q", n.Name)
		}
		names[n.Name] = true
	}
}
