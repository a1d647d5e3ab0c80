package quant

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FuseAttention is the pass that writes the attention that exporters decompose
// as com.microsoft's MultiHeadAttention, whose CPU kernel keeps scores in cache
// and needs no transposed copies:
//
//	Q -> Reshape -> Transpose 0213 --\
//	K -> Reshape -> Transpose 0231 ---- MatMul -> [Add mask] -> Softmax --\
//	V -> Reshape -> Transpose 0213 ----------------------------------------- MatMul
//	  -> Transpose 0213 -> Reshape -> out
//
// Constants may scale Q, K and the scores anywhere between, K may be turned in two
// steps, batch and heads may be one dimension (products of three), several masks may be added, and a
// Where may replace scores by a huge negative number instead of the Add. A Where that puts 0
// in the place of a softmax that is no number is kept behind the attention, for the rows of which
// the mask hides all keys.
// Q, K and V are [batch, length, heads*size]. The mask is a value or a constant, a
// causal one say, that is broadcast to [batch, heads, length, length]. ONNX Runtime's own fusion does
// not apply once the projections are integer products. Arithmetic stays float.
type FuseAttention struct{}

var _ Pass = FuseAttention{}

// Name implements Pass.
func (FuseAttention) Name() string { return "fuse-attention" }

// Run implements Pass. Shapes must have been inferred.
func (FuseAttention) Run(_ context.Context, m *graph.Model) (Stats, error) {
	if _, err := batchFirst(m); err != nil {
		return Stats{}, err
	}
	shapesOfInputs(m, turnedForShape)
	f := &attentionFuser{m: m, g: m.Graph, ix: m.Graph.Index(), drop: map[*graph.Node]bool{}, bias: map[string]string{},
		wide: map[string]string{}, hidden: map[string]string{}, same: newSameValues(m.Graph), names: m.Graph.Namer()}
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
		shapesOfInputs(m, projected) // what attention read is gone
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d attention blocks", count)}, nil
}

type attentionFuser struct {
	m     *graph.Model
	g     *graph.Graph
	ix    *graph.Index
	drop  map[*graph.Node]bool
	added []*graph.Node
	bias  map[string]string // mask and number of queries -> its form [batch, 1, queries, length]
	wide  map[string]string // constant mask, a condition, several masks -> the mask
	// hidden: mask -> [batch, length or 1, 1], true where it hides all keys.
	hidden map[string]string
	same   *sameValues
	none   string // a constant 0
	names  graph.Namer
}

// attention is one matched block.
type attention struct {
	q, k, v, out string
	masks        []string // that are added, or the condition of where
	heads        int64
	scale        float32
	name         string
	flat         *graph.Node
	where        *graph.Node   // that masks, or nil
	guard        bool          // a softmax that is no number counts as 0
	unscaled     []*graph.Node // by constants that are part of scale
}

// shapesFit: the result is [batch, length, heads*size] and each mask is
// [batch|1, 1|heads, 1|length, length].
func (f *attentionFuser) shapesFit(a *attention) bool {
	out := f.g.Dims(a.out)
	if len(out) != 3 {
		return false
	}
	if v := f.g.Dims(a.v); out[2].N != v[2].N {
		return false
	}
	for i, m := range a.masks {
		a.masks[i] = f.same.name(m)
		if !f.maskFits(a, a.masks[i]) {
			return false
		}
	}
	return true
}

func (f *attentionFuser) maskFits(a *attention, m string) bool {
	mask := f.g.Dims(m)
	if n := len(mask); n == 0 || mask[n-1].N == 1 {
		return false // one number for all keys
	} else if n == 4 {
		return mask[1].N == 1 || mask[1].N == a.heads && f.headsFit(a, m)
	} else if a.where != nil {
		return false
	} else if t := f.g.Init(m); t == nil || n < 2 || n > 4 {
		return false
	} else { // leading dimensions of 1
		return n == 2 || mask[0].N == 1 || mask[0].N == a.heads && f.headsFit(a, m)
	}
}

// headsFit: the rows that a guard is for have to be the same for all heads.
func (f *attentionFuser) headsFit(a *attention, m string) bool {
	return !a.guard || len(a.masks) == 1 && f.showsSome(m)
}

