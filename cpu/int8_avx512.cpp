// Compiled for AVX-512 with VNNI; runs only where level() says so.
#include <type_traits>

#include "int4.hpp"
#include "int8_x86.hpp"
#include "level.hpp"
#include "math_avx512.hpp"

namespace fewbit {

namespace {

constexpr int kRows = 8, kVectors = kPanel / 16; // a tile of 8 x 48: 24 accumulators

// Least and greatest of 0 and the numbers of a row.
struct Range {
  float low, width;
  bool strange;
};

// at(i, mask): the numbers of a row, of which lanes outside the mask are 0.
template <class At> FEWBIT_INLINE Range range_of(int64_t k, const At &at) {
  __m512 lo = _mm512_setzero_ps(), hi = lo;
  __mmask16 strange = 0;
  const auto see = [&](int64_t i, __mmask16 m) __attribute__((always_inline)) {
    const __m512 v = at(i, m);
    strange |= _mm512_cmp_ps_mask(_mm512_abs_ps(v), splat(std::numeric_limits<float>::max()), _CMP_NLE_UQ);
    lo = _mm512_min_ps(lo, v), hi = _mm512_max_ps(hi, v);
  };
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) see(i, 0xffff);
  if (i < k) see(i, first(k - i));
  const float low = _mm512_reduce_min_ps(lo);
  return {low, _mm512_reduce_max_ps(hi) - low, strange != 0};
}

// The kp codes of a row with this scale.
template <class At> FEWBIT_INLINE void encode(int64_t k, int64_t kp, RowScale s, uint8_t *codes, const At &at) {
  const __m512 step = splat(s.scale), inverse = splat(1 / s.scale);
  const __m512i zero = _mm512_set1_epi32(s.zero);
  // A code is the integer nearest to a quotient. The product with the reciprocal is within
  // 1.5 * 2^-15 of a quotient up to 256 and has the same one, unless it lies that close to
  // the middle of two: then, for one group in a hundred, all is divided.
  const float safe = s.scale >= 0x1p-100f && s.scale <= 0x1p100f ? 0.5f - 0x1p-14f : -1;
  const __m512 shift = splat(0x1.8p23f); // what is added to it is rounded to an integer, in the last bits
  const __m512i from_shift = _mm512_sub_epi32(zero, _mm512_castps_si512(shift));
  constexpr int larger_magnitude = 0b1011;
  // Packing takes 32 bits to 8 within each 128; this puts them back in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto divided = [&](int64_t i, __mmask16 m) __attribute__((always_inline)) { return _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_div_ps(at(i, m), step)), zero); };
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    __m512i q[4];
    __m512 farthest = _mm512_setzero_ps(); // from its integer
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512 v = at(i + 16 * j, 0xffff), rounded = _mm512_fmadd_ps(v, inverse, shift);
      farthest = _mm512_range_ps(farthest, _mm512_fmsub_ps(v, inverse, _mm512_sub_ps(rounded, shift)), larger_magnitude);
      q[j] = _mm512_add_epi32(_mm512_castps_si512(rounded), from_shift);
    }
    if (__builtin_expect(_mm512_cmp_ps_mask(farthest, splat(safe), _CMP_NLE_UQ) != 0, 0))
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) q[j] = divided(i + 16 * j, 0xffff);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, bytes));
  }
  for (; i < kp; i += 16) {
    const __mmask16 m = first(k - i);
    const __m512i q = _mm512_maskz_mov_epi32(m, _mm512_max_epi32(divided(i, m), _mm512_setzero_si512()));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(codes + i), _mm512_cvtusepi32_epi8(q));
  }
}

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  // Ranges of some rows before the codes of the first: a range ends in a chain of
  // steps, which the next row does not wait for. The rows stay in the first-level cache.
  constexpr int64_t most_rows = 4, most_kept = 8192;
  // Quotients are kept for the codes, if they fit.
  alignas(64) float kept[most_kept];
  const int64_t kept_row = (k + 15) / 16 * 16, height = std::clamp<int64_t>(most_kept / kept_row, 1, most_rows);
  const bool keep = p.divisor && kept_row <= most_kept;
  for (int64_t n; r0 < r1; r0 += n, codes += n * kp, scales += n) {
    n = std::min(height, r1 - r0);
    const float *const rows = p.x + r0 * k;
    const auto number = [&](int64_t r) {
      return [x = rows + r * k, k](int64_t i, __mmask16 m) {
        _mm_prefetch(reinterpret_cast<const char *>(x + i + k), _MM_HINT_T0); // the next row: reading takes longer than all else
        return _mm512_maskz_loadu_ps(m, x + i);
      };
    };
    const auto quotient = [&](int64_t r) {
      return [x = rows + r * k, d = p.divisor](int64_t i, __mmask16 m) { return _mm512_maskz_div_ps(m, _mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, d + i)); };
    };
    const auto again = [&](int64_t r) { return [x = kept + r * kept_row](int64_t i, __mmask16) { return _mm512_load_ps(x + i); }; };
    Range ranges[most_rows];
    for (int64_t r = 0; r < n; r++) {
      if (!p.divisor)
        ranges[r] = range_of(k, number(r));
      else if (!keep)
        ranges[r] = range_of(k, quotient(r));
      else
        ranges[r] = range_of(k, [first = quotient(r), to = kept + r * kept_row](int64_t i, __mmask16 m) {
          const __m512 v = first(i, m);
          _mm512_store_ps(to + i, v);
          return v;
        });
    }
    for (int64_t r = 0; r < n; r++) {
      uint8_t *const to = codes + r * kp;
      if (!scale_row(ranges[r].low, ranges[r].width, ranges[r].strange, kp, to, scales + r)) continue;
      if (!p.divisor)
        encode(k, kp, scales[r], to, number(r));
      else if (!keep)
        encode(k, kp, scales[r], to, quotient(r));
      else
        encode(k, kp, scales[r], to, again(r));
    }
  }
}

