// The emulated tiles of AMX, the kernel on them, and whether this processor has real ones.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "amx_emulated.hpp"
#include "int8.hpp"
#include "int8_run.hpp"
#include "level.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

struct Config {
  uint8_t bytes[64] = {1};
  Config &shape(int tile, int rows, int row_bytes) {
    bytes[48 + tile] = uint8_t(rows), bytes[16 + 2 * tile] = uint8_t(row_bytes), bytes[17 + 2 * tile] = uint8_t(row_bytes >> 8);
    return *this;
  }
  Config &set(int at, int v) {
    bytes[at] = uint8_t(v);
    return *this;
  }
};

// Sums of m x n, of rows of 4 k codes.
Config shapes(int m, int k, int n) { return Config().shape(0, m, 4 * n).shape(1, m, 4 * k).shape(2, k, 4 * n); }

bool aborts(const std::function<void()> &f) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
    f();
    _exit(0);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

} // namespace

TEST(amx_emulated_product) {
  std::mt19937 random(1);
  for (int m : {1, 5, 16})
    for (int k : {1, 3, 16})
      for (int n : {1, 7, 16}) {
        const int a_stride = 4 * k + 3, b_stride = 4 * n + 9, c_stride = 4 * n + 8;
        std::vector<uint8_t> a(size_t(m * a_stride));
        std::vector<int8_t> b(size_t(k * b_stride));
        std::vector<char> c(size_t(m * c_stride), 7);
        for (auto &v : a) v = uint8_t(random());
        for (auto &v : b) v = int8_t(random());
        emulated::configure(shapes(m, k, n).bytes);
        emulated::zero(0);
        emulated::load(1, a.data(), a_stride), emulated::load(2, b.data(), b_stride);
        emulated::dot(0, 1, 2), emulated::dot(0, 1, 2);
        emulated::store(0, c.data(), c_stride);
        emulated::release();
        for (int r = 0; r < m; r++) {
          for (int col = 0; col < n; col++) {
            int32_t want = 0, got;
            for (int i = 0; i < 4 * k; i++) want += 2 * a[size_t(r * a_stride + i)] * b[size_t(i / 4 * b_stride + 4 * col + i % 4)];
            std::memcpy(&got, &c[size_t(r * c_stride + 4 * col)], sizeof got);
            CHECK(got == want);
          }
          for (int i = 4 * n; i < c_stride; i++) CHECK(c[size_t(r * c_stride + i)] == 7); // between the rows
        }
      }
}

TEST(amx_emulated_faults) {
  using namespace emulated;
  const auto configures = [](const Config &c) { return [c] { configure(c.bytes); }; };
  const auto dots = [](const Config &c) { return [c] { configure(c.bytes), dot(0, 1, 2); }; };
  const Config good = shapes(16, 16, 16);
  CHECK(!aborts(dots(good)));
  CHECK(!aborts(configures(Config(good).set(0, 0)))); // nothing is configured
  CHECK(aborts(configures(Config(good).set(0, 2))));
  CHECK(aborts(configures(Config(good).set(1, 3))));
  for (int at : {2, 15, 32, 47, 56, 63}) CHECK(aborts(configures(Config(good).set(at, 1))));
  CHECK(aborts(configures(Config(good).shape(3, 17, 64))));
  CHECK(aborts(configures(Config(good).shape(3, 16, 65))));
  CHECK(aborts(configures(Config(good).shape(3, 16, 64 + 256))));
  CHECK(aborts(configures(Config(good).shape(3, 16, 0))));
  CHECK(aborts(configures(Config(good).shape(3, 0, 64))));
  CHECK(aborts(configures(Config(good).shape(8, 16, 64))));
  CHECK(aborts(dots(Config(good).shape(0, 15, 64))));      // rows
  CHECK(aborts(dots(Config(good).shape(0, 16, 60))));      // columns
  CHECK(aborts(dots(Config(good).shape(1, 16, 60))));      // the length of a product
  CHECK(aborts(dots(Config(good).shape(2, 15, 64))));
  CHECK(aborts(dots(shapes(16, 16, 16).shape(0, 16, 62).shape(2, 16, 62))));
  CHECK(aborts([&] { configure(good.bytes), dot(0, 0, 2); }));
  CHECK(aborts([&] { configure(good.bytes), dot(0, 1, 1); }));
  CHECK(aborts([&] { configure(good.bytes), dot(2, 1, 2); }));
  CHECK(aborts([&] { configure(good.bytes), zero(3); }));
  CHECK(aborts([&] { configure(good.bytes), zero(8); }));
  CHECK(aborts([&] { configure(good.bytes), release(), zero(0); }));
  CHECK(aborts([&] { char memory[1024]; load(0, memory, 64); }));
  CHECK(aborts([&] { char memory[1024]; store(0, memory, 64); }));
}

TEST(amx_support) {
  const TileSupport all = {1u << 24 | 1u << 25, 1024u << 16 | 8192, 8u << 16 | 64, 16, 1u << 17 | 1u << 18};
  CHECK(all.usable());
  CHECK(!TileSupport().usable());
  const std::function<void(TileSupport &)> lacks[] = {
      [](TileSupport &s) { s.leaf7_edx = 1u << 24; },      [](TileSupport &s) { s.leaf7_edx = 1u << 25; },
      [](TileSupport &s) { s.xcr0 = 1u << 17; },           [](TileSupport &s) { s.xcr0 = 1u << 18; },
      [](TileSupport &s) { s.eax = 512u << 16 | 8192; },   [](TileSupport &s) { s.ebx = 8u << 16 | 32; },
      [](TileSupport &s) { s.ebx = 4u << 16 | 64; },       [](TileSupport &s) { s.ecx = 8; },
  };
  for (const auto &lack : lacks) {
    TileSupport s = all;
    lack(s);
    CHECK(!s.usable());
  }
}

#if defined(FEWBIT_EMULATE_AMX)
// int8_test.cpp compares the results; here is which way they came.
TEST(amx_tiles_are_used_and_released) {
  if (!has_level(FEWBIT_CPU_AMX)) return;
  const int64_t k = 192, n = 97;
  const std::vector<int8_t> weights(size_t(k * n), 3);
  const std::vector<float> scales(size_t(n), 0.1f), x = gauss(size_t(64 * k), 1);
  const size_t bytes = (int8_packed_size(k, n) + 63) / 64 * 64;
  const std::unique_ptr<void, decltype(&std::free)> packed(std::aligned_alloc(64, bytes), std::free);
  int8_pack(weights.data(), scales.data(), k, n, 0, n, packed.get());
  Int8Product p;
  p.x = x.data();
  CHECK(int8_view(packed.get(), int8_packed_size(k, n), &p.w) == nullptr);
  const struct {
    int64_t rows, tiles; // tiles of rows
  } cases[] = {{1, 0}, {4, 0}, {5, 1}, {15, 1}, {16, 1}, {20, 1}, {21, 2}, {32, 2}, {33, 2}, {48, 3}, {53, 4}, {64, 4}};
  for (const auto &c : cases) {
    emulated::configured_times = emulated::dots = 0;
    run(int8_amx_emulated, p, c.rows, c.rows, p.w.panel_count());
    CHECK(emulated::configured_times == (c.tiles > 0));
    CHECK(emulated::dots == c.tiles * (k / 64) * p.w.panel_count() * 3);
    CHECK(!emulated::state.configured);
  }
}
#endif
