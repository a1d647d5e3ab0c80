// Products of FP32 rows, quantized by row to UINT8 as docs/ops.md says, with
// INT8 weights: QuantizeRows and MatMulQuantized in one, bit for bit.
//
// Packed weight [k,n]: a header of 64 bytes, one panel for every 48 columns,
// then the sums and the scales of all columns. A panel holds for each four rows
// the columns' bytes as the dot product instruction reads them:
//
//            column 0      column 1      ...  column 47
//   k 0..3   w[0..3,0]     w[0..3,1]          w[0..3,47]
//   k 4..7   w[4..7,0]     ...
//
// k is padded with zeros to a multiple of 16, n to 48.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "bf16.hpp"
#include "fewbit_cpu.h"

namespace fewbit {

inline constexpr int64_t kInt8Step = 16;
inline constexpr int64_t kInt8MaxK = 65792; // ops.MaxK: sums stay within INT32

struct Int8Header {
  char magic[16];
  int64_t k, n;
  char zero[32];
};
static_assert(sizeof(Int8Header) == 64);
inline constexpr char kInt8Magic[16] = "fewbit int8 1";

// A packed weight where it lies.
struct Int8Weight {
  int64_t k = 0, n = 0;
  bool four = false; // the panels are those of int4.hpp, which int8_plain and int8_avx512 take
  const int8_t *panels = nullptr;
  const int32_t *sums = nullptr; // [n padded]
  const float *scales = nullptr; // [n padded]

  int64_t padded_k() const { return (k + kInt8Step - 1) / kInt8Step * kInt8Step; }
  int64_t panel_count() const { return (n + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const;
  const int8_t *panel(int64_t i) const { return panels + i * panel_bytes(); }
};

size_t int8_packed_size(int64_t k, int64_t n);
void int8_pack(const int8_t *w, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
const char *int8_view(const void *data, size_t bytes, Int8Weight *w); // nullptr, or what is wrong

// y[r,c] = act(float(acc) * (scale[r] * w.scales[c]) + bias[c]) + residual[r,c],
// each operation rounded by itself
struct Int8Product {
  const float *x = nullptr;       // [m,k]
  const float *divisor = nullptr; // [k], x is divided by it first; or nullptr
  float *y = nullptr;             // [m,n]
  const float *bias = nullptr;    // [n] or nullptr
  const float *residual = nullptr; // [m,n] or nullptr
  Activation act = Activation::none;
  Int8Weight w;
  const void *after = nullptr; // read next behind the last panel: fetched meanwhile
  int64_t after_bytes = 0;

  // What is read behind a panel of panels up to p1, and its bytes.
  std::pair<const char *, int64_t> ahead(int64_t panel, int64_t p1) const {
    if (panel + 1 == p1 && after) return {static_cast<const char *>(after), after_bytes};
    return {reinterpret_cast<const char *>(w.panel(panel + 1)), panel + 1 < w.panel_count() ? w.panel_bytes() : 0};
  }
};

// A quantized row: padded_k codes; the scale of a row that holds a NaN or an
// infinity, or is wider than floats are, is NaN, and so is all that it gives.
struct RowScale {
  float scale;
  int32_t zero;
};

struct Int8Kernels {
  // Rows [r0,r1): codes [r1-r0, padded_k] and their scales.
  void (*quantize)(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales);
  void (*multiply)(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes,
                   const RowScale *scales);
};

extern const Int8Kernels int8_plain;
#if defined(FEWBIT_AVX512)
extern const Int8Kernels int8_avx512;
// Rows [row,row+rows) of p.y in the columns of a panel, from the sums [rows, kPanel]
// of its first k rows, which are aligned to 64 bytes and used up.
void int8_avx512_finish(const Int8Product &p, int64_t row, int64_t rows, int64_t panel, const uint8_t *codes, const RowScale *scales,
                        int32_t *sums, int64_t k);
#endif
#if defined(FEWBIT_AMX)
extern const Int8Kernels int8_amx;
#endif
#if defined(FEWBIT_EMULATE_AMX)
extern const Int8Kernels int8_amx_emulated; // of tests
#endif
#if defined(FEWBIT_AVX2)
extern const Int8Kernels int8_avx2;
#endif
#if defined(FEWBIT_AVX2_VNNI)
extern const Int8Kernels int8_avx2_vnni;
#endif
#if defined(FEWBIT_ARM_I8MM)
extern const Int8Kernels int8_arm_i8mm;
#endif
#if defined(FEWBIT_ARM_DOT)
extern const Int8Kernels int8_arm_dot;
#endif
const Int8Kernels &int8_kernels(); // the level's

// From the sums of codes times weights of a panel's columns to row r of y.
void int8_finish(const Int8Product &p, int64_t r, int64_t panel, int64_t columns, const int32_t *sum, RowScale s);

} // namespace fewbit
