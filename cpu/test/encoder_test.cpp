#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include "carve.hpp"
#include "encoder.hpp"
#include "int4.hpp"
#include "level.hpp"
#include "rotary.hpp"
#include "stages.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

struct Dims {
  int64_t heads, size, inner;
  int layers;
};

// An encoder of made-up weights. Layer i has no divisors where i is odd, and no
// biases in the third one.
struct Made {
  Encoder e;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> packed;
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<int8_t>> expanded;

  const float *vector(int64_t n, float center, float scale) {
    floats.push_back(gauss(size_t(n), uint32_t(floats.size() + 1), scale));
    for (float &v : floats.back()) v = center ? center + std::fabs(v) : v;
    return floats.back().data();
  }
  // Of each `step` columns those from `used` on are zeros.
  Projection projection(int64_t k, int64_t n, int layer, int64_t used = 1, int64_t step = 1) {
    std::mt19937 r(uint32_t(packed.size() + 7));
    std::vector<int8_t> w(size_t(k * n));
    for (size_t i = 0; i < w.size(); i++) w[i] = int64_t(i) % n % step < used ? int8_t(int(r() % 255) - 127) : int8_t(0);
    const std::vector<float> scales(size_t(n), 0.015f / std::sqrt(float(k)));
    // Every second weight is in 4 bits, where its rows make whole blocks.
    const bool four = packed.size() % 2 == 1 && int4_packed_size(k, n) > 0;
    const size_t bytes = four ? int4_packed_size(k, n) : int8_packed_size(k, n);
    packed.emplace_back(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free);
    if (four)
      int4_pack(reinterpret_cast<const uint8_t *>(w.data()), std::vector<int8_t>(size_t(k / kInt4Block * n), 13).data(), scales.data(), k, n, 0, n, packed.back().get());
    else
      int8_pack(w.data(), scales.data(), k, n, 0, n, packed.back().get());
    Projection p;
    CHECK(weight_view(packed.back().get(), bytes, &p.w, &expanded.emplace_back()) == nullptr);
    if (layer % 2 == 0) p.divisor = vector(k, 0.4f, 0.3f);
    if (layer != 2) {
      p.bias = vector(n, 0, 0.1f);
      for (int64_t i = 0; i < n; i++)
        if (i % step >= used) floats.back()[size_t(i)] = 0;
    }
    return p;
  }
  explicit Made(const Dims &d, bool gated = false) {
    e.gated = gated;
    e.heads = d.heads, e.size = d.size, e.inner = d.inner, e.scale = 1 / std::sqrt(float(d.size)), e.epsilon = 1e-12f;
    for (int i = 0; i < d.layers; i++) {
      EncoderLayer l;
      l.qkv = projection(e.hidden(), 3 * e.heads * e.padded_size(), i, e.size, e.padded_size()), l.out = projection(e.hidden(), e.hidden(), i);
      if (gated) { // both in one weight, the columns of each with zeros behind them
        const int64_t padded = (e.inner + kPanel - 1) / kPanel * kPanel;
        const Projection both = projection(e.hidden(), 2 * padded, i, e.inner, padded);
        l.up = both.columns(0, e.inner), l.gate = both.columns(padded, e.inner);
      } else {
        l.up = projection(e.hidden(), e.inner, i);
      }
      l.down = projection(e.inner, e.hidden(), i);
      for (int j = 0; j < 2; j++) l.gamma[j] = vector(e.hidden(), 0.9f, 0.2f), l.beta[j] = vector(e.hidden(), 0, 0.1f);
      e.layers.push_back(l);
    }
  }
};

// Ways to run tasks: one after the other, from behind, each on a thread.
void in_order(void *, size_t n, void (*task)(void *, size_t), void *data) {
  for (size_t i = 0; i < n; i++) task(data, i);
}
void from_behind(void *, size_t n, void (*task)(void *, size_t), void *data) {
  while (n--) task(data, n);
}
void on_threads(void *, size_t n, void (*task)(void *, size_t), void *data) {
  std::vector<std::thread> all;
  for (size_t i = 0; i < n; i++) all.emplace_back(task, data, i);
  for (auto &t : all) t.join();
}

using Kinds = std::vector<Attention>;

