// Compiled for AVX-512; runs only where level() says so.
#include <immintrin.h>

#include <cmath>

#include "encoder.hpp"
#include "math_avx512.hpp"

namespace fewbit {

void normalize_avx512(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y) {
  for (; rows > 0; rows--, x += n, y += n) {
    __m512 s[2] = {};
    for (int64_t i = 0; i < n; i += 32) {
      s[0] = _mm512_add_ps(s[0], _mm512_maskz_loadu_ps(first(n - i), x + i));
      s[1] = _mm512_add_ps(s[1], _mm512_maskz_loadu_ps(first(n - i - 16), x + i + 16));
    }
    const __m512 mean = splat(_mm512_reduce_add_ps(_mm512_add_ps(s[0], s[1])) / float(n));
    s[0] = s[1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 32)
      for (int64_t j = 0; j < 2; j++) {
        const __mmask16 m = first(n - i - 16 * j);
        const __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, x + i + 16 * j), mean);
        s[j] = _mm512_fmadd_ps(d, d, s[j]);
      }
    const __m512 unit = splat(1 / std::sqrt(_mm512_reduce_add_ps(_mm512_add_ps(s[0], s[1])) / float(n) + epsilon));
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 m = first(n - i);
      const __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), mean), unit);
      _mm512_mask_storeu_ps(y + i, m, _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(m, gamma + i), _mm512_maskz_loadu_ps(m, beta + i)));
    }
  }
}

} // namespace fewbit
