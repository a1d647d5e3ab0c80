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
// cpu/encoder.hpp, maxInner is kInt8MaxK of cpu/int8.hpp.
const (
	headStep  = 16
	maxLayers = 512
	maxInner  = ops.MaxK
)

// encoders makes one operator of each chain of layers
//
//	x -> LinearRows -> EncoderAttention -> LinearRows + x -> normalize = y
//	y -> LinearRows, GELU -> LinearRows + y -> normalize
//
// of equal size, mask and epsilon. A layer whose inner values others read stays
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
			if next == nil || !next.follows(last) || !l.readOnlyBy(last.y, next.qkv, next.out) {
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
}

// follows reports whether e can stand behind o in one operator.
func (e *encoderLayer) follows(o *encoderLayer) bool {
	return e.mask == o.mask && e.width == o.width && e.heads == o.heads && e.inner == o.inner && e.scale == o.scale && e.norms[0].epsilon == o.norms[0].epsilon
}

func (l *lowering) encoderLayer(att *graph.Node) *encoderLayer {
	e := &encoderLayer{width: att.Int("N", 0), heads: att.Int("num_heads", 0), scale: att.Float("scale", 0), mask: att.In(1)}
	e.qkv = l.ix.Producer(att.In(0))
	if e.heads < 1 || e.width%(e.heads*headStep) != 0 || !l.linear(e.qkv, 3*e.width, "", "") || l.ix.Only(att.In(0)) != att {
		return nil
	}
	e.x = e.qkv.In(inX)
	if e.out = l.ix.Only(att.Outputs[0]); !l.linear(e.out, e.width, "", e.x) || e.out.In(inX) != att.Outputs[0] {
		return nil
	}
	var ok bool
	if e.norms[0], ok = l.norm(e.out.Outputs[0], e.width); !ok {
		return nil
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
	if e.up == nil || e.down == nil || !l.readOnlyBy(y, e.up, e.down) {
		return nil
	}
	e.inner = l.weights[e.up].n
	if e.inner > maxInner || !l.linear(e.up, e.inner, "gelu", "") || !l.linear(e.down, e.width, "", y) || l.ix.Only(e.up.Outputs[0]) != e.down || e.down.In(inX) != e.up.Outputs[0] {
		return nil
	}
	if e.norms[1], ok = l.norm(e.down.Outputs[0], e.width); !ok || e.norms[1].epsilon != e.norms[0].epsilon {
		return nil
	}
	e.y = e.norms[1].y
	e.nodes = slices.Concat([]*graph.Node{e.qkv, att, e.out, e.up, e.down}, e.norms[0].nodes, e.norms[1].nodes)
	return e
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

// readOnlyBy reports whether a and b, once each, are all that read value.
func (l *lowering) readOnlyBy(value string, a, b *graph.Node) bool {
	u := l.ix.Uses(value)
	return len(u) == 2 && !l.ix.IsOutput(value) && !l.ix.Captured(value) && (u[0].Node == a && u[1].Node == b || u[0].Node == b && u[1].Node == a)
}

// constants returns the inputs of the operator for layer e.
func (l *lowering) constants(e *encoderLayer, none string, names graph.Namer) ([]string, error) {
	g := l.m.Graph
	size := e.width / e.heads
	w := l.weights[e.qkv]
	w.name += "_by_head"
	w.codes, w.scales = byHead(w.codes, w.k, e.heads, size), byHead(w.scales, 1, e.heads, size)
	bias := none
	if b := g.Init(e.qkv.In(inBias)); b != nil {
		bias = names.Name(e.qkv.In(inBias) + "_by_head")
		g.SetInit(bias, tensor.From(byHead(tensor.View[float32](b), 1, e.heads, size), 3*e.width))
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

// byHead turns rows [3, heads, size] into [heads, 3, size].
func byHead[T any](v []T, rows, heads, size int64) []T {
	out := make([]T, 0, len(v))
	for r := range rows {
		for h := range heads {
			for p := range int64(3) {
				out = append(out, v[((r*3+p)*heads+h)*size:][:size]...)
			}
		}
	}
	return out
}
