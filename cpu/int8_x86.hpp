// What quantizing a row ends with on x86, whatever the width of its vectors.
// Included only by files compiled for AVX2 or above.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "int8.hpp"
#include "math_constants.hpp"

namespace fewbit {
namespace {

// The scale of a row of kp codes from its least value and the width of its range. A
// row that holds a strange value, or is wider than floats are, is no number: its
// codes are 0, and the result is false.
FEWBIT_INLINE bool scale_row(float low, float width, bool strange, int64_t kp, uint8_t *codes, RowScale *to) {
  if (strange || !(width <= std::numeric_limits<float>::max())) {
    *to = {std::numeric_limits<float>::quiet_NaN(), 0};
    std::fill(codes, codes + kp, uint8_t(0));
    return false;
  }
  float scale = width / 255;
  if (scale == 0) scale = 1;
  // Conversions round to nearest even, as the formula does.
  *to = {scale, std::min(std::max(_mm_cvtss_si32(_mm_set_ss(-low / scale)), 0), 255)};
  return true;
}

} // namespace
} // namespace fewbit