std::vector<float> run(const Encoder &e, Kinds kinds, const std::vector<float> &x, EncoderMemory &memory, const Parallel &p) {
  std::vector<float> y(e.read_first ? size_t(kinds[0].batch * e.hidden()) : x.size(), -1);
  for (Attention &a : kinds) a.heads = e.heads, a.size = e.size, a.scale = e.scale;
  encode(e, kinds.data(), kinds.size(), x.data(), y.data(), memory, p);
  return y;
}
std::vector<float> run(const Encoder &e, const Attention &a, const std::vector<float> &x, EncoderMemory &memory, const Parallel &p) { return run(e, Kinds{a}, x, memory, p); }

// The same, one operation after the other on whole matrices.
std::vector<float> step_by_step(const Encoder &e, const Kinds &kinds, const std::vector<float> &x, const Int8Kernels &int8, const AttentionKernels &attend,
                                Normalize normalize) {
  const int64_t rows = kinds[0].batch * kinds[0].length, hidden = e.hidden();
  const auto project = [&](const Projection &p, const std::vector<float> &from, Activation act, const float *residual) {
    std::vector<float> y(size_t(rows * p.w.n));
    std::vector<uint8_t> codes(size_t(rows * p.w.padded_k()));
    std::vector<RowScale> scales(static_cast<size_t>(rows));
    Int8Product q;
    q.x = from.data(), q.y = y.data(), q.divisor = p.divisor, q.bias = p.bias, q.act = act, q.residual = residual, q.w = p.w;
    int8.quantize(q, 0, rows, codes.data(), scales.data());
    int8.multiply(q, 0, rows, 0, p.w.panel_count(), codes.data(), scales.data());
    return y;
  };
  std::vector<float> v = x;
  for (const EncoderLayer &l : e.layers) {
    const auto normal = [&](const std::vector<float> &from, int i) {
      std::vector<float> to(from.size());
      normalize(from.data(), l.gamma[i], l.beta[i], e.epsilon, rows, hidden, to.data());
      return to;
    };
    Attention a = kinds[l.kind];
    const auto qkv = project(l.qkv, e.normalize_first && l.gamma[0] ? normal(v, 0) : v, Activation::none, nullptr);
    std::vector<float> plain(size_t(rows * 3 * hidden)), context(x.size());
    for (int64_t r = 0; r < rows; r++)
      for (int64_t h = 0; h < e.heads; h++)
        for (int64_t part = 0; part < 3; part++)
          std::copy_n(&qkv[size_t(((r * e.heads + h) * 3 + part) * e.padded_size())], e.size, &plain[size_t(((r * 3 + part) * e.heads + h) * e.size)]);
    a.qkv = plain.data(), a.y = context.data(), a.heads = e.heads, a.size = e.size, a.scale = e.scale;
    if (const Rotation &t = a.rotation; t.cos)
      for (int64_t b = 0; b < a.batch; b++)
        for (int64_t h = 0; h < e.heads; h++)
          rotate_plain(t.cos + b * t.batch, t.sin + b * t.batch, t.columns, a.length, &plain[size_t(b * a.length * 3 * hidden + h * e.size)], 3 * hidden, hidden);
    std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, (attend.bytes(a) + 63) / 64 * 64), std::free);
    for (int64_t b = 0; b < a.batch; b++)
      for (int64_t h = 0; h < a.heads; h++) {
        attend.pack(a, b, h, memory.get());
        attention_rows(attend, a, b, h, 0, a.length, memory.get());
      }
    auto middle = project(l.out, context, Activation::none, v.data());
    if (!e.normalize_first) middle = normal(middle, 0);
    const auto from = e.normalize_first ? normal(middle, 1) : middle;
    auto up = project(l.up, from, e.act, nullptr);
    if (e.gated) {
      const auto gate = project(l.gate, from, Activation::none, nullptr);
      for (size_t i = 0; i < up.size(); i++) up[i] *= gate[i];
    }
    v = project(l.down, up, Activation::none, middle.data());
    if (!e.normalize_first) v = normal(v, 1);
  }
  return v;
}
std::vector<float> step_by_step(const Encoder &e, const Attention &a, const std::vector<float> &x, const Int8Kernels &int8, const AttentionKernels &attend, Normalize normalize) {
  return step_by_step(e, Kinds{a}, x, int8, attend, normalize);
}

