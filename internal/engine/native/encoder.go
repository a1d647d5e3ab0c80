package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// opEncoderLayers is the operator of libfewbit_cpu (cpu/encoder_layers.cpp).
const opEncoderLayers = "EncoderLayers"

// headStep and maxLayers are kEncoderHeadStep and kEncoderMaxLayers of
// cpu/encoder.hpp, maxInner is kInt8MaxK of cpu/int8.hpp, maxColumns kMaxDim of
// cpu/bf16.hpp.
const (
	headStep   = 16
	maxLayers  = 512
	maxInner   = ops.MaxK
	maxColumns = 1 << 20
)

// encoders makes one operator of each chain of layers
//
//	x -> LinearRows -> EncoderAttention -> LinearRows + x -> normalize = y
//	y -> LinearRows, GELU -> LinearRows + y -> normalize
//
// or, with the normalization first,
//
//	x -> normalize -> LinearRows -> EncoderAttention -> LinearRows + x = y
//	y -> normalize -> LinearRows, GELU -> LinearRows + y
//
// of equal size, mask, activation and epsilon. A layer whose inner values others read stays
// as it is and ends the chain.
func (l *lowering) encoders() error {
	g := l.m.Graph
	l.ix = g.Index()
	byInput := map[string]*encoderLayer{}
	var layers []*encoderLayer
	for _, n := range g.Nodes {
		if n.Domain == ops.Domain && n.Op == opEncoderAttention {
			if e := l.encoderLayer(n); e != nil && byInput[e.x] == nil {
				byInput[e.x] = e
				layers = append(layers, e)
			}
		}
	}
	if len(layers) == 0 {
		return nil
	}
	var none string
	gone, taken := map[*graph.Node]bool{}, map[*encoderLayer]bool{}
	names := g.Namer()
	for _, e := range layers { // in the graph's order, so that a chain begins with its first
		if taken[e] {
			continue
		}
		chain := []*encoderLayer{e}
		for last := e; len(chain) < maxLayers; {
			next := byInput[last.y]
			if next == nil || !next.follows(last) || !l.readBy(last.y, next.readers) {
				break
			}
			chain, last = append(chain, next), next
		}
		if none == "" {
			none = names.Name("none")
			g.SetInit(none, tensor.From([]float32{}, 0))
		}
		in := []string{e.x, orNone(e.mask, none)}
		for _, c := range chain {
			constants, err := l.constants(c, none, names)
			if err != nil {
				return err
			}
			in = append(in, constants...)
			taken[c] = true
			for _, n := range c.nodes {
				gone[n] = true
			}
		}
		y := chain[len(chain)-1].y
		attrs := []*pb.AttributeProto{graph.AttrInt("N", e.width), graph.AttrInt("num_heads", e.heads), graph.AttrFloat("scale", e.scale), graph.AttrFloat("epsilon", e.norms[0].epsilon)}
		if e.first {
			attrs = append(attrs, graph.AttrString("normalize", "first"))
		}
		if e.act != "gelu" {
			attrs = append(attrs, graph.AttrString("activation", e.act))
		}
		if e.hidden != "" {
			attrs = append(attrs, graph.AttrString(attrHidden, e.hidden))
		}
		if e.mask != "" && l.paddingUnread(y, e.mask) {
			attrs = append(attrs, graph.AttrString("padding", "skip"))
		}
		g.Nodes = append(g.Nodes, graph.NewNode(ops.Domain, opEncoderLayers, y+"_EncoderLayers", in, []string{y}, attrs...))
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return gone[n] })
	return g.Sort()
}

// encoderLayer is a layer found in the graph. All its nodes but the last are
// read by it alone.
type encoderLayer struct {
	x, y, mask         string
	qkv, out, up, down *graph.Node
	norms              [2]norm
	nodes              []*graph.Node
	width, heads       int64
	inner              int64
	scale              float32
	act                string
	hidden             string
	first              bool // the normalization
	readers            int  // how many inputs of nodes take x
}

// paddedSize is the number of columns that a head's query, key or value has in
// the operator's weight, those behind the head's own of zeros.
func (e *encoderLayer) paddedSize() int64 {
	return (e.width/e.heads + headStep - 1) / headStep * headStep
}

// follows reports whether e can stand behind o in one operator.
func (e *encoderLayer) follows(o *encoderLayer) bool {
	return e.first == o.first && e.act == o.act && e.mask == o.mask && e.hidden == o.hidden && e.width == o.width && e.heads == o.heads && e.inner == o.inner && e.scale == o.scale && e.norms[0].epsilon == o.norms[0].epsilon
}

func (l *lowering) encoderLayer(att *graph.Node) *encoderLayer {
	e := &encoderLayer{width: att.Int("N", 0), heads: att.Int("num_heads", 0), scale: att.Float("scale", 0), mask: att.In(1), hidden: att.Str(attrHidden, "")}
	e.qkv = l.ix.Producer(att.In(0))
	if e.heads < 1 || 3*e.heads*e.paddedSize() > maxColumns || !l.linear(e.qkv, 3*e.width, "", "") || l.ix.Only(att.In(0)) != att {
		return nil
	}
	e.out = l.ix.Only(att.Outputs[0])
	if e.out == nil {
		return nil
	}
	e.x = e.out.In(inResidual)
	if e.x == "" || !l.linear(e.out, e.width, "", e.x) || e.out.In(inX) != att.Outputs[0] {
		return nil
	}
	ok := false
	if e.x != e.qkv.In(inX) {
		ok = l.normalizedFirst(e)
	} else {
		ok = l.normalizedLast(e)
	}
	if !ok || e.norms[1].epsilon != e.norms[0].epsilon {
		return nil
	}
	e.nodes = slices.Concat([]*graph.Node{e.qkv, att, e.out, e.up, e.down}, e.norms[0].nodes, e.norms[1].nodes)
	return e
}

