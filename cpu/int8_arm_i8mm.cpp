// Compiled for 64-bit Arm with matrix products of bytes (FEAT_I8MM); runs only where
// level() says so. USMMLA multiplies two rows of 8 codes by two columns of 8 weights:
//
//   codes    row 0: k 0..7, row 1: k 0..7
//   weights  column 0: k 0..7, column 1: k 0..7, of two rows of a panel turned into pairs
//   sums     row 0: columns 0, 1; row 1: columns 0, 1
#include "int8_arm.hpp"

namespace fewbit {

namespace {

constexpr int kPairs = 4, kVectors = 4; // of rows and of columns: 16 accumulators, 4 codes and 4 weights of 32 registers
constexpr int kColumns = 2 * kVectors;
static_assert(kPanel % kColumns == 0);

// P pairs of rows times the columns of group g of a panel. rows: of the codes.
template <int P> inline void tile(const Int8Product &p, const uint8_t *const *rows, int64_t panel, int64_t g, int32_t (*sum)[kPanel]) {
  const int8_t *b = p.w.panel(panel) + g * 4 * kColumns;
  int32x4_t acc[P][kVectors];
  for (int r = 0; r < P; r++)
    for (int v = 0; v < kVectors; v++) acc[r][v] = vdupq_n_s32(0);
  for (int64_t k = 0; k < p.w.padded_k(); k += 8, b += 8 * kPanel) {
    int8x16_t w[kVectors];
    for (int v = 0; v < kVectors; v += 2) {
      const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(b + 8 * v)), high = vreinterpretq_s32_s8(vld1q_s8(b + 4 * kPanel + 8 * v));
      w[v] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
      w[v + 1] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
    }
    for (int r = 0; r < P; r++) {
      const uint8x16_t a = vcombine_u8(vld1_u8(rows[2 * r] + k), vld1_u8(rows[2 * r + 1] + k));
      for (int v = 0; v < kVectors; v++) acc[r][v] = vusmmlaq_s32(acc[r][v], a, w[v]);
    }
  }
  for (int r = 0; r < P; r++)
    for (int v = 0; v < kVectors; v++) {
      int32_t *const to = sum[2 * r] + g * kColumns + 2 * v;
      vst1_s32(to, vget_low_s32(acc[r][v]));
      vst1_s32(to + kPanel, vget_high_s32(acc[r][v]));
    }
}

// Up to 2 P rows; where they are odd the last one counts twice.
template <int P> void rows(const Int8Product &p, int64_t row, int64_t count, int64_t panel, const uint8_t *codes, const RowScale *scales) {
  const int64_t columns = std::min(kPanel, p.w.n - panel * kPanel);
  const uint8_t *from[2 * P];
  for (int64_t r = 0; r < 2 * P; r++) from[r] = codes + std::min(r, count - 1) * p.w.padded_k();
  int32_t sum[2 * P][kPanel];
  for (int64_t g = 0; g * kColumns < columns; g++) tile<P>(p, from, panel, g, sum);
  for (int64_t r = 0; r < count; r++) finish(p, row + r, panel, columns, sum[r], scales[r]);
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes, const RowScale *scales) {
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++)
    for (int64_t r = r0; r < r1; r += 2 * kPairs) {
      const int64_t count = std::min<int64_t>(2 * kPairs, r1 - r);
      const uint8_t *const from = codes + (r - r0) * kp;
      const RowScale *const s = scales + (r - r0);
      switch ((count + 1) / 2) {
      case 1: rows<1>(p, r, count, panel, from, s); break;
      case 2: rows<2>(p, r, count, panel, from, s); break;
      case 3: rows<3>(p, r, count, panel, from, s); break;
      default: rows<kPairs>(p, r, count, panel, from, s); break;
      }
    }
}

} // namespace

const Int8Kernels int8_arm_i8mm = {quantize, multiply};

} // namespace fewbit
