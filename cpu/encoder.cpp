#include "encoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "carve.hpp"
#include "level.hpp"
#include "rotary.hpp"
#include "stages.hpp"

namespace fewbit {

void normalize_plain(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y) {
  for (; rows > 0; rows--, x += n, y += n) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    const double mean = sum / double(n);
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    const double unit = 1 / std::sqrt(squares / double(n) + epsilon);
    for (int64_t i = 0; i < n; i++) y[i] = float((x[i] - mean) * unit) * gamma[i] + beta[i];
  }
}

void rms_plain(const float *x, const float *gamma, const float *, float epsilon, int64_t rows, int64_t n, float *y) {
  for (; rows > 0; rows--, x += n, y += n) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += double(x[i]) * x[i];
    const double unit = 1 / std::sqrt(squares / double(n) + epsilon);
    for (int64_t i = 0; i < n; i++) y[i] = float(x[i] * unit) * gamma[i];
  }
}

Normalize rms_kernel() {
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return rms_avx512;
#endif
#if defined(FEWBIT_AVX2)
  if (level() >= FEWBIT_CPU_AVX2) return rms_avx2;
#endif
  return rms_portable;
}

Normalize normalize_kernel() {
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return normalize_avx512;
#endif
#if defined(FEWBIT_AVX2)
  if (level() >= FEWBIT_CPU_AVX2) return normalize_avx2;
#endif
  return normalize_portable;
}

void *EncoderMemory::reserve(size_t bytes) {
  if (bytes > bytes_) {
    std::free(data_);
    bytes_ = 0;
    data_ = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!data_) throw std::bad_alloc();
    bytes_ = bytes;
  }
  return data_;
}

void EncoderMemory::forget_keys() {
  size_t need = 0;
  const auto each = [this](const auto &f) {
    for (Attention &a : kinds)
      if (a.bias && a.bias_row) f(a, a.length * (a.bias_head ? a.heads : 1));
  };
  each([&](Attention &a, int64_t sample) { need += size_t(a.batch * sample); });
  if (need > known_.size()) known_ = std::vector<std::atomic<uint64_t>>(need);
  for (size_t i = 0; i < need; i++) known_[i].store(0, std::memory_order_relaxed);
  std::atomic<uint64_t> *next = known_.data();
  each([&](Attention &a, int64_t sample) {
    a.known = {next, sample, a.bias_head ? a.length : 0};
    next += a.batch * sample;
  });
}

EncoderMemory::~EncoderMemory() { std::free(data_); }

int64_t unpadded_length(const Attention &a, int64_t b) {
  int64_t length = a.bias ? 0 : a.length;
  const int64_t heads = a.bias_head ? a.heads : 1, rows = a.bias_row ? a.length : 1;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t r = rows; r-- > 0 && length < a.length;) { // the last row of a causal mask sees the most
      const float *bias = a.bias_of(b, h, r);
      if (!a.zero_hidden || !hides_all(bias, a.length)) length = std::max(length, attention_keys(bias, a.length).end);
    }
  return length ? length : a.length;
}

Projection Projection::columns(int64_t first, int64_t n) const {
  Projection p = *this;
  p.w.n = n;
  p.w.panels = w.panel(first / kPanel);
  p.w.sums += first, p.w.scales += first;
  if (bias) p.bias += first;
  return p;
}

namespace {

constexpr int64_t kTileRows = 8;
constexpr int64_t kColumnTiles = 2; // with fewer tiles of rows a thread the columns are divided
constexpr int64_t kGatePanels = 4;   // of a gate at a time, which are multiplied while they lie in the cache
constexpr int64_t kBlockRows = 64;   // at most: what lies between the products stays in the cache

struct Codes {
  uint8_t *codes;
  RowScale *scales;
  int64_t k;
  static Codes take(Carve &c, int64_t rows, int64_t k) {
    uint8_t *const codes = c.take<uint8_t>(rows * k);
    return {codes, c.take<RowScale>(rows), k};
  }
  Codes from(int64_t r) const { return {codes + r * k, scales + r, k}; }
};

struct Run {
  const Encoder &e;
  const Attention *kinds; // their sizes are padded
  const Parallel &parallel;
  const float *x;
  float *y;
  const int64_t *starts; // sample b is rows [starts[b], starts[b+1]) of all that lies between x and y
  const Attention &a = kinds[0]; // for what all have in common
  const int64_t rows = starts[a.batch];
  const bool packed = rows < a.batch * a.length;
  const Int8Kernels &int8 = int8_kernels();
  const AttentionKernels &attend = attention_kernels();
  const Normalize normalize = e.rms ? rms_kernel() : normalize_kernel();
  const Rotate rotate = rotate_kernel();

