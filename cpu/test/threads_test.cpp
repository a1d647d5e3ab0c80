// The operators as a server runs them: several calls at once, of several nodes,
// on one pool of threads. The thread sanitizer looks on (make test-cpu-threads).
#include <functional>
#include <limits>

#include "bf16.hpp"
#include "int8.hpp"
#include "runtime.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr int kThreads = 3, kCallers = 4, kTurns = 3;

OrtValue floats(std::vector<int64_t> dims, uint32_t seed, float scale = 1) {
  size_t n = 1;
  for (const int64_t d : dims) n *= size_t(d);
  return OrtValue::of(gauss(n, seed, scale), std::move(dims), f32);
}

OrtValue packed_int8(int64_t k, int64_t n, uint32_t seed) {
  std::mt19937 r(seed);
  std::vector<int8_t> w(size_t(k * n));
  for (auto &x : w) x = int8_t(int(r() % 255) - 127);
  const std::vector<float> scales(size_t(n), 0.015f / std::sqrt(float(k)));
  OrtValue v;
  const size_t bytes = int8_packed_size(k, n);
  v.reset({int64_t(bytes)}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, bytes);
  int8_pack(w.data(), scales.data(), k, n, 0, n, v.data);
  return v;
}

OrtValue packed_bf16(int64_t k, int64_t n, uint32_t seed) {
  OrtValue v;
  const size_t bytes = bf16_packed_size(k, n);
  v.reset({int64_t(bytes)}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, bytes);
  bf16_pack(gauss(size_t(k * n), seed).data(), k, n, 0, n, v.data);
  return v;
}

// A node and one feed for it.
struct Job {
  const Made *made;
  std::vector<const OrtValue *> inputs;
  std::vector<float> want; // of one thread
};

void on_callers(const std::function<void(size_t)> &f) {
  std::vector<std::thread> all;
  for (size_t i = 0; i < kCallers; i++) all.emplace_back(f, i);
  for (auto &t : all) t.join();
}

// Every caller runs every job a few times, each in another order.
void at_once(std::vector<Job> jobs) {
  Pool alone(1), pool(kThreads);
  for (Job &j : jobs) j.want = j.made->run(alone, j.inputs);
  std::atomic<int> wrong{0};
  on_callers([&](size_t caller) {
    for (size_t i = 0; i < kTurns * jobs.size(); i++) {
      const Job &j = jobs[(i + caller) % jobs.size()];
      const auto y = j.made->run(pool, j.inputs);
      if (y.size() != j.want.size() || std::memcmp(y.data(), j.want.data(), y.size() * sizeof(float)) != 0) wrong++;
    }
  });
  CHECK(wrong == 0);
}

} // namespace

TEST(threads_linear_rows) {
  // Both of different sizes: a thread keeps one memory for all nodes.
  const OrtValue w0 = packed_int8(70, 200, 1), w1 = packed_int8(33, 500, 2), bias = floats({200}, 3), x0 = floats({5, 29, 70}, 4), x1 = floats({1, 33}, 5), x2 = floats({150, 33}, 6), residual = floats({150, 500}, 7);
  const auto info = [](const OrtValue &w, int64_t n) {
    OrtKernelInfo i;
    i.op = "LinearRows", i.inputs = 5, i.threads = kThreads;
    i.integers["N"] = n, i.constants[1] = &w;
    return i;
  };
  OrtKernelInfo gelu = info(w0, 200);
  gelu.strings["activation"] = "gelu";
  const Made a(gelu), b(info(w1, 500));
  at_once({{&a, {&x0, &w0, nullptr, &bias}, {}}, {&b, {&x1, &w1}, {}}, {&b, {&x2, &w1, nullptr, nullptr, &residual}, {}}});
}

TEST(threads_matmul_bf16) {
  const OrtValue w = packed_bf16(40, 300, 1), bias = floats({300}, 2), x0 = floats({3, 50, 40}, 3), x1 = floats({1, 40}, 4);
  OrtKernelInfo i;
  i.op = "MatMulBF16", i.inputs = 3, i.threads = kThreads;
  i.integers["N"] = 300, i.constants[1] = &w;
  const Made a(i);
  at_once({{&a, {&x0, &w, &bias}, {}}, {&a, {&x1, &w, &bias}, {}}});
}

