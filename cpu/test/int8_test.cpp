#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>

#include "int8.hpp"
#include "int8_run.hpp"
#include "level.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

struct Packed {
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, std::free};
  size_t bytes;
  Int8Weight w;

  Packed(const std::vector<int8_t> &v, const std::vector<float> &scales, int64_t k, int64_t n, int parts = 1)
      : bytes(int8_packed_size(k, n)) {
    memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    const int64_t panels = (n + kPanel - 1) / kPanel;
    for (int i = 0; i < parts; i++)
      if (const int64_t a = panels * i / parts, b = panels * (i + 1) / parts; a < b)
        int8_pack(v.data(), scales.data(), k, n, a * kPanel, std::min(n, b * kPanel), memory.get());
    CHECK(int8_view(memory.get(), bytes, &w) == nullptr);
  }
};

std::vector<int8_t> codes(size_t n, uint32_t seed) {
  std::mt19937 r(seed);
  std::vector<int8_t> v(n);
  for (auto &x : v) x = int8_t(int(r() % 256) - 128);
  return v;
}

// All that this processor has.
std::vector<const Int8Kernels *> kernels() {
  std::vector<const Int8Kernels *> all = {&int8_plain};
#if defined(FEWBIT_AMX)
  if (has_tiles() && has_level(FEWBIT_CPU_AMX)) all.push_back(&int8_amx);
#endif
#if defined(FEWBIT_EMULATE_AMX)
  if (has_level(FEWBIT_CPU_AMX)) all.push_back(&int8_amx_emulated);
#endif
#if defined(FEWBIT_AVX512)
  if (has_level(FEWBIT_CPU_AVX512_VNNI)) all.push_back(&int8_avx512);
#endif
#if defined(FEWBIT_AVX2_VNNI)
  if (has_level(FEWBIT_CPU_AVX2_VNNI)) all.push_back(&int8_avx2_vnni);
#endif
#if defined(FEWBIT_AVX2)
  if (has_level(FEWBIT_CPU_AVX2)) all.push_back(&int8_avx2);
#endif
#if defined(FEWBIT_ARM_I8MM)
  if (has_level(FEWBIT_CPU_ARM_I8MM)) all.push_back(&int8_arm_i8mm);
#endif
#if defined(FEWBIT_ARM_DOT)
  if (has_level(FEWBIT_CPU_ARM_DOT)) all.push_back(&int8_arm_dot);
#endif
  return all;
}

} // namespace

TEST(int8_equal_bit_for_bit) {
  struct Shape {
    int64_t m, k, n;
  };
  std::vector<Shape> shapes;
  for (int64_t m : {1, 2, 7, 8, 9, 17, 65})
    for (int64_t k : {1, 3, 15, 16, 17, 64, 100})
      for (int64_t n : {1, 15, 16, 17, 47, 48, 49, 97}) shapes.push_back({m, k, n});
  // Around the tiles of AMX: 16 rows, 64 of k.
  for (int64_t m : {4, 5, 15, 16, 20, 21, 31, 32, 33, 37})
    for (int64_t k : {63, 64, 65, 128, 177, 192})
      for (int64_t n : {47, 49, 97}) shapes.push_back({m, k, n});
  shapes.push_back({3, 4096, 100});
  shapes.push_back({33, 4096, 49});
  shapes.push_back({2, kInt8MaxK, 49});
  shapes.push_back({4096, 33, 50});
  for (const Shape &s : shapes) {
    auto x = gauss(size_t(s.m * s.k), 1, 3);
    for (int64_t i = 0; i < s.k; i++) x[size_t(i)] = std::fabs(x[size_t(i)]); // a row without a negative value
    auto divisor = gauss(size_t(s.k), 2), scales = gauss(size_t(s.n), 3, 0.01f);
    for (float &v : divisor) v = std::fabs(v) + 0.1f;
    const auto bias = gauss(size_t(s.n), 4), residual = gauss(size_t(s.m * s.n), 5);
    const Packed packed(codes(size_t(s.k * s.n), 6), scales, s.k, s.n, 3);
    for (int form = 0; form < 4; form++) {
      Int8Product p;
      p.x = x.data(), p.w = packed.w;
      if (form & 1) p.bias = bias.data(), p.divisor = divisor.data();
      if (form & 2) p.residual = residual.data();
      const auto want = run(int8_plain, p, s.m, s.m, packed.w.panel_count());
      for (const Int8Kernels *k : kernels()) {
        CHECK(same_bits(want, run(*k, p, s.m, s.m, packed.w.panel_count())));
        CHECK(same_bits(want, run(*k, p, s.m, std::min<int64_t>(s.m, 5), 1)));
      }
    }
  }
}

