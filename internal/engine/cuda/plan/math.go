package plan

import (
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

var binaryOps = map[string]Op{"Add": Add, "Sub": Sub, "Mul": Mul, "Div": Div, "Pow": Pow, "Min": Min, "Max": Max, "Sum": Add,
	"Equal": Equal, "Less": Less, "Greater": Greater, "And": And, "Or": Or}

var unaryOps = map[string]Op{"Abs": Abs, "Neg": Neg, "Exp": Exp, "Log": Log, "Sqrt": Sqrt, "Reciprocal": Reciprocal, "Erf": Erf,
	"Tanh": Tanh, "Sigmoid": Sigmoid, "Floor": Floor, "Ceil": Ceil, "Sin": Sin, "Cos": Cos, "HardSigmoid": HardSigmoid,
	"HardSwish": HardSwish, "LeakyRelu": LeakyRelu}

func sqrt32(v float32) float32 { return float32(math.Sqrt(float64(v))) }

// binary adds a step y = a op b over dims, each operand broadcast.
func (b *builder) binary(n *graph.Node, op Op, t Type, dims []int64, a Ref, ad []int64, c Ref, cd []int64, y Ref) error {
	d, s, ok := collapse(dims, stridesOver(ad, dims), stridesOver(cd, dims), dense(dims))
	if !ok {
		return unsupported(n, "broadcast of %v and %v", ad, cd)
	}
	b.step(&Binary{Op: op, Type: t, Out: View{d, s[2]}, AV: View{d, s[0]}, BV: View{d, s[1]}, A: a, B: c, Y: y})
	return nil
}

// compares reports whether op writes booleans.
func (op Op) compares() bool { return op >= Equal && op <= Or }

// emitBinary emits an elementwise operator of two or more operands.
func (b *builder) emitBinary(n *graph.Node) error {
	op := binaryOps[n.Op]
	if len(n.Inputs) < 2 {
		if len(n.Inputs) == 1 {
			return b.alias(n)
		}
		return unsupported(n, "no operands")
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	in := make([]*value, len(n.Inputs))
	for i := range in {
		if in[i], err = b.in(n, i); err != nil {
			return err
		}
		if in[i].dtype != in[0].dtype && !(n.Is("Pow") && i == 1) {
			return unsupported(n, "operands of type %v and %v", in[0].dtype, in[i].dtype)
		}
	}
	t, err := b.arithmetic(n, in[0].dtype, op)
	if err != nil {
		return err
	}
	if len(in) == 2 && t == F32 && b.binaryNHWC(op, in[0], in[1], y) {
		return nil
	}
	have, err := b.dense(in[0])
	if err != nil {
		return err
	}
	dims := in[0].dims
	for i := 1; i < len(in); i++ {
		c, err := b.operandOf(n, in[i], in[0].dtype)
		if err != nil {
			return err
		}
		out, ok := broadcast(dims, in[i].dims)
		if !ok {
			return unsupported(n, "operands %v and %v", dims, in[i].dims)
		}
		var to Ref
		if i < len(in)-1 {
			to = b.alloc(y.name+" (part)", product64(out)*t.Size())
		} else {
			if !sameDims(out, y.dims) && len(out) > 0 {
				return unsupported(n, "result %v of %v and %v", y.dims, dims, in[i].dims)
			}
			to = b.fresh(y)
		}
		if err := b.binary(n, op, t, out, have, dims, c, in[i].dims, to); err != nil {
			return err
		}
		have, dims = to, out
	}
	return nil
}

// operandOf returns v dense as type d: the exponent of Pow may have another.
func (b *builder) operandOf(n *graph.Node, v *value, d tensor.DType) (Ref, error) {
	ref, err := b.dense(v)
	if err != nil || v.dtype == d {
		return ref, err
	}
	from, ok := deviceType(v.dtype)
	to, ok2 := deviceType(d)
	if !ok || !ok2 {
		return Ref{}, unsupported(n, "operand of type %v", v.dtype)
	}
	y := b.alloc(v.name+" (cast)", v.elems*to.Size())
	b.step(&Cast{From: from, To: to, N: v.elems, X: ref, Y: y})
	return y, nil
}

// arithmetic returns the device type in which op computes on d.
func (b *builder) arithmetic(n *graph.Node, d tensor.DType, op Op) (Type, error) {
	switch logical := op == And || op == Or; {
	case d == tensor.Bool && (logical || op == Equal):
		return Bool, nil
	case logical:
	case d == tensor.Float32:
		return F32, nil
	case d == tensor.Int64:
		return S64, nil
	case d == tensor.Int32:
		return S32, nil
	}
	return 0, unsupported(n, "operands of type %v", d)
}

// binaryNHWC computes on channels-last operands where that saves transpositions.
func (b *builder) binaryNHWC(op Op, x, w, y *value) bool {
	if op.compares() || len(y.dims) != 4 {
		return false
	}
	side := func(v *value) (Ref, []int64, bool) {
		if v.host != nil && v.elems == 1 {
			ref, err := b.dense(v)
			return ref, []int64{1}, err == nil
		}
		if !sameDims(v.dims, y.dims) {
			return Ref{}, nil, false
		}
		r := b.channelsLast(v)
		return r, []int64{y.elems}, r != Ref{}
	}
	if x.host == nil && x.nhwc == (Ref{}) && (x.codes == nil || !x.codes.nhwc) {
		return false
	}
	xr, xd, ok := side(x)
	if !ok {
		return false
	}
	wr, wd, ok := side(w)
	if !ok || (len(xd) == 1 && xd[0] == 1 && wd[0] == 1) {
		return false
	}
	y.nhwc = b.alloc(y.name+" (nhwc)", y.elems*4)
	return b.binary(nil, op, F32, []int64{y.elems}, xr, xd, wr, wd, y.nhwc) == nil
}

// emitUnary emits an elementwise operator of one operand.
func (b *builder) emitUnary(n *graph.Node) error {
	s := &Unary{Op: unaryOps[n.Op]}
	act, isAct := b.activationOf(n)
	switch {
	case isAct:
		s.Act, s.P0, s.P1 = act.act, act.lo, act.hi
	case n.Op == "LeakyRelu":
		s.P0 = n.Float("alpha", .01)
	case n.Op == "HardSigmoid":
		s.P0, s.P1 = n.Float("alpha", .2), n.Float("beta", .5)
	case s.Op == 0 || n.Domain != graph.DomainONNX:
		return unsupported(n, "its form")
	}
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if x.dtype == tensor.Int64 || x.dtype == tensor.Int32 {
		return b.integerUnary(n, x, y)
	}
	if x.dtype != tensor.Float32 || x.elems != y.elems {
		return unsupported(n, "operand of type %v", x.dtype)
	}
	s.N = x.elems
	if s.X = b.channelsLast(x); s.X != (Ref{}) && x.dense == (Ref{}) {
		y.nhwc = b.alloc(y.name+" (nhwc)", y.elems*4)
		s.Y = y.nhwc
		b.step(s)
		return nil
	}
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	s.Y = b.fresh(y)
	b.step(s)
	return nil
}

// integerUnary emits Neg as 0 - x and Abs as max(x, 0 - x).
func (b *builder) integerUnary(n *graph.Node, x, y *value) error {
	if n.Op != "Neg" && n.Op != "Abs" {
		return unsupported(n, "operand of type %v", x.dtype)
	}
	t, zero := S64, constant(b, int64(0))
	if x.dtype == tensor.Int32 {
		t, zero = S32, constant(b, int32(0))
	}
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	one := []int64{1}
	neg := b.fresh(y)
	if n.Op == "Abs" {
		neg = b.alloc(y.name+" (negated)", y.elems*t.Size())
	}
	if err := b.binary(n, Sub, t, x.dims, zero, one, ref, x.dims, neg); err != nil || n.Op == "Neg" {
		return err
	}
	return b.binary(n, Max, t, x.dims, ref, x.dims, neg, x.dims, y.dense)
}

// emitCompare emits Not, and comparisons that are made of others: a <= b is a < b
// or a == b.
func (b *builder) emitCompare(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	a, err := b.dense(x)
	if err != nil {
		return err
	}
	if n.Is("Not") {
		if x.dtype != tensor.Bool {
			return unsupported(n, "operand of type %v", x.dtype)
		}
		b.step(&Unary{Op: Not, N: x.elems, X: a, Y: b.fresh(y)})
		return nil
	}
	w, err := b.in(n, 1)
	if err != nil {
		return err
	}
	c, err := b.dense(w)
	if err != nil {
		return err
	}
	dims, ok := broadcast(x.dims, w.dims)
	if !ok || x.dtype != w.dtype || product64(dims) != y.elems {
		return unsupported(n, "operands %v%v and %v%v", x.dtype, x.dims, w.dtype, w.dims)
	}
	if n.Is("Xor") {
		t, err := b.arithmetic(n, x.dtype, And)
		if err != nil {
			return err
		}
		same := b.alloc(y.name+" (same)", y.elems)
		if err := b.binary(n, Equal, t, dims, a, x.dims, c, w.dims, same); err != nil {
			return err
		}
		b.step(&Unary{Op: Not, N: y.elems, X: same, Y: b.fresh(y)})
		return nil
	}
	op := Less
	if n.Is("GreaterOrEqual") {
		op = Greater
	}
	t, err := b.arithmetic(n, x.dtype, op)
	if err != nil {
		return err
	}
	strict, same := b.alloc(y.name+" (strict)", y.elems), b.alloc(y.name+" (same)", y.elems)
	if err := b.binary(n, op, t, dims, a, x.dims, c, w.dims, strict); err != nil {
		return err
	}
	if err := b.binary(n, Equal, t, dims, a, x.dims, c, w.dims, same); err != nil {
		return err
	}
	return b.binary(n, Or, Bool, dims, strict, dims, same, dims, b.fresh(y))
}

// emitCast emits conversions between plain types.
func (b *builder) emitCast(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if x.dtype == y.dtype {
		return b.alias(n)
	}
	from, ok := deviceType(x.dtype)
	to, ok2 := deviceType(y.dtype)
	if !ok || !ok2 || x.elems != y.elems {
		return unsupported(n, "from %v to %v", x.dtype, y.dtype)
	}
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	b.step(&Cast{From: from, To: to, N: x.elems, X: ref, Y: b.fresh(y)})
	return nil
}

// emitWhere emits Where.
func (b *builder) emitWhere(n *graph.Node) error {
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	t, ok := deviceType(y.dtype)
	if !ok || t.Size() == 2 {
		return unsupported(n, "operands of type %v", y.dtype)
	}
	s := &Where{Size: t.Size()}
	var strides [3][]int64
	for i, ref := range []*Ref{&s.Cond, &s.A, &s.B} {
		v, err := b.in(n, i)
		if err != nil {
			return err
		}
		if i > 0 && v.dtype != y.dtype || i == 0 && v.dtype != tensor.Bool {
			return unsupported(n, "operand %d of type %v", i, v.dtype)
		}
		if out, ok := broadcast(v.dims, y.dims); !ok || !sameDims(out, y.dims) && len(out) > 0 {
			return unsupported(n, "operand %v for %v", v.dims, y.dims)
		}
		if *ref, err = b.dense(v); err != nil {
			return err
		}
		strides[i] = stridesOver(v.dims, y.dims)
	}
	d, st, ok := collapse(y.dims, strides[0], strides[1], strides[2], dense(y.dims))
	if !ok {
		return unsupported(n, "broadcast to %v", y.dims)
	}
	s.CV, s.AV, s.BV, s.Out = View{d, st[0]}, View{d, st[1]}, View{d, st[2]}, View{d, st[3]}
	s.Y = b.fresh(y)
	b.step(s)
	return nil
}

// emitSoftmax emits Softmax over one axis, or before opset 13 over all from one.
func (b *builder) emitSoftmax(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	def := int64(-1)
	if b.m.Opset() < 13 {
		def = 1
	}
	axis := n.Int("axis", def)
	if axis < 0 {
		axis += int64(len(x.dims))
	}
	if x.dtype != tensor.Float32 || axis < 0 || axis >= int64(len(x.dims)) {
		return unsupported(n, "axis %d of %v%v", axis, x.dtype, x.dims)
	}
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	k := product64(x.dims[axis:])
	if b.m.Opset() < 13 || k == x.dims[axis] {
		b.step(&Softmax{M: x.elems / k, K: k, X: ref, Y: b.fresh(y)})
		return nil
	}
	// The axis goes last and back.
	outer, size := product64(x.dims[:axis]), x.dims[axis]
	inner := x.elems / outer / size
	turned, result := b.alloc(y.name+" (turned)", x.elems*4), b.alloc(y.name+" (softmax)", x.elems*4)
	if err := b.transpose(4, ref, []int64{outer, size, inner}, []int{0, 2, 1}, turned); err != nil {
		return err
	}
	b.step(&Softmax{M: outer * inner, K: size, X: turned, Y: result})
	return b.transpose(4, result, []int64{outer, inner, size}, []int{0, 2, 1}, b.fresh(y))
}

var reduceOps = map[string]Op{"ReduceSum": ReduceSum, "ReduceMean": ReduceMean, "ReduceMax": ReduceMax, "ReduceMin": ReduceMin, "ReduceL2": ReduceL2}

// emitReduce emits a reduction over any axes.
func (b *builder) emitReduce(n *graph.Node) error {
	x, err := b.in(n, 0)
	if err != nil {
		return err
	}
	axes, ok := b.axes(n, 1)
	if !ok {
		return unsupported(n, "axes that are computed")
	}
	rank := int64(len(x.dims))
	out := make([]bool, rank)
	for _, a := range axes {
		if a < 0 {
			a += rank
		}
		if a < 0 || a >= rank {
			return unsupported(n, "axes %v of %v", axes, x.dims)
		}
		out[a] = true
	}
	if len(axes) == 0 {
		if n.Int("noop_with_empty_axes", 0) != 0 {
			return b.alias(n)
		}
		for i := range out {
			out[i] = true
		}
	}
	// Axes of 1 take part in any run.
	first, last := -1, -1
	together := true
	for i := range out {
		if x.dims[i] == 1 || !out[i] {
			continue
		}
		if first < 0 {
			first = i
		} else {
			for k := last + 1; k < i; k++ {
				together = together && x.dims[k] == 1
			}
		}
		last = i
	}
	if first < 0 {
		return b.reduce(n, reduceOps[n.Op], x.elems, 1, 1)
	}
	if together {
		return b.reduce(n, reduceOps[n.Op], product64(x.dims[:first]), product64(x.dims[first:last+1]), product64(x.dims[last+1:]))
	}
	// The axes go last, together.
	var perm []int
	kept := int64(1)
	for i := range out {
		if !out[i] {
			perm = append(perm, i)
			kept *= x.dims[i]
		}
	}
	for i := range out {
		if out[i] {
			perm = append(perm, i)
		}
	}
	if x.dtype != tensor.Float32 {
		return unsupported(n, "operand %v%v", x.dtype, x.dims)
	}
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	turned := b.alloc(x.name+" (turned)", x.elems*4)
	if err := b.transpose(4, ref, x.dims, perm, turned); err != nil {
		return err
	}
	if y.elems != kept {
		return unsupported(n, "result %v", y.dims)
	}
	b.step(&Reduce{Op: reduceOps[n.Op], Outer: kept, Axis: x.elems / kept, Inner: 1, X: turned, Y: b.fresh(y)})
	return nil
}

// reduce emits one run of axes.
func (b *builder) reduce(n *graph.Node, op Op, outer, axis, inner int64) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || y.elems != outer*inner {
		return unsupported(n, "operand %v%v, result %v", x.dtype, x.dims, y.dims)
	}
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	b.step(&Reduce{Op: op, Outer: outer, Axis: axis, Inner: inner, X: ref, Y: b.fresh(y)})
	return nil
}

// axes reads the axes attribute or constant input i.
func (b *builder) axes(n *graph.Node, i int) ([]int64, bool) {
	if n.In(i) == "" {
		return n.Ints("axes"), true
	}
	return b.constInts(n.In(i))
}

// constInts returns the elements of a constant of integers.
func (b *builder) constInts(name string) ([]int64, bool) {
	t := b.g.Init(name)
	if t == nil || len(t.Dims) > 1 {
		return nil, false
	}
	return t.Ints()
}
