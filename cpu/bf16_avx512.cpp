// Compiled for AVX-512 with BF16; runs only where level() says so.
#include <immintrin.h>

#include <algorithm>

#include "bf16.hpp"
#include "math_avx512.hpp"

namespace fewbit {

namespace {

constexpr int kRows = 8, kVectors = kPanel / 16; // a tile of 8 x 48: 24 accumulators

// Fetches the panel that comes next into the second-level cache, a few lines a
// step, while this one is multiplied.
struct Prefetch {
  const char *at, *end;
  int lines;
  FEWBIT_INLINE void step() {
    for (int i = 0; i < lines && at < end; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

template <int R>
FEWBIT_INLINE void tile(const Bf16Product &p, const uint16_t *rows, int64_t row, int64_t panel, Prefetch &next) {
  const int64_t kp = p.w.padded_k();
  const uint16_t *b = p.w.panel(panel);
  __m512 acc[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) acc[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < kp; k += kBf16Step) {
    next.step();
#pragma GCC unroll 8
    for (int i = 0; i < kBf16Step / 2; i++, b += 2 * kPanel) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) w[v] = _mm512_loadu_si512(b + 32 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        // In assembly and in this order: left to itself the compiler hoists
        // the broadcasts and spills accumulators.
        __m512i a;
        const auto *pair = reinterpret_cast<const int *>(rows + r * kp + k + 2 * i);
        asm volatile("vpbroadcastd %4, %3\n\tvdpbf16ps %5, %3, %0\n\tvdpbf16ps %6, %3, %1\n\tvdpbf16ps %7, %3, %2"
                     : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(a)
                     : "m"(*pair), "v"(w[0]), "v"(w[1]), "v"(w[2]));
      }
    }
  }
  const int64_t c0 = panel * kPanel;
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; v++) {
    const int64_t c = c0 + 16 * v;
    const __mmask16 m = first(p.w.n - c);
    if (!m) break;
    const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(m, p.bias + c) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m512 y = _mm512_add_ps(acc[r][v], bias);
      if (p.act == Activation::gelu) y = gelu(y);
      _mm512_mask_storeu_ps(p.y + (row + r) * p.w.n + c, m, y);
    }
  }
}

void multiply(const Bf16Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint16_t *rows) {
  const int64_t kp = p.w.padded_k(), bytes = kp * kPanel * int64_t(sizeof(uint16_t));
  const int64_t steps = (r1 - r0 + kRows - 1) / kRows * (kp / kBf16Step);
  for (int64_t panel = p0; panel < p1; panel++) {
    const char *at = reinterpret_cast<const char *>(p.w.panel(panel + 1));
    Prefetch next{at, panel + 1 < p.w.panel_count() ? at + bytes : at, int((bytes / 64 + steps - 1) / steps)};
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) tile<kRows>(p, rows + (r - r0) * kp, r, panel, next);
    const uint16_t *rest = rows + (r - r0) * kp;
    switch (r1 - r) {
    case 1: tile<1>(p, rest, r, panel, next); break;
    case 2: tile<2>(p, rest, r, panel, next); break;
    case 3: tile<3>(p, rest, r, panel, next); break;
    case 4: tile<4>(p, rest, r, panel, next); break;
    case 5: tile<5>(p, rest, r, panel, next); break;
    case 6: tile<6>(p, rest, r, panel, next); break;
    case 7: tile<7>(p, rest, r, panel, next); break;
    default: break;
    }
  }
}

void convert(const Bf16Product &p, int64_t r0, int64_t r1, uint16_t *rows) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  for (int64_t r = r0; r < r1; r++, rows += kp) {
    const float *x = p.x + r * k;
    for (int64_t i = 0; i < kp; i += 16) {
      const __m256bh v = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(first(k - i), x + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(rows + i), reinterpret_cast<const __m256i &>(v));
    }
  }
}

// Rows [i, i+8) of the triangle in the columns of one panel. Both factors lie in panels:
// what one instruction broadcasts is a pair of rows of one column.
FEWBIT_INLINE void gram_tile(const uint16_t *a, const uint16_t *b, int64_t kp, int64_t i, int64_t n, int64_t c0, float *sum) {
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) acc[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < kp; k += 2, a += 2 * kPanel, b += 2 * kPanel) {
    __m512i w[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) w[v] = _mm512_loadu_si512(b + 32 * v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      __m512i x; // in assembly, as in tile
      const auto *pair = reinterpret_cast<const int *>(a + 2 * r);
      asm volatile("vpbroadcastd %4, %3\n\tvdpbf16ps %5, %3, %0\n\tvdpbf16ps %6, %3, %1\n\tvdpbf16ps %7, %3, %2"
                   : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(x)
                   : "m"(*pair), "v"(w[0]), "v"(w[1]), "v"(w[2]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    if (i + r >= n) break;
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) {
      const int64_t c = c0 + 16 * v;
      const __mmask16 m = first(i + r + 1 - c);
      if (!m) break;
      float *to = sum + triangle_row(i + r) + c;
      _mm512_mask_storeu_ps(to, m, _mm512_add_ps(_mm512_maskz_loadu_ps(m, to), acc[r][v]));
    }
  }
}

void gram(const Bf16Weight &x, int64_t p0, int64_t p1, float *sum) {
  static_assert(kPanel % kRows == 0);
  const int64_t kp = x.padded_k();
  for (int64_t pa = p0; pa < p1; pa++)
    for (int64_t pb = 0; pb <= pa; pb++)
      for (int64_t i = pa * kPanel; i < std::min((pa + 1) * kPanel, x.n); i += kRows)
        gram_tile(x.panel(pa) + 2 * (i % kPanel), x.panel(pb), kp, i, x.n, pb * kPanel, sum);
}

} // namespace

const Bf16Kernels bf16_avx512 = {convert, multiply, gram};

} // namespace fewbit
