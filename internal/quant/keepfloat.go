package quant

import (
	"bytes"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// keepFloat sees to it that a convolution or Gemm that stays in float between
// quantized tensors does so where the file runs. ONNX Runtime (since 1.21,
// optimizer WeightBiasQuantization) takes the pattern
//
//	DequantizeLinear -> Conv|ConvTranspose|Gemm [-> Relu|Clip] -> QuantizeLinear
//
// with a float weight for an unfinished quantization and quantizes the weight to
// INT8 with one scale for the whole tensor, which is far worse than what the
// operator was kept in float for. It does not where the scale of the input is no
// scalar, so the operator reads a DequantizeLinear of its own with the scale
// repeated for each channel: the same numbers, in standard operators.
func (w *inserter) keepFloat() {
	ix := w.g.Index()
	source := make(map[string]string, len(w.dq)) // dequantized copy -> activation
	for t, copied := range w.dq {
		source[copied] = t
	}
	made := map[string]string{} // -> its copy with a scale a channel
	for _, n := range slices.Clone(w.g.Nodes) {
		axis, channels := w.floatInput(ix, n)
		t, ok := source[n.In(0)]
		if !ok || channels <= 1 || !leadsToQuantizer(ix, n) { // a vector of one is a scalar to ONNX Runtime
			continue
		}
		d := ix.Producer(n.In(0))
		scale, zero := w.g.Init(d.In(1)), w.g.Init(d.In(2))
		if scale == nil || zero == nil || scale.Len() != 1 {
			continue
		}
		name := made[t]
		if name == "" {
			base := t + w.tag + "_channels"
			name = base + "_dequantized"
			made[t] = name
			w.g.SetInit(base+"_scale", repeated(scale, channels))
			w.g.SetInit(base+"_zero_point", repeated(zero, channels))
			domain := w.domain()
			if w.Plan.Config.Wide {
				domain = w.actDomain()
			}
			own := graph.NewNode(domain, d.Op, t+"_channels_DequantizeLinear", []string{d.In(0), base + "_scale", base + "_zero_point"}, []string{name})
			own.Attrs = append(own.Attrs, graph.AttrInt("axis", axis))
			w.g.Nodes = append(w.g.Nodes, own)
		}
		n.Inputs[0] = name
	}
	// Where nobody reads the plain copy any more, the other is the activation's.
	left := w.g.Index()
	for t, name := range made {
		if len(left.Uses(w.dq[t])) == 0 {
			w.dq[t] = name
		}
	}
}

// floatInput returns the axis and number of the input channels of an operator that
// multiplies by a constant in float, 0 channels of any other.
func (w *inserter) floatInput(ix *graph.Index, n *graph.Node) (axis, channels int64) {
	if !n.Is("Conv") && !n.Is("ConvTranspose") && !n.Is("Gemm") {
		return 0, 0
	}
	dims := floatDims(w.g, ix, n.In(1))
	if len(dims) < 2 {
		return 0, 0
	}
	switch {
	case n.Is("Conv"):
		return 1, dims[1] * n.Int("group", 1)
	case n.Is("ConvTranspose"):
		return 1, dims[0]
	}
	axis, channels = 1, dims[0]
	if n.Int("transB", 0) != 0 {
		channels = dims[1]
	}
	if n.Int("transA", 0) != 0 {
		axis = 0
	}
	return axis, channels
}

// floatDims returns the dimensions of a constant float weight, also of one that an engine
// makes when it loads the model: a Cast of half weights, or what unpacks those in 4 bits.
func floatDims(g *graph.Graph, ix *graph.Index, name string) []int64 {
	if t := g.Init(name); t != nil {
		return t.Dims
	}
	p := ix.Producer(name)
	switch {
	case p == nil:
	case p.Is("Cast"):
		if t := g.Init(p.In(0)); t != nil {
			return t.Dims
		}
	case p.Is("Reshape"):
		if t := g.Init(p.In(1)); t != nil && constant(ix, p.In(0), g) {
			dims, _ := t.Ints()
			return dims
		}
	}
	return nil
}

// constant reports whether value follows from constants alone.
func constant(ix *graph.Index, value string, g *graph.Graph) bool {
	seen := map[string]bool{"": true} // each value is looked at once
	var look func(value string) bool
	look = func(value string) bool {
		if seen[value] || g.Init(value) != nil {
			return true
		}
		seen[value] = true // a graph has no cycle
		n := ix.Producer(value)
		return n != nil && n.Op != "DequantizeLinear" && !slices.ContainsFunc(n.Inputs, func(in string) bool { return !look(in) })
	}
	return look(value)
}

// KeepBiases sees to it that ONNX Runtime does not make a Gemm of a MatMul and the Add of
// its bias where that harms: a Gemm would then be taken for an unfinished quantization,
// see keepFloat. A float weight is quantized with one scale; and beside a weight with
// scales by channel the bias is, below opset 13, by an operator of which the engine then
// says that it is invalid. The Add becomes the Sub of the negated bias, which is the same
// number in every bit. It returns how many did.
func KeepBiases(m *graph.Model) int {
	g := m.Graph
	ix, names, negated := g.Index(), g.Namer(), map[string]string{}
	count := 0
	for _, n := range g.Nodes {
		x := ix.Producer(n.In(0))
		if !n.Is("MatMul") || x == nil || x.Op != "DequantizeLinear" {
			continue
		}
		w := ix.Producer(n.In(1))
		byChannel := w != nil && w.Op == "DequantizeLinear" && m.Opset() < perAxisOpset && w.Attr("axis") != nil
		if !byChannel && len(floatDims(g, ix, n.In(1))) != 2 {
			continue
		}
		add := ix.Only(n.Outputs[0])
		if add == nil || !add.Is("Add") || !leadsToQuantizer(ix, add) {
			continue
		}
		bias := add.In(1)
		if bias == n.Outputs[0] {
			bias = add.In(0)
		}
		b := g.Init(bias)
		if b == nil || b.Type != tensor.Float32 {
			continue
		}
		if negated[bias] == "" {
			v := slices.Clone(tensor.View[float32](b))
			for i := range v {
				v[i] = -v[i]
			}
			negated[bias] = names.Name(bias + "_negated")
			g.SetInit(negated[bias], tensor.From(v, b.Dims...))
		}
		add.Op, add.Inputs = "Sub", []string{n.Outputs[0], negated[bias]}
		count++
	}
	return count
}

// leadsToQuantizer reports whether a QuantizeLinear alone reads what n gives, past
// activations.
func leadsToQuantizer(ix *graph.Index, n *graph.Node) bool {
	for {
		if len(n.Outputs) != 1 {
			return false
		}
		if n = ix.Only(n.Outputs[0]); n == nil {
			return false
		}
		if n.Op == "QuantizeLinear" {
			return true
		}
		if !n.Is("Relu") && !n.Is("Clip") {
			return false
		}
	}
}

// repeated is the vector of n times t's one element.
func repeated(t *tensor.Tensor, n int64) *tensor.Tensor {
	return &tensor.Tensor{Type: t.Type, Dims: []int64{n}, Data: bytes.Repeat(t.Data, int(n))}
}
