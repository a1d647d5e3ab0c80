//go:build cgo

#include "kernels_amd64.h"
#include <immintrin.h>
#include <math.h>
#include <string.h>

enum {
    CELL_SHIFT = 16,    // cellSh
    WINDOW = 4096,      // window
    LIN_OFFSET = 3968,  // linOffset
    HALF = 8192,        // half
    COPY = 2 * HALF,    // slots of one copy of the table
};

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))

int fb_calib_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return 0;
    return __builtin_cpu_supports("avx512f") ? 2 : 1;
}

static inline uint32_t bits(float v) {
    uint32_t b;
    memcpy(&b, &v, sizeof b);
    return b;
}

static inline void scan_one(fb_scan_facts *f, float v) {
    uint32_t a = bits(v) & 0x7fffffffu;
    if (a > f->abs_max) f->abs_max = a;
    if (v < f->lo) f->lo = v;
    if (v > f->hi) f->hi = v;
}

AVX2 fb_scan_facts fb_calib_scan_avx2(const float *x, long n) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256 lo0 = _mm256_set1_ps(INFINITY), hi0 = _mm256_set1_ps(-INFINITY), lo1 = lo0, hi1 = hi0;
    __m256i top0 = _mm256_setzero_si256(), top1 = top0;
    long i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 v = _mm256_loadu_ps(x + i), w = _mm256_loadu_ps(x + i + 8);
        lo0 = _mm256_min_ps(v, lo0);
        lo1 = _mm256_min_ps(w, lo1);
        hi0 = _mm256_max_ps(v, hi0);
        hi1 = _mm256_max_ps(w, hi1);
        top0 = _mm256_max_epu32(top0, _mm256_and_si256(_mm256_castps_si256(v), mask));
        top1 = _mm256_max_epu32(top1, _mm256_and_si256(_mm256_castps_si256(w), mask));
    }
    fb_scan_facts f = {0, INFINITY, -INFINITY};
    float lo[8], hi[8];
    uint32_t top[8];
    _mm256_storeu_ps(lo, _mm256_min_ps(lo0, lo1));
    _mm256_storeu_ps(hi, _mm256_max_ps(hi0, hi1));
    _mm256_storeu_si256((__m256i *)top, _mm256_max_epu32(top0, top1));
    for (int j = 0; j < 8; j++) {
        if (lo[j] < f.lo) f.lo = lo[j];
        if (hi[j] > f.hi) f.hi = hi[j];
        if (top[j] > f.abs_max) f.abs_max = top[j];
    }
    for (; i < n; i++) scan_one(&f, x[i]);
    return f;
}

AVX512 fb_scan_facts fb_calib_scan_avx512(const float *x, long n) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512 lo0 = _mm512_set1_ps(INFINITY), hi0 = _mm512_set1_ps(-INFINITY), lo1 = lo0, hi1 = hi0;
    __m512i top0 = _mm512_setzero_si512(), top1 = top0;
    long i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512 v = _mm512_loadu_ps(x + i), w = _mm512_loadu_ps(x + i + 16);
        lo0 = _mm512_min_ps(v, lo0);
        lo1 = _mm512_min_ps(w, lo1);
        hi0 = _mm512_max_ps(v, hi0);
        hi1 = _mm512_max_ps(w, hi1);
        top0 = _mm512_max_epu32(top0, _mm512_and_si512(_mm512_castps_si512(v), mask));
        top1 = _mm512_max_epu32(top1, _mm512_and_si512(_mm512_castps_si512(w), mask));
    }
    fb_scan_facts f = {_mm512_reduce_max_epu32(_mm512_max_epu32(top0, top1)),
                       _mm512_reduce_min_ps(_mm512_min_ps(lo0, lo1)), _mm512_reduce_max_ps(_mm512_max_ps(hi0, hi1))};
    for (; i < n; i++) scan_one(&f, x[i]);
    return f;
}

static inline void bin_one(fb_bin_facts *r, float v, float scale, int32_t base, uint16_t *t) {
    uint32_t b = bits(v), a = b & 0x7fffffffu;
    float m;
    memcpy(&m, &a, sizeof m);
    int32_t slot = (int32_t)(m * scale) + LIN_OFFSET;
    if (slot < WINDOW) {
        slot = (int32_t)(a >> CELL_SHIFT) - base;
        if (slot <= 0) {
            slot = 0;
            r->below++;
            r->zeros += a == 0;
        }
    }
    t[(uint32_t)slot | (b >> 31) * HALF]++;
}

// A 16-lane version was 15 % slower on Zen 4: the loop is bound by the counters'
// stores, and the wider store of the slots forwards to its loads later.
AVX2 fb_bin_facts fb_calib_bin_avx2(const float *x, long n, float scale, int32_t base, uint16_t *t) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff), off = _mm256_set1_epi32(LIN_OFFSET),
                  last_low = _mm256_set1_epi32(WINDOW - 1), bases = _mm256_set1_epi32(base),
                  one = _mm256_set1_epi32(1), zero = _mm256_setzero_si256(), sign = _mm256_set1_epi32(HALF);
    const __m256 scales = _mm256_set1_ps(scale);
    uint16_t *u = t + COPY;
    __m256i below = zero, zeros = zero;
    long i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i b = _mm256_loadu_si256((const __m256i *)(x + i)), a = _mm256_and_si256(b, mask);
        __m256i lin = _mm256_add_epi32(_mm256_cvttps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(a), scales)), off);
        __m256i low = _mm256_sub_epi32(_mm256_srli_epi32(a, CELL_SHIFT), bases);
        below = _mm256_sub_epi32(below, _mm256_cmpgt_epi32(one, low));
        zeros = _mm256_sub_epi32(zeros, _mm256_cmpeq_epi32(a, zero));
        low = _mm256_max_epi32(low, zero);
        __m256i slot = _mm256_blendv_epi8(low, lin, _mm256_cmpgt_epi32(lin, last_low));
        slot = _mm256_or_si256(slot, _mm256_and_si256(_mm256_srai_epi32(b, 31), sign));
        uint32_t s[8] __attribute__((aligned(32)));
        _mm256_store_si256((__m256i *)s, slot);
        t[s[0]]++; u[s[1]]++; t[s[2]]++; u[s[3]]++;
        t[s[4]]++; u[s[5]]++; t[s[6]]++; u[s[7]]++;
    }
    int32_t nb[8], nz[8];
    _mm256_storeu_si256((__m256i *)nb, below);
    _mm256_storeu_si256((__m256i *)nz, zeros);
    fb_bin_facts r = {0, 0};
    for (int j = 0; j < 8; j++) {
        r.below += nb[j];
        r.zeros += nz[j];
    }
    for (; i < n; i++) bin_one(&r, x[i], scale, base, t);
    return r;
}

// The compiler vectorizes the rest.

AVX2 void fb_calib_absmax_avx2(const uint32_t *restrict x, long rows, long cols, uint32_t *restrict m) {
    for (long i = 0; i < rows; i++, x += cols)
        for (long j = 0; j < cols; j++) {
            uint32_t a = x[j] & 0x7fffffffu;
            a = a < 0x7f800000u ? a : 0;
            m[j] = a > m[j] ? a : m[j];
        }
}

AVX2 void fb_calib_drain_avx2(uint16_t *restrict a, uint16_t *restrict b, uint64_t *restrict to, long n) {
    for (long i = 0; i < n; i++) to[i] += (uint32_t)a[i] + b[i];
    memset(a, 0, n * sizeof *a);
    memset(b, 0, n * sizeof *b);
}
