// fewbit.LinearRows(X, W, Divisor, B, Residual) -> Y: a projection of the native
// form (docs/ops.md) with all that stands around it; see int8.hpp.
#include "int4.hpp"
#include "operators.hpp"
#include "tasks.hpp"

namespace fewbit {

Activation activation_of(const Node &node, const char *op) {
  const std::string a = node.string("activation", "");
  if (a.empty()) return Activation::none;
  if (a == "gelu") return Activation::gelu;
  if (a == "quick_gelu") return Activation::quick_gelu;
  if (a == "gelu_tanh") return Activation::gelu_tanh;
  if (a == "silu") return Activation::silu;
  if (a == "relu") return Activation::relu;
  refuse(std::string(op) + ": activation must be \"gelu\", \"gelu_tanh\", \"quick_gelu\", \"silu\", \"relu\" or absent");
}

namespace {

struct LinearRows final : Kernel {
  Int8Weight w;
  std::vector<int8_t> expanded;
  Activation act = Activation::none;
  int threads = 1;

  explicit LinearRows(const Node &node) : threads(node.threads()) {
    const Tensor t = node.constant(1, "LinearRows: W");
    if (const char *why = weight_view(t.data, size_t(t.count()), &w, &expanded)) refuse(std::string("LinearRows: W ") + why);
    if (node.integer("N", -1) != w.n) refuse("LinearRows: attribute N is not the number of W's columns");
    act = activation_of(node, "LinearRows");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0), divisor = call.input(2), bias = call.input(3), residual = call.input(4);
    if (x.rank < 1 || x.last() != w.k)
      refuse("LinearRows: X has " + std::to_string(x.last()) + " columns, W has " + std::to_string(w.k) + " rows");
    if (divisor.data && (divisor.rank != 1 || divisor.last() != w.k)) refuse("LinearRows: Divisor must have as many elements as W has rows");
    if (bias.data && (bias.rank != 1 || bias.last() != w.n)) refuse("LinearRows: B must have as many elements as W has columns");
    std::vector<int64_t> dims(x.dims, x.dims + x.rank);
    dims.back() = w.n;
    if (residual.data && std::vector<int64_t>(residual.dims, residual.dims + residual.rank) != dims)
      refuse("LinearRows: Residual must have the dimensions of Y");
    Int8Product p;
    p.y = static_cast<float *>(call.output(0, dims));
    p.x = x.as<float>(), p.divisor = divisor.as<float>(), p.bias = bias.as<float>(), p.residual = residual.as<float>();
    p.act = act, p.w = w;
    if (const int64_t m = x.rows()) multiply(call, p, m);
  }

  // A block in memory: its rows' scales, then its rows' codes.
  void multiply(const Call &call, const Int8Product &p, int64_t m) const {
    const Int8Kernels &kernels = int8_kernels();
    const Blocks blocks(m, w.panel_count(), w.padded_k(), w.k * w.n, threads);
    const auto codes = [&](void *memory) {
      return static_cast<uint8_t *>(memory) + (size_t(blocks.height) * sizeof(RowScale) + 63) / 64 * 64;
    };
    blocks.run(
        call, size_t(w.padded_k()) + sizeof(RowScale) + 64, 0,
        [&](int64_t r0, int64_t r1, void *memory) {
          kernels.quantize(p, r0, r1, codes(memory), static_cast<RowScale *>(memory));
        },
        [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1, void *memory) {
          kernels.multiply(p, r0, r1, p0, p1, codes(memory), static_cast<const RowScale *>(memory));
        });
  }
};

} // namespace

const Operator &linear_rows() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("LinearRows", {{f32}, {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8}, {f32, true}, {f32, true}, {f32, true}}, {{f32}},
                           [](const Node &n) -> Kernel * { return new LinearRows(n); }, shapes_with_columns);
  return op;
}

} // namespace fewbit
