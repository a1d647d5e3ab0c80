// fewbit.EncoderLayers(X, Bias [, Cos, Sin] of each kind ..., 16 constants for each
// layer ...) -> Y: see encoder.hpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <mutex>

#include "encoder.hpp"
#include "int4.hpp"
#include "operators.hpp"
#include "tasks.hpp"

namespace fewbit {

namespace {

constexpr size_t kOfLayer = 16; // inputs
constexpr size_t kMaxKinds = 10; // a digit for each layer
const char *const kNames[kOfLayer] = {"QKV",    "QKV divisor",  "QKV bias",  "Out",  "Out divisor",  "Out bias",  "Gamma 1", "Beta 1",
                                      "Up",     "Up divisor",   "Up bias",   "Down", "Down divisor", "Down bias", "Gamma 2", "Beta 2"};

// Reads the constants of one layer after the other.
struct Reader {
  const Node &node;
  std::vector<std::vector<int8_t>> &expanded;
  const size_t first;
  size_t next = first;

  static std::string name(size_t layer, size_t i) { return "EncoderLayers: layer " + std::to_string(layer) + ": " + kNames[i]; }
  std::string name() const { return name((next - first) / kOfLayer, (next - first) % kOfLayer); }

  // A vector of n floats; nullptr when it has none and may be left out.
  const float *vector(int64_t n, bool optional) {
    const std::string what = name();
    const Tensor t = node.constant(next++, what.c_str());
    if (t.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) refuse(what + " must be FP32");
    if (optional && t.count() == 0) return nullptr;
    if (t.rank != 1 || t.last() != n) refuse(what + " must have " + std::to_string(n) + " elements");
    return t.as<float>();
  }

  Projection projection(int64_t k, int64_t n) {
    Projection p;
    const std::string what = name();
    const Tensor t = node.constant(next++, what.c_str());
    if (t.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) refuse(what + " must be UINT8");
    if (const char *why = weight_view(t.data, size_t(t.count()), &p.w, &expanded.emplace_back())) refuse(what + " " + why);
    if ((k && p.w.k != k) || (n && p.w.n != n)) refuse(what + " has other dimensions than the layer");
    p.divisor = vector(p.w.k, true), p.bias = vector(p.w.n, true);
    return p;
  }
};

struct EncoderLayers final : Kernel {
  Encoder e;
  size_t kinds = 1;
  bool rotary;
  std::vector<std::vector<int8_t>> expanded;
  int threads = 1;
  bool zero_hidden;
  std::mutex mutex;
  std::vector<std::unique_ptr<EncoderMemory>> idle; // of calls that have ended

  explicit EncoderLayers(const Node &node) : threads(node.threads()), zero_hidden(hidden_is_zero(node, "EncoderLayers")) {
    const int64_t hidden = node.integer("N", -1);
    e.heads = node.integer("num_heads", -1), e.scale = node.real("scale", 0), e.epsilon = node.real("epsilon", -1);
    if (hidden < 1 || hidden > kMaxDim / 3 || e.heads < 1 || hidden % e.heads != 0) refuse("EncoderLayers: N must be a multiple of num_heads, of at most " + std::to_string(kMaxDim / 3));
    e.size = hidden / e.heads;
    if ((e.act = activation_of(node, "EncoderLayers")) == Activation::none) e.act = Activation::gelu;
    e.normalize_first = flag(node, "normalize", "first"), e.skip_padding = flag(node, "padding", "skip");
    e.read_first = flag(node, "read", "first"), e.rms = flag(node, "norm", "rms"), e.gated = flag(node, "gate", "multiply"), rotary = flag(node, "rotary", "half");
    const std::string kind_of = node.string("kinds", "");
    for (const char c : kind_of) {
      if (c < '0' || c > '9') refuse("EncoderLayers: kinds must be a digit for each layer, or absent");
      kinds = std::max(kinds, size_t(c - '0') + 1);
    }
    const size_t first = 1 + kinds * of_kind();
    if (e.size > kMaxHeadSize) refuse("EncoderLayers: a head must have at most " + std::to_string(kMaxHeadSize) + " columns");
    if (!std::isfinite(e.scale) || e.scale == 0) refuse("EncoderLayers: scale must be a number other than 0");
    if (!std::isfinite(e.epsilon) || e.epsilon < 0) refuse("EncoderLayers: epsilon must be a number from 0 on");
    const size_t constants = node.inputs() < first ? 0 : node.inputs() - first, layers = constants / kOfLayer;
    if (constants % kOfLayer != 0 || layers < 1 || layers > size_t(kEncoderMaxLayers)) refuse("EncoderLayers: needs X, Bias (of each kind, with Cos and Sin if they are turned) and " + std::to_string(kOfLayer) + " constants for each of 1 to " + std::to_string(kEncoderMaxLayers) + " layers");
    if (!kind_of.empty() && kind_of.size() != layers) refuse("EncoderLayers: kinds must be a digit for each layer, or absent");
    Reader in{node, expanded, first};
    for (size_t i = 0; i < layers; i++) {
      EncoderLayer l;
      l.qkv = in.projection(hidden, 3 * e.heads * e.padded_size());
      l.out = in.projection(hidden, hidden);
      // What an operator normalizes first with may be left out.
      l.gamma[0] = in.vector(hidden, e.normalize_first), l.beta[0] = in.vector(hidden, e.rms || !l.gamma[0]);
      l.up = in.projection(hidden, 0);
      l.down = in.projection(0, hidden);
      l.gamma[1] = in.vector(hidden, false), l.beta[1] = in.vector(hidden, e.rms);
      if (i > 0 && l.down.w.k != e.inner) refuse(in.name(i, 11) + " has other dimensions than those before");
      e.inner = l.down.w.k;
      const int64_t padded = (e.inner + kPanel - 1) / kPanel * kPanel;
      if (l.up.w.n != (e.gated ? 2 * padded : e.inner)) refuse(in.name(i, 8) + " has other dimensions than the layer");
      if (e.gated) l.gate = l.up.columns(padded, e.inner), l.up = l.up.columns(0, e.inner);
      l.kind = kind_of.empty() ? 0 : size_t(kind_of[i] - '0');
      e.layers.push_back(l);
    }
  }

