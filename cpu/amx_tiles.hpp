// The tile registers of AMX: eight of up to 16 rows of 64 bytes, which belong to a
// thread. Included by kernels that are compiled once with the instructions and, for
// tests on processors without them, once with what test/amx_emulated.hpp makes of
// them (FEWBIT_AMX_EMULATED).
//
// The instructions stand here in assembly: the intrinsics of GCC do not tell the
// compiler which memory they read, and want a literal for each register.
#pragma once
#include <cstdint>

#include "math_constants.hpp"

#if defined(FEWBIT_AMX_EMULATED)
#include "test/amx_emulated.hpp"
#endif

namespace fewbit {

inline constexpr int64_t kTileHeight = 16, kTileBytes = 64; // of a register, at most

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, zero[14] = {};
  uint16_t bytes[16] = {}; // of a row of each register
  uint8_t rows[16] = {};

  void shape(int tile, int64_t r, int64_t b) { rows[tile] = uint8_t(r), bytes[tile] = uint16_t(b); }
};
static_assert(sizeof(TileConfig) == 64);

namespace {

// The thread has tile registers as long as this lives, and none that the operating
// system has to keep afterwards.
class Tiles {
public:
  FEWBIT_INLINE explicit Tiles(const TileConfig &c) {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::configure(&c);
#else
    asm volatile("ldtilecfg %0" ::"m"(c));
#endif
  }
  FEWBIT_INLINE ~Tiles() {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::release();
#else
    asm volatile("tilerelease");
#endif
  }
  Tiles(const Tiles &) = delete;
  Tiles &operator=(const Tiles &) = delete;

  template <int T> FEWBIT_INLINE void zero() const {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::zero(T);
#else
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
#endif
  }
  // Rows that lie `stride` bytes from each other.
  template <int T> FEWBIT_INLINE void load(const void *from, int64_t stride) const {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::load(T, from, stride);
#else
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
#endif
  }
  template <int T> FEWBIT_INLINE void store(void *to, int64_t stride) const {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::store(T, to, stride);
#else
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
#endif
  }
  // C, sums in INT32, plus A, rows of UINT8, times B, four rows of INT8 in each of
  // its own. Sums wrap.
  template <int C, int A, int B> FEWBIT_INLINE void dot() const {
#if defined(FEWBIT_AMX_EMULATED)
    emulated::dot(C, A, B);
#else
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
#endif
  }
};

} // namespace
} // namespace fewbit
