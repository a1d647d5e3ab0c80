//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// MaxRank is the largest rank of a View.
const MaxRank = C.FB_RANK

// View says how a tensor's elements lie: Strides in elements, 0 broadcasts,
// negative ones read backwards.
type View struct {
	Rank          int
	Dims, Strides [MaxRank]int64 // the first Rank are used, outermost first
}

// NewView returns a view; dims and strides have one length, at most MaxRank.
func NewView(dims, strides []int64) (View, error) {
	if len(dims) != len(strides) || len(dims) > MaxRank {
		return View{}, fmt.Errorf("view of %d dimensions and %d strides, at most %d: %w", len(dims), len(strides), MaxRank, ErrArgument)
	}
	v := View{Rank: len(dims)}
	copy(v.Dims[:], dims)
	copy(v.Strides[:], strides)
	return v, nil
}

// Dense returns the view of a row-major tensor; it panics on more than MaxRank dimensions.
func Dense(dims ...int64) View {
	v := View{Rank: len(dims)}
	copy(v.Dims[:v.Rank], dims)
	stride := int64(1)
	for i := v.Rank - 1; i >= 0; i-- {
		v.Strides[i] = stride
		stride *= dims[i]
	}
	return v
}

// c is v for C, which reads it during the call only.
func (v *View) c() *C.fb_view {
	c := C.fb_view{rank: C.int(v.Rank)}
	for i := range v.Dims {
		c.dims[i], c.strides[i] = C.int64_t(v.Dims[i]), C.int64_t(v.Strides[i])
	}
	return &c
}

// Op is an elementwise operation, named as its ONNX operator.
type Op int32

// Operations of Binary.
const (
	Add     Op = C.FB_ADD
	Sub     Op = C.FB_SUB
	Mul     Op = C.FB_MUL
	Div     Op = C.FB_DIV
	Pow     Op = C.FB_POW
	Min     Op = C.FB_MIN
	Max     Op = C.FB_MAX
	Equal   Op = C.FB_EQUAL
	Less    Op = C.FB_LESS
	Greater Op = C.FB_GREATER
	And     Op = C.FB_AND
	Or      Op = C.FB_OR
)

// Operations of Unary.
const (
	Abs         Op = C.FB_ABS
	Neg         Op = C.FB_NEG
	Exp         Op = C.FB_EXP
	Log         Op = C.FB_LOG
	Sqrt        Op = C.FB_SQRT
	Reciprocal  Op = C.FB_RECIPROCAL
	Erf         Op = C.FB_ERF
	Tanh        Op = C.FB_TANH
	Sigmoid     Op = C.FB_SIGMOID
	Not         Op = C.FB_NOT // of Bool
	Floor       Op = C.FB_FLOOR
	Ceil        Op = C.FB_CEIL
	Sin         Op = C.FB_SIN
	Cos         Op = C.FB_COS
	HardSigmoid Op = C.FB_HARDSIGMOID
	HardSwish   Op = C.FB_HARDSWISH
	LeakyRelu   Op = C.FB_LEAKY_RELU
)

var opNames = [...]string{
	Add: "Add", Sub: "Sub", Mul: "Mul", Div: "Div", Pow: "Pow", Min: "Min", Max: "Max", Equal: "Equal", Less: "Less", Greater: "Greater", And: "And", Or: "Or",
	Abs: "Abs", Neg: "Neg", Exp: "Exp", Log: "Log", Sqrt: "Sqrt", Reciprocal: "Reciprocal", Erf: "Erf", Tanh: "Tanh", Sigmoid: "Sigmoid", Not: "Not", Floor: "Floor", Ceil: "Ceil",
	Sin: "Sin", Cos: "Cos", HardSigmoid: "HardSigmoid", HardSwish: "HardSwish", LeakyRelu: "LeakyRelu",
}

func (o Op) String() string {
	if o < 0 || int(o) >= len(opNames) || opNames[o] == "" {
		return fmt.Sprintf("Op(%d)", int32(o))
	}
	return opNames[o]
}

func raw(p Ptr) unsafe.Pointer { return unsafe.Pointer(at[byte](p)) }

// Binary writes op of a and b to y, dense over out's dimensions; a and b of
// type t are read over them with the strides of av and bv. Comparisons, And and
// Or write Bool. fewbit_cuda.h says what integers and NaN do.
func Binary(op Op, t Type, out View, a Ptr, av View, b Ptr, bv View, y Ptr, s Stream) error {
	return check(op.String(), C.fb_binary(C.int(op), C.int(t), out.c(), raw(a), av.c(), raw(b), bv.c(), raw(y), stream(s)))
}

// Unary writes op of n values of x to y, both f32, Bool for Not. p0 and p1 are
// alpha and beta of HardSigmoid, p0 alpha of LeakyRelu.
func Unary(op Op, x Ptr, n int64, p0, p1 float32, y Ptr, s Stream) error {
	if op < Abs {
		return fmt.Errorf("unary %v: %w", op, ErrArgument)
	}
	return check(op.String(), C.fb_unary(C.int(op), raw(x), C.int64_t(n), C.float(p0), C.float(p1), raw(y), stream(s)))
}

// Activate writes an activation of n values of x to y, both f32; lo and hi are
// the bounds of Clip.
func Activate(a Act, x Ptr, n int64, lo, hi float32, y Ptr, s Stream) error {
	return check(a.String(), C.fb_unary(C.int(a), raw(x), C.int64_t(n), C.float(lo), C.float(hi), raw(y), stream(s)))
}

// Where writes a or b, by cond (Bool), to y, dense over out's dimensions. An
// element of a, b and y has size bytes: 1, 4 or 8.
func Where(size int, out View, cond Ptr, cv View, a Ptr, av View, b Ptr, bv View, y Ptr, s Stream) error {
	return check("where", C.fb_where(C.int(size), out.c(), at[C.uint8_t](cond), cv.c(), raw(a), av.c(), raw(b), bv.c(), raw(y), stream(s)))
}

// Cast converts n values of x, as ONNX Runtime does on x86-64 (fewbit_cuda.h).
func Cast(from, to Type, x Ptr, n int64, y Ptr, s Stream) error {
	return check(fmt.Sprintf("cast %v to %v", from, to), C.fb_cast(C.int(from), C.int(to), raw(x), C.int64_t(n), raw(y), stream(s)))
}
