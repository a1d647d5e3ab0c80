#include <algorithm>
#include <cstdlib>
#include <memory>

#include "int4.hpp"
#include "int8_run.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

using Memory = std::unique_ptr<void, decltype(&std::free)>;

Memory aligned(size_t bytes) { return {std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free}; }

// A weight in 4 bits, packed, and the INT8 weight that it stands for.
struct Weights {
  std::vector<uint8_t> codes;
  std::vector<int8_t> steps, eight;
  std::vector<float> scales;
  size_t bytes;
  Memory four{nullptr, std::free}, plain{nullptr, std::free};
  std::vector<int8_t> expanded;
  Int8Weight w, want;

  Weights(int64_t k, int64_t n, int parts) : codes(size_t(k / 2 * n)), steps(size_t(k / kInt4Block * n)), eight(size_t(k * n)), scales(gauss(size_t(n), 3, 0.01f)), bytes(int4_packed_size(k, n)) {
    std::mt19937 r(4);
    for (auto &c : codes) c = uint8_t(r());
    for (auto &s : steps) s = int8_t(int(r() % 31) - 15);
    const int64_t half = kInt4Block / 2;
    for (int64_t i = 0; i < k; i++)
      for (int64_t c = 0; c < n; c++) {
        const int64_t b = i / kInt4Block, in = i % kInt4Block;
        const uint8_t pair = codes[size_t((b * half + in % half) * n + c)];
        eight[size_t(i * n + c)] = int8_t((int(in < half ? pair & 15 : pair >> 4) - 8) * steps[size_t(b * n + c)]);
      }
    four = aligned(bytes);
    const int64_t panels = (n + kPanel - 1) / kPanel;
    for (int i = 0; i < parts; i++)
      if (const int64_t a = panels * i / parts, b = panels * (i + 1) / parts; a < b)
        int4_pack(codes.data(), steps.data(), scales.data(), k, n, a * kPanel, std::min(n, b * kPanel), four.get());
    CHECK(weight_view(four.get(), bytes, &w, &expanded) == nullptr);
    const size_t size = int8_packed_size(k, n);
    plain = aligned(size);
    int8_pack(eight.data(), scales.data(), k, n, 0, n, plain.get());
    CHECK(int8_view(plain.get(), size, &want) == nullptr);
  }
};

} // namespace

// What a weight in 4 bits gives is what the INT8 weight that it stands for gives.
TEST(int4_equals_int8_bit_for_bit) {
  struct Shape {
    int64_t m, k, n;
  };
  std::vector<Shape> shapes;
  for (int64_t m : {1, 2, 7, 8, 9, 16, 17, 63, 64, 65})
    for (int64_t k : {32, 64, 96, 256, 288, 320})
      for (int64_t n : {1, 15, 16, 17, 47, 48, 49, 97}) shapes.push_back({m, k, n});
  shapes.push_back({3, 4096, 100});
  shapes.push_back({131, 512, 49});
  shapes.push_back({2, kInt8MaxK, 49});
  shapes.push_back({4096, 32, 50});
  for (const Shape &s : shapes) {
    const auto x = gauss(size_t(s.m * s.k), 1, 3), bias = gauss(size_t(s.n), 4), residual = gauss(size_t(s.m * s.n), 5);
    auto divisor = gauss(size_t(s.k), 2);
    for (float &v : divisor) v = std::fabs(v) + 0.1f;
    const Weights w(s.k, s.n, 3);
    for (int form = 0; form < 2; form++) {
      Int8Product p;
      p.x = x.data(), p.w = w.want;
      if (form) p.bias = bias.data(), p.divisor = divisor.data(), p.residual = residual.data();
      const auto want = run(int8_plain, p, s.m, s.m, p.w.panel_count());
      p.w = w.w;
      if (s.m * s.k * s.n < 1 << 20) CHECK(same_bits(want, run(int8_plain, p, s.m, s.m, 1)));
      CHECK(same_bits(want, run(int8_kernels(), p, s.m, s.m, p.w.panel_count())));
      CHECK(same_bits(want, run(int8_kernels(), p, s.m, std::min<int64_t>(s.m, 5), 1)));
    }
  }
}

// The plain expansion, which processors without AVX-512 run on.
TEST(int4_expands_to_the_packed_int8) {
  for (const int64_t k : {32, 352})
    for (const int64_t n : {1, 48, 97}) {
      const Weights made(k, n, 1);
      Int8Weight four;
      four.k = k, four.n = n, four.four = true;
      four.panels = static_cast<const int8_t *>(made.four.get()) + sizeof(Int8Header);
      std::vector<int8_t> to(size_t(k * kPanel));
      for (int64_t p = 0; p < four.panel_count(); p++) {
        int4_expand(four, p, 0, k, to.data());
        CHECK(std::memcmp(to.data(), made.want.panel(p), to.size()) == 0);
        int4_expand(four, p, k - kInt4Block, k, to.data());
        CHECK(std::memcmp(to.data(), made.want.panel(p) + (k - kInt4Block) * kPanel, size_t(kInt4Block * kPanel)) == 0);
      }
      CHECK(std::memcmp(made.w.sums, made.want.sums, size_t(n) * sizeof(int32_t)) == 0);
      CHECK(std::memcmp(made.w.scales, made.want.scales, size_t(n) * sizeof(float)) == 0);
    }
}

TEST(int4_refuses_what_it_did_not_pack) {
  const Weights made(64, 10, 1);
  std::vector<char> bytes(made.bytes);
  std::memcpy(bytes.data(), made.four.get(), made.bytes);
  Int8Weight w;
  std::vector<int8_t> memory;
  for (size_t n : {size_t(0), size_t(63), size_t(64), bytes.size() - 1}) CHECK(weight_view(bytes.data(), n, &w, &memory) != nullptr);
  std::mt19937 r(7);
  for (int i = 0; i < 2000; i++) {
    auto bent = bytes;
    bent[r() % 32] ^= char(1 << r() % 8);
    Int8Header h;
    std::memcpy(&h, bent.data(), sizeof h);
    const bool fits = std::memcmp(h.magic, kInt4Magic, sizeof h.magic) == 0 && int4_packed_size(h.k, h.n) == bytes.size();
    CHECK((weight_view(bent.data(), bent.size(), &w, &memory) == nullptr) == fits);
  }
  for (const int64_t k : {int64_t(0), int64_t(1), int64_t(31), int64_t(33), kInt8MaxK + kInt4Block}) CHECK(int4_packed_size(k, 1) == 0);
}
