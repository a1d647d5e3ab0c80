// How close the products of the kernels come to what one core can do: every
// round measures the peak of the dot product instructions, the bandwidth of
// reading, and each product, so that a ratio is of one moment of the machine.
// Prints one JSON object a line; benchmarks/kernels.py makes the table of it. With
// "peak" it prints the INT8 peak alone: a process for each core gives that of all.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bf16.hpp"
#include "int8.hpp"
#include "level.hpp"

using namespace fewbit;

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kPeakSeconds = 0.2;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

struct Memory {
  std::unique_ptr<void, decltype(&std::free)> at;
  size_t bytes;
  explicit Memory(size_t n) : at(std::aligned_alloc(64, (n + 63) / 64 * 64), &std::free), bytes(n) {
    if (!at) {
      std::fprintf(stderr, "roofline: no memory for %zu bytes\n", n);
      std::exit(1);
    }
    std::memset(at.get(), 1, n);
  }
  template <class T> T *as() const { return static_cast<T *>(at.get()); }
};

// Multiply-accumulates a second of an instruction on 24 independent registers,
// as many as a tile has, without a load. `each` is what one instruction does.
// This file is compiled for any x86-64: the compiler knows of no register from 16
// on and needs not be told that they change.
#define FEWBIT_EACH_OF_24 ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n\t"
#define FEWBIT_PEAK(name, instruction, each)                                                                        \
  double name() {                                                                                                   \
    constexpr long rounds = 200000;                                                                                 \
    const auto began = Clock::now();                                                                                \
    asm volatile("mov %0, %%rcx\n\t"                                                                                \
                 "vpxord %%zmm24, %%zmm24, %%zmm24\n\tvpxord %%zmm25, %%zmm25, %%zmm25\n\t"                         \
                 FEWBIT_EACH_OF_24 "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n\t.endr\n\t"                               \
                 "1:\n\t" FEWBIT_EACH_OF_24 instruction " %%zmm24, %%zmm25, %%zmm\\r\n\t.endr\n\t"                 \
                 "dec %%rcx\n\tjnz 1b\n\tvzeroupper"                                                              \
                 :                                                                                                  \
                 : "r"(rounds)                                                                                      \
                 : "rcx", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",     \
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                                           \
    return double(rounds) * 24 * (each) / seconds_since(began);                                                     \
  }
#if defined(FEWBIT_AVX512)
FEWBIT_PEAK(peak_int8, "vpdpbusd", 64)
#endif
#if defined(FEWBIT_AVX512_BF16)
FEWBIT_PEAK(peak_bf16, "vdpbf16ps", 32)
#endif

// 0 where this processor is not one of those that the peak is written for.
double peak(bool int8) {
#if defined(FEWBIT_AVX512_BF16)
  if (!int8 && level() >= FEWBIT_CPU_AVX512_BF16) return peak_bf16();
#endif
#if defined(FEWBIT_AVX512)
  if (int8 && level() >= FEWBIT_CPU_AVX512_VNNI) return peak_int8();
#endif
  (void)int8;
  return 0;
}

// Bytes a second of reading memory from front to back; lines are fetched `ahead`
// bytes before they are read.
double bandwidth(const Memory &m, size_t ahead) {
  constexpr size_t line = 8; // of words
  const auto *p = m.as<const uint64_t>();
  const size_t n = m.bytes / 8 / line * line;
  uint64_t s[line] = {};
  const auto began = Clock::now();
  for (size_t i = 0; i < n; i += line) {
    if (ahead && i + ahead / 8 < n) __builtin_prefetch(p + i + ahead / 8, 0, 2);
    for (size_t j = 0; j < line; j++) s[j] ^= p[i + j];
  }
  const double took = seconds_since(began);
  volatile uint64_t keep = s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
  (void)keep;
  return double(n * 8) / took;
}

constexpr int64_t kBlockRows = 64;            // as the operators cut rows
constexpr size_t kMuch = size_t(64) << 20;    // of weights: more than most last-level caches

// Weights of one shape: `copies` of them are used in turn. With one, the weight
// comes from a cache; with more than caches hold, from memory, as in a model.
struct Case {
  const char *kind, *weights;
  bool quantize; // rows are quantized within the time
  int64_t m, k, n, copies;
};

template <class View, class Size> struct Weights {
  std::vector<Memory> memory;
  std::vector<View> views;
  template <class Pack, class Read> Weights(const Case &c, Size size, Pack pack, Read read) {
    for (int64_t i = 0; i < c.copies; i++) {
      memory.emplace_back(size(c.k, c.n));
      pack(memory.back().template as<void>());
      views.emplace_back();
      if (const char *wrong = read(memory.back().template as<void>(), memory.back().bytes, &views.back())) {
        std::fprintf(stderr, "roofline: %s\n", wrong);
        std::exit(1);
      }
    }
  }
};

// Seconds of one product, the least of those that fit into a tenth of a second.
template <class Once> double least(int64_t copies, const Once &once) {
  double best = 1e9, total = 0;
  for (int64_t i = 0; total < 0.1 || i < 2 * copies; i += copies) {
    const auto began = Clock::now();
    for (int64_t j = 0; j < copies; j++) once(j); // every weight once: the mean over them
    const double took = seconds_since(began);
    total += took, best = std::min(best, took / double(copies));
  }
  return best;
}

struct Product {
  Case c;
  std::vector<float> x, y;
  double weight_bytes = 0;
  virtual ~Product() = default;
  virtual double run() = 0;
  explicit Product(const Case &c) : c(c), x(size_t(c.m * c.k)), y(size_t(c.m * c.n)) {
    std::mt19937 r(1);
    std::normal_distribution<float> d;
    for (float &v : x) v = d(r);
  }
};

struct Int8 : Product {
  Weights<Int8Weight, size_t (*)(int64_t, int64_t)> w;
  std::vector<uint8_t> codes;
  std::vector<RowScale> scales;
  explicit Int8(const Case &c)
      : Product(c), w(c, int8_packed_size,
                      [&](void *to) {
                        const std::vector<int8_t> v(size_t(c.k * c.n), 3);
                        const std::vector<float> s(size_t(c.n), 0.01f);
                        int8_pack(v.data(), s.data(), c.k, c.n, 0, c.n, to);
                      },
                      int8_view) {
    weight_bytes = double(int8_packed_size(c.k, c.n));
    codes.resize(size_t(c.m * w.views[0].padded_k())), scales.resize(size_t(c.m));
    Int8Product p;
    p.x = x.data(), p.w = w.views[0];
    int8_kernels().quantize(p, 0, c.m, codes.data(), scales.data());
  }
  double run() override {
    const Int8Kernels &kernels = int8_kernels();
    return least(c.copies, [&](int64_t i) {
      Int8Product p;
      p.x = x.data(), p.y = y.data(), p.w = w.views[size_t(i)];
      const Int8Weight &next = w.views[size_t((i + 1) % c.copies)];
      for (int64_t r = 0; r < c.m; r += kBlockRows) {
        const int64_t end = std::min(c.m, r + kBlockRows);
        if (end == c.m && c.copies > 1) p.after = next.panel(0), p.after_bytes = next.padded_k() * kPanel;
        // Into the same block each time, as a thread does that keeps it in its cache.
        if (c.quantize) kernels.quantize(p, r, end, codes.data(), scales.data());
        const int64_t from = c.quantize ? 0 : r;
        kernels.multiply(p, r, end, 0, p.w.panel_count(), codes.data() + from * p.w.padded_k(), scales.data() + from);
      }
    });
  }
};

struct Bf16 : Product {
  Weights<Bf16Weight, size_t (*)(int64_t, int64_t)> w;
  std::vector<uint16_t> rows;
  explicit Bf16(const Case &c)
      : Product(c), w(c, bf16_packed_size, [&](void *to) { bf16_pack(std::vector<float>(size_t(c.k * c.n), 0.5f).data(), c.k, c.n, 0, c.n, to); }, bf16_view) {
    weight_bytes = double(bf16_packed_size(c.k, c.n));
    rows.resize(size_t(kBlockRows * w.views[0].padded_k()));
  }
  double run() override {
    const Bf16Kernels &kernels = bf16_kernels();
    return least(c.copies, [&](int64_t i) {
      Bf16Product p;
      p.x = x.data(), p.y = y.data(), p.w = w.views[size_t(i)];
      for (int64_t r = 0; r < c.m; r += kBlockRows) {
        const int64_t end = std::min(c.m, r + kBlockRows);
        kernels.convert(p, r, end, rows.data());
        kernels.multiply(p, r, end, 0, p.w.panel_count(), rows.data());
      }
    });
  }
};

} // namespace

int main(int argc, char **argv) {
  if (argc == 2 && std::strcmp(argv[1], "peak") == 0) {
    double most = 0;
    for (const auto began = Clock::now(); seconds_since(began) < kPeakSeconds;) most = std::max(most, peak(true));
    std::printf("{\"level\": \"%s\", \"peak_macs\": %.6g}\n", level_name(level()), most);
    return 0;
  }
  char *end = nullptr;
  const long rounds = argc > 1 ? std::strtol(argv[1], &end, 10) : 5;
  if (argc > 2 || rounds < 1 || rounds > 1000 || (end && *end)) {
    std::fprintf(stderr, "usage: fewbit_cpu_roofline [rounds, 1 to 1000; default 5]\n       fewbit_cpu_roofline peak: of INT8 products, one thread\n");
    return 2;
  }
  std::printf("{\"level\": \"%s\"}\n", level_name(level()));
  std::vector<std::unique_ptr<Product>> products;
  for (const auto &s : {std::pair<int64_t, int64_t>{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}}) {
    const int64_t copies = int64_t(kMuch) / (s.first * s.second) + 1;
    for (const int64_t m : {16, 64, 128, 256}) products.push_back(std::make_unique<Int8>(Case{"int8", "cache", false, m, s.first, s.second, 1}));
    products.push_back(std::make_unique<Int8>(Case{"int8", "cache", true, 128, s.first, s.second, 1}));
    for (const int64_t m : {1, 16}) products.push_back(std::make_unique<Int8>(Case{"int8", "memory", true, m, s.first, s.second, copies}));
  }
  for (const int64_t m : {16, 128}) products.push_back(std::make_unique<Bf16>(Case{"bf16", "cache", true, m, 768, 768, 1}));
  const Memory much(kMuch);
  for (long round = 0; round < rounds; round++)
    for (const auto &p : products) {
      const bool int8 = std::strcmp(p->c.kind, "int8") == 0;
      // Before and after, and the better: a peak that was disturbed flatters.
      double most = std::max(peak(int8), peak(int8));
      const double read = p->c.copies > 1 ? std::max({bandwidth(much, 0), bandwidth(much, 2 << 10), bandwidth(much, 36 << 10)}) : 0;
      const double took = p->run();
      most = std::max(most, peak(int8));
      std::printf("{\"kind\": \"%s\", \"weights\": \"%s\", \"quantizes\": %s, \"m\": %lld, \"k\": %lld, \"n\": %lld, \"seconds\": %.9g, \"peak_macs\": %.6g, \"bytes\": %.0f, \"bandwidth\": %.6g}\n",
                  p->c.kind, p->c.weights, p->c.quantize ? "true" : "false", static_cast<long long>(p->c.m), static_cast<long long>(p->c.k), static_cast<long long>(p->c.n), took, most, p->weight_bytes, read);
      std::fflush(stdout);
    }
}
