package quant

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// MergeAttention is the pass that writes an attention and the three products of
// one quantized input before it as com.microsoft's QAttention:
//
//	        /-> MatMulIntegerToFloat (Q) --\
//	codes  ---> MatMulIntegerToFloat (K) ---> MultiHeadAttention   =>   QAttention(codes, [Wq Wk Wv])
//	        \-> MatMulIntegerToFloat (V) --/
//
// It computes a head of Q, K and V at a time, straight into the layout of the
// scores, so that the three results are neither written as matrices nor turned
// nor moved from one core to the other. The arithmetic is the same: the codes,
// scales, biases and, for a mask, the value that is added to what is masked.
//
// QAttention takes a padding mask as whole numbers [batch, length]; of a
// floating mask it must therefore be known that it is (1 - mask) * constant,
// which is how exporters write it. Another mask leaves the block as it is.
type MergeAttention struct{}

var _ Pass = MergeAttention{}

// Name implements Pass.
func (MergeAttention) Name() string { return "merge-attention" }

// Run implements Pass. It comes after Lower; shapes must have been inferred for
// the mask.
func (MergeAttention) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	w := &attentionMerger{g: g, ix: g.Index(), names: g.Namer(), drop: map[*graph.Node]bool{}, masks: map[string]string{}}
	count := 0
	for _, n := range g.Nodes {
		if heads, ok := graph.PlainAttention(n); ok && w.merge(n, heads) {
			count++
		}
	}
	if count > 0 {
		g.Nodes = append(without(g.Nodes, w.drop), w.added...)
		if err := g.Sort(); err != nil {
			return Stats{}, err
		}
		g.Prune()
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d attention blocks take their input in codes", count)}, nil
}

type attentionMerger struct {
	g     *graph.Graph
	ix    *graph.Index
	names graph.Namer
	drop  map[*graph.Node]bool
	added []*graph.Node
	masks map[string]string // mask -> its int32 form
}

func (w *attentionMerger) merge(n *graph.Node, heads int64) bool {
	var parts [3]*graph.Node
	for i := range parts {
		if parts[i] = w.product(n.In(i)); parts[i] == nil {
			return false
		}
		for _, in := range []int{0, 2, 4} { // codes, scale, zero point
			if parts[i].In(in) != parts[0].In(in) {
				return false
			}
		}
	}
	rows, width, ok := w.sizes(parts)
	if !ok || width%heads != 0 {
		return false
	}
	// QAttention's own scale is 1/sqrt(size of a head).
	if usual := 1 / math.Sqrt(float64(width/heads)); math.Abs(float64(n.Float("scale", 0))/usual-1) > 1e-6 {
		return false
	}
	mask, filter := "", float32(0)
	if n.In(5) != "" {
		var source string
		if source, filter = w.mask(n.In(5)); source == "" {
			return false
		}
		mask = w.whole(source)
	}
	base := n.Outputs[0]
	codes, scales, bias := w.names.Name(base+"_qkv_quantized"), w.names.Name(base+"_qkv_scale"), w.names.Name(base+"_qkv_bias")
	var weights [3][]int8
	for i, p := range parts {
		weights[i] = tensor.View[int8](w.g.Init(p.In(1)))
	}
	w.g.SetInit(codes, tensor.From(graph.JoinColumns(weights[:], rows, width), rows, 3*width))
	w.g.SetInit(scales, tensor.From(w.join(parts, 3, width), 3*width))
	w.g.SetInit(bias, tensor.From(w.join(parts, 6, width), 3*width))
	p := parts[0]
	q := graph.NewNode(graph.DomainMS, "QAttention", n.Name, []string{p.In(0), codes, bias, p.In(2), scales, mask, p.In(4)}, n.Outputs, graph.AttrInt("num_heads", heads))
	if mask != "" {
		q.Attrs = append(q.Attrs, graph.AttrFloat("mask_filter_value", filter))
	}
	w.added = append(w.added, q)
	w.drop[n] = true
	return true
}

