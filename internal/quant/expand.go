package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// expandFused writes operators of com.microsoft in which exporters and ONNX
// Runtime's optimizer for transformers hide matrix products, biases and residuals
// as the operators that they stand for (docs/ContribOperators.md of ONNX Runtime),
// so that the products are quantized and what stands around them is recognized:
//
//	Attention               three MatMuls with their biases, MultiHeadAttention
//	MultiHeadAttention      its bias before it, its padding mask in the mask that is added
//	SkipLayerNormalization  Add, LayerNormalization
//	EmbedLayerNormalization Gathers, Adds, LayerNormalization
//	BiasGelu, FastGelu      Add, the activation
//
// One with a past, a causal order, rotary embeddings or other forms of masks stays.
// It returns how many it replaced.
func expandFused(m *graph.Model) int {
	if !anyFused(m.Graph) {
		return 0
	}
	graph.InferShapes(m)
	g := m.Graph
	e := &expander{m: m, g: g, ix: g.Index(), names: g.Namer(), made: map[string]string{}, lengths: map[string]string{}}
	rules := map[string]func(*graph.Node) bool{
		"Attention": e.attention, "MultiHeadAttention": e.multiHead, "SkipLayerNormalization": e.skipNorm,
		"EmbedLayerNormalization": e.embedNorm, "BiasGelu": e.biasGelu, "FastGelu": e.biasGelu,
	}
	count := 0
	for _, n := range g.Nodes {
		if rule := rules[n.Op]; rule != nil && n.Domain == graph.DomainMS && rule(n) {
			count++
			continue
		}
		e.nodes = append(e.nodes, n)
	}
	g.Nodes = e.nodes
	g.Prune()
	return count
}

func anyFused(g *graph.Graph) bool {
	for _, n := range g.Nodes {
		switch n.Op {
		case "Attention", "MultiHeadAttention", "SkipLayerNormalization", "EmbedLayerNormalization", "BiasGelu", "FastGelu":
			if n.Domain == graph.DomainMS {
				return true
			}
		}
	}
	return false
}

type expander struct {
	m       *graph.Model
	g       *graph.Graph
	ix      *graph.Index
	names   graph.Namer
	nodes   []*graph.Node
	made    map[string]string // what several nodes share, by what it is made of
	lengths map[string]string // values that are the samples' lengths, INT32 [batch], and the masks [batch, length] that they are of
}

// op appends an operator with one output, which is returned.
func (e *expander) op(op, name string, in []string, attrs ...*pb.AttributeProto) string {
	out := e.names.Name(name)
	e.nodes = append(e.nodes, graph.NewNode("", op, out, in, []string{out}, attrs...))
	return out
}

func (e *expander) init(name string, t *tensor.Tensor) string {
	name = e.names.Name(name)
	e.g.SetInit(name, t)
	return name
}

// once returns what make gives for the key, made the first time only.
func (e *expander) once(key string, make func() string) string {
	v, ok := e.made[key]
	if !ok {
		v = make()
		e.made[key] = v
	}
	return v
}

func (e *expander) ints(v ...int64) string {
	return e.once(fmt.Sprint(v), func() string { return e.init("expanded_ints", tensor.From(v, int64(len(v)))) })
}

func (e *expander) index(v int64) string {
	return e.once(fmt.Sprint("index", v), func() string { return e.init("expanded_index", tensor.From([]int64{v})) })
}

func (e *expander) unsqueeze(name, x string, axes ...int64) string {
	if e.m.Opset() >= 13 {
		return e.op("Unsqueeze", name, []string{x, e.ints(axes...)})
	}
	return e.op("Unsqueeze", name, []string{x}, graph.AttrInts("axes", axes...))
}

func (e *expander) read(value string) bool {
	return value != "" && (len(e.ix.Uses(value)) > 0 || e.ix.IsOutput(value) || e.ix.Captured(value))
}

func (e *expander) out(n *graph.Node, i int) string {
	if i < len(n.Outputs) {
		return n.Outputs[i]
	}
	return ""
}

// vector returns the initializer FP32 [n] of that name, nil for any other; n < 0
// takes any length.
func (e *expander) vector(name string, n int64) *tensor.Tensor {
	t := e.g.Init(name)
	if t == nil || t.Type != tensor.Float32 || len(t.Dims) != 1 || n >= 0 && t.Dims[0] != n {
		return nil
	}
	return t
}

