// RMS normalization and rotation of rows, for the processors whose files include it.
#pragma once
#include <cmath>

#include "encoder.hpp"
#include "lanes.hpp"
#include "rotary.hpp"

namespace fewbit {
namespace {

template <class L> void rms_lanes(const float *x, const float *gamma, const float *, float epsilon, int64_t rows, int64_t n, float *y) {
  using F = typename L::F;
  constexpr int64_t W = L::width;
  for (; rows > 0; rows--, x += n, y += n) {
    F s[4] = {}; // chains of additions that do not wait for each other
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; j++) {
        const F v = L::load(x + i + j * W);
        s[j] = L::fma(v, v, s[j]);
      }
    for (; i < n; i += W) {
      const F v = L::load(x + i, n - i, 0);
      s[0] = L::fma(v, v, s[0]);
    }
    const float unit = 1 / std::sqrt(L::sum((s[0] + s[1]) + (s[2] + s[3])) / float(n) + epsilon);
    for (i = 0; i + W <= n; i += W) L::store(y + i, L::load(x + i) * unit * L::load(gamma + i));
    if (i < n) L::store(y + i, n - i, L::load(x + i, n - i, 0) * unit * L::load(gamma + i, n - i, 0));
  }
}

template <class L> void rotate_lanes(const float *cos, const float *sin, int64_t n, int64_t rows, float *x, int64_t stride, int64_t keys) {
  using F = typename L::F;
  constexpr int64_t W = L::width;
  const int64_t half = n / 2;
  for (; rows > 0; rows--, cos += n, sin += n, x += stride) {
    const auto turn = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      const F c0 = L::load(cos + i, left, 0), c1 = L::load(cos + half + i, left, 0), s0 = L::load(sin + i, left, 0), s1 = L::load(sin + half + i, left, 0);
      for (float *v : {x + i, x + keys + i}) {
        const F lo = L::load(v, left, 0), hi = L::load(v + half, left, 0);
        L::store(v, left, lo * c0 - hi * s0);
        L::store(v + half, left, hi * c1 + lo * s1);
      }
    };
    int64_t i = 0;
    for (; i + W <= half; i += W) turn(i, W);
    if (i < half) turn(i, half - i);
  }
}

} // namespace
} // namespace fewbit
