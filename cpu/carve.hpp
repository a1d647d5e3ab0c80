// Memory in parts.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fewbit {

// Takes parts of memory one after the other; without memory it counts.
struct Carve {
  uintptr_t base;
  size_t used = 0;
  template <class T> T *take(int64_t n) {
    T *const at = reinterpret_cast<T *>(base + used);
    used += (size_t(n) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

} // namespace fewbit
