// Compiled for AVX-512 with VNNI; runs only where level() says so.
#include "int8_x86.hpp"
#include "math_avx512.hpp"

namespace fewbit {

namespace {

constexpr int kRows = 8, kVectors = kPanel / 16; // a tile of 8 x 48: 24 accumulators

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  const __m512 largest = splat(std::numeric_limits<float>::max());
  // Divisions take longest: quotients are kept for the second pass, if they fit.
  constexpr int64_t most_kept = 4096;
  alignas(64) float kept[most_kept];
  const bool keep = p.divisor && k <= most_kept;
  for (int64_t r = r0; r < r1; r++, codes += kp, scales++) {
    const float *x = p.x + r * k;
    const auto at = [&](int64_t i, __mmask16 m) {
      const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
      return p.divisor ? _mm512_maskz_div_ps(m, v, _mm512_maskz_loadu_ps(m, p.divisor + i)) : v;
    };
    __m512 lo = _mm512_setzero_ps(), hi = lo;
    __mmask16 strange = 0;
    for (int64_t i = 0; i < k; i += 16) {
      const __m512 v = at(i, first(k - i));
      if (keep) _mm512_store_ps(kept + i, v);
      strange |= _mm512_cmp_ps_mask(_mm512_abs_ps(v), largest, _CMP_NLE_UQ);
      lo = _mm512_min_ps(lo, v), hi = _mm512_max_ps(hi, v);
    }
    const float low = _mm512_reduce_min_ps(lo), width = _mm512_reduce_max_ps(hi) - low;
    if (!scale_row(low, width, strange != 0, kp, codes, scales)) continue;
    const __m512 step = splat(scales->scale);
    const __m512i offset = _mm512_set1_epi32(scales->zero), none = _mm512_setzero_si512();
    for (int64_t i = 0; i < kp; i += 16) {
      const __mmask16 m = first(k - i);
      __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_div_ps(keep ? _mm512_load_ps(kept + i) : at(i, m), step)), offset);
      q = _mm512_maskz_mov_epi32(m, _mm512_max_epi32(q, none));
      _mm_storeu_si128(reinterpret_cast<__m128i *>(codes + i), _mm512_cvtusepi32_epi8(q));
    }
  }
}

// Fetches the panel that comes next while this one is multiplied.
struct Prefetch {
  const char *at, *end;
  int lines;
  FEWBIT_INLINE void step() {
    for (int i = 0; i < lines && at < end; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

template <int R>
FEWBIT_INLINE void tile(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel,
                        Prefetch &next) {
  const int64_t kp = p.w.padded_k(), c0 = panel * kPanel;
  const int8_t *b = p.w.panel(panel);
  __m512i acc[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const __m512i zero = _mm512_set1_epi32(-scales[r].zero);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++)
      acc[r][v] = _mm512_mullo_epi32(zero, _mm512_loadu_si512(p.w.sums + c0 + 16 * v));
  }
  for (int64_t k = 0; k < kp; k += kInt8Step) {
    next.step();
#pragma GCC unroll 4
    for (int i = 0; i < kInt8Step / 4; i++, b += 4 * kPanel) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) w[v] = _mm512_loadu_si512(b + 64 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        // In assembly and in this order: left to itself the compiler hoists
        // the broadcasts and spills accumulators.
        __m512i a;
        const auto *four = reinterpret_cast<const int *>(codes + r * kp + k + 4 * i);
        asm volatile("vpbroadcastd %4, %3\n\tvpdpbusd %5, %3, %0\n\tvpdpbusd %6, %3, %1\n\tvpdpbusd %7, %3, %2"
                     : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(a)
                     : "m"(*four), "v"(w[0]), "v"(w[1]), "v"(w[2]));
      }
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; v++) {
    const int64_t c = c0 + 16 * v;
    const __mmask16 m = first(p.w.n - c);
    if (!m) break;
    const __m512 scale = _mm512_loadu_ps(p.w.scales + c);
    const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(m, p.bias + c) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const int64_t at = (row + r) * p.w.n + c;
      __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), _mm512_mul_ps(splat(scales[r].scale), scale));
      if (p.bias) y = _mm512_add_ps(y, bias);
      switch (p.act) {
      case Activation::none: break;
      case Activation::gelu: y = gelu(y); break;
      case Activation::quick_gelu: y = quick_gelu(y); break;
      case Activation::gelu_tanh: y = gelu_tanh(y); break;
      case Activation::silu: y = silu(y); break;
      case Activation::relu: y = relu(y); break;
      }
      if (p.residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(m, p.residual + at));
      _mm512_mask_storeu_ps(p.y + at, m, y);
    }
  }
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes,
              const RowScale *scales) {
  const int64_t kp = p.w.padded_k(), bytes = kp * kPanel;
  const int64_t steps = (r1 - r0 + kRows - 1) / kRows * (kp / kInt8Step);
  for (int64_t panel = p0; panel < p1; panel++) {
    const bool after = panel + 1 == p1 && p.after;
    const char *at = after ? static_cast<const char *>(p.after) : reinterpret_cast<const char *>(p.w.panel(panel + 1));
    const int64_t ahead = after ? p.after_bytes : panel + 1 < p.w.panel_count() ? bytes : 0;
    Prefetch next{at, at + ahead, int((ahead / 64 + steps - 1) / steps)};
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) tile<kRows>(p, codes + (r - r0) * kp, scales + (r - r0), r, panel, next);
    const uint8_t *rest = codes + (r - r0) * kp;
    const RowScale *s = scales + (r - r0);
    switch (r1 - r) {
    case 1: tile<1>(p, rest, s, r, panel, next); break;
    case 2: tile<2>(p, rest, s, r, panel, next); break;
    case 3: tile<3>(p, rest, s, r, panel, next); break;
    case 4: tile<4>(p, rest, s, r, panel, next); break;
    case 5: tile<5>(p, rest, s, r, panel, next); break;
    case 6: tile<6>(p, rest, s, r, panel, next); break;
    case 7: tile<7>(p, rest, s, r, panel, next); break;
    default: break;
    }
  }
}

} // namespace

const Int8Kernels int8_avx512 = {quantize, multiply};

} // namespace fewbit