func (e *expander) value(name string) *graph.Value {
	for _, v := range e.g.Inputs {
		if v.Name == name {
			return v
		}
	}
	return e.g.Info[name]
}

// normalize is LayerNormalization over the last axis, decomposed below opset 17.
func (e *expander) normalize(name, x, gamma, beta string, epsilon float32, out string) {
	if e.m.Opset() >= 17 {
		e.nodes = append(e.nodes, graph.NewNode("", "LayerNormalization", name, []string{x, gamma, beta}, []string{out},
			graph.AttrInt("axis", -1), graph.AttrFloat("epsilon", epsilon)))
		return
	}
	number := func(v float32) string {
		return e.once(fmt.Sprint("number", v), func() string { return e.init("expanded_number", tensor.From([]float32{v})) })
	}
	last := graph.AttrInts("axes", -1)
	d := e.op("Sub", name+"_centred", []string{x, e.op("ReduceMean", name+"_mean", []string{x}, last)})
	v := e.op("ReduceMean", name+"_variance", []string{e.op("Pow", name+"_squared", []string{d, number(2)})}, last)
	root := e.op("Sqrt", name+"_deviation", []string{e.op("Add", name+"_safe", []string{v, number(epsilon)})})
	scaled := e.op("Mul", name+"_scaled", []string{e.op("Div", name+"_unit", []string{d, root}), gamma})
	e.nodes = append(e.nodes, graph.NewNode("", "Add", name, []string{scaled, beta}, []string{out}))
}

// offset returns beta, or zeros like gamma where there is none.
func (e *expander) offset(beta string, gamma *tensor.Tensor) string {
	if beta != "" {
		return beta
	}
	return e.once(fmt.Sprint("zeros", gamma.Dims[0]), func() string {
		return e.init("expanded_zeros", tensor.From(make([]float32, gamma.Dims[0]), gamma.Dims[0]))
	})
}

// skipNorm: input, skip, gamma, beta, bias -> output, mean, deviation, sum.
func (e *expander) skipNorm(n *graph.Node) bool {
	gamma := e.vector(n.In(2), -1)
	if gamma == nil || n.In(3) != "" && e.vector(n.In(3), gamma.Dims[0]) == nil || e.read(e.out(n, 1)) || e.read(e.out(n, 2)) {
		return false
	}
	x, y := n.In(0), n.In(1)
	if n.In(4) != "" {
		if p := e.ix.Producer(y); p != nil && p.Is("MatMul") && e.g.Init(p.In(1)) != nil {
			x, y = y, x // whose bias it is
		}
		x = e.op("Add", n.Outputs[0]+"_biased", []string{x, n.In(4)})
	}
	sum := e.out(n, 3)
	if sum == "" {
		sum = e.names.Name(n.Outputs[0] + "_sum")
	}
	e.nodes = append(e.nodes, graph.NewNode("", "Add", sum, []string{x, y}, []string{sum}))
	e.normalize(n.Name, sum, n.In(2), e.offset(n.In(3), gamma), n.Float("epsilon", 1e-12), n.Outputs[0])
	return true
}

