package plan

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// alias makes n's output the same memory as its first input: Reshape and its
// like.
func (b *builder) alias(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if x.dtype != y.dtype || x.elems != y.elems {
		return unsupported(n, "result %v%v of %v%v", y.dtype, y.dims, x.dtype, x.dims)
	}
	if x.codes != nil && x.dtype != tensor.Float32 {
		return b.aliasCodes(n, x, y)
	}
	y.dense, err = b.dense(x)
	return err
}

// aliasCodes reshapes codes that lie dense in the order that both shapes share.
func (b *builder) aliasCodes(n *graph.Node, x, y *value) error {
	c := *x.codes
	flat := !c.nhwc && c.ld == x.last()
	if c.nhwc && sameOrder(x.dims) {
		flat = true
	}
	if !flat || c.scales != (Ref{}) {
		return unsupported(n, "codes %v to %v", x.dims, y.dims)
	}
	if len(y.dims) == 4 {
		if !sameOrder(y.dims) {
			return unsupported(n, "codes %v to %v", x.dims, y.dims)
		}
		c.nhwc, c.ld = true, 0
	} else {
		c.nhwc, c.ld = false, y.last()
	}
	y.codes = &c
	return nil
}

// plain returns input i of n dense, with the bytes of its elements. Codes are
// not plain.
func (b *builder) plain(n *graph.Node, i int) (v *value, ref Ref, size int64, err error) {
	if v, err = b.in(n, i); err != nil {
		return
	}
	t, ok := deviceType(v.dtype)
	if !ok {
		return v, ref, 0, unsupported(n, "operand of type %v", v.dtype)
	}
	ref, err = b.dense(v)
	return v, ref, t.Size(), err
}

// moved returns input 0 of n as plain does, and its result.
func (b *builder) moved(n *graph.Node) (x *value, ref Ref, size int64, y *value, err error) {
	if x, ref, size, err = b.plain(n, 0); err == nil {
		y, err = b.out(n, 0)
	}
	return x, ref, size, y, err
}

// emitTranspose emits Transpose.
func (b *builder) emitTranspose(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	perm := make([]int, len(x.dims))
	at := n.Ints("perm")
	if at != nil && len(at) != len(perm) {
		return unsupported(n, "perm %v of %v", at, x.dims)
	}
	strides := dense(x.dims)
	from := make([]int64, len(perm))
	for i := range perm {
		perm[i] = len(perm) - 1 - i
		if at != nil {
			perm[i] = int(at[i])
		}
		if perm[i] < 0 || perm[i] >= len(perm) || x.dims[perm[i]] != y.dims[i] {
			return unsupported(n, "perm %v of %v", at, x.dims)
		}
		from[i] = strides[perm[i]]
	}
	return b.strided(n, ref, 0, from, size, y)
}

// strided copies x, read from element offset with the given strides over y's
// dimensions, into y; it aliases where that is a dense part of x.
func (b *builder) strided(n *graph.Node, x Ref, offset int64, strides []int64, size int64, y *value) error {
	d, s, ok := collapse(y.dims, strides, dense(y.dims))
	if !ok {
		return unsupported(n, "result %v", y.dims)
	}
	x.Offset += offset * size
	if len(d) == 1 && x.Offset%Align == 0 && (d[0] == 1 || s[0][0] == 1) {
		y.dense = x
		return nil
	}
	b.step(&Copy{Size: size, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: x, Y: b.fresh(y)})
	return nil
}

