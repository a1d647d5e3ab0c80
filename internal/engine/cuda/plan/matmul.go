package plan

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// emitProduct emits a matrix product with its epilogue.
func (b *builder) emitProduct(p *product) error {
	w, ok := b.weightOf(p.core)
	if !ok {
		return unsupported(p.core, "form of its operands")
	}
	switch w.kind {
	case weightS8:
		return b.emitGemmS8(p, w)
	case weightS4:
		return b.emitGemmW4(p, w)
	}
	return b.emitGemmFloat(p, w)
}

// target makes room for a product's result: dense rows of n.
func (b *builder) target(p *product, m, n int64) (*value, Ref, error) {
	y, err := b.value(p.out)
	if err != nil {
		return nil, Ref{}, err
	}
	if y.elems != m*n || y.last() != n {
		return nil, Ref{}, unsupported(p.core, "result %v for a product [%d,%d]", y.dims, m, n)
	}
	return y, b.fresh(y), nil
}

// sum returns the residual of an epilogue, dense, or NULL.
func (b *builder) sum(p *product) (Ref, error) {
	if p.residual == "" {
		return Ref{}, nil
	}
	r, err := b.value(p.residual)
	if err != nil {
		return Ref{}, err
	}
	if r.dtype != tensor.Float32 {
		return Ref{}, unsupported(p.core, "residual of type %v", r.dtype)
	}
	return b.dense(r)
}

// bias uploads a product's bias, its node's own or that of the Add after it.
func (b *builder) bias(p *product, w weightForm) Ref {
	if w.bias != "" {
		return b.vector(w.bias)
	}
	return b.vector(p.bias)
}

func (b *builder) emitGemmS8(p *product, w weightForm) error {
	s := &GemmS8{N: w.n, K: w.k, LdB: round16(w.k), LdC: w.n, Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi}
	a, err := b.gemmRows(p.core, w.k)
	if err != nil {
		return err
	}
	if w.k > ops.MaxK {
		return unsupported(p.core, "rows of %d: their sums may leave INT32", w.k)
	}
	c := a.codes
	s.M, s.LdA, s.A = a.elems/w.k, c.ld, c.ref
	if s.Rows = c.scales != (Ref{}); s.Rows {
		s.AScale, s.AZero = c.scales, c.zeros
	} else {
		s.AScale, s.AZero = constant(b, c.scale), constant(b, c.zero)
	}
	var op gemmOperand
	if w.codes != nil {
		op = b.rowsS8(w.codes.t, w.codes.codes, w.codes.scale, w.k, w.n, w.trans)
	} else if op, err = b.nativeWeight(p.core, w); err != nil {
		return err
	}
	s.B, s.BScale, s.BSum = op.b, op.scale, op.sum
	s.Bias = b.bias(p, w)
	if s.Residual, err = b.sum(p); err != nil {
		return err
	}
	if p.quant != nil {
		return b.gemmCodes(p, s)
	}
	if _, s.C, err = b.target(p, s.M, s.N); err != nil {
		return err
	}
	s.Work, s.WorkBytes = b.work(s)
	b.step(s)
	return nil
}

// gemmCodes writes the result as codes.
func (b *builder) gemmCodes(p *product, s *GemmS8) error {
	y, err := b.value(p.out)
	if err != nil {
		return err
	}
	if y.elems != s.M*s.N || y.last() != s.N {
		return unsupported(p.core, "result %v for a product [%d,%d]", y.dims, s.M, s.N)
	}
	s.Out = S8
	s.OutScale, s.OutZero, _ = b.static(p.quant)
	s.C = b.alloc(y.name, s.M*s.N)
	y.codes = &codes{ref: s.C, ld: s.N, scale: s.OutScale, zero: s.OutZero}
	s.Work, s.WorkBytes = b.work(s)
	b.step(s)
	return nil
}