constexpr float lowest = std::numeric_limits<float>::lowest(), inf = std::numeric_limits<float>::infinity();

// Two kinds of attention, as ModernBERT has them: to all that is no padding, and to what
// is near as well, each with positions of its own. The mask is a Where of minus infinity,
// rows that see nothing are 0.
struct TwoKinds {
  std::vector<float> near, far, angles[4];
  Kinds kinds;

  TwoKinds(int64_t batch, int64_t length, int64_t columns, int64_t window, const std::function<bool(int64_t b, int64_t s)> &padded) : kinds(2) {
    for (int64_t b = 0; b < batch; b++)
      for (int64_t r = 0; r < length; r++)
        for (int64_t s = 0; s < length; s++) {
          far.push_back(padded(b, s) ? -inf : 0);
          near.push_back(padded(b, s) || std::abs(r - s) > window ? -inf : 0);
        }
    for (size_t i = 0; i < 2; i++) {
      Attention &a = kinds[i];
      a.batch = batch, a.length = length, a.zero_hidden = true;
      a.bias = (i ? near : far).data(), a.bias_row = length, a.bias_batch = length * length;
      const int64_t each = i ? batch : 1; // the second has positions of each sample
      angles[2 * i] = gauss(size_t(each * length * columns), uint32_t(20 + i)), angles[2 * i + 1] = gauss(size_t(each * length * columns), uint32_t(30 + i));
      a.rotation = {angles[2 * i].data(), angles[2 * i + 1].data(), i ? length * columns : 0, columns};
    }
  }
};

} // namespace

// Neither threads, nor their order, nor where rows and columns are cut, nor what
// lay in the memory change a bit of what the operations give one by one.
TEST(encoder_equals_its_parts) {
  struct Shape {
    int64_t batch, length;
  };
  const Dims dims[] = {{2, 16, 40, 3}, {3, 32, 100, 1}, {4, 48, 50, 2}, {1, 64, 129, 2}, {5, 16, 1, 1}, {3, 24, 90, 2}, {2, 5, 20, 1}, {1, 72, 60, 1}};
  const Shape shapes[] = {{1, 1}, {1, 2}, {3, 1}, {1, 7}, {1, 16}, {2, 9}, {1, 31}, {1, 33}, {4, 17}, {1, 130}, {2, 100}};
  EncoderMemory memory;
  for (const bool first : {false, true}) for (const Dims &d : dims) {
    Made made(d);
    made.e.normalize_first = first, made.e.act = first ? Activation::quick_gelu : d.size == 24 ? Activation::gelu_tanh : Activation::gelu;
    for (const Shape &s : shapes) {
      const auto x = gauss(size_t(s.batch * s.length * made.e.hidden()), 3, 2);
      std::vector<float> bias(size_t(s.batch * s.length), 0.f);
      for (int64_t b = 0; b < s.batch; b++)
        for (int64_t i = s.length - s.length / 3; i < s.length; i++) bias[size_t(b * s.length + i)] = b % 2 ? -10000 : std::numeric_limits<float>::lowest();
      Attention a;
      a.batch = s.batch, a.length = s.length;
      for (const bool masked : {false, true}) {
        a.bias = masked ? bias.data() : nullptr, a.bias_batch = s.length;
        const auto want = step_by_step(made.e, a, x, int8_kernels(), attention_kernels(), normalize_kernel());
        bool ok = true;
        for (const int threads : {1, 2, 3, 7})
          for (const auto way : {in_order, from_behind, on_threads}) ok &= same_bits(want, run(made.e, a, x, memory, {nullptr, way, threads}));
        if (!CHECK(ok)) {
          std::fprintf(stderr, "  batch %d, length %d, heads %d, size %d, inner %d\n", int(s.batch), int(s.length), int(d.heads), int(d.size), int(d.inner));
          return;
        }
      }
    }
  }
}