// emitSlice emits Slice.
func (b *builder) emitSlice(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	starts, ends, axes := n.Ints("starts"), n.Ints("ends"), n.Ints("axes")
	var steps []int64
	if b.m.Opset() >= 10 {
		ok := true
		for i, p := range []*[]int64{&starts, &ends, &axes, &steps} {
			*p = nil
			if n.In(i+1) != "" {
				is := false
				*p, is = b.constInts(n.In(i + 1))
				ok = ok && is
			}
		}
		if !ok {
			return unsupported(n, "bounds that are computed")
		}
	}
	rank := int64(len(x.dims))
	if len(starts) != len(ends) || (axes != nil && len(axes) != len(starts)) || (steps != nil && len(steps) != len(starts)) || len(y.dims) != len(x.dims) {
		return unsupported(n, "bounds")
	}
	strides := dense(x.dims)
	offset := int64(0)
	seen := make([]bool, rank)
	want := append([]int64(nil), x.dims...)
	for i := range starts {
		a, step := int64(i), int64(1)
		if axes != nil {
			a = axes[i]
		}
		if steps != nil {
			step = steps[i]
		}
		if a < 0 {
			a += rank
		}
		if a < 0 || a >= rank || seen[a] || step == 0 {
			return unsupported(n, "axes %v, steps %v", axes, steps)
		}
		seen[a] = true
		d := x.dims[a]
		from, to := starts[i], ends[i]
		if from < 0 {
			from += d
		}
		if to < 0 {
			to += d
		}
		step = max(min(step, d+1), -d-1) // one such step leaves the dimension
		if step > 0 {
			from, to = min(max(from, 0), d), min(max(to, 0), d)
			want[a] = max(0, (to-from+step-1)/step)
		} else {
			from, to = min(max(from, 0), d-1), min(max(to, -1), d-1)
			want[a] = max(0, (from-to-step-1)/-step)
		}
		offset += from * strides[a]
		strides[a] *= step
	}
	if !sameDims(want, y.dims) && len(want) > 0 {
		return unsupported(n, "result %v, inferred %v", want, y.dims)
	}
	return b.strided(n, ref, offset, strides, size, y)
}

// emitConcat emits Concat.
func (b *builder) emitConcat(n *graph.Node) error {
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	axis := n.Int("axis", 0)
	if axis < 0 {
		axis += int64(len(y.dims))
	}
	if axis < 0 || axis >= int64(len(y.dims)) || len(n.Inputs) == 0 {
		return unsupported(n, "axis %d of %v", axis, y.dims)
	}
	inner := product64(y.dims[axis+1:])
	outer := product64(y.dims[:axis])
	row := y.dims[axis] * inner
	at := int64(0)
	var to Ref
	for i := range n.Inputs {
		x, ref, size, err := b.plain(n, i)
		if err != nil {
			return err
		}
		if x.dtype != y.dtype || len(x.dims) != len(y.dims) {
			return unsupported(n, "operand %v%v for %v%v", x.dtype, x.dims, y.dtype, y.dims)
		}
		for k, d := range x.dims {
			if k != int(axis) && d != y.dims[k] {
				return unsupported(n, "operand %v for %v", x.dims, y.dims)
			}
		}
		if i == 0 {
			to = b.fresh(y)
		}
		cols := x.dims[axis] * inner
		if at+cols > row {
			return unsupported(n, "result %v", y.dims)
		}
		d, s, _ := collapse([]int64{outer, cols}, []int64{cols, 1}, []int64{row, 1})
		b.step(&Copy{Size: size, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: ref, Y: Ref{to.Buf, to.Offset + at*size}})
		at += cols
	}
	if at != row {
		return unsupported(n, "result %v", y.dims)
	}
	return nil
}

// emitSplit emits Split; the sizes are those of the outputs.
func (b *builder) emitSplit(n *graph.Node) error {
	x, ref, size, err := b.plain(n, 0)
	if err != nil {
		return err
	}
	axis := n.Int("axis", 0)
	if axis < 0 {
		axis += int64(len(x.dims))
	}
	if axis < 0 || axis >= int64(len(x.dims)) {
		return unsupported(n, "axis %d of %v", axis, x.dims)
	}
	strides := dense(x.dims)
	at := int64(0)
	for i := range n.Outputs {
		y, err := b.out(n, i)
		if err != nil {
			return err
		}
		want := append([]int64(nil), x.dims...)
		if len(y.dims) != len(want) {
			return unsupported(n, "result %v", y.dims)
		}
		want[axis] = y.dims[axis]
		if !sameDims(want, y.dims) || at+y.dims[axis] > x.dims[axis] {
			return unsupported(n, "result %v of %v", y.dims, x.dims)
		}
		if err := b.strided(n, ref, at*strides[axis], strides, size, y); err != nil {
			return err
		}
		at += y.dims[axis]
	}
	if at != x.dims[axis] {
		return unsupported(n, "parts of %d of %v", at, x.dims)
	}
	return nil
}

