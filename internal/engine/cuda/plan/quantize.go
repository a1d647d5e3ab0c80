package plan

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// emitQuantizeRows emits fewbit.QuantizeRows(X) -> (Q, scale, zero).
func (b *builder) emitQuantizeRows(n *graph.Node) error {
	x, err := b.in(n, 0)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || len(x.dims) < 1 {
		return unsupported(n, "operand %v%v", x.dtype, x.dims)
	}
	q, err := b.out(n, 0)
	if err != nil {
		return err
	}
	divisor := ""
	if d := b.divisorOf(n); d != nil {
		if x, err = b.in(d, 0); err != nil {
			return err
		}
		divisor = d.In(1)
	}
	q.codes, err = b.quantizedRows(x, divisor)
	return err
}

// isQuantizeRows reports whether n is fewbit.QuantizeRows.
func isQuantizeRows(n *graph.Node) bool {
	return n.Domain == graph.DomainFewbit && n.Op == "QuantizeRows"
}

// divisorOf returns the division by a constant vector whose result n quantizes
// (smoothing that could not be folded), or nil.
func (b *builder) divisorOf(n *graph.Node) *graph.Node {
	d := b.ix.Producer(n.In(0))
	if d == nil || !d.Is("Div") || b.g.Init(d.In(0)) != nil {
		return nil
	}
	dims := b.sizes(d.Outputs[0])
	if len(dims) == 0 || !sameDims(b.sizes(d.In(0)), dims) || !b.constVector(d.In(1), dims[len(dims)-1]) {
		return nil
	}
	return d
}

// emitQuantize emits QuantizeLinear with one scale: channels last for rank 4,
// rows of the last dimension otherwise.
func (b *builder) emitQuantize(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	scale, zero, ok := b.static(n)
	if !ok || x.dtype != tensor.Float32 {
		return unsupported(n, "only FP32 with one scale for the tensor, INT8 or UINT8")
	}
	c := &codes{scale: scale, zero: zero}
	y.codes = c
	s := &QuantizeTensor{M: 1, K: x.elems, LdQ: x.elems, Scale: scale, Zero: zero + 128}
	if len(x.dims) == 4 {
		c.nhwc = true
		c.ref = b.alloc(y.name, x.elems)
		if s.X = b.channelsLast(x); s.X != (Ref{}) {
			s.Q = c.ref
			b.step(s)
			return nil
		}
		if s.X, err = b.dense(x); err != nil {
			return err
		}
		if sameOrder(x.dims) {
			s.Q = c.ref
			b.step(s)
			return nil
		}
		b.step(&QuantizeToNHWC{N: x.dims[0], C: x.dims[1], HW: x.dims[2] * x.dims[3], LdC: x.dims[1],
			Scale: s.Scale, Zero: s.Zero, X: s.X, Q: c.ref})
		return nil
	}
	k := x.last()
	s.M, s.K, s.LdQ = x.elems/k, k, round16(k)
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	c.ld = s.LdQ
	c.ref = b.alloc(y.name, s.M*s.LdQ)
	s.Q = c.ref
	b.step(s)
	return nil
}

// emitDequantize emits nothing: readers take the codes or ask for floats.
func (b *builder) emitDequantize(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if y.dtype != tensor.Float32 {
		return unsupported(n, "result of type %v", y.dtype)
	}
	if x.host != nil {
		y.dq = n
		return nil
	}
	scale, zero, ok := b.static(n)
	if !ok || x.codes == nil || x.codes.scales != (Ref{}) {
		return unsupported(n, "only codes of a QuantizeLinear with one scale for the tensor")
	}
	c := *x.codes
	c.scale, c.zero = scale, zero
	y.codes = &c
	return nil
}

// emitNorm emits LayerNormalization, with the rows of its result quantized when
// a QuantizeRows reads it.
func (b *builder) emitNorm(g *norm) error {
	n := g.node
	x, err := b.value(g.x)
	if err != nil {
		return err
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	axis := n.Int("axis", -1)
	if axis < 0 {
		axis += int64(len(x.dims))
	}
	if axis < 0 || axis >= int64(len(x.dims)) || x.dtype != tensor.Float32 || len(n.Outputs) > 1 && b.read(n.Outputs[1:]...) {
		return unsupported(n, "axis %d of %v%v", axis, x.dtype, x.dims)
	}
	k := product64(x.dims[axis:])
	s := &LayerNorm{M: x.elems / k, K: k, Epsilon: n.Float("epsilon", 1e-5)}
	if s.Gamma, err = b.sized(n, 1, k); err != nil {
		return err
	}
	if n.In(2) != "" {
		if s.Beta, err = b.sized(n, 2, k); err != nil {
			return err
		}
	}
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	if g.residual != "" {
		r, err := b.value(g.residual)
		if err != nil {
			return err
		}
		if s.Residual, err = b.dense(r); err != nil {
			return err
		}
	}
	s.Y = b.fresh(y)
	if divisor, ok := b.quantizedAfter(y.name); ok && k == y.last() {
		rows, c := b.rowStep(y)
		s.Q, s.Scale, s.Zero, s.LdQ, s.Divisor = rows.Q, rows.Scale, rows.Zero, rows.LdQ, b.vector(divisor)
		b.inputs8[divided{y.name, divisor}] = c
	}
	b.step(s)
	return nil
}

// quantizedAfter looks for a reader of the value that quantizes its rows, at
// once or divided by a vector.
func (b *builder) quantizedAfter(name string) (divisor string, ok bool) {
	for _, u := range b.ix.Uses(name) {
		if isQuantizeRows(u.Node) || (u.Node.Op == "MatMulNBits" && u.Node.Int("accuracy_level", 0) == accuracyInt8 && u.Input == 0) {
			return "", true
		}
	}
	for _, u := range b.ix.Uses(name) {
		if !u.Node.Is("Div") || u.Input != 0 {
			continue
		}
		for _, q := range b.ix.Uses(u.Node.Outputs[0]) {
			if isQuantizeRows(q.Node) && b.divisorOf(q.Node) == u.Node {
				return u.Node.In(1), true
			}
		}
	}
	return "", false
}

// sized returns input i of n dense, which must have k floats.
func (b *builder) sized(n *graph.Node, i int, k int64) (Ref, error) {
	v, err := b.in(n, i)
	if err != nil {
		return Ref{}, err
	}
	if v.dtype != tensor.Float32 || v.elems != k {
		return Ref{}, unsupported(n, "input %d is %v%v, %d floats expected", i, v.dtype, v.dims, k)
	}
	return b.dense(v)
}

// read reports whether anything reads one of the values.
func (b *builder) read(names ...string) bool {
	for _, v := range names {
		if v != "" && (len(b.ix.Uses(v)) > 0 || b.ix.IsOutput(v)) {
			return true
		}
	}
	return false
}
