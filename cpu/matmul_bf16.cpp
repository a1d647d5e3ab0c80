// fewbit.MatMulBF16(X, W, B) -> Y: see bf16.hpp. Calibration runs float models
// with it. And PatchesBF16, the same product of an image's patches.
#include <cstring>

#include "bf16.hpp"
#include "operators.hpp"
#include "tasks.hpp"

namespace fewbit {

namespace {

// The weight at input 1, which has N columns.
Bf16Weight weight_of(const Node &node, const std::string &op) {
  Bf16Weight w;
  const Tensor t = node.constant(1, (op + ": W").c_str());
  if (const char *why = bf16_view(t.data, size_t(t.count()), &w)) refuse(op + ": W " + why);
  if (node.integer("N", -1) != w.n) refuse(op + ": attribute N is not the number of W's columns");
  return w;
}

const float *bias_of(const Tensor &b, int64_t n, const std::string &op) {
  if (b.data && (b.rank != 1 || b.last() != n)) refuse(op + ": B must have as many elements as W has columns");
  return b.as<float>();
}

// convert(r0, r1, rows, scratch) writes rows [r0,r1) as they are multiplied; scratch
// has this many bytes.
template <class Convert> void multiply(const Call &call, const Bf16Product &p, int64_t m, int threads, size_t scratch, const Convert &convert) {
  const Bf16Kernels &kernels = bf16_kernels();
  const size_t row_bytes = size_t(p.w.padded_k()) * sizeof(uint16_t);
  const Blocks blocks(m, p.w.panel_count(), int64_t(row_bytes), p.w.k * p.w.n, threads);
  blocks.run(
      call, row_bytes, scratch,
      [&](int64_t r0, int64_t r1, void *rows) { convert(r0, r1, static_cast<uint16_t *>(rows), static_cast<char *>(rows) + size_t(blocks.height) * row_bytes); },
      [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1, const void *rows) { kernels.multiply(p, r0, r1, p0, p1, static_cast<const uint16_t *>(rows)); });
}

struct MatMulBF16 final : Kernel {
  Bf16Weight w;
  Activation act = Activation::none;
  int threads = 1;

  explicit MatMulBF16(const Node &node) : w(weight_of(node, "MatMulBF16")), threads(node.threads()) {
    const std::string a = node.string("activation", "");
    if (a == "gelu")
      act = Activation::gelu;
    else if (!a.empty())
      refuse("MatMulBF16: activation must be \"gelu\" or absent");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0);
    if (x.rank < 1 || x.last() != w.k)
      refuse("MatMulBF16: X has " + std::to_string(x.last()) + " columns, W has " + std::to_string(w.k) + " rows");
    Bf16Product p;
    p.bias = bias_of(call.input(2), w.n, "MatMulBF16");
    std::vector<int64_t> dims(x.dims, x.dims + x.rank);
    dims.back() = w.n;
    p.y = static_cast<float *>(call.output(0, dims));
    p.x = x.as<float>(), p.act = act, p.w = w;
    if (const int64_t m = x.rows()) multiply(call, p, m, threads, 0, [&](int64_t r0, int64_t r1, uint16_t *rows, void *) { bf16_kernels().convert(p, r0, r1, rows); });
  }
};

// Rows of the product are patches of height x width pixels of all channels, as a
// convolution with steps of its kernel's size takes them.
struct PatchesBF16 final : Kernel {
  Bf16Weight w;
  int64_t height, width;
  int threads = 1;

  explicit PatchesBF16(const Node &node)
      : w(weight_of(node, "PatchesBF16")), height(node.integer("height", 0)), width(node.integer("width", 0)), threads(node.threads()) {
    if (height < 1 || width < 1 || height > kMaxDim || width > kMaxDim || w.k % (height * width) != 0)
      refuse("PatchesBF16: W must have as many rows as some channels of height x width pixels");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0);
    const int64_t channels = w.k / (height * width);
    if (x.rank != 4 || x.dims[1] != channels || x.dims[2] < height || x.dims[3] < width)
      refuse("PatchesBF16: X must be [batch, " + std::to_string(channels) + ", " + std::to_string(height) + " or more, " + std::to_string(width) + " or more]");
    const int64_t across = x.dims[3] / width, patches = x.dims[2] / height * across;
    Bf16Product p;
    p.bias = bias_of(call.input(2), w.n, "PatchesBF16");
    p.y = static_cast<float *>(call.output(0, {x.dims[0], patches, w.n}));
    p.w = w;
    const auto copy = [&](int64_t r, float *to) {
      const float *from = x.as<float>() + r / patches * channels * x.dims[2] * x.dims[3] + (r % patches / across * height) * x.dims[3] + r % across * width;
      for (int64_t c = 0; c < channels; c++, from += x.dims[2] * x.dims[3])
        for (int64_t y = 0; y < height; y++, to += width) std::memcpy(to, from + y * x.dims[3], size_t(width) * sizeof(float));
    };
    if (x.dims[0])
      multiply(call, p, x.dims[0] * patches, threads, size_t(w.k) * sizeof(float), [&](int64_t r0, int64_t r1, uint16_t *rows, void *scratch) {
        Bf16Product one;
        one.w = w, one.x = static_cast<float *>(scratch);
        for (; r0 < r1; r0++, rows += w.padded_k()) {
          copy(r0, static_cast<float *>(scratch));
          bf16_kernels().convert(one, 0, 1, rows);
        }
      });
  }
};

// [batch, channels, rows, columns] gives [batch, patches, N].
void patches_shape(OrtShapeInferContext *c) {
  const Shape x = Shape::of_input(c, 0);
  if (x.dims.size() != 4) return;
  Shape y;
  y.dims = {x.dims[0], -1, attribute_of(c, "N")}, y.names = {x.names[0], "", ""};
  const int64_t height = attribute_of(c, "height"), width = attribute_of(c, "width");
  if (height > 0 && width > 0 && x.dims[2] >= 0 && x.dims[3] >= 0) y.dims[1] = x.dims[2] / height * (x.dims[3] / width);
  y.set_output(c, 0);
}

} // namespace

const Operator &matmul_bf16() {
  static const Operator op("MatMulBF16",
                           {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, true}},
                           {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}},
                           [](const Node &n) -> Kernel * { return new MatMulBF16(n); }, shapes_with_columns);
  return op;
}

const Operator &patches_bf16() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("PatchesBF16", {{f32}, {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8}, {f32, true}}, {{f32}}, [](const Node &n) -> Kernel * { return new PatchesBF16(n); },
                           patches_shape);
  return op;
}

} // namespace fewbit
