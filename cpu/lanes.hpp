// Vectors of W floats as the compiler has them, with the instructions of the
// processor that the file which includes this is compiled for. Each such file gets
// its own copy.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "math_constants.hpp"

namespace fewbit {
namespace {

template <int W> struct Vectors;
template <> struct Vectors<4> {
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
};
template <> struct Vectors<8> {
  typedef float F __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));
};
template <> struct Vectors<16> {
  typedef float F __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));
};

template <class To, class From> FEWBIT_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof from);
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <int W> struct Lanes {
  static constexpr int width = W;
  using F = typename Vectors<W>::F;
  using U = typename Vectors<W>::U;

  static FEWBIT_INLINE F splat(float v) { return v - F{}; } // and not +, which makes 0 of -0
  static FEWBIT_INLINE F load(const float *p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static FEWBIT_INLINE void store(float *p, F v) { std::memcpy(p, &v, sizeof v); }
  // The first n lanes as masks of the instructions are, n below W.
  static FEWBIT_INLINE auto first([[maybe_unused]] int64_t n) {
    n = std::max<int64_t>(n, 0);
#if defined(__AVX512F__)
    if constexpr (W == 16) return __mmask16((1u << n) - 1);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#endif
  }

  // The first n lanes alone, if there are fewer; none where n is below 1.
  static FEWBIT_INLINE F load(const float *p, int64_t n, float otherwise) {
    if (n >= W) return load(p);
    F v = splat(otherwise);
#if defined(__AVX512F__)
    if constexpr (W == 16) return _mm512_mask_loadu_ps(v, first(n), p);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return _mm256_blendv_ps(v, _mm256_maskload_ps(p, first(n)), _mm256_castsi256_ps(first(n)));
#endif
    for (int i = 0; i < W - 1; i++) // each lane by a constant: it stays in its register
      if (i < n) v[i] = p[i];
    return v;
  }
  static FEWBIT_INLINE void store(float *p, int64_t n, F v) {
    if (n >= W) return store(p, v);
#if defined(__AVX512F__)
    if constexpr (W == 16) return _mm512_mask_storeu_ps(p, first(n), v);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return _mm256_maskstore_ps(p, first(n), v);
#endif
    for (int i = 0; i < W - 1; i++)
      if (i < n) p[i] = v[i];
  }

  // a b + c, rounded once where the processor does.
  static FEWBIT_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#if defined(__FMA__)
    if constexpr (W == 8) return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    if constexpr (W == 4) return vfmaq_f32(c, a, b);
#endif
    return a * b + c;
  }
  // b where a is NaN.
  static FEWBIT_INLINE F larger(F a, F b) { return a > b ? a : b; }
  static FEWBIT_INLINE F smaller(F a, F b) { return a < b ? a : b; }

  // The lanes in pairs: what they give does not depend on the compiler.
  template <class Op> static FEWBIT_INLINE float reduce(F v, const Op &op) {
    float x[W];
    store(x, v);
    for (int n = W / 2; n; n /= 2)
      for (int i = 0; i < n; i++) x[i] = op(x[i], x[i + n]);
    return x[0];
  }
  static FEWBIT_INLINE float sum(F v) {
    return reduce(v, [](float a, float b) { return a + b; });
  }
  template <class Mask> static FEWBIT_INLINE bool any(Mask m) { return largest(m ? F{} + 1.f : F{}) > 0; }
  static FEWBIT_INLINE float largest(F v) {
    return reduce(v, [](float a, float b) { return a > b ? a : b; });
  }

  // exp by 2^n * exp(r), of at most exp(88); 0 below exp(-87). Largest relative error
  // 2e-7. NaN stays NaN.
  static FEWBIT_INLINE F exp(F x) {
    const F least = splat(-87.f), most = splat(88.f);
    F y = x < least ? least : x;
    y = y > most ? most : y;
    const F integers = splat(12582912.f); // 1.5 * 2^23: a sum has no fraction
    const F t = fma(y, splat(kLog2E), integers), n = t - integers;
    F r = fma(n, splat(-kLn2High), y);
    r = fma(n, splat(-kLn2Low), r);
    F p = splat(kExp[0]);
#pragma GCC unroll 8
    for (int i = 1; i < kExpP; i++) p = fma(p, r, splat(kExp[i]));
    p = fma(p, r * r, r) + 1.f;
    // n is in the lowest bits of t.
    const U power = (bits_as<U>(t) << 23) + 0x3f800000u;
    return x < least ? F{} : p * bits_as<F>(power);
  }

  // 0.5 x (1 + erf(x / sqrt 2)), by the approximation of math_constants.hpp.
  static FEWBIT_INLINE F gelu(F x) {
    F e = x * 0.70710678118654752f;
    e = e < -4.f ? splat(-4.f) : e;
    e = e > 4.f ? splat(4.f) : e;
    const F t = e * e, h = x * 0.5f;
    F p = splat(kErfNumerator[0]), q = splat(kErfDenominator[0]);
#pragma GCC unroll 8
    for (int i = 1; i < kErfP; i++) p = fma(p, t, splat(kErfNumerator[i]));
#pragma GCC unroll 8
    for (int i = 1; i < kErfQ; i++) q = fma(q, t, splat(kErfDenominator[i]));
    return fma(h, e * p / q, h);
  }

  // x / (1 + exp(t)), infinity where that passes exp(88): 0 of what is finite, NaN of infinity.
  static FEWBIT_INLINE F gated(F x, F t) { return x / (t > 88.f ? splat(std::numeric_limits<float>::infinity()) : exp(t) + 1.f); }
};

} // namespace
} // namespace fewbit
