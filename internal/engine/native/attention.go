package native

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// opEncoderAttention is the operator of libfewbit_cpu (cpu/encoder_attention.cpp).
const opEncoderAttention = "EncoderAttention"

// opCrossAttention is the same with keys and values of another sequence.
const opCrossAttention = "CrossAttention"

// attrHidden is an attribute of EncoderAttention and EncoderLayers: with hiddenZero
// a row whose every key the mask hides by minus infinity gives 0.
const (
	attrHidden = "hidden"
	hiddenZero = "zero"
)

// maxHeadSize is kMaxHeadSize of cpu/attention.hpp.
const maxHeadSize = 1024

// attentions rewrites each attention whose three projections take the same
// quantized rows:
//
//	        /-> MatMulQuantized -> Add --\
//	codes  ---> MatMulQuantized -> Add ---> MultiHeadAttention(., ., ., mask)
//	        \-> MatMulQuantized -> Add --/
//
// becomes MatMulQuantized(codes, [Wq Wk Wv]) -> Add -> EncoderAttention(., mask):
// the rows are quantized once, and nothing is turned into heads and back. Where only
// the keys and values do, as in a decoder that attends to its encoder, it becomes
// CrossAttention(q, MatMulQuantized(codes, [Wk Wv]) -> Add, mask). What nobody reads any
// more is pruned.
func (l *lowering) attentions() error {
	g := l.m.Graph
	names := g.Namer()
	for _, n := range slices.Clone(g.Nodes) {
		if heads, ok := graph.PlainAttention(n); ok {
			l.attention(n, heads, names)
		}
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return l.gone[n] })
	if err := g.Sort(); err != nil {
		return err
	}
	g.Prune()
	l.ix = g.Index()
	return nil
}

// zeroHidden returns the only reader of y, the result of an attention with this mask, if
// it puts 0 in the rows of which the mask hides all keys, as quant.FuseAttention
// writes it:
//
//	mask -> ReduceMax -> Less(., the lowest) -> Reshape -> Where(., 0, y)
func (l *lowering) zeroHidden(y, mask string) *graph.Node {
	g := l.m.Graph
	w := l.only(y, "Where")
	if w == nil || w.In(2) != y || mask == "" {
		return nil
	}
	if zero, ok := g.Number(w.In(1)); !ok || zero != 0 {
		return nil
	}
	rows := l.ix.Producer(w.In(0))
	if rows == nil || !rows.Is("Reshape") || !l.m.Graph.Holds(rows.In(1), 0, -1, 1) || rows.Int("allowzero", 0) != 0 {
		return nil
	}
	less := l.ix.Producer(rows.In(0))
	if less == nil || !less.Is("Less") {
		return nil
	}
	if lowest, ok := g.Number(less.In(1)); !ok || lowest != -math.MaxFloat32 {
		return nil
	}
	most := l.ix.Producer(less.In(0))
	if most == nil || !most.Is("ReduceMax") || most.In(0) != mask || !l.overAxis(most, 3) {
		return nil
	}
	d := g.Dims(mask)
	if len(d) != 4 || d[1].N != 1 {
		return nil
	}
	return w
}

// branch is one of the three projections.
type branch struct {
	product          *graph.Node
	w, scale, sum, b *tensor.Tensor // b is nil without a bias, w of a weight in 4 bits
	four             *ops.Blocks
	rows, width      int64
}