func (f *attentionFuser) write(a *attention) {
	// The block's other nodes have no reader left and are pruned; one that
	// something else reads stays.
	f.drop[a.flat] = true
	for _, n := range a.unscaled {
		x := n.In(0)
		if _, ok := f.g.Number(x); ok {
			x = n.In(1)
		}
		for _, u := range f.ix.Uses(n.Outputs[0]) {
			u.Node.Inputs[u.Input] = x
		}
	}
	in, out := []string{a.q, a.k, a.v}, a.out
	if len(a.masks) > 0 {
		mask := f.mask(a)
		in = append(in, "", "", f.fullMask(mask, a))
		if a.guard && !f.showsSome(mask) {
			out = f.names.Name(a.out + "_rows")
			f.added = append(f.added, graph.NewNode("", "Where", a.out+"_Where", []string{f.hidesAll(mask), f.zero(), out}, []string{a.out}))
		}
	}
	f.added = append(f.added, graph.NewNode(graph.DomainMS, "MultiHeadAttention", a.name, in, []string{out},
		graph.AttrInt("num_heads", a.heads), graph.AttrFloat("scale", a.scale)))
}

// mask returns what is added to the scores, [batch|1, 1|heads, 1|length, length].
// Made once for all blocks.
func (f *attentionFuser) mask(a *attention) string {
	if a.where != nil {
		return f.fromCondition(a)
	}
	for i, m := range a.masks {
		a.masks[i] = f.widen(m)
	}
	sum := a.masks[0]
	for _, m := range a.masks[1:] {
		key := fmt.Sprintf("%s\x00+\x00%s", sum, m)
		name, ok := f.wide[key]
		if !ok {
			name = f.names.Name(m + "_sum")
			f.added = append(f.added, graph.NewNode("", "Add", name, []string{sum, m}, []string{name}))
			dims := slices.Clone(f.g.Dims(sum))
			for i, d := range f.g.Dims(m) {
				if dims[i].N == 1 {
					dims[i] = d
				}
			}
			f.g.Info[name] = &graph.Value{Name: name, Type: tensor.Float32, Dims: dims}
			f.wide[key] = name
		}
		sum = name
	}
	return sum
}

// showsSome reports whether no row of the mask is minus infinity for all keys,
// whatever the model is given.
func (f *attentionFuser) showsSome(mask string) bool {
	if t := f.g.Init(mask); t != nil {
		if t.Type != tensor.Float32 || len(t.Dims) == 0 {
			return false
		}
		v, n := tensor.View[float32](t), int(t.Dims[len(t.Dims)-1])
		for ; n > 0 && len(v) >= n; v = v[n:] {
			if !slices.ContainsFunc(v[:n], func(x float32) bool { return x-x == 0 }) {
				return false
			}
		}
		return len(v) == 0
	}
	w := f.ix.Producer(mask)
	for _, n := range f.added { // a mask that was made of a condition
		if n.Outputs[0] == mask {
			w = n
		}
	}
	if w == nil || !w.Is("Where") {
		return false
	}
	for i := 1; i <= 2; i++ {
		if x, ok := f.g.Number(w.In(i)); !ok || x-x != 0 {
			return false
		}
	}
	return true
}

// hidesAll returns which rows of mask are minus infinity for all keys. Made once for
// all blocks.
func (f *attentionFuser) hidesAll(mask string) string {
	if h, ok := f.hidden[mask]; ok {
		return h
	}
	most, less, lowest, h := f.names.Name(mask+"_most"), f.names.Name(mask+"_most_Less"), f.names.Name(mask+"_lowest"), f.names.Name(mask+"_hidden")
	f.hidden[mask] = h
	in, attrs := []string{mask}, []*pb.AttributeProto{graph.AttrInt("keepdims", 1)}
	if f.m.Opset() < 18 {
		attrs = append(attrs, graph.AttrInts("axes", -1))
	} else {
		axes := f.names.Name(mask + "_most_axes")
		f.g.SetInit(axes, tensor.From([]int64{-1}, 1))
		in = append(in, axes)
	}
	rows := f.names.Name(mask + "_hidden_shape")
	f.g.SetInit(rows, tensor.From([]int64{0, -1, 1}, 3))
	f.g.SetInit(lowest, tensor.From([]float32{-math.MaxFloat32}, 1))
	f.added = append(f.added,
		graph.NewNode("", "ReduceMax", most, in, []string{most}, attrs...),
		graph.NewNode("", "Less", less, []string{most, lowest}, []string{less}),
		graph.NewNode("", "Reshape", h, []string{less, rows}, []string{h}))
	return h
}