// product returns the integer product that only the attention reads.
func (w *attentionMerger) product(value string) *graph.Node {
	n := w.ix.Producer(value)
	if n == nil || n.Domain != graph.DomainMS || n.Op != "MatMulIntegerToFloat" || n.In(5) != "" {
		return nil
	}
	// The length of Q may be read for the mask, which goes with the block.
	if !w.ix.OnlyBesideShapes(value) {
		return nil
	}
	return n
}

// sizes returns the sizes [rows, width] of the products' weights, s8 of equal
// size with scales and biases that are constant.
func (w *attentionMerger) sizes(parts [3]*graph.Node) (rows, width int64, ok bool) {
	for i, p := range parts {
		t, s := w.g.Init(p.In(1)), w.g.Init(p.In(3))
		if t == nil || s == nil || t.Type != tensor.Int8 || len(t.Dims) != 2 || s.Type != tensor.Float32 {
			return 0, 0, false
		}
		if i == 0 {
			rows, width = t.Dims[0], t.Dims[1]
		}
		if t.Dims[0] != rows || t.Dims[1] != width || (s.Len() != 1 && s.Len() != width) {
			return 0, 0, false
		}
		if b := w.g.Init(p.In(6)); p.In(6) != "" && (b == nil || b.Type != tensor.Float32 || b.Len() != width) {
			return 0, 0, false
		}
	}
	return rows, width, rows > 0 && width > 0
}

// join puts the vectors at one input of the three side by side. A single value
// stands for all columns, an absent one for zeros.
func (w *attentionMerger) join(parts [3]*graph.Node, input int, width int64) []float32 {
	var vectors [3][]float32
	for i, p := range parts {
		if t := w.g.Init(p.In(input)); t != nil {
			vectors[i] = tensor.View[float32](t)
			if t.Len() == 1 {
				vectors[i] = slices.Repeat(vectors[i], int(width))
			}
		}
	}
	return graph.JoinColumns(vectors[:], 1, width)
}

// mask follows a mask that is added to the scores back to the whole numbers
// [batch, length] that it is made of, 0 for padding and 1 for the rest:
//
//	tokens -> Unsqueeze, Cast -> Sub(1, .) -> Mul c  [-> Expand]
//
// It returns the name of the tokens and c, or "".
func (w *attentionMerger) mask(value string) (source string, filter float32) {
	n := w.ix.Producer(value)
	if n != nil && n.Is("Expand") {
		value = n.In(0)
		n = w.ix.Producer(value)
	}
	if v := w.g.Info[value]; v == nil || len(v.Dims) != 4 || v.Dims[1].N != 1 || v.Dims[2].N != 1 {
		return "", 0
	}
	if n == nil || !n.Is("Mul") {
		return "", 0
	}
	x, c := n.In(0), n.In(1)
	if w.g.Init(c) == nil {
		x, c = c, x
	}
	filter, ok := w.g.Number(c)
	if !ok || filter > -1000 { // what is masked must vanish behind the softmax
		return "", 0
	}
	sub := w.ix.Producer(x)
	if sub == nil || !sub.Is("Sub") {
		return "", 0
	}
	if one, ok := w.g.Number(sub.In(0)); !ok || one != 1 {
		return "", 0
	}
	for source = sub.In(1); ; {
		n := w.ix.Producer(source)
		if n == nil || !(n.Is("Cast") || n.Is("Unsqueeze")) {
			break
		}
		source = n.In(0)
	}
	for _, v := range w.g.Inputs {
		if v.Name == source && len(v.Dims) == 2 && (v.Type == tensor.Int64 || v.Type == tensor.Int32 || v.Type == tensor.Bool) {
			return source, filter
		}
	}
	return "", 0
}

// whole returns the int32 form of an input, made once for all blocks.
func (w *attentionMerger) whole(source string) string {
	for _, v := range w.g.Inputs {
		if v.Name == source && v.Type == tensor.Int32 {
			return source
		}
	}
	if name, ok := w.masks[source]; ok {
		return name
	}
	name := w.names.Name(source + "_int32")
	w.masks[source] = name
	w.added = append(w.added, graph.NewNode("", "Cast", name+"_Cast", []string{source}, []string{name}, graph.AttrInt("to", int64(tensor.Int32))))
	return name
}
