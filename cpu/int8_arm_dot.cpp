// Compiled for 64-bit Arm with dot products (Armv8.2); runs only where level()
// says so. SDOT multiplies signed bytes: codes count from -128 there, and 128
// times the weights' sums is added, which wraps to the very same integers.
#include "int8_arm.hpp"

namespace fewbit {

namespace {

constexpr int kRows = 4, kVectors = 4; // a tile of 4 x 16: 16 accumulators, 4 codes and a weight of 32 registers
static_assert(kPanel % (4 * kVectors) == 0);

// R rows times the columns of group g of a panel.
template <int R> inline void tile(const Int8Product &p, const uint8_t *codes, int64_t panel, int64_t g, int32_t (*sum)[kPanel]) {
  const int64_t kp = p.w.padded_k();
  const int8_t *b = p.w.panel(panel) + g * 16 * kVectors;
  const int32_t *sums = p.w.sums + panel * kPanel + g * 4 * kVectors;
  int32x4_t acc[R][kVectors];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < kVectors; v++) acc[r][v] = vshlq_n_s32(vld1q_s32(sums + 4 * v), 7);
  const uint8x16_t sign = vdupq_n_u8(128);
  for (int64_t k = 0; k < kp; k += kInt8Step) {
    int8x16_t a[R];
    for (int r = 0; r < R; r++) a[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + r * kp + k), sign));
    const auto step = [&](auto dot) {
      for (int v = 0; v < kVectors; v++) {
        const int8x16_t w = vld1q_s8(b + 16 * v);
        for (int r = 0; r < R; r++) acc[r][v] = dot(acc[r][v], w, a[r]);
      }
      b += 4 * kPanel;
    };
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 0); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 1); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 2); });
    step([](int32x4_t s, int8x16_t w, int8x16_t c) { return vdotq_laneq_s32(s, w, c, 3); });
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < kVectors; v++) vst1q_s32(sum[r] + g * 4 * kVectors + 4 * v, acc[r][v]);
}

template <int R> void rows(const Int8Product &p, int64_t row, int64_t panel, const uint8_t *codes, const RowScale *scales) {
  const int64_t columns = std::min(kPanel, p.w.n - panel * kPanel);
  int32_t sum[R][kPanel];
  for (int64_t g = 0; g * 4 * kVectors < columns; g++) tile<R>(p, codes, panel, g, sum);
  for (int r = 0; r < R; r++) finish(p, row + r, panel, columns, sum[r], scales[r]);
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes, const RowScale *scales) {
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++) {
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) rows<kRows>(p, r, panel, codes + (r - r0) * kp, scales + (r - r0));
    const uint8_t *rest = codes + (r - r0) * kp;
    const RowScale *s = scales + (r - r0);
    switch (r1 - r) {
    case 1: rows<1>(p, r, panel, rest, s); break;
    case 2: rows<2>(p, r, panel, rest, s); break;
    case 3: rows<3>(p, r, panel, rest, s); break;
    default: break;
    }
  }
}

} // namespace

const Int8Kernels int8_arm_dot = {quantize, multiply};

} // namespace fewbit
