// Compiled for AVX-512 with BF16; runs only where level() says so.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "math_avx512.hpp"

namespace fewbit {

namespace {

constexpr int kRows = int(kAttentionRows), kVectors = 4; // a tile of 6 x 64: 24 accumulators

FEWBIT_INLINE __m256i bf16(__m512 v) {
  const __m256bh h = _mm512_cvtneps_pbh(v);
  return reinterpret_cast<const __m256i &>(h);
}

// Turns 16 vectors of 16 words.
FEWBIT_INLINE void transpose(__m512i v[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

size_t bytes(const Attention &a) { return AttentionMemory(a, nullptr).bytes; }

void pack(const Attention &a, int64_t b, int64_t h, void *memory) {
  const AttentionMemory m(a, memory);
  for (int64_t s = 0; s < a.length; s += 16)
    for (int64_t d = 0; d < a.size; d += 32) {
      __m512i v[16];
      for (int i = 0; i < 16; i++) {
        v[i] = _mm512_setzero_si512();
        if (s + i >= a.length) continue;
        const float *k = a.row(b, s + i, 1, h) + d;
        const __m256i lo = bf16(_mm512_maskz_loadu_ps(first(a.size - d), k));
        const __m256i hi = bf16(_mm512_maskz_loadu_ps(first(a.size - d - 16), k + 16));
        v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
      }
      transpose(v);
      uint16_t *to = m.keys + (s / 16 * a.size_pairs() + d / 2) * 32;
      const int pairs = int(std::min<int64_t>(16, a.size_pairs() - d / 2));
      for (int i = 0; i < pairs; i++) _mm512_store_si512(to + 32 * i, v[i]);
    }
  for (int64_t s = 0; s < a.length; s += 2) {
    const float *even = a.row(b, s, 2, h), *odd = a.row(b, std::min(s + 1, a.length - 1), 2, h);
    for (int64_t d = 0; d < a.size; d += 16) {
      const __mmask16 in = first(a.size - d);
      const __m512i lo = _mm512_cvtepu16_epi32(bf16(_mm512_maskz_loadu_ps(in, even + d)));
      const __m512i hi = _mm512_cvtepu16_epi32(bf16(_mm512_maskz_loadu_ps(s + 1 < a.length ? in : 0, odd + d)));
      _mm512_store_si512(m.values + (d / 16 * a.length_pairs() + s / 2) * 32, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
    }
  }
}

// Calls store(r, v, sums) with the products of the first `pairs` pairs of row r of
// `left`, rows of this many elements, and of the v-th of V vectors of columns, which
// have `stride` pairs.
template <int V, class Store>
FEWBIT_INLINE void multiply(const uint16_t *left, int64_t row_elements, const uint16_t *right, int64_t stride, int64_t pairs, const Store &store) {
  __m512 acc[kRows][V]; // of this function alone: sums that others can point at stay in memory
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) acc[r][v] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++, right += 32) {
    __m512i w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) w[v] = _mm512_load_si512(right + v * stride * 32);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
      // In assembly and in this order: left to itself the compiler hoists the
      // broadcasts and spills accumulators.
      __m512i a;
      const auto *pair = reinterpret_cast<const int *>(left + r * row_elements + 2 * p);
      if constexpr (V == 4)
        asm volatile("vpbroadcastd %5, %4\n\tvdpbf16ps %6, %4, %0\n\tvdpbf16ps %7, %4, %1\n\tvdpbf16ps %8, %4, %2\n\tvdpbf16ps %9, %4, %3"
                     : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "+v"(acc[r][3]), "=&v"(a)
                     : "m"(*pair), "v"(w[0]), "v"(w[1]), "v"(w[2]), "v"(w[3]));
      else if constexpr (V == 3)
        asm volatile("vpbroadcastd %4, %3\n\tvdpbf16ps %5, %3, %0\n\tvdpbf16ps %6, %3, %1\n\tvdpbf16ps %7, %3, %2"
                     : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(a)
                     : "m"(*pair), "v"(w[0]), "v"(w[1]), "v"(w[2]));
      else if constexpr (V == 2)
        asm volatile("vpbroadcastd %3, %2\n\tvdpbf16ps %4, %2, %0\n\tvdpbf16ps %5, %2, %1"
                     : "+v"(acc[r][0]), "+v"(acc[r][1]), "=&v"(a) : "m"(*pair), "v"(w[0]), "v"(w[1]));
      else
        asm volatile("vpbroadcastd %2, %1\n\tvdpbf16ps %3, %1, %0" : "+v"(acc[r][0]), "=&v"(a) : "m"(*pair), "v"(w[0]));
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(r, v, acc[r][v]);
}

// Functions of their own: in one with the softmax the compiler spills accumulators.
template <int V> __attribute__((noinline)) void scores(const Attention &a, const AttentionMemory &m, int64_t vector) {
  float *to = m.scores + vector * 16;
  const int64_t row = a.length_vectors() * 16;
  multiply<V>(m.queries, a.size_vectors() * 16, m.keys + vector * a.size_pairs() * 32, a.size_pairs(), a.size_pairs(),
              [&](int r, int v, __m512 sums) __attribute__((always_inline)) { _mm512_store_ps(to + r * row + 16 * v, sums); });
}

template <int V> __attribute__((noinline)) void context(const Attention &a, const AttentionMemory &m, int64_t vector, KeyRange keys, float *y, int64_t count, const float *shares) {
  multiply<V>(m.weights + keys.begin, a.length_vectors() * 16, m.values + (vector * a.length_pairs() + keys.begin / 2) * 32, a.length_pairs(), (keys.end - keys.begin + 1) / 2,
              [&](int r, int v, __m512 sums) __attribute__((always_inline)) {
                const int64_t d = (vector + v) * 16;
                const __mmask16 in = r < count ? first(a.out_size() - d) : __mmask16(0);
                _mm512_mask_storeu_ps(y + r * a.out_row() + d, in, _mm512_mul_ps(sums, splat(shares[r])));
              });
}

// attention_keys
KeyRange keys_of(const float *bias, int64_t length) {
  KeyRange k{0, length};
  if (!bias) return k;
  const __m512 least = splat(-std::numeric_limits<float>::infinity());
  __m512 most = least;
  __mmask16 strange = 0;
  for (int64_t s = 0; s < length; s += 16) {
    const __m512 v = _mm512_mask_loadu_ps(least, first(length - s), bias + s);
    strange |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    most = _mm512_max_ps(most, v);
  }
  const float top = _mm512_reduce_max_ps(most);
  if (strange || !(std::fabs(top) <= std::numeric_limits<float>::max())) return k;
  const auto counts = [&](int64_t s) __attribute__((always_inline)) -> unsigned {
    const __m512 v = _mm512_mask_loadu_ps(least, first(length - s), bias + s);
    return _mm512_cmp_ps_mask(_mm512_sub_ps(splat(top), v), splat(kMasked), _CMP_LT_OQ);
  };
  int64_t s = (length - 1) / 16 * 16;
  while (!counts(s)) s -= 16; // the largest counts
  k.end = s + 32 - __builtin_clz(counts(s));
  while (!counts(k.begin)) k.begin += 16;
  k.begin += __builtin_ctz(counts(k.begin));
  return k;
}

// The weights of a tile's rows behind their scores: exp(x - the largest), where x = scale *
// score + bias of the keys. shares: 1 / their sum. A NaN among the scores makes the sum, and with it
// the row, NaN. All rows take each step: one row is a chain of them.
__attribute__((noinline)) void softmax(const Attention &a, const AttentionMemory &m, const float *const (&bias)[kRows], KeyRange keys, float (&shares)[kRows]) {
  const int64_t row = a.length_vectors() * 16;
  const __m512 scale = splat(a.scale), least = splat(-std::numeric_limits<float>::infinity());
  __m512 most[kRows], sum[kRows];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; i++) most[i] = least, sum[i] = _mm512_setzero_ps();
  for (int64_t s = keys.begin; s < keys.end; s += 16) {
    const __mmask16 in = first(keys.end - s);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++) {
      float *const x = m.scores + i * row + s;
      __m512 v = _mm512_mul_ps(_mm512_load_ps(x), scale);
      if (bias[0]) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, bias[i] + s));
      v = _mm512_mask_mov_ps(least, in, v);
      _mm512_store_ps(x, v);
      most[i] = _mm512_max_ps(most[i], v);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; i++) most[i] = splat(_mm512_reduce_max_ps(most[i]));
  for (int64_t s = keys.begin; s < keys.end; s += 16) {
    const __mmask16 in = first(keys.end - s);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++) {
      const __m512 e = _mm512_maskz_mov_ps(in, exp16(_mm512_sub_ps(_mm512_load_ps(m.scores + i * row + s), most[i])));
      sum[i] = _mm512_add_ps(sum[i], e);
      _mm256_store_si256(reinterpret_cast<__m256i *>(m.weights + i * row + s), bf16(e));
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; i++) shares[i] = 1 / _mm512_reduce_add_ps(sum[i]);
}

