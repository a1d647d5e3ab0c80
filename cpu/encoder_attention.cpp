// fewbit.EncoderAttention(QKV, Bias) -> Y: attention of three projections that
// one product made; see attention.hpp.
#include <cmath>

#include "attention.hpp"
#include "bf16.hpp"
#include "operators.hpp"
#include "tasks.hpp"

namespace fewbit {

void set_bias(Attention &a, const Tensor &t, const char *op) {
  const auto one_or = [&](size_t i, int64_t n) { return t.dims[i] == n || t.dims[i] == 1; };
  if (t.rank != 4 || !one_or(0, a.batch) || !one_or(1, a.heads) || !one_or(2, a.length) || t.dims[3] != a.length)
    refuse(std::string(op) + ": Bias must be [batch or 1, heads or 1, length or 1, length]");
  a.bias = t.as<float>();
  a.bias_row = t.dims[2] == 1 ? 0 : a.length;
  a.bias_head = t.dims[1] == 1 ? 0 : t.dims[2] * a.length;
  a.bias_batch = t.dims[0] == 1 ? 0 : t.dims[1] * t.dims[2] * a.length;
}

bool hidden_is_zero(const Node &node, const char *op) {
  const std::string hidden = node.string("hidden", "");
  if (hidden != "" && hidden != "zero") refuse(std::string(op) + ": hidden must be \"zero\" or absent");
  return hidden == "zero";
}

namespace {

struct EncoderAttention final : Kernel {
  int64_t width = 0, heads = 0;
  float scale = 0;
  bool zero_hidden;

  explicit EncoderAttention(const Node &node) : width(node.integer("N", -1)), heads(node.integer("num_heads", -1)), scale(node.real("scale", 0)), zero_hidden(hidden_is_zero(node, "EncoderAttention")) {
    if (width < 1 || width > kMaxDim / 3 || heads < 1 || width % heads != 0 || width / heads > kMaxHeadSize)
      refuse("EncoderAttention: N must be a multiple of num_heads, of at most " + std::to_string(kMaxHeadSize) + " a head and " + std::to_string(kMaxDim / 3) + " in all");
    if (!std::isfinite(scale) || scale == 0) refuse("EncoderAttention: scale must be a number other than 0");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0), bias = call.input(1);
    if (x.rank != 3 || x.last() != 3 * width) refuse("EncoderAttention: QKV must be [batch, length, 3 * " + std::to_string(width) + "]");
    Attention a;
    a.batch = x.dims[0], a.length = x.dims[1], a.heads = heads, a.size = width / heads, a.scale = scale, a.zero_hidden = zero_hidden;
    if (a.length > kMaxLength) refuse("EncoderAttention: QKV has more than " + std::to_string(kMaxLength) + " rows");
    if (bias.data) set_bias(a, bias, "EncoderAttention");
    a.qkv = x.as<float>();
    a.y = static_cast<float *>(call.output(0, {a.batch, a.length, width}));
    if (a.batch && a.length) run(call, a);
  }

  // A task is a part of the rows of one head; a thread converts keys and values
  // once for the parts that it gets one after the other.
  static void run(const Call &call, const Attention &a) {
    constexpr int64_t most_rows = 16 * kAttentionRows;
    const int64_t parts = (a.length + most_rows - 1) / most_rows;
    const int64_t rows = ((a.length + parts - 1) / parts + kAttentionRows - 1) / kAttentionRows * kAttentionRows;
    const AttentionKernels &kernels = attention_kernels();
    run_blocks(
        call, a.batch * a.heads, parts, kernels.bytes(a),
        [&](int64_t head, void *memory) { kernels.pack(a, head / a.heads, head % a.heads, memory); },
        [&](int64_t head, int64_t part, void *memory) {
          attention_rows(kernels, a, head / a.heads, head % a.heads, std::min(part * rows, a.length), std::min((part + 1) * rows, a.length), memory);
        });
  }
};

} // namespace

const Operator &encoder_attention() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("EncoderAttention", {{f32}, {f32, true}}, {{f32}}, [](const Node &n) -> Kernel * { return new EncoderAttention(n); },
                           shapes_with_columns);
  return op;
}

} // namespace fewbit
