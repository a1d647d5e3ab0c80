#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>

#include "attention.hpp"
#include "bf16.hpp"
#include "level.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

bool operator==(const KeyRange &a, const KeyRange &b) { return a.begin == b.begin && a.end == b.end; }

struct Shape {
  int64_t batch, length, heads, size;
};

// Runs the rows in parts of `part`, with everything outside the memory's parts
// poisoned by what was there before.
std::vector<float> run(const AttentionKernels &kn, Attention a, int64_t part, int fill = 0xff) {
  std::vector<float> y(size_t(a.batch * a.rows() * a.width()), -1);
  a.y = y.data();
  const size_t bytes = kn.bytes(a);
  std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free);
  std::memset(memory.get(), fill, bytes);
  for (int64_t b = 0; b < a.batch; b++)
    for (int64_t h = 0; h < a.heads; h++) {
      kn.pack(a, b, h, memory.get());
      for (int64_t r = 0; r < a.rows(); r += part) kn.rows(a, b, h, r, std::min(a.rows(), r + part), memory.get());
    }
  return y;
}

// The formula in double, on what was rounded to BF16 or not.
std::vector<float> exact(Attention a, bool rounded) {
  std::vector<float> in(a.qkv, a.qkv + a.batch * a.length * 3 * a.width());
  if (rounded)
    for (float &v : in) v = bf16_to_float(bf16_round(v));
  a.qkv = in.data();
  std::vector<float> y(size_t(a.batch * a.length * a.width()));
  std::vector<double> p(static_cast<size_t>(a.length));
  for (int64_t b = 0; b < a.batch; b++)
    for (int64_t h = 0; h < a.heads; h++)
      for (int64_t r = 0; r < a.length; r++) {
        double most = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int64_t s = 0; s < a.length; s++) {
          double x = 0;
          for (int64_t d = 0; d < a.size; d++) x += double(a.row(b, r, 0, h)[d]) * a.row(b, s, 1, h)[d];
          p[size_t(s)] = x * a.scale + (a.bias ? a.bias_of(b, h, r)[s] : 0);
          most = std::max(most, p[size_t(s)]);
        }
        for (double &v : p) sum += v = std::exp(v - most);
        for (int64_t d = 0; d < a.size; d++) {
          double v = 0;
          for (int64_t s = 0; s < a.length; s++) v += p[size_t(s)] * a.row(b, s, 2, h)[d];
          y[size_t((b * a.length + r) * a.width() + h * a.size + d)] = float(v / sum);
        }
      }
  return y;
}

float largest_difference(const std::vector<float> &a, const std::vector<float> &b) {
  float d = 0;
  for (size_t i = 0; i < a.size(); i++) d = std::isnan(a[i]) || std::isnan(b[i]) ? std::numeric_limits<float>::infinity() : std::max(d, std::fabs(a[i] - b[i]));
  return d;
}

// Weights behind the softmax are rounded to 8 bits: 2^-9 of values of size 4 at most.
constexpr float kWeightsTolerance = 4.f / 512;
// With the operands rounded too: of standard normal values, scores of size 1.
constexpr float kOperandsTolerance = 8.f / 256;
// In FP32 throughout: sums of up to 1,024 products, exp and a sum of up to 700.
constexpr float kFloatTolerance = 2e-5f;

struct Kernels {
  const AttentionKernels *k;
  bool bf16;

  bool close(const std::vector<float> &y, const std::vector<float> &rounded, const std::vector<float> &real) const {
    if (!bf16) return CHECK(largest_difference(y, real) <= kFloatTolerance);
    return CHECK(largest_difference(y, rounded) <= kWeightsTolerance) && CHECK(largest_difference(y, real) <= kOperandsTolerance);
  }
};

