// Elementary functions on 8 floats. Included only by files compiled for AVX2,
// each of which gets its own copy: they are compiled for different processors.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "math_x86.hpp"

namespace fewbit {
namespace {

FEWBIT_INLINE __m256 splat8(float v) { return _mm256_set1_ps(v); }

// The first n of 8 lanes, all or none beyond.
FEWBIT_INLINE __m256i first8(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : n > 0 ? int(n) : 0), lanes);
}

// erf by the approximation of math_x86.hpp. NaN stays NaN.
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

} // namespace
} // namespace fewbit
