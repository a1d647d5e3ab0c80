#include "level.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include <unistd.h>

#if defined(FEWBIT_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#if defined(FEWBIT_ARM_DOT)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fewbit {

namespace {

constexpr const char kLevelVariable[] = "FEWBIT_CPU_LEVEL";
constexpr const char *names[] = {"plain", "arm-dot", "arm-i8mm", "avx2", "avx2-vnni", "avx512-vnni", "avx512-bf16", "amx"}; // by level

} // namespace

bool TileSupport::usable() const {
  constexpr uint32_t int8 = 1u << 25, tile = 1u << 24; // AMX-INT8, AMX-TILE
  constexpr uint64_t config = 1u << 17, data = 1u << 18; // the state of TILECFG and TILEDATA
  constexpr uint32_t tile_bytes = 1024, row_bytes = 64, tiles = 8, rows = 16;
  return (leaf7_edx & int8) && (leaf7_edx & tile) && (xcr0 & config) && (xcr0 & data) && eax >> 16 >= tile_bytes &&
         (ebx & 0xffff) >= row_bytes && ebx >> 16 >= tiles && (ecx & 0xffff) >= rows;
}

bool has_tiles() {
#if defined(FEWBIT_AMX)
  static const bool has = [] {
    TileSupport s;
    uint32_t eax, ebx, ecx, edx;
    constexpr uint32_t osxsave = 1u << 27;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return false; // XGETBV
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &s.leaf7_edx)) return false;
    if (!__get_cpuid_count(0x1d, 1, &s.eax, &s.ebx, &s.ecx, &edx)) return false;
    asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    s.xcr0 = uint64_t(edx) << 32 | eax;
    if (!s.usable()) return false;
    // Linux gives a process the memory for tiles when it asks, since 5.16. It refuses
    // where a thread's stack for signals is too small for them.
    constexpr long request = 0x1023, data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, data) == 0;
  }();
  return has;
#else
  return false;
#endif
}

// AVX2 with VNNI is not part of AVX-512 on every processor.
bool has_level(int l) {
#if defined(FEWBIT_AVX2)
  __builtin_cpu_init();
#endif
  switch (l) {
  // libgcc asks the operating system as well (XGETBV) before it says avx512f or
  // avx2.
#if defined(FEWBIT_EMULATE_AMX)
  case FEWBIT_CPU_AMX: return has_level(FEWBIT_CPU_AVX512_BF16);
#elif defined(FEWBIT_AMX)
  case FEWBIT_CPU_AMX: return has_level(FEWBIT_CPU_AVX512_BF16) && has_tiles();
#endif
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
    const char *wanted = std::getenv(kLevelVariable);
    int best = int(std::size(names)) - 1;
    for (int i = FEWBIT_CPU_PLAIN; wanted && i <= best; i++)
      if (std::strcmp(wanted, names[i]) == 0 && has_level(i)) return fewbit_cpu_level(i);
    while (!has_level(best)) best--;
    return fewbit_cpu_level(best);
  }();
  return l;
}

std::string level_refused() {
  const char *wanted = std::getenv(kLevelVariable);
  if (!wanted || !*wanted || std::strcmp(wanted, level_name(level())) == 0) return "";
  return std::string(kLevelVariable) + "=" + wanted + " cannot be taken: this processor, or the library, has no such level; without the variable it runs at " +
         level_name(level());
}

int64_t first_level_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t bytes = std::max(0L, sysconf(_SC_LEVEL1_DCACHE_SIZE));
  return bytes;
#else
  return 0;
#endif
}

const char *level_name(fewbit_cpu_level l) { return names[l]; }

} // namespace fewbit