std::vector<Kernels> kernels() {
  std::vector<Kernels> all = {{&attention_plain, true}, {&attention_portable, false}};
#if defined(FEWBIT_AVX2)
  if (has_level(FEWBIT_CPU_AVX2)) all.push_back({&attention_avx2, false});
#endif
#if defined(FEWBIT_AVX512)
  if (has_level(FEWBIT_CPU_AVX512_VNNI)) all.push_back({&attention_avx512, false});
#endif
#if defined(FEWBIT_AVX512_BF16)
  if (has_level(FEWBIT_CPU_AVX512_BF16)) all.push_back({&attention_bf16, true});
#endif
  return all;
}

} // namespace

TEST(attention_of_all_shapes) {
  std::vector<Shape> shapes;
  for (int64_t length : {1, 2, 5, 6, 7, 15, 16, 17, 33, 63, 64, 65, 130})
    for (int64_t size : {1, 2, 15, 16, 17, 32, 33, 64, 65, 80}) shapes.push_back({2, length, 3, size});
  shapes.push_back({1, 700, 1, 64});
  shapes.push_back({1, 3, 1, kMaxHeadSize});
  for (const Shape &s : shapes) {
    Attention a;
    a.batch = s.batch, a.length = s.length, a.heads = s.heads, a.size = s.size, a.scale = float(1 / std::sqrt(double(s.size)));
    const auto qkv = gauss(size_t(s.batch * s.length * 3 * a.width()), 1);
    a.qkv = qkv.data();
    // Forms of the bias: none, padding of each sample, of each head, of each row and head.
    for (int form = 0; form < 4; form++) {
      const int64_t hs = form == 2 || form == 3 ? s.heads : 1, rs = form == 3 ? s.length : 1;
      auto bias = gauss(size_t(s.batch * hs * rs * s.length), 2);
      for (size_t i = 0; i < bias.size(); i++)
        if (int64_t(i) % s.length > 0 && i % 5 == 0) bias[i] = i % 2 ? -10000 : std::numeric_limits<float>::lowest();
      if (form) {
        a.bias = bias.data();
        a.bias_row = rs == 1 ? 0 : s.length, a.bias_head = hs == 1 ? 0 : rs * s.length, a.bias_batch = hs * rs * s.length;
      } else {
        a.bias = nullptr;
      }
      const auto rounded = exact(a, true), real = exact(a, false);
      for (const Kernels &of : kernels()) {
        const AttentionKernels &k = *of.k;
        const auto y = run(k, a, s.length);
        const bool close = of.close(y, rounded, real);
        // Neither where rows are cut nor what lay in the memory matters.
        const bool same = CHECK(run(k, a, kAttentionRows, 0) == y) && CHECK(run(k, a, 5) == y);
        if (!close || !same) {
          std::fprintf(stderr, "  batch %d, length %d, heads %d, size %d, form %d\n", int(s.batch), int(s.length), int(s.heads), int(s.size), form);
          return;
        }
      }
    }
  }
}