// embedNorm: ids, segments, word, position and segment tables, gamma, beta, mask,
// positions -> output, lengths, sum.
func (e *expander) embedNorm(n *graph.Node) bool {
	gamma := e.vector(n.In(5), -1)
	lengths := e.out(n, 1)
	if gamma == nil || e.vector(n.In(6), gamma.Dims[0]) == nil || (n.In(1) == "") != (n.In(4) == "") || e.read(lengths) && n.In(7) == "" {
		return false
	}
	base := n.Outputs[0]
	positions := n.In(8)
	if positions == "" {
		positions = e.positions(base, n.In(0))
	}
	x := e.op("Gather", base+"_words", []string{n.In(2), n.In(0)})
	if n.In(1) != "" {
		x = e.op("Add", base+"_typed", []string{x, e.op("Gather", base+"_types", []string{n.In(4), n.In(1)})})
	}
	sum := e.out(n, 2)
	if sum == "" {
		sum = e.names.Name(base + "_sum")
	}
	place := e.op("Gather", base+"_places", []string{n.In(3), positions})
	e.nodes = append(e.nodes, graph.NewNode("", "Add", sum, []string{x, place}, []string{sum}))
	e.normalize(n.Name, sum, n.In(5), n.In(6), n.Float("epsilon", 1e-12), base)
	if e.read(lengths) {
		// How many tokens of the mask are 1.
		one := e.once("one32", func() string { return e.init("expanded_one", tensor.From([]int32{1})) })
		mask := e.op("Cast", base+"_mask32", []string{n.In(7)}, graph.AttrInt("to", int64(tensor.Int32)))
		real := e.op("Cast", base+"_tokens", []string{e.op("Equal", base+"_real", []string{mask, one})}, graph.AttrInt("to", int64(tensor.Int32)))
		reduce := graph.NewNode("", "ReduceSum", lengths, []string{real}, []string{lengths}, graph.AttrInt("keepdims", 0))
		if e.m.Opset() >= 13 {
			reduce.Inputs = append(reduce.Inputs, e.ints(1))
		} else {
			reduce.Attrs = append(reduce.Attrs, graph.AttrInts("axes", 1))
		}
		e.nodes = append(e.nodes, reduce)
		e.lengths[lengths] = n.In(7)
	}
	return true
}

// positions is 0, 1, ... up to the second dimension of x, INT64.
func (e *expander) positions(base, x string) string {
	return e.once("positions of "+x, func() string {
		length := e.op("Gather", base+"_length", []string{e.op("Shape", base+"_shape", []string{x}), e.index(1)})
		return e.op("Range", base+"_range", []string{e.index(0), length, e.index(1)})
	})
}

func (e *expander) biasGelu(n *graph.Node) bool {
	if n.In(1) == "" {
		return false
	}
	op := "Gelu"
	if n.Op == "FastGelu" {
		op = n.Op
	}
	x := e.op("Add", n.Outputs[0]+"_biased", n.Inputs[:2:2])
	e.nodes = append(e.nodes, graph.NewNode(graph.DomainMS, op, n.Name, []string{x}, n.Outputs))
	return true
}

// plain reports whether an attention has neither past nor order, and one result.
func (e *expander) plain(n *graph.Node, inputs ...int) bool {
	for i, in := range n.Inputs {
		used := i < 3
		for _, j := range inputs {
			used = used || i == j
		}
		if in != "" && !used {
			return false
		}
	}
	for _, o := range n.Outputs[1:] {
		if e.read(o) {
			return false
		}
	}
	return n.Int("num_heads", 0) > 0 && n.Int("unidirectional", 0) == 0 && n.Int("do_rotary", 0) == 0 && len(n.Ints("qkv_hidden_sizes")) == 0
}

// attention: input, weights [k, 3 width], bias [3 width], mask, past, mask that is added.
func (e *expander) attention(n *graph.Node) bool {
	w := e.g.Init(n.In(1))
	if !e.plain(n, 3, 5) || w == nil || w.Type != tensor.Float32 || len(w.Dims) != 2 || w.Dims[1]%(3*n.Int("num_heads", 1)) != 0 {
		return false
	}
	k, width := w.Dims[0], w.Dims[1]/3
	bias := e.vector(n.In(2), 3*width)
	if n.In(2) != "" && bias == nil {
		return false
	}
	mask, ok := e.mask(n, n.In(3), n.In(5))
	if !ok {
		return false
	}
	codes := tensor.View[float32](w)
	in := make([]string, 3, 6)
	for i, part := range []string{"query", "key", "value"} {
		columns := make([]float32, 0, k*width)
		for r := range k {
			columns = append(columns, codes[(3*r+int64(i))*width:][:width]...)
		}
		name := n.Outputs[0] + "_" + part
		in[i] = e.op("MatMul", name, []string{n.In(0), e.init(n.In(1)+"_"+part, tensor.From(columns, k, width))})
		if bias != nil {
			b := tensor.View[float32](bias)[int64(i)*width:][:width]
			in[i] = e.op("Add", name+"_biased", []string{in[i], e.init(n.In(2)+"_"+part, tensor.From(b, width))})
		}
	}
	e.multiHeadOf(n, in, mask)
	return true
}

