package tflite

import (
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// channelsLast and channelsFirst reorder the dimensions of rank 4: result
// dimension i is dimension perm[i] of what was there.
var (
	channelsLast  = []int{0, 2, 3, 1}
	channelsFirst = []int{0, 3, 1, 2}
)

// toLast is the order in which a value of that rank is stored, nil as it is.
func toLast(rank int) []int {
	if rank == 4 {
		return channelsLast
	}
	return nil
}

// last returns a shape in the order in which its value is stored.
func last(shape []int32) []int32 { return reorder(shape, toLast(len(shape))) }

func reorder[T any](v []T, perm []int) []T {
	if perm == nil {
		return v
	}
	r := make([]T, len(v))
	for i, p := range perm {
		r[i] = v[p]
	}
	return r
}

// sameOrder reports whether elements of that shape (in ONNX's order) lie in
// memory as they did before their channels went last.
func sameOrder(shape []int32) bool {
	return len(shape) != 4 || shape[1] == 1 || shape[2]*shape[3] == 1
}

func dims32(d []int64) []int32 {
	s := make([]int32, len(d))
	for i, n := range d {
		s[i] = int32(min(n, maxElems-1))
	}
	return s
}

// permute copies elements of size bytes into the order of perm; nil copies.
func permute(data []byte, dims []int32, perm []int, size int) []byte {
	out := make([]byte, len(data))
	if perm == nil {
		copy(out, data)
		return out
	}
	stride := make([]int, len(dims))
	for i, n := len(dims)-1, size; i >= 0; i-- {
		stride[i] = n
		n *= int(dims[i])
	}
	at := make([]int, len(dims)) // of the element of out, outermost first
	from := 0
	for o := 0; o < len(out); o += size {
		copy(out[o:o+size], data[from:from+size])
		for i := len(perm) - 1; i >= 0; i-- {
			at[i]++
			from += stride[perm[i]]
			if at[i] < int(dims[perm[i]]) {
				break
			}
			from -= at[i] * stride[perm[i]]
			at[i] = 0
		}
	}
	return out
}

// constant makes a float tensor of that shape from an initializer, reordered.
func (c *converter) constant(name string, t *tensor.Tensor, shape []int32, perm []int) (int32, error) {
	if len(t.Dims) > maxRank {
		return 0, fmt.Errorf("%w: %q has %d dimensions, at most %d are taken", ErrUnsupported, name, len(t.Dims), maxRank)
	}
	if err := t.Check(); err != nil {
		return 0, err
	}
	if c.half[name] && t.Type == tensor.Float32 {
		if codes, ok := asHalf(tensor.View[float32](t)); ok {
			return c.halfConstant(name, codes, dims32(t.Dims), shape, perm)
		}
	}
	return c.once(name, float32Type, shape, perm, 4*t.Len(), func() (int32, error) {
		f, err := t.F32()
		if err != nil || len(f) == 0 {
			return 0, fmt.Errorf("%w: constant %q is %v%v", ErrUnsupported, name, t.Type, t.Dims)
		}
		data := permute(tensor.From(f).Data, dims32(t.Dims), perm, 4)
		return c.add(&tensorDef{name: name, typ: float32Type, shape: shape, data: data}), nil
	})
}

// once makes the tensor of a constant, of that many bytes, the first time that it
// is asked for in a shape, an order and a type: many operators may share it.
func (c *converter) once(name string, typ dtype, shape []int32, perm []int, bytes int64, make func() (int32, error)) (int32, error) {
	key := fmt.Sprint(name, typ, shape, perm)
	if t, ok := c.consts[key]; ok {
		return t, nil
	}
	if err := c.reserve(bytes); err != nil {
		return 0, err
	}
	t, err := make()
	if err == nil {
		c.consts[key] = t
	}
	return t, err
}

// reserve counts bytes of constants, before they are made.
func (c *converter) reserve(bytes int64) error {
	if c.bytes += bytes; c.bytes > MaxBytes {
		return fmt.Errorf("%w: its constants take more than %d MB, where the format ends", ErrUnsupported, MaxBytes>>20)
	}
	return nil
}

// integers makes an int32 constant.
func (c *converter) integers(name string, v []int32, shape ...int32) int32 {
	return c.add(&tensorDef{name: name, typ: int32Type, shape: shape, data: tensor.From(v).Data})
}

// number makes a float scalar.
func (c *converter) number(name string, v float32) int32 {
	return c.add(&tensorDef{name: name, typ: float32Type, shape: []int32{}, data: tensor.From([]float32{v}).Data})
}

// like makes a tensor of another's type and scale.
func (c *converter) like(t int32, name string, shape []int32) int32 {
	d := c.p.tensors[t]
	return c.add(&tensorDef{name: name, typ: d.typ, shape: shape, batched: d.batched, quant: d.quant})
}

// transposed reorders a tensor's dimensions; shape is the result's.
func (c *converter) transposed(t int32, name string, perm []int) int32 {
	p := make([]int32, len(perm))
	for i, x := range perm {
		p[i] = int32(x)
	}
	out := c.like(t, name, reorder(c.p.tensors[t].shape, perm))
	c.p.tensors[out].batched = c.p.tensors[t].batched && perm[0] == 0
	c.emit(opTranspose, []int32{t, c.integers(name+"/perm", p, int32(len(p)))}, out, empty(26))
	return out
}

// weight is a constant of a DequantizeLinear, as int8 or int32 codes.
type weight struct {
	name  string
	dims  []int32
	typ   dtype
	data  []byte
	scale []float32
	zero  int64
	axis  int // of the scales, where there are several
}

// floats returns what the codes stand for.
func (w *weight) floats() []float32 {
	n := len(w.data) / int(w.typ.size())
	r := make([]float32, n)
	inner := 1
	for _, d := range w.dims[min(w.axis+1, len(w.dims)):] {
		inner *= int(d)
	}
	codes := tensor.View[int32](&tensor.Tensor{Type: tensor.Int32, Data: w.data})
	for i := range r {
		s := w.scale[0]
		if len(w.scale) > 1 {
			s = w.scale[i/inner%len(w.scale)]
		}
		v := int64(0)
		switch w.typ {
		case int8Type:
			v = int64(int8(w.data[i]))
		case int16Type:
			v = int64(int16(uint16(w.data[2*i]) | uint16(w.data[2*i+1])<<8))
		default:
			v = int64(codes[i])
		}
		r[i] = float32(v-w.zero) * s
	}
	return r
}

// weight reads the constant behind a dequantized value.
func (c *converter) weight(value string) (*weight, error) {
	dq := c.ix.Producer(value)
	if dq == nil || !dequantizes(dq) || c.g.Init(dq.In(0)) == nil {
		return nil, fmt.Errorf("%w: %q is no constant and not computed before it is read", ErrUnsupported, value)
	}
	t, s := c.g.Init(dq.In(0)), c.g.Init(dq.In(1))
	if s == nil || s.Check() != nil || t.Check() != nil || t.Len() == 0 || len(t.Dims) > maxRank {
		return nil, fmt.Errorf("%w: weight %q or its scale", ErrUnsupported, dq.In(0))
	}
	scale, err := s.F32()
	if err != nil {
		return nil, err
	}
	w := &weight{name: dq.In(0), dims: dims32(t.Dims), typ: int8Type, data: t.Data, scale: scale}
	if a := dq.Int("axis", 1); len(scale) != 1 {
		if a < 0 {
			a += int64(len(t.Dims))
		}
		if a < 0 || a >= int64(len(t.Dims)) || len(s.Dims) != 1 || t.Dims[a] != int64(len(scale)) {
			return nil, fmt.Errorf("%w: weight %q has scales by blocks (one by tensor or by channel is taken)", ErrUnsupported, w.name)
		}
		w.axis = int(a)
	}
	zeros := make([]byte, len(scale)*int(t.Type.Bytes(1)))
	if z := dq.In(2); z != "" {
		zt := c.g.Init(z)
		if zt == nil || zt.Type != t.Type || len(zt.Data) != len(zeros) {
			return nil, fmt.Errorf("%w: zero point of weight %q", ErrUnsupported, w.name)
		}
		zeros = zt.Data
	}
	if t.Type == tensor.Uint16 && len(scale) == 1 {
		w.typ, w.zero = int16Type, int64(tensor.View[uint16](&tensor.Tensor{Data: zeros})[0])-wideMiddle
		w.data = slices.Clone(t.Data)
		for i := 1; i < len(w.data); i += 2 { // little-endian
			w.data[i] ^= 0x80
		}
		return w, nil
	}
	for _, z := range zeros {
		if z != zeros[0] {
			return nil, fmt.Errorf("%w: zero points of weight %q differ", ErrUnsupported, w.name)
		}
	}
	switch t.Type {
	case tensor.Int8:
		w.zero = int64(int8(zeros[0]))
	case tensor.Uint8:
		w.zero = int64(zeros[0]) - 128
		w.data = make([]byte, len(t.Data))
		for i, b := range t.Data {
			w.data[i] = b ^ 0x80
		}
	case tensor.Int32:
		if zeros[0] != 0 {
			return nil, fmt.Errorf("%w: bias %q has a zero point", ErrUnsupported, w.name)
		}
		w.typ = int32Type
	default:
		return nil, fmt.Errorf("%w: weight %q is %v (8 bits are taken: --scheme int8)", ErrUnsupported, w.name, t.Type)
	}
	return w, nil
}

// weightTensor makes the constant of a weight, reordered: its codes, or what they
// stand for. Codes read as float stay codes in the file and are dequantized once,
// when it is opened.
func (c *converter) weightTensor(w *weight, perm []int, codes bool) (int32, error) {
	shape := reorder(w.dims, perm)
	if w.typ == int32Type || w.typ == int16Type && !codes || w.zero != 0 && len(w.scale) > 1 { // neither can be dequantized there
		if codes {
			return 0, fmt.Errorf("%w: %q as codes", ErrUnsupported, w.name)
		}
		return c.once(w.name, float32Type, shape, perm, 4*int64(len(w.data))/w.typ.size(), func() (int32, error) {
			return c.add(&tensorDef{name: w.name, typ: float32Type, shape: shape, data: permute(tensor.From(w.floats()).Data, w.dims, perm, 4)}), nil
		})
	}
	t, err := c.once(w.name, w.typ, shape, perm, int64(len(w.data)), func() (int32, error) {
		q := &quantization{scale: w.scale, zero: w.zero}
		if len(w.scale) > 1 {
			q.axis = int32(w.axis)
			for i, p := range perm {
				if p == w.axis {
					q.axis = int32(i)
				}
			}
		}
		return c.add(&tensorDef{name: w.name, typ: w.typ, shape: shape, data: permute(w.data, w.dims, perm, int(w.typ.size())), quant: q}), nil
	})
	if err != nil || codes {
		return t, err
	}
	return c.once(w.name, float32Type, shape, perm, 0, func() (int32, error) {
		out := c.add(&tensorDef{name: w.name + "/float", typ: float32Type, shape: shape})
		c.emit(opDequantize, []int32{t}, out, empty(38))
		return out, nil
	})
}
