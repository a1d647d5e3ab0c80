#include "level.hpp"

#include <cstdlib>
#include <cstring>

namespace fewbit {

namespace {

fewbit_cpu_level detect() {
#if defined(FEWBIT_AVX512)
  // libgcc asks the operating system as well (XGETBV) before it says avx512f.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    return FEWBIT_CPU_AVX512_BF16;
#endif
  return FEWBIT_CPU_PLAIN;
}

} // namespace

fewbit_cpu_level level() {
  static const fewbit_cpu_level l = [] {
    const char *wanted = std::getenv("FEWBIT_CPU_LEVEL");
    return wanted && std::strcmp(wanted, level_name(FEWBIT_CPU_PLAIN)) == 0 ? FEWBIT_CPU_PLAIN : detect();
  }();
  return l;
}

const char *level_name(fewbit_cpu_level l) { return l == FEWBIT_CPU_AVX512_BF16 ? "avx512-bf16" : "plain"; }

} // namespace fewbit
