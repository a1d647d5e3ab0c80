package plan

import (
	"fmt"
	"unsafe"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// How the second operand of a matrix product is held.
const (
	weightNone = iota // computed
	weightF32         // a constant matrix of floats, or codes that no kernel multiplies
	weightS8          // s8 codes with a scale for each column
	weightS4          // INT4 blocks
)

// weightForm is the constant operand of a product.
type weightForm struct {
	kind  int
	k, n  int64
	trans bool   // the constant is [n, k]
	bias  string // the node's own
	codes *weightCodes
}

// weightCodes is a constant s8 weight with its scales along one axis.
type weightCodes struct {
	t      *tensor.Tensor
	codes  []int8
	scales []float32 // one, or one for each index of the axis
	scale  *tensor.Tensor
}

// weightOf looks at the second operand of a matrix product; ok is false when n
// is none.
func (b *builder) weightOf(n *graph.Node) (weightForm, bool) {
	if w, ok := b.forms[n]; ok {
		return w, w.kind >= 0
	}
	w, ok := b.findWeight(n)
	if !ok {
		w.kind = -1
	}
	b.forms[n] = w
	return w, ok
}

func (b *builder) findWeight(n *graph.Node) (w weightForm, ok bool) {
	matrix := func(t *tensor.Tensor) bool { return t != nil && len(t.Dims) == 2 && t.Dims[0] > 0 && t.Dims[1] > 0 }
	switch {
	case n.Domain == graph.DomainFewbit && n.Op == "MatMulQuantized":
		t := b.g.Init(n.In(3))
		if !matrix(t) || t.Type != tensor.Int8 {
			return w, false
		}
		return weightForm{kind: weightS8, k: t.Dims[0], n: t.Dims[1]}, true
	case n.Domain == graph.DomainMS && n.Op == "MatMulNBits":
		w = weightForm{kind: weightS4, k: n.Int("K", 0), n: n.Int("N", 0), bias: n.In(5)}
		return w, w.k > 0 && w.n > 0
	case n.Is("MatMul") || n.Is("Gemm"):
		w.trans = n.Is("Gemm") && n.Int("transB", 0) != 0
		if n.Is("Gemm") {
			w.bias = n.In(2)
			if n.Int("transA", 0) != 0 || n.Float("alpha", 1) != 1 || (w.bias != "" && (n.Float("beta", 1) != 1 || b.constFloats(w.bias) == nil)) {
				return w, false // emitted without an epilogue
			}
		}
		t := b.g.Init(n.In(1))
		axis := 1
		if w.trans {
			axis = 0
		}
		if t == nil && b.activationCodes(n.In(0)) {
			if c, is := b.weightCodes(n.In(1), axis); is && matrix(c.t) {
				w.kind, w.codes, t = weightS8, c, c.t
			}
		}
		if t == nil {
			if d := b.ix.Producer(n.In(1)); d != nil && d.Op == "DequantizeLinear" && b.g.Init(d.In(0)) != nil {
				t, w.kind = b.g.Init(d.In(0)), weightF32
			}
		} else if w.kind == 0 {
			w.kind = weightF32
		}
		if !matrix(t) {
			w.kind = weightNone
			return w, n.Is("MatMul")
		}
		w.k, w.n = t.Dims[0], t.Dims[1]
		if w.trans {
			w.k, w.n = w.n, w.k
		}
		if w.bias != "" && int64(len(b.constFloats(w.bias))) != w.n {
			return w, false
		}
		return w, true
	}
	return w, false
}

// weightCodes returns the codes behind a DequantizeLinear of a constant, when
// they are symmetric with one scale or one for each index of axis.
func (b *builder) weightCodes(value string, axis int) (*weightCodes, bool) {
	d := b.ix.Producer(value)
	if d == nil || d.Op != "DequantizeLinear" || d.Int("block_size", 0) != 0 {
		return nil, false
	}
	t, s := b.g.Init(d.In(0)), b.g.Init(d.In(1))
	if t == nil || s == nil || s.Type != tensor.Float32 || (t.Type != tensor.Int8 && t.Type != tensor.Uint8) || len(t.Dims) <= axis {
		return nil, false
	}
	if s.Len() != 1 {
		at := d.Int("axis", 1)
		if at < 0 {
			at += int64(len(t.Dims))
		}
		if at != int64(axis) || len(s.Dims) != 1 || s.Len() != t.Dims[axis] {
			return nil, false
		}
	}
	want := byte(0)
	if t.Type == tensor.Uint8 {
		want = 128
	}
	if d.In(2) == "" {
		if want != 0 {
			return nil, false // u8 codes with zero point 0
		}
	} else {
		z := b.g.Init(d.In(2))
		if z == nil || z.Type != t.Type {
			return nil, false
		}
		for _, v := range z.Data {
			if v != want {
				return nil, false
			}
		}
	}
	return &weightCodes{t: t, codes: signed(t), scales: tensor.View[float32](s), scale: s}, true
}

// signed returns 8-bit codes as s8, u8 ones shifted.
func signed(t *tensor.Tensor) []int8 {
	v := tensor.View[int8](&tensor.Tensor{Type: tensor.Int8, Data: t.Data})
	if t.Type == tensor.Uint8 {
		s := make([]int8, len(v))
		for i := range v {
			s[i] = int8(uint8(v[i]) - 128)
		}
		return s
	}
	return v
}

// constFloats returns the values of a constant, dequantized when a
// DequantizeLinear reads it; nil when it is not one or has no floats.
func (b *builder) constFloats(name string) []float32 {
	if t := b.g.Init(name); t != nil {
		if t.Type != tensor.Float32 {
			return nil
		}
		return tensor.View[float32](t)
	}
	d := b.ix.Producer(name)
	if d == nil || d.Op != "DequantizeLinear" {
		return nil
	}
	return b.hostDequantize(d)
}

// dequantizable reports whether hostDequantize knows the form of d.
func (b *builder) dequantizable(d *graph.Node) bool {
	t, s := b.g.Init(d.In(0)), b.g.Init(d.In(1))
	if t == nil || s == nil || s.Type != tensor.Float32 || d.Int("block_size", 0) != 0 || t.Len() == 0 || s.Len() == 0 {
		return false
	}
	if t.Type != tensor.Int32 && t.Type != tensor.Int8 && t.Type != tensor.Uint8 {
		return false
	}
	if d.In(2) != "" {
		z := b.g.Init(d.In(2))
		if z == nil || z.Type != t.Type || z.Len() != s.Len() {
			return false
		}
	}
	if s.Len() == 1 {
		return true
	}
	at := d.Int("axis", 1)
	if at < 0 {
		at += int64(len(t.Dims))
	}
	return at >= 0 && at < int64(len(t.Dims)) && s.Len() == t.Dims[at]
}

// hostDequantize evaluates DequantizeLinear of a constant; nil when it is not
// one or has another form.
func (b *builder) hostDequantize(d *graph.Node) []float32 {
	if !b.dequantizable(d) {
		return nil
	}
	t := b.g.Init(d.In(0))
	scales, v := tensor.View[float32](b.g.Init(d.In(1))), integers(t)
	var zeros []int32
	if d.In(2) != "" {
		zeros = integers(b.g.Init(d.In(2)))
	}
	inner := int64(1)
	if len(scales) > 1 {
		at := d.Int("axis", 1)
		if at < 0 {
			at += int64(len(t.Dims))
		}
		inner = product64(t.Dims[at+1:])
	}
	out := make([]float32, len(v))
	for i := range v {
		c := int64(i) / inner % int64(len(scales))
		x := v[i]
		if zeros != nil {
			x -= zeros[c]
		}
		out[i] = float32(x) * scales[c]
	}
	return out
}

// integers widens 8- and 32-bit integers.
func integers(t *tensor.Tensor) []int32 {
	switch t.Type {
	case tensor.Int32:
		return tensor.View[int32](t)
	case tensor.Int8, tensor.Uint8:
		r := make([]int32, len(t.Data))
		for i, v := range t.Data {
			if r[i] = int32(v); t.Type == tensor.Int8 {
				r[i] = int32(int8(v))
			}
		}
		return r
	}
	return nil
}

// bytesOf is the memory of v.
func bytesOf[T any](v []T) []byte {
	if len(v) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&v[0])), len(v)*int(unsafe.Sizeof(v[0])))
}

