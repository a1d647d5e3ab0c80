// Elementary functions on 8 floats. Included only by files compiled for AVX2,
// each of which gets its own copy: they are compiled for different processors.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define FEWBIT_INLINE inline __attribute__((always_inline))

namespace fewbit {
namespace {

FEWBIT_INLINE __m256 splat8(float v) { return _mm256_set1_ps(v); }

// The first n of 8 lanes, all or none beyond.
FEWBIT_INLINE __m256i first8(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : n > 0 ? int(n) : 0), lanes);
}

// erf as in math_avx512.hpp, with a division for the approximate inverse.
FEWBIT_INLINE __m256 erf8(__m256 x) {
  // The operands' order keeps NaN: min and max return their second one then.
  x = _mm256_max_ps(splat8(-4.f), _mm256_min_ps(splat8(4.f), x));
  const __m256 t = _mm256_mul_ps(x, x);
  __m256 p = splat8(-2.72614225801306e-10f);
  p = _mm256_fmadd_ps(p, t, splat8(2.77068142495902e-08f));
  p = _mm256_fmadd_ps(p, t, splat8(-2.10102402082508e-06f));
  p = _mm256_fmadd_ps(p, t, splat8(-5.69250639462346e-05f));
  p = _mm256_fmadd_ps(p, t, splat8(-7.34990630326855e-04f));
  p = _mm256_fmadd_ps(p, t, splat8(-2.95459980854025e-03f));
  p = _mm256_fmadd_ps(p, t, splat8(-1.60960333262415e-02f));
  __m256 q = splat8(-1.45660718464996e-05f);
  q = _mm256_fmadd_ps(q, t, splat8(-2.13374055278905e-04f));
  q = _mm256_fmadd_ps(q, t, splat8(-1.68282697438203e-03f));
  q = _mm256_fmadd_ps(q, t, splat8(-7.37332916720468e-03f));
  q = _mm256_fmadd_ps(q, t, splat8(-1.42647390514189e-02f));
  return _mm256_div_ps(_mm256_mul_ps(x, p), q);
}

// 0.5 x (1 + erf(x / sqrt 2))
FEWBIT_INLINE __m256 gelu8(__m256 x) {
  const __m256 h = _mm256_mul_ps(x, splat8(0.5f));
  return _mm256_fmadd_ps(h, erf8(_mm256_mul_ps(x, splat8(0.70710678118654752f))), h);
}

} // namespace
} // namespace fewbit
