// Compiled for 64-bit Arm with dot products (Armv8.2); runs only where level()
// says so. SDOT multiplies signed bytes: codes count from -128 there, and 128
// times the weights' sums is added, which wraps to the very same integers.
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "int8.hpp"

namespace fewbit {

namespace {

constexpr int kRows = 4, kVectors = 4; // a tile of 4 x 16: 16 accumulators, 4 codes and a weight of 32 registers
static_assert(kPanel % (4 * kVectors) == 0);

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

// R rows times the columns of group g of a panel.
template <int R> inline void tile(const Int8Product &p, const uint8_t *codes, int64_t panel, int64_t g, int32_t (*sum)[kPanel]) {
  const int64_t kp = p.w.padded_k();
  const int8_t *b = p.w.panel(panel) + g * 16 * kVectors;
  const int32_t *sums = p.w.sums + panel * kPanel + g * 4 * kVectors;
  int32x4_t acc[R][kVectors];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < kVectors; v++) acc[r][v] = vshlq_n_s32(vld1q_s32(sums + 4 * v), 7);
  const uint8x16_t sign = vdupq_n_u8(128);
  for (int64_t k = 0; k < kp; k += kInt8Step) {
    int8x16_t a[R];
    for (int r = 0; r < R; r++) a[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + r * kp + k), sign));
    const auto step = [&](auto dot) {
      for (int v = 0; v < kVectors; v++) {
        const int8x16_t w = vld1q_s8(b + 16 * v);
        for (int r = 0; r < R; r++) acc[r][v] = dot(acc[r][v], w, a[r]);
      }
      b += 4 * kPanel;
    };
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 0); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 1); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 2); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 3); });
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < kVectors; v++) vst1q_s32(sum[r] + g * 4 * kVectors + 4 * v, acc[r][v]);
}

template <int R> void rows(const Int8Product &p, int64_t row, int64_t panel, const uint8_t *codes, const RowScale *scales) {
  const int64_t columns = std::min(kPanel, p.w.n - panel * kPanel);
  int32_t sum[R][kPanel];
  for (int64_t g = 0; g * 4 * kVectors < columns; g++) tile<R>(p, codes, panel, g, sum);
  for (int r = 0; r < R; r++) int8_finish(p, row + r, panel, columns, sum[r], scales[r]);
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes, const RowScale *scales) {
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++) {
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) rows<kRows>(p, r, panel, codes + (r - r0) * kp, scales + (r - r0));
    const uint8_t *rest = codes + (r - r0) * kp;
    const RowScale *s = scales + (r - r0);
    switch (r1 - r) {
    case 1: rows<1>(p, r, panel, rest, s); break;
    case 2: rows<2>(p, r, panel, rest, s); break;
    case 3: rows<3>(p, r, panel, rest, s); break;
    default: break;
    }
  }
}

} // namespace

const Int8Kernels int8_arm_dot = {quantize, multiply};

} // namespace fewbit
