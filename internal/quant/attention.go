package quant

import (
	"context"
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FuseAttention is the pass that writes the attention that exporters decompose
// as com.microsoft's MultiHeadAttention, whose CPU kernel keeps scores in cache
// and needs no transposed copies:
//
//	Q -> Reshape -> Transpose 0213 --\
//	K -> Reshape -> Transpose 0231 ---- MatMul -> Div|Mul c -> [Add mask] -> Softmax --\
//	V -> Reshape -> Transpose 0213 ------------------------------------------------------ MatMul
//	  -> Transpose 0213 -> Reshape -> out
//
// Q, K and V are [batch, length, heads*size]. The mask is a value or a constant, a
// causal one say, that is broadcast to [batch, heads, length, length]. ONNX Runtime's own fusion does
// not apply once the projections are integer products. Arithmetic stays float.
type FuseAttention struct{}

var _ Pass = FuseAttention{}

// Name implements Pass.
func (FuseAttention) Name() string { return "fuse-attention" }

// Run implements Pass. Shapes must have been inferred.
func (FuseAttention) Run(_ context.Context, m *graph.Model) (Stats, error) {
	f := &attentionFuser{m: m, g: m.Graph, ix: m.Graph.Index(), drop: map[*graph.Node]bool{}, bias: map[string]string{},
		wide: map[string]string{}, names: m.Graph.Namer()}
	count := 0
	for _, n := range m.Graph.Nodes {
		if n.Is("Softmax") {
			if a := f.match(n); a != nil {
				f.write(a)
				count++
			}
		}
	}
	if count > 0 {
		m.Require(graph.DomainMS, 1)
		m.Graph.Nodes = append(without(m.Graph.Nodes, f.drop), f.added...)
		if err := m.Graph.Sort(); err != nil {
			return Stats{}, err
		}
		m.Graph.Prune()
		graph.InferShapes(m)
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d attention blocks", count)}, nil
}

type attentionFuser struct {
	m     *graph.Model
	g     *graph.Graph
	ix    *graph.Index
	drop  map[*graph.Node]bool
	added []*graph.Node
	bias  map[string]string // mask -> its form [batch, 1, length, length]
	wide  map[string]string // constant mask -> its form of four dimensions
	names graph.Namer
}

// attention is one matched block.
type attention struct {
	q, k, v, mask, out string
	heads              int64
	scale              float32
	name               string
	flat               *graph.Node
}

// step returns the producer of value when it is op and only the block reads it.
func (f *attentionFuser) step(value, op string) *graph.Node {
	n := f.ix.Producer(value)
	if n == nil || !n.Is(op) || f.ix.Only(value) == nil || len(n.Outputs) != 1 {
		return nil
	}
	return n
}

func (f *attentionFuser) match(soft *graph.Node) *attention {
	last := int64(-1)
	if f.m.Opset() < 13 {
		last = 1 // the default axis then; the attribute decides
	}
	if axis := soft.Int("axis", last); axis != -1 && axis != 3 {
		return nil
	}
	a := &attention{name: soft.Name}
	// Behind the softmax.
	ctx := f.ix.Only(soft.Outputs[0])
	if ctx == nil || !ctx.Is("MatMul") || ctx.In(0) != soft.Outputs[0] {
		return nil
	}
	joined := f.ix.Only(ctx.Outputs[0])
	if joined == nil || !joined.Is("Transpose") || !slices.Equal(joined.Ints("perm"), []int64{0, 2, 1, 3}) {
		return nil
	}
	// The joined value may also be read for its shape, which goes with it.
	var flat *graph.Node
	for _, u := range f.ix.Uses(joined.Outputs[0]) {
		switch {
		case u.Node.Is("Reshape") && u.Input == 0 && flat == nil:
			flat = u.Node
		case u.Node.Is("Shape"):
		default:
			return nil
		}
	}
	if flat == nil || f.ix.IsOutput(joined.Outputs[0]) {
		return nil
	}
	a.flat, a.out = flat, flat.Outputs[0]
	if a.v = f.split(a, ctx.In(1), []int64{0, 2, 1, 3}); a.v == "" {
		return nil
	}
	// Before the softmax.
	x := soft.In(0)
	if add := f.step(x, "Add"); add != nil {
		x, a.mask = add.In(0), add.In(1)
		if !f.scaled(x) {
			x, a.mask = a.mask, x
		}
	}
	scaled := f.step(x, "Div")
	if scaled == nil {
		scaled = f.step(x, "Mul")
	}
	if scaled == nil {
		return nil
	}
	c := f.g.Init(scaled.In(1))
	if c == nil || c.Type != tensor.Float32 || c.Len() != 1 || tensor.View[float32](c)[0] == 0 {
		return nil
	}
	a.scale = tensor.View[float32](c)[0]
	if scaled.Op == "Div" {
		a.scale = 1 / a.scale
	}
	scores := f.step(scaled.In(0), "MatMul")
	if scores == nil {
		return nil
	}
	if a.q = f.split(a, scores.In(0), []int64{0, 2, 1, 3}); a.q == "" {
		return nil
	}
	if a.k = f.split(a, scores.In(1), []int64{0, 2, 3, 1}); a.k == "" {
		return nil
	}
	if !f.shapesFit(a) {
		return nil
	}
	return a
}

// scaled reports whether value is a scores product divided or multiplied by a
// constant: the other operand of the Add is the mask.
func (f *attentionFuser) scaled(value string) bool {
	n := f.ix.Producer(value)
	if n == nil || !(n.Is("Div") || n.Is("Mul")) {
		return false
	}
	p := f.ix.Producer(n.In(0))
	return p != nil && p.Is("MatMul") && f.g.Init(n.In(1)) != nil
}

// split follows value back through Transpose(perm) and the Reshape to heads,
// whose sizes it records, and returns the projection.
func (f *attentionFuser) split(a *attention, value string, perm []int64) string {
	t := f.step(value, "Transpose")
	if t == nil || !slices.Equal(t.Ints("perm"), perm) {
		return ""
	}
	r := f.step(t.In(0), "Reshape")
	if r == nil {
		return ""
	}
	heads := f.dims(r.Outputs[0])
	if len(heads) != 4 || heads[2].N <= 0 || heads[3].N <= 0 || (a.heads != 0 && a.heads != heads[2].N) {
		return ""
	}
	a.heads = heads[2].N
	p := f.dims(r.In(0))
	if len(p) != 3 || p[2].N != heads[2].N*heads[3].N {
		return ""
	}
	return r.In(0)
}

func (f *attentionFuser) dims(value string) []graph.Dim {
	if t := f.g.Init(value); t != nil {
		dims := make([]graph.Dim, len(t.Dims))
		for i, n := range t.Dims {
			dims[i].N = n
		}
		return dims
	}
	if v := f.g.Info[value]; v != nil {
		return v.Dims
	}
	for _, v := range f.g.Inputs {
		if v.Name == value {
			return v.Dims
		}
	}
	return nil
}

// shapesFit: the result is [batch, length, heads*size] and the mask, if there
// is one, [batch|1, 1|heads, 1|length, length].
func (f *attentionFuser) shapesFit(a *attention) bool {
	out := f.dims(a.out)
	if len(out) != 3 {
		return false
	}
	if v := f.dims(a.v); out[2].N != v[2].N {
		return false
	}
	if a.mask == "" {
		return true
	}
	mask := f.dims(a.mask)
	if n := len(mask); n == 4 {
		return mask[1].N == 1 || mask[1].N == a.heads
	} else if t := f.g.Init(a.mask); t == nil || n < 2 || n > 4 {
		return false
	} else { // leading dimensions of 1
		return n == 2 || mask[0].N == 1 || mask[0].N == a.heads
	}
}

func (f *attentionFuser) write(a *attention) {
	// The block's other nodes have no reader left and are pruned; one that
	// something else reads stays.
	f.drop[a.flat] = true
	in := []string{a.q, a.k, a.v}
	if a.mask != "" {
		f.widen(a)
		in = append(in, "", "", f.fullMask(a))
	}
	f.added = append(f.added, graph.NewNode(graph.DomainMS, "MultiHeadAttention", a.name, in, []string{a.out},
		graph.AttrInt("num_heads", a.heads), graph.AttrFloat("scale", a.scale)))
}

// widen gives a constant mask its leading dimensions of 1, once for all blocks.
func (f *attentionFuser) widen(a *attention) {
	t := f.g.Init(a.mask)
	if t == nil || len(t.Dims) == 4 {
		return
	}
	name, ok := f.wide[a.mask]
	if !ok {
		name = f.names.Name(a.mask + "_bias")
		dims := append(slices.Repeat([]int64{1}, 4-len(t.Dims)), t.Dims...)
		f.g.SetInit(name, &tensor.Tensor{Type: t.Type, Dims: dims, Data: t.Data})
		f.wide[a.mask] = name
	}
	a.mask = name
}

// fullMask gives the mask a row for each query, which the kernel expects: a
// padding mask [batch, 1, 1, length] has one for all. Made once for all blocks.
func (f *attentionFuser) fullMask(a *attention) string {
	if f.dims(a.mask)[2].N != 1 {
		return a.mask
	}
	if full, ok := f.bias[a.mask]; ok {
		return full
	}
	b := a.mask + "_rows"
	f.bias[a.mask] = b
	f.g.SetInit(b+"_one", tensor.From([]int64{1}, 1))
	f.added = append(f.added,
		graph.NewNode("", "Shape", b+"_Shape", []string{a.q}, []string{b + "_shape"}),
		graph.NewNode("", "Gather", b+"_Gather", []string{b + "_shape", b + "_one"}, []string{b + "_length"}),
		graph.NewNode("", "Concat", b+"_Concat", []string{b + "_one", b + "_one", b + "_length", b + "_one"}, []string{b + "_sizes"}, graph.AttrInt("axis", 0)),
		graph.NewNode("", "Expand", b+"_Expand", []string{a.mask, b + "_sizes"}, []string{b}))
	return b
}