// normalizedLast finds the rest of a layer with a normalization behind each
// residual.
func (l *lowering) normalizedLast(e *encoderLayer) (ok bool) {
	e.readers = 2
	if e.norms[0], ok = l.norm(e.out.Outputs[0], e.width); !ok {
		return false
	}
	y := e.norms[0].y
	for _, u := range l.ix.Uses(y) {
		switch u.Input {
		case inX:
			e.up = u.Node
		case inResidual:
			e.down = u.Node
		}
	}
	if !l.feedForward(e, y, y) || !l.readBy(y, 2) {
		return false
	}
	if e.norms[1], ok = l.norm(e.down.Outputs[0], e.width); !ok {
		return false
	}
	e.y = e.norms[1].y
	return true
}

// normalizedFirst finds the rest of a layer with a normalization before each
// projection and none behind the residuals.
func (l *lowering) normalizedFirst(e *encoderLayer) (ok bool) {
	e.first = true
	x, middle := e.qkv.In(inX), e.out.Outputs[0]
	if e.norms[0], ok = l.normTo(e.x, x, e.width); !ok || !l.readBy(x, 1) {
		return false
	}
	for _, u := range l.ix.Uses(middle) {
		if u.Input == inResidual && u.Node.Op == opLinearRows {
			e.down = u.Node
		}
	}
	if e.down == nil {
		return false
	}
	if e.up = l.ix.Producer(e.down.In(inX)); e.up == nil {
		return false
	}
	n := e.up.In(inX)
	if e.norms[1], ok = l.normTo(middle, n, e.width); !ok || !l.readBy(n, 1) || !l.readBy(middle, e.norms[1].readers+1) || !l.feedForward(e, n, middle) {
		return false
	}
	e.readers, e.y = e.norms[0].readers+1, e.down.Outputs[0]
	return true
}

// feedForward reports whether Up, of value from, and Down, with residual, are the
// two projections of a layer.
func (l *lowering) feedForward(e *encoderLayer, from, residual string) bool {
	if e.up == nil || e.down == nil {
		return false
	}
	e.inner, e.act = l.weights[e.up].n, e.up.Str("activation", "")
	return e.act != "" && e.inner <= maxInner && l.linear(e.up, e.inner, e.act, "") && e.up.In(inX) == from &&
		l.linear(e.down, e.width, "", residual) && l.ix.Only(e.up.Outputs[0]) == e.down && e.down.In(inX) == e.up.Outputs[0]
}

// linear reports whether n is a LinearRows with these columns, activation and
// residual.
func (l *lowering) linear(n *graph.Node, columns int64, activation, residual string) bool {
	if n == nil || n.Domain != ops.Domain || n.Op != opLinearRows {
		return false
	}
	w, ok := l.weights[n]
	return ok && w.n == columns && n.Str("activation", "") == activation && n.In(inResidual) == residual
}

// readBy reports whether n inputs of nodes are all that read value.
func (l *lowering) readBy(value string, n int) bool {
	return len(l.ix.Uses(value)) == n && !l.ix.IsOutput(value) && !l.ix.Captured(value)
}

// constants returns the inputs of the operator for layer e.
func (l *lowering) constants(e *encoderLayer, none string, names graph.Namer) ([]string, error) {
	g := l.m.Graph
	size, padded := e.width/e.heads, e.paddedSize()
	w := l.weights[e.qkv]
	w.name += "_by_head"
	w.scales = byHead(w.scales, 1, e.heads, size, padded)
	if w.four != nil {
		w.four = blocksByHead(w.four, e.heads, size, padded)
	} else {
		w.codes = byHead(w.codes, w.k, e.heads, size, padded)
	}
	w.n = 3 * e.heads * padded
	bias := none
	if b := g.Init(e.qkv.In(inBias)); b != nil {
		bias = names.Name(e.qkv.In(inBias) + "_by_head")
		g.SetInit(bias, tensor.From(byHead(tensor.View[float32](b), 1, e.heads, size, padded), w.n))
	}
	in := make([]string, 0, 16)
	for i, n := range []*graph.Node{e.qkv, e.out, e.up, e.down} {
		v, b := l.weights[n], orNone(n.In(inBias), none)
		if i == 0 {
			v, b = w, bias
		}
		packed, err := l.pack(v)
		if err != nil {
			return nil, err
		}
		in = append(in, packed, orNone(n.In(inDivisor), none), b)
		if i%2 == 1 {
			in = append(in, e.norms[i/2].gamma, e.norms[i/2].beta)
		}
	}
	return in, nil
}

func orNone(name, none string) string {
	if name == "" {
		return none
	}
	return name
}

// byHead turns rows [3, heads, size] into [heads, 3, padded], with zeros behind
// size.
func byHead[T any](v []T, rows, heads, size, padded int64) []T {
	out := make([]T, rows*3*heads*padded)
	for r := range rows {
		for h := range heads {
			for p := range int64(3) {
				copy(out[((r*heads+h)*3+p)*padded:], v[((r*3+p)*heads+h)*size:][:size])
			}
		}
	}
	return out
}
