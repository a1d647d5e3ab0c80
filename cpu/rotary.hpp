// Positions by rotation, as Hugging Face's exports have them (ModernBERT, nomic): of
// the first n columns of a head, the halves lo and hi of a row become
//
//   lo cos[0..n/2) - hi sin[0..n/2)      hi cos[n/2..n) + lo sin[n/2..n)
//
// each operation rounded by itself, so that all levels give the same bits.
#pragma once
#include <cstdint>

namespace fewbit {

// Turns rows 0..rows-1 of queries, which begin `stride` elements behind each other, and of
// keys, which begin `keys` elements behind the queries. cos and sin are [rows, n].
using Rotate = void (*)(const float *cos, const float *sin, int64_t n, int64_t rows, float *x, int64_t stride, int64_t keys);
Rotate rotate_kernel(); // the level's
void rotate_plain(const float *cos, const float *sin, int64_t n, int64_t rows, float *x, int64_t stride, int64_t keys); // the reference
extern const Rotate rotate_portable;
#if defined(FEWBIT_AVX512)
extern const Rotate rotate_avx512;
#endif
#if defined(FEWBIT_AVX2)
extern const Rotate rotate_avx2;
#endif

} // namespace fewbit
