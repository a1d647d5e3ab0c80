// PatchesBF16 beside MatMulBF16 of rows that are copied as the definition says,
// bit for bit.
#include <cstring>
#include <stdexcept>

#include "bf16.hpp"
#include "runtime.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

OrtValue packed(int64_t k, int64_t n) {
  OrtValue v;
  const size_t bytes = bf16_packed_size(k, n);
  v.reset({int64_t(bytes)}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, bytes);
  bf16_pack(gauss(size_t(k * n), 2).data(), k, n, 0, n, v.data);
  return v;
}

OrtKernelInfo node(const char *op, const OrtValue &w, int64_t n, int64_t height, int64_t width) {
  OrtKernelInfo i;
  i.op = op, i.inputs = 3, i.threads = 3, i.constants[1] = &w;
  i.integers["N"] = n, i.integers["height"] = height, i.integers["width"] = width;
  return i;
}

template <class F> bool refused(const F &f) {
  try {
    f();
  } catch (const std::runtime_error &e) {
    return std::strstr(e.what(), "PatchesBF16: ") != nullptr;
  }
  return false;
}

} // namespace

TEST(patches_of_all_shapes) {
  struct Shape {
    int64_t batch, channels, rows, columns, height, width, n;
  };
  Pool pool(3);
  for (const Shape &s : std::vector<Shape>{{1, 1, 1, 1, 1, 1, 1},
                                           {2, 3, 4, 6, 2, 3, 50},
                                           {1, 3, 29, 31, 14, 14, 48},  // pixels that no patch has
                                           {3, 2, 32, 32, 8, 8, 33},
                                           {1, 3, 64, 48, 16, 16, 100}, // whole vectors
                                           {70, 1, 2, 2, 2, 2, 5},      // more rows than a block
                                           {1, 5, 33, 40, 1, 40, 7},
                                           {0, 3, 8, 8, 4, 4, 9}}) {
    const int64_t across = s.columns / s.width, patches = s.rows / s.height * across, k = s.channels * s.height * s.width;
    const auto pixels = gauss(size_t(s.batch * s.channels * s.rows * s.columns), 1);
    std::vector<float> rows;
    for (int64_t b = 0; b < s.batch; b++)
      for (int64_t p = 0; p < patches; p++)
        for (int64_t c = 0; c < s.channels; c++)
          for (int64_t y = 0; y < s.height; y++)
            for (int64_t x = 0; x < s.width; x++)
              rows.push_back(pixels[size_t(((b * s.channels + c) * s.rows + p / across * s.height + y) * s.columns + p % across * s.width + x)]);
    const OrtValue w = packed(k, s.n), bias = OrtValue::of(gauss(size_t(s.n), 3), {s.n}, f32);
    const OrtValue image = OrtValue::of(pixels, {s.batch, s.channels, s.rows, s.columns}, f32), matrix = OrtValue::of(rows, {s.batch * patches, k}, f32);
    const Made a(node("PatchesBF16", w, s.n, s.height, s.width)), b(node("MatMulBF16", w, s.n, 0, 0));
    for (const OrtValue *add : {&bias, static_cast<const OrtValue *>(nullptr)}) {
      const auto y = a.run(pool, {&image, &w, add});
      CHECK(int64_t(y.size()) == s.batch * patches * s.n);
      CHECK(same_bits(y, b.run(pool, {&matrix, &w, add})));
    }
  }
}

TEST(patches_refused) {
  const OrtValue w = packed(48, 20);
  for (const auto &size : std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {4, 0}, {-4, -4}, {5, 1}, {7, 7}, {1 << 20, 1 << 20}, {int64_t(1) << 62, 4}, {INT64_MAX, INT64_MAX}})
    CHECK(refused([&] { Made(node("PatchesBF16", w, 20, size.first, size.second)); }));
  CHECK(refused([&] { Made(node("PatchesBF16", w, 21, 4, 4)); }));
  const Made a(node("PatchesBF16", w, 20, 4, 4)); // of 3 channels
  Pool pool(2);
  const auto run = [&](const std::vector<int64_t> &dims, int64_t bias) {
    size_t n = 1;
    for (const int64_t d : dims) n *= size_t(d);
    const OrtValue x = OrtValue::of(gauss(n, 1), dims, f32), b = OrtValue::of(gauss(size_t(bias), 2), {bias}, f32);
    a.run(pool, {&x, &w, &b});
  };
  CHECK(!refused([&] { run({1, 3, 4, 4}, 20); }));
  for (const auto &dims : std::vector<std::vector<int64_t>>{{3, 4, 4}, {1, 2, 4, 4}, {1, 3, 3, 4}, {1, 3, 4, 3}, {1, 3, 0, 4}, {0, 3, 4, 0}, {1, 1, 3, 4, 4}, {48}, {}})
    CHECK(refused([&] { run(dims, 20); }));
  CHECK(refused([&] { run({1, 3, 4, 4}, 19); }));
}
