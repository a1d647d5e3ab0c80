// fewbit.EncoderLayers(X, Bias, 16 constants for each layer ...) -> Y: see
// encoder.hpp.
#include <cmath>
#include <memory>
#include <mutex>

#include "encoder.hpp"
#include "int4.hpp"
#include "operators.hpp"

namespace fewbit {

namespace {

constexpr size_t kFirst = 2, kOfLayer = 16; // inputs
const char *const kNames[kOfLayer] = {"QKV",    "QKV divisor",  "QKV bias",  "Out",  "Out divisor",  "Out bias",  "Gamma 1", "Beta 1",
                                      "Up",     "Up divisor",   "Up bias",   "Down", "Down divisor", "Down bias", "Gamma 2", "Beta 2"};

// Reads the constants of one layer after the other.
struct Reader {
  const Node &node;
  std::vector<std::vector<int8_t>> &expanded;
  size_t next = kFirst;

  std::string name() const { return "EncoderLayers: layer " + std::to_string((next - kFirst) / kOfLayer) + ": " + kNames[(next - kFirst) % kOfLayer]; }

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
    if (p.w.k != k || (n && p.w.n != n)) refuse(what + " has other dimensions than the layer");
    p.divisor = vector(p.w.k, true), p.bias = vector(p.w.n, true);
    return p;
  }
};

struct EncoderLayers final : Kernel {
  Encoder e;
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
    const std::string normalize = node.string("normalize", "");
    if (normalize != "" && normalize != "first") refuse("EncoderLayers: normalize must be \"first\" or absent");
    e.normalize_first = normalize == "first";
    const std::string padding = node.string("padding", "");
    if (padding != "" && padding != "skip") refuse("EncoderLayers: padding must be \"skip\" or absent");
    e.skip_padding = padding == "skip";
    if (e.size > kMaxHeadSize) refuse("EncoderLayers: a head must have at most " + std::to_string(kMaxHeadSize) + " columns");
    if (!std::isfinite(e.scale) || e.scale == 0) refuse("EncoderLayers: scale must be a number other than 0");
    if (!std::isfinite(e.epsilon) || e.epsilon < 0) refuse("EncoderLayers: epsilon must be a number from 0 on");
    const size_t constants = node.inputs() < kFirst ? 0 : node.inputs() - kFirst, layers = constants / kOfLayer;
    if (constants % kOfLayer != 0 || layers < 1 || layers > size_t(kEncoderMaxLayers)) refuse("EncoderLayers: needs X, Bias and " + std::to_string(kOfLayer) + " constants for each of 1 to " + std::to_string(kEncoderMaxLayers) + " layers");
    Reader in{node, expanded};
    for (size_t i = 0; i < layers; i++) {
      EncoderLayer l;
      l.qkv = in.projection(hidden, 3 * e.heads * e.padded_size());
      l.out = in.projection(hidden, hidden);
      l.gamma[0] = in.vector(hidden, false), l.beta[0] = in.vector(hidden, false);
      l.up = in.projection(hidden, e.inner);
      e.inner = l.up.w.n;
      if (e.inner > kInt8MaxK) refuse("EncoderLayers: Up has too many columns");
      l.down = in.projection(e.inner, hidden);
      l.gamma[1] = in.vector(hidden, false), l.beta[1] = in.vector(hidden, false);
      e.layers.push_back(l);
    }
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0), bias = call.input(1);
    if (x.rank != 3 || x.last() != e.hidden()) refuse("EncoderLayers: X must be [batch, length, " + std::to_string(e.hidden()) + "]");
    Attention a;
    a.batch = x.dims[0], a.length = x.dims[1], a.heads = e.heads, a.size = e.size, a.scale = e.scale, a.zero_hidden = zero_hidden;
    if (a.length > kMaxLength) refuse("EncoderLayers: X has more than " + std::to_string(kMaxLength) + " rows");
    if (bias.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) refuse("EncoderLayers: Bias must be FP32");
    if (bias.rank != 1 || bias.last() != 0) set_bias(a, bias, "EncoderLayers");
    auto *const y = static_cast<float *>(call.output(0, {a.batch, a.length, e.hidden()}));
    if (!a.batch || !a.length) return;
    std::unique_ptr<EncoderMemory> memory = take();
    const Parallel parallel{const_cast<Call *>(&call),
                            [](void *c, size_t n, void (*task)(void *, size_t), void *data) {
                              static_cast<const Call *>(c)->parallel(n, [=](size_t i) { task(data, i); });
                            },
                            threads};
    encode(e, a, x.as<float>(), y, *memory, parallel);
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

} // namespace

const Operator &encoder_layers() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Operator op("EncoderLayers", {{f32}, {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false, true}}, {{f32}},
                           [](const Node &n) -> Kernel * { return new EncoderLayers(n); }, shapes_with_columns);
  return op;
}

} // namespace fewbit