// emitExpand emits Expand, and ConstantOfShape of more elements than the host
// folds.
func (b *builder) emitExpand(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	if out, ok := broadcast(x.dims, y.dims); !ok || (!sameDims(out, y.dims) && len(out) > 0) {
		return unsupported(n, "%v to %v", x.dims, y.dims)
	}
	if x.elems == y.elems {
		y.dense = ref
		return nil
	}
	return b.strided(n, ref, 0, stridesOver(x.dims, y.dims), size, y)
}

func (b *builder) emitConstantOfShape(n *graph.Node) error {
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	v := tensor.From([]float32{0}, 1)
	if a := n.Attr("value"); a != nil && a.T != nil {
		if v, err = graph.TensorFromProto(a.T); err != nil || v.Len() != 1 {
			return unsupported(n, "its value")
		}
	}
	t, ok := deviceType(v.Type)
	if !ok || v.Type != y.dtype {
		return unsupported(n, "type %v", v.Type)
	}
	ref := b.weight(v, "", t.Size(), func() []byte { return v.Data })
	return b.strided(n, ref, 0, make([]int64, len(y.dims)), t.Size(), y)
}

// emitTile emits Tile: each dimension as (repeats, size).
func (b *builder) emitTile(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	if len(x.dims) != len(y.dims) {
		return unsupported(n, "%v to %v", x.dims, y.dims)
	}
	strides := dense(x.dims)
	var dims, from []int64
	for i, d := range x.dims {
		if y.dims[i]%d != 0 {
			return unsupported(n, "%v to %v", x.dims, y.dims)
		}
		dims, from = append(dims, y.dims[i]/d, d), append(from, 0, strides[i])
	}
	d, s, ok := collapse(dims, from, dense(dims))
	if !ok {
		return unsupported(n, "%v to %v", x.dims, y.dims)
	}
	b.step(&Copy{Size: size, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: ref, Y: b.fresh(y)})
	return nil
}

// emitPad emits Pad with a constant: fill, then the inside.
func (b *builder) emitPad(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	pads := n.Ints("pads")
	fill := tensor.From([]float32{n.Float("value", 0)}, 1)
	if b.m.Opset() >= 11 {
		var ok bool
		if pads, ok = b.constInts(n.In(1)); !ok || n.In(3) != "" {
			return unsupported(n, "pads that are computed")
		}
		fill = &tensor.Tensor{Type: x.dtype, Dims: []int64{1}, Data: make([]byte, size)}
		if n.In(2) != "" {
			if fill = b.g.Init(n.In(2)); fill == nil {
				return unsupported(n, "a value that is computed")
			}
		}
	}
	rank := len(x.dims)
	if n.Str("mode", "constant") != "constant" || fill.Type != x.dtype || fill.Len() != 1 || len(pads) != 2*rank || len(y.dims) != rank {
		return unsupported(n, "mode %s, pads %v", n.Str("mode", "constant"), pads)
	}
	offset := int64(0)
	strides := dense(y.dims)
	for i := range rank {
		if pads[i] < 0 || pads[rank+i] < 0 || pads[i] > MaxDim || pads[rank+i] > MaxDim || x.dims[i]+pads[i]+pads[rank+i] != y.dims[i] {
			return unsupported(n, "pads %v of %v", pads, x.dims)
		}
		offset += pads[i] * strides[i]
	}
	d, s, ok := collapse(x.dims, dense(x.dims), strides)
	if !ok {
		return unsupported(n, "result %v", y.dims)
	}
	value := b.weight(fill, "", size, func() []byte { return fill.Data })
	all := []int64{y.elems}
	b.step(&Copy{Size: size, Src: View{all, []int64{0}}, Dst: View{all, []int64{1}}, X: value, Y: b.fresh(y)})
	b.step(&Copy{Size: size, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: ref, Y: Ref{y.dense.Buf, offset * size}})
	return nil
}

