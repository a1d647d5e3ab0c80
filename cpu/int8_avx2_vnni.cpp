// Compiled for AVX2 with VNNI; runs only where level() says so.
#include "int8_ymm.hpp"

namespace fewbit {

namespace {

struct Vnni {
  using Weight = __m256i;
  using Codes = __m256i;
  static constexpr int vectors = 3; // 4 x 3 accumulators, 3 weights and the codes: 16 registers

  static FEWBIT_INLINE Weight weight(__m256i b) { return b; }
  static FEWBIT_INLINE Codes codes(__m256i a) { return a; }
  static FEWBIT_INLINE __m256i add(__m256i acc, Codes a, Weight w) { return _mm256_dpbusd_avx_epi32(acc, a, w); }
};

} // namespace

const Int8Kernels int8_avx2_vnni = {quantize, multiply<Vnni>};

} // namespace fewbit
