// Compiled for AVX-512; runs only where level() says so.
#include "encoder_lanes.hpp"
#include "rows_lanes.hpp"

namespace fewbit {

const AttentionKernels attention_avx512 = FloatAttention<Lanes<16>, 6, 4>::kernels;

const Normalize normalize_avx512 = normalize_lanes<Lanes<16>>;

const Normalize rms_avx512 = rms_lanes<Lanes<16>>;

const Rotate rotate_avx512 = rotate_lanes<Lanes<16>>;

} // namespace fewbit
