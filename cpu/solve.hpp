// Inner loops of the weight solvers, whose reference are the loops in Go
// (internal/quant): the same numbers bit for bit, since each column is a chain of
// operations of its own and a vector holds columns.
#pragma once
#include <cstdint>

#include "fewbit_cpu.h"

namespace fewbit {

struct SolveKernels {
  decltype(fewbit_cpu_api::round_strip) round_strip = nullptr;
  decltype(fewbit_cpu_api::clip_scales) clip_scales = nullptr;
};

#if defined(FEWBIT_AVX512)
extern const SolveKernels solve_avx512;
#endif
SolveKernels solve_kernels(); // the level's; empty where it has none

} // namespace fewbit