// Where padding is skipped, rows that count are what they are without, bit for
// bit, and the others are 0, with everything in them.
TEST(encoder_skips_padding) {
  struct Case {
    const char *what;
    int64_t batch, heads, rows; // of the mask, 1 or the encoder's
    std::vector<int64_t> lengths; // of the samples
    std::function<float(int64_t b, int64_t h, int64_t r, int64_t s)> bias;
  };
  constexpr int64_t batch = 3, most = 80;
  Made made({2, 32, 70, 2});
  made.e.skip_padding = true;
  EncoderMemory memory;
  for (const bool first : {false, true}) for (const int64_t length : {int64_t(1), int64_t(9), most}) {
    made.e.normalize_first = first;
    const std::vector<int64_t> all(batch, length), some = {length, (length + 1) / 2, 1};
    const auto padded = [&](int64_t b, int64_t s) { return s >= some[size_t(b)]; };
    const Case cases[] = {
        {"lowest", batch, 1, 1, some, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) ? lowest : 0.f; }},
        {"minus infinity", batch, 1, 1, some, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) ? -inf : 0.f; }},
        {"-10000", batch, 1, 1, some, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) ? -10000.f : 0.f; }},
        {"for all samples", 1, 1, 1, std::vector<int64_t>(batch, some[1]), [&](int64_t, int64_t, int64_t, int64_t s) { return padded(1, s) ? lowest : 0.f; }},
        {"soft", batch, 1, 1, all, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) ? -9999.f : 0.f; }},
        {"soft before the padding", batch, 1, 1, some, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) ? -20000.f : -float(s % 7); }},
        {"all masked", batch, 1, 1, {length, some[1], length}, [&](int64_t b, int64_t, int64_t, int64_t s) { return b != 1 || padded(b, s) ? lowest : 0.f; }},
        {"all masked by -10000", batch, 1, 1, {length, some[1], length}, [&](int64_t b, int64_t, int64_t, int64_t s) { return b != 1 || padded(b, s) ? -10000.f : 0.f; }},
        {"all masked by infinity", batch, 1, 1, {length, some[1], length}, [&](int64_t b, int64_t, int64_t, int64_t s) { return b != 1 || padded(b, s) ? -inf : 0.f; }},
        {"holes", batch, 1, 1, some, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, s) || (s % 3 != 1 && s + 1 != some[size_t(b)]) ? lowest : 0.f; }},
        {"at the front", batch, 1, 1, all, [&](int64_t b, int64_t, int64_t, int64_t s) { return padded(b, length - 1 - s) ? lowest : 0.f; }},
        {"causal", batch, 1, length, some, [&](int64_t b, int64_t, int64_t r, int64_t s) { return padded(b, s) || s > r ? lowest : 0.f; }},
        {"causal alone", 1, 1, length, all, [&](int64_t, int64_t, int64_t r, int64_t s) { return s > r ? -inf : 0.f; }},
        {"seen by one row of one head", batch, 2, length, {length, length, length > 1 ? std::min(length, int64_t(5)) : 1},
         [&](int64_t b, int64_t h, int64_t r, int64_t s) { return padded(b, s) && !(h == 1 && r == 0 && s < (b == 2 ? 5 : length)) ? lowest : 0.f; }},
        {"no number", batch, 1, 1, {length, some[1], length}, [&](int64_t b, int64_t, int64_t, int64_t s) { return b != 1 && s == 0 ? std::nanf("") : padded(b, s) ? lowest : 0.f; }},
        {"infinity", batch, 1, 1, {some[0], some[1], length}, [&](int64_t b, int64_t, int64_t, int64_t s) { return b == 2 && s == 0 ? inf : padded(b, s) ? lowest : 0.f; }},
    };
    for (const Case &c : cases) {
      std::vector<float> bias;
      for (int64_t b = 0; b < c.batch; b++)
        for (int64_t h = 0; h < c.heads; h++)
          for (int64_t r = 0; r < c.rows; r++)
            for (int64_t s = 0; s < length; s++) bias.push_back(c.bias(b, h, r, s));
      Attention a;
      a.batch = batch, a.length = length, a.bias = bias.data();
      a.bias_row = c.rows > 1 ? length : 0, a.bias_head = c.heads > 1 ? c.rows * length : 0, a.bias_batch = c.batch > 1 ? c.heads * c.rows * length : 0;
      a.heads = made.e.heads;
      const int64_t hidden = made.e.hidden();
      auto x = gauss(size_t(batch * length * hidden), 3, 2);
      auto want = step_by_step(made.e, a, x, int8_kernels(), attention_kernels(), normalize_kernel());
      bool ok = true;
      for (int64_t b = 0; b < batch; b++) {
        ok &= unpadded_length(a, b) == c.lengths[size_t(b)];
        const auto from = (b * length + c.lengths[size_t(b)]) * hidden, to = (b + 1) * length * hidden;
        std::fill(want.begin() + from, want.begin() + to, 0.f);
        std::fill(x.begin() + from, x.begin() + to, std::nanf(""));
      }
      for (const int threads : {1, 2, 5})
        for (const auto way : {in_order, from_behind, on_threads}) ok &= same_bits(want, run(made.e, a, x, memory, {nullptr, way, threads}));
      if (!CHECK(ok)) std::fprintf(stderr, "  %s, length %d\n", c.what, int(length));
    }
  }
}

