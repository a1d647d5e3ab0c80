#include "rotary.hpp"

#include "level.hpp"

namespace fewbit {

void rotate_plain(const float *cos, const float *sin, int64_t n, int64_t rows, float *x, int64_t stride, int64_t keys) {
  const int64_t half = n / 2;
  for (; rows > 0; rows--, cos += n, sin += n, x += stride)
    for (float *v : {x, x + keys})
      for (int64_t i = 0; i < half; i++) {
        const float lo = v[i], hi = v[half + i];
        v[i] = lo * cos[i] - hi * sin[i];
        v[half + i] = hi * cos[half + i] + lo * sin[half + i];
      }
}

Rotate rotate_kernel() {
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return rotate_avx512;
#endif
#if defined(FEWBIT_AVX2)
  if (level() >= FEWBIT_CPU_AVX2) return rotate_avx2;
#endif
  return rotate_portable;
}

} // namespace fewbit
