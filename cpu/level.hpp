// Which kernels this processor runs.
#pragma once
#include "fewbit_cpu.h"

namespace fewbit {

// The best level of this processor, or the one that FEWBIT_CPU_LEVEL names
// where that is lower and the processor has it. Decided once.
fewbit_cpu_level level();

// Whether this library and this processor have the level: all that lie below the best
// one, but for a few.
bool has_level(int l);

const char *level_name(fewbit_cpu_level l);

} // namespace fewbit
