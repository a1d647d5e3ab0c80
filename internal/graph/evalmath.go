package graph

import (
	"bytes"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// number is an element type that arithmetic folding knows. Half-precision
// tensors are computed in float32 and rounded, as ONNX Runtime's CPU kernels do.
type number interface {
	float32 | float64 | int32 | int64
}

// binary evaluates Add, Sub, Mul, Div and Pow, and Mod of integers.
func (c *evalCall) binary() *tensor.Tensor {
	a, b := c.arg(0), c.arg(1)
	if len(c.in) != 2 || a == nil || b == nil {
		return nil
	}
	if c.node.Op == "Pow" && a.Type != b.Type {
		of := b
		if b = c.converted(of, a.Type); b == nil {
			return nil
		}
		if back := c.converted(b, of.Type); back == nil || !bytes.Equal(back.Data, of.Data) {
			return nil // the exponent is no number of a's type
		}
	}
	if a.Type != b.Type {
		return nil
	}
	switch a.Type {
	case tensor.Float32:
		return zip(c, a, b, floatOp[float32](c.node.Op))
	case tensor.Float64:
		return zip(c, a, b, floatOp[float64](c.node.Op))
	case tensor.Int32:
		return zip(c, a, b, intOp[int32](c.node.Op))
	case tensor.Int64:
		return zip(c, a, b, intOp[int64](c.node.Op))
	case tensor.Float16, tensor.BFloat16:
		return c.half(func(f []*tensor.Tensor) *tensor.Tensor { return zip(c, f[0], f[1], floatOp[float32](c.node.Op)) })
	}
	return nil
}

// half runs f on the inputs as float32 and rounds the result to the first
// input's type.
func (c *evalCall) half(f func([]*tensor.Tensor) *tensor.Tensor) *tensor.Tensor {
	in := make([]*tensor.Tensor, len(c.in))
	for i, t := range c.in {
		if in[i] = c.converted(t, tensor.Float32); in[i] == nil {
			return nil
		}
	}
	r := f(in)
	if r == nil || r.Type != tensor.Float32 {
		return r
	}
	return c.converted(r, c.in[0].Type)
}

func floatOp[T float32 | float64](op string) func(x, y T) (T, bool) {
	switch op {
	case "Add":
		return func(x, y T) (T, bool) { return x + y, true }
	case "Sub":
		return func(x, y T) (T, bool) { return x - y, true }
	case "Mul":
		return func(x, y T) (T, bool) { return x * y, true }
	case "Div":
		return func(x, y T) (T, bool) { return x / y, true }
	case "Pow":
		return func(x, y T) (T, bool) {
			switch y {
			case 2: // ONNX Runtime multiplies
				return x * x, true
			case 3:
				return x * x * x, true
			}
			return T(math.Pow(float64(x), float64(y))), true
		}
	case "Min":
		return func(x, y T) (T, bool) { return min(x, y), x == x && y == y } // NaN: runtimes differ
	case "Max":
		return func(x, y T) (T, bool) { return max(x, y), x == x && y == y }
	}
	return nil
}

func intOp[T int32 | int64](op string) func(x, y T) (T, bool) {
	switch op {
	case "Add":
		return func(x, y T) (T, bool) { return x + y, true }
	case "Sub":
		return func(x, y T) (T, bool) { return x - y, true }
	case "Mul":
		return func(x, y T) (T, bool) { return x * y, true }
	case "Div":
		return func(x, y T) (T, bool) {
			if y == 0 || y == -1 { // undefined, or may overflow
				return -x, y == -1 && -x != x
			}
			return x / y, true
		}
	case "Mod": // where the attribute fmod makes no difference
		return func(x, y T) (T, bool) {
			if x < 0 || y <= 0 {
				return 0, false
			}
			return x % y, true
		}
	case "Pow":
		return func(x, y T) (T, bool) {
			p := math.Pow(float64(x), float64(y))
			return T(p), y >= 0 && math.Abs(p) < 1<<31
		}
	case "Min":
		return func(x, y T) (T, bool) { return min(x, y), true }
	case "Max":
		return func(x, y T) (T, bool) { return max(x, y), true }
	}
	return nil
}

// zip applies f to the broadcast elements of a and b. f says whether its
// result is defined; one that is not leaves the whole node alone.
func zip[T number | uint8 | bool, R number | uint8 | bool](c *evalCall, a, b *tensor.Tensor, f func(x, y T) (R, bool)) *tensor.Tensor {
	dims, ok := broadcast(a.Dims, b.Dims)
	if !ok || f == nil {
		return nil
	}
	r := c.alloc(tensor.TypeOf[R](), dims)
	if r == nil || len(r.Data) == 0 {
		return r
	}
	x, y, z := tensor.View[T](a), tensor.View[T](b), tensor.View[R](r)
	if slices.Equal(a.Dims, b.Dims) {
		for i := range z {
			if z[i], ok = f(x[i], y[i]); !ok {
				return nil
			}
		}
		return r
	}
	sa, sb := broadcastStrides(a.Dims, dims), broadcastStrides(b.Dims, dims)
	last := len(dims) - 1
	cols := int(dims[last])
	da, db := int(sa[last]), int(sb[last])
	walk(dims[:last], [][]int64{sa[:last], sb[:last]}, func(at []int64) bool {
		i, j := int(at[0]), int(at[1])
		for k := range cols {
			if z[k], ok = f(x[i], y[j]); !ok {
				return false
			}
			i += da
			j += db
		}
		z = z[cols:]
		return true
	})
	if !ok {
		return nil
	}
	return r
}

// unary evaluates Neg, Abs, Sqrt, Reciprocal, Floor and Ceil.
func (c *evalCall) unary() *tensor.Tensor {
	t := c.arg(0)
	if len(c.in) != 1 || t == nil {
		return nil
	}
	switch t.Type {
	case tensor.Float32:
		return each(c, t, floatUnary[float32](c.node.Op))
	case tensor.Float64:
		return each(c, t, floatUnary[float64](c.node.Op))
	case tensor.Int32:
		return each(c, t, intUnary[int32](c.node.Op))
	case tensor.Int64:
		return each(c, t, intUnary[int64](c.node.Op))
	case tensor.Float16, tensor.BFloat16:
		return c.half(func(f []*tensor.Tensor) *tensor.Tensor { return each(c, f[0], floatUnary[float32](c.node.Op)) })
	}
	return nil
}

func floatUnary[T float32 | float64](op string) func(T) T {
	switch op {
	case "Neg":
		return func(x T) T { return -x }
	case "Abs":
		return func(x T) T { return T(math.Abs(float64(x))) }
	case "Sqrt": // rounding the double root gives the correctly rounded float root
		return func(x T) T { return T(math.Sqrt(float64(x))) }
	case "Reciprocal":
		return func(x T) T { return 1 / x }
	case "Floor":
		return func(x T) T { return T(math.Floor(float64(x))) }
	case "Ceil":
		return func(x T) T { return T(math.Ceil(float64(x))) }
	}
	return nil
}

func intUnary[T int32 | int64](op string) func(T) T {
	switch op {
	case "Neg":
		return func(x T) T { return -x }
	case "Abs":
		return func(x T) T { return max(x, -x) }
	}
	return nil
}

func each[T, R number | uint8 | bool](c *evalCall, t *tensor.Tensor, f func(T) R) *tensor.Tensor {
	if f == nil {
		return nil
	}
	r := c.alloc(tensor.TypeOf[R](), t.Dims)
	if r == nil {
		return nil
	}
	z := tensor.View[R](r)
	for i, x := range tensor.View[T](t) {
		z[i] = f(x)
	}
	return r
}

// variadic evaluates Min and Max.
func (c *evalCall) variadic() *tensor.Tensor {
	if len(c.in) == 0 || c.in[0] == nil {
		return nil
	}
	r := c.in[0]
	if len(c.in) == 1 {
		return c.identity()
	}
	for _, t := range c.in[1:] {
		if t == nil || r == nil || t.Type != r.Type {
			return nil
		}
		switch t.Type {
		case tensor.Float32:
			r = zip(c, r, t, floatOp[float32](c.node.Op))
		case tensor.Float64:
			r = zip(c, r, t, floatOp[float64](c.node.Op))
		case tensor.Int32:
			r = zip(c, r, t, intOp[int32](c.node.Op))
		case tensor.Int64:
			r = zip(c, r, t, intOp[int64](c.node.Op))
		default:
			return nil
		}
	}
	return r
}

// compare evaluates Equal, Greater, Less and their siblings.
func (c *evalCall) compare() *tensor.Tensor {
	a, b := c.arg(0), c.arg(1)
	if len(c.in) != 2 || a == nil || b == nil || a.Type != b.Type {
		return nil
	}
	switch a.Type {
	case tensor.Float32:
		return zip(c, a, b, comparison[float32](c.node.Op))
	case tensor.Float64:
		return zip(c, a, b, comparison[float64](c.node.Op))
	case tensor.Int32:
		return zip(c, a, b, comparison[int32](c.node.Op))
	case tensor.Int64:
		return zip(c, a, b, comparison[int64](c.node.Op))
	case tensor.Bool:
		if c.node.Op == "Equal" {
			return c.logic(func(x, y bool) bool { return x == y })
		}
	}
	return nil
}

func comparison[T number](op string) func(x, y T) (bool, bool) {
	switch op {
	case "Equal":
		return func(x, y T) (bool, bool) { return x == y, true }
	case "Greater":
		return func(x, y T) (bool, bool) { return x > y, true }
	case "Less":
		return func(x, y T) (bool, bool) { return x < y, true }
	case "GreaterOrEqual":
		return func(x, y T) (bool, bool) { return x >= y, true }
	case "LessOrEqual":
		return func(x, y T) (bool, bool) { return x <= y, true }
	}
	return nil
}

// logical evaluates And, Or and Xor.
func (c *evalCall) logical() *tensor.Tensor {
	a, b := c.arg(0), c.arg(1)
	if len(c.in) != 2 || a == nil || b == nil || a.Type != tensor.Bool || b.Type != tensor.Bool {
		return nil
	}
	switch c.node.Op {
	case "And":
		return c.logic(func(x, y bool) bool { return x && y })
	case "Or":
		return c.logic(func(x, y bool) bool { return x || y })
	}
	return c.logic(func(x, y bool) bool { return x != y })
}

// logic works on the bytes: a hostile file may hold a bool that is neither 0
// nor 1, which a Go bool must never be.
func (c *evalCall) logic(f func(x, y bool) bool) *tensor.Tensor {
	r := zip(c, asBytes(c.in[0]), asBytes(c.in[1]), func(x, y uint8) (bool, bool) { return f(x != 0, y != 0), true })
	return r
}

// asBytes is a bool tensor under the type of its bytes.
func asBytes(t *tensor.Tensor) *tensor.Tensor {
	return &tensor.Tensor{Type: tensor.Uint8, Dims: t.Dims, Data: t.Data}
}

func (c *evalCall) not() *tensor.Tensor {
	t := c.arg(0)
	if len(c.in) != 1 || t == nil || t.Type != tensor.Bool {
		return nil
	}
	return each(c, asBytes(t), func(x uint8) bool { return x == 0 })
}

func (c *evalCall) where() *tensor.Tensor {
	cond, a, b := c.arg(0), c.arg(1), c.arg(2)
	if cond == nil || a == nil || b == nil || cond.Type != tensor.Bool || a.Type != b.Type || a.Type.Bits()%8 != 0 {
		return nil
	}
	dims, ok := broadcast(a.Dims, b.Dims)
	if ok {
		dims, ok = broadcast(dims, cond.Dims)
	}
	if !ok {
		return nil
	}
	r := c.alloc(a.Type, dims)
	if r == nil || len(r.Data) == 0 {
		return r
	}
	size := int64(a.Type.Bits() / 8)
	dst := r.Data
	strides := [][]int64{broadcastStrides(cond.Dims, dims), broadcastStrides(a.Dims, dims), broadcastStrides(b.Dims, dims)}
	walk(dims, strides, func(at []int64) bool {
		src := b.Data[at[2]*size:]
		if cond.Data[at[0]] != 0 {
			src = a.Data[at[1]*size:]
		}
		copy(dst[:size], src)
		dst = dst[size:]
		return true
	})
	return r
}

// cast evaluates Cast between numeric types.
func (c *evalCall) cast() *tensor.Tensor {
	t := c.arg(0)
	if t == nil {
		return nil
	}
	return c.converted(t, tensor.DType(c.node.Int("to", 0)))
}

// converted returns t as type d: t itself when it is one already, nil when
// there is no rule or a float lies outside the integer type (undefined in C).
func (c *evalCall) converted(t *tensor.Tensor, d tensor.DType) *tensor.Tensor {
	switch {
	case t == nil:
		return nil
	case t.Type == d:
		return t
	}
	switch t.Type {
	case tensor.Float32:
		return convert(c, t, d, func(x float32) float64 { return float64(x) })
	case tensor.Float64:
		return convert(c, t, d, func(x float64) float64 { return x })
	case tensor.Float16:
		return convert(c, t, d, func(x uint16) float64 { return float64(tensor.F16ToF32(x)) })
	case tensor.BFloat16:
		return convert(c, t, d, func(x uint16) float64 { return float64(math.Float32frombits(uint32(x) << 16)) })
	case tensor.Bool, tensor.Uint8:
		return convert(c, t, d, func(x uint8) int64 {
			if t.Type == tensor.Bool && x != 0 {
				return 1
			}
			return int64(x)
		})
	case tensor.Int8:
		return convert(c, t, d, func(x int8) int64 { return int64(x) })
	case tensor.Int16:
		return convert(c, t, d, func(x int16) int64 { return int64(x) })
	case tensor.Uint16:
		return convert(c, t, d, func(x uint16) int64 { return int64(x) })
	case tensor.Int32:
		return convert(c, t, d, func(x int32) int64 { return int64(x) })
	case tensor.Uint32:
		return convert(c, t, d, func(x uint32) int64 { return int64(x) })
	case tensor.Int64:
		return convert(c, t, d, func(x int64) int64 { return x })
	}
	return nil
}

// convert goes through float64 from a float type, which holds every float, and
// through int64 from an integer type.
func convert[T tensor.Elem, M float64 | int64](c *evalCall, t *tensor.Tensor, d tensor.DType, widen func(T) M) *tensor.Tensor {
	switch d {
	case tensor.Float32:
		return put(c, t, d, widen, func(m M) (float32, bool) { return float32(m), true })
	case tensor.Float64:
		return put(c, t, d, widen, func(m M) (float64, bool) { return float64(m), true })
	case tensor.Float16:
		return put(c, t, d, widen, func(m M) (uint16, bool) { return tensor.F32ToF16(float32(m)), true })
	case tensor.BFloat16:
		return put(c, t, d, widen, func(m M) (uint16, bool) { return bfloat16(float32(m)), true })
	case tensor.Bool:
		return put(c, t, d, widen, func(m M) (bool, bool) { return m != 0, true })
	case tensor.Int8:
		return put(c, t, d, widen, func(m M) (int8, bool) { return int8(m), within(m, math.MinInt8, math.MaxInt8) })
	case tensor.Uint8:
		return put(c, t, d, widen, func(m M) (uint8, bool) { return uint8(m), within(m, 0, math.MaxUint8) })
	case tensor.Int32:
		return put(c, t, d, widen, func(m M) (int32, bool) { return int32(m), within(m, math.MinInt32, math.MaxInt32) })
	case tensor.Int64:
		return put(c, t, d, widen, func(m M) (int64, bool) { return int64(m), within(m, -1<<63, 1<<63-1024) })
	}
	return nil
}

// within reports whether m, truncated, lies in [lo, hi]. Integers always do:
// their conversion wraps, by definition.
func within[M float64 | int64](m M, lo, hi float64) bool {
	f, isFloat := any(m).(float64)
	return !isFloat || (f > lo-1 && f < hi+1)
}

func put[T tensor.Elem, M float64 | int64, R tensor.Elem](c *evalCall, t *tensor.Tensor, d tensor.DType, widen func(T) M, narrow func(M) (R, bool)) *tensor.Tensor {
	r := c.alloc(d, t.Dims)
	if r == nil {
		return nil
	}
	z := tensor.View[R](r)
	var ok bool
	for i, x := range tensor.View[T](t) {
		if z[i], ok = narrow(widen(x)); !ok {
			return nil
		}
	}
	return r
}

// bfloat16 rounds to nearest even.
func bfloat16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
