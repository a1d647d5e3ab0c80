#include "solve.hpp"

#include "level.hpp"

namespace fewbit {

SolveKernels solve_kernels() {
#if defined(FEWBIT_AVX512)
  if (level() >= FEWBIT_CPU_AVX512_VNNI) return solve_avx512;
#endif
  return {};
}

} // namespace fewbit
