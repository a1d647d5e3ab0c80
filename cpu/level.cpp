#include "level.hpp"

#include <cstdlib>
#include <cstring>
#include <iterator>

#if defined(FEWBIT_ARM_DOT)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fewbit {

namespace {

constexpr const char *names[] = {"plain", "arm-dot", "arm-i8mm", "avx2", "avx2-vnni", "avx512-vnni", "avx512-bf16"}; // by level

} // namespace

// AVX2 with VNNI is not part of AVX-512 on every processor.
bool has_level(int l) {
#if defined(FEWBIT_AVX2)
  __builtin_cpu_init();
#endif
  switch (l) {
  // libgcc asks the operating system as well (XGETBV) before it says avx512f or
  // avx2.
#if defined(FEWBIT_AVX512_BF16)
  case FEWBIT_CPU_AVX512_BF16: return has_level(FEWBIT_CPU_AVX512_VNNI) && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(FEWBIT_AVX512)
  case FEWBIT_CPU_AVX512_VNNI:
    return has_level(FEWBIT_CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(FEWBIT_AVX2_VNNI)
  case FEWBIT_CPU_AVX2_VNNI: return has_level(FEWBIT_CPU_AVX2) && __builtin_cpu_supports("avxvnni");
#endif
#if defined(FEWBIT_AVX2)
  case FEWBIT_CPU_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if defined(FEWBIT_ARM_I8MM)
  case FEWBIT_CPU_ARM_I8MM: return has_level(FEWBIT_CPU_ARM_DOT) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#endif
#if defined(FEWBIT_ARM_DOT)
  case FEWBIT_CPU_ARM_DOT: return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
  default: return l == FEWBIT_CPU_PLAIN;
  }
}

fewbit_cpu_level level() {
  static const fewbit_cpu_level l = [] {
    int best = int(std::size(names)) - 1;
    while (!has_level(best)) best--;
    const char *wanted = std::getenv("FEWBIT_CPU_LEVEL");
    for (int i = FEWBIT_CPU_PLAIN; wanted && i < best; i++)
      if (std::strcmp(wanted, names[i]) == 0 && has_level(i)) return fewbit_cpu_level(i);
    return fewbit_cpu_level(best);
  }();
  return l;
}

const char *level_name(fewbit_cpu_level l) { return names[l]; }

} // namespace fewbit
