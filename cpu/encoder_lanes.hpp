// Attention in FP32 and the normalization of rows, for the processors whose files
// include it. Nothing is rounded to BF16 here.
#pragma once
#include <cmath>
#include <limits>
#include <type_traits>

#include "attention.hpp"
#include "encoder.hpp"
#include "lanes.hpp"

namespace fewbit {
namespace {

// What one thread works in; all lie on 64 bytes. Keys and columns beyond the last
// are 0.
//
//   keys    [16 keys][a head's size][key]
//   values  [16 columns][key][column]
//
// and the queries and scores of kAttentionRows rows.
struct FloatMemory {
  float *keys, *values, *queries, *scores;
  size_t bytes;

  FloatMemory(const Attention &a, void *memory) {
    bytes = 0;
    const auto take = [&](int64_t n) { // without memory only counts
      const uintptr_t at = reinterpret_cast<uintptr_t>(memory) + bytes;
      bytes += (size_t(n) * sizeof(float) + 63) / 64 * 64;
      return reinterpret_cast<float *>(at);
    };
    keys = take(a.length_vectors() * 16 * a.size);
    values = take(a.size_vectors() * 16 * a.length);
    queries = take(kAttentionRows * a.size);
    scores = take(kAttentionRows * a.length_vectors() * 16);
  }
};

// L: the vectors. R: rows of a tile, G: its most groups of 16 columns, so that its
// sums stay in registers.
template <class L, int R, int G> struct FloatAttention {
  static_assert(kAttentionRows % R == 0 && 16 % L::width == 0);
  using F = typename L::F;
  static constexpr int W = L::width;

  static size_t bytes(const Attention &a) { return FloatMemory(a, nullptr).bytes; }

  static void pack(const Attention &a, int64_t b, int64_t h, void *memory) {
    const FloatMemory m(a, memory);
    for (int64_t s = 0; s < a.length; s += 16) {
      const float *k[16];
      const int64_t n = std::min<int64_t>(16, a.length - s);
      for (int64_t i = 0; i < 16; i++) k[i] = a.row(b, s + std::min(i, n - 1), 1, h);
      float *to = m.keys + s * a.size;
      for (int64_t d = 0; d < a.size; d++, to += 16)
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) to[i] = k[i][d];
    }
    for (int64_t d = 0; d < a.size; d += 16)
      for (int64_t s = 0; s < a.length; s++) {
        const float *v = a.row(b, s, 2, h) + d;
        float *to = m.values + d * a.length + 16 * s;
        for (int i = 0; i < 16; i += W) L::store(to + i, L::load(v + i, a.size - d - i, 0));
      }
  }