  static int64_t padded(int64_t k) { return (k + kInt8Step - 1) / kInt8Step * kInt8Step; }

  void quantize(const Projection &p, const float *from, int64_t r0, int64_t r1, const Codes &to) const {
    Int8Product q;
    q.x = from, q.divisor = p.divisor, q.w = p.w;
    int8.quantize(q, r0, r1, to.codes, to.scales);
  }
  // A panel that is read next, from memory most likely.
  struct Ahead {
    const void *at = nullptr;
    int64_t bytes = 0;
    static Ahead of(const Int8Weight &w, int64_t panel) { return {w.panel(panel), w.panel_bytes()}; }
  };
  void multiply(const Projection &p, const uint8_t *codes, const RowScale *scales, int64_t count, int64_t p0, int64_t p1, Activation act,
                const float *residual, float *to, Ahead after) const {
    Int8Product q;
    q.after = after.at, q.after_bytes = after.bytes;
    q.w = p.w, q.bias = p.bias, q.act = act, q.residual = residual, q.y = to;
    int8.multiply(q, 0, count, p0, p1, codes, scales);
  }
  // Panels [p0,p1) of act(Up) times the gate, which is computed in `side`, of
  // gate_columns() for each row.
  void multiply_gate(const EncoderLayer &l, const Codes &codes, int64_t count, int64_t p0, int64_t p1, float *up, float *side, Ahead after) const {
    for (int64_t p = p0; p < p1; p += kGatePanels) {
      const int64_t end = std::min(p1, p + kGatePanels), first = p * kPanel, n = std::min(end * kPanel, e.inner) - first;
      const Projection gate = l.gate.columns(first, n);
      multiply(l.up, codes.codes, codes.scales, count, p, end, e.act, nullptr, up, Ahead::of(gate.w, 0));
      multiply(gate, codes.codes, codes.scales, count, 0, end - p, Activation::none, nullptr, side, end < p1 ? Ahead::of(l.up.w, end) : after);
      for (int64_t r = 0; r < count; r++) {
        float *const to = up + r * e.inner + first;
        const float *const by = side + r * n;
        for (int64_t i = 0; i < n; i++) to[i] *= by[i];
      }
    }
  }
  int64_t gate_columns() const { return e.gated ? std::min(kGatePanels * kPanel, e.inner) : 0; }

  // What one task of heads works in.
  struct Head {
    float *qkv;
    void *attention;
    size_t bytes;
    Head(const Attention &a, void *memory) {
      Carve c{reinterpret_cast<uintptr_t>(memory)};
      qkv = c.take<float>(a.length * 3 * a.size);
      attention = c.take<char>(int64_t(attention_kernels().bytes(a)));
      bytes = c.used;
    }
  };
  // What one task of rows works in.
  struct Rows {
    Codes codes;
    float *middle, *up, *side, *normal; // normal: with the normalization first, what a product takes of the rows
    static Rows at(const Run &run, int64_t rows, void *memory, size_t *bytes = nullptr) {
      Carve c{reinterpret_cast<uintptr_t>(memory)};
      Rows r{Codes::take(c, rows, padded(std::max(run.e.hidden(), run.e.inner))), nullptr, nullptr, nullptr, nullptr};
      r.middle = c.take<float>(rows * run.e.hidden());
      r.up = c.take<float>(rows * run.e.inner);
      r.side = c.take<float>(rows * run.gate_columns());
      r.normal = c.take<float>(run.e.normalize_first ? rows * run.e.hidden() : 0);
      if (bytes) *bytes = c.used;
      return r;
    }
  };

  // What all tasks share.
  struct Shared {
    float *rows; // what a layer reads and writes
    float *context;
    Codes codes;
    Stages stages;
    char *tasks; // of each share
  };

  // Rows [b0,b1) of the first ones of each sample.
  void first_rows(const float *from, int64_t b0, int64_t b1, float *to) const {
    for (int64_t b = b0; b < b1; b++) std::copy_n(from + starts[b] * e.hidden(), e.hidden(), to + b * e.hidden());
  }