// Fetches the panel that comes next while this one is multiplied: some lines with
// each step. What lies behind its end may be fetched with the last. Into the first-level
// cache where few rows take a panel: they would wait for the second-level one.
struct Prefetch {
  const char *at, *end;
  int lines;
  bool first_level;
  FEWBIT_INLINE void step() {
    if (at >= end) return;
    if (first_level)
      for (int i = lines; i > 0; i--, at += 64) _mm_prefetch(at, _MM_HINT_T0);
    else
      for (int i = lines; i > 0; i--, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};
constexpr int64_t kFirstLevelRows = 2 * kRows; // at most
constexpr int64_t kFirstLevelBytes = 48 << 10; // at least

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

// Where the codes of a tile's rows lie, from one column on. Three rows share a
// pointer and differ in the index of the address: all fit into registers so.
template <int R> struct Left {
  const uint8_t *at[(R + 2) / 3];
  int64_t kp;
  Left(const uint8_t *codes, int64_t kp) : kp(kp) {
    for (int i = 0; i < (R + 2) / 3; i++) at[i] = codes + 3 * i * kp;
  }
  FEWBIT_INLINE const int &four(int r, int64_t k) const { return *reinterpret_cast<const int *>(at[r / 3] + r % 3 * kp + k); }
  FEWBIT_INLINE void step(int64_t k) {
#pragma GCC unroll 3
    for (int i = 0; i < (R + 2) / 3; i++) at[i] += k;
  }
};

// Adds four rows of weights times their codes, those k columns on.
template <int R> FEWBIT_INLINE void add(Sums<R> &acc, const Left<R> &left, int64_t k, const __m512i (&w)[kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    // In assembly and in this order: left to itself the compiler hoists
    // the broadcasts and spills accumulators.
    __m512i a;
    asm volatile("vpbroadcastd %4, %3\n\tvpdpbusd %5, %3, %0\n\tvpdpbusd %6, %3, %1\n\tvpdpbusd %7, %3, %2"
                 : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "=&v"(a)
                 : "m"(left.four(r, k)), "v"(w[0]), "v"(w[1]), "v"(w[2]));
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
  const auto store = [&](auto act) __attribute__((always_inline)) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) {
      const int64_t c = c0 + 16 * v;
      const __mmask16 m = first(p.w.n - c);
      if (!m) break;
      float *const to = p.y + row * p.w.n + c;
      const __m512 scale = _mm512_loadu_ps(p.w.scales + c);
      __m512 y[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) y[r] = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), _mm512_mul_ps(splat(scales[r].scale), scale));
      if (p.bias) {
        const __m512 bias = _mm512_maskz_loadu_ps(m, p.bias + c);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) y[r] = _mm512_add_ps(y[r], bias);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) y[r] = act(y[r]);
      if (p.residual) {
        const float *const from = p.residual + row * p.w.n + c;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) y[r] = _mm512_add_ps(y[r], _mm512_maskz_loadu_ps(m, from + r * p.w.n));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) _mm512_mask_storeu_ps(to + r * p.w.n, m, y[r]);
    }
  };
  // A loop for each: a choice within one costs as much as what it chooses.
  switch (p.act) {
  case Activation::none: return store([](__m512 y) __attribute__((always_inline)) { return y; });
  case Activation::gelu: return store([](__m512 y) __attribute__((always_inline)) { return gelu(y); });
  case Activation::quick_gelu: return store([](__m512 y) __attribute__((always_inline)) { return quick_gelu(y); });
  case Activation::gelu_tanh: return store([](__m512 y) __attribute__((always_inline)) { return gelu_tanh(y); });
  case Activation::silu: return store([](__m512 y) __attribute__((always_inline)) { return silu(y); });
  case Activation::relu: return store([](__m512 y) __attribute__((always_inline)) { return relu(y); });
  }
}

