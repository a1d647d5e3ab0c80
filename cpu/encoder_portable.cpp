// In what every processor of the architecture has: SSE2 on x86, NEON on Arm.
#include "encoder_lanes.hpp"
#include "rows_lanes.hpp"

namespace fewbit {

#if defined(__aarch64__)
constexpr int kRows = 6; // of 32 registers
#else
constexpr int kRows = 2; // of 16
#endif

const AttentionKernels attention_portable = FloatAttention<Lanes<4>, kRows, 1>::kernels;

const Normalize normalize_portable = normalize_lanes<Lanes<4>>;

const Normalize rms_portable = rms_lanes<Lanes<4>>;

const Rotate rotate_portable = rotate_lanes<Lanes<4>>;

} // namespace fewbit
