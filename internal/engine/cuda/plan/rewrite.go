package plan

import (
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// foldRounds bounds how often folding and shape inference take turns: each
// round can only uncover constants behind a shape that the last one computed.
const foldRounds = 4

// concrete returns a copy of m whose inputs have the given dimensions, whose
// decomposed operators are single nodes, and from which everything that follows
// from the dimensions alone is gone. Every value has a known type and size.
func concrete(m *graph.Model, inputs map[string][]int64) (*graph.Model, error) {
	m = m.Clone()
	g := m.Graph
	for _, v := range g.Inputs {
		dims, ok := inputs[v.Name]
		if !ok || v.Type == tensor.Undefined || (v.Dims != nil && len(v.Dims) != len(dims)) {
			return nil, fmt.Errorf("%w: input %q is %v, planned for %v", ErrUnsupported, v.Name, v, dims)
		}
		fixed := make([]graph.Dim, len(dims))
		for i, d := range dims {
			if v.Dims != nil && v.Dims[i].N >= 0 && v.Dims[i].N != d {
				return nil, fmt.Errorf("%w: input %q is %v, planned for %v", ErrUnsupported, v.Name, v, dims)
			}
			fixed[i] = graph.Dim{N: d}
		}
		v.Dims = fixed
	}
	for _, o := range g.Outputs { // what the file declares would stay; it is inferred instead
		o.Dims = nil
	}
	for range foldRounds {
		g.Info = nil
		folded := graph.FoldConstants(m)
		graph.InferShapes(m)
		folded += g.Prune()
		if folded == 0 {
			break
		}
	}
	r := &rewriter{m: m, g: g, ix: g.Index()}
	for i, n := range g.Nodes {
		if w := r.rewrite(n); w != nil {
			g.Nodes[i] = w
		}
	}
	g.Prune()
	if err := m.Check(); err != nil {
		return nil, err
	}
	graph.InferShapes(m)
	return m, nil
}

// rewriter replaces operators that exporters decompose. It only ever replaces
// the last node of a pattern; the others go when nothing else reads them.
type rewriter struct {
	m  *graph.Model
	g  *graph.Graph
	ix *graph.Index
}

func (r *rewriter) rewrite(n *graph.Node) *graph.Node {
	switch {
	case n.Is("Sum") && len(n.Inputs) == 2: // what quant.Residuals writes
		return graph.NewNode("", "Add", n.Name, n.Inputs, n.Outputs)
	case n.Is("Add"):
		return r.layerNorm(n)
	case n.Is("Mul"):
		if w := r.gelu(n); w != nil {
			return w
		}
		return r.silu(n)
	}
	return nil
}

// made returns the producer of value when it is the operator op.
func (r *rewriter) made(value, op string) *graph.Node {
	if n := r.ix.Producer(value); n != nil && n.Is(op) {
		return n
	}
	return nil
}

// scalar returns the value of a constant with one element.
func (r *rewriter) scalar(name string) (float64, bool) {
	t := r.g.Init(name)
	if t == nil || t.Len() != 1 || t.Type != tensor.Float32 {
		return 0, false
	}
	return float64(tensor.View[float32](t)[0]), true
}

// near is for constants that exporters round differently.
func near(a, b float64) bool { return math.Abs(a-b) <= 1e-4*math.Abs(b) }

// withConst returns the other operand of a two-operand node, one of which is a
// constant scalar accepted by ok.
func (r *rewriter) withConst(n *graph.Node, ok func(float64) bool) (string, bool) {
	for i := range 2 {
		if c, is := r.scalar(n.In(i)); is && ok(c) {
			return n.In(1 - i), true
		}
	}
	return "", false
}

// layerNorm matches Add(Mul(Div(d, Sqrt(Add(mean(d^2), eps))), gamma), beta)
// with d = x - mean(x), means over the last axis: LayerNormalization as every
// opset before 17 writes it.
func (r *rewriter) layerNorm(add *graph.Node) *graph.Node {
	var mul *graph.Node
	var beta string
	for i := range 2 {
		if n := r.made(add.In(i), "Mul"); n != nil && r.vector(add.In(1-i)) > 0 {
			mul, beta = n, add.In(1-i)
		}
	}
	if mul == nil {
		return nil
	}
	var div *graph.Node
	var gamma string
	for i := range 2 {
		if n := r.made(mul.In(i), "Div"); n != nil && r.vector(mul.In(1-i)) > 0 {
			div, gamma = n, mul.In(1-i)
		}
	}
	if div == nil || r.vector(gamma) != r.vector(beta) {
		return nil
	}
	d, root := r.made(div.In(0), "Sub"), r.made(div.In(1), "Sqrt")
	if d == nil || root == nil || !r.meanOf(d.In(1), d.In(0)) {
		return nil
	}
	x := d.In(0)
	if dims := r.dims(x); len(dims) == 0 || dims[len(dims)-1].N != r.vector(gamma) {
		return nil
	}
	eps := r.made(root.In(0), "Add")
	if eps == nil {
		return nil
	}
	var epsilon float64
	variance, ok := r.withConst(eps, func(c float64) bool { epsilon = c; return c >= 0 })
	mean := r.made(variance, "ReduceMean")
	if !ok || mean == nil || !r.lastAxis(mean) {
		return nil
	}
	square := r.ix.Producer(mean.In(0))
	if square == nil {
		return nil
	}
	sameD := func(v string) bool {
		if v == div.In(0) {
			return true
		}
		n := r.made(v, "Sub") // some exporters compute the difference twice
		return n != nil && n.In(0) == x && r.meanOf(n.In(1), x)
	}
	switch {
	case square.Is("Pow"):
		if c, is := r.scalar(square.In(1)); !is || c != 2 || !sameD(square.In(0)) {
			return nil
		}
	case square.Is("Mul"):
		if !sameD(square.In(0)) || !sameD(square.In(1)) {
			return nil
		}
	default:
		return nil
	}
	return graph.NewNode("", "LayerNormalization", add.Name, []string{x, gamma, beta}, add.Outputs,
		graph.AttrInt("axis", -1), graph.AttrFloat("epsilon", float32(epsilon)))
}

// vector returns the length of a constant float vector (leading ones allowed),
// 0 for anything else.
func (r *rewriter) vector(name string) int64 {
	t := r.g.Init(name)
	if t == nil || t.Type != tensor.Float32 || len(t.Dims) == 0 || t.Len() != t.Dims[len(t.Dims)-1] {
		return 0
	}
	return t.Len()
}

func (r *rewriter) dims(name string) []graph.Dim {
	for _, v := range r.g.Inputs {
		if v.Name == name {
			return v.Dims
		}
	}
	if v := r.g.Info[name]; v != nil {
		return v.Dims
	}
	return nil
}

// meanOf reports whether value is the mean of x over the last axis, kept.
func (r *rewriter) meanOf(value, x string) bool {
	n := r.made(value, "ReduceMean")
	return n != nil && n.In(0) == x && r.lastAxis(n)
}

func (r *rewriter) lastAxis(n *graph.Node) bool {
	axes := n.Ints("axes")
	if t := r.g.Init(n.In(1)); t != nil && t.Type == tensor.Int64 {
		axes = tensor.View[int64](t)
	}
	rank := int64(len(r.dims(n.In(0))))
	return len(axes) == 1 && (axes[0] == -1 || axes[0] == rank-1) && n.Int("keepdims", 1) == 1
}

// gelu matches the product of x, 0.5 and 1 + erf(x / sqrt 2), multiplied in any
// order (Hendrycks and Gimpel 2016, exact form).
func (r *rewriter) gelu(mul *graph.Node) *graph.Node {
	var x, bell string
	half := false
	for _, f := range r.factors(mul) {
		if c, is := r.scalar(f); is && c == 0.5 && !half {
			half = true
		} else if r.made(f, "Add") != nil && bell == "" && r.erfOf(f) != "" {
			bell = f
		} else if x == "" {
			x = f
		} else {
			return nil
		}
	}
	if !half || bell == "" || x == "" || r.erfOf(bell) != x {
		return nil
	}
	r.m.Require(graph.DomainMS, 1)
	return graph.NewNode(graph.DomainMS, "Gelu", mul.Name, []string{x}, mul.Outputs)
}

// factors returns the three operands of two nested multiplications, fewer when
// they are not nested.
func (r *rewriter) factors(mul *graph.Node) []string {
	for i := range 2 {
		if inner := r.made(mul.In(i), "Mul"); inner != nil && r.ix.Only(mul.In(i)) != nil {
			return []string{inner.In(0), inner.In(1), mul.In(1 - i)}
		}
	}
	return []string{mul.In(0), mul.In(1)}
}

// erfOf returns x when value is 1 + erf(x / sqrt 2), otherwise "".
func (r *rewriter) erfOf(value string) string {
	add := r.made(value, "Add")
	if add == nil {
		return ""
	}
	e, ok := r.withConst(add, func(c float64) bool { return c == 1 })
	erf := r.made(e, "Erf")
	if !ok || erf == nil {
		return ""
	}
	if div := r.made(erf.In(0), "Div"); div != nil {
		if c, is := r.scalar(div.In(1)); is && near(c, math.Sqrt2) {
			return div.In(0)
		}
	}
	if mul := r.made(erf.In(0), "Mul"); mul != nil {
		if x, ok := r.withConst(mul, func(c float64) bool { return near(c, 1/math.Sqrt2) }); ok {
			return x
		}
	}
	return ""
}

// silu matches x * sigmoid(x).
func (r *rewriter) silu(mul *graph.Node) *graph.Node {
	for i := range 2 {
		if s := r.made(mul.In(i), "Sigmoid"); s != nil && s.In(0) == mul.In(1-i) {
			r.m.Require(graph.DomainMS, 1)
			return graph.NewNode(graph.DomainMS, "QuickGelu", mul.Name, []string{s.In(0)}, mul.Outputs, graph.AttrFloat("alpha", 1))
		}
	}
	return nil
}

// expand writes the integer operators of ONNX Runtime's forms (QLinearConv and
// its like) as the float operator between DequantizeLinear and QuantizeLinear
// that each is specified by, so that the rest knows one form.
func expand(m *graph.Model) {
	g := m.Graph
	e := &expander{m: m, g: g, made: map[string]string{}}
	for _, n := range g.Nodes {
		e.node(n)
	}
	g.Nodes = e.out
}

type expander struct {
	m    *graph.Model
	g    *graph.Graph
	out  []*graph.Node
	made map[string]string // DequantizeLinear nodes, by what they read
}

// constant scales are what an epilogue needs; others stay as they are and are
// refused later.
func (e *expander) consts(n *graph.Node, at ...int) bool {
	for _, i := range at {
		if n.In(i) != "" && e.g.Init(n.In(i)) == nil {
			return false
		}
	}
	return true
}

func (e *expander) add(op, name string, in []string, out string) *graph.Node {
	x := graph.NewNode("", op, name, in, []string{out})
	e.out = append(e.out, x)
	return x
}

// dq dequantizes codes and returns the value's name. A vector of scales runs
// along axis.
func (e *expander) dq(n *graph.Node, codes, scale, zero string, axis int64) string {
	key := fmt.Sprintf("%q %q %q %d", codes, scale, zero, axis)
	if have, ok := e.made[key]; ok {
		return have
	}
	out := fmt.Sprintf("%s\x00dq%d", n.Outputs[0], len(e.out))
	e.made[key] = out
	in := []string{codes, scale}
	if zero != "" {
		in = append(in, zero)
	}
	d := e.add("DequantizeLinear", n.Name, in, out)
	if t := e.g.Init(scale); t != nil && t.Len() > 1 {
		d.Attrs = append(d.Attrs, graph.AttrInt("axis", axis))
	}
	return out
}

// q quantizes value into n's first output.
func (e *expander) q(n *graph.Node, value, scale, zero string) {
	e.add("QuantizeLinear", n.Name, []string{value, scale, zero}, n.Outputs[0])
}

func (e *expander) node(n *graph.Node) {
	if len(n.Outputs) != 1 || (n.Domain != graph.DomainONNX && n.Domain != graph.DomainMS) {
		e.out = append(e.out, n)
		return
	}
	real := n.Outputs[0] + "\x00real"
	switch in := n.In; {
	case n.Is("QLinearConv") && e.consts(n, 1, 2, 3, 4, 5, 6, 7, 8):
		args := []string{e.dq(n, in(0), in(1), in(2), 1), e.dq(n, in(3), in(4), in(5), 0)}
		if in(8) != "" {
			b := e.bias(n.Outputs[0], in(8), in(1), in(4))
			if b == "" {
				break
			}
			args = append(args, b)
		}
		e.add("Conv", n.Name, args, real).Attrs = n.Attrs
		e.q(n, real, in(6), in(7))
		return
	case n.Is("QLinearMatMul") && e.consts(n, 1, 2, 4, 5, 6, 7):
		e.add("MatMul", n.Name, []string{e.dq(n, in(0), in(1), in(2), 1), e.dq(n, in(3), in(4), in(5), 1)}, real)
		e.q(n, real, in(6), in(7))
		return
	case n.Domain == graph.DomainMS && n.Op == "MatMulIntegerToFloat" && e.consts(n, 1, 2, 3, 4, 5):
		out := n.Outputs[0]
		if in(6) != "" {
			out = real
		}
		e.add("MatMul", n.Name, []string{e.dq(n, in(0), in(2), in(4), 1), e.dq(n, in(1), in(3), in(5), 1)}, out)
		if in(6) != "" {
			e.add("Add", n.Name, []string{real, in(6)}, n.Outputs[0])
		}
		return
	case n.Domain == graph.DomainMS && n.Op == "QGemm" && e.consts(n, 1, 2, 3, 4, 5, 6, 7, 8) && n.Float("alpha", 1) == 1:
		args := []string{e.dq(n, in(0), in(1), in(2), 1), e.dq(n, in(3), in(4), in(5), 1-n.Int("transB", 0)&1)}
		if in(6) != "" {
			b := e.bias(n.Outputs[0], in(6), in(1), in(4))
			if b == "" {
				break
			}
			args = append(args, b)
		}
		out := n.Outputs[0]
		if in(7) != "" {
			out = real
		}
		gemm := e.add("Gemm", n.Name, args, out)
		gemm.Attrs = slices.DeleteFunc(slices.Clone(n.Attrs), func(a *attribute) bool { return a.GetName() == "alpha" })
		if in(7) != "" {
			e.q(n, real, in(7), in(8))
		}
		return
	case n.Domain == graph.DomainMS && (n.Op == "QLinearAdd" || n.Op == "QLinearMul") && e.consts(n, 1, 2, 4, 5, 6, 7):
		e.add(n.Op[len("QLinear"):], n.Name, []string{e.dq(n, in(0), in(1), in(2), 1), e.dq(n, in(3), in(4), in(5), 1)}, real)
		e.q(n, real, in(6), in(7))
		return
	case n.Domain == graph.DomainMS && qlinearUnary[n.Op] != "" && e.consts(n, 1, 2, 3, 4) && n.Int("channels_last", 0) == 0:
		x := e.add(qlinearUnary[n.Op], n.Name, []string{e.dq(n, in(0), in(1), in(2), 1)}, real)
		x.Attrs = slices.DeleteFunc(slices.Clone(n.Attrs), func(a *attribute) bool { return a.GetName() == "channels_last" })
		e.q(n, real, in(3), in(4))
		return
	case n.Domain == graph.DomainMS && n.Op == "QLinearConcat" && len(n.Inputs) >= 5 && len(n.Inputs)%3 == 2:
		var args []string
		for i := 2; i < len(n.Inputs); i += 3 {
			args = append(args, e.dq(n, in(i), in(i+1), in(i+2), 1))
		}
		e.add("Concat", n.Name, args, real).Attrs = n.Attrs
		e.q(n, real, in(0), in(1))
		return
	}
	e.out = append(e.out, n)
}

type attribute = pb.AttributeProto

// qlinearUnary: x, x_scale, x_zero, y_scale, y_zero.
var qlinearUnary = map[string]string{
	"QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAveragePool": "AveragePool",
	"QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu",
}

// bias returns the float values of INT32 bias codes, whose scale is the product
// of input and weight scale, or "".
func (e *expander) bias(out, codes, xs, ws string) string {
	c, x, w := e.g.Init(codes), e.g.Init(xs), e.g.Init(ws)
	if c == nil || c.Type != tensor.Int32 || x.Type != tensor.Float32 || x.Len() != 1 || w.Type != tensor.Float32 || w.Len() < 1 ||
		(w.Len() != 1 && w.Len() != c.Len()) {
		return ""
	}
	scales, xv := tensor.View[float32](w), tensor.View[float32](x)[0]
	v := tensor.View[int32](c)
	f := make([]float32, len(v))
	for i := range v {
		f[i] = float32(v[i]) * (xv * scales[min(i, len(scales)-1)])
	}
	name := out + "\x00bias"
	e.g.SetInit(name, tensor.From(f, int64(len(f))))
	return name
}