  // Calls store(r, column, sums) with the products of `depth` elements of rows 0 to
  // R-1 of `left` and n groups of columns, which have `stride` rows.
  template <int n, class Store>
  static FEWBIT_INLINE void multiply(const float *left, int64_t row, const float *right, int64_t stride, int64_t depth, const Store &store) {
    constexpr int V = n * 16 / W;
    F acc[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[r][v] = F{};
    for (int64_t p = 0; p < depth; p++, right += 16) {
      F w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) w[v] = L::load(right + v * W / 16 * stride * 16 + v * W % 16);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const F x = L::splat(left[r * row + p]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[r][v] = L::fma(x, w[v], acc[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) store(r, v * W, acc[r][v]);
  }

  // Calls f(first group, a constant with their number) for groups [g,groups).
  template <class Each> static FEWBIT_INLINE void by_groups(int64_t g, int64_t groups, const Each &f) {
    for (; g + G <= groups; g += G) f(g, std::integral_constant<int, G>());
    for (; g < groups; g++) f(g, std::integral_constant<int, 1>());
  }

  // attention_keys
  static KeyRange keys_of(const float *bias, int64_t length) {
    KeyRange k{0, length};
    if (!bias) return k;
    F most = L::splat(-std::numeric_limits<float>::infinity());
    auto strange = most != most;
    for (int64_t s = 0; s < length; s += W) {
      const F v = L::load(bias + s, length - s, -std::numeric_limits<float>::infinity());
      strange |= v != v;
      most = L::larger(v, most);
    }
    const float top = L::largest(most);
    if (L::any(strange) || !std::isfinite(top)) return k;
    const auto counts = [top](float v) { return top - v < kMasked; };
    while (k.end >= W && !counts(L::largest(L::load(bias + k.end - W)))) k.end -= W;
    while (!counts(bias[k.end - 1])) k.end--; // the largest counts
    while (k.begin + W <= k.end && !counts(L::largest(L::load(bias + k.begin)))) k.begin += W;
    while (!counts(bias[k.begin])) k.begin++;
    return k;
  }

  // x = scale * x + bias of the keys; returns the largest.
  static float scale_and_bias(const Attention &a, float *x, const float *bias, KeyRange keys) {
    const F least = L::splat(-std::numeric_limits<float>::infinity());
    F most = least;
    for (int64_t s = keys.begin; s < keys.end; s += W) {
      const int64_t n = keys.end - s;
      F v = L::load(x + s) * a.scale;
      if (bias) v = v + L::load(bias + s, n, 0);
      L::store(x + s, v);
      if (n < W) L::store(x + s, v = L::load(x + s, n, -std::numeric_limits<float>::infinity()));
      most = L::larger(v, most);
    }
    return L::largest(most);
  }

  // x = exp(x - largest); returns 1 / their sum. A NaN among the scores makes the sum,
  // and with it the row, NaN.
  static float softmax(float *x, float largest, KeyRange keys) {
    F sum = F{};
    for (int64_t s = keys.begin; s < keys.end; s += W) {
      const F e = L::exp(L::load(x + s) - largest);
      L::store(x + s, e);
      sum = sum + L::load(x + s, keys.end - s, 0);
    }
    return 1 / L::sum(sum);
  }

  static void rows(const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory) {
    const FloatMemory m(a, memory);
    const int64_t s_row = a.length_vectors() * 16;
    KeyRange keys;
    for (int64_t r = r0; r < r1; r += kAttentionRows) {
      const int64_t count = std::min<int64_t>(kAttentionRows, r1 - r);
      if (a.bias_row || r == r0) keys = keys_of_rows(a, b, h, r, count, keys_of);
      for (int64_t i = 0; i < kAttentionRows; i++) std::copy_n(a.row(b, r + std::min(i, count - 1), 0, h), a.size, m.queries + i * a.size);
      for (int64_t i = 0; i < count; i += R)
        by_groups(keys.begin / 16, (keys.end + 15) / 16, [&](int64_t g, auto n) {
          float *to = m.scores + i * s_row + g * 16;
          multiply<n>(m.queries + i * a.size, a.size, m.keys + g * 16 * a.size, a.size, a.size,
                      [&](int row, int at, F sums) __attribute__((always_inline)) { L::store(to + row * s_row + at, sums); });
        });
      float largest[kAttentionRows], shares[kAttentionRows];
      for (int64_t i = 0; i < count; i++) largest[i] = scale_and_bias(a, m.scores + i * s_row, a.bias_of(b, h, r + i), keys);
      for (int64_t i = 0; i < count; i++) shares[i] = softmax(m.scores + i * s_row, largest[i], keys);
      for (int64_t i = 0; i < count; i += R)
        by_groups(0, a.size_vectors(), [&](int64_t g, auto n) {
          float *y = a.out(b, r + i, h) + g * 16;
          multiply<n>(m.scores + i * s_row + keys.begin, s_row, m.values + (g * a.length + keys.begin) * 16, a.length, keys.end - keys.begin,
                      [&](int row, int at, F sums) __attribute__((always_inline)) {
                        const int64_t columns = a.out_size() - g * 16 - at;
                        if (i + row < count) L::store(y + row * a.out_row() + at, columns, sums * shares[i + row]);
                      });
        });
    }
  }

  static constexpr AttentionKernels kernels = {bytes, pack, rows};
};

template <class L> void normalize_lanes(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y) {
  using F = typename L::F;
  constexpr int64_t W = L::width;
  // Calls f(i, which, left) for the vectors of a row, which is 0 and 1 in turn; whole
  // ones have a constant for what is left.
  const auto each = [n](const auto &f) __attribute__((always_inline)) {
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) f(i, 0, W), f(i + W, 1, W);
    if (i < n) f(i, 0, n - i);
    if (i + W < n) f(i + W, 1, n - i - W);
  };
  // Some rows with each step: a sum ends in a chain of additions, which the next row
  // does not wait for.
  constexpr int64_t most = 4;
  for (int64_t count; rows > 0; rows -= count, x += count * n, y += count * n) {
    count = std::min(rows, most);
    float mean[most], unit[most];
    for (int64_t r = 0; r < count; r++) {
      F s[2] = {};
      each([&, from = x + r * n](int64_t i, int which, int64_t left) __attribute__((always_inline)) { s[which] = s[which] + L::load(from + i, left, 0); });
      mean[r] = L::sum(s[0] + s[1]) / float(n);
    }
    for (int64_t r = 0; r < count; r++) {
      F s[2] = {};
      each([&, from = x + r * n, mean = mean[r]](int64_t i, int which, int64_t left) __attribute__((always_inline)) {
        const F d = L::load(from + i, left, mean) - mean;
        s[which] = L::fma(d, d, s[which]);
      });
      unit[r] = 1 / std::sqrt(L::sum(s[0] + s[1]) / float(n) + epsilon);
    }
    for (int64_t r = 0; r < count; r++)
      each([&, from = x + r * n, to = y + r * n, mean = mean[r], unit = unit[r]](int64_t i, int, int64_t left) __attribute__((always_inline)) {
        const F v = (L::load(from + i, left, 0) - mean) * unit;
        L::store(to + i, left, L::fma(v, L::load(gamma + i, left, 0), L::load(beta + i, left, 0)));
      });
  }
}

} // namespace
} // namespace fewbit