void rows(const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory) {
  const AttentionMemory m(a, memory);
  const int64_t q_row = a.size_vectors() * 16;
  KeyRange keys;
  for (int64_t r = r0; r < r1; r += kRows) {
    const int64_t count = std::min<int64_t>(kRows, r1 - r);
    if (a.bias_row || r == r0) keys = keys_of_rows(a, b, h, r, count, keys_of);
    const int64_t vectors = (keys.end + 15) / 16;
    for (int64_t i = 0; i < kRows; i++)
      for (int64_t d = 0; d < q_row; d += 16) {
        const __mmask16 in = i < count ? first(a.size - d) : __mmask16(0);
        const float *q = a.row(b, r + std::min(i, count - 1), 0, h);
        _mm256_store_si256(reinterpret_cast<__m256i *>(m.queries + i * q_row + d), bf16(_mm512_maskz_loadu_ps(in, q + d)));
      }
    int64_t v = keys.begin / 16;
    for (; v + kVectors <= vectors; v += kVectors) scores<kVectors>(a, m, v);
    switch (vectors - v) {
    case 1: scores<1>(a, m, v); break;
    case 2: scores<2>(a, m, v); break;
    case 3: scores<3>(a, m, v); break;
    default: break;
    }
    const float *bias[kRows]; // of rows that are not there the last one's
    for (int64_t i = 0; i < kRows; i++) bias[i] = a.bias_of(b, h, r + std::min(i, count - 1));
    float shares[kRows];
    softmax(a, m, bias, keys, shares);
    float *y = a.out(b, r, h);
    for (v = 0; v + kVectors <= a.size_vectors(); v += kVectors) context<kVectors>(a, m, v, keys, y, count, shares);
    switch (a.size_vectors() - v) {
    case 1: context<1>(a, m, v, keys, y, count, shares); break;
    case 2: context<2>(a, m, v, keys, y, count, shares); break;
    case 3: context<3>(a, m, v, keys, y, count, shares); break;
    default: break;
    }
  }
}

} // namespace

const AttentionKernels attention_bf16 = {bytes, pack, rows};

} // namespace fewbit
