#include "int4.hpp"

#include <algorithm>
#include <cstring>

#include "level.hpp"

namespace fewbit {

namespace {

bool fits(int64_t k, int64_t n) { return k >= 1 && k <= kInt8MaxK && k % kInt4Block == 0 && n >= 1 && n <= kMaxDim; }

Int8Weight shape(int64_t k, int64_t n) {
  Int8Weight w;
  w.k = k, w.n = n, w.four = true;
  return w;
}

const char *view(const void *data, size_t bytes, Int8Weight *w) {
  Int8Header h;
  std::memcpy(&h, data, sizeof h);
  if (!fits(h.k, h.n)) return "has dimensions outside the limits";
  if (bytes != int4_packed_size(h.k, h.n)) return "has another size than its dimensions say";
  *w = shape(h.k, h.n);
  w->panels = reinterpret_cast<const int8_t *>(static_cast<const char *>(data) + sizeof h);
  w->sums = reinterpret_cast<const int32_t *>(w->panels + w->panel_count() * w->panel_bytes());
  w->scales = reinterpret_cast<const float *>(w->sums + w->panel_count() * kPanel);
  return nullptr;
}

} // namespace

int64_t Int8Weight::panel_bytes() const {
  return four ? int4_steps_bytes(k) + k / kInt4Block * kInt4BlockBytes : padded_k() * kPanel;
}

size_t int4_packed_size(int64_t k, int64_t n) {
  if (!fits(k, n)) return 0;
  const Int8Weight w = shape(k, n);
  return sizeof(Int8Header) + size_t(w.panel_count()) * (size_t(w.panel_bytes()) + kPanel * (sizeof(int32_t) + sizeof(float)));
}

void int4_pack(const uint8_t *codes, const int8_t *steps, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  const Int8Weight w = shape(k, n);
  auto *bytes = static_cast<char *>(to);
  if (first == 0) {
    Int8Header h = {};
    std::memcpy(h.magic, kInt4Magic, sizeof h.magic);
    h.k = k, h.n = n;
    std::memcpy(bytes, &h, sizeof h);
  }
  auto *panels = reinterpret_cast<uint8_t *>(bytes + sizeof(Int8Header));
  auto *sums = reinterpret_cast<int32_t *>(panels + w.panel_count() * w.panel_bytes());
  auto *column_scales = reinterpret_cast<float *>(sums + w.panel_count() * kPanel);
  const int64_t blocks = k / kInt4Block, half = kInt4Block / 2;
  for (int64_t p = first / kPanel; p < (last + kPanel - 1) / kPanel; p++) {
    uint8_t *const of_step = panels + p * w.panel_bytes(), *const of_codes = of_step + int4_steps_bytes(k);
    std::fill(of_step, of_codes, uint8_t(0));
    std::fill(of_codes, of_codes + blocks * kInt4BlockBytes, uint8_t(0)); // of columns beyond n, whose steps are 0
    for (int64_t c = 0; c < kPanel; c++) {
      const int64_t column = p * kPanel + c;
      int32_t sum = 0;
      for (int64_t b = 0; b < blocks && column < n; b++) {
        const int step = std::clamp(int(steps[b * n + column]), -FEWBIT_CPU_INT4_MAX_STEP, FEWBIT_CPU_INT4_MAX_STEP);
        of_step[b * kPanel + c] = uint8_t(step < 0 ? -step | kInt4Negative : step);
        for (int64_t i = 0; i < half; i++) {
          const uint8_t pair = codes[(b * half + i) * n + column];
          sum += ((pair & 15) + (pair >> 4) - 16) * step;
          of_codes[b * kInt4BlockBytes + (i / 4 * (kPanel / 16) + c / 16) * 64 + c % 16 * 4 + i % 4] = step < 0 ? uint8_t(~pair) : pair;
        }
      }
      sums[column] = sum, column_scales[column] = column < n ? scales[column] : 0;
    }
  }
}

void int4_expand(const Int8Weight &w, int64_t panel, int64_t k0, int64_t k1, int8_t *to) {
  const auto *const of_step = reinterpret_cast<const uint8_t *>(w.panel(panel)), *const of_codes = of_step + int4_steps_bytes(w.k);
  for (int64_t b = k0 / kInt4Block; b < k1 / kInt4Block; b++, to += kInt4Block * kPanel)
    for (int64_t c = 0; c < kPanel; c++) {
      const int step = of_step[b * kPanel + c] & 15, zero = of_step[b * kPanel + c] & kInt4Negative ? 7 : 8;
      for (int64_t i = 0; i < kInt4Block / 2; i++) {
        const uint8_t pair = of_codes[b * kInt4BlockBytes + (i / 4 * (kPanel / 16) + c / 16) * 64 + c % 16 * 4 + i % 4];
        int8_t *const low = to + i / 4 * 4 * kPanel + 4 * c + i % 4;
        low[0] = int8_t(((pair & 15) - zero) * step);
        low[kInt4Block / 2 * kPanel] = int8_t(((pair >> 4) - zero) * step);
      }
    }
}

const char *weight_view(const void *data, size_t bytes, Int8Weight *w, std::vector<int8_t> *memory) {
  if (bytes < sizeof(Int8Header) || std::memcmp(data, kInt4Magic, sizeof kInt4Magic) != 0) return int8_view(data, bytes, w);
  if (reinterpret_cast<uintptr_t>(data) % alignof(int32_t) != 0) return "does not lie on a multiple of 4 bytes";
  if (const char *why = view(data, bytes, w)) return why;
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return nullptr;
  Int8Weight eight = *w;
  eight.four = false;
  memory->resize(size_t(w->panel_count() * eight.panel_bytes()));
  for (int64_t p = 0; p < w->panel_count(); p++) int4_expand(*w, p, 0, w->k, memory->data() + p * eight.panel_bytes());
  eight.panels = memory->data();
  *w = eight;
  return nullptr;
}

} // namespace fewbit