  // Calls f(packed row, row of x and y, count) for the parts of rows [r0,r1) that
  // belong to one sample.
  template <class F> void by_sample(int64_t r0, int64_t r1, const F &f) const {
    for (int64_t b = std::upper_bound(starts, starts + a.batch, r0) - starts - 1; r0 < r1; b++) {
      const int64_t end = std::min(r1, starts[b + 1]);
      f(r0, b * a.length + r0 - starts[b], end - r0);
      r0 = end;
    }
  }
  void gather(int64_t r0, int64_t r1, float *to) const {
    const int64_t n = e.hidden();
    by_sample(r0, r1, [&](int64_t r, int64_t at, int64_t count) { std::copy_n(x + at * n, count * n, to + r * n); });
  }
  // And zeros behind the last row of each sample.
  void scatter(const float *from, int64_t r0, int64_t r1) const {
    const int64_t n = e.hidden();
    by_sample(r0, r1, [&](int64_t r, int64_t at, int64_t count) {
      std::copy_n(from + r * n, count * n, y + at * n);
      const int64_t end = at + count, b = at / a.length;
      if (r + count == starts[b + 1]) std::fill(y + end * n, y + (b + 1) * a.length * n, 0.f);
    });
  }

  // Whether a layer computes the first row of each sample alone; of keys and values all.
  bool only_first(const EncoderLayer &l) const { return e.read_first && &l == &e.layers.back(); }

  // Head h of sample b: from the codes of its rows to its columns of `context`, which has
  // the rows that the layer computes.
  void head(const EncoderLayer &l, int64_t b, int64_t h, const Codes &codes, float *context, const Head &m, Ahead after) const {
    const Projection p = l.qkv.head(h, a.size);
    const int64_t r = starts[b], length = starts[b + 1] - r, count = only_first(l) ? 1 : length;
    const auto product = [&](int64_t n, int64_t p0, int64_t p1, Ahead next) {
      multiply(p, codes.codes + r * p.w.padded_k(), codes.scales + r, n, p0, p1, Activation::none, nullptr, m.qkv, next);
    };
    // Panels of queries alone. In rows that have none there is what lay in the memory, which
    // is turned with the keys and read by nobody.
    const int64_t queries = count < length ? a.size / kPanel : 0;
    if (queries) product(count, 0, queries, Ahead::of(p.w, queries));
    product(length, queries, p.w.panel_count(), after);
    Attention one = kinds[l.kind];
    if (const Rotation &t = one.rotation; t.cos) rotate(t.cos + b * t.batch, t.sin + b * t.batch, t.columns, length, m.qkv, 3 * a.size, a.size);
    one.batch = one.heads = 1, one.length = length;
    one.qkv = m.qkv;
    one.y = context + (only_first(l) ? b : r) * e.hidden() + h * e.size, one.y_row = e.hidden(), one.y_size = e.size;
    one.bias = kinds[l.kind].bias_of(b, h, 0);
    if (one.known.rows) one.known.rows += b * one.known.batch + h * one.known.head;
    attend.pack(one, 0, 0, m.attention);
    attention_rows(attend, one, 0, 0, 0, count, m.attention);
  }

  // The codes that a layer begins with, of n rows.
  void enter(const EncoderLayer &l, const float *from, int64_t n, float *normal, const Codes &codes) const {
    if (e.normalize_first && l.gamma[0]) {
      normalize(from, l.gamma[0], l.beta[0], e.epsilon, n, e.hidden(), normal);
      from = normal;
    }
    quantize(l.qkv, from, 0, n, codes);
  }

