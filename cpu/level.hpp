// Which kernels this processor runs.
#pragma once
#include <cstdint>
#include <string>

#include "fewbit_cpu.h"

namespace fewbit {

// The best level of this processor, or the one that FEWBIT_CPU_LEVEL names
// where that is lower and the processor has it. Decided once.
fewbit_cpu_level level();

// Whether this library and this processor have the level: all that lie below the best
// one, but for a few.
bool has_level(int l);

// Why FEWBIT_CPU_LEVEL cannot be taken, or "".
std::string level_refused();

// What the processor and the operating system say of AMX: CPUID, EDX of leaf 7 and
// three registers of leaf 0x1d for palette 1, and XCR0.
struct TileSupport {
  uint32_t leaf7_edx = 0, eax = 0, ebx = 0, ecx = 0;
  uint64_t xcr0 = 0;

  bool usable() const; // eight tiles of 16 rows of 64 bytes, products of INT8, and threads keep them
};

// Whether this process may use tiles: it asks the operating system, which keeps them
// for threads only then. Decided once.
bool has_tiles();

// Bytes of a core's first-level data cache, or 0 where the operating system does not say.
int64_t first_level_bytes();

const char *level_name(fewbit_cpu_level l);

} // namespace fewbit
