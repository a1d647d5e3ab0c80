//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

// QuantizeRows quantizes each row of x [m, k] f32 with its own grid: q [m, ldq]
// s8 with zeros in the padding, scale [m] f32, zero [m] s32. divisor [k] may be 0.
func QuantizeRows(x Ptr, m, k int64, divisor, q Ptr, ldq int64, scale, zero Ptr, s Stream) error {
	return check("quantize rows", C.fb_quantize_rows(at[C.float](x), C.int64_t(m), C.int64_t(k), at[C.float](divisor), at[C.int8_t](q), C.int64_t(ldq), at[C.float](scale), at[C.int32_t](zero), stream(s)))
}

// DequantizeRows is its inverse, x dense. zero may be 0, for rows without zero points.
func DequantizeRows(q Ptr, m, k, ldq int64, scale, zero, x Ptr, s Stream) error {
	return check("dequantize rows", C.fb_dequantize_rows(at[C.int8_t](q), C.int64_t(m), C.int64_t(k), C.int64_t(ldq), at[C.float](scale), at[C.int32_t](zero), at[C.float](x), stream(s)))
}

// QuantizeTensor quantizes x [m, k] f32 with one scale and u8 zero point.
func QuantizeTensor(x Ptr, m, k int64, divisor Ptr, scale float32, zero uint8, q Ptr, ldq int64, s Stream) error {
	return check("quantize tensor", C.fb_quantize_tensor(at[C.float](x), C.int64_t(m), C.int64_t(k), at[C.float](divisor), C.float(scale), C.int32_t(zero), at[C.int8_t](q), C.int64_t(ldq), stream(s)))
}

// QuantizeChannels quantizes x [outer, c, inner] symmetrically with scale [c].
func QuantizeChannels(x Ptr, outer, c, inner int64, scale, q Ptr, s Stream) error {
	return check("quantize channels", C.fb_quantize_channels(at[C.float](x), C.int64_t(outer), C.int64_t(c), C.int64_t(inner), at[C.float](scale), at[C.int8_t](q), stream(s)))
}

// DequantizeChannels is its inverse.
func DequantizeChannels(q Ptr, outer, c, inner int64, scale, x Ptr, s Stream) error {
	return check("dequantize channels", C.fb_dequantize_channels(at[C.int8_t](q), C.int64_t(outer), C.int64_t(c), C.int64_t(inner), at[C.float](scale), at[C.float](x), stream(s)))
}

// DequantizeTensor writes x = (q - zero) * scale for n values; zero is the s8 zero point.
func DequantizeTensor(q Ptr, n int64, scale float32, zero int32, x Ptr, s Stream) error {
	return check("dequantize tensor", C.fb_dequantize_tensor(at[C.int8_t](q), C.int64_t(n), C.float(scale), C.int32_t(zero), at[C.float](x), stream(s)))
}

// QuantizeBlocksS4 packs x [n, k] f32 into INT4 blocks along k: q [n, k/2], scale [n, k/block].
func QuantizeBlocksS4(x Ptr, n, k int64, block int, q, scale Ptr, s Stream) error {
	return check("quantize blocks", C.fb_quantize_blocks_s4(at[C.float](x), C.int64_t(n), C.int64_t(k), C.int(block), at[C.uint8_t](q), at[C.float](scale), stream(s)))
}

// DequantizeBlocksS4 is its inverse.
func DequantizeBlocksS4(q, scale Ptr, n, k int64, block int, x Ptr, s Stream) error {
	return check("dequantize blocks", C.fb_dequantize_blocks_s4(at[C.uint8_t](q), at[C.float](scale), C.int64_t(n), C.int64_t(k), C.int(block), at[C.float](x), stream(s)))
}