  // Rows [r0,r1) of a layer, from `context` to `result` and the codes for the
  // next one.
  void block(const EncoderLayer &l, const EncoderLayer *next, const float *residual, const float *context, int64_t r0, int64_t r1, const Rows &m,
             const Codes &codes, float *result, Ahead after) const {
    const int64_t hidden = e.hidden(), n = r1 - r0;
    const auto whole = [&](const Projection &p, Activation act, const float *res, float *to, Ahead next_weight) {
      multiply(p, m.codes.codes, m.codes.scales, n, 0, p.w.panel_count(), act, res, to, next_weight);
    };
    quantize(l.out, context, r0, r1, m.codes);
    whole(l.out, Activation::none, residual + r0 * hidden, m.middle, Ahead::of(l.up.w, 0));
    const int which = e.normalize_first ? 1 : 0;
    float *const normal = e.normalize_first ? m.normal : m.middle;
    normalize(m.middle, l.gamma[which], l.beta[which], e.epsilon, n, hidden, normal);
    quantize(l.up, normal, 0, n, m.codes);
    if (e.gated)
      multiply_gate(l, m.codes, n, 0, l.up.w.panel_count(), m.up, m.side, Ahead::of(l.down.w, 0));
    else
      whole(l.up, e.act, nullptr, m.up, Ahead::of(l.down.w, 0));
    quantize(l.down, m.up, 0, n, m.codes);
    float *to = result + r0 * hidden;
    whole(l.down, Activation::none, m.middle, to, after);
    if (!e.normalize_first) normalize(to, l.gamma[1], l.beta[1], e.epsilon, n, hidden, to);
    if (next)
      enter(*next, to, n, m.normal, codes.from(r0));
    else if (packed && !e.read_first)
      scatter(result, r0, r1);
  }

  // When the columns are divided threads share everything: `x` and `middle` are what a
  // product takes of the rows and, with the normalization behind the residuals, what
  // one adds.
  struct Columns {
    float *in, *context, *firsts, *sum, *end, *up, *x, *middle;
    Codes codes;
    char *tasks; // of each share
    int64_t bytes; // of one of them

    // What stands behind the attention of n rows, whose tasks need `least` bytes.
    void take(Carve &c, const Run &run, int64_t n, int64_t threads, int64_t least) {
      firsts = c.take<float>(run.e.read_first ? run.a.batch * run.e.hidden() : 0);
      sum = c.take<float>(n * run.e.hidden()), middle = c.take<float>(n * run.e.hidden());
      up = c.take<float>(n * run.e.inner);
      codes = Codes::take(c, n, padded(std::max(run.e.hidden(), run.e.inner)));
      bytes = std::max(least, (n * run.gate_columns() * int64_t(sizeof(float)) + 63) / 64 * 64);
      tasks = c.take<char>(threads * bytes);
    }
    void quantize(const Run &run, const Projection &p, const float *from, int64_t r0, int64_t r1) const {
      run.quantize(p, from, r0, r1, {codes.codes + r0 * p.w.padded_k(), codes.scales + r0, 0});
    }
  };

  // A thread's way through the stages.
  struct Walk {
    const Run &run;
    Stages::Thread &thread;
    int64_t threads;

    // Rows are few, and so are those of a unit.
    template <class F> void by_rows(int64_t n, const F &f) const {
      const int64_t height = (n + threads - 1) / threads;
      thread.run((n + height - 1) / height, [&](int64_t i, bool, bool) { f(i * height, std::min(n, (i + 1) * height)); });
    }
    void normalize(const float *from, const float *gamma, const float *beta, int64_t r0, int64_t r1, float *to) const {
      const int64_t hidden = run.e.hidden();
      run.normalize(from + r0 * hidden, gamma, beta, run.e.epsilon, r1 - r0, hidden, to + r0 * hidden);
    }
    // The panel of w at which this thread begins.
    Ahead begin(const Int8Weight &w) const { return Ahead::of(w, w.panel_count() * thread.share / threads); }
  };