// zero returns the constant 0.
func (f *attentionFuser) zero() string {
	if f.none == "" {
		f.none = f.names.Name("hidden_zero")
		f.g.SetInit(f.none, tensor.From([]float32{0}, 1))
	}
	return f.none
}

// fromCondition makes the mask of a Where, in place of its condition, the number
// that is added. Made once for all blocks.
func (f *attentionFuser) fromCondition(a *attention) string {
	w, mask := a.where, a.masks[0]
	in := []string{mask, w.In(1), w.In(2)}
	hidden := 1
	if _, ok := f.g.Number(w.In(1)); !ok {
		hidden = 2
	}
	c, _ := f.g.Number(in[hidden])
	key := fmt.Sprintf("%s\x00%d\x00%v", mask, hidden, c)
	name, ok := f.wide[key]
	if !ok {
		name = f.names.Name(mask + "_bias")
		zero := f.names.Name(name + "_zero")
		f.g.SetInit(zero, tensor.From([]float32{0}, 1))
		in[3-hidden] = zero
		f.added = append(f.added, graph.NewNode("", "Where", name, in, []string{name}))
		f.g.Info[name] = &graph.Value{Name: name, Type: tensor.Float32, Dims: f.g.Dims(mask)}
		f.wide[key] = name
	}
	return name
}

// widen gives a constant mask its leading dimensions of 1, once for all blocks.
func (f *attentionFuser) widen(mask string) string {
	t := f.g.Init(mask)
	if t == nil || len(t.Dims) == 4 {
		return mask
	}
	name, ok := f.wide[mask]
	if !ok {
		name = f.names.Name(mask + "_bias")
		dims := append(slices.Repeat([]int64{1}, 4-len(t.Dims)), t.Dims...)
		f.g.SetInit(name, &tensor.Tensor{Type: t.Type, Dims: dims, Data: t.Data})
		f.wide[mask] = name
	}
	return name
}

// fullMask gives the mask a row for each query of a, which the kernel expects: a
// padding mask [batch, 1, 1, length] has one for all. Made once for all blocks with
// as many queries.
func (f *attentionFuser) fullMask(mask string, a *attention) string {
	if f.g.Dims(mask)[2].N != 1 {
		return mask
	}
	key := mask + "\x00" + f.queries(a)
	if full, ok := f.bias[key]; ok {
		return full
	}
	name := func(part string) string { return f.names.Name(mask + "_rows" + part) }
	b, one, shape, length, sizes := name(""), name("_one"), name("_shape"), name("_length"), name("_sizes")
	f.bias[key] = b
	f.g.SetInit(one, tensor.From([]int64{1}, 1))
	f.added = append(f.added,
		graph.NewNode("", "Shape", b+"_Shape", []string{a.q}, []string{shape}),
		graph.NewNode("", "Gather", b+"_Gather", []string{shape, one}, []string{length}),
		graph.NewNode("", "Concat", b+"_Concat", []string{one, one, length, one}, []string{sizes}, graph.AttrInt("axis", 0)),
		graph.NewNode("", "Expand", b+"_Expand", []string{mask, sizes}, []string{b}))
	return b
}

// queries says how many queries a has, in a word that blocks with as many share: ""
// for as many as keys.
func (f *attentionFuser) queries(a *attention) string {
	above := f.sameRows(a.k)
	if slices.ContainsFunc(f.sameRows(a.q), func(v string) bool { return slices.Contains(above, v) }) {
		return "" // both are projections of one value: exporters lose dimensions
	}
	if d := f.g.Dims(a.q); len(d) == 3 && d[1] != (graph.Dim{N: -1}) {
		return fmt.Sprint(d[1])
	}
	return a.q
}

// sameRows returns value and the values above it that it is a projection of.
func (f *attentionFuser) sameRows(value string) []string {
	values := []string{value}
	for n := f.ix.Producer(value); n != nil && len(values) < 12; n = f.ix.Producer(value) {
		constant := f.g.Init(n.In(0)) != nil
		switch axis := n.Int("axis", 0); {
		case n.Op == "MatMul" && constant: // which makes rows of rows
			return values
		case n.Op == "Split" && (axis == 1 || axis == -2): // some rows
			return values
		}
		switch n.Op {
		case "Add", "Mul", "Div", "MatMul", "Reshape", "Transpose", "Split", "LayerNormalization", "SimplifiedLayerNormalization":
		default:
			return values
		}
		if value = n.In(0); constant {
			value = n.In(1)
		}
		values = append(values, value)
	}
	return values
}
