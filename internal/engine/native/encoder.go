package native

import (
	"slices"
	"strconv"

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
	maxKinds   = 10 // kMaxKinds of cpu/encoder_layers.cpp
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
// of equal size, activation, epsilon and so on; masks and positions may be of maxKinds kinds.
// The activation may be multiplied by a gate, the normalization be RMS. A layer whose inner values others read stays
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
	var firsts []string // results that have the first row of each sample alone
	names := g.Namer()
	for _, e := range layers { // in the graph's order, so that a chain begins with its first
		if taken[e] {
			continue
		}
		chain, kinds := []*encoderLayer{e}, []attends{e.attends}
		for last := e; len(chain) < maxLayers; {
			next := byInput[last.y]
			if next == nil || !next.follows(last) || !l.readBy(last.y, next.readers) {
				break
			}
			if !slices.Contains(kinds, next.attends) {
				if len(kinds) == maxKinds {
					break
				}
				kinds = append(kinds, next.attends)
			}
			chain, last = append(chain, next), next
		}
		if none == "" {
			none = names.Name("none")
			g.SetInit(none, tensor.From([]float32{}, 0))
		}
		in, kindOf := []string{e.x}, ""
		for _, k := range kinds {
			if in = append(in, orNone(k.mask, none)); k.cos != "" {
				in = append(in, k.cos, k.sin)
			}
		}
		for _, c := range chain {
			kindOf += strconv.Itoa(slices.Index(kinds, c.attends))
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
		attrs := []*pb.AttributeProto{graph.AttrInt("N", e.width), graph.AttrInt("num_heads", e.heads), graph.AttrFloat("scale", e.scale), graph.AttrFloat("epsilon", e.norms[1].epsilon)}
		for _, a := range []struct {
			is          bool
			name, value string
		}{{e.first, "normalize", "first"}, {e.norms[1].rms, "norm", "rms"}, {e.gate != nil, "gate", "multiply"}, {e.cos != "", "rotary", "half"}, {len(kinds) > 1, "kinds", kindOf}} {
			if a.is {
				attrs = append(attrs, graph.AttrString(a.name, a.value))
			}
		}
		if e.act != "gelu" {
			attrs = append(attrs, graph.AttrString("activation", e.act))
		}
		if e.hidden != "" {
			attrs = append(attrs, graph.AttrString(attrHidden, e.hidden))
		}
		if slices.ContainsFunc(kinds, func(k attends) bool { return l.ofInputs(k.mask) }) &&
			!slices.ContainsFunc(kinds, func(k attends) bool { return k.mask == "" || !l.paddingUnread(y, k.mask) }) {
			attrs = append(attrs, graph.AttrString("padding", "skip"))
		}
		if l.onlyFirstRow(y) {
			attrs, firsts = append(attrs, graph.AttrString("read", "first")), append(firsts, y)
		}
		g.Nodes = append(g.Nodes, graph.NewNode(ops.Domain, opEncoderLayers, y+"_EncoderLayers", in, []string{y}, attrs...))
	}
	for _, y := range firsts {
		l.dropInfo(y)
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return gone[n] })
	return g.Sort()
}

// attends is what the attentions of one operator may differ in.
type attends struct{ mask, cos, sin string }

// encoderLayer is a layer found in the graph. All its nodes but the last are
// read by it alone.
type encoderLayer struct {
	x, y string
	attends
	qkv, out, up, down *graph.Node
	gate               *gate // or nil; up is its first projection then
	norms              [2]norm
	nodes              []*graph.Node
	width, heads       int64
	inner              int64
	scale              float32
	act                string
	hidden             string
	first              bool // the normalization
	bare               bool // it normalizes first, but not before the attention
	readers            int  // how many inputs of nodes take x
}

// paddedSize is the number of columns that a head's query, key or value has in
// the operator's weight, those behind the head's own of zeros.
func (e *encoderLayer) paddedSize() int64 {
	return (e.width/e.heads + headStep - 1) / headStep * headStep
}

// follows reports whether e can stand behind o in one operator.
func (e *encoderLayer) follows(o *encoderLayer) bool {
	return e.first == o.first && e.act == o.act && (e.gate == nil) == (o.gate == nil) && (e.cos == "") == (o.cos == "") && e.norms[1].rms == o.norms[1].rms && e.hidden == o.hidden && e.width == o.width && e.heads == o.heads && e.inner == o.inner && e.scale == o.scale && e.norms[1].epsilon == o.norms[1].epsilon
}

