// Elementary functions on 16 floats. Included only by files compiled for
// AVX-512.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "math_constants.hpp"

namespace fewbit {

FEWBIT_INLINE __m512 splat(float v) { return _mm512_set1_ps(v); }

// The first n of 16 lanes, all or none beyond.
FEWBIT_INLINE __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n > 0 ? __mmask16((1u << n) - 1) : 0; }

// erf by the approximation of math_constants.hpp. NaN stays NaN.
FEWBIT_INLINE __m512 erf16(__m512 x) {
  // The operands' order keeps NaN: min and max return their second one then.
  x = _mm512_max_ps(splat(-4.f), _mm512_min_ps(splat(4.f), x));
  const __m512 t = _mm512_mul_ps(x, x);
  __m512 p = splat(kErfNumerator[0]), q = splat(kErfDenominator[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kErfP; i++) p = _mm512_fmadd_ps(p, t, splat(kErfNumerator[i]));
#pragma GCC unroll 8
  for (int i = 1; i < kErfQ; i++) q = _mm512_fmadd_ps(q, t, splat(kErfDenominator[i]));
  return _mm512_div_ps(_mm512_mul_ps(x, p), q); // the divider works beside the products
}

// exp by 2^n * exp(r). Largest relative error 2e-7; below -104 it is 0 in float.
// NaN stays NaN.
FEWBIT_INLINE __m512 exp16(__m512 x) {
  x = _mm512_max_ps(splat(-104.f), x); // keeps NaN, the second operand
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, splat(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, splat(kLn2High), x);
  r = _mm512_fnmadd_ps(n, splat(kLn2Low), r);
  __m512 p = splat(kExp[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kExpP; i++) p = _mm512_fmadd_ps(p, r, splat(kExp[i]));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), splat(1.f));
  return _mm512_scalef_ps(p, n);
}

// x / (1 + exp(t)); beyond exp(89) the quotient is 0. NaN stays NaN.
FEWBIT_INLINE __m512 gated(__m512 x, __m512 t) {
  const __m512 e = exp16(_mm512_min_ps(splat(89.f), t));
  return _mm512_div_ps(x, _mm512_add_ps(e, splat(1.f)));
}
FEWBIT_INLINE __m512 quick_gelu(__m512 x) { return gated(x, _mm512_mul_ps(x, splat(kQuickGelu))); }
FEWBIT_INLINE __m512 silu(__m512 x) { return gated(x, _mm512_sub_ps(_mm512_setzero_ps(), x)); }
FEWBIT_INLINE __m512 gelu_tanh(__m512 x) {
  return gated(x, _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), splat(kTanhGeluCube), splat(kTanhGelu))));
}
// NaN, the second operand, stays.
FEWBIT_INLINE __m512 relu(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }

// 0.5 x (1 + erf(x / sqrt 2))
FEWBIT_INLINE __m512 gelu(__m512 x) {
  const __m512 h = _mm512_mul_ps(x, splat(0.5f));
  return _mm512_fmadd_ps(h, erf16(_mm512_mul_ps(x, splat(0.70710678118654752f))), h);
}

} // namespace fewbit
