//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

// LayerNorm normalises the rows of Input + Residual, [M, K] f32, over the last
// axis: y = (v - mean) / sqrt(variance + Epsilon) * Gamma + Beta. Any of Sum,
// Y and Q may be 0: what is not asked for is not written. Sum and Y may be
// Input or Residual.
type LayerNorm struct {
	M, K     int64
	Epsilon  float32
	Input    Ptr // [M, K]
	Residual Ptr // [M, K] or 0
	Gamma    Ptr // [K]
	Beta     Ptr // [K] or 0
	Sum      Ptr // [M, K]: Input + Residual
	Y        Ptr // [M, K]

	// The rows of y as QuantizeRows writes them, bit for bit.
	Divisor Ptr // [K] or 0
	Q       Ptr // [M, LdQ] s8
	LdQ     int64
	Scale   Ptr // [M] f32
	Zero    Ptr // [M] s32
}

// Run launches it.
func (l *LayerNorm) Run(s Stream) error {
	return check("layer norm", C.fb_layer_norm(at[C.float](l.Input), at[C.float](l.Residual), at[C.float](l.Gamma), at[C.float](l.Beta), C.int64_t(l.M), C.int64_t(l.K), C.float(l.Epsilon),
		at[C.float](l.Sum), at[C.float](l.Y), at[C.float](l.Divisor), at[C.int8_t](l.Q), C.int64_t(l.LdQ), at[C.float](l.Scale), at[C.int32_t](l.Zero), stream(s)))
}

// Softmax writes the softmax of each row of x [m, k] f32 to y, which may be x.
// A row of minus infinities becomes uniform.
func Softmax(x Ptr, m, k int64, y Ptr, s Stream) error {
	return check("softmax", C.fb_softmax(at[C.float](x), C.int64_t(m), C.int64_t(k), at[C.float](y), stream(s)))
}
