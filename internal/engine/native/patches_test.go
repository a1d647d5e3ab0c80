package native

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/tensor"
)

// patchesTolerance: both operands have 8 significant bits.
const patchesTolerance = 4e-3

// TestPatches: the convolution that cuts an image into patches is one operator with
// what makes rows of them, and what looks like one stays a convolution. Either gives
// what the float operators give.
func TestPatches(t *testing.T) {
	e := newEngine(t)
	if !e.Kernels().BF16 {
		t.Skip("needs a processor with BF16")
	}
	attr := func(name string, v ...int64) func(m *graph.Model, n map[string]*graph.Node) {
		return func(_ *graph.Model, n map[string]*graph.Node) {
			for i, a := range n["c"].Attrs {
				if a.GetName() == name {
					n["c"].Attrs[i] = graph.AttrInts(name, v...)
					return
				}
			}
			n["c"].Attrs = append(n["c"].Attrs, graph.AttrInts(name, v...))
		}
	}
	type edit = func(m *graph.Model, n map[string]*graph.Node)
	for name, tc := range map[string]struct {
		edit edit
		want int // operators
	}{
		"as it is":      {func(*graph.Model, map[string]*graph.Node) {}, 1},
		"no bias":       {func(_ *graph.Model, n map[string]*graph.Node) { n["c"].Inputs = n["c"].Inputs[:2] }, 1},
		"written out":   {attr("pads", 0, 0, 0, 0), 1},
		"padding":       {attr("pads", 1, 0, 0, 1), 0},
		"steps overlap": {attr("strides", 4, 5), 0},
		"no steps":      {func(_ *graph.Model, n map[string]*graph.Node) { n["c"].Attrs = nil }, 0},
		"dilated":       {attr("dilations", 1, 2), 0},
		"same size": {func(_ *graph.Model, n map[string]*graph.Node) {
			n["c"].Attrs = append(n["c"].Attrs, graph.AttrString("auto_pad", "SAME_UPPER"))
		}, 0},
		"valid": {func(_ *graph.Model, n map[string]*graph.Node) {
			n["c"].Attrs = append(n["c"].Attrs, graph.AttrString("auto_pad", "VALID"))
		}, 1},
		"columns first": {func(_ *graph.Model, n map[string]*graph.Node) { n["t"].Attrs = nil }, 0},
		"a target shape": {func(m *graph.Model, n map[string]*graph.Node) {
			m.Graph.SetInit("s", tensor.From([]int64{-1, 24, 12}, 3))
		}, 1},
		"channels split": {func(m *graph.Model, n map[string]*graph.Node) {
			m.Graph.SetInit("s", tensor.From([]int64{0, 12, -1}, 3))
		}, 0},
		"others read the image": {func(m *graph.Model, n map[string]*graph.Node) {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: "p", Type: tensor.Float32})
		}, 0},
		"others read its shape": {func(m *graph.Model, n map[string]*graph.Node) {
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Shape", "shape", []string{"p"}, []string{"shape"}))
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: "shape", Type: tensor.Int64})
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := patchModel()
			nodes := map[string]*graph.Node{}
			for _, n := range m.Graph.Nodes {
				nodes[n.Name] = n
			}
			tc.edit(m, nodes)
			r := rand.New(rand.NewPCG(3, 3))
			x := make([]float32, 2*3*17*20)
			for i := range x {
				x[i] = float32(r.NormFloat64())
			}
			feeds := engine.Feeds{"x": tensor.From(x, 2, 3, 17, 20)}
			l := lowering{m: m.Clone(), e: e.Engine, threads: 2}
			defer l.free()
			if _, err := l.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, n := range l.m.Graph.Nodes {
				if n.Op == opPatches {
					got++
				}
			}
			if got != tc.want {
				t.Errorf("%d operators, want %d", got, tc.want)
			}
			want := outputs(t, e.Engine, opstest.Save(t, m), feeds)
			d := distance(t, name, want, outputs(t, e.Engine, opstest.Save(t, l.m), feeds))
			if !(d <= patchesTolerance) || math.IsNaN(d) {
				t.Errorf("off by %.2g", d)
			}
		})
	}
}

// patchModel is Conv, Reshape and Transpose over images of 17 x 20 pixels with patches
// of 4 x 6.
func patchModel() *graph.Model {
	r := rand.New(rand.NewPCG(4, 4))
	floats := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(r.NormFloat64())
		}
		return v
	}
	g := &graph.Graph{Name: "g", Info: map[string]*graph.Value{},
		Inputs:  []*graph.Value{{Name: "x", Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "batch"}, {N: 3}, {N: 17}, {N: 20}}}},
		Outputs: []*graph.Value{{Name: "y", Type: tensor.Float32}}}
	g.SetInit("w", tensor.From(floats(24*3*4*6), 24, 3, 4, 6))
	g.SetInit("b", tensor.From(floats(24), 24))
	g.SetInit("s", tensor.From([]int64{0, 24, -1}, 3))
	g.Nodes = []*graph.Node{
		graph.NewNode("", "Conv", "c", []string{"x", "w", "b"}, []string{"p"}, graph.AttrInts("strides", 4, 6)),
		graph.NewNode("", "Reshape", "f", []string{"p", "s"}, []string{"flat"}),
		graph.NewNode("", "Transpose", "t", []string{"flat"}, []string{"y"}, graph.AttrInts("perm", 0, 2, 1)),
	}
	return &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: g}
}
