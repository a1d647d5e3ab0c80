// Package tensor holds the one description of a dense tensor that every other
// package shares: an ONNX element type, dimensions and little-endian bytes.
//
// A Tensor never owns more than its slice header. The bytes may lie in a
// memory-mapped file (read-only: replace them, never write in place), in
// memory owned by ONNX Runtime, or on the Go heap.
package tensor

import (
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// DType is an ONNX element type, numbered as TensorProto.DataType
// (onnx.proto, message TensorProto).
type DType int32

// The element types of onnx.proto that fewbit reads.
const (
	Undefined      DType = 0
	Float32        DType = 1
	Uint8          DType = 2
	Int8           DType = 3
	Uint16         DType = 4
	Int16          DType = 5
	Int32          DType = 6
	Int64          DType = 7
	String         DType = 8
	Bool           DType = 9
	Float16        DType = 10
	Float64        DType = 11
	Uint32         DType = 12
	Uint64         DType = 13
	Complex64      DType = 14
	Complex128     DType = 15
	BFloat16       DType = 16
	Float8E4M3FN   DType = 17
	Float8E4M3FNUZ DType = 18
	Float8E5M2     DType = 19
	Float8E5M2FNUZ DType = 20
	Uint4          DType = 21
	Int4           DType = 22
	Float4E2M1     DType = 23
)

// MaxRank bounds the number of dimensions accepted from any file or request.
const MaxRank = 16

// MaxElems bounds the element count of one tensor (2^38: a terabyte of
// float32), far above any real tensor and far below overflow.
const MaxElems = 1 << 38

// ErrShape reports dimensions that are negative, too many, or whose product
// overflows.
var ErrShape = errors.New("bad tensor shape")

var dtypeInfo = map[DType]struct {
	name string // Open Inference Protocol name where it has one
	bits int
}{
	Float32: {"FP32", 32}, Uint8: {"UINT8", 8}, Int8: {"INT8", 8}, Uint16: {"UINT16", 16}, Int16: {"INT16", 16},
	Int32: {"INT32", 32}, Int64: {"INT64", 64}, String: {"BYTES", 0}, Bool: {"BOOL", 8}, Float16: {"FP16", 16},
	Float64: {"FP64", 64}, Uint32: {"UINT32", 32}, Uint64: {"UINT64", 64}, Complex64: {"COMPLEX64", 64},
	Complex128: {"COMPLEX128", 128}, BFloat16: {"BF16", 16}, Float8E4M3FN: {"FP8E4M3FN", 8},
	Float8E4M3FNUZ: {"FP8E4M3FNUZ", 8}, Float8E5M2: {"FP8E5M2", 8}, Float8E5M2FNUZ: {"FP8E5M2FNUZ", 8},
	Uint4: {"UINT4", 4}, Int4: {"INT4", 4}, Float4E2M1: {"FP4E2M1", 4},
}

// String returns the Open Inference Protocol's name of the type (FP32, INT64,
// BYTES ...), which is also the name used in errors and reports.
func (d DType) String() string {
	if i, ok := dtypeInfo[d]; ok {
		return i.name
	}
	return fmt.Sprintf("DTYPE(%d)", int32(d))
}

// ParseDType is the inverse of DType.String.
func ParseDType(s string) (DType, bool) {
	for d, i := range dtypeInfo {
		if i.name == s {
			return d, true
		}
	}
	return Undefined, false
}

// Bits returns the bits of one element, 0 for String and unknown types.
func (d DType) Bits() int { return dtypeInfo[d].bits }

// Bytes returns the bytes that n elements occupy (sub-byte types are packed,
// the last byte padded).
func (d DType) Bytes(n int64) int64 { return (n*int64(d.Bits()) + 7) / 8 }

// IsFloat reports whether d is a floating-point type of at least 16 bits.
func (d DType) IsFloat() bool {
	return d == Float32 || d == Float16 || d == Float64 || d == BFloat16
}

// Elems returns the product of dims, or ErrShape when a dimension is negative
// or the rank or product is out of bounds.
func Elems(dims []int64) (int64, error) {
	if len(dims) > MaxRank {
		return 0, fmt.Errorf("%w: rank %d, at most %d", ErrShape, len(dims), MaxRank)
	}
	n := int64(1)
	for _, d := range dims {
		if d < 0 {
			return 0, fmt.Errorf("%w: negative dimension %d", ErrShape, d)
		}
		if d != 0 && n > MaxElems/d {
			return 0, fmt.Errorf("%w: more than 2^38 elements", ErrShape)
		}
		n *= d
	}
	return n, nil
}

// Tensor is a dense row-major tensor.
type Tensor struct {
	Type DType
	Dims []int64
	// Data holds the elements, little-endian, row-major, without padding.
	// Empty for String tensors.
	Data []byte
	// Strings holds the elements of a String tensor.
	Strings [][]byte
}

// New allocates a zeroed tensor.
func New(t DType, dims ...int64) (*Tensor, error) {
	n, err := Elems(dims)
	if err != nil {
		return nil, err
	}
	if t == String {
		return &Tensor{Type: t, Dims: dims, Strings: make([][]byte, n)}, nil
	}
	if t.Bits() == 0 {
		return nil, fmt.Errorf("%w: unknown element type %d", ErrShape, int32(t))
	}
	return &Tensor{Type: t, Dims: dims, Data: alignedBytes(t.Bytes(n))}, nil
}

// alignedBytes returns n zeroed bytes aligned for 8-byte elements.
func alignedBytes(n int64) []byte {
	if n == 0 {
		return []byte{}
	}
	w := make([]uint64, (n+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), n)
}

// Elem is a Go type with a fixed ONNX element type.
type Elem interface {
	~float32 | ~float64 | ~uint8 | ~int8 | ~uint16 | ~int16 | ~uint32 | ~int32 | ~uint64 | ~int64 | ~bool
}

// TypeOf returns the element type of T.
func TypeOf[T Elem]() DType {
	var z T
	switch any(z).(type) {
	case float32:
		return Float32
	case float64:
		return Float64
	case uint8:
		return Uint8
	case int8:
		return Int8
	case uint16:
		return Uint16
	case int16:
		return Int16
	case uint32:
		return Uint32
	case int32:
		return Int32
	case uint64:
		return Uint64
	case int64:
		return Int64
	case bool:
		return Bool
	}
	return Undefined
}

// From wraps v without copying: the tensor and v share memory.
func From[T Elem](v []T, dims ...int64) *Tensor {
	t := &Tensor{Type: TypeOf[T](), Dims: dims}
	if len(v) > 0 {
		t.Data = unsafe.Slice((*byte)(unsafe.Pointer(&v[0])), len(v)*int(unsafe.Sizeof(v[0])))
	} else {
		t.Data = []byte{}
	}
	return t
}

// View returns the elements as []T. It shares memory with t when the bytes are
// aligned for T and copies otherwise (raw_data inside an ONNX file has no
// alignment), so never write through it. The caller must have checked that
// t.Type is T's type; bytes past a whole element are ignored.
func View[T Elem](t *Tensor) []T {
	var z T
	size := int(unsafe.Sizeof(z))
	n := len(t.Data) / size
	if n == 0 {
		return nil
	}
	p := unsafe.Pointer(&t.Data[0])
	if uintptr(p)%unsafe.Alignof(z) == 0 {
		return unsafe.Slice((*T)(p), n)
	}
	c := make([]T, n)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c[0])), n*size), t.Data)
	return c
}