TEST(threads_encoder_attention) {
  const int64_t width = 48;
  const OrtValue x0 = floats({2, 37, 3 * width}, 1), x1 = floats({1, 101, 3 * width}, 2), bias = floats({2, 1, 1, 37}, 3);
  OrtKernelInfo i;
  i.op = "EncoderAttention", i.inputs = 2, i.threads = kThreads;
  i.integers["N"] = width, i.integers["num_heads"] = 3, i.reals["scale"] = 0.25f;
  const Made a(i);
  at_once({{&a, {&x0, &bias}, {}}, {&a, {&x1}, {}}});
}

TEST(threads_encoder_layers) {
  const int64_t width = 32, inner = 70, layers = 2;
  std::vector<OrtValue> constants;
  for (int64_t l = 0; l < layers; l++) {
    const auto projection = [&](int64_t k, int64_t n) {
      constants.push_back(packed_int8(k, n, uint32_t(constants.size())));
      constants.push_back(floats({0}, 0));
      constants.push_back(floats({n}, uint32_t(constants.size()), 0.1f));
    };
    const auto norm = [&] {
      for (int j = 0; j < 2; j++) constants.push_back(floats({width}, uint32_t(constants.size())));
    };
    projection(width, 3 * width), projection(width, width), norm();
    projection(width, inner), projection(inner, width), norm();
  }
  OrtKernelInfo i;
  i.op = "EncoderLayers", i.inputs = 2 + constants.size(), i.threads = kThreads;
  i.integers["N"] = width, i.integers["num_heads"] = 2, i.reals["scale"] = 0.25f, i.reals["epsilon"] = 1e-12f;
  for (size_t c = 0; c < constants.size(); c++) i.constants[2 + c] = &constants[c];
  const Made a(i);
  // By columns, and by rows with and without samples that are padded.
  const OrtValue none = floats({0}, 0), x0 = floats({1, 9, width}, 1), x1 = floats({3, 41, width}, 2), x2 = floats({1, 150, width}, 3);
  OrtValue mask = floats({3, 1, 1, 41}, 4);
  for (int64_t s = 0; s < 3; s++)
    for (int64_t c = 41 - 9 * s; c < 41; c++) static_cast<float *>(mask.data)[s * 41 + c] = std::numeric_limits<float>::lowest();
  at_once({{&a, {&x0, &none}, {}}, {&a, {&x1, &mask}, {}}, {&a, {&x2, &none}, {}}});
}

// Sessions are made while others run.
TEST(threads_register_while_running) {
  const OrtValue w = packed_int8(16, 100, 1), x = floats({40, 16}, 2);
  OrtKernelInfo i;
  i.op = "LinearRows", i.inputs = 2, i.threads = kThreads;
  i.integers["N"] = 100, i.constants[1] = &w;
  const Made running(i);
  Pool pool(kThreads);
  on_callers([&](size_t caller) {
    for (int turn = 0; turn < kTurns; turn++) {
      if (caller % 2) {
        register_operators();
        const Made other(i);
        other.run(pool, {&x, &w});
      } else {
        running.run(pool, {&x, &w});
      }
    }
  });
}

// Threads pack ranges of columns that begin at a panel.
TEST(threads_pack) {
  const int64_t k = 50, n = kPanel * kCallers - 5;
  std::mt19937 r(1);
  std::vector<int8_t> codes(size_t(k * n));
  for (auto &c : codes) c = int8_t(r());
  const auto scales = gauss(size_t(n), 2), w = gauss(size_t(k * n), 3);
  std::vector<char> int8(int8_packed_size(k, n)), bf16(bf16_packed_size(k, n)), want8(int8.size()), want16(bf16.size());
  int8_pack(codes.data(), scales.data(), k, n, 0, n, want8.data());
  bf16_pack(w.data(), k, n, 0, n, want16.data());
  on_callers([&](size_t i) {
    const int64_t first = int64_t(i) * kPanel, last = std::min(n, first + kPanel);
    int8_pack(codes.data(), scales.data(), k, n, first, last, int8.data());
    bf16_pack(w.data(), k, n, first, last, bf16.data());
  });
  CHECK(int8 == want8 && bf16 == want16);
}
