// fewbit.MatMulBF16(X, W, B) -> Y: see bf16.hpp. Calibration runs float models
// with it.
#include "bf16.hpp"
#include "operators.hpp"
#include "tasks.hpp"

namespace fewbit {

namespace {

struct MatMulBF16 final : Kernel {
  Bf16Weight w;
  Activation act = Activation::none;
  int threads = 1;

  explicit MatMulBF16(const Node &node) : threads(node.threads()) {
    const Tensor t = node.constant(1, "MatMulBF16: W");
    if (const char *why = bf16_view(t.data, size_t(t.count()), &w)) refuse(std::string("MatMulBF16: W ") + why);
    if (node.integer("N", -1) != w.n) refuse("MatMulBF16: attribute N is not the number of W's columns");
    const std::string a = node.string("activation", "");
    if (a == "gelu")
      act = Activation::gelu;
    else if (!a.empty())
      refuse("MatMulBF16: activation must be \"gelu\" or absent");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0), b = call.input(2);
    if (x.rank < 1 || x.last() != w.k)
      refuse("MatMulBF16: X has " + std::to_string(x.last()) + " columns, W has " + std::to_string(w.k) + " rows");
    if (b.data && (b.rank != 1 || b.last() != w.n)) refuse("MatMulBF16: B must have as many elements as W has columns");
    std::vector<int64_t> dims(x.dims, x.dims + x.rank);
    dims.back() = w.n;
    Bf16Product p;
    p.y = static_cast<float *>(call.output(0, dims));
    p.x = x.as<float>(), p.bias = b.as<float>(), p.act = act, p.w = w;
    if (const int64_t m = x.rows()) multiply(call, p, m);
  }

  void multiply(const Call &call, const Bf16Product &p, int64_t m) const {
    const Bf16Kernels &kernels = bf16_kernels();
    const size_t row_bytes = size_t(w.padded_k()) * sizeof(uint16_t);
    Blocks(m, w.panel_count(), int64_t(row_bytes), w.k * w.n, threads)
        .run(
            call, row_bytes, [&](int64_t r0, int64_t r1, void *rows) { kernels.convert(p, r0, r1, static_cast<uint16_t *>(rows)); },
            [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1, const void *rows) {
              kernels.multiply(p, r0, r1, p0, p1, static_cast<const uint16_t *>(rows));
            });
  }
};

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

} // namespace fewbit
