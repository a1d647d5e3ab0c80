package native

import (
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestEncoderLayersKept: a layer with an inner value that others read, or that
// the operator would compute differently, keeps its operators, and the others
// do not.
func TestEncoderLayersKept(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	c.Layers = 3
	output := func(name string) func(m *graph.Model) {
		return func(m *graph.Model) {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: name, Type: tensor.Float32})
		}
	}
	attention := func(m *graph.Model, layer int) *graph.Node {
		var all []*graph.Node
		for _, n := range m.Graph.Nodes {
			if n.Op == "MultiHeadAttention" {
				all = append(all, n)
			}
		}
		return all[layer]
	}
	for name, tc := range map[string]struct {
		edit                   func(m *graph.Model)
		encoders, rows, others int // EncoderLayers, LinearRows, EncoderAttention
	}{
		"as it is":                       {func(*graph.Model) {}, 1, 0, 0},
		"a layer's result is an output":  {output("layer.0.ffn.norm"), 2, 0, 0},
		"the middle of one is an output": {output("layer.1.attention.norm"), 2, 4, 1},
		"a residual is an output":        {output("layer.2.ffn.residual"), 1, 4, 1},
		"another scale": {func(m *graph.Model) {
			n := attention(m, 1)
			n.Attrs = slices.DeleteFunc(n.Attrs, func(a *pb.AttributeProto) bool { return a.GetName() == "scale" })
			n.Attrs = append(n.Attrs, graph.AttrFloat("scale", .5))
		}, 3, 0, 0},
		"a gain of another size": {func(m *graph.Model) {
			m.Graph.SetInit("layer.0.ffn.norm.gamma", tensor.From([]float32{1}, 1))
		}, 1, 4, 1},
		"another axis": {func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Outputs[0] == "layer.1.ffn.norm" {
					n.Attrs = []*pb.AttributeProto{graph.AttrInt("axis", 1)}
				}
			}
		}, 2, 4, 1},
		"another epsilon": {func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Outputs[0] == "layer.0.ffn.norm" {
					n.Attrs = []*pb.AttributeProto{graph.AttrInt("axis", -1), graph.AttrFloat("epsilon", 1e-3)}
				}
			}
		}, 1, 4, 1},
	} {
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		tc.edit(m)
		got := operators(t, e, m)
		if got[opEncoderLayers] != tc.encoders || got[opLinearRows] != tc.rows || got[opEncoderAttention] != tc.others {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNormalizedFirstKept: the same for layers with the normalization first.
func TestNormalizedFirstKept(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	c.Layers, c.NormFirst, c.Act = 3, true, opstest.QuickGelu
	for name, tc := range map[string]struct {
		value                  string // becomes an output
		encoders, rows, others int
	}{
		"as it is":                 {"", 1, 0, 0},
		"a layer's result":         {"layer.0.ffn.residual", 2, 0, 0},
		"the first normalization":  {"layer.1.attention.norm", 2, 4, 1},
		"the middle of a layer":    {"layer.1.attention.residual", 2, 4, 1},
		"the second normalization": {"layer.1.ffn.norm", 2, 4, 1},
		"what QuickGELU gives":     {"layer.2.ffn.gelu", 1, 4, 1},
	} {
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		if tc.value != "" {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: tc.value, Type: tensor.Float32})
		}
		if got := operators(t, e, m); got[opEncoderLayers] != tc.encoders || got[opLinearRows] != tc.rows || got[opEncoderAttention] != tc.others {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestEncoderLayersCut: where a chain is cut changes no bit, nor do threads and
// the number of samples beside one.
func TestEncoderLayersCut(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	c.Layers = 3
	whole := opstest.Native(t, c.Model(), quant.INT8Dynamic)
	cut := whole.Clone()
	for _, name := range []string{"layer.0.ffn.norm", "layer.1.ffn.norm"} {
		cut.Graph.Outputs = append(cut.Graph.Outputs, &graph.Value{Name: name, Type: tensor.Float32, Dims: cut.Graph.Outputs[0].Dims})
	}
	a, b := opstest.Save(t, whole), opstest.Save(t, cut)
	const length = 23
	feeds := c.Feeds(5, 3, length)
	want := tensor.View[float32](outputs(t, e, a, feeds)["last_hidden_state"])
	same := func(what string, got []float32, want []float32) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
		}
		for i := range got {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
				t.Fatalf("%s: [%d] is %v, want %v", what, i, got[i], want[i])
			}
		}
	}
	same("cut in three", tensor.View[float32](outputs(t, e, b, feeds)["last_hidden_state"]), want)
	one := engine.Feeds{}
	for name, f := range feeds {
		one[name] = tensor.From(tensor.View[int64](f)[length:2*length], 1, length)
	}
	size := length * c.Hidden
	same("one sample", tensor.View[float32](outputs(t, e, a, one)["last_hidden_state"]), want[size:2*size])
}
