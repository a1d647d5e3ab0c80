package native

import (
	"math"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// prepared is m as planning takes it.
func prepared(t *testing.T, m *graph.Model) *graph.Model {
	t.Helper()
	c := m.Clone()
	if _, err := quant.Run(t.Context(), c, quant.Prepare(quant.Config{Scheme: quant.INT8Dynamic, Target: quant.CPU}), quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func distance(t *testing.T, what string, want, got map[string]*tensor.Tensor) float64 {
	t.Helper()
	worst := 0.
	for name, w := range want {
		a, b := tensor.View[float32](w), tensor.View[float32](got[name])
		if len(a) != len(b) {
			t.Fatalf("%s: %s: %v, want %v", what, name, got[name].Dims, w.Dims)
		}
		var d, s float64
		for i := range a {
			d += float64(a[i]-b[i]) * float64(a[i]-b[i])
			s += float64(a[i]) * float64(a[i])
		}
		if r := math.Sqrt(d / s); !(r <= worst) {
			worst = r
		}
	}
	return worst
}

// preparedTolerance: the same in FP32, in another order.
const preparedTolerance = 1e-5

// TestFused: an encoder that ONNX Runtime's optimizer has fused is one operator,
// and what the fused operators are replaced by gives what they give.
func TestFused(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	c.Fused = true
	attention := func(edit func(m *graph.Model, n *graph.Node)) func(m *graph.Model) {
		return func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Op == "Attention" {
					edit(m, n)
				}
			}
		}
	}
	for name, tc := range map[string]struct {
		edit func(m *graph.Model)
		want int // encoders
	}{
		"lengths": {func(*graph.Model) {}, 1},
		"a mask":  {attention(func(_ *graph.Model, n *graph.Node) { n.Inputs[3] = "attention_mask_32" }), 1},
		"no mask": {attention(func(_ *graph.Model, n *graph.Node) { n.Inputs = n.Inputs[:3] }), 1},
		"another filter": {attention(func(_ *graph.Model, n *graph.Node) {
			n.Attrs = append(n.Attrs, graph.AttrFloat("mask_filter_value", -50))
		}), 1},
		"another scale":       {attention(func(_ *graph.Model, n *graph.Node) { n.Attrs = append(n.Attrs, graph.AttrFloat("scale", .5)) }), 1},
		"in order":            {attention(func(_ *graph.Model, n *graph.Node) { n.Attrs = append(n.Attrs, graph.AttrInt("unidirectional", 1)) }), 0},
		"heads of one column": {attention(func(_ *graph.Model, n *graph.Node) { n.Attrs[0] = graph.AttrInt("num_heads", 64) }), 1},
		"the approximation": {func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Op == "BiasGelu" {
					n.Op = "FastGelu"
				}
			}
		}, 1},
		"the residual first": {func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Op == "SkipLayerNormalization" {
					n.Inputs[0], n.Inputs[1] = n.Inputs[1], n.Inputs[0]
				}
			}
		}, 1},
		"an older opset": {func(m *graph.Model) { m.Opsets[graph.DomainONNX] = 12 }, 1},
	} {
		m := c.Model()
		tc.edit(m)
		feeds := c.Feeds(3, 3, 17)
		mask := tensor.View[int64](feeds["attention_mask"])
		for i := range 17 { // the third sample is all padding
			mask[2*17+i] = 0
		}
		want := outputs(t, e.Engine, opstest.Save(t, m), feeds)
		if d := distance(t, name, want, outputs(t, e.Engine, opstest.Save(t, prepared(t, m)), feeds)); d > preparedTolerance {
			t.Errorf("%s: off by %.2g", name, d)
		}
		if e.Kernels().BF16 {
			if got := operators(t, e, opstest.Native(t, m, quant.INT8Dynamic)); got[opEncoderLayers] != tc.want || tc.want == 1 && got["MultiHeadAttention"]+got[opEncoderAttention] > 0 {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
}

// TestFusedMultiHead: the same of MultiHeadAttention with a bias and a padding mask.
func TestFusedMultiHead(t *testing.T) {
	e := newEngine(t)
	const width, length = 32, 9
	for name, tc := range map[string]struct {
		in   []string
		left int // MultiHeadAttention with more than a mask that is added
	}{
		"a bias":           {[]string{"q", "k", "v", "bias"}, 0},
		"a mask":           {[]string{"q", "k", "v", "", "mask32"}, 0},
		"both":             {[]string{"q", "k", "v", "bias", "mask32"}, 0},
		"both and another": {[]string{"q", "k", "v", "bias", "mask32", "added"}, 0},
	} {
		g := &graph.Graph{Name: "g", Info: map[string]*graph.Value{}}
		dims := []graph.Dim{{N: -1, Name: "batch"}, {N: -1, Name: "length"}}
		g.Inputs = []*graph.Value{{Name: "x", Type: tensor.Float32, Dims: append(dims[:2:2], graph.Dim{N: width})}, {Name: "mask", Type: tensor.Int64, Dims: dims}}
		g.Outputs = []*graph.Value{{Name: "y", Type: tensor.Float32}}
		r := func(n int, scale float32) []float32 {
			v := make([]float32, n)
			for i := range v {
				v[i] = scale * float32(math.Sin(float64(i*i%97+n)))
			}
			return v
		}
		for _, p := range []string{"q", "k", "v"} {
			g.SetInit(p+"w", tensor.From(r(width*width, .3), width, width))
			g.Nodes = append(g.Nodes, graph.NewNode("", "MatMul", p, []string{"x", p + "w"}, []string{p}))
		}
		g.SetInit("bias", tensor.From(r(3*width, 1), 3*width))
		g.SetInit("added", tensor.From(r(length*length, 1), 1, 1, length, length))
		g.Nodes = append(g.Nodes, graph.NewNode("", "Cast", "mask32", []string{"mask"}, []string{"mask32"}, graph.AttrInt("to", int64(tensor.Int32))),
			graph.NewNode(graph.DomainMS, "MultiHeadAttention", "mha", tc.in, []string{"y"}, graph.AttrInt("num_heads", 2)))
		m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17, graph.DomainMS: 1}, Graph: g}
		mask := make([]int64, 2*length)
		for i := range mask {
			if i%length < 6 || i < length {
				mask[i] = 1
			}
		}
		feeds := engine.Feeds{"x": tensor.From(r(2*length*width, 1), 2, length, width), "mask": tensor.From(mask, 2, length)}
		p := prepared(t, m)
		left := 0
		for _, n := range p.Graph.Nodes {
			if _, ok := graph.PlainAttention(n); n.Op == "MultiHeadAttention" && !ok {
				left++
			}
		}
		if left != tc.left {
			t.Errorf("%s: %d have more than a mask, want %d", name, left, tc.left)
		}
		if d := distance(t, name, outputs(t, e.Engine, opstest.Save(t, m), feeds), outputs(t, e.Engine, opstest.Save(t, p), feeds)); d > preparedTolerance {
			t.Errorf("%s: off by %.2g", name, d)
		}
	}
}