// gemmRows returns the first operand of an s8 product as rows of k codes.
func (b *builder) gemmRows(n *graph.Node, k int64) (*value, error) {
	a, err := b.in(n, 0)
	if err != nil {
		return nil, err
	}
	if a.codes == nil {
		return nil, unsupported(n, "its first operand is not quantized")
	}
	if a.last() != k || len(a.dims) < 2 {
		return nil, unsupported(n, "operand %v for %d rows of weights", a.dims, k)
	}
	if a.codes.scales != (Ref{}) { // the three results of one QuantizeRows
		q := b.ix.Producer(n.In(0))
		if n.Op != "MatMulQuantized" || q == nil || q.Op != "QuantizeRows" || len(q.Outputs) != 3 || n.In(1) != q.Outputs[1] || n.In(2) != q.Outputs[2] {
			return nil, unsupported(n, "codes, scale and zero point are not of one QuantizeRows")
		}
	} else if n.Op == "MatMulQuantized" {
		return nil, unsupported(n, "codes are not of a QuantizeRows")
	}
	if a.codes.nhwc || a.codes.ld%16 != 0 {
		// Through floats, which give the same codes again.
		x, err := b.dense(a)
		if err != nil {
			return nil, err
		}
		c := *a.codes
		c.nhwc, c.ld = false, round16(k)
		c.ref = b.alloc(a.name+" (rows)", a.elems/k*c.ld)
		b.step(&QuantizeTensor{M: a.elems / k, K: k, LdQ: c.ld, Scale: c.scale, Zero: c.zero + 128, X: x, Q: c.ref})
		r := *a
		r.codes = &c
		return &r, nil
	}
	return a, nil
}

// nativeWeight uploads the weight of fewbit.MatMulQuantized(Q, scale, zero, W,
// w_scale, w_sum).
func (b *builder) nativeWeight(n *graph.Node, w weightForm) (o gemmOperand, err error) {
	t, scale, sum := b.g.Init(n.In(3)), b.g.Init(n.In(4)), b.g.Init(n.In(5))
	if scale == nil || scale.Type != tensor.Float32 || scale.Len() != w.n || sum == nil || sum.Type != tensor.Int32 || sum.Len() != w.n {
		return o, unsupported(n, "w_scale and w_sum must be constants of %d elements", w.n)
	}
	codes := tensor.View[int8](t)
	// The kernel shifts codes by 128, which is only the same product when
	// w_sum is what it says.
	if _, ok := b.checked.Load(t); !ok {
		want := make([]int32, w.n)
		for r := range w.k {
			for c, v := range codes[r*w.n : (r+1)*w.n] {
				want[c] += int32(v)
			}
		}
		for i, v := range tensor.View[int32](sum) {
			if v != want[i] {
				return o, unsupported(n, "w_sum[%d] is %d, the weights add up to %d", i, v, want[i])
			}
		}
		b.checked.Store(t, nil)
	}
	return b.rowsS8(t, codes, scale, w.k, w.n, false), nil
}

// emitGemmFloat emits products that stay in float.
func (b *builder) emitGemmFloat(p *product, w weightForm) error {
	x, err := b.in(p.core, 0)
	if err != nil {
		return err
	}
	if w.kind == weightNone {
		return b.emitBatched(p.core)
	}
	if x.dtype != tensor.Float32 || x.last() != w.k {
		return unsupported(p.core, "operand %v%v for weights [%d,%d]", x.dtype, x.dims, w.k, w.n)
	}
	s := &GemmFloat{M: x.elems / w.k, N: w.n, K: w.k, LdA: w.k, LdB: w.n, LdC: w.n, Batch: 1, TransB: w.trans, Alpha: 1,
		Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi}
	if w.trans {
		s.LdB = w.k
	}
	if s.A, err = b.dense(x); err != nil {
		return err
	}
	weight, err := b.in(p.core, 1)
	if err != nil {
		return err
	}
	if weight.dtype != tensor.Float32 {
		return unsupported(p.core, "weights of type %v", weight.dtype)
	}
	if s.B, err = b.dense(weight); err != nil {
		return err
	}
	if err := b.multiply(s, x, weight); err != nil {
		return err
	}
	s.Bias = b.bias(p, w)
	if s.Residual, err = b.sum(p); err != nil {
		return err
	}
	if _, s.C, err = b.target(p, s.M, s.N); err != nil {
		return err
	}
	b.step(s)
	return nil
}