// multiHead: query, key, value, bias [3 width], padding mask, mask that is added.
func (e *expander) multiHead(n *graph.Node) bool {
	if n.In(3) == "" && n.In(4) == "" || !e.plain(n, 3, 4, 5) || n.In(1) == "" || n.In(2) == "" {
		return false
	}
	in := make([]string, 3, 6)
	var widths [3]int64
	for i := range in {
		in[i] = n.In(i)
		v := e.value(in[i])
		if v == nil || len(v.Dims) != 3 || v.Dims[2].N <= 0 {
			return false
		}
		widths[i] = v.Dims[2].N
	}
	bias := e.vector(n.In(3), widths[0]+widths[1]+widths[2])
	if n.In(3) != "" && bias == nil {
		return false
	}
	mask, ok := e.mask(n, n.In(4), n.In(5))
	if !ok || n.In(4) != "" && in[1] != in[0] && !e.sameRows(in[0], in[1]) {
		return false
	}
	if bias != nil {
		from := int64(0)
		for i, part := range []string{"query", "key", "value"} {
			b := tensor.View[float32](bias)[from:][:widths[i]]
			from += widths[i]
			in[i] = e.op("Add", n.Outputs[0]+"_"+part, []string{in[i], e.init(n.In(3)+"_"+part, tensor.From(b, widths[i]))})
		}
	}
	e.multiHeadOf(n, in, mask)
	return true
}

// sameRows reports whether two values are products of one.
func (e *expander) sameRows(a, b string) bool {
	p, q := e.ix.Producer(a), e.ix.Producer(b)
	return p != nil && q != nil && p.Is("MatMul") && q.Is("MatMul") && p.In(0) == q.In(0)
}

func (e *expander) multiHeadOf(n *graph.Node, in []string, mask string) {
	if mask != "" {
		in = append(in, "", "", mask)
	}
	attrs := []*pb.AttributeProto{graph.AttrInt("num_heads", n.Int("num_heads", 0))}
	if s := n.Float("scale", 0); s != 0 {
		attrs = append(attrs, graph.AttrFloat("scale", s))
	}
	e.nodes = append(e.nodes, graph.NewNode(graph.DomainMS, "MultiHeadAttention", n.Name, in, n.Outputs[:1:1], attrs...))
}

// mask returns the mask that is added to the scores of tokens' attention to
// themselves: of whole numbers [batch, length], 0 for what is hidden, or lengths
// [batch]; and of added, which may be there besides.
func (e *expander) mask(n *graph.Node, tokens, added string) (string, bool) {
	if tokens == "" {
		return added, true
	}
	v := e.value(tokens)
	rows, lengths := e.lengths[tokens] // what has the tokens' batch and length
	if !lengths {
		rows = tokens
	}
	if !lengths && (v == nil || v.Type != tensor.Int32 || len(v.Dims) != 2) {
		return "", false
	}
	filter := n.Float("mask_filter_value", -10000)
	base := tokens + "_bias"
	full := e.once(fmt.Sprintf("mask %s %v", tokens, filter), func() string {
		var shown string
		if lengths {
			place := e.op("Cast", base+"_place", []string{e.positions(base, rows)}, graph.AttrInt("to", int64(tensor.Int32)))
			shown = e.op("Less", base+"_shown", []string{place, e.unsqueeze(base+"_length", tokens, 1)})
		} else {
			zero := e.once("zero32", func() string { return e.init("expanded_zero", tensor.From([]int32{0})) })
			shown = e.op("Greater", base+"_shown", []string{tokens, zero})
		}
		numbers := []string{shown, e.init(base+"_visible", tensor.From([]float32{0})), e.init(base+"_hidden", tensor.From([]float32{filter}))}
		one := e.unsqueeze(base, e.op("Where", base+"_values", numbers), 1, 2)
		// A row for each query, which the operator expects.
		length := e.op("Slice", base+"_rows", []string{e.op("Shape", base+"_shape", []string{rows}), e.ints(1), e.ints(2)})
		sizes := e.op("Concat", base+"_sizes", []string{e.ints(1), e.ints(1), length, e.ints(1)}, graph.AttrInt("axis", 0))
		return e.op("Expand", base+"_full", []string{one, sizes})
	})
	if added != "" {
		full = e.op("Add", base+"_added", []string{full, added})
	}
	return full, true
}
