// LinearRows on 8 columns at a time, for the processors whose files include it:
// they give the sum of four products of a code and a weight as Dot. What lies in
// here is each file's own copy, compiled for its processor.
#pragma once
#include "int8_x86.hpp"
#include "math_avx2.hpp"

namespace fewbit {
namespace {

constexpr int kYmmRows = 4;                // of a tile
constexpr int64_t kYmmVectors = kPanel / 8; // of a panel

FEWBIT_INLINE float least(__m256 v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  const __m256 largest = splat8(std::numeric_limits<float>::max()), sign = splat8(-0.f), none = _mm256_setzero_ps();
  for (int64_t r = r0; r < r1; r++, codes += kp, scales++) {
    const float *x = p.x + r * k;
    const auto at = [&](int64_t i, __m256i m) {
      const __m256 v = _mm256_maskload_ps(x + i, m);
      if (!p.divisor) return v;
      // Lanes beyond are 0 / 0 and masked away.
      return _mm256_and_ps(_mm256_div_ps(v, _mm256_maskload_ps(p.divisor + i, m)), _mm256_castsi256_ps(m));
    };
    __m256 lo = none, hi = none; // hi is the least of the negated values
    __m256 strange = none;
    for (int64_t i = 0; i < k; i += 8) {
      const __m256 v = at(i, first8(k - i));
      strange = _mm256_or_ps(strange, _mm256_cmp_ps(_mm256_andnot_ps(sign, v), largest, _CMP_NLE_UQ));
      lo = _mm256_min_ps(lo, v), hi = _mm256_min_ps(hi, _mm256_xor_ps(v, sign));
    }
    const float low = least(lo), width = -least(hi) - low;
    if (!scale_row(low, width, _mm256_movemask_ps(strange) != 0, kp, codes, scales)) continue;
    const __m256 step = splat8(scales->scale);
    const __m256i offset = _mm256_set1_epi32(scales->zero);
    for (int64_t i = 0; i < kp; i += 8) {
      const __m256i m = first8(k - i);
      __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_div_ps(at(i, m), step)), offset);
      q = _mm256_and_si256(q, m);
      // Both saturate: below 0 it is 0, above 255 it is 255.
      const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i *>(codes + i), _mm_packus_epi16(words, words));
    }
  }
}

// R rows times V vectors of 8 columns, from vector v0 of the panel on.
template <class Dot, int R, int V>
FEWBIT_INLINE void tile(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel, int64_t v0) {
  const int64_t kp = p.w.padded_k(), c0 = panel * kPanel + 8 * v0;
  const int8_t *b = p.w.panel(panel) + 32 * v0;
  __m256i acc[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int v = 0; v < V; v++)
      acc[r][v] = _mm256_mullo_epi32(_mm256_set1_epi32(-scales[r].zero),
                                     _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p.w.sums + c0 + 8 * v)));
  for (int64_t k = 0; k < kp; k += 4, b += 4 * kPanel) {
    typename Dot::Weight w[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) w[v] = Dot::weight(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + 32 * v)));
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      int32_t four;
      std::memcpy(&four, codes + r * kp + k, sizeof four);
      const typename Dot::Codes a = Dot::codes(_mm256_set1_epi32(four));
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) acc[r][v] = Dot::add(acc[r][v], a, w[v]);
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; v++) {
    const int64_t c = c0 + 8 * v;
    if (c >= p.w.n) break;
    const __m256i m = first8(p.w.n - c);
    const __m256 scale = _mm256_loadu_ps(p.w.scales + c);
    const __m256 bias = p.bias ? _mm256_maskload_ps(p.bias + c, m) : _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const int64_t at = (row + r) * p.w.n + c;
      __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][v]), _mm256_mul_ps(splat8(scales[r].scale), scale));
      if (p.bias) y = _mm256_add_ps(y, bias);
      switch (p.act) {
      case Activation::none: break;
      case Activation::gelu: y = gelu8(y); break;
      case Activation::quick_gelu: y = quick_gelu8(y); break;
      case Activation::gelu_tanh: y = gelu_tanh8(y); break;
      case Activation::silu: y = silu8(y); break;
      case Activation::relu: y = relu8(y); break;
      }
      if (p.residual) y = _mm256_add_ps(y, _mm256_maskload_ps(p.residual + at, m));
      _mm256_maskstore_ps(p.y + at, m, y);
    }
  }
}

template <class Dot>
void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes, const RowScale *scales) {
  constexpr int V = Dot::vectors;
  static_assert(kYmmVectors % V == 0);
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++)
    for (int64_t v = 0; v < kYmmVectors && panel * kPanel + 8 * v < p.w.n; v += V) {
      int64_t r = r0;
      for (; r + kYmmRows <= r1; r += kYmmRows) tile<Dot, kYmmRows, V>(p, codes + (r - r0) * kp, scales + (r - r0), r, panel, v);
      const uint8_t *rest = codes + (r - r0) * kp;
      const RowScale *s = scales + (r - r0);
      switch (r1 - r) {
      case 1: tile<Dot, 1, V>(p, rest, s, r, panel, v); break;
      case 2: tile<Dot, 2, V>(p, rest, s, r, panel, v); break;
      case 3: tile<Dot, 3, V>(p, rest, s, r, panel, v); break;
      default: break;
      }
    }
}

} // namespace
} // namespace fewbit
