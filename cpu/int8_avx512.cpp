// Compiled for AVX-512 with VNNI; runs only where level() says so.
#include <type_traits>

#include "int4.hpp"
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

// The rows of a panel that a tile is multiplied by: all of them, or some of a panel
// in 4 bits. Then the sums lie in between until the last.
struct Part {
  const int8_t *b;
  int64_t k;
  int32_t *sums; // [tile's rows, kPanel]
  bool first, last;
};

template <int R> using Sums = __m512i[R][kVectors];

template <int R>
FEWBIT_INLINE void begin(Sums<R> &acc, const Int8Product &p, const RowScale *scales, int64_t panel, const Part &part) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const __m512i zero = _mm512_set1_epi32(-scales[r].zero);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++)
      acc[r][v] = part.first ? _mm512_mullo_epi32(zero, _mm512_loadu_si512(p.w.sums + panel * kPanel + 16 * v))
                             : _mm512_load_si512(part.sums + r * kPanel + 16 * v);
  }
}

// Adds four rows of weights times their codes.
template <int R> FEWBIT_INLINE void add(Sums<R> &acc, const uint8_t *codes, int64_t kp, const __m512i (&w)[kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    // In assembly and in this order: left to itself the compiler hoists
    // the broadcasts and spills accumulators.
    __m512i a;
    const auto *four = reinterpret_cast<const int *>(codes + r * kp);
    asm volatile("vpbroadcastd %4, %3\n\tvpdpbusd %5, %3, %0\n\tvpdpbusd %6, %3, %1\n\tvpdpbusd %7, %3, %2"
                 : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(a)
                 : "m"(*four), "v"(w[0]), "v"(w[1]), "v"(w[2]));
  }
}

template <int R>
FEWBIT_INLINE void finish(const Sums<R> &acc, const Int8Product &p, const RowScale *scales, int64_t row, int64_t panel, const Part &part) {
  const int64_t c0 = panel * kPanel;
  if (!part.last) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) _mm512_store_si512(part.sums + r * kPanel + 16 * v, acc[r][v]);
    return;
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

template <int R>
FEWBIT_INLINE void tile(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel,
                        Prefetch &next, const Part &part) {
  const int64_t kp = p.w.padded_k();
  const int8_t *b = part.b;
  Sums<R> acc;
  begin<R>(acc, p, scales, panel, part);
  for (int64_t k = 0; k < part.k; k += kInt8Step) {
    next.step();
#pragma GCC unroll 4
    for (int i = 0; i < kInt8Step / 4; i++, b += 4 * kPanel) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) w[v] = _mm512_loadu_si512(b + 64 * v);
      add<R>(acc, codes + k + 4 * i, kp, w);
    }
  }
  finish<R>(acc, p, scales, row, panel, part);
}

// The steps of a block as tile4 takes them: the magnitude in words, and what is
// subtracted, in bytes, four for each column.
struct Steps {
  __m512i magnitude[kVectors], less[kVectors];
};

void unpack(const uint8_t *steps, int64_t blocks, Steps *to) {
  const __m512i everywhere = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  for (; blocks > 0; blocks--, steps += kPanel, to++)
    for (int v = 0; v < kVectors; v++) {
      const __m512i s = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(steps + 16 * v)));
      const __m512i magnitude = _mm512_and_si512(s, _mm512_set1_epi32(15));
      const __m512i turned = _mm512_srli_epi32(_mm512_and_si512(s, _mm512_set1_epi32(kInt4Negative)), 4);
      const __m512i less = _mm512_sub_epi32(_mm512_slli_epi32(magnitude, 3), _mm512_mullo_epi16(magnitude, turned));
      to->magnitude[v] = _mm512_and_si512(_mm512_shuffle_epi8(magnitude, everywhere), _mm512_set1_epi16(15));
      to->less[v] = _mm512_shuffle_epi8(less, everywhere);
    }
}

// The same for a panel in 4 bits, from steps and pairs on, which is expanded
// meanwhile (int4_expand), and into `expanded` where that is kept for other tiles.
// A word of two codes 0..15 times a magnitude up to 15 has both products in its
// bytes, and (code - 8) * step is that product less 8 steps, or 7 where codes are
// turned around.
template <int R, bool keep>
__attribute__((noinline)) void tile4(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel, Prefetch &next,
                         const Part &part, const Steps *steps, const uint8_t *pairs, int8_t *expanded) {
  const int64_t kp = p.w.padded_k();
  const __m512i nibble = _mm512_set1_epi8(15);
  Sums<R> acc;
  begin<R>(acc, p, scales, panel, part);
  for (int64_t k = 0; k < part.k; k += kInt4Block, steps++, pairs += kInt4BlockBytes, expanded += kInt4Block * kPanel) {
    next.step(), next.step();
#pragma GCC unroll 4
    for (int g = 0; g < kInt4Block / 8; g++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        __m512i w[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; v++) {
          // In assembly as in add().
          const auto &pair = *reinterpret_cast<const __m512i *>(pairs + (g * kVectors + v) * 64);
          if (half)
            asm volatile("vpsrlw $4, %1, %0\n\tvpandd %2, %0, %0\n\tvpmullw %3, %0, %0\n\tvpsubb %4, %0, %0"
                         : "=&v"(w[v])
                         : "m"(pair), "v"(nibble), "m"(steps->magnitude[v]), "m"(steps->less[v]));
          else
            asm volatile("vpandd %1, %2, %0\n\tvpmullw %3, %0, %0\n\tvpsubb %4, %0, %0"
                         : "=&v"(w[v])
                         : "m"(pair), "v"(nibble), "m"(steps->magnitude[v]), "m"(steps->less[v]));
          if (keep) _mm512_store_si512(expanded + half * (kInt4Block / 2 * kPanel) + (g * kVectors + v) * 64, w[v]);
        }
        add<R>(acc, codes + k + half * (kInt4Block / 2) + 4 * g, kp, w);
      }
  }
  finish<R>(acc, p, scales, row, panel, part);
}

