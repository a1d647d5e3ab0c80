// Elementary functions on 8 floats. Included only by files compiled for AVX2,
// each of which gets its own copy: they are compiled for different processors.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "math_constants.hpp"

namespace fewbit {
namespace {

FEWBIT_INLINE __m256 splat8(float v) { return _mm256_set1_ps(v); }

// The first n of 8 lanes, all or none beyond.
FEWBIT_INLINE __m256i first8(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : n > 0 ? int(n) : 0), lanes);
}

// erf by the approximation of math_constants.hpp. NaN stays NaN.
FEWBIT_INLINE __m256 erf8(__m256 x) {
  // The operands' order keeps NaN: min and max return their second one then.
  x = _mm256_max_ps(splat8(-4.f), _mm256_min_ps(splat8(4.f), x));
  const __m256 t = _mm256_mul_ps(x, x);
  __m256 p = splat8(kErfNumerator[0]), q = splat8(kErfDenominator[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kErfP; i++) p = _mm256_fmadd_ps(p, t, splat8(kErfNumerator[i]));
#pragma GCC unroll 8
  for (int i = 1; i < kErfQ; i++) q = _mm256_fmadd_ps(q, t, splat8(kErfDenominator[i]));
  return _mm256_div_ps(_mm256_mul_ps(x, p), q);
}

// 0.5 x (1 + erf(x / sqrt 2))
FEWBIT_INLINE __m256 gelu8(__m256 x) {
  const __m256 h = _mm256_mul_ps(x, splat8(0.5f));
  return _mm256_fmadd_ps(h, erf8(_mm256_mul_ps(x, splat8(0.70710678118654752f))), h);
}

// x / (1 + exp(t)), with the exponential of math_constants.hpp, infinity where that passes
// exp(88): 0 of what is finite, NaN of infinity. NaN stays NaN.
FEWBIT_INLINE __m256 gated8(__m256 x, __m256 t) {
  const __m256 most = splat8(88.f);
  const __m256 e = _mm256_max_ps(splat8(-87.f), _mm256_min_ps(most, t)); // keep NaN, the second operand
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(e, splat8(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, splat8(kLn2High), e);
  r = _mm256_fnmadd_ps(n, splat8(kLn2Low), r);
  __m256 p = splat8(kExp[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kExpP; i++) p = _mm256_fmadd_ps(p, r, splat8(kExp[i]));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), splat8(1.f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const __m256 sum = _mm256_fmadd_ps(p, _mm256_castsi256_ps(power), splat8(1.f));
  return _mm256_div_ps(x, _mm256_blendv_ps(sum, splat8(std::numeric_limits<float>::infinity()), _mm256_cmp_ps(t, most, _CMP_GT_OQ)));
}
FEWBIT_INLINE __m256 quick_gelu8(__m256 x) { return gated8(x, _mm256_mul_ps(x, splat8(kQuickGelu))); }
FEWBIT_INLINE __m256 silu8(__m256 x) { return gated8(x, _mm256_sub_ps(_mm256_setzero_ps(), x)); }
FEWBIT_INLINE __m256 gelu_tanh8(__m256 x) {
  return gated8(x, _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_mul_ps(x, x), splat8(kTanhGeluCube), splat8(kTanhGelu))));
}
// NaN, the second operand, stays.
FEWBIT_INLINE __m256 relu8(__m256 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }

} // namespace
} // namespace fewbit
