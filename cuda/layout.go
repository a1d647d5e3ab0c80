//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

// Copy writes y[dst strides] = x[src strides] over src's dimensions, elements of
// size bytes (1, 2, 4 or 8): transpose, slice, concat, expand. No place of y is
// written twice; x and y do not overlap.
func Copy(size int, src View, x Ptr, dst View, y Ptr, s Stream) error {
	return check("copy", C.fb_copy(C.int(size), src.c(), raw(x), dst.c(), raw(y), stream(s)))
}

// Gather reads x [outer, axis, inner] at ids [n] (s64) along axis into
// y [outer, n, inner]; an element has size bytes, 1, 2, 4 or 8. Negative ids
// count from the end; one outside reads index 0 and sets *fault (s32, may be 0)
// to 1.
func Gather(size int, x Ptr, outer, axis, inner int64, ids Ptr, n int64, y, fault Ptr, s Stream) error {
	return check("gather", C.fb_gather(C.int(size), raw(x), C.int64_t(outer), C.int64_t(axis), C.int64_t(inner), at[C.int64_t](ids), C.int64_t(n), raw(y), at[C.int32_t](fault), stream(s)))
}

// QuantizeToNHWC quantizes x [n, c, hw] f32 with one scale and u8 zero point to
// q [n, hw, ldc] s8; the channels past c hold the zero point.
func QuantizeToNHWC(x Ptr, n, c, hw int64, scale float32, zero uint8, q Ptr, ldc int64, s Stream) error {
	return check("quantize to NHWC", C.fb_nchw_to_nhwc_s8(at[C.float](x), C.int64_t(n), C.int64_t(c), C.int64_t(hw), C.float(scale), C.int32_t(zero), at[C.int8_t](q), C.int64_t(ldc), stream(s)))
}

// DequantizeToNCHW is its inverse; zero is the s8 zero point.
func DequantizeToNCHW(q Ptr, n, c, hw, ldc int64, scale float32, zero int32, x Ptr, s Stream) error {
	return check("dequantize to NCHW", C.fb_nhwc_s8_to_nchw(at[C.int8_t](q), C.int64_t(n), C.int64_t(c), C.int64_t(hw), C.int64_t(ldc), C.float(scale), C.int32_t(zero), at[C.float](x), stream(s)))
}