  // A layer behind its attention, its columns divided: from m.context to `to`, which a
  // layer that normalizes behind the residuals has not normalized yet.
  void behind(const Walk &walk, const Columns &m, const EncoderLayer &l, const EncoderLayer *next, const float *residual, float *to) const {
    const bool first = e.normalize_first, only = only_first(l);
    const int64_t n = only ? a.batch : rows;
    const auto product = [&](const Projection &p, const Projection *then, Activation act, const float *add, float *result) {
      walk.thread.run(p.w.panel_count(), [&](int64_t panel, bool more, bool) {
        Ahead after;
        if (!more && then) after = walk.begin(then->w);
        multiply(p, m.codes.codes, m.codes.scales, n, panel, panel + 1, act, add, result, after);
      });
    };
    walk.by_rows(n, [&](int64_t r0, int64_t r1) {
      if (only) first_rows(residual, r0, r1, m.firsts);
      m.quantize(*this, l.out, m.context, r0, r1);
    });
    product(l.out, &l.up, Activation::none, only ? m.firsts : residual, m.sum);
    walk.by_rows(n, [&](int64_t r0, int64_t r1) {
      walk.normalize(m.sum, l.gamma[first], l.beta[first], r0, r1, m.middle);
      m.quantize(*this, l.up, m.middle, r0, r1);
    });
    if (e.gated)
      walk.thread.run(l.up.w.panel_count(), [&](int64_t panel, bool more, bool) {
        Ahead after;
        if (!more) after = walk.begin(l.down.w);
        multiply_gate(l, m.codes, n, panel, panel + 1, m.up, reinterpret_cast<float *>(m.tasks + walk.thread.share * m.bytes), after);
      });
    else
      product(l.up, &l.down, e.act, nullptr, m.up);
    walk.by_rows(n, [&](int64_t r0, int64_t r1) { m.quantize(*this, l.down, m.up, r0, r1); });
    product(l.down, next ? &next->qkv : nullptr, Activation::none, first ? m.sum : m.middle, to);
    if (!next)
      walk.by_rows(n, [&](int64_t r0, int64_t r1) {
        if (!first) walk.normalize(to, l.gamma[1], l.beta[1], r0, r1, to);
        if (!only) scatter(to, r0, r1);
      });
  }

  bool few(int64_t n, int64_t threads) const { return threads > 1 && n < kTileRows * kColumnTiles * threads; }

  void by_columns(EncoderMemory &memory, int64_t threads) const {
    const int64_t hidden = e.hidden();
    const bool first = e.normalize_first;
    Columns m;
    Stages stages;
    const auto lay = [&](Carve c) {
      m.in = c.take<float>(packed ? rows * hidden : 0);
      m.context = c.take<float>(rows * hidden), m.end = c.take<float>(rows * hidden), m.x = c.take<float>(rows * hidden);
      m.take(c, *this, rows, threads, int64_t(Head(a, nullptr).bytes));
      stages = Stages::take(c, threads);
      return c.used;
    };
    lay({reinterpret_cast<uintptr_t>(memory.reserve(lay({0})))});
    stages.run(parallel, [&](Stages::Thread &thread) {
      const Walk walk{*this, thread, threads};
      for (size_t i = 0; i < e.layers.size(); i++) {
        const EncoderLayer &l = e.layers[i], *next = i + 1 < e.layers.size() ? &l + 1 : nullptr;
        const float *const begin_with = i ? m.end : packed ? m.in : x;
        // What the products of queries and Up take, and what the residuals add.
        const float *const input = (first ? l.gamma[0] != nullptr : i > 0) ? m.x : begin_with;
        walk.by_rows(rows, [&](int64_t r0, int64_t r1) {
          if (i == 0 && packed) gather(r0, r1, m.in);
          if (input == m.x) {
            const EncoderLayer &of = first ? l : e.layers[i - 1];
            walk.normalize(begin_with, of.gamma[!first], of.beta[!first], r0, r1, m.x);
          }
          m.quantize(*this, l.qkv, input, r0, r1);
        });
        thread.run(a.batch * a.heads, [&](int64_t u, bool more, bool) {
          const int64_t h = u / a.batch, then = (u + 1) / a.batch;
          Ahead after;
          if (!more)
            after = walk.begin(l.out.w);
          else if (then != h)
            after = Ahead::of(l.qkv.head(then, a.size).w, 0);
          head(l, u % a.batch, h, m.codes, m.context, Head(a, m.tasks + thread.share * m.bytes), after);
        });
        behind(walk, m, l, next, first ? begin_with : input, only_first(l) ? y : m.end);
      }
    });
  }

  // Rows that the threads divide into blocks, as many for each: a tile that is not full
  // costs its rows, unless it is one row.
  struct Blocks {
    int64_t rows, height, count;
    Blocks(int64_t n, int64_t threads) : rows(n) {
      const int64_t parts = (n + kBlockRows * threads - 1) / (kBlockRows * threads) * threads;
      height = ((n + parts - 1) / parts + 1) / 2 * 2, count = (n + height - 1) / height;
    }
    int64_t last(int64_t block) const { return std::min(rows, (block + 1) * height); }
  };