// A function for each height: in one with all the others the compiler runs out of
// registers.
template <int R>
__attribute__((noinline)) void tile(const Int8Product &p, const uint8_t *codes, const RowScale *scales, int64_t row, int64_t panel,
                                    Prefetch &fetch, const Part &part) {
  Left<R> left(codes, p.w.padded_k());
  Prefetch next = fetch;
  Sums<R> acc;
  begin<R>(acc, p, scales, panel, part);
  for (const int8_t *b = part.b, *const end = b + part.k * kPanel; b != end; left.step(kInt8Step)) {
    next.step();
#pragma GCC unroll 4
    for (int i = 0; i < kInt8Step / 4; i++, b += 4 * kPanel) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) w[v] = _mm512_loadu_si512(b + 64 * v);
      add<R>(acc, left, 4 * i, w);
    }
  }
  finish<R>(acc, p, scales, row, panel, part);
  fetch.at = next.at;
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
  Left<R> left(codes, p.w.padded_k());
  const __m512i nibble = _mm512_set1_epi8(15);
  Sums<R> acc;
  begin<R>(acc, p, scales, panel, part);
  for (int64_t k = 0; k < part.k; k += kInt4Block, steps++, pairs += kInt4BlockBytes, expanded += kInt4Block * kPanel, left.step(kInt4Block)) {
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
        add<R>(acc, left, half * (kInt4Block / 2) + 4 * g, w);
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
        tile<tall>(p, from + r * k, scales + r0 + r, row + r0 + r, panel, next, part(r));
      });
    }
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes,
              const RowScale *scales) {
  const int64_t kp = p.w.padded_k();
  const int64_t steps = (r1 - r0 + kRows - 1) / kRows * (kp / kInt8Step);
  const bool first_level = r1 - r0 <= kFirstLevelRows && first_level_bytes() >= kFirstLevelBytes;
  for (int64_t panel = p0; panel < p1; panel++) {
    const auto [at, ahead] = p.ahead(panel, p1);
    Prefetch next{at, at + ahead, int((ahead / 64 + steps - 1) / steps), first_level};
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

void int8_avx512_finish(const Int8Product &p, int64_t row, int64_t rows, int64_t panel, const uint8_t *codes, const RowScale *scales,
                        int32_t *sums, int64_t k) {
  const int64_t kp = p.w.padded_k();
  const int32_t *const columns = p.w.sums + panel * kPanel;
  for (int64_t r = 0; r < rows; r++) {
    const __m512i zero = _mm512_set1_epi32(scales[r].zero);
    for (int64_t c = r * kPanel, i = 0; i < kPanel; i += 16)
      _mm512_store_si512(sums + c + i, _mm512_sub_epi32(_mm512_load_si512(sums + c + i), _mm512_mullo_epi32(zero, _mm512_loadu_si512(columns + i))));
  }
  Prefetch none{nullptr, nullptr, 0, false};
  tiles(rows, [&](auto height, int64_t r) {
    tile<height>(p, codes + r * kp + k, scales + r, row + r, panel, none, {p.w.panel(panel) + k * kPanel, kp - k, sums + r * kPanel, false, true});
  });
}

} // namespace fewbit
