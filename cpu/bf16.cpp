#include "bf16.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "level.hpp"

namespace fewbit {

namespace {

bool fits(int64_t d) { return d >= 1 && d <= kMaxDim; }

Bf16Weight shape(int64_t k, int64_t n) {
  Bf16Weight w;
  w.k = k, w.n = n;
  return w;
}

float activate(float v, Activation a) {
  return a == Activation::gelu ? 0.5f * v * (1 + std::erf(v * 0.70710678118654752f)) : v;
}

void convert(const Bf16Product &p, int64_t r0, int64_t r1, uint16_t *rows) {
  const int64_t kp = p.w.padded_k();
  for (int64_t r = r0; r < r1; r++, rows += kp) {
    for (int64_t k = 0; k < p.w.k; k++) rows[k] = bf16_round(p.x[r * p.w.k + k]);
    std::fill(rows + p.w.k, rows + kp, uint16_t(0));
  }
}

void multiply(const Bf16Product &p, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const uint16_t *rows) {
  const int64_t kp = p.w.padded_k();
  for (int64_t panel = p0; panel < p1; panel++) {
    const int64_t columns = std::min(kPanel, p.w.n - panel * kPanel);
    for (int64_t r = r0; r < r1; r++) {
      float sum[kPanel] = {};
      const uint16_t *a = rows + (r - r0) * kp, *b = p.w.panel(panel);
      for (int64_t k = 0; k < kp; k += 2, b += 2 * kPanel) {
        const float a0 = bf16_to_float(a[k]), a1 = bf16_to_float(a[k + 1]);
        for (int64_t c = 0; c < columns; c++) {
          sum[c] += a1 * bf16_to_float(b[2 * c + 1]);
          sum[c] += a0 * bf16_to_float(b[2 * c]);
        }
      }
      for (int64_t c = 0; c < columns; c++) {
        const int64_t at = panel * kPanel + c;
        p.y[r * p.w.n + at] = activate(sum[c] + (p.bias ? p.bias[at] : 0), p.act);
      }
    }
  }
}

void gram(const Bf16Weight &x, int64_t p0, int64_t p1, float *sum) {
  const int64_t kp = x.padded_k();
  const auto column = [&](int64_t c) { return x.panel(c / kPanel) + 2 * (c % kPanel); };
  for (int64_t i = p0 * kPanel; i < std::min(p1 * kPanel, x.n); i++)
    for (int64_t j = 0; j <= i; j++) {
      const uint16_t *a = column(i), *b = column(j);
      float s = 0;
      for (int64_t k = 0; k < kp; k += 2, a += 2 * kPanel, b += 2 * kPanel) {
        s += bf16_to_float(a[1]) * bf16_to_float(b[1]);
        s += bf16_to_float(a[0]) * bf16_to_float(b[0]);
      }
      sum[triangle_row(i) + j] += s;
    }
}

} // namespace

const Bf16Kernels bf16_plain = {convert, multiply, gram};

const Bf16Kernels &bf16_kernels() {
#if defined(FEWBIT_AVX512_BF16)
  if (level() >= FEWBIT_CPU_AVX512_BF16) return bf16_avx512;
#endif
  return bf16_plain;
}

void bf16_gram(const void *packed, int64_t rows, int64_t k, int64_t first, int64_t last, float *sum) {
  Bf16Weight x = shape(rows, k);
  x.panels = reinterpret_cast<const uint16_t *>(static_cast<const char *>(packed) + sizeof(Bf16Header));
  bf16_kernels().gram(x, first / kPanel, (last + kPanel - 1) / kPanel, sum);
}

size_t bf16_packed_size(int64_t k, int64_t n) {
  if (!fits(k) || !fits(n)) return 0;
  const Bf16Weight w = shape(k, n);
  return sizeof(Bf16Header) + size_t(w.panel_count()) * size_t(w.padded_k()) * kPanel * sizeof(uint16_t);
}

void bf16_pack(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  const Bf16Weight s = shape(k, n);
  auto *bytes = static_cast<char *>(to);
  if (first == 0) {
    Bf16Header h = {};
    std::memcpy(h.magic, kBf16Magic, sizeof h.magic);
    h.k = k, h.n = n;
    std::memcpy(bytes, &h, sizeof h);
  }
  auto *panels = reinterpret_cast<uint16_t *>(bytes + sizeof(Bf16Header));
  const int64_t kp = s.padded_k(), p0 = first / kPanel, p1 = (last + kPanel - 1) / kPanel;
  // Row by row, so that the weight is read in the order it lies in.
  for (int64_t r = 0; r < kp; r++)
    for (int64_t p = p0; p < p1; p++) {
      uint16_t *d = panels + p * kp * kPanel + r / 2 * 2 * kPanel + r % 2;
      const int64_t columns = r < k ? std::min(kPanel, n - p * kPanel) : 0;
      const float *src = w + r * n + p * kPanel;
      for (int64_t c = 0; c < columns; c++) d[2 * c] = bf16_round(src[c]);
      for (int64_t c = columns; c < kPanel; c++) d[2 * c] = 0;
    }
}

const char *bf16_view(const void *data, size_t bytes, Bf16Weight *w) {
  Bf16Header h;
  if (bytes < sizeof h) return "is shorter than its header";
  if (reinterpret_cast<uintptr_t>(data) % alignof(uint16_t) != 0) return "does not lie on a multiple of 2 bytes";
  std::memcpy(&h, data, sizeof h);
  if (std::memcmp(h.magic, kBf16Magic, sizeof h.magic) != 0) return "was not packed for this version of the library";
  if (!fits(h.k) || !fits(h.n)) return "has dimensions outside the limits";
  if (bytes != bf16_packed_size(h.k, h.n)) return "has another size than its dimensions say";
  w->k = h.k, w->n = h.n;
  w->panels = reinterpret_cast<const uint16_t *>(static_cast<const char *>(data) + sizeof h);
  return nullptr;
}

} // namespace fewbit