// Hidden keys before the first that counts and behind the last are left out, which
// changes no bit: of causal masks, with padding behind or before, of windows, and of
// masks of each head.
// A bias of -9000 hides as well, but is not small enough to be left out.
TEST(attention_leaves_out_hidden_keys) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  for (const int64_t length : {1, 5, 6, 7, 17, 40, 77})
    for (const int64_t size : {8, 24})
      for (int form = 0; form < 7; form++) {
        Attention a;
        a.batch = 2, a.length = length, a.heads = 2, a.size = size, a.scale = float(1 / std::sqrt(double(size)));
        const auto qkv = gauss(size_t(a.batch * length * 3 * a.width()), 1);
        a.qkv = qkv.data();
        const auto hidden = [&](int64_t b, int64_t h, int64_t r, int64_t s) {
          const int64_t real = form == 1 ? std::max<int64_t>(1, length - 3 - 5 * b) : length; // of the sample
          switch (form) {
          case 2: return s > r || s + 7 < r;       // a window behind each row
          case 3: return s > r + 3 * h;            // another of each head
          case 4: return s > (r * 7 + 3) % length; // rows in no order
          case 5: return std::abs(r - s) > 4;      // a window around each row
          case 6: return s < length / 2 + b && s + 1 < length;   // padding before the sample
          default: return s > r || s >= real;
          }
        };
        std::vector<float> by_value[4];
        const float values[4] = {-9000, -10000, std::numeric_limits<float>::lowest(), -inf};
        for (int i = 0; i < 4; i++)
          for (int64_t b = 0; b < 2; b++)
            for (int64_t h = 0; h < 2; h++)
              for (int64_t r = 0; r < length; r++)
                for (int64_t s = 0; s < length; s++) by_value[i].push_back(hidden(b, h, r, s) ? values[i] : 0.f);
        a.bias_batch = 2 * length * length, a.bias_head = length * length, a.bias_row = length;
        a.bias = by_value[0].data();
        for (int64_t r = 0; r < length; r++) CHECK(attention_keys(a.bias_of(0, 0, r), length) == KeyRange({0, length}));
        const auto rounded = exact(a, true), real = exact(a, false);
        for (const Kernels &of : kernels()) {
          const AttentionKernels &k = *of.k;
          a.bias = by_value[0].data();
          const auto whole = run(k, a, length);
          bool ok = of.close(whole, rounded, real);
          for (int i = 1; i < 4; i++) {
            a.bias = by_value[i].data();
            if (form == 0) CHECK(attention_keys(a.bias_of(0, 0, 0), length) == KeyRange({0, 1}));
            if (form == 5) CHECK(attention_keys(a.bias_of(1, 1, length / 2), length) == KeyRange({std::max<int64_t>(0, length / 2 - 4), std::min(length, length / 2 + 5)}));
            ok &= CHECK(run(k, a, length) == whole) && CHECK(run(k, a, 5, 0) == whole);
          }
          if (!ok) {
            std::fprintf(stderr, "  length %d, size %d, form %d\n", int(length), int(size), form);
            return;
          }
        }
      }
  const float strange[] = {0, std::numeric_limits<float>::quiet_NaN(), -inf};
  CHECK(attention_keys(strange, 3) == KeyRange({0, 3}) && attention_keys(nullptr, 7) == KeyRange({0, 7}));
  CHECK(attention_keys(strange + 2, 1) == KeyRange({0, 1}) && attention_keys(strange, 1) == KeyRange({0, 1}));
}

// Queries of other rows than the keys: the same bits as where all are of one
// sequence, for as many queries as there are.
TEST(attention_to_another_sequence) {
  for (const int64_t queries : {1, 6, 17, 40}) {
    Attention self;
    self.batch = 2, self.length = 40, self.heads = 2, self.size = 24, self.scale = 0.2f;
    const int64_t w = self.width();
    const auto qkv = gauss(size_t(2 * 40 * 3 * w), 1);
    std::vector<float> q, kv, bias(size_t(2 * 40 * 40)), cut;
    for (size_t i = 0; i < bias.size(); i++) bias[i] = i % 7 == 1 ? -10000.f : float(i % 5);
    for (int64_t b = 0; b < 2; b++)
      for (int64_t r = 0; r < 40; r++) {
        const float *row = qkv.data() + (b * 40 + r) * 3 * w;
        if (r < queries) q.insert(q.end(), row, row + w), cut.insert(cut.end(), bias.begin() + (b * 40 + r) * 40, bias.begin() + (b * 40 + r + 1) * 40);
        kv.insert(kv.end(), row + w, row + 3 * w);
      }
    self.qkv = qkv.data(), self.bias = bias.data(), self.bias_row = 40, self.bias_batch = 40 * 40;
    Attention cross = self;
    cross.q = q.data(), cross.queries = queries, cross.qkv = kv.data(), cross.bias = cut.data(), cross.bias_batch = queries * 40;
    for (const Kernels &of : kernels()) {
      const auto whole = run(*of.k, self, self.length), part = run(*of.k, cross, queries);
      for (int64_t b = 0; b < 2; b++)
        if (!CHECK(std::equal(part.begin() + b * queries * w, part.begin() + (b + 1) * queries * w, whole.begin() + b * 40 * w))) return;
    }
  }
}

