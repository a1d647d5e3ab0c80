// What the products on 64-bit Arm share: quantizing rows, and what follows the
// sums. Each file that includes it gets its own copy.
#pragma once
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "int8.hpp"
#include "lanes.hpp"

namespace fewbit {
namespace {

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  const float32x4_t largest = vdupq_n_f32(std::numeric_limits<float>::max());
  for (int64_t r = r0; r < r1; r++, codes += kp, scales++) {
    const float *x = p.x + r * k;
    const auto at = [&](int64_t i) { // lanes beyond the row are 0
      float v[4] = {}, d[4] = {1, 1, 1, 1};
      const float *from = x + i, *by = p.divisor ? p.divisor + i : d;
      if (const int64_t n = k - i; n < 4) {
        if (n > 0) std::copy_n(from, n, v);
        if (n > 0 && p.divisor) std::copy_n(by, n, d);
        from = v, by = d;
      }
      return p.divisor ? vdivq_f32(vld1q_f32(from), vld1q_f32(by)) : vld1q_f32(from);
    };
    float32x4_t lo = vdupq_n_f32(0), hi = lo;
    uint32x4_t usual = vdupq_n_u32(~0u);
    for (int64_t i = 0; i < k; i += 4) {
      const float32x4_t v = at(i);
      usual = vandq_u32(usual, vcaleq_f32(v, largest));
      lo = vminq_f32(lo, v), hi = vmaxq_f32(hi, v);
    }
    const float low = vminvq_f32(lo), width = vmaxvq_f32(hi) - low;
    if (vminvq_u32(usual) == 0 || !(width <= std::numeric_limits<float>::max())) {
      *scales = {std::numeric_limits<float>::quiet_NaN(), 0};
      std::fill(codes, codes + kp, uint8_t(0));
      continue;
    }
    float scale = width / 255;
    if (scale == 0) scale = 1;
    *scales = {scale, std::clamp(vcvtns_s32_f32(-low / scale), 0, 255)};
    const float32x4_t step = vdupq_n_f32(scale);
    const int32x4_t zero = vdupq_n_s32(scales->zero);
    const auto four = [&](int64_t i) { return vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(vdivq_f32(at(i), step)), zero)); };
    for (int64_t i = 0; i < kp; i += 8) // both narrowings saturate
      vst1_u8(codes + i, vqmovun_s16(vcombine_s16(four(i), four(i + 4))));
    std::fill(codes + k, codes + kp, uint8_t(0));
  }
}

// int8_finish, four columns at a time; its activations are those of lanes.hpp.
inline void finish(const Int8Product &p, int64_t r, int64_t panel, int64_t columns, const int32_t *sum, RowScale s) {
  using L = Lanes<4>;
  for (int64_t c = 0; c < columns; c += 4) {
    const int64_t at = panel * kPanel + c, to = r * p.w.n + at, n = columns - c;
    const int32x4_t whole = vmlsq_n_s32(vld1q_s32(sum + c), vld1q_s32(p.w.sums + at), s.zero);
    L::F v = vmulq_f32(vcvtq_f32_s32(whole), vmulq_n_f32(vld1q_f32(p.w.scales + at), s.scale));
    if (p.bias) v = v + L::load(p.bias + at, n, 0);
    switch (p.act) {
    case Activation::none: break;
    case Activation::gelu: v = L::gelu(v); break;
    case Activation::quick_gelu: v = L::gated(v, v * kQuickGelu); break;
    case Activation::gelu_tanh: v = L::gated(v, v * L::fma(v * v, L::splat(kTanhGeluCube), L::splat(kTanhGelu))); break;
    case Activation::silu: v = L::gated(v, -v); break;
    case Activation::relu: v = v < 0.f ? L::F{} : v; break;
    }
    if (p.residual) v = v + L::load(p.residual + to, n, 0);
    L::store(p.y + to, n, v);
  }
}

} // namespace
} // namespace fewbit
