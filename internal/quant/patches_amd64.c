//go:build cgo

#include "patches_amd64.h"
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f")))

enum { LANES = 16, TILE = 8 }; // columns and rows of a triangle that are summed together

int fb_quant_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0;
}

static inline __mmask16 first(long n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

// Rows a to a+count-1 of one triangle, columns from j on. The products of each value are
// added in the order of the rows x. A product with a rounding of its own is not contracted
// with its sum.
AVX512 static inline __attribute__((always_inline)) void tile(const float *x, long n, long stride, long k, long a, int count, long j, float *sum) {
    __m512 acc[TILE];
    for (int t = 0; t < count; t++)
        acc[t] = _mm512_maskz_loadu_ps(first(a + t + 1 - j), sum + (a + t) * (a + t + 1) / 2 + j);
    const __mmask16 in = first(k - j);
    for (long i = 0; i < n; i++, x += stride) {
        const __m512 v = _mm512_maskz_loadu_ps(in, x + j);
        for (int t = 0; t < count; t++)
            acc[t] = _mm512_add_ps(acc[t], _mm512_mul_round_ps(_mm512_set1_ps(x[a + t]), v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    for (int t = 0; t < count; t++)
        _mm512_mask_storeu_ps(sum + (a + t) * (a + t + 1) / 2 + j, first(a + t + 1 - j), acc[t]);
}

AVX512 void fb_quant_grams_avx512(const float *rows, long n, long stride, long k, long from, long to, float *sum) {
    for (long g = from; g < to; g++) {
        const float *x = rows + g * k;
        float *s = sum + g * (k * (k + 1) / 2);
        for (long j = 0; j < k; j += LANES) {
            long a = j;
            for (; a + TILE <= k; a += TILE) tile(x, n, stride, k, a, TILE, j, s);
            for (; a < k; a++) tile(x, n, stride, k, a, 1, j, s);
        }
    }
}
