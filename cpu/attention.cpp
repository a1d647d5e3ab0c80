#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bf16.hpp"
#include "level.hpp"

namespace fewbit {

KeyRange attention_keys(const float *bias, int64_t length) {
  KeyRange k{0, length};
  if (!bias) return k;
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t s = 0; s < length; s++) {
    if (std::isnan(bias[s])) return k;
    top = std::max(top, bias[s]);
  }
  if (!std::isfinite(top)) return k;
  const auto counts = [&](int64_t s) { return top - bias[s] < kMasked; };
  while (!counts(k.end - 1)) k.end--; // the largest counts
  while (!counts(k.begin)) k.begin++;
  return k;
}

bool hides_all(const float *bias, int64_t length) {
  return std::all_of(bias, bias + length, [](float v) { return v == -std::numeric_limits<float>::infinity(); });
}

void attention_rows(const AttentionKernels &k, const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory) {
  k.rows(a, b, h, r0, r1, memory);
  if (!a.zero_hidden || !a.bias) return;
  for (int64_t r = r0; r < r1; r++) {
    if (a.known.rows)
      if (const KeyRange keys = keys_of_row(a, b, h, r, attention_keys); keys.begin > 0 || keys.end < a.length) continue; // one counts
    if (hides_all(a.bias_of(b, h, r), a.length)) std::fill_n(a.out(b, r, h), a.out_size(), 0.f);
  }
}

namespace {

uint16_t &key(const Attention &a, const AttentionMemory &m, int64_t s, int64_t d) {
  return m.keys[(s / 16 * a.size_pairs() + d / 2) * 32 + s % 16 * 2 + d % 2];
}

uint16_t &value(const Attention &a, const AttentionMemory &m, int64_t s, int64_t d) {
  return m.values[(d / 16 * a.length_pairs() + s / 2) * 32 + d % 16 * 2 + s % 2];
}

size_t bytes(const Attention &a) { return AttentionMemory(a, nullptr).bytes; }

void pack(const Attention &a, int64_t b, int64_t h, void *memory) {
  const AttentionMemory m(a, memory);
  for (int64_t s = 0; s < a.length; s++)
    for (int64_t d = 0; d < a.size; d++) {
      key(a, m, s, d) = bf16_round(a.row(b, s, 1, h)[d]);
      value(a, m, s, d) = bf16_round(a.row(b, s, 2, h)[d]);
    }
}

void rows(const Attention &a, int64_t b, int64_t h, int64_t r0, int64_t r1, void *memory) {
  const AttentionMemory m(a, memory);
  KeyRange keys;
  for (int64_t r = r0; r < r1; r++) {
    const float *q = a.row(b, r, 0, h), *bias = a.bias_of(b, h, r);
    if ((r - r0) % kAttentionRows == 0) keys = keys_of_rows(a, b, h, r, std::min(kAttentionRows, r1 - r), attention_keys);
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t s = keys.begin; s < keys.end; s++) {
      float x = 0;
      for (int64_t d = 0; d < a.size; d++) x += bf16_to_float(bf16_round(q[d])) * bf16_to_float(key(a, m, s, d));
      x *= a.scale;
      if (bias) x += bias[s];
      m.scores[s] = x;
      most = std::max(most, x);
    }
    float sum = 0;
    for (int64_t s = keys.begin; s < keys.end; s++) {
      const float e = std::exp(m.scores[s] - most);
      sum += e;
      m.weights[s] = bf16_round(e);
    }
    float *y = a.out(b, r, h);
    for (int64_t d = 0; d < a.out_size(); d++) {
      float v = 0;
      for (int64_t s = keys.begin; s < keys.end; s++) v += bf16_to_float(m.weights[s]) * bf16_to_float(value(a, m, s, d));
      y[d] = v / sum;
    }
  }
}

} // namespace

const AttentionKernels attention_plain = {bytes, pack, rows};

const AttentionKernels &attention_kernels() {
#if defined(FEWBIT_AVX512_BF16)
  if (level() >= FEWBIT_CPU_AVX512_BF16) return attention_bf16;
#endif
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return attention_avx512;
#endif
#if defined(FEWBIT_AVX2)
  if (level() >= FEWBIT_CPU_AVX2) return attention_avx2;
#endif
  return attention_portable;
}

} // namespace fewbit
