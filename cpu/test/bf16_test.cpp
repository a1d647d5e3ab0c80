#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>

#include "bf16.hpp"
#include "level.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

// Each operand has 8 significant bits: an error of 2^-8 at most, of a product a
// little more than 2^-7, beside which the FP32 sum's is nothing.
constexpr double kTolerance = 1.0 / 127;

struct Packed {
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, std::free};
  size_t bytes;
  Bf16Weight w;

  Packed(const std::vector<float> &v, int64_t k, int64_t n, int parts = 1) : bytes(bf16_packed_size(k, n)) {
    memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    const int64_t panels = (n + kPanel - 1) / kPanel;
    for (int i = 0; i < parts; i++)
      if (const int64_t a = panels * i / parts, b = panels * (i + 1) / parts; a < b)
        bf16_pack(v.data(), k, n, a * kPanel, std::min(n, b * kPanel), memory.get());
    CHECK(bf16_view(memory.get(), bytes, &w) == nullptr);
  }
};

std::vector<float> run(const Bf16Kernels &kn, Bf16Product p, int64_t m, int64_t height, int64_t group) {
  std::vector<float> y(size_t(m * p.w.n), std::numeric_limits<float>::quiet_NaN());
  p.y = y.data();
  std::vector<uint16_t> rows(size_t(height * p.w.padded_k()));
  for (int64_t r = 0; r < m; r += height) {
    const int64_t r1 = std::min(m, r + height);
    kn.convert(p, r, r1, rows.data());
    for (int64_t q = 0; q < p.w.panel_count(); q += group)
      kn.multiply(p, r, r1, q, std::min(p.w.panel_count(), q + group), rows.data());
  }
  return y;
}

std::vector<const Bf16Kernels *> available() {
  std::vector<const Bf16Kernels *> all{&bf16_plain};
  if (&bf16_kernels() != &bf16_plain) all.push_back(&bf16_kernels());
  return all;
}

} // namespace

