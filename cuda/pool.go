//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

// Pool is the geometry of a pooling. Pads are at the start and at the end; a
// window may reach beyond the latter (ceil_mode).
type Pool struct {
	N, H, W, C, OH, OW, KH, KW     int
	StrideH, StrideW               int
	PadH, PadW, PadHEnd, PadWEnd   int
	Average, CountIncludePad, NHWC bool
}

func (p *Pool) c() *C.fb_pool {
	return &C.fb_pool{
		n: C.int(p.N), h: C.int(p.H), w: C.int(p.W), c: C.int(p.C), oh: C.int(p.OH), ow: C.int(p.OW), kh: C.int(p.KH), kw: C.int(p.KW),
		stride_h: C.int(p.StrideH), stride_w: C.int(p.StrideW), pad_h: C.int(p.PadH), pad_w: C.int(p.PadW), pad_h_end: C.int(p.PadHEnd), pad_w_end: C.int(p.PadWEnd),
		average: cbool(p.Average), count_include_pad: cbool(p.CountIncludePad), nhwc: cbool(p.NHWC),
	}
}

// PoolF32 pools x [n, c, h, w] f32, or [n, h, w, c].
func PoolF32(p Pool, x, y Ptr, s Stream) error {
	return check("pool", C.fb_pool_f32(p.c(), at[C.float](x), at[C.float](y), stream(s)))
}

// PoolS8 pools x [n, h, w, c] s8 with one grid into y with another; the zero
// points are those of s8.
func PoolS8(p Pool, x Ptr, xScale float32, xZero int32, y Ptr, yScale float32, yZero int32, s Stream) error {
	return check("pool", C.fb_pool_s8(p.c(), at[C.int8_t](x), C.float(xScale), C.int32_t(xZero), at[C.int8_t](y), C.float(yScale), C.int32_t(yZero), stream(s)))
}

// GlobalAverage writes the mean of each plane of x [n, c, hw] f32, or
// [n, hw, c], to y [n, c].
func GlobalAverage(x Ptr, n, c int, hw int64, nhwc bool, y Ptr, s Stream) error {
	return check("global average", C.fb_global_average_f32(at[C.float](x), C.int(n), C.int(c), C.int64_t(hw), cbool(nhwc), at[C.float](y), stream(s)))
}

// MaskedMean writes sum(x mask) / max(sum(mask), 1e-9) over the tokens of
// x [b, t, d] f32, mask [b, t] f32, to y [b, d].
func MaskedMean(x, mask Ptr, b, t, d int64, y Ptr, s Stream) error {
	return check("masked mean", C.fb_masked_mean(at[C.float](x), at[C.float](mask), C.int64_t(b), C.int64_t(t), C.int64_t(d), at[C.float](y), stream(s)))
}