// Quotients at the middle of two codes, and the floats next to it, are rounded as a division
// rounds them, at scales where reciprocals are exact enough and where they are not.
TEST(int8_quantize_between_codes) {
  std::mt19937 random(7);
  for (const float size : {1.f, 0x1p-30f, 0x1p30f, 0x1p-99f, 0x1p-110f, 0x1p-126f, 0x1p99f, 0x1p110f, 0x1p119f}) {
    for (int turn = 0; turn < 40; turn++) {
      const float scale = size * (1 + float(random() % (1 << 23)) * 0x1p-23f);
      std::vector<float> x = {255 * scale, -float(random() % 3) * scale};
      for (int code = 0; code < 255; code++) {
        float v = (float(code) + 0.5f) * scale;
        for (int i = 0; i < 3; i++) v = std::nextafter(v, 0.f);
        for (int i = 0; i < 7; i++) x.push_back(std::min(v, 255 * scale)), v = std::nextafter(v, std::numeric_limits<float>::max());
      }
      Int8Product p;
      p.x = x.data(), p.w.k = int64_t(x.size()), p.w.n = 1;
      const auto quantized = [&](const Int8Kernels &k) {
        std::vector<uint8_t> codes(size_t(p.w.padded_k()));
        RowScale s;
        k.quantize(p, 0, 1, codes.data(), &s);
        CHECK(std::isfinite(s.scale));
        codes.push_back(uint8_t(s.zero));
        return codes;
      };
      const auto want = quantized(int8_plain);
      for (const Int8Kernels *k : kernels()) CHECK(quantized(*k) == want);
    }
  }
}

TEST(int8_gelu) {
  const int64_t k = 40, n = 60, m = 9;
  const auto x = gauss(m * k, 1);
  const Packed w(codes(k * n, 2), std::vector<float>(n, 0.003f), k, n);
  Int8Product p;
  p.x = x.data(), p.w = w.w;
  const auto y = run(int8_plain, p, m, m, 2);
  p.act = Activation::gelu;
  constexpr double tolerance = 5e-7; // of the approximation of erf
  for (const Int8Kernels *k : kernels()) {
    const auto g = run(*k, p, m, m, 2);
    for (size_t i = 0; i < y.size(); i++) {
      const double want = y[i] * 0.5 * (1 + std::erf(y[i] / std::sqrt(2.0)));
      CHECK(std::fabs(g[i] - want) <= tolerance * std::max(1.0, std::fabs(double(y[i]))));
    }
  }
}