  void run(EncoderMemory &memory) const {
    const int64_t hidden = e.hidden(), threads = std::max(1, parallel.threads);
    if (few(rows, threads)) return by_columns(memory, threads);
    const Blocks all(rows, threads), ends(e.read_first ? a.batch : rows, threads); // ends: of the last layer
    const bool divided = e.read_first && few(a.batch, threads);                    // and its columns are
    size_t bytes;
    Rows::at(*this, std::max(all.height, ends.height), nullptr, &bytes);
    bytes = std::max(bytes, Head(a, nullptr).bytes);
    Columns end{};
    const auto lay = [&](Carve &c) {
      Shared m;
      m.rows = packed || e.read_first ? c.take<float>(rows * hidden) : y;
      m.context = c.take<float>(rows * hidden);
      m.codes = Codes::take(c, rows, padded(hidden));
      m.stages = Stages::take(c, threads);
      m.tasks = c.take<char>(threads * int64_t(bytes));
      if (divided)
        end.take(c, *this, a.batch, threads, 0);
      else if (e.read_first)
        end.firsts = c.take<float>(a.batch * hidden);
      end.context = m.context;
      return m;
    };
    Carve count{0};
    lay(count);
    Carve carve{reinterpret_cast<uintptr_t>(memory.reserve(count.used))};
    const Shared m = lay(carve);
    const float *const begin_with = packed ? m.rows : x;
    m.stages.run(parallel, [&](Stages::Thread &thread) {
      char *const own = m.tasks + thread.share * int64_t(bytes);
      thread.run(all.count, [&](int64_t i, bool, bool) {
        const int64_t r = i * all.height;
        if (packed) gather(r, all.last(i), m.rows);
        enter(e.layers[0], begin_with + r * hidden, all.last(i) - r, Rows::at(*this, all.height, own).normal, m.codes.from(r));
      });
      for (size_t i = 0; i < e.layers.size(); i++) {
        const EncoderLayer &l = e.layers[i], *next = i + 1 < e.layers.size() ? &l + 1 : nullptr;
        const float *const residual = i ? m.rows : begin_with;
        const bool only = only_first(l);
        // Samples of a head one after the other: its weight stays in the cache.
        const int64_t units = a.batch * a.heads;
        thread.run(units, [&](int64_t u, bool more, bool) {
          const int64_t h = u / a.batch, then = (u + 1) / a.batch;
          Ahead after;
          if (!more)
            after = Ahead::of(l.out.w, 0);
          else if (then != h)
            after = Ahead::of(l.qkv.head(then, a.size).w, 0);
          head(l, u % a.batch, h, m.codes, m.context, Head(a, own), after);
        });
        if (only && divided) return behind({*this, thread, threads}, end, l, nullptr, residual, y);
        const Blocks &of = only ? ends : all;
        thread.run(of.count, [&](int64_t at, bool more, bool) {
          Ahead after;
          if (more)
            after = Ahead::of(l.out.w, 0);
          else if (next)
            after = Ahead::of(next->qkv.head(units * thread.share / threads / a.batch, a.size).w, 0);
          const int64_t r0 = at * of.height, r1 = of.last(at);
          if (only) first_rows(residual, r0, r1, end.firsts);
          block(l, next, only ? end.firsts : residual, m.context, r0, r1, Rows::at(*this, of.height, own), m.codes, only ? y : m.rows, after);
        });
      }
    });
  }
};

} // namespace

void encode(const Encoder &e, const Attention *kinds, size_t count, const float *x, float *y, EncoderMemory &memory, const Parallel &parallel) {
  memory.kinds.assign(kinds, kinds + count);
  bool of_each = false; // sample
  for (Attention &a : memory.kinds) a.size = e.padded_size(), of_each |= a.bias_batch != 0;
  memory.forget_keys();
  const int64_t batch = kinds->batch;
  std::vector<int64_t> &starts = memory.starts;
  starts.resize(size_t(batch + 1));
  starts[0] = 0;
  int64_t length = kinds->length;
  for (int64_t b = 0; b < batch; b++) {
    if (e.skip_padding && (b == 0 || of_each)) {
      length = 0;
      for (size_t i = 0; i < count; i++) length = std::max(length, unpadded_length(kinds[i], b));
    }
    starts[size_t(b + 1)] = starts[size_t(b)] + length;
  }
  Run{e, memory.kinds.data(), parallel, x, y, starts.data()}.run(memory);
}

} // namespace fewbit
