// Compiled for AVX2; runs only where level() says so. VPMADDUBSW would be
// shorter, but its sums of two products saturate at 16 bits: codes and weights
// are widened first, and every sum is exact.
#include "int8_ymm.hpp"

namespace fewbit {

namespace {

struct Widened {
  // Bytes 0 and 2 of each four, and 1 and 3, as 16-bit numbers.
  struct Weight {
    __m256i even, odd;
  };
  using Codes = Weight;
  static constexpr int vectors = 2; // 4 x 2 accumulators, 4 weights and 2 codes: of 16 registers

  static FEWBIT_INLINE Weight weight(__m256i b) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
  }
  static FEWBIT_INLINE Codes codes(__m256i a) {
    return {_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(a, 8)};
  }
  static FEWBIT_INLINE __m256i add(__m256i acc, const Codes &a, const Weight &w) {
    return _mm256_add_epi32(_mm256_add_epi32(acc, _mm256_madd_epi16(a.even, w.even)), _mm256_madd_epi16(a.odd, w.odd));
  }
};

} // namespace

const Int8Kernels int8_avx2 = {quantize, multiply<Widened>};

} // namespace fewbit