func (l *lowering) attention(n *graph.Node, heads int64, names graph.Namer) {
	of := [3]operand{l.operand(n.In(0)), l.operand(n.In(1)), l.operand(n.In(2))}
	turned := []string(nil)
	if of[0].cos != "" && of[0].cos == of[1].cos && of[0].sin == of[1].sin && of[2].cos == "" {
		turned = []string{of[0].cos, of[0].sin}
		if l.attentionOfOne(n, heads, of, turned) {
			return
		}
	} else if of[0].part == 0 && of[0].cos == "" && of[1].cos == "" && of[2].cos == "" && l.attentionOfOne(n, heads, of, nil) {
		return
	}
	parts := make([]branch, 0, 3) // of keys and values, and then the queries if they are of the same rows
	for _, i := range []int{1, 2, 0} {
		value := n.In(i)
		if turned != nil && of[i].part < 0 {
			value = of[i].value
		}
		p, ok := l.branch(value)
		if ok && len(parts) > 0 {
			first := parts[0]
			ok = slices.Equal(p.product.Inputs[:3], first.product.Inputs[:3]) && p.rows == first.rows && p.width == first.width && (p.four == nil) == (first.four == nil)
		}
		if !ok && i != 0 {
			return
		}
		if ok {
			parts = append(parts, p)
		}
	}
	width := parts[0].width
	if width%heads != 0 || width/heads > maxHeadSize || 3*width > maxColumns {
		return
	}
	if len(parts) == 2 && (turned != nil || !l.sameLast(n.In(0), width)) {
		return
	}
	scale := scaleOf(n, width/heads)
	mask, ok := l.mask(n.In(5))
	if !ok {
		return
	}
	base, in := n.Outputs[0], n.In(0)
	n.Domain, n.Op = ops.Domain, opEncoderAttention
	if len(parts) == 3 {
		n.Inputs = []string{l.join(append(parts[2:], parts[:2]...), func(suffix string) string { return names.Name(base + "_qkv" + suffix) })}
	} else {
		n.Op = opCrossAttention
		n.Inputs = []string{in, l.join(parts, func(suffix string) string { return names.Name(base + "_kv" + suffix) })}
	}
	if mask != "" {
		n.Inputs = append(n.Inputs, mask)
	}
	l.finish(n, width, heads, scale, mask, turned)
}

// attentionOfOne rewrites an attention whose operands are the parts of one projection.
func (l *lowering) attentionOfOne(n *graph.Node, heads int64, of [3]operand, turned []string) bool {
	width := int64(0)
	for i, o := range of {
		if o.part != int64(i) || o.value != of[0].value || o.heads != heads {
			return false
		}
	}
	if d := l.m.Graph.Dims(of[0].value); len(d) == 3 {
		width = d[2].N / 3
	}
	mask, ok := l.mask(n.In(5))
	if !ok || width < 1 || width%heads != 0 || width/heads > maxHeadSize || 3*width > maxColumns {
		return false
	}
	scale := scaleOf(n, width/heads)
	n.Domain, n.Op, n.Inputs = ops.Domain, opEncoderAttention, []string{of[0].value}
	if mask != "" {
		n.Inputs = append(n.Inputs, mask)
	}
	l.finish(n, width, heads, scale, mask, turned)
	return true
}

func scaleOf(n *graph.Node, size int64) float32 {
	if scale := n.Float("scale", 0); scale != 0 {
		return scale
	}
	return float32(1 / math.Sqrt(float64(size)))
}

// finish gives the operator its positions and attributes.
func (l *lowering) finish(n *graph.Node, width, heads int64, scale float32, mask string, turned []string) {
	if turned != nil {
		n.Inputs = append(n.Inputs[:1:1], mask, turned[0], turned[1])
	}
	n.Attrs = append(n.Attrs[:0:0], graph.AttrInt("N", width), graph.AttrInt("num_heads", heads), graph.AttrFloat("scale", scale))
	if w := l.zeroHidden(n.Outputs[0], mask); w != nil {
		l.gone[w] = true
		n.Attrs, n.Outputs = append(n.Attrs, graph.AttrString(attrHidden, hiddenZero)), w.Outputs
	}
}

