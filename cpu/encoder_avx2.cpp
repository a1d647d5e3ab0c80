// Compiled for AVX2 and FMA; runs only where level() says so.
#include "encoder_lanes.hpp"
#include "rows_lanes.hpp"

namespace fewbit {

const AttentionKernels attention_avx2 = FloatAttention<Lanes<8>, 6, 1>::kernels;

const Normalize normalize_avx2 = normalize_lanes<Lanes<8>>;

const Normalize rms_avx2 = rms_lanes<Lanes<8>>;

const Rotate rotate_avx2 = rotate_lanes<Lanes<8>>;

} // namespace fewbit