// The same of encoders with gates, RMS normalization, layers that normalize nothing first,
// and two kinds of attention; and without padding the rows that count are the same.
TEST(encoder_forms_equal_their_parts) {
  struct Form {
    bool first, rms, gated, bare; // bare: the first layer has no normalization of its own
    Activation act;
    int64_t columns; // that are turned; 0: one kind, without positions
  };
  const Form forms[] = {{true, false, true, true, Activation::gelu, 16}, {true, true, true, false, Activation::silu, 6}, {false, true, true, false, Activation::gelu_tanh, 0},
                        {false, false, true, false, Activation::silu, 2}, {true, true, false, false, Activation::relu, 0}};
  const Dims dims[] = {{2, 16, 40, 3}, {3, 32, 100, 2}, {2, 20, 48, 2}, {1, 64, 200, 2}, {2, 16, 1, 1}};
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1}, {1, 7}, {3, 1}, {1, 17}, {2, 33}, {1, 130}, {2, 100}};
  EncoderMemory memory;
  for (const Form &f : forms)
    for (const Dims &d : dims) {
      Made made(d, f.gated);
      made.e.normalize_first = f.first, made.e.rms = f.rms, made.e.act = f.act;
      if (f.bare) made.e.layers[0].gamma[0] = made.e.layers[0].beta[0] = nullptr;
      if (f.columns)
        for (size_t i = 0; i < made.e.layers.size(); i++) made.e.layers[i].kind = i % 2;
      for (const auto &[batch, length] : shapes) {
        const int64_t hidden = made.e.hidden(), some = (length + 3) / 4;
        const auto x = gauss(size_t(batch * length * hidden), 3, 2);
        TwoKinds two(batch, length, std::min(f.columns, d.size), 5, [&](int64_t b, int64_t s) { return b == 0 && s >= some; });
        if (!f.columns) two.kinds.resize(1), two.kinds[0].rotation = {};
        auto want = step_by_step(made.e, two.kinds, x, int8_kernels(), attention_kernels(), f.rms ? rms_kernel() : normalize_kernel());
        bool ok = true;
        for (const bool skip : {false, true}) {
          made.e.skip_padding = skip;
          if (skip) std::fill(want.begin() + some * hidden, want.begin() + length * hidden, 0.f);
          for (const int threads : {1, 2, 5})
            for (const auto way : {in_order, from_behind, on_threads}) ok &= same_bits(want, run(made.e, two.kinds, x, memory, {nullptr, way, threads}));
        }
        if (!CHECK(ok)) {
          std::fprintf(stderr, "  form %d, batch %d, length %d, heads %d, size %d, inner %d\n", int(&f - forms), int(batch), int(length), int(d.heads), int(d.size), int(d.inner));
          return;
        }
      }
    }
}

