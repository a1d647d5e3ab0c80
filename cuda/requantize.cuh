// requantize.cuh: many values to one s8 grid, at a third of the instructions of
// fb_quantize_u8 and with the same result, q = clamp(rne(y / scale) + zero).
#pragma once
#include "common.cuh"

struct FbRequantize {
  float scale, inverse, lo, hi; // lo, hi: what maps to the ends of the grid, or to those of an activation
  int32_t zero;
};

constexpr float kMinGridScale = 0x1p-100f, kMaxGridScale = 0x1p100f; // what follows neither over- nor underflows between

static inline bool fb_bad_grid(float scale, int32_t zero) { return !(scale >= kMinGridScale && scale <= kMaxGridScale) || zero < -128 || zero > 127; }

// ReLU and Clip come with the clamping: fold says that the caller need not apply act.
static inline FbRequantize fb_requantizer(float scale, int32_t zero, int act, float act_min, float act_max, bool *fold) {
  FbRequantize r{scale, 1.f / scale, (float)(-128 - zero) * scale, (float)(127 - zero) * scale, zero};
  *fold = act == FB_ACT_NONE || act == FB_ACT_RELU || act == FB_ACT_CLIP;
  auto clamp = [&r](float v) { return fminf(fmaxf(v, r.lo), r.hi); };
  if (act == FB_ACT_RELU) r.lo = clamp(0.f);
  if (act == FB_ACT_CLIP) {
    const float lo = clamp(act_min), hi = clamp(act_max);
    r.lo = lo, r.hi = hi;
  }
  return r;
}

// The low byte is the s8 value. Division: a product with the rounded inverse and one correction by the remainder
// (Markstein 1990). That this rounds to the same integer as the IEEE quotient was tried for every mantissa of the scale
// and the values within 2 ulp of every k + 1/2, |k| < 256. The sum with 1.5 * 2^23 has the integer, rounded to nearest
// even, in its low bits: a conversion instruction runs at a quarter of the rate.
__device__ __forceinline__ uint32_t fb_requantize(const FbRequantize &r, float y) {
  y = fminf(fmaxf(y, r.lo), r.hi); // NaN becomes lo
  float q = fb_mul(y, r.inverse);
  q = fmaf(fmaf(-q, r.scale, y), r.inverse, q);
  return (uint32_t)(__float_as_int(fb_add(q, 12582912.f)) + r.zero);
}
// Four of them in a word, the first in the low byte.
__device__ __forceinline__ uint32_t fb_requantize4(const FbRequantize &r, const float (&y)[4]) {
  const uint32_t lo = __byte_perm(fb_requantize(r, y[0]), fb_requantize(r, y[1]), 0x0040), hi = __byte_perm(fb_requantize(r, y[2]), fb_requantize(r, y[3]), 0x0040);
  return __byte_perm(lo, hi, 0x5410);
}