func (l *lowering) encoderLayer(att *graph.Node) *encoderLayer {
	e := &encoderLayer{width: att.Int("N", 0), heads: att.Int("num_heads", 0), scale: att.Float("scale", 0), attends: attends{att.In(1), att.In(2), att.In(3)}, hidden: att.Str(attrHidden, "")}
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
		ok = l.normalizedLast(e) || l.normalizedFirst(e)
	}
	if !ok || !e.bare && (e.norms[1].epsilon != e.norms[0].epsilon || e.norms[1].rms != e.norms[0].rms) {
		return nil
	}
	e.nodes = slices.Concat([]*graph.Node{e.qkv, att, e.out, e.up, e.down}, e.norms[0].nodes, e.norms[1].nodes)
	if e.gate != nil {
		e.nodes = append(e.nodes, e.gate.nodes...)
	}
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
	if !l.feedForward(e, y, y) || !l.readBy(y, e.takers()+1) {
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
	e.first, e.norms, e.gate = true, [2]norm{}, nil // whatever normalizedLast tried
	x, middle := e.qkv.In(inX), e.out.Outputs[0]
	e.readers = 2
	if e.bare = x == e.x; !e.bare {
		if e.norms[0], ok = l.normTo(e.x, x, e.width); !ok || !l.readBy(x, 1) {
			return false
		}
		e.readers = e.norms[0].readers + 1
	}
	for _, u := range l.ix.Uses(middle) { // the normalization is the reader that is no residual
		if u.Input == inResidual && u.Node.Op == opLinearRows {
			continue
		}
		if e.norms[1], ok = l.normTo(middle, "", e.width); ok {
			break
		}
	}
	n := e.norms[1].y
	if n == "" || !l.feedForward(e, n, middle) || !l.readBy(n, e.takers()) || !l.readBy(middle, e.norms[1].readers+1) {
		return false
	}
	e.y = e.down.Outputs[0]
	return true
}

// takers is how many projections take the rows before the activation.
func (e *encoderLayer) takers() int {
	if e.gate != nil && e.gate.by != e.gate.up {
		return 2
	}
	return 1
}

// feedForward finds the projections between value from and the sum with residual, with a
// gate or without.
func (l *lowering) feedForward(e *encoderLayer, from, residual string) bool {
	for _, u := range l.ix.Uses(residual) {
		if u.Input == inResidual && u.Node.Op == opLinearRows {
			e.down = u.Node
		}
	}
	if !l.linear(e.down, e.width, "", residual) {
		return false
	}
	x := e.down.In(inX)
	if o, ok := l.gateOf(x); ok {
		e.gate, e.up, e.act, e.inner = &o, o.up, o.act, o.inner
		padded := (e.inner + panel - 1) / panel * panel
		return o.up.In(inX) == from && e.inner <= maxInner && 2*padded <= maxColumns && l.sameBits(o)
	}
	if e.up = l.ix.Producer(x); e.up == nil {
		return false
	}
	e.inner, e.act = l.weights[e.up].n, e.up.Str("activation", "")
	return e.act != "" && e.inner <= maxInner && l.linear(e.up, e.inner, e.act, "") && e.up.In(inX) == from && l.ix.Only(x) == e.down
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
		switch {
		case i == 0:
			v, b = w, bias
		case n == e.up && e.gate != nil:
			v, b = l.gateWeight(*e.gate, none, names)
		}
		packed, err := l.pack(v)
		if err != nil {
			return nil, err
		}
		in = append(in, packed, orNone(n.In(inDivisor), none), b)
		if i%2 == 1 {
			in = append(in, orNone(e.norms[i/2].gamma, none), l.offset(e, i/2, none))
		}
	}
	return in, nil
}

// offset returns the offset of a normalization: zeros where it has none.
func (l *lowering) offset(e *encoderLayer, i int, none string) string {
	n := e.norms[i]
	if n.beta != "" || n.gamma == "" || n.rms {
		return orNone(n.beta, none)
	}
	zeros, ok := l.packed[n.gamma+"\x00"]
	if !ok {
		zeros = l.fresh(n.gamma + "_no_offset")
		l.packed[n.gamma+"\x00"] = zeros
		l.m.Graph.SetInit(zeros, tensor.From(make([]float32, e.width), e.width))
	}
	return zeros
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