TEST(bf16_rounds_to_nearest_even) {
  CHECK(bf16_to_float(bf16_round(1.0f)) == 1.0f);
  CHECK(bf16_to_float(bf16_round(1.00390625f)) == 1.0f);        // half way, to even
  CHECK(bf16_to_float(bf16_round(1.01171875f)) == 1.015625f);   // half way, to even
  CHECK(std::isinf(bf16_to_float(bf16_round(std::numeric_limits<float>::max()))));
  CHECK(std::isnan(bf16_to_float(bf16_round(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(bf16_round(-0.0f) == 0x8000);
}

TEST(bf16_products_of_all_shapes) {
  struct Shape {
    int64_t m, k, n;
  };
  std::vector<Shape> shapes;
  for (int64_t m : {1, 2, 7, 8, 9, 15, 16, 17, 63, 65})
    for (int64_t k : {1, 2, 15, 16, 17, 64})
      for (int64_t n : {1, 15, 16, 17, 47, 48, 49, 96, 97}) shapes.push_back({m, k, n});
  shapes.push_back({3, 4096, 100});
  shapes.push_back({4096, 33, 50});
  shapes.push_back({5, 31, 4097});
  for (const Shape &s : shapes) {
    const auto x = gauss(size_t(s.m * s.k), 1), w = gauss(size_t(s.k * s.n), 2), b = gauss(size_t(s.n), 3);
    const Packed packed(w, s.k, s.n, 3);
    Bf16Product p;
    p.x = x.data(), p.bias = b.data(), p.w = packed.w;
    std::vector<double> want(size_t(s.m * s.n)), size(size_t(s.m * s.n));
    for (int64_t r = 0; r < s.m; r++)
      for (int64_t k = 0; k < s.k; k++)
        for (int64_t c = 0; c < s.n; c++) {
          const double v = double(x[size_t(r * s.k + k)]) * w[size_t(k * s.n + c)];
          want[size_t(r * s.n + c)] += v, size[size_t(r * s.n + c)] += std::fabs(v);
        }
    for (const Bf16Kernels *kn : available()) {
      const auto y = run(*kn, p, s.m, s.m, packed.w.panel_count());
      for (size_t i = 0; i < y.size(); i++) {
        const double bias = b[i % size_t(s.n)];
        CHECK(std::fabs(y[i] - (want[i] + bias)) <= kTolerance * (size[i] + std::fabs(bias)));
      }
      CHECK(same_bits(y, run(*kn, p, s.m, 1, 1))); // how the work is split changes no bit
      CHECK(same_bits(y, run(*kn, p, s.m, std::min<int64_t>(s.m, 5), 2)));
    }
  }
}

TEST(bf16_gram_is_that_of_rounded_rows) {
  for (int64_t rows : {1, 2, 15, 16, 17, 65, 512})
    for (int64_t k : {1, 7, 8, 9, 47, 48, 49, 96, 145}) {
      const auto x = gauss(size_t(rows * k), 8), before = gauss(size_t(triangle_row(k)), 9);
      const Packed packed(x, rows, k);
      const auto at = [&](int64_t r, int64_t c) { return double(bf16_to_float(bf16_round(x[size_t(r * k + c)]))); };
      const int64_t panels = packed.w.panel_count();
      for (const Bf16Kernels *kn : available()) {
        std::vector<float> whole = before, parts = before; // of the exact size: the sanitizer sees what is beside
        kn->gram(packed.w, 0, panels, whole.data());
        for (int64_t p = panels - 1; p >= 0; p--) kn->gram(packed.w, p, p + 1, parts.data());
        CHECK(same_bits(whole, parts)); // how the work is split changes no bit
        for (int64_t i = 0; i < k; i++)
          for (int64_t j = 0; j <= i; j++) {
            double want = before[size_t(triangle_row(i) + j)], size = std::fabs(want);
            for (int64_t r = 0; r < rows; r++) want += at(r, i) * at(r, j), size += std::fabs(at(r, i) * at(r, j));
            // Only FP32 sums round: two products are one step.
            CHECK(std::fabs(whole[size_t(triangle_row(i) + j)] - want) <= 1e-7 * double(rows + 4) * size);
          }
      }
    }
}

TEST(bf16_gelu) {
  // One weight of 1: y is GELU of the rounded input.
  const Packed one({1}, 1, 1);
  std::vector<float> x;
  for (float v = -12; v <= 12; v += 0.01f) x.push_back(v);
  for (float v : {-1e30f, 1e30f, 0.0f, std::numeric_limits<float>::infinity()}) x.push_back(v);
  Bf16Product p;
  p.x = x.data(), p.w = one.w, p.act = Activation::gelu;
  constexpr double tolerance = 5e-7; // of the approximation of erf
  for (const Bf16Kernels *kn : available()) {
    const auto y = run(*kn, p, int64_t(x.size()), 8, 1);
    for (size_t i = 0; i < x.size(); i++) {
      const double v = bf16_to_float(bf16_round(x[i])), want = v * 0.5 * (1 + std::erf(v / std::sqrt(2.0)));
      CHECK(y[i] == want || std::fabs(y[i] - want) <= tolerance * std::max(1.0, std::fabs(v)));
    }
  }
}

TEST(bf16_not_finite) {
  const int64_t k = 20, n = 50;
  const Packed w(gauss(size_t(k * n), 4), k, n);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto x = gauss(size_t(3 * k), 5);
    x[size_t(k + 7)] = bad; // of row 1
    Bf16Product p;
    p.x = x.data(), p.w = w.w;
    for (const Bf16Kernels *kn : available()) {
      const auto y = run(*kn, p, 3, 3, 2);
      for (int64_t i = 0; i < 3 * n; i++) CHECK(std::isfinite(y[size_t(i)]) == (i / n != 1));
    }
  }
}

TEST(bf16_refuses_what_it_did_not_pack) {
  const Packed p(gauss(100, 6), 10, 10);
  std::vector<char> bytes(p.bytes);
  std::memcpy(bytes.data(), p.memory.get(), p.bytes);
  Bf16Weight w;
  CHECK(bf16_view(bytes.data(), bytes.size(), &w) == nullptr);
  for (size_t n : {size_t(0), size_t(63), size_t(64), bytes.size() - 1}) CHECK(bf16_view(bytes.data(), n, &w) != nullptr);
  // Any change of magic or dimensions: dimensions up to 2^63 must not overflow.
  std::mt19937 r(7);
  for (int i = 0; i < 2000; i++) {
    auto bent = bytes;
    bent[r() % 32] ^= char(1 << r() % 8);
    Bf16Header h;
    std::memcpy(&h, bent.data(), sizeof h);
    // Columns of the same panel, rows of the same step: then it fits.
    const bool fits = std::memcmp(h.magic, kBf16Magic, sizeof h.magic) == 0 && bf16_packed_size(h.k, h.n) == bytes.size();
    CHECK((bf16_view(bent.data(), bent.size(), &w) == nullptr) == fits);
  }
  for (int64_t d : {int64_t(0), int64_t(-1), kMaxDim + 1, std::numeric_limits<int64_t>::max()}) {
    CHECK(bf16_packed_size(d, 1) == 0);
    CHECK(bf16_packed_size(1, d) == 0);
  }
}