// F32 returns the elements as float32, sharing memory where View does, and
// converting float64, float16 and bfloat16. Other types return ErrShape.
func (t *Tensor) F32() ([]float32, error) {
	switch t.Type {
	case Float32:
		return View[float32](t), nil
	case Float64:
		v := View[float64](t)
		r := make([]float32, len(v))
		for i, x := range v {
			r[i] = float32(x)
		}
		return r, nil
	case Float16, BFloat16:
		v := View[uint16](&Tensor{Type: Uint16, Data: t.Data})
		r := make([]float32, len(v))
		for i, x := range v {
			if t.Type == Float16 {
				r[i] = F16ToF32(x)
			} else {
				r[i] = math.Float32frombits(uint32(x) << 16)
			}
		}
		return r, nil
	}
	return nil, fmt.Errorf("%w: %v tensor read as FP32", ErrShape, t.Type)
}

// Ints returns the elements of an INT64 tensor, sharing memory where View does, or of
// an INT32 one, converted; false for other types.
func (t *Tensor) Ints() ([]int64, bool) {
	switch t.Type {
	case Int64:
		return View[int64](t), true
	case Int32:
		v := View[int32](t)
		r := make([]int64, len(v))
		for i, x := range v {
			r[i] = int64(x)
		}
		return r, true
	}
	return nil, false
}

// Len returns the number of elements by Dims, or 0 when Dims are invalid.
func (t *Tensor) Len() int64 {
	n, err := Elems(t.Dims)
	if err != nil {
		return 0
	}
	return n
}

// Check returns an error unless the bytes are exactly as long as Type and Dims
// say. Every tensor from a file or request passes it before use.
func (t *Tensor) Check() error {
	n, err := Elems(t.Dims)
	if err != nil {
		return err
	}
	if t.Type == String {
		if int64(len(t.Strings)) != n {
			return fmt.Errorf("%w: %d strings for dimensions %v", ErrShape, len(t.Strings), t.Dims)
		}
		return nil
	}
	if t.Type.Bits() == 0 {
		return fmt.Errorf("%w: unknown element type %d", ErrShape, int32(t.Type))
	}
	if want := t.Type.Bytes(n); int64(len(t.Data)) != want {
		return fmt.Errorf("%w: %v%v needs %d bytes, got %d", ErrShape, t.Type, t.Dims, want, len(t.Data))
	}
	return nil
}

// Clone returns a deep copy on the Go heap.
func (t *Tensor) Clone() *Tensor {
	c := &Tensor{Type: t.Type, Dims: append([]int64(nil), t.Dims...)}
	if t.Type == String {
		c.Strings = make([][]byte, len(t.Strings))
		for i, s := range t.Strings {
			c.Strings[i] = append([]byte(nil), s...)
		}
		return c
	}
	c.Data = alignedBytes(int64(len(t.Data)))
	copy(c.Data, t.Data)
	return c
}

// F16ToF32 converts an IEEE 754 binary16 to float32, exactly.
func F16ToF32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	man := uint32(h & 0x3ff)
	switch {
	case exp == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | man<<13)
	case exp == 0:
		f := float32(man) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(f) | sign)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | man<<13)
}

// F32ToBF16 rounds to the nearest bfloat16, half to even; NaN stays NaN.
func F32ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// F32ToF16 converts to IEEE 754 binary16, rounding to nearest even; values
// past 65504 become infinity.
func F32ToF16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	abs := b & 0x7fffffff
	switch {
	case abs > 0x7f800000: // NaN: keep it quiet
		return sign | 0x7e00
	case abs >= 0x477ff000: // rounds past 65504
		return sign | 0x7c00
	case abs < 0x38800000: // subnormal half: the units are 2^-24
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(abs))*(1<<24)))
	}
	abs += 0xfff + (abs >> 13 & 1)
	return sign | uint16((abs-0x38000000)>>13)
}
