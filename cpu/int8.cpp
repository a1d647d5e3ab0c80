#include "int8.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "int4.hpp"
#include "level.hpp"

namespace fewbit {

namespace {

bool fits(int64_t k, int64_t n) { return k >= 1 && k <= kInt8MaxK && n >= 1 && n <= kMaxDim; }

Int8Weight shape(int64_t k, int64_t n) {
  Int8Weight w;
  w.k = k, w.n = n;
  return w;
}

void quantize(const Int8Product &p, int64_t r0, int64_t r1, uint8_t *codes, RowScale *scales) {
  const int64_t k = p.w.k, kp = p.w.padded_k();
  for (int64_t r = r0; r < r1; r++, codes += kp, scales++) {
    const float *x = p.x + r * k;
    const auto at = [&](int64_t i) { return p.divisor ? x[i] / p.divisor[i] : x[i]; };
    float lo = 0, hi = 0;
    bool finite = true;
    for (int64_t i = 0; i < k; i++) {
      const float v = at(i);
      finite = finite && std::isfinite(v);
      lo = v < lo ? v : lo, hi = v > hi ? v : hi;
    }
    const float width = hi - lo;
    std::fill(codes, codes + kp, uint8_t(0));
    if (!finite || !std::isfinite(width)) {
      *scales = {std::numeric_limits<float>::quiet_NaN(), 0};
      continue;
    }
    float scale = width / 255;
    if (scale == 0) scale = 1;
    const float zero = std::min(std::max(std::nearbyint(-lo / scale), 0.f), 255.f);
    *scales = {scale, int32_t(zero)};
    for (int64_t i = 0; i < k; i++)
      codes[i] = uint8_t(std::min(std::max(std::nearbyint(at(i) / scale) + zero, 0.f), 255.f));
  }
}

void multiply(const Int8Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint8_t *codes,
              const RowScale *scales) {
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++) {
    const int64_t columns = std::min(kPanel, p.w.n - panel * kPanel);
    for (int64_t r = r0; r < r1; r++) {
      int32_t sum[kPanel] = {};
      const uint8_t *a = codes + (r - r0) * kp;
      const int8_t *b = p.w.four ? nullptr : p.w.panel(panel);
      int8_t block[kInt4Block * kPanel];
      for (int64_t k = 0; k < kp; k += 4, b += 4 * kPanel) {
        if (p.w.four && k % kInt4Block == 0) int4_expand(p.w, panel, k, k + kInt4Block, block), b = block;
        for (int64_t c = 0; c < columns; c++)
          for (int64_t i = 0; i < 4; i++) sum[c] += int32_t(a[k + i]) * b[4 * c + i];
      }
      int8_finish(p, r, panel, columns, sum, scales[r - r0]);
    }
  }
}

} // namespace

void int8_finish(const Int8Product &p, int64_t r, int64_t panel, int64_t columns, const int32_t *sum, RowScale s) {
  for (int64_t c = 0; c < columns; c++) {
    const int64_t at = panel * kPanel + c;
    // Sums that do not add up, of a damaged file, wrap as in the instructions.
    float v = float(int32_t(uint32_t(sum[c]) - uint32_t(s.zero) * uint32_t(p.w.sums[at]))) * (s.scale * p.w.scales[at]);
    if (p.bias) v = v + p.bias[at];
    switch (p.act) {
    case Activation::none: break;
    case Activation::gelu: v = 0.5f * v * (1 + std::erf(v * 0.70710678118654752f)); break;
    case Activation::quick_gelu: v = v / (1 + std::exp(-1.702f * v)); break;
    case Activation::gelu_tanh: v = v / (1 + std::exp(v * (-0.0713548162726f * (v * v) - 1.5957691216057308f))); break;
    case Activation::silu: v = v / (1 + std::exp(-v)); break;
    case Activation::relu: v = v < 0 ? 0 : v; break;
    }
    if (p.residual) v = v + p.residual[r * p.w.n + at];
    p.y[r * p.w.n + at] = v;
  }
}