// join makes one projection of several of the same rows, and returns its value.
func (l *lowering) join(parts []branch, fresh func(suffix string) string) string {
	g := l.m.Graph
	count, rows, width := int64(len(parts)), parts[0].rows, parts[0].width
	in := append(slices.Clone(parts[0].product.Inputs[:3]), fresh("_quantized"), fresh("_scale"), fresh("_sum"))
	bias, product, y := fresh("_bias"), fresh("_product"), fresh("")
	codes, scales, sums, biases := make([][]int8, count), make([][]float32, count), make([][]int32, count), make([][]float32, count)
	for i, p := range parts {
		if p.four == nil {
			codes[i] = tensor.View[int8](p.w)
		}
		scales[i], sums[i] = tensor.View[float32](p.scale), tensor.View[int32](p.sum)
		if p.b != nil {
			biases[i] = tensor.View[float32](p.b)
		}
	}
	if parts[0].four != nil {
		g.Nodes = append(g.Nodes, joinBlocks(g, parts, in[3], fresh))
	} else {
		g.SetInit(in[3], tensor.From(graph.JoinColumns(codes, rows, width), rows, count*width))
	}
	g.SetInit(in[4], tensor.From(graph.JoinColumns(scales, 1, width), count*width))
	g.SetInit(in[5], tensor.From(graph.JoinColumns(sums, 1, width), count*width))
	g.SetInit(bias, tensor.From(graph.JoinColumns(biases, 1, width), count*width))
	g.Nodes = append(g.Nodes,
		graph.NewNode(ops.Domain, ops.OpMatMulQuantized, y+"_MatMulQuantized", in, []string{product}),
		graph.NewNode("", "Add", y+"_Add", []string{product, bias}, []string{y}))
	return y
}

// branch follows value, which an attention and nothing but Shapes read, back to
// its product of quantized rows with constants as docs/ops.md says.
func (l *lowering) branch(value string) (p branch, ok bool) {
	g := l.m.Graph
	if !l.ix.OnlyBesideShapes(value) {
		return p, false
	}
	n := l.ix.Producer(value)
	if n != nil && n.Is("Add") {
		bias, x := n.In(1), n.In(0)
		if g.Init(bias) == nil {
			bias, x = x, bias
		}
		p.b = g.Init(bias)
		if p.b == nil || p.b.Type != tensor.Float32 || len(p.b.Dims) != 1 || l.ix.Only(x) == nil {
			return p, false
		}
		n = l.ix.Producer(x)
	}
	if n == nil || n.Domain != ops.Domain || n.Op != ops.OpMatMulQuantized || len(n.Inputs) != 6 {
		return p, false
	}
	if q := l.ix.Producer(n.In(0)); q == nil || q.Op != ops.OpQuantizeRows {
		return p, false
	}
	p.product, p.w, p.scale, p.sum = n, g.Init(n.In(3)), g.Init(n.In(4)), g.Init(n.In(5))
	switch p.four = l.blocks(n.In(3)); {
	case p.four != nil:
		p.rows, p.width = int64(p.four.K), int64(p.four.N)
	case p.w == nil || p.w.Type != tensor.Int8 || len(p.w.Dims) != 2:
		return p, false
	default:
		p.rows, p.width = p.w.Dims[0], p.w.Dims[1]
	}
	cols := p.width
	if p.sum == nil || p.sum.Type != tensor.Int32 || !l.vector(n.In(4), cols) || p.sum.Len() != cols || p.b != nil && p.b.Len() != cols {
		return p, false
	}
	return p, true
}

// mask returns the mask that the operator adds to the scores: one row for all
// queries as it was before it was expanded for MultiHeadAttention.
func (l *lowering) mask(value string) (string, bool) {
	if value == "" {
		return "", true
	}
	if e := l.ix.Producer(value); e != nil && e.Is("Expand") {
		if t := l.m.Graph.Init(e.In(0)); t != nil && len(t.Dims) == 4 && t.Dims[2] == 1 {
			return l.mask(e.In(0))
		}
		if v := l.info(e.In(0)); v != nil && len(v.Dims) == 4 && v.Type == tensor.Float32 && v.Dims[2].N == 1 {
			value = e.In(0)
		}
	}
	if t := l.m.Graph.Init(value); t != nil {
		return value, len(t.Dims) == 4 && t.Type == tensor.Float32
	}
	v := l.info(value)
	return value, v != nil && len(v.Dims) == 4 && v.Type == tensor.Float32
}
