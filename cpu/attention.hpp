// Attention of an encoder: Y = softmax(scale Q K' + bias) V by heads, of the
// three projections as they stand side by side. Sums, softmax and division are
// FP32; where the processor multiplies in BF16, Q, K, V and the weights behind the
// softmax are rounded to it.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fewbit {

inline constexpr int64_t kMaxHeadSize = 1024;
inline constexpr int64_t kMaxLength = 1 << 17; // a head's keys and values stay below 1 GiB

// Positions of queries and keys: the first `columns` of each head are turned, rotary.hpp.
struct Rotation {
  const float *cos = nullptr, *sin = nullptr; // [batch|1, length, columns]; or nullptr
  int64_t batch = 0;                          // stride in elements, 0 where one serves all
  int64_t columns = 0;                        // even, at most a head's size
};

// What attention_keys gave for the rows of a bias, kept from head to head and from layer to
// layer: reading a mask takes longer than a window of it does. The thread that needs a row
// first fills it in; two that do write the same.
struct KnownKeys {
  std::atomic<uint64_t> *rows = nullptr; // begin << 32 | end, 0 where it is not known; or nullptr
  int64_t batch = 0, head = 0;           // strides in elements
};

struct Attention {
  const float *qkv = nullptr;  // [batch, length, 3, heads, size]; without the queries 2, not 3
  const float *q = nullptr;    // [batch, queries, heads, size] of another sequence; or nullptr
  const float *bias = nullptr; // [batch|1, heads|1, rows|1, length], added to the scores; or nullptr
  int64_t bias_batch = 0, bias_head = 0, bias_row = 0; // its strides in elements, 0 where one serves all
  float *y = nullptr;          // [batch, rows, heads, size]
  int64_t y_row = 0, y_size = 0; // or elements from row to row, and columns of a head that are written
  int64_t batch = 0, length = 0, heads = 0, size = 0;
  int64_t queries = 0; // of q
  float scale = 1;
  Rotation rotation;        // kernels take queries and keys that are turned already
  KnownKeys known;
  bool zero_hidden = false; // a row whose every key has a bias of minus infinity gives 0, not NaN

  int64_t width() const { return heads * size; }
  int64_t rows() const { return q ? queries : length; } // of y
  const float *row(int64_t b, int64_t r, int part, int64_t h) const {
    if (!q) return qkv + ((b * length + r) * 3 + part) * width() + h * size;
    return part ? qkv + ((b * length + r) * 2 + part - 1) * width() + h * size : q + (b * queries + r) * width() + h * size;
  }
  int64_t out_row() const { return y_row ? y_row : width(); }
  int64_t out_size() const { return y_size ? y_size : size; }
  float *out(int64_t b, int64_t r, int64_t h) const { return y + (b * rows() + r) * out_row() + h * out_size(); }
  const float *bias_of(int64_t b, int64_t h, int64_t r) const {
    return bias ? bias + b * bias_batch + h * bias_head + r * bias_row : nullptr;
  }
  // Numbers of pairs and of vectors of 16 that hold `size` and `length`.
  int64_t size_pairs() const { return (size + 1) / 2; }
  int64_t length_pairs() const { return (length + 1) / 2; }
  int64_t size_vectors() const { return (size + 15) / 16; }
  int64_t length_vectors() const { return (length + 15) / 16; }
};

inline constexpr int64_t kAttentionRows = 6; // computed together

// A key whose bias is smaller by this than the row's largest counts for nothing:
// exporters write the lowest float, minus infinity or -10000.
inline constexpr float kMasked = 10000;

// A row's keys from the first that counts to behind the last, by its bias [length] or
// nullptr. All, where the bias has a NaN or is infinite at its largest. Kernels leave
// out the keys before and behind those of kAttentionRows rows: half of a causal mask,
// padding, and what is outside of a window.
struct KeyRange {
  int64_t begin = 0, end = 0;
};
KeyRange attention_keys(const float *bias, int64_t length);

