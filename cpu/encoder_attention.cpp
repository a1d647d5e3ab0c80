// fewbit.EncoderAttention(QKV, Bias, Cos, Sin) -> Y: attention of three projections that
// one product made, and CrossAttention, to another sequence; see attention.hpp.
#include <cmath>

#include "attention.hpp"
#include "bf16.hpp"
#include "operators.hpp"
#include "rotary.hpp"
#include "tasks.hpp"

namespace fewbit {

void set_bias(Attention &a, const Tensor &t, const char *op) {
  const auto one_or = [&](size_t i, int64_t n) { return t.dims[i] == n || t.dims[i] == 1; };
  if (t.rank != 4 || !one_or(0, a.batch) || !one_or(1, a.heads) || !one_or(2, a.rows()) || t.dims[3] != a.length)
    refuse(std::string(op) + ": Bias must be [batch or 1, heads or 1, queries or 1, keys]");
  a.bias = t.as<float>();
  a.bias_row = t.dims[2] == 1 ? 0 : a.length;
  a.bias_head = t.dims[1] == 1 ? 0 : t.dims[2] * a.length;
  a.bias_batch = t.dims[0] == 1 ? 0 : t.dims[1] * t.dims[2] * a.length;
}

void set_rotation(Attention &a, const Tensor &cos, const Tensor &sin, const char *op) {
  const std::string name = op;
  for (const Tensor &t : {cos, sin}) {
    if (t.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) refuse(name + ": Cos and Sin must be FP32");
    if ((t.rank != 3 && (t.rank != 4 || t.dims[1] != 1)) || (t.dims[0] != a.batch && t.dims[0] != 1) || t.dims[t.rank - 2] != a.length || t.last() < 2 || t.last() % 2 || t.last() > a.size ||
        t.rows() != cos.rows() || t.last() != cos.last())
      refuse(name + ": Cos and Sin must be alike, [batch or 1, length, an even number up to " + std::to_string(a.size) + "]");
  }
  a.rotation = {cos.as<float>(), sin.as<float>(), cos.dims[0] == 1 ? 0 : a.length * cos.last(), cos.last()};
}

bool hidden_is_zero(const Node &node, const char *op) {
  const std::string hidden = node.string("hidden", "");
  if (hidden != "" && hidden != "zero") refuse(std::string(op) + ": hidden must be \"zero\" or absent");
  return hidden == "zero";
}

namespace {

// A task is a part of the rows of one head; a thread converts keys and values
// once for the parts that it gets one after the other.
void run(const Call &call, const Attention &a) {
  constexpr int64_t most_rows = 16 * kAttentionRows;
  const int64_t parts = (a.rows() + most_rows - 1) / most_rows;
  const int64_t rows = ((a.rows() + parts - 1) / parts + kAttentionRows - 1) / kAttentionRows * kAttentionRows;
  const AttentionKernels &kernels = attention_kernels();
  run_blocks(
      call, a.batch * a.heads, parts, kernels.bytes(a),
      [&](int64_t head, void *memory) { kernels.pack(a, head / a.heads, head % a.heads, memory); },
      [&](int64_t head, int64_t part, void *memory) {
        attention_rows(kernels, a, head / a.heads, head % a.heads, std::min(part * rows, a.rows()), std::min((part + 1) * rows, a.rows()), memory);
      });
}

// The same for queries and keys that are turned first, in a copy of the head. A task
// is a head.
void run_turned(const Call &call, const Attention &a) {
  const AttentionKernels &kernels = attention_kernels();
  const Rotate rotate = rotate_kernel();
  const auto round = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  Attention one = a;
  one.batch = one.heads = 1, one.rotation = {};
  const size_t in = round(size_t(a.length * 3 * a.size) * sizeof(float)), out = round(size_t(a.length * a.size) * sizeof(float));
  run_blocks(
      call, a.batch * a.heads, 1, in + out + kernels.bytes(one), [](int64_t, void *) {},
      [&](int64_t task, int64_t, void *memory) {
        const int64_t b = task / a.heads, h = task % a.heads;
        auto *const qkv = static_cast<float *>(memory), *const y = reinterpret_cast<float *>(static_cast<char *>(memory) + in);
        void *const work = static_cast<char *>(memory) + in + out;
        for (int64_t r = 0; r < a.length; r++)
          for (int part = 0; part < 3; part++) std::copy_n(a.row(b, r, part, h), a.size, qkv + (r * 3 + part) * a.size);
        const Rotation &t = a.rotation;
        rotate(t.cos + b * t.batch, t.sin + b * t.batch, t.columns, a.length, qkv, 3 * a.size, a.size);
        Attention head = one;
        head.qkv = qkv, head.y = y, head.bias = a.bias_of(b, h, 0);
        kernels.pack(head, 0, 0, work);
        attention_rows(kernels, head, 0, 0, 0, a.length, work);
        for (int64_t r = 0; r < a.length; r++) std::copy_n(y + r * a.size, a.size, a.out(b, r, h));
      });
}

// The attributes of both operators.
struct Attending : Kernel {
  const std::string op;
  int64_t width, heads;
  float scale;
  bool zero_hidden;