// gemmOperand is B of an s8 product on the device.
type gemmOperand struct{ b, scale, sum Ref }

// rowsS8 uploads s8 weights as [n, ldb], the padding zero, with their scales
// and row sums.
func (b *builder) rowsS8(t *tensor.Tensor, codes []int8, scale *tensor.Tensor, k, n int64, trans bool) gemmOperand {
	layout := "|rows"
	if trans {
		layout = "|rows_t"
	}
	ld := round16(k)
	at := func(row, col int64) int8 { // row of n, col of k
		if trans {
			return codes[row*k+col]
		}
		return codes[col*n+row]
	}
	o := gemmOperand{b: b.weight(t, layout, n*ld, func() []byte { return bytesOf(transposeRows(codes, k, n, ld, trans)) })}
	o.sum = b.weight(t, layout+"_sums", n*4, func() []byte {
		sums := make([]int32, n)
		for r := range n {
			for c := range k {
				sums[r] += int32(at(r, c))
			}
		}
		return bytesOf(sums)
	})
	o.scale = b.scales(scale, n)
	return o
}

// transposeRows lays codes of [k, n] (or [n, k] when trans) out as [n, ld].
func transposeRows(codes []int8, k, n, ld int64, trans bool) []int8 {
	out := make([]int8, n*ld)
	for r := range n {
		if trans {
			copy(out[r*ld:], codes[r*k:(r+1)*k])
			continue
		}
		for c := range k {
			out[r*ld+c] = codes[c*n+r]
		}
	}
	return out
}

// scales uploads n scales; one is repeated.
func (b *builder) scales(t *tensor.Tensor, n int64) Ref {
	v := tensor.View[float32](t)
	if int64(len(v)) == n {
		return b.weight(t, "", n*4, func() []byte { return bytesOf(v) })
	}
	return b.weight(t, fmt.Sprintf("|x%d", n), n*4, func() []byte {
		r := make([]float32, n)
		for i := range r {
			r[i] = v[0]
		}
		return bytesOf(r)
	})
}

// vector uploads a constant float vector, or returns NULL for "".
func (b *builder) vector(name string) Ref {
	if name == "" {
		return Ref{}
	}
	v := b.constFloats(name)
	t := b.g.Init(name)
	if t == nil {
		t = tensor.From(v, int64(len(v)))
	}
	return b.weight(t, "", int64(len(v))*4, func() []byte { return bytesOf(v) })
}

// constant uploads values that planning computed.
func constant[T tensor.Elem](b *builder, v ...T) Ref {
	t := tensor.From(v, int64(len(v)))
	return b.weight(t, "", int64(len(t.Data)), func() []byte { return t.Data })
}