const Int8Kernels int8_plain = {quantize, multiply};

const Int8Kernels &int8_kernels() {
#if defined(FEWBIT_EMULATE_AMX)
  if (level() >= FEWBIT_CPU_AMX && !has_tiles()) return int8_amx_emulated;
#endif
#if defined(FEWBIT_AMX)
  if (level() >= FEWBIT_CPU_AMX) return int8_amx;
#endif
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return int8_avx512;
#endif
#if defined(FEWBIT_AVX2_VNNI)
  if (level() >= FEWBIT_CPU_AVX2_VNNI) return int8_avx2_vnni;
#endif
#if defined(FEWBIT_AVX2)
  if (level() >= FEWBIT_CPU_AVX2) return int8_avx2;
#endif
#if defined(FEWBIT_ARM_I8MM)
  if (level() >= FEWBIT_CPU_ARM_I8MM) return int8_arm_i8mm;
#endif
#if defined(FEWBIT_ARM_DOT)
  if (level() >= FEWBIT_CPU_ARM_DOT) return int8_arm_dot;
#endif
  return int8_plain;
}

size_t int8_packed_size(int64_t k, int64_t n) {
  if (!fits(k, n)) return 0;
  const Int8Weight w = shape(k, n);
  return sizeof(Int8Header) + size_t(w.panel_count()) * kPanel * (size_t(w.padded_k()) + sizeof(int32_t) + sizeof(float));
}

void int8_pack(const int8_t *w, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  const Int8Weight s = shape(k, n);
  auto *bytes = static_cast<char *>(to);
  if (first == 0) {
    Int8Header h = {};
    std::memcpy(h.magic, kInt8Magic, sizeof h.magic);
    h.k = k, h.n = n;
    std::memcpy(bytes, &h, sizeof h);
  }
  const int64_t kp = s.padded_k(), p0 = first / kPanel, p1 = (last + kPanel - 1) / kPanel;
  auto *panels = reinterpret_cast<int8_t *>(bytes + sizeof(Int8Header));
  auto *sums = reinterpret_cast<int32_t *>(panels + s.panel_count() * kPanel * kp);
  auto *row_scales = reinterpret_cast<float *>(sums + s.panel_count() * kPanel);
  for (int64_t c = p0 * kPanel; c < p1 * kPanel; c++) sums[c] = 0, row_scales[c] = c < n ? scales[c] : 0;
  for (int64_t r = 0; r < kp; r++)
    for (int64_t p = p0; p < p1; p++) {
      int8_t *d = panels + p * kp * kPanel + r / 4 * 4 * kPanel + r % 4;
      const int64_t columns = r < k ? std::min(kPanel, n - p * kPanel) : 0;
      const int8_t *src = w + r * n + p * kPanel;
      for (int64_t c = 0; c < columns; c++) d[4 * c] = src[c], sums[p * kPanel + c] += src[c];
      for (int64_t c = columns; c < kPanel; c++) d[4 * c] = 0;
    }
}

const char *int8_view(const void *data, size_t bytes, Int8Weight *w) {
  Int8Header h;
  if (bytes < sizeof h) return "is shorter than its header";
  if (reinterpret_cast<uintptr_t>(data) % alignof(int32_t) != 0) return "does not lie on a multiple of 4 bytes";
  std::memcpy(&h, data, sizeof h);
  if (std::memcmp(h.magic, kInt8Magic, sizeof h.magic) != 0) return "was not packed for this version of the library";
  if (!fits(h.k, h.n)) return "has dimensions outside the limits";
  if (bytes != int8_packed_size(h.k, h.n)) return "has another size than its dimensions say";
  w->k = h.k, w->n = h.n;
  w->panels = reinterpret_cast<const int8_t *>(static_cast<const char *>(data) + sizeof h);
  w->sums = reinterpret_cast<const int32_t *>(w->panels + w->panel_count() * kPanel * w->padded_k());
  w->scales = reinterpret_cast<const float *>(w->sums + w->panel_count() * kPanel);
  return nullptr;
}

} // namespace fewbit