  size_t of_kind() const { return rotary ? 3 : 1; } // inputs

  // Whether an attribute that may be absent has its only value.
  static bool flag(const Node &node, const char *name, const char *value) {
    const std::string v = node.string(name, "");
    if (v != "" && v != value) refuse(std::string("EncoderLayers: ") + name + " must be \"" + value + "\" or absent");
    return v == value;
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0);
    if (x.rank != 3 || x.last() != e.hidden()) refuse("EncoderLayers: X must be [batch, length, " + std::to_string(e.hidden()) + "]");
    Attention a;
    a.batch = x.dims[0], a.length = x.dims[1], a.heads = e.heads, a.size = e.size, a.scale = e.scale, a.zero_hidden = zero_hidden;
    if (a.length > kMaxLength) refuse("EncoderLayers: X has more than " + std::to_string(kMaxLength) + " rows");
    std::array<Attention, kMaxKinds> of;
    for (size_t i = 0; i < kinds; i++) {
      of[i] = a;
      const Tensor bias = call.input(1 + i * of_kind());
      if (bias.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) refuse("EncoderLayers: Bias must be FP32");
      if (bias.rank != 1 || bias.last() != 0) set_bias(of[i], bias, "EncoderLayers");
      if (rotary) set_rotation(of[i], call.input(2 + i * of_kind()), call.input(3 + i * of_kind()), "EncoderLayers");
    }
    auto *const y = static_cast<float *>(call.output(0, {a.batch, e.read_first ? std::min(int64_t(1), a.length) : a.length, e.hidden()}));
    if (!a.batch || !a.length) return;
    std::unique_ptr<EncoderMemory> memory = take();
    const Parallel parallel{const_cast<Call *>(&call),
                            [](void *c, size_t n, void (*task)(void *, size_t), void *data) {
                              static_cast<const Call *>(c)->parallel(n, [=](size_t i) { task(data, i); });
                            },
                            threads};
    encode(e, of.data(), kinds, x.as<float>(), y, *memory, parallel);
    if (memory->bytes() > kKeptBytes) return;
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(memory));
  }

  std::unique_ptr<EncoderMemory> take() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (idle.empty()) return std::make_unique<EncoderMemory>();
    std::unique_ptr<EncoderMemory> m = std::move(idle.back());
    idle.pop_back();
    return m;
  }
};

void shapes(OrtShapeInferContext *c) {
  Shape s = Shape::of_input(c, 0);
  if (s.dims.size() == 3 && has_attribute(c, "read")) { // 1, or 0 of no rows
    s.dims[1] = -1, s.names[1] = "", s.dims[2] = attribute_of(c, "N"), s.names[2] = "";
    return s.set_output(c, 0);
  }
  shapes_with_columns(c);
}

} // namespace

const Operator &encoder_layers() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("EncoderLayers", {{f32}, {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false, true}}, {{f32}},
                           [](const Node &n) -> Kernel * { return new EncoderLayers(n); }, shapes);
  return op;
}

} // namespace fewbit
