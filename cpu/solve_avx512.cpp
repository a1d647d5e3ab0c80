// Compiled for AVX-512; runs only where level() says so.
#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "math_avx512.hpp"
#include "solve.hpp"

namespace fewbit {

namespace {

constexpr int64_t kRows = FEWBIT_CPU_SOLVE_ROWS;

// Half to even: adding and subtracting 1.5*2^23 rounds.
FEWBIT_INLINE __m512 nearest(__m512 v) {
  const __m512 magic = splat(12582912.f);
  return _mm512_sub_ps(_mm512_add_ps(v, magic), magic);
}

// 16 V columns from c on, of the last vector those in `last`.
template <int V>
void strip(const float *m, int64_t k, const int64_t *order, int64_t rows, const float *w, const float *carried, const float *scales, int64_t n,
           int64_t c, __mmask16 last, float lo, float hi, float *d, int8_t *codes) {
  float errors[kRows][16 * V]; // a copy of d that lies together
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = order[r] * n + c;
    __m512 x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const __mmask16 in = v == V - 1 ? last : __mmask16(0xffff);
      x[v] = _mm512_maskz_loadu_ps(in, w + at + 16 * v);
      if (carried) x[v] = _mm512_add_ps(x[v], _mm512_maskz_loadu_ps(in, carried + r * n + c + 16 * v));
    }
    for (int64_t j = 0; j < r; j++) {
      const __m512 a = splat(m[r * k + j]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) x[v] = _mm512_add_ps(x[v], _mm512_mul_ps(a, _mm512_loadu_ps(errors[j] + 16 * v)));
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const __mmask16 in = v == V - 1 ? last : __mmask16(0xffff);
      const __m512 s = _mm512_mask_loadu_ps(splat(1.f), in, scales + c + 16 * v), was = _mm512_maskz_loadu_ps(in, w + at + 16 * v);
      __m512 q = nearest(_mm512_min_ps(_mm512_max_ps(_mm512_div_ps(x[v], s), splat(lo)), splat(hi)));
      q = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(was, _mm512_setzero_ps(), _CMP_NEQ_UQ), q); // what was pruned stays out
      _mm512_mask_cvtepi32_storeu_epi8(codes + at + 16 * v, in, _mm512_cvttps_epi32(q));
      const __m512 e = _mm512_sub_ps(was, _mm512_mul_ps(q, s));
      _mm512_storeu_ps(errors[r] + 16 * v, e);
      _mm512_mask_storeu_ps(d + r * n + c + 16 * v, in, e);
    }
  }
}

void round_strip(const float *m, int64_t k, const int64_t *order, int64_t rows, const float *w, const float *carried, const float *scales,
                 int64_t n, int64_t first_column, int64_t last_column, float lo, float hi, float *d, int8_t *codes) {
  int64_t c = first_column;
  for (; c + 128 <= last_column; c += 128) strip<8>(m, k, order, rows, w, carried, scales, n, c, 0xffff, lo, hi, d, codes);
  for (; c < last_column; c += 16) strip<1>(m, k, order, rows, w, carried, scales, n, c, first(last_column - c), lo, hi, d, codes);
}

void clip_scales(const float *w, int64_t k, int64_t n, int64_t first_column, int64_t last_column, const float *importance, const float *shares,
                 int64_t steps, float top, float *scratch, float *scales) {
  const __m512 one = splat(1.f), hi = splat(top), lo = splat(-top);
  const __m512d infinity = _mm512_set1_pd(std::numeric_limits<double>::infinity());
  for (int64_t c = first_column; c < last_column; c += 16) {
    const __mmask16 in = first(last_column - c);
    // Together, since rows of a power of two would share a few places of the cache.
    for (int64_t i = 0; i < k; i++) _mm512_storeu_ps(scratch + 16 * i, _mm512_maskz_loadu_ps(in, w + i * n + c));
    const __m512 full = _mm512_mask_loadu_ps(one, in, scales + c);
    __m512 best = full;
    __m512d least[2] = {infinity, infinity};
    for (int64_t step = 0; step < steps; step++) {
      const __m512 s = _mm512_mul_ps(full, splat(shares[step])), inv = _mm512_div_ps(one, s);
      __m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
      const auto below = [&] {
        return __mmask16(_mm512_cmp_pd_mask(sum[0], least[0], _CMP_LT_OQ) | _mm512_cmp_pd_mask(sum[1], least[1], _CMP_LT_OQ) << 8);
      };
      // No part of a sum is below 0: past the least of each column it need not go on.
      for (int64_t at = 0; at < k && (below() & in); at += kRows) {
        __m512 e = _mm512_setzero_ps();
        for (int64_t i = at; i < std::min(at + kRows, k); i++) {
          const __m512 x = _mm512_loadu_ps(scratch + 16 * i);
          const __m512 q = _mm512_max_ps(_mm512_min_ps(nearest(_mm512_mul_ps(x, inv)), hi), lo);
          const __m512 d = _mm512_sub_ps(x, _mm512_mul_ps(q, s));
          e = _mm512_add_ps(e, _mm512_mul_ps(_mm512_mul_ps(d, d), splat(importance[i])));
        }
        sum[0] = _mm512_add_pd(sum[0], _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
        sum[1] = _mm512_add_pd(sum[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
      }
      const __mmask16 better = below();
      best = _mm512_mask_mov_ps(best, better, s);
      least[0] = _mm512_mask_mov_pd(least[0], __mmask8(better), sum[0]);
      least[1] = _mm512_mask_mov_pd(least[1], __mmask8(better >> 8), sum[1]);
    }
    _mm512_mask_storeu_ps(scales + c, in, best);
  }
}

} // namespace

const SolveKernels solve_avx512 = {round_strip, clip_scales};

} // namespace fewbit