// The first row of each sample is the same when nothing else is computed of the last
// layer, bit for bit, whatever the masks, the padding, the samples and the threads.
TEST(encoder_reads_first) {
  struct Form {
    bool first, gated, bare;
    int64_t columns; // that are turned; 0: one kind, without positions
  };
  const Form forms[] = {{false, false, false, 0}, {true, false, false, 0}, {true, true, true, 4}, {false, true, false, 2}};
  const Dims dims[] = {{2, 16, 40, 3}, {2, 64, 100, 2}, {1, 100, 50, 1}, {3, 20, 60, 1}};
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1}, {1, 7}, {1, 40}, {2, 33}, {1, 130}, {50, 2}};
  EncoderMemory memory;
  for (const Form &f : forms)
    for (const Dims &d : dims) {
      Made made(d, f.gated);
      made.e.normalize_first = f.first;
      if (f.bare) made.e.layers[0].gamma[0] = made.e.layers[0].beta[0] = nullptr;
      if (f.columns)
        for (size_t i = 0; i < made.e.layers.size(); i++) made.e.layers[i].kind = (i + 1) % 2;
      for (const auto &[batch, length] : shapes) {
        const int64_t hidden = made.e.hidden();
        const auto x = gauss(size_t(batch * length * hidden), 3, 2);
        // Every third sample is all masked, the others are of different lengths.
        TwoKinds two(batch, length, std::min(f.columns, d.size), 2, [&](int64_t b, int64_t s) { return b % 3 == 1 || s > (b * 5 + 3) % length; });
        if (!f.columns) {
          two.kinds.resize(1), two.kinds[0].rotation = {};
          for (float &v : two.far) v = v == -inf ? lowest : v;
          two.kinds[0].zero_hidden = false;
        }
        for (const bool masked : {false, true})
          for (const bool skip : {false, true}) {
            Kinds kinds = two.kinds;
            for (Attention &a : kinds) a.bias = masked ? a.bias : nullptr;
            made.e.skip_padding = skip, made.e.read_first = false;
            const auto all = run(made.e, kinds, x, memory, {nullptr, in_order, 1});
            std::vector<float> want;
            for (int64_t b = 0; b < batch; b++) want.insert(want.end(), all.begin() + b * length * hidden, all.begin() + (b * length + 1) * hidden);
            made.e.read_first = true;
            bool ok = true;
            for (const int threads : {1, 3})
              for (const auto way : {from_behind, on_threads}) ok &= same_bits(want, run(made.e, kinds, x, memory, {nullptr, way, threads}));
            if (!CHECK(ok)) {
              std::fprintf(stderr, "  form %d, batch %d, length %d, heads %d, size %d, masked %d, skip %d\n", int(&f - forms), int(batch), int(length), int(d.heads), int(d.size), masked, skip);
              return;
            }
          }
      }
    }
}

// Rows that see no key are 0 and end no sample, but a sample of them alone is whole.
TEST(encoder_length_of_hidden_rows) {
  for (const bool zero : {false, true}) {
    TwoKinds two(2, 60, 2, 5, [](int64_t b, int64_t s) { return b == 1 || s >= 20; });
    for (Attention &a : two.kinds) {
      a.zero_hidden = zero;
      CHECK(unpadded_length(a, 0) == (&a == &two.kinds[0] || zero ? 20 : 60));
      CHECK(unpadded_length(a, 1) == 60);
    }
  }
}

// Rounding in the last place moves a value to the next code here and there.
constexpr double kLayerTolerance = 5e-3;

TEST(encoder_close_to_the_plain_kernels) {
  const Made made({4, 32, 300, 2});
  Attention a;
  a.batch = 2, a.length = 21;
  const auto x = gauss(size_t(2 * 21 * made.e.hidden()), 3, 2);
  EncoderMemory memory;
  const auto y = run(made.e, a, x, memory, {nullptr, in_order, 2}), want = step_by_step(made.e, a, x, int8_plain, level() >= FEWBIT_CPU_AVX512_BF16 ? attention_plain : attention_portable, normalize_plain);
  double d = 0, s = 0;
  for (size_t i = 0; i < y.size(); i++) d += (y[i] - want[i]) * double(y[i] - want[i]), s += want[i] * double(want[i]);
  CHECK(std::sqrt(d / s) <= kLayerTolerance);
}

TEST(encoder_close_to_the_plain_kernels_with_gates) {
  Made made({4, 32, 300, 2}, true);
  made.e.normalize_first = made.e.rms = true, made.e.act = Activation::silu, made.e.layers[1].kind = 1;
  TwoKinds two(2, 21, 32, 5, [](int64_t, int64_t) { return false; });
  for (Attention &a : two.kinds) a.heads = 4, a.size = 32, a.scale = made.e.scale;
  const auto x = gauss(size_t(2 * 21 * made.e.hidden()), 3, 2);
  EncoderMemory memory;
  const auto y = run(made.e, two.kinds, x, memory, {nullptr, in_order, 2}), want = step_by_step(made.e, two.kinds, x, int8_plain, level() >= FEWBIT_CPU_AVX512_BF16 ? attention_plain : attention_portable, rms_plain);
  double d = 0, s = 0;
  for (size_t i = 0; i < y.size(); i++) d += (y[i] - want[i]) * double(y[i] - want[i]), s += want[i] * double(want[i]);
  CHECK(std::sqrt(d / s) <= kLayerTolerance);
}

