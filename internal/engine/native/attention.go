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
// the rows are quantized once, and nothing is turned into heads and back.
func (l *lowering) attentions() {
	g := l.m.Graph
	for _, n := range slices.Clone(g.Nodes) {
		if n.Domain == graph.DomainMS && n.Op == "MultiHeadAttention" {
			l.attention(n)
		}
	}
}

// branch is one of the three projections.
type branch struct {
	product, add     *graph.Node // add is nil without a bias
	w, scale, sum, b *tensor.Tensor
}

func (l *lowering) attention(n *graph.Node) {
	heads := n.Int("num_heads", 0)
	if len(n.Outputs) != 1 || heads <= 0 || n.Int("unidirectional", 0) != 0 {
		return
	}
	for i, in := range n.Inputs {
		if i > 2 && i != 5 && in != "" {
			return
		}
	}
	var parts [3]branch
	for i := range parts {
		p, ok := l.branch(n.In(i))
		if !ok {
			return
		}
		parts[i] = p
		if !slices.Equal(p.product.Inputs[:3], parts[0].product.Inputs[:3]) || !slices.Equal(p.w.Dims, parts[0].w.Dims) {
			return
		}
	}
	rows, width := parts[0].w.Dims[0], parts[0].w.Dims[1]
	if width%heads != 0 || width/heads > maxHeadSize {
		return
	}
	scale := n.Float("scale", 0)
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(width/heads)))
	}
	mask, ok := l.mask(n.In(5))
	if !ok || !l.releaseShapes(parts, rows, width) {
		return
	}
	g := l.m.Graph
	names := g.Namer()
	base := n.Outputs[0]
	fresh := func(suffix string) string { return names.Name(base + suffix) }
	in := append(slices.Clone(parts[0].product.Inputs[:3]), fresh("_qkv_quantized"), fresh("_qkv_scale"), fresh("_qkv_sum"))
	bias, product, qkv := fresh("_qkv_bias"), fresh("_qkv_product"), fresh("_qkv")
	codes := make([]int8, rows*3*width)
	for i, p := range parts {
		v := tensor.View[int8](p.w)
		for r := range rows {
			copy(codes[(3*r+int64(i))*width:][:width], v[r*width:][:width])
		}
	}
	g.SetInit(in[3], tensor.From(codes, rows, 3*width))
	g.SetInit(in[4], tensor.From(beside3[float32](parts, width, func(p branch) *tensor.Tensor { return p.scale }), 3*width))
	g.SetInit(in[5], tensor.From(beside3[int32](parts, width, func(p branch) *tensor.Tensor { return p.sum }), 3*width))
	g.SetInit(bias, tensor.From(beside3[float32](parts, width, func(p branch) *tensor.Tensor { return p.b }), 3*width))
	att := []string{qkv}
	if mask != "" {
		att = append(att, mask)
	}
	n.Domain, n.Op, n.Inputs = ops.Domain, opEncoderAttention, att
	n.Attrs = append(n.Attrs[:0:0], graph.AttrInt("N", width), graph.AttrInt("num_heads", heads), graph.AttrFloat("scale", scale))
	g.Nodes = append(g.Nodes,
		graph.NewNode(ops.Domain, ops.OpMatMulQuantized, base+"_qkv_MatMulQuantized", in, []string{product}),
		graph.NewNode("", "Add", base+"_qkv_Add", []string{product, bias}, []string{qkv}))
	gone := map[*graph.Node]bool{}
	for _, p := range parts {
		gone[p.product] = true
		if p.add != nil {
			gone[p.add] = true
		}
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(x *graph.Node) bool { return gone[x] })
	l.ix = g.Index()
}

// branch follows value, which an attention and nothing but Shapes read, back to
// its product with constants as docs/ops.md says.
func (l *lowering) branch(value string) (p branch, ok bool) {
	g := l.m.Graph
	if !l.onlyShapesBeside(value) {
		return p, false
	}
	n := l.ix.Producer(value)
	if n != nil && n.Is("Add") {
		p.add = n
		b := g.Init(n.In(1))
		x := n.In(0)
		if b == nil {
			b, x = g.Init(n.In(0)), n.In(1)
		}
		if b == nil || b.Type != tensor.Float32 || len(b.Dims) != 1 || l.ix.Only(x) == nil {
			return p, false
		}
		p.b, n = b, l.ix.Producer(x)
	}
	if n == nil || n.Domain != ops.Domain || n.Op != ops.OpMatMulQuantized || len(n.Inputs) != 6 {
		return p, false
	}
	p.product, p.w, p.scale, p.sum = n, g.Init(n.In(3)), g.Init(n.In(4)), g.Init(n.In(5))
	if p.w == nil || p.w.Type != tensor.Int8 || len(p.w.Dims) != 2 || p.sum == nil || p.sum.Type != tensor.Int32 {
		return p, false
	}
	cols := p.w.Dims[1]
	if !l.vector(n.In(4), cols) || p.sum.Len() != cols || p.b != nil && p.b.Len() != cols {
		return p, false
	}
	return p, true
}

func (l *lowering) onlyShapesBeside(value string) bool {
	readers := 0
	for _, u := range l.ix.Uses(value) {
		if !u.Node.Is("Shape") {
			readers++
		}
	}
	return readers == 1 && !l.ix.IsOutput(value) && !l.ix.Captured(value)
}

// mask returns the mask that the operator adds to the scores: one row for all
// queries as it was before it was expanded for MultiHeadAttention.
func (l *lowering) mask(value string) (string, bool) {
	if value == "" {
		return "", true
	}
	if e := l.ix.Producer(value); e != nil && e.Is("Expand") {
		if v := l.info(e.In(0)); v != nil && len(v.Dims) == 4 && v.Type == tensor.Float32 && v.Dims[2].N == 1 {
			value = e.In(0)
		}
	}
	v := l.info(value)
	return value, v != nil && len(v.Dims) == 4 && v.Type == tensor.Float32
}

// releaseShapes points the Shapes of the projections, which go, at the rows that
// they are made from: where these have as many columns the shape is the same.
func (l *lowering) releaseShapes(parts [3]branch, rows, width int64) bool {
	var shapes []*graph.Node
	for _, p := range parts {
		last := p.product
		if p.add != nil {
			last = p.add
		}
		for _, u := range l.ix.Uses(last.Outputs[0]) {
			if u.Node.Is("Shape") {
				shapes = append(shapes, u.Node)
			}
		}
	}
	q := l.ix.Producer(parts[0].product.In(0))
	if q == nil || q.Op != ops.OpQuantizeRows || len(shapes) > 0 && rows != width {
		return false
	}
	for _, s := range shapes {
		s.Inputs[0] = q.In(0)
	}
	return true
}

// beside3 puts a vector of each branch side by side, zeros for one that has none.
func beside3[T float32 | int32](parts [3]branch, width int64, of func(branch) *tensor.Tensor) []T {
	out := make([]T, 3*width)
	for i, p := range parts {
		if t := of(p); t != nil {
			copy(out[int64(i)*width:][:width], tensor.View[T](t))
		}
	}
	return out
}