// Those of row r as they are known, or by `of`, which is attention_keys or as good.
template <class Of> KeyRange keys_of_row(const Attention &a, int64_t b, int64_t h, int64_t r, const Of &of) {
  std::atomic<uint64_t> *const known = a.known.rows ? a.known.rows + b * a.known.batch + h * a.known.head + r : nullptr;
  if (known)
    if (const uint64_t k = known->load(std::memory_order_relaxed)) return {int64_t(k >> 32), int64_t(k & 0xffffffff)};
  const KeyRange k = of(a.bias_of(b, h, r), a.length);
  if (known) known->store(uint64_t(k.begin) << 32 | uint64_t(k.end), std::memory_order_relaxed);
  return k;
}

// Those of rows [r,r + count) together, from a whole vector of 16 on, so that sums keep
// their order.
template <class Of> KeyRange keys_of_rows(const Attention &a, int64_t b, int64_t h, int64_t r, int64_t count, const Of &of) {
  KeyRange all{a.length, 0};
  for (int64_t i = 0; i < (a.bias_row ? count : 1); i++) {
    const KeyRange k = keys_of_row(a, b, h, r + i, of);
    all = {std::min(all.begin, k.begin), std::max(all.end, k.end)};
  }
  return {all.begin / 16 * 16, all.end};
}

// What one thread works in where operands are BF16: the keys and values of a head,
// then the queries, scores and weights of kAttentionRows rows. All lie on 64 bytes.
//
//   keys    [vector of 16 keys][pair of a head's size][key][2]
//   values  [vector of a head's size][pair of keys][column][2]
struct AttentionMemory {
  uint16_t *keys, *values, *queries, *weights;
  float *scores;
  size_t bytes;

  AttentionMemory(const Attention &a, void *memory) {
    bytes = 0;
    const auto take = [&](int64_t n) { // without memory only counts
      const uintptr_t at = reinterpret_cast<uintptr_t>(memory) + bytes;
      bytes += (size_t(n) + 63) / 64 * 64;
      return at;
    };
    keys = reinterpret_cast<uint16_t *>(take(a.length_vectors() * a.size_pairs() * 64));
    values = reinterpret_cast<uint16_t *>(take(a.size_vectors() * a.length_pairs() * 64));
    queries = reinterpret_cast<uint16_t *>(take(kAttentionRows * a.size_vectors() * 32));
    weights = reinterpret_cast<uint16_t *>(take(kAttentionRows * a.length_vectors() * 32));
    scores = reinterpret_cast<float *>(take(kAttentionRows * a.length_vectors() * 64));
  }
};

struct AttentionKernels {
  // Of memory, aligned to 64, that pack fills and rows works in.
  size_t (*bytes)(const Attention &a);
  // Converts the keys and values of head h of sample b.
  void (*pack)(const Attention &a, int64_t b, int64_t h, void *memory);
  // Rows [r0,r1) of its output. Other cuts than at multiples of kAttentionRows
  // change what a hidden key or value that is no number reaches, and nothing else.
  void (*rows)(const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory);
};

extern const AttentionKernels attention_plain;    // in BF16, the reference of attention_bf16
extern const AttentionKernels attention_portable; // in FP32
#if defined(FEWBIT_AVX512_BF16)
extern const AttentionKernels attention_bf16;
#endif
#if defined(FEWBIT_AVX512)
extern const AttentionKernels attention_avx512;
#endif
#if defined(FEWBIT_AVX2)
extern const AttentionKernels attention_avx2;
#endif
const AttentionKernels &attention_kernels(); // the level's

// Whether the bias [length] is minus infinity for every key.
bool hides_all(const float *bias, int64_t length);

// k.rows, and the zeros that a.zero_hidden asks for.
void attention_rows(const AttentionKernels &k, const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory);

} // namespace fewbit
