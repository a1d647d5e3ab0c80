// Layers of a transformer encoder, of the projections in int8.hpp and the
// attention in attention.hpp, with the normalization behind each residual (BERT)
//
//   a = attention(project(x, qkv))           u = act(project(n, up))
//   n = normalize(project(a, out) + x)       y = normalize(project(u, down) + n)
//
// or first (ViT, CLIP's two towers):
//
//   a = attention(project(normalize(x), qkv))    u = act(project(normalize(m), up))
//   m = project(a, out) + x                      y = project(u, down) + m
//
// The normalization may be by the root of the mean square alone (RMS), a gate may be
// multiplied by what the activation gives (SwiGLU, GeGLU), and queries and keys may be
// turned by their positions (rotary.hpp).
//
// Each thread computes whole heads, from their columns of the product to their
// columns of `a`, and then whole rows of everything else: what lies between
// stays in its cache, and threads meet twice a layer. Few rows are computed by
// columns instead, so that each weight is read by one thread only. All of it is one
// loop of the threads (stages.hpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.hpp"
#include "int8.hpp"

namespace fewbit {

// The columns of a head's query, key and value make whole panels: the weights have
// columns of zeros behind those of a head whose size is no multiple of it.
inline constexpr int64_t kEncoderHeadStep = kPanel / 3;
inline constexpr int64_t kEncoderMaxLayers = 512;

struct Projection {
  Int8Weight w;
  const float *divisor = nullptr, *bias = nullptr; // [k], [n]; or nullptr

  // n of its columns; first is a multiple of kPanel.
  Projection columns(int64_t first, int64_t n) const;
  // The head's part of w [k, heads, 3, size], of a size that is a multiple of kEncoderHeadStep.
  Projection head(int64_t h, int64_t size) const { return columns(h * 3 * size, 3 * size); }
};

struct EncoderLayer {
  Projection qkv, out, up, down;
  Projection gate; // of a gated encoder
  // [hidden], of the two normalizations in their order. Without gamma[0] a layer that
  // normalizes first takes its rows as they are.
  const float *gamma[2] = {}, *beta[2] = {};
  size_t kind = 0; // which mask and positions it has
};

struct Encoder {
  std::vector<EncoderLayer> layers;
  int64_t heads = 0, size = 0, inner = 0;
  float scale = 1, epsilon = 0;
  bool normalize_first = false;
  bool rms = false;   // the normalization, whose offsets are not used
  bool gated = false; // u = act(project(n, up)) * project(n, gate)
  Activation act = Activation::gelu;
  bool skip_padding = false; // nobody reads the rows at the end of a sample that are padding
  bool read_first = false;   // y has the first row of each sample alone, the only one that the last layer computes

  int64_t hidden() const { return heads * size; }
  int64_t padded_size() const { return (size + kEncoderHeadStep - 1) / kEncoderHeadStep * kEncoderHeadStep; }
};

// How tasks 0..n-1 are run on the threads there are, in any order and at any time:
// a task may wait for what another does only when that one has begun to do it.
struct Parallel {
  void *context;
  void (*run)(void *context, size_t n, void (*task)(void *data, size_t i), void *data);
  int threads;

  template <class F> void operator()(int64_t n, const F &f) const {
    if (n == 1) return f(int64_t(0));
    run(
        context, size_t(n), [](void *data, size_t i) { (*static_cast<const F *>(data))(int64_t(i)); }, const_cast<F *>(&f));
  }
};

// Memory that is kept from call to call. Its contents are undefined.
class EncoderMemory {
public:
  std::vector<int64_t> starts; // of each sample, in rows that count, and their number
  std::vector<Attention> kinds;

  void *reserve(size_t bytes); // aligned to 64; throws std::bad_alloc
  size_t bytes() const { return bytes_; }
  void forget_keys();          // gives kinds whose rows have a bias each room for what is known of them
  ~EncoderMemory();

private:
  void *data_ = nullptr;
  size_t bytes_ = 0;
  std::vector<std::atomic<uint64_t>> known_;
};

// The length of sample b without the keys at its end that count for nothing in
// every row and head. Without any other key, and with a bias that is not finite
// at its largest, it is a.length. Rows that a.zero_hidden makes 0 see no key.
int64_t unpadded_length(const Attention &a, int64_t b);

// What layers attend by: they differ in bias and rotation alone. qkv and y are not
// used: x and y are [batch, length, hidden], with read_first y is [batch, 1, hidden]. Where
// padding is skipped, the padded rows of x are not read and those of y are 0. Throws
// std::bad_alloc.
void encode(const Encoder &e, const Attention *kinds, size_t count, const float *x, float *y, EncoderMemory &memory, const Parallel &parallel);

// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta of each row; y may be x
using Normalize = void (*)(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y);
Normalize normalize_kernel(); // the level's
void normalize_plain(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y); // the reference, in FP64
// y = x / sqrt(mean of x^2 + epsilon) * gamma; beta is not used
Normalize rms_kernel();
void rms_plain(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t n, float *y);
extern const Normalize normalize_portable, rms_portable;
#if defined(FEWBIT_AVX512)
extern const Normalize normalize_avx512, rms_avx512;
#endif
#if defined(FEWBIT_AVX2)
extern const Normalize normalize_avx2, rms_avx2;
#endif

} // namespace fewbit
