// Products of FP32 activations with weights in BF16, summed in FP32.
//
// Both operands are rounded to BF16 (nearest, half to even), products are exact
// and sums are FP32, two products a step, in the order of k: each output is a
// function of its row and its column alone. Row splits, threads and tile
// remainders change no bit.
//
// Packed weight [k,n]: a header of 64 bytes, then one panel for every 48
// columns, zero-padded. A panel holds for each pair of rows the pair's 48
// columns, as the dot product instruction reads them:
//
//            column 0          column 1         ...  column 47
//   k 0,1    w[0,0] w[1,0]     w[0,1] w[1,1]         w[0,47] w[1,47]
//   k 2,3    w[2,0] w[3,0]     ...
//
// k is padded to a multiple of 16.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fewbit_cpu.h"

namespace fewbit {

inline constexpr int64_t kPanel = FEWBIT_CPU_PANEL;
inline constexpr int64_t kMaxDim = FEWBIT_CPU_MAX_DIM;
inline constexpr int64_t kBf16Step = 16; // k is padded to it

struct Bf16Header {
  char magic[16];
  int64_t k, n;
  char zero[32];
};
static_assert(sizeof(Bf16Header) == 64);
inline constexpr char kBf16Magic[16] = "fewbit bf16 1";

// A packed weight where it lies.
struct Bf16Weight {
  int64_t k = 0, n = 0;
  const uint16_t *panels = nullptr;

  int64_t padded_k() const { return (k + kBf16Step - 1) / kBf16Step * kBf16Step; }
  int64_t panel_count() const { return (n + kPanel - 1) / kPanel; }
  const uint16_t *panel(int64_t i) const { return panels + i * padded_k() * kPanel; }
};

size_t bf16_packed_size(int64_t k, int64_t n);
void bf16_pack(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, void *to);

// Adds x'x of x [rows,k], packed, to rows first to last-1 of a lower triangle.
void bf16_gram(const void *packed, int64_t rows, int64_t k, int64_t first, int64_t last, float *sum);

// Reads what bf16_pack wrote. Returns nullptr, or what is wrong with it.
const char *bf16_view(const void *data, size_t bytes, Bf16Weight *w);

enum class Activation { none, gelu, quick_gelu, gelu_tanh, silu, relu };

// y[r,c] = act(sum over k of bf16(x[r,k]) * w[k,c] + bias[c])
struct Bf16Product {
  const float *x = nullptr; // [m,k]
  float *y = nullptr;       // [m,n]
  const float *bias = nullptr; // [n] or nullptr
  Activation act = Activation::none;
  Bf16Weight w;
};

inline float bf16_to_float(uint16_t v) {
  uint32_t b = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &b, sizeof f);
  return f;
}

inline uint16_t bf16_round(float v) {
  uint32_t b;
  std::memcpy(&b, &v, sizeof b);
  if ((b & 0x7fffffffu) > 0x7f800000u) return uint16_t(b >> 16 | 0x40); // NaN stays one
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

// Where row i of a lower triangle begins: it has i+1 values.
inline int64_t triangle_row(int64_t i) { return i * (i + 1) / 2; }

// One implementation. `rows` holds bf16 copies of rows [r0,r1) of x, padded_k
// values each: `convert` fills it, `multiply` computes panels [p0,p1) of these
// rows of y.
struct Bf16Kernels {
  void (*convert)(const Bf16Product &p, int64_t r0, int64_t r1, uint16_t *rows);
  void (*multiply)(const Bf16Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint16_t *rows);
  // Adds x'x of a packed x to the rows of the lower triangle `sum` that panels [p0,p1)
  // of x's columns are.
  void (*gram)(const Bf16Weight &x, int64_t p0, int64_t p1, float *sum);
};

extern const Bf16Kernels bf16_plain;
#if defined(FEWBIT_AVX512_BF16)
extern const Bf16Kernels bf16_avx512;
#endif
const Bf16Kernels &bf16_kernels(); // the level's

} // namespace fewbit