// Each unit of each stage runs once, behind all of the stage before, however many of
// the tasks run and in whatever order.
TEST(threads_stages) {
  const auto only_the_first = [](void *, size_t, void (*task)(void *, size_t), void *data) { task(data, 0); };
  const auto late = [](void *, size_t n, void (*task)(void *, size_t), void *data) {
    std::thread other([=] {
      for (size_t i = 1; i < n; i++) task(data, i);
    });
    task(data, 0);
    other.join();
  };
  using Way = void (*)(void *, size_t, void (*)(void *, size_t), void *);
  const std::vector<int64_t> sizes = {1, 7, 0, 3, 64, 2, 5};
  for (const Way way : {Way(in_order), Way(from_behind), Way(on_threads), Way(only_the_first), Way(late)})
    for (int threads = 1; threads <= 4; threads++)
      for (int turn = 0; turn < 20; turn++) {
        Carve count{0};
        Stages::take(count, threads);
        EncoderMemory memory;
        Carve carve{reinterpret_cast<uintptr_t>(memory.reserve(count.used))};
        const Stages stages = Stages::take(carve, threads);
        // What a stage writes is read by the next without locks: the sanitizer looks on.
        std::vector<std::vector<int>> done;
        for (const int64_t n : sizes) done.emplace_back(size_t(n), 0);
        std::atomic<bool> early{false};
        stages.run({nullptr, way, threads}, [&](Stages::Thread &thread) {
          for (size_t s = 0; s < sizes.size(); s++)
            thread.run(sizes[s], [&](int64_t unit, bool, bool) {
              if (s > 0)
                for (const int before : done[s - 1]) early = early || before != 1;
              done[s][size_t(unit)]++;
            });
          for (const int last : done.back()) early = early || last != 1;
        });
        CHECK(!early);
        for (const auto &stage : done)
          for (const int times : stage) CHECK(times == 1);
      }
}

// What is no number reaches the rows of its own sample alone, and without
// attention to it only its own row.
TEST(encoder_not_finite) {
  const Made made({2, 16, 40, 2});
  const float inf = std::numeric_limits<float>::infinity();
  for (const int64_t length : {5, 70}) {
    Attention a;
    a.batch = 2, a.length = length;
    const int64_t width = made.e.hidden();
    auto x = gauss(size_t(2 * length * width), 3);
    EncoderMemory memory;
    const Parallel p{nullptr, on_threads, 2};
    const auto clean = run(made.e, a, x, memory, p);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), inf, -inf}) {
      auto bent = x;
      bent[size_t((length + 1) * width + 3)] = bad;
      const auto y = run(made.e, a, bent, memory, p);
      for (int64_t i = 0; i < 2 * length * width; i++) CHECK(i / width < length ? y[size_t(i)] == clean[size_t(i)] : std::isnan(y[size_t(i)]));
    }
  }
}

TEST(normalize_rows) {
  std::vector<Normalize> all = {normalize_plain, normalize_portable};
#if defined(FEWBIT_AVX2)
  if (has_level(FEWBIT_CPU_AVX2)) all.push_back(normalize_avx2);
#endif
#if defined(FEWBIT_AVX512)
  if (has_level(FEWBIT_CPU_AVX512_VNNI)) all.push_back(normalize_avx512);
#endif
  for (const Normalize normalize : all)
    for (const int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 768, 4097}) {
      const int64_t rows = 3;
      auto x = gauss(size_t(rows * n), 1, 3);
      for (int64_t i = 0; i < n; i++) x[size_t(n + i)] = 5; // without variance
      x[size_t(2 * n)] = std::numeric_limits<float>::quiet_NaN();
      const auto gamma = gauss(size_t(n), 2), beta = gauss(size_t(n), 3);
      std::vector<float> y(x.size());
      normalize(x.data(), gamma.data(), beta.data(), 1e-5f, rows, n, y.data());
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < n; i++) mean += x[size_t(i)] / double(n);
      for (int64_t i = 0; i < n; i++) variance += (x[size_t(i)] - mean) * (x[size_t(i)] - mean) / double(n);
      constexpr double tolerance = 1e-5; // of values of a few units
      for (int64_t i = 0; i < n; i++) {
        const double want = (x[size_t(i)] - mean) / std::sqrt(variance + 1e-5) * gamma[size_t(i)] + beta[size_t(i)];
        CHECK(std::fabs(y[size_t(i)] - want) <= tolerance * std::max(1.0, std::fabs(want)));
        CHECK(std::fabs(y[size_t(n + i)] - beta[size_t(i)]) <= tolerance * std::max(1.0f, std::fabs(beta[size_t(i)])));
        CHECK(std::isnan(y[size_t(2 * n + i)]));
      }
      auto in_place = x;
      normalize(in_place.data(), gamma.data(), beta.data(), 1e-5f, rows, n, in_place.data());
      CHECK(std::memcmp(in_place.data(), y.data(), size_t(2 * n) * sizeof(float)) == 0);
    }
}