// Calls f(rows, r) for the tiles of rows [0,n).
template <class F> FEWBIT_INLINE void tiles(int64_t n, const F &f) {
  int64_t r = 0;
  for (; r + kRows <= n; r += kRows) f(std::integral_constant<int, kRows>{}, r);
  switch (n - r) {
  case 1: f(std::integral_constant<int, 1>{}, r); break;
  case 2: f(std::integral_constant<int, 2>{}, r); break;
  case 3: f(std::integral_constant<int, 3>{}, r); break;
  case 4: f(std::integral_constant<int, 4>{}, r); break;
  case 5: f(std::integral_constant<int, 5>{}, r); break;
  case 6: f(std::integral_constant<int, 6>{}, r); break;
  case 7: f(std::integral_constant<int, 7>{}, r); break;
  default: break;
  }
}

// tile for the rows behind, a function of its own: in one with all the others the
// compiler runs out of registers.
template <int R>
__attribute__((noinline)) void tile_again(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel, Prefetch &next,
                                          const Part &part) {
  tile<R>(p, codes, scales, row, panel, next, part);
}

// Rows of a panel in 4 bits that are kept expanded at a time, in the second-level
// cache, and rows of the product that take them.
constexpr int64_t kPartK = 1024, kPartRows = 64;
static_assert(kPartK % kInt4Block == 0);

__attribute__((noinline)) void multiply4(const Int8Product &p, int64_t rows, int64_t row, int64_t panel, const uint8_t *codes, const RowScale *scales, Prefetch &next) {
  alignas(64) int8_t expanded[kPartK * kPanel];
  alignas(64) int32_t sums[kPartRows * kPanel];
  Steps unpacked[kPartK / kInt4Block];
  const int64_t k = p.w.k;
  const auto *const steps = reinterpret_cast<const uint8_t *>(p.w.panel(panel)), *const pairs = steps + int4_steps_bytes(k);
  for (int64_t r0 = 0; r0 < rows; r0 += kPartRows)
    for (int64_t k0 = 0; k0 < k; k0 += kPartK) {
      const int64_t n = std::min(kPartK, k - k0), block = k0 / kInt4Block, height = std::min(kPartRows, rows - r0);
      const uint8_t *const from = codes + r0 * k + k0;
      unpack(steps + block * kPanel, n / kInt4Block, unpacked);
      const auto part = [&](int64_t r) { return Part{expanded, n, sums + r * kPanel, k0 == 0, k0 + n == k}; };
      const auto first = [&](auto tall, auto keep) __attribute__((always_inline)) {
        tile4<tall, keep>(p, from, scales + r0, row + r0, panel, next, part(0), unpacked, pairs + block * kInt4BlockBytes, expanded);
      };
      if (height <= kRows) {
        tiles(height, [&](auto tall, int64_t) __attribute__((always_inline)) { first(tall, std::false_type{}); });
        continue;
      }
      first(std::integral_constant<int, kRows>{}, std::true_type{});
      tiles(height - kRows, [&](auto tall, int64_t r) __attribute__((always_inline)) {
        r += kRows;
        tile_again<tall>(p, from + r * k, scales + r0 + r, row + r0 + r, panel, next, part(r));
      });
    }
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes,
              const RowScale *scales) {
  const int64_t kp = p.w.padded_k(), bytes = p.w.panel_bytes();
  const int64_t steps = (r1 - r0 + kRows - 1) / kRows * (kp / kInt8Step);
  for (int64_t panel = p0; panel < p1; panel++) {
    const bool after = panel + 1 == p1 && p.after;
    const char *at = after ? static_cast<const char *>(p.after) : reinterpret_cast<const char *>(p.w.panel(panel + 1));
    const int64_t ahead = after ? p.after_bytes : panel + 1 < p.w.panel_count() ? bytes : 0;
    Prefetch next{at, at + ahead, int((ahead / 64 + steps - 1) / steps)};
    if (p.w.four) {
      multiply4(p, r1 - r0, r0, panel, codes, scales, next);
      continue;
    }
    tiles(r1 - r0, [&](auto height, int64_t r) __attribute__((always_inline)) {
      tile<height>(p, codes + r * kp, scales + r, r0 + r, panel, next, {p.w.panel(panel), kp, nullptr, true, true});
    });
  }
}

} // namespace

const Int8Kernels int8_avx512 = {quantize, multiply};

} // namespace fewbit
