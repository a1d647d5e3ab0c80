// INT8 weights stored in 4 bits: in a column every 32 rows share a step, a small
// integer, and a weight is (code - 8) * step, a code 0..15 times a step -15..15
// (docs/ops.md, ExpandBlocks). What a product does with them is what int8.hpp says
// of the INT8 weights that they stand for, bit for bit; half as much is read.
//
// Packed weight [k,n]: a header of 64 bytes, one panel for every 48 columns, then
// the sums and the scales of all columns as in int8.hpp. A panel begins with 48
// bytes of steps for each block, padded to 64; a byte holds the magnitude and, in
// bit 4, the sign. Then each block has twelve times 64 bytes of codes:
//
//            column 0                   ...  column 15                 columns 16..31, 32..47
//   g = 0    k 0..3 low, 16..19 high         k 0..3 low, 16..19 high   ...
//   g = 1    k 4..7 low, 20..23 high         ...
//   ...
//
// so that one vector of bytes has those of two vectors of a panel in INT8. Codes of
// a negative step are turned around, 15 - code: a product with the magnitude
// then gives a byte of its own, without a carry into the next.
#pragma once
#include <vector>

#include "int8.hpp"

namespace fewbit {

inline constexpr int64_t kInt4Block = FEWBIT_CPU_INT4_BLOCK;
inline constexpr int64_t kInt4BlockBytes = kInt4Block / 2 * kPanel;
inline int64_t int4_steps_bytes(int64_t k) { return (k / kInt4Block * kPanel + 63) / 64 * 64; } // of a panel
inline constexpr uint8_t kInt4Negative = 16; // in the byte of a step
inline constexpr char kInt4Magic[16] = "fewbit int4 1";

size_t int4_packed_size(int64_t k, int64_t n);
void int4_pack(const uint8_t *codes, const int8_t *steps, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to);

// Rows [k0,k1), whole blocks, of a panel as they lie in one of INT8.
void int4_expand(const Int8Weight &w, int64_t panel, int64_t k0, int64_t k1, int8_t *to);

// A packed weight of 8 or 4 bits where it lies: nullptr, or what is wrong. On
// processors whose kernels take INT8 only, those of 4 bits are expanded into
// memory.
const char *weight_view(const void *data, size_t bytes, Int8Weight *w, std::vector<int8_t> *memory);

} // namespace fewbit
