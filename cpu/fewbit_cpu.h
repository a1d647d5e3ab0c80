// libfewbit_cpu: kernels for x86-64 and other processors, and the operators of
// the domain `fewbit` that ONNX Runtime executes with them.
//
// A program loads the library with RegisterCustomOps, the entry that ONNX
// Runtime's RegisterCustomOpsLibrary looks for (Python:
// SessionOptions.register_custom_ops_library), or finds the functions below
// with dlsym. docs/cpu.md describes operators, layouts and what runs where.
#ifndef FEWBIT_CPU_H
#define FEWBIT_CPU_H
#include <stddef.h>
#include <stdint.h>

// Changes whenever a function here, a packed layout or an operator changes, and
// kernelsABI in internal/engine/ort/kernels.go with it.
#define FEWBIT_CPU_ABI 18

#ifdef __cplusplus
extern "C" {
#endif

enum fewbit_cpu_level {
  FEWBIT_CPU_PLAIN = 0,       // portable C++: right everywhere, fast nowhere
  FEWBIT_CPU_ARM_DOT = 1,     // Arm with dot products
  FEWBIT_CPU_ARM_I8MM = 2,    // and matrix products of bytes
  FEWBIT_CPU_AVX2 = 3,        // AVX2 and FMA
  FEWBIT_CPU_AVX2_VNNI = 4,   // with VNNI of 256 bits
  FEWBIT_CPU_AVX512_VNNI = 5, // AVX-512 F, BW, DQ, VL and VNNI
  FEWBIT_CPU_AVX512_BF16 = 6, // and BF16: attention in it, and MatMulBF16
  FEWBIT_CPU_AMX = 7          // and tiles of AMX with products of INT8
};

typedef struct fewbit_cpu_api {
  uint32_t abi;     // FEWBIT_CPU_ABI of the library
  int32_t level;    // enum fewbit_cpu_level that this processor runs
  const char *name; // of the level, for people: "amx", "avx512-bf16", "avx512-vnni", "avx2-vnni", "avx2", "arm-i8mm", "arm-dot", "plain"

  // Size in bytes of a float weight [k,n] packed for MatMulBF16; 0 when k or n
  // is outside 1..FEWBIT_CPU_MAX_DIM.
  size_t (*bf16_packed_size)(int64_t k, int64_t n);
  // Packs columns first to last-1 of w, [k,n] row by row, into `to`, which has
  // bf16_packed_size bytes and is aligned to 64. Ranges that begin at a
  // multiple of FEWBIT_CPU_PANEL may be packed by different threads; the one
  // with first = 0 writes the header.
  void (*bf16_pack)(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
  // Adds x'x to rows first to last-1 of the lower triangle sum, whose row i has i+1
  // values: x [rows,k] as bf16_pack packs a weight. Ranges that begin at a multiple of
  // FEWBIT_CPU_PANEL may be added by different threads.
  void (*bf16_gram)(const void *packed, int64_t rows, int64_t k, int64_t first, int64_t last, float *sum);
  // Packing of INT8 weights with one scale a column, for LinearRows; k is at
  // most FEWBIT_CPU_INT8_MAX_K.
  size_t (*int8_packed_size)(int64_t k, int64_t n);
  void (*int8_pack)(const int8_t *w, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
  // The same for 4-bit weights, whose values are (code - 8) * step; k is a multiple
  // of FEWBIT_CPU_INT4_BLOCK. Byte [b,i,c] of codes [k/32,16,n] has those of rows
  // 32 b + i (low bits) and 32 b + 16 + i of column c; steps are [k/32,n],
  // -FEWBIT_CPU_INT4_MAX_STEP..FEWBIT_CPU_INT4_MAX_STEP.
  size_t (*int4_packed_size)(int64_t k, int64_t n);
  void (*int4_pack)(const uint8_t *codes, const int8_t *steps, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last,
                    void *to);
  // Loops of the weight solvers in float32, no product and sum contracted; NULL at
  // levels without AVX-512. Ranges of columns may be done by different threads.
  //
  // GPTQ's rounding of columns first to last-1 of `rows` rows, FEWBIT_CPU_SOLVE_ROWS at
  // most, one after the other. Row r is row order[r] of w and codes, both rows of n
  // values, and row r of carried (which may be NULL) and d; scales has one a column.
  // It rounds w + carried + sum over j < r of m[r*k+j] * d[j] to codes of lo to hi,
  // a weight of 0 to 0, and leaves w less what the code stands for in d.
  void (*round_strip)(const float *m, int64_t k, const int64_t *order, int64_t rows, const float *w, const float *carried,
                      const float *scales, int64_t n, int64_t first, int64_t last, float lo, float hi, float *d, int8_t *codes);
  // Replaces the scales of columns first to last-1 of w [k,n] by that share of them,
  // the first of `steps`, whose rounding to -top..top has the least squared error, each
  // row weighed by importance. Sums of FEWBIT_CPU_SOLVE_ROWS rows are FP32, of these
  // FP64. scratch has 16 k values.
  void (*clip_scales)(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, const float *importance, const float *shares,
                      int64_t steps, float top, float *scratch, float *scales);
} fewbit_cpu_api;

#define FEWBIT_CPU_MAX_DIM (1 << 20)
#define FEWBIT_CPU_INT8_MAX_K 65792
#define FEWBIT_CPU_INT4_BLOCK 32
#define FEWBIT_CPU_INT4_MAX_STEP 15
#define FEWBIT_CPU_PANEL 48

// Rows that the loops of the solvers take at a time.
#define FEWBIT_CPU_SOLVE_ROWS 64

// The functions of this process's processor, NULL when the library has another
// ABI than the caller was built for. Valid for ever.
const fewbit_cpu_api *fewbit_cpu_get_api(uint32_t abi);

#ifdef __cplusplus
}
#endif
#endif
