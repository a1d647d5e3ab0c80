// Products of INT8 in the tiles of AMX; runs only where level() says so.
//
// A panel as it is packed for VNNI is what a tile takes: 16 rows of it, which hold
// 64 rows of the weight, and 16 of its 48 columns. Tiles give the sums of whole
// steps of 64; what k has beyond, the zero point and all that follows are those of
// AVX-512.
#include <algorithm>

#include "amx_tiles.hpp"
#include "int8.hpp"

namespace fewbit {

namespace {

constexpr int64_t kStep = kTileBytes, kVectors = kPanel / 16, kStride = 4 * kPanel;

// For 64 rows of a panel, 3 KiB that come from the second-level cache in 48 cycles or
// more, three products of tiles of 16 rows need 48 cycles and VNNI 24 for each row: with
// few rows both wait for the weights, and VNNI needs neither a configuration nor the way
// of the sums through memory. Reckoned from published rates, not measured.
constexpr int64_t kVectorRows = 4;

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  int8_avx512.quantize(p, r0, r1, codes, scales);
}

// Fetches what is read next into the second-level cache, some lines a step.
struct Ahead {
  const char *at, *end;
  int64_t lines;
  FEWBIT_INLINE void step() {
    for (int64_t i = 0; i < lines && at < end; i++, at += kTileBytes) __builtin_prefetch(at, 0, 2);
  }
};

// The sums of the first k rows of a panel: of the tile of rows at `low` in registers 0
// to 2, with `two` of the one at `high` in 3 to 5. Register 6 holds codes, 7 weights.
template <bool two>
FEWBIT_INLINE void multiply_tiles(const Tiles &t, const uint8_t *low, const uint8_t *high, int64_t kp, const int8_t *b, int64_t k, Ahead &next,
                                  int32_t *sums) {
  t.zero<0>(), t.zero<1>(), t.zero<2>();
  if (two) t.zero<3>(), t.zero<4>(), t.zero<5>();
  for (; k > 0; k -= kStep, low += kStep, high += kStep, b += kStep * kPanel) {
    next.step();
    // Whichever operand the next product shares stays.
    t.load<6>(low, kp), t.load<7>(b, kStride), t.dot<0, 6, 7>();
    if (two) t.load<6>(high, kp), t.dot<3, 6, 7>();
    t.load<7>(b + 64, kStride);
    if (two) t.dot<4, 6, 7>(), t.load<6>(low, kp);
    t.dot<1, 6, 7>();
    t.load<7>(b + 128, kStride), t.dot<2, 6, 7>();
    if (two) t.load<6>(high, kp), t.dot<5, 6, 7>();
  }
  t.store<0>(sums, kStride), t.store<1>(sums + 16, kStride), t.store<2>(sums + 32, kStride);
  sums += kTileHeight * kPanel;
  if (two) t.store<3>(sums, kStride), t.store<4>(sums + 16, kStride), t.store<5>(sums + 32, kStride);
}
static_assert(kVectors == 3);

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes, const RowScale *scales) {
  const int64_t rows = r1 - r0, kp = p.w.padded_k(), k = kp / kStep * kStep;
  // Weights in 4 bits are expanded within the products of AVX-512.
  if (p.w.four || rows <= kVectorRows || k == 0) return int8_avx512.multiply(p, r0, r1, p0, p1, codes, scales);

  // The last tile of several ends with the last row, and begins within the one
  // before: then all have one shape.
  const int64_t height = std::min(rows, kTileHeight), behind = rows % height;
  const int64_t whole = rows / height, count = whole + (behind > kVectorRows ? 1 : 0);
  const auto begin = [&](int64_t tile) { return std::min(tile * height, rows - height); };
  TileConfig shapes;
  for (int t = 0; t < 7; t++) shapes.shape(t, height, kTileBytes);
  shapes.shape(7, kTileHeight, kTileBytes);
  const Tiles t(shapes);

  Int8Product few = p; // rows that are left over
  few.after = nullptr;
  alignas(64) int32_t sums[2 * kTileHeight * kPanel];
  for (int64_t panel = p0; panel < p1; panel++) {
    const int8_t *const b = p.w.panel(panel);
    const auto [at, bytes] = p.ahead(panel, p1);
    const int64_t steps = (count + 1) / 2 * (k / kStep);
    Ahead next{at, at + bytes, (bytes / kTileBytes + steps - 1) / steps};
    for (int64_t i = 0; i < count; i += 2) {
      const uint8_t *const low = codes + begin(i) * kp;
      const int64_t tiles = std::min<int64_t>(2, count - i);
      if (tiles == 2)
        multiply_tiles<true>(t, low, codes + begin(i + 1) * kp, kp, b, k, next, sums);
      else
        multiply_tiles<false>(t, low, low, kp, b, k, next, sums);
      for (int64_t j = i; j < i + tiles; j++) {
        const int64_t first = j * height, last = begin(j) + height;
        int8_avx512_finish(p, r0 + first, last - first, panel, codes + first * kp, scales + first,
                           sums + ((j - i) * kTileHeight + first - begin(j)) * kPanel, k);
      }
    }
    if (const int64_t r = count * height; r < rows) int8_avx512.multiply(few, r0 + r, r1, panel, panel + 1, codes + r * kp, scales + r);
  }
}

} // namespace

const Int8Kernels int8_amx = {quantize, multiply};

} // namespace fewbit