// emitBatched emits MatMul of two computed operands, numpy's rules.
func (b *builder) emitBatched(n *graph.Node) error {
	x, err := b.in(n, 0)
	if err != nil {
		return err
	}
	w, err := b.in(n, 1)
	if err != nil {
		return err
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || w.dtype != tensor.Float32 || len(x.dims) < 1 || len(w.dims) < 1 {
		return unsupported(n, "operands %v%v and %v%v", x.dtype, x.dims, w.dtype, w.dims)
	}
	xd, wd := x.dims, w.dims
	if len(xd) == 1 {
		xd = []int64{1, xd[0]}
	}
	if len(wd) == 1 {
		wd = []int64{wd[0], 1}
	}
	xb, wb := xd[:len(xd)-2], wd[:len(wd)-2]
	m, k, cols := xd[len(xd)-2], xd[len(xd)-1], wd[len(wd)-1]
	batch, ok := broadcast(xb, wb)
	if !ok || wd[len(wd)-2] != k {
		return unsupported(n, "operands %v and %v", x.dims, w.dims)
	}
	s := &GemmFloat{M: m, N: cols, K: k, LdA: k, LdB: cols, LdC: cols, Batch: product64(batch), Alpha: 1}
	if y.elems != s.Batch*m*cols {
		return unsupported(n, "result %v of %v and %v", y.dims, x.dims, w.dims)
	}
	a, err := b.dense(x)
	if err != nil {
		return err
	}
	bw, err := b.dense(w)
	if err != nil {
		return err
	}
	switch nx, nw := product64(xb), product64(wb); {
	case nw == 1: // one matrix for all rows
		s.M, s.Batch = s.M*s.Batch, 1
	default:
		if s.StrideA = m * k; nx == 1 {
			s.StrideA = 0
		} else if nx != s.Batch {
			if a, err = b.expand(n, a, append(append([]int64(nil), xb...), m*k), append(append([]int64(nil), batch...), m*k)); err != nil {
				return err
			}
		}
		s.StrideB, s.StrideC = k*cols, m*cols
		if nw != s.Batch {
			if bw, err = b.expand(n, bw, append(append([]int64(nil), wb...), k*cols), append(append([]int64(nil), batch...), k*cols)); err != nil {
				return err
			}
		}
	}
	s.A, s.B, s.C = a, bw, b.fresh(y)
	s.TF32 = b.o.Products != FP32
	b.step(s)
	return nil
}

// multiply makes s, the FP32 product of x and the constant w, one by the
// arithmetic asked for.
func (b *builder) multiply(s *GemmFloat, x, w *value) error {
	switch {
	case b.o.Products == FP16 && w.host != nil:
		a, err := b.half(x)
		if err != nil {
			return err
		}
		s.In, s.A = F16, a
		s.B = b.halfWeight(w)
	case b.o.Products != FP32:
		s.TF32 = true
	}
	return nil
}

// halfWeight uploads a constant in FP16.
func (b *builder) halfWeight(w *value) Ref {
	host := w.host
	return b.weight(host, "|half", w.elems*F16.Size(), func() []byte { return halves(tensor.View[float32](host)) })
}

// halves are the bytes of v in FP16.
func halves(v []float32) []byte {
	h := make([]uint16, len(v))
	for i, x := range v {
		h[i] = tensor.F32ToF16(x)
	}
	return bytesOf(h)
}

// expand copies dense F32 x of dims from to the broadcast dims to.
func (b *builder) expand(n *graph.Node, x Ref, from, to []int64) (Ref, error) {
	d, s, ok := collapse(to, stridesOver(from, to), dense(to))
	if !ok {
		return Ref{}, unsupported(n, "broadcast of %v to %v", from, to)
	}
	y := b.alloc(n.Outputs[0]+" (expanded)", product64(to)*4)
	b.step(&Copy{Size: 4, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: x, Y: y})
	return y, nil
}

func product64(dims []int64) int64 {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	return n
}
