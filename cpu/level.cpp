#include "level.hpp"

#include <cstdlib>
#include <cstring>

#if defined(FEWBIT_ARM_DOT)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fewbit {

namespace {

fewbit_cpu_level detect() {
#if defined(FEWBIT_AVX512) || defined(FEWBIT_AVX2) || defined(FEWBIT_AVX2_VNNI)
  // libgcc asks the operating system as well (XGETBV) before it says avx512f or
  // avx2.
  __builtin_cpu_init();
#endif
#if defined(FEWBIT_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    return FEWBIT_CPU_AVX512_BF16;
#endif
#if defined(FEWBIT_AVX2_VNNI)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avxvnni")) return FEWBIT_CPU_AVX2_VNNI;
#endif
#if defined(FEWBIT_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return FEWBIT_CPU_AVX2;
#endif
#if defined(FEWBIT_ARM_DOT)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return FEWBIT_CPU_ARM_DOT;
#endif
  return FEWBIT_CPU_PLAIN;
}

constexpr const char *names[] = {"plain", "arm-dot", "avx2", "avx2-vnni", "avx512-bf16"}; // by level

// A processor of a higher level has the instructions of the lower ones, but that
// AVX2 with VNNI is not part of AVX-512 on every one.
bool has(fewbit_cpu_level l) {
#if defined(FEWBIT_AVX2_VNNI)
  if (l == FEWBIT_CPU_AVX2_VNNI) return __builtin_cpu_supports("avxvnni");
#else
  if (l == FEWBIT_CPU_AVX2_VNNI) return false;
#endif
#if !defined(FEWBIT_AVX2)
  if (l == FEWBIT_CPU_AVX2) return false;
#endif
#if !defined(FEWBIT_ARM_DOT)
  if (l == FEWBIT_CPU_ARM_DOT) return false;
#endif
  return true;
}

} // namespace

fewbit_cpu_level level() {
  static const fewbit_cpu_level l = [] {
    const fewbit_cpu_level best = detect();
    const char *wanted = std::getenv("FEWBIT_CPU_LEVEL");
    for (int i = FEWBIT_CPU_PLAIN; wanted && i < best; i++)
      if (std::strcmp(wanted, names[i]) == 0 && has(fewbit_cpu_level(i))) return fewbit_cpu_level(i);
    return best;
  }();
  return l;
}

const char *level_name(fewbit_cpu_level l) { return names[l]; }

} // namespace fewbit
