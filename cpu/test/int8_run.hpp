// A product as its callers split it: blocks of `height` rows, `group` panels at a time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "int8.hpp"

namespace fewbit {

inline std::vector<float> run(const Int8Kernels &kn, Int8Product p, int64_t m, int64_t height, int64_t group) {
  std::vector<float> y(size_t(m * p.w.n), -1);
  p.y = y.data();
  std::vector<uint8_t> q(size_t(height * p.w.padded_k()));
  std::vector<RowScale> s(static_cast<size_t>(height));
  for (int64_t r = 0; r < m; r += height) {
    const int64_t r1 = std::min(m, r + height);
    kn.quantize(p, r, r1, q.data(), s.data());
    for (int64_t i = 0; i < p.w.panel_count(); i += group)
      kn.multiply(p, r, r1, i, std::min(p.w.panel_count(), i + group), q.data(), s.data());
  }
  return y;
}

} // namespace fewbit