TEST(int8_other_activations) {
  const struct {
    Activation act;
    double (*of)(double);
  } all[] = {
      {Activation::quick_gelu, [](double v) { return v / (1 + std::exp(-1.702 * v)); }},
      {Activation::silu, [](double v) { return v / (1 + std::exp(-v)); }},
      {Activation::gelu_tanh, [](double v) { return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v))); }},
      {Activation::relu, [](double v) { return v < 0 ? 0 : v; }},
  };
  const int64_t k = 40, n = 60, m = 9;
  const Packed w(codes(k * n, 2), std::vector<float>(n, 0.003f), k, n);
  for (const float scale : {0.f, 1e-3f, 1.f, 40.f, 1e6f, 1e35f}) {
    const auto x = gauss(m * k, 1, scale);
    Int8Product p;
    p.x = x.data(), p.w = w.w;
    const auto y = run(int8_plain, p, m, m, 2);
    for (const auto &a : all)
      for (const Int8Kernels *kn : kernels()) {
        p.act = a.act;
        const auto g = run(*kn, p, m, m, 2);
        constexpr double tolerance = 1e-6; // of exp and what it takes, and two roundings
        for (size_t i = 0; i < y.size(); i++) CHECK(std::fabs(g[i] - a.of(y[i])) <= tolerance * std::max(1.0, std::fabs(double(y[i]))));
      }
  }
}

// A sum that is infinite gives what the plain kernel's does, NaN or not.
TEST(int8_infinite_sums) {
  const int64_t k = 8, n = 50;
  const float inf = std::numeric_limits<float>::infinity();
  const Packed w(codes(k * n, 4), std::vector<float>(n, 0.01f), k, n);
  const auto x = gauss(3 * k, 5);
  std::vector<float> bias(n, 0);
  bias[3] = inf, bias[4] = -inf, bias[40] = -inf;
  Int8Product p;
  p.x = x.data(), p.w = w.w, p.bias = bias.data();
  for (const auto act : {Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu, Activation::relu}) {
    p.act = act;
    const auto want = run(int8_plain, p, 3, 3, 1);
    for (const Int8Kernels *kn : kernels()) {
      const auto y = run(*kn, p, 3, 3, 1);
      for (size_t i = 0; i < y.size(); i++) CHECK(std::isnan(y[i]) == std::isnan(want[i]) && std::isinf(y[i]) == std::isinf(want[i]));
    }
  }
}

TEST(int8_rows_that_are_not_finite) {
  const int64_t k = 20, n = 50;
  const Packed w(codes(k * n, 4), std::vector<float>(n, 1), k, n);
  const float huge = std::numeric_limits<float>::max(), inf = std::numeric_limits<float>::infinity();
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), inf, -inf, huge}) {
    auto x = gauss(3 * k, 5);
    x[k + 7] = bad, x[k + 8] = -huge; // of row 1; huge - -huge is no float
    for (int64_t i = 2 * k; i < 3 * k; i++) x[size_t(i)] = 0;
    Int8Product p;
    p.x = x.data(), p.w = w.w;
    for (const auto act : {Activation::none, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu, Activation::relu}) for (const Int8Kernels *kn : kernels()) {
      p.act = act;
      const auto y = run(*kn, p, 3, 3, 1);
      for (int64_t i = 0; i < 3 * n; i++) {
        CHECK(std::isnan(y[size_t(i)]) == (i / n == 1));
        if (i / n == 2) CHECK(y[size_t(i)] == 0); // a row of zeros
      }
    }
  }
}

TEST(int8_refuses_what_it_did_not_pack) {
  const Packed p(codes(100, 6), std::vector<float>(10, 1), 10, 10);
  std::vector<char> bytes(p.bytes);
  std::memcpy(bytes.data(), p.memory.get(), p.bytes);
  Int8Weight w;
  for (size_t n : {size_t(0), size_t(63), size_t(64), bytes.size() - 1}) CHECK(int8_view(bytes.data(), n, &w) != nullptr);
  std::mt19937 r(7);
  for (int i = 0; i < 2000; i++) {
    auto bent = bytes;
    bent[r() % 32] ^= char(1 << r() % 8);
    Int8Header h;
    std::memcpy(&h, bent.data(), sizeof h);
    const bool fits = std::memcmp(h.magic, kInt8Magic, sizeof h.magic) == 0 && int8_packed_size(h.k, h.n) == bytes.size();
    CHECK((int8_view(bent.data(), bent.size(), &w) == nullptr) == fits);
  }
  CHECK(int8_packed_size(kInt8MaxK + 1, 1) == 0);
}