// emitGather emits Gather on any axis.
func (b *builder) emitGather(n *graph.Node) error {
	x, ref, size, y, err := b.moved(n)
	if err != nil {
		return err
	}
	ids, err := b.in(n, 1)
	if err != nil {
		return err
	}
	axis := n.Int("axis", 0)
	if axis < 0 {
		axis += int64(len(x.dims))
	}
	if axis < 0 || axis >= int64(len(x.dims)) {
		return unsupported(n, "axis %d of %v", axis, x.dims)
	}
	s := &Gather{Size: size, Outer: product64(x.dims[:axis]), Axis: x.dims[axis], Inner: product64(x.dims[axis+1:]), NIDs: ids.elems, X: ref}
	if y.elems != s.Outer*s.NIDs*s.Inner {
		return unsupported(n, "result %v", y.dims)
	}
	if s.IDs, err = b.ids(ids); err != nil {
		return err
	}
	s.Y, s.Fault = b.fresh(y), b.fault()
	b.step(s)
	return nil
}

// emitGemm emits the forms of Gemm that have no constant weight or need more
// than an epilogue: Y = alpha op(A) op(B) + beta C.
func (b *builder) emitGemm(n *graph.Node) error {
	x, a, _, err := b.plain(n, 0)
	if err != nil {
		return err
	}
	w, bw, _, err := b.plain(n, 1)
	if err != nil {
		return err
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || w.dtype != tensor.Float32 || len(x.dims) != 2 || len(w.dims) != 2 {
		return unsupported(n, "operands %v%v and %v%v", x.dtype, x.dims, w.dtype, w.dims)
	}
	s := &GemmFloat{M: x.dims[0], K: x.dims[1], N: w.dims[1], LdB: w.dims[1], Batch: 1, Alpha: n.Float("alpha", 1), TransB: n.Int("transB", 0) != 0, TF32: b.o.Products != FP32}
	if n.Int("transA", 0) != 0 {
		s.M, s.K = s.K, s.M
		turned := b.alloc(x.name+" (turned)", x.elems*4)
		if err := b.transpose(4, a, x.dims, []int{1, 0}, turned); err != nil {
			return err
		}
		a = turned
	}
	depth := w.dims[0]
	if s.TransB {
		s.N, depth = w.dims[0], w.dims[1]
	}
	s.LdA, s.LdC, s.A, s.B = s.K, s.N, a, bw
	if depth != s.K || !sameDims(y.dims, []int64{s.M, s.N}) {
		return unsupported(n, "operands %v and %v", x.dims, w.dims)
	}
	if n.In(2) == "" || n.Float("beta", 1) == 0 {
		s.C = b.fresh(y)
		b.step(s)
		return nil
	}
	c, cr, _, err := b.plain(n, 2)
	if err != nil {
		return err
	}
	if out, ok := broadcast(c.dims, y.dims); !ok || !sameDims(out, y.dims) || c.dtype != tensor.Float32 {
		return unsupported(n, "C %v%v for %v", c.dtype, c.dims, y.dims)
	}
	s.C = b.alloc(y.name+" (product)", y.elems*4)
	b.step(s)
	if beta := n.Float("beta", 1); beta != 1 {
		scaled := b.alloc(c.name+" (scaled)", c.elems*4)
		if err := b.binary(n, Mul, F32, c.dims, cr, c.dims, constant(b, beta), []int64{1}, scaled); err != nil {
			return err
		}
		cr = scaled
	}
	return b.binary(n, Add, F32, y.dims, s.C, y.dims, cr, c.dims, b.fresh(y))
}
