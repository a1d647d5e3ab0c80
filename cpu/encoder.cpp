#include "encoder.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "level.hpp"
#include "rotary.hpp"

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

EncoderMemory::~EncoderMemory() { std::free(data_); }

int64_t unpadded_length(const Attention &a, int64_t b) {
  int64_t length = a.bias ? 0 : a.length;
  const int64_t heads = a.bias_head ? a.heads : 1, rows = a.bias_row ? a.length : 1;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t r = rows; r-- > 0 && length < a.length;) { // the last row of a causal mask sees the most
      const float *bias = a.bias_of(b, h, r);
      if (!a.zero_hidden || !hides_all(bias, a.length)) length = std::max(length, attention_end(bias, a.length));
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

// Takes parts of memory one after the other; without memory it counts.
struct Carve {
  uintptr_t base;
  size_t used = 0;
  template <class T> T *take(int64_t n) {
    T *const at = reinterpret_cast<T *>(base + used);
    used += (size_t(n) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

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

// Units of work 0..n-1 in a share for each thread, which a thread takes in every
// phase again: what it wrote then lies in its own cache. Who has done its own
// share helps with the others'. Nobody waits.
class Shares {
public:
  static Shares take(Carve &c, int64_t threads) {
    Shares s;
    s.shares_ = c.take<Share>(threads), s.count_ = threads;
    return s;
  }

  // Calls f(unit, share, more, first) for each unit on the threads; at no time do
  // two calls have the same share. more: the next unit follows there; first: the
  // share's first call.
  template <class F> void run(const Parallel &parallel, int64_t n, const F &f) const {
    for (int64_t i = 0; i < count_; i++) {
      Share *const s = new (shares_ + i) Share;
      s->next = n * i / count_, s->end = n * (i + 1) / count_;
    }
    parallel(std::min(count_, n), [&](int64_t) {
      const int64_t mine = claim();
      bool first = true;
      for (int64_t i = 0; i < count_; i++) {
        Share &s = shares_[(mine + i) % count_];
        for (int64_t unit; (unit = s.next.fetch_add(1, std::memory_order_relaxed)) < s.end; first = false) f(unit, mine, unit + 1 < s.end, first);
      }
    });
  }

private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    std::atomic<bool> taken{false};
    int64_t end = 0;
  };
  Share *shares_ = nullptr;
  int64_t count_ = 0;

  // A share that no other task of this phase has, the one of the last time if
  // it is free. There are at least as many as tasks.
  int64_t claim() const {
    thread_local int64_t last = 0;
    for (int64_t i = last < count_ ? last : 0;; i = (i + 1) % count_)
      if (!shares_[i].taken.exchange(true, std::memory_order_relaxed)) return last = i;
  }
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
    float *qkv, *y;
    void *attention;
    size_t bytes;
    Head(const Attention &a, void *memory) {
      Carve c{reinterpret_cast<uintptr_t>(memory)};
      qkv = c.take<float>(a.length * 3 * a.size);
      y = c.take<float>(a.length * a.size);
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
    Shares shares;
    char *tasks; // of each share
  };

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

  // Head h of sample b: from the codes of its rows to its columns of `context`.
  void head(const EncoderLayer &l, int64_t b, int64_t h, const Codes &codes, float *context, const Head &m, Ahead after) const {
    const Projection p = l.qkv.head(h, a.size);
    const int64_t r = starts[b], length = starts[b + 1] - r;
    multiply(p, codes.codes + r * p.w.padded_k(), codes.scales + r, length, 0, p.w.panel_count(), Activation::none, nullptr, m.qkv, after);
    Attention one = kinds[l.kind];
    if (const Rotation &t = one.rotation; t.cos) rotate(t.cos + b * t.batch, t.sin + b * t.batch, t.columns, length, m.qkv, 3 * a.size, a.size);
    one.batch = one.heads = 1, one.length = length;
    one.qkv = m.qkv, one.y = m.y;
    one.bias = kinds[l.kind].bias_of(b, h, 0);
    attend.pack(one, 0, 0, m.attention);
    attention_rows(attend, one, 0, 0, 0, length, m.attention);
    for (int64_t i = 0; i < length; i++) std::copy_n(m.y + i * a.size, e.size, context + (r + i) * e.hidden() + h * e.size);
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
    else if (packed)
      scatter(result, r0, r1);
  }

  // What a share works in when the columns are divided: all rows of what stands
  // before the products, which every share computes for itself.
  struct Columns {
    Codes codes;
    float *x, *middle; // of the layers x_of and middle_of
    float *side;
    int64_t *x_of, *middle_of;
    static Columns take(Carve &c, const Run &run) {
      Columns m;
      m.codes = Codes::take(c, run.rows, padded(std::max(run.e.hidden(), run.e.inner)));
      m.x = c.take<float>(run.rows * run.e.hidden()), m.middle = c.take<float>(run.rows * run.e.hidden());
      m.x_of = c.take<int64_t>(2), m.middle_of = m.x_of + 1;
      m.side = c.take<float>(run.rows * run.gate_columns());
      return m;
    }
  };

  void by_columns(EncoderMemory &memory, int64_t threads) const {
    const int64_t hidden = e.hidden(), head_bytes = int64_t(Head(a, nullptr).bytes);
    const bool first = e.normalize_first;
    Carve one{0};
    Columns::take(one, *this);
    const int64_t bytes = int64_t(one.used) + head_bytes;
    struct {
      float *in, *context, *middle, *end, *up;
      Shares shares;
      char *tasks;
    } m;
    const auto lay = [&](Carve c) {
      m.in = c.take<float>(packed ? rows * hidden : 0);
      m.context = c.take<float>(rows * hidden), m.middle = c.take<float>(rows * hidden), m.end = c.take<float>(rows * hidden);
      m.up = c.take<float>(rows * e.inner);
      m.shares = Shares::take(c, threads);
      m.tasks = c.take<char>(threads * bytes);
      return c.used;
    };
    lay({reinterpret_cast<uintptr_t>(memory.reserve(lay({0})))});
    const auto own = [&](int64_t share) {
      Carve c{reinterpret_cast<uintptr_t>(m.tasks + share * bytes)};
      return Columns::take(c, *this);
    };
    for (int64_t i = 0; i < threads; i++) *own(i).x_of = *own(i).middle_of = -1;
    if (packed) gather(0, rows, m.in);
    for (int64_t i = 0; i < int64_t(e.layers.size()); i++) {
      const EncoderLayer &l = e.layers[size_t(i)];
      // What the products of queries and Up take, and what the residuals add.
      const float *const begin_with = i ? m.end : packed ? m.in : x;
      const auto input = [&](const Columns &c) -> const float * {
        if (first ? !l.gamma[0] : i == 0) return begin_with;
        if (*c.x_of != i) {
          const EncoderLayer &of = first ? l : e.layers[size_t(i - 1)];
          normalize(begin_with, of.gamma[!first], of.beta[!first], e.epsilon, rows, hidden, c.x);
          *c.x_of = i;
        }
        return c.x;
      };
      const auto middle = [&](const Columns &c) -> const float * {
        if (*c.middle_of != i) {
          normalize(m.middle, l.gamma[first], l.beta[first], e.epsilon, rows, hidden, c.middle);
          *c.middle_of = i;
        }
        return c.middle;
      };
      const auto add_input = [&](const Columns &c) { return first ? begin_with : input(c); };
      const auto add_middle = [&](const Columns &c) { return first ? m.middle : middle(c); };
      // The panel of w at which a share begins.
      const auto begin = [&](const Int8Weight &w, int64_t share) { return Ahead::of(w, w.panel_count() * share / threads); };
      const auto product = [&](const Projection &p, const Projection *next, Activation act, float *to, const auto &prepare, const auto &residual) {
        m.shares.run(parallel, p.w.panel_count(), [&](int64_t panel, int64_t share, bool more, bool begins) {
          const Columns c = own(share);
          if (begins) quantize(p, prepare(c), 0, rows, c.codes);
          Ahead after;
          if (!more && next) after = begin(next->w, share);
          if (e.gated && &p == &l.up)
            multiply_gate(l, c.codes, rows, panel, panel + 1, to, c.side, after);
          else
            multiply(p, c.codes.codes, c.codes.scales, rows, panel, panel + 1, act, residual(c), to, after);
        });
      };
      m.shares.run(parallel, a.batch * a.heads, [&](int64_t u, int64_t share, bool more, bool begins) {
        const Columns c = own(share);
        if (begins) quantize(l.qkv, input(c), 0, rows, c.codes);
        const int64_t h = u / a.batch, then = (u + 1) / a.batch;
        Ahead after;
        if (!more)
          after = begin(l.out.w, share);
        else if (then != h)
          after = Ahead::of(l.qkv.head(then, a.size).w, 0);
        head(l, u % a.batch, h, c.codes, m.context, Head(a, m.tasks + (share + 1) * bytes - head_bytes), after);
      });
      const auto none = [](const Columns &) -> const float * { return nullptr; };
      product(l.out, &l.up, Activation::none, m.middle, [&](const Columns &) { return m.context; }, add_input);
      product(l.up, &l.down, e.act, m.up, middle, none);
      product(l.down, i + 1 < int64_t(e.layers.size()) ? &e.layers[size_t(i + 1)].qkv : nullptr, Activation::none, m.end, [&](const Columns &) { return m.up; }, add_middle);
    }
    const EncoderLayer &l = e.layers.back();
    if (!first) normalize(m.end, l.gamma[1], l.beta[1], e.epsilon, rows, hidden, m.end);
    scatter(m.end, 0, rows);
  }

  void run(EncoderMemory &memory) const {
    const int64_t hidden = e.hidden(), threads = std::max(1, parallel.threads);
    if (threads > 1 && rows < kTileRows * kColumnTiles * threads) return by_columns(memory, threads);
    const int64_t parts = (rows + kBlockRows * threads - 1) / (kBlockRows * threads) * threads;
    // As many rows for each thread: a tile that is not full costs its rows, unless it is one row.
    const int64_t height = ((rows + parts - 1) / parts + 1) / 2 * 2, blocks = (rows + height - 1) / height;
    size_t bytes;
    Rows::at(*this, height, nullptr, &bytes);
    bytes = std::max(bytes, Head(a, nullptr).bytes);
    const auto lay = [&](Carve &c) {
      Shared m;
      m.rows = packed ? c.take<float>(rows * hidden) : y;
      m.context = c.take<float>(rows * hidden);
      m.codes = Codes::take(c, rows, padded(hidden));
      m.shares = Shares::take(c, threads);
      m.tasks = c.take<char>(threads * int64_t(bytes));
      return m;
    };
    Carve count{0};
    lay(count);
    Carve carve{reinterpret_cast<uintptr_t>(memory.reserve(count.used))};
    const Shared m = lay(carve);
    const auto own = [&](int64_t share) { return m.tasks + share * int64_t(bytes); };
    const auto last = [&](int64_t block) { return std::min(rows, (block + 1) * height); };
    const float *const begin_with = packed ? m.rows : x;
    m.shares.run(parallel, blocks, [&](int64_t i, int64_t share, bool, bool) {
      const int64_t r = i * height;
      if (packed) gather(r, last(i), m.rows);
      enter(e.layers[0], begin_with + r * hidden, last(i) - r, Rows::at(*this, height, own(share)).normal, m.codes.from(r));
    });
    for (size_t i = 0; i < e.layers.size(); i++) {
      const EncoderLayer &l = e.layers[i], *next = i + 1 < e.layers.size() ? &l + 1 : nullptr;
      // Samples of a head one after the other: its weight stays in the cache.
      const int64_t units = a.batch * a.heads;
      m.shares.run(parallel, units, [&](int64_t u, int64_t share, bool more, bool) {
        const int64_t h = u / a.batch, then = (u + 1) / a.batch;
        Ahead after;
        if (!more)
          after = Ahead::of(l.out.w, 0);
        else if (then != h)
          after = Ahead::of(l.qkv.head(then, a.size).w, 0);
        head(l, u % a.batch, h, m.codes, m.context, Head(a, own(share)), after);
      });
      m.shares.run(parallel, blocks, [&](int64_t at, int64_t share, bool more, bool) {
        Ahead after;
        if (more)
          after = Ahead::of(l.out.w, 0);
        else if (next)
          after = Ahead::of(next->qkv.head(units * share / threads / a.batch, a.size).w, 0);
        block(l, next, i ? m.rows : begin_with, m.context, at * height, last(at), Rows::at(*this, height, own(share)), m.codes, m.rows, after);
      });
    }
  }
};

} // namespace

void encode(const Encoder &e, const Attention *kinds, size_t count, const float *x, float *y, EncoderMemory &memory, const Parallel &parallel) {
  memory.kinds.assign(kinds, kinds + count);
  bool of_each = false; // sample
  for (Attention &a : memory.kinds) a.size = e.padded_size(), of_each |= a.bias_batch != 0;
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