  Attending(const Node &node, const char *op)
      : op(op), width(node.integer("N", -1)), heads(node.integer("num_heads", -1)), scale(node.real("scale", 0)), zero_hidden(hidden_is_zero(node, op)) {
    if (width < 1 || width > kMaxDim / 3 || heads < 1 || width % heads != 0 || width / heads > kMaxHeadSize)
      refuse(this->op + ": N must be a multiple of num_heads, of at most " + std::to_string(kMaxHeadSize) + " a head and " + std::to_string(kMaxDim / 3) + " in all");
    if (!std::isfinite(scale) || scale == 0) refuse(this->op + ": scale must be a number other than 0");
  }

  // Of keys and values t, and queries if they are of the same rows.
  Attention of(const Tensor &t) const {
    Attention a;
    a.batch = t.dims[0], a.length = t.dims[1], a.heads = heads, a.size = width / heads, a.scale = scale, a.zero_hidden = zero_hidden;
    a.qkv = t.as<float>();
    return a;
  }
};

struct EncoderAttention final : Attending {
  explicit EncoderAttention(const Node &node) : Attending(node, "EncoderAttention") {}

  void compute(const Call &call) override {
    const Tensor x = call.input(0), bias = call.input(1);
    if (x.rank != 3 || x.last() != 3 * width) refuse("EncoderAttention: QKV must be [batch, length, 3 * " + std::to_string(width) + "]");
    Attention a = of(x);
    if (a.length > kMaxLength) refuse("EncoderAttention: QKV has more than " + std::to_string(kMaxLength) + " rows");
    if (bias.data) set_bias(a, bias, "EncoderAttention");
    const Tensor cos = call.input(2), sin = call.input(3);
    if (!cos.data != !sin.data) refuse("EncoderAttention: Cos and Sin stand together");
    a.y = static_cast<float *>(call.output(0, {a.batch, a.length, width}));
    if (!a.batch || !a.length) return;
    if (!cos.data) return run(call, a);
    set_rotation(a, cos, sin, "EncoderAttention");
    run_turned(call, a);
  }
};

// fewbit.CrossAttention(Q, KV, Bias) -> Y: the keys and values are of another
// sequence than the queries.
struct CrossAttention final : Attending {
  explicit CrossAttention(const Node &node) : Attending(node, "CrossAttention") {}

  void compute(const Call &call) override {
    const Tensor q = call.input(0), kv = call.input(1), bias = call.input(2);
    if (q.rank != 3 || q.last() != width) refuse("CrossAttention: Q must be [batch, queries, " + std::to_string(width) + "]");
    if (kv.rank != 3 || kv.last() != 2 * width || kv.dims[0] != q.dims[0]) refuse("CrossAttention: KV must be [batch, keys, 2 * " + std::to_string(width) + "], of as many samples as Q");
    Attention a = of(kv);
    a.q = q.as<float>(), a.queries = q.dims[1];
    if (a.length > kMaxLength || a.queries > kMaxLength) refuse("CrossAttention: Q or KV has more than " + std::to_string(kMaxLength) + " rows");
    if (a.batch && a.queries && !a.length) refuse("CrossAttention: KV has no rows");
    if (bias.data) set_bias(a, bias, "CrossAttention");
    a.y = static_cast<float *>(call.output(0, {a.batch, a.queries, width}));
    if (a.batch && a.queries) run(call, a);
  }
};

} // namespace

const Operator &encoder_attention() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("EncoderAttention", {{f32}, {f32, true}, {f32, true}, {f32, true}}, {{f32}}, [](const Node &n) -> Kernel * { return new EncoderAttention(n); },
                           shapes_with_columns);
  return op;
}

const Operator &cross_attention() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("CrossAttention", {{f32}, {f32}, {f32, true}}, {{f32}}, [](const Node &n) -> Kernel * { return new CrossAttention(n); },
                           shapes_with_columns);
  return op;
}

} // namespace fewbit
