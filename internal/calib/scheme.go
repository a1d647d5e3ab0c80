package calib

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Range is the interval of real values that the codes are spread over.
type Range struct{ Lo, Hi float32 }

// WithZero returns the range extended to contain 0.
func (r Range) WithZero() Range { return Range{min(r.Lo, 0), max(r.Hi, 0)} }

// AbsMax returns max(|Lo|, |Hi|), which is never max(Lo, Hi).
func (r Range) AbsMax() float32 { return max(abs32(r.Lo), abs32(r.Hi)) }

// clamp limits r, which contains 0, to what was observed.
func (r Range) clamp(seen Range) Range {
	seen = seen.WithZero()
	return Range{max(r.Lo, seen.Lo), min(r.Hi, seen.Hi)}.WithZero()
}

func abs32(x float32) float32 { return math.Float32frombits(math.Float32bits(x) & absMask) }

// Scheme says which integer codes represent a tensor.
type Scheme struct {
	// Type is Uint8, Int8, Uint4, Int4, Uint16 or Int16.
	Type tensor.DType
	// Symmetric puts the zero point in the middle (0, or 128 for Uint8) and
	// leaves the lowest code unused: -127..127.
	Symmetric bool
	// Bits is the number of bits used, 0 for all that Type has.
	Bits int
	// ReduceRange uses one bit less, for CPUs without VNNI, whose 16-bit
	// intermediate sums saturate.
	ReduceRange bool
}

// U8 is the portable activation scheme: unsigned, asymmetric.
var U8 = Scheme{Type: tensor.Uint8}

// S8 is the weight (and TensorRT activation) scheme: signed, symmetric.
var S8 = Scheme{Type: tensor.Int8, Symmetric: true}

// Check returns ErrScheme for an element type or bit count without codes.
func (s Scheme) Check() error {
	switch s.Type {
	case tensor.Uint8, tensor.Int8, tensor.Uint4, tensor.Int4, tensor.Uint16, tensor.Int16:
	default:
		return fmt.Errorf("%w: element type %v, expected UINT8, INT8, UINT4, INT4, UINT16 or INT16", ErrScheme, s.Type)
	}
	if s.Bits < 0 || s.Bits == 1 || s.Bits > s.Type.Bits() {
		return fmt.Errorf("%w: %d bits in %v, expected 2 to %d (0: all)", ErrScheme, s.Bits, s.Type, s.Type.Bits())
	}
	if s.ReduceRange && s.CodeBits() < 2 {
		return fmt.Errorf("%w: no code is left of %d bits with a reduced range", ErrScheme, s.Bits)
	}
	return nil
}

// CodeBits returns how many bits a code uses, 2 to 16.
func (s Scheme) CodeBits() int {
	b := s.Bits
	if b <= 1 || b > 16 {
		if b = s.Type.Bits(); b <= 1 || b > 16 {
			b = 8
		}
	}
	if s.ReduceRange && b > 2 {
		b--
	}
	return b
}

func (s Scheme) signed() bool {
	return s.Type == tensor.Int8 || s.Type == tensor.Int4 || s.Type == tensor.Int16
}

// Codes returns the smallest and largest code in use.
func (s Scheme) Codes() (lo, hi int32) {
	n := int32(1) << s.CodeBits()
	switch {
	case s.signed() && s.Symmetric:
		return -(n/2 - 1), n/2 - 1
	case s.signed():
		return -n / 2, n/2 - 1
	case s.Symmetric:
		return 1, n - 1
	}
	return 0, n - 1
}

// QParams map codes to reals: x = Scale * (code - Zero).
type QParams struct {
	Scale float32 // > 0, finite, never denormal
	Zero  int32   // within Scheme.Codes
}

// minScale is the smallest normal float32: dividing by less overflows.
const minScale = 1.1754943508222875e-38

// ParamsFor returns the parameters that spread the codes of s over r, extended
// to contain 0. Zero is represented exactly, and every x in the range is at
// most Scale/2 (and rounding of the last place) from its nearest code's value.
// Ranges that are empty, NaN or infinite give valid parameters, too: NaN reads
// as 0, infinity as the largest float32.
func ParamsFor(r Range, s Scheme) QParams {
	lo, hi := math.Min(finite(r.Lo), 0), math.Max(finite(r.Hi), 0)
	qlo, qhi := s.Codes()
	if s.Symmetric {
		zero := (qlo + qhi) / 2
		return QParams{scaleUp(math.Max(-lo, hi), qhi-zero), zero}
	}
	if lo == 0 && hi == 0 {
		return QParams{1, 0}
	}
	scale := scaleUp(hi-lo, qhi-qlo)
	zero := math.RoundToEven(float64(qlo) - lo/float64(scale))
	return QParams{scale, int32(math.Max(float64(qlo), math.Min(zero, float64(qhi))))}
}

func finite(x float32) float64 {
	switch {
	case x != x:
		return 0
	case x > math.MaxFloat32:
		return math.MaxFloat32
	case x < -math.MaxFloat32:
		return -math.MaxFloat32
	}
	return float64(x)
}

// scaleUp returns the smallest valid float32 scale with n steps >= width; 1
// for an empty range.
func scaleUp(width float64, n int32) float32 {
	if width == 0 {
		return 1
	}
	s := float32(width / float64(n))
	if float64(s)*float64(n) < width {
		s = math.Nextafter32(s, math.MaxFloat32)
	}
	return max(s, minScale)
}

// Quantize returns the code of x: round half to even, saturate (ONNX
// QuantizeLinear). NaN gives the zero point.
func (q QParams) Quantize(x float32, s Scheme) int32 {
	lo, hi := s.Codes()
	v := math.RoundToEven(float64(x/q.Scale)) + float64(q.Zero)
	switch {
	case v != v:
		return q.Zero
	case v < float64(lo):
		return lo
	case v > float64(hi):
		return hi
	}
	return int32(v)
}

// Dequantize returns the value of a code.
func (q QParams) Dequantize(code int32) float32 { return q.Scale * float32(code-q.Zero) }