// Rows of which the bias hides every key are 0 where that is asked for, and only
// these: one key that counts, or the lowest float, is enough.
TEST(attention_of_hidden_rows) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Attention a;
  a.batch = 1, a.length = 20, a.heads = 2, a.size = 24, a.scale = 0.2f;
  const auto qkv = gauss(size_t(a.length * 3 * a.width()), 1);
  std::vector<float> bias(size_t(a.length * a.length)), y(size_t(a.length * a.width()));
  for (int64_t r = 0; r < a.length; r++)
    for (int64_t s = 0; s < a.length; s++) bias[size_t(r * a.length + s)] = r % 3 == 0 ? -inf : r % 3 == 1 ? std::numeric_limits<float>::lowest() : s == 19 ? 0 : -inf;
  a.qkv = qkv.data(), a.bias = bias.data(), a.bias_row = a.length;
  for (const Kernels &of : kernels()) {
    const auto plain = run(*of.k, a, a.length);
    std::vector<char> memory(of.k->bytes(a) + 64);
    void *const at = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    Attention zero = a;
    zero.y = y.data(), zero.zero_hidden = true;
    for (int64_t h = 0; h < a.heads; h++) {
      of.k->pack(zero, 0, h, at);
      attention_rows(*of.k, zero, 0, h, 0, a.length, at);
    }
    for (int64_t r = 0; r < a.length; r++)
      for (int64_t c = 0; c < a.width(); c++) {
        const size_t i = size_t(r * a.width() + c);
        if (!CHECK(r % 3 == 0 ? std::isnan(plain[i]) && y[i] == 0 : std::isfinite(plain[i]) && y[i] == plain[i])) return;
      }
  }
}

TEST(attention_not_finite) {
  Attention a;
  a.batch = 1, a.length = 40, a.heads = 2, a.size = 20, a.scale = 0.2f;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels &of : kernels()) {
    const AttentionKernels &k = *of.k;
    auto qkv = gauss(size_t(a.length * 3 * a.width()), 1);
    a.qkv = qkv.data(), a.bias = nullptr;
    // A query that is not a number spoils its own row and head alone.
    qkv[size_t(7 * 3 * a.width() + 3)] = nan;
    auto y = run(k, a, a.length);
    for (int64_t r = 0; r < a.length; r++)
      for (int64_t c = 0; c < a.width(); c++) CHECK(std::isnan(y[size_t(r * a.width() + c)]) == (r == 7 && c < a.size));
    // A key that is not spoils every row of its head, and an infinite value one column.
    qkv[size_t(7 * 3 * a.width() + 3)] = 0;
    qkv[size_t((9 * 3 + 1) * a.width() + 3)] = nan, qkv[size_t((9 * 3 + 2) * a.width() + 25)] = inf;
    y = run(k, a, a.length);
    for (int64_t r = 0; r < a.length; r++)
      for (int64_t c = 0; c < a.width(); c++) {
        const float v = y[size_t(r * a.width() + c)];
        CHECK(c < a.size ? std::isnan(v) : c == 25 ? v == inf : std::isfinite(v));
      }
    // All masked: by -inf there is nothing to divide by, by -10000 all count alike.
    qkv = gauss(size_t(a.length * 3 * a.width()), 3), a.qkv = qkv.data();
    std::vector<float> bias(size_t(a.length), -inf);
    a.bias = bias.data();
    y = run(k, a, a.length);
    CHECK(std::all_of(y.begin(), y.end(), [](float v) { return std::isnan(v); }));
    std::fill(bias.begin(), bias.end(), -10000.f); // beside which a score has three digits
    CHECK(largest_difference(run(k, a, a.length), exact(a, of.bf16)) <= kWeightsTolerance);
    // Some masked by -inf.
    std::fill(bias.begin() + 3, bias.end(), -inf);
    CHECK(largest_difference(run(k, a, a.length), exact(a, of.bf16)) <= kWeightsTolerance);
  }
}
