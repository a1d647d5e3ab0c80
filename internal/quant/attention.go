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
//	K -> Reshape -> Transpose 0231 ---- MatMul -> [Add mask] -> Softmax --\
//	V -> Reshape -> Transpose 0213 ----------------------------------------- MatMul
//	  -> Transpose 0213 -> Reshape -> out
//
// Constants may scale Q, K and the scores anywhere between, K may be turned in two
// steps, and a Where may replace scores by a huge negative number instead of the Add.
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
	where              *graph.Node // that masks, or nil
}

// shapesFit: the result is [batch, length, heads*size] and the mask, if there
// is one, [batch|1, 1|heads, 1|length, length].
func (f *attentionFuser) shapesFit(a *attention) bool {
	out := f.g.Dims(a.out)
	if len(out) != 3 {
		return false
	}
	if v := f.g.Dims(a.v); out[2].N != v[2].N {
		return false
	}
	if a.mask == "" {
		return true
	}
	mask := f.g.Dims(a.mask)
	if n := len(mask); n == 0 || mask[n-1].N == 1 {
		return false // one number for all keys
	} else if n == 4 {
		return mask[1].N == 1 || mask[1].N == a.heads
	} else if a.where != nil {
		return false
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
		f.fromCondition(a)
		f.widen(a)
		in = append(in, "", "", f.fullMask(a))
	}
	f.added = append(f.added, graph.NewNode(graph.DomainMS, "MultiHeadAttention", a.name, in, []string{a.out},
		graph.AttrInt("num_heads", a.heads), graph.AttrFloat("scale", a.scale)))
}

// fromCondition makes the mask of a Where, in place of its condition, the number
// that is added. Made once for all blocks.
func (f *attentionFuser) fromCondition(a *attention) {
	w := a.where
	if w == nil {
		return
	}
	in := []string{a.mask, w.In(1), w.In(2)}
	hidden := 1
	if _, ok := f.g.Number(w.In(1)); !ok {
		hidden = 2
	}
	c, _ := f.g.Number(in[hidden])
	key := fmt.Sprintf("%s\x00%d\x00%v", a.mask, hidden, c)
	name, ok := f.wide[key]
	if !ok {
		name = f.names.Name(a.mask + "_bias")
		zero := f.names.Name(name + "_zero")
		f.g.SetInit(zero, tensor.From([]float32{0}, 1))
		in[3-hidden] = zero
		f.added = append(f.added, graph.NewNode("", "Where", name, in, []string{name}))
		f.g.Info[name] = &graph.Value{Name: name, Type: tensor.Float32, Dims: f.g.Dims(a.mask)}
		f.wide[key] = name
	}
	a.mask = name
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
	if f.g.Dims(a.mask)[2].N != 1 {
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
