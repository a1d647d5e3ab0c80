package quant

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Lower is the pass that replaces quantize-dequantize patterns by the integer
// operators of ONNX Runtime's CPU engine, so that what runs in integers is
// written in the file and does not depend on an optimizer finding it.
//
//	DQ(x) DQ(w)          -> MatMul [-> Add bias]          MatMulIntegerToFloat
//	DQ(x) DQ(w)          -> MatMul               -> Q     QLinearMatMul
//	DQ(x) DQ(w) [DQ(b)]  -> Conv [-> Relu|Clip]  -> Q     QLinearConv
//	DQ(x) DQ(w) [DQ(b)]  -> Gemm                [-> Q]    QGemm
//	DQ(a) DQ(b)          -> Add|Mul [-> Relu]    -> Q     QLinearAdd|Mul
//	DQ(x)                -> pool, Sigmoid, ...   -> Q     QLinear...
//	DQ(x)                -> MaxPool, Reshape ... -> Q     the operator on codes
type Lower struct{}

var _ Pass = Lower{}

// Name implements Pass.
func (Lower) Name() string { return "lower" }

// Run implements Pass.
func (Lower) Run(ctx context.Context, m *graph.Model) (Stats, error) {
	l := &lowerer{m: m, g: m.Graph, ix: m.Graph.Index(), drop: map[*graph.Node]bool{}}
	count := 0
	for _, n := range append([]*graph.Node(nil), m.Graph.Nodes...) {
		if l.lower(n) {
			count++
		}
	}
	l.g.Nodes = append(without(l.g.Nodes, l.drop), l.added...)
	if err := l.g.Sort(); err != nil {
		return Stats{}, err
	}
	l.g.Prune()
	if KeepBiases(m) > 0 {
		l.g.Prune() // biases that only their sums have read
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d integer operators", count)}, nil
}

type lowerer struct {
	m     *graph.Model
	g     *graph.Graph
	ix    *graph.Index
	added []*graph.Node
	drop  map[*graph.Node]bool
}

// quantized is a value in its integer form: codes, scale and zero point names.
type quantized struct{ codes, scale, zero string }

// in returns the integer form of a value that a DequantizeLinear makes.
func (l *lowerer) in(value string) (quantized, bool) {
	n := l.ix.Producer(value)
	if n == nil || n.Op != "DequantizeLinear" {
		return quantized{}, false
	}
	return quantized{n.In(0), n.In(1), n.In(2)}, true
}

// out returns the integer form of a value that only a QuantizeLinear reads.
func (l *lowerer) out(value string) (quantized, bool) {
	q := l.ix.Only(value)
	if q == nil || q.Op != "QuantizeLinear" {
		return quantized{}, false
	}
	return quantized{q.Outputs[0], q.In(1), q.In(2)}, true
}

// outPastActivation is out, skipping a Relu or Clip that the codes' range makes
// redundant: the smallest code is 0.0 and the largest is at most the bound.
func (l *lowerer) outPastActivation(value string) (quantized, *graph.Node, bool) {
	if q, ok := l.out(value); ok {
		return q, nil, true
	}
	act := l.ix.Only(value)
	if act == nil {
		return quantized{}, nil, false
	}
	_, hi, clip := clipBounds(l.g, act)
	if !act.Is("Relu") && !clip {
		return quantized{}, nil, false
	}
	q, ok := l.out(act.Outputs[0])
	if !ok {
		return quantized{}, nil, false
	}
	zt, st := l.g.Init(q.zero), l.g.Init(q.scale)
	if zt == nil || st == nil || zt.Type != tensor.Uint8 || zt.Len() != 1 || zt.Data[0] != 0 {
		return quantized{}, nil, false
	}
	// The rounding of the scale may put the top code a hair above the bound.
	const slack = 1 + 1e-5
	if clip && tensor.View[float32](st)[0]*255 > hi*slack {
		return quantized{}, nil, false
	}
	return q, act, true
}

func (l *lowerer) replace(old *graph.Node, domain, op string, in, out []string, keep ...string) *graph.Node {
	n := graph.NewNode(domain, op, old.Name, in, out)
	for _, k := range keep {
		if a := old.Attr(k); a != nil {
			n.Attrs = append(n.Attrs, a)
		}
	}
	if domain != "" {
		l.m.Require(domain, 1)
	}
	l.drop[old] = true
	l.added = append(l.added, n)
	return n
}

// dropQuantizer removes the QuantizeLinear that made codes.
func (l *lowerer) dropQuantizer(q quantized, act *graph.Node) {
	l.drop[l.ix.Producer(q.codes)] = true
	if act != nil {
		l.drop[act] = true
	}
}

var convAttrs = []string{"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}

func (l *lowerer) lower(n *graph.Node) bool {
	if n.Domain != graph.DomainONNX || len(n.Outputs) != 1 {
		return false
	}
	switch n.Op {
	case "MatMul":
		return l.matmul(n)
	case "Gemm":
		return l.gemm(n)
	case "Conv":
		return l.conv(n)
	case "Add", "Mul":
		return l.binary(n)
	case "GlobalAveragePool":
		return l.unary(n, "QLinearGlobalAveragePool", true)
	case "AveragePool":
		return l.unary(n, "QLinearAveragePool", true, "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
	case "Sigmoid":
		return l.unary(n, "QLinearSigmoid", false)
	case "LeakyRelu":
		return l.unary(n, "QLinearLeakyRelu", false, "alpha")
	case "Concat":
		return l.concat(n)
	}
	if throughOps[n.Op] {
		return l.through(n)
	}
	return false
}

func (l *lowerer) matmul(n *graph.Node) bool {
	x, ok1 := l.in(n.In(0))
	w, ok2 := l.in(n.In(1))
	if !ok1 || !ok2 || l.g.Init(w.codes) == nil {
		return false
	}
	if y, ok := l.out(n.Outputs[0]); ok {
		l.replace(n, "", "QLinearMatMul", []string{x.codes, x.scale, x.zero, w.codes, w.scale, w.zero, y.scale, y.zero}, []string{y.codes})
		l.dropQuantizer(y, nil)
		return true
	}
	in := []string{x.codes, w.codes, x.scale, w.scale, x.zero}
	out := n.Outputs[0]
	if add := l.ix.Only(out); add != nil && add.Is("Add") {
		bias := add.In(0)
		if bias == out {
			bias = add.In(1)
		}
		if t, wt := l.g.Init(bias), l.g.Init(w.codes); t != nil && t.Type == tensor.Float32 && len(t.Dims) == 1 && t.Dims[0] == wt.Dims[1] {
			in = append(in, "", bias)
			out = add.Outputs[0]
			l.drop[add] = true
		}
	}
	l.replace(n, graph.DomainMS, "MatMulIntegerToFloat", in, []string{out})
	return true
}

func (l *lowerer) gemm(n *graph.Node) bool {
	x, ok1 := l.in(n.In(0))
	w, ok2 := l.in(n.In(1))
	if !ok1 || !ok2 {
		return false
	}
	in := []string{x.codes, x.scale, x.zero, w.codes, w.scale, w.zero, ""}
	if n.In(2) != "" {
		b, ok := l.in(n.In(2))
		if !ok {
			return false
		}
		in[6] = b.codes
	}
	out := n.Outputs[0]
	if y, ok := l.out(out); ok {
		in = append(in, y.scale, y.zero)
		out = y.codes
		l.dropQuantizer(y, nil)
	}
	l.replace(n, graph.DomainMS, "QGemm", in, []string{out}, "alpha", "transA", "transB")
	return true
}

func (l *lowerer) conv(n *graph.Node) bool {
	x, ok1 := l.in(n.In(0))
	w, ok2 := l.in(n.In(1))
	y, act, ok3 := l.outPastActivation(n.Outputs[0])
	if !ok1 || !ok2 || !ok3 {
		return false
	}
	in := []string{x.codes, x.scale, x.zero, w.codes, w.scale, w.zero, y.scale, y.zero}
	if n.In(2) != "" {
		b, ok := l.in(n.In(2))
		if !ok {
			return false
		}
		in = append(in, b.codes)
	}
	l.replace(n, "", "QLinearConv", in, []string{y.codes}, convAttrs...)
	l.dropQuantizer(y, act)
	return true
}

func (l *lowerer) binary(n *graph.Node) bool {
	a, ok1 := l.in(n.In(0))
	b, ok2 := l.in(n.In(1))
	y, act, ok3 := l.outPastActivation(n.Outputs[0])
	if !ok1 || !ok2 || !ok3 {
		return false
	}
	l.replace(n, graph.DomainMS, "QLinear"+n.Op, []string{a.codes, a.scale, a.zero, b.codes, b.scale, b.zero, y.scale, y.zero}, []string{y.codes})
	l.dropQuantizer(y, act)
	return true
}

func (l *lowerer) unary(n *graph.Node, op string, pool bool, keep ...string) bool {
	x, ok1 := l.in(n.In(0))
	y, ok2 := l.out(n.Outputs[0])
	if !ok1 || !ok2 {
		return false
	}
	q := l.replace(n, graph.DomainMS, op, []string{x.codes, x.scale, x.zero, y.scale, y.zero}, []string{y.codes}, keep...)
	if pool {
		q.Attrs = append(q.Attrs, graph.AttrInt("channels_last", 0))
	}
	l.dropQuantizer(y, nil)
	return true
}

func (l *lowerer) concat(n *graph.Node) bool {
	y, ok := l.out(n.Outputs[0])
	if !ok {
		return false
	}
	in := []string{y.scale, y.zero}
	for _, v := range n.Inputs {
		x, ok := l.in(v)
		if !ok {
			return false
		}
		in = append(in, x.codes, x.scale, x.zero)
	}
	l.replace(n, graph.DomainMS, "QLinearConcat", in, []string{y.codes}, "axis")
	l.dropQuantizer(y, nil)
	return true
}

// through moves codes instead of reals when both sides have equal parameters.
func (l *lowerer) through(n *graph.Node) bool {
	x, ok1 := l.in(n.In(0))
	y, ok2 := l.out(n.Outputs[0])
	if !ok1 || !ok2 || !l.same(x, y) || (n.Op == "MaxPool" && l.m.Opset() < 12) {
		return false
	}
	in := append([]string{x.codes}, n.Inputs[1:]...)
	moved := l.replace(n, "", n.Op, in, []string{y.codes})
	moved.Attrs = n.Attrs
	l.dropQuantizer(y, nil)
	return true
}

func (l *lowerer) same(a, b quantized) bool {
	eq := func(x, y string) bool {
		s, t := l.g.Init(x), l.g.Init(y)
		return s != nil && t != nil && s.Type == t.Type && string(s.Data) == string(t.Data)
	}
	return eq(a.scale, b.scale) && eq(a.zero, b.zero)
}