TEST(normalize_by_root_mean_square) {
  std::vector<Normalize> all = {rms_plain, rms_portable};
#if defined(FEWBIT_AVX2)
  if (has_level(FEWBIT_CPU_AVX2)) all.push_back(rms_avx2);
#endif
#if defined(FEWBIT_AVX512)
  if (has_level(FEWBIT_CPU_AVX512_VNNI)) all.push_back(rms_avx512);
#endif
  for (const Normalize normalize : all)
    for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 100, 768, 4097}) {
      auto x = gauss(size_t(3 * n), 1, 3);
      for (int64_t i = 0; i < n; i++) x[size_t(n + i)] = 0;
      x[size_t(2 * n)] = std::numeric_limits<float>::quiet_NaN();
      const auto gamma = gauss(size_t(n), 2);
      std::vector<float> y(x.size());
      normalize(x.data(), gamma.data(), nullptr, 1e-5f, 3, n, y.data());
      double squares = 0;
      for (int64_t i = 0; i < n; i++) squares += x[size_t(i)] * double(x[size_t(i)]) / double(n);
      constexpr double tolerance = 1e-5; // of values of a few units
      for (int64_t i = 0; i < n; i++) {
        const double want = x[size_t(i)] / std::sqrt(squares + 1e-5) * gamma[size_t(i)];
        CHECK(std::fabs(y[size_t(i)] - want) <= tolerance * std::max(1.0, std::fabs(want)));
        CHECK(y[size_t(n + i)] == 0);
        CHECK(std::isnan(y[size_t(2 * n + i)]));
      }
      normalize(x.data(), gamma.data(), nullptr, 1e-5f, 3, n, x.data());
      CHECK(std::memcmp(x.data(), y.data(), size_t(2 * n) * sizeof(float)) == 0);
    }
}

// Turned bits are the same at each level, what lies beside them stays.
TEST(rotate_rows) {
  std::vector<Rotate> all = {rotate_portable};
#if defined(FEWBIT_AVX2)
  if (has_level(FEWBIT_CPU_AVX2)) all.push_back(rotate_avx2);
#endif
#if defined(FEWBIT_AVX512)
  if (has_level(FEWBIT_CPU_AVX512_VNNI)) all.push_back(rotate_avx512);
#endif
  for (const int64_t n : {2, 6, 30, 32, 34, 64, 80, 256})
    for (const int64_t rows : {1, 3}) {
      const int64_t size = n + 5;
      const auto x = gauss(size_t(rows * 3 * size), 1), cos = gauss(size_t(rows * n), 2), sin = gauss(size_t(rows * n), 3);
      auto want = x;
      rotate_plain(cos.data(), sin.data(), n, rows, want.data(), 3 * size, size);
      for (int64_t i = 0; i < rows * 3 * size; i++) {
        const int64_t r = i / (3 * size), d = i % size;
        double v = x[size_t(i)];
        if (i % (3 * size) < 2 * size && d < n) v = v * cos[size_t(r * n + d)] + (d < n / 2 ? -x[size_t(i + n / 2)] : x[size_t(i - n / 2)]) * double(sin[size_t(r * n + d)]);
        CHECK(std::fabs(want[size_t(i)] - v) < 1e-5);
      }
      for (const Rotate rotate : all) {
        auto y = x;
        rotate(cos.data(), sin.data(), n, rows, y.data(), 3 * size, size);
        CHECK(same_bits(want, y));
      }
    }
}
