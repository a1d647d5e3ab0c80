// The tile registers of AMX as the Software Developer's Manual of Intel describes
// them, for one thread each. What the processor refuses with an exception ends the
// process with a line: the kernel must not do it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fewbit::emulated {

inline constexpr int kTiles = 8, kRows = 16, kBytes = 64; // palette 1

struct State {
  bool configured = false;
  int rows[kTiles], bytes[kTiles];
  uint8_t data[kTiles][kRows][kBytes];
};
inline thread_local State state;
inline thread_local long configured_times = 0, dots = 0; // so that tests see that tiles were used

[[noreturn]] inline void fault(const char *what) {
  std::fprintf(stderr, "AMX: %s\n", what);
  std::abort();
}

inline void release() { state = State(); }

inline void configure(const void *config) {
  uint8_t c[64];
  std::memcpy(c, config, sizeof c);
  if (c[0] == 0) return release();
  if (c[0] != 1) fault("#GP: no such palette");
  if (c[1] != 0) fault("a start row, which belongs to instructions that were interrupted");
  for (int i = 2; i < 16; i++)
    if (c[i]) fault("#GP: reserved bytes of the configuration are not zero");
  State s = State();
  for (int t = 0; t < 16; t++) {
    const int bytes = c[16 + 2 * t] | c[17 + 2 * t] << 8, rows = c[48 + t];
    if (t >= kTiles) {
      if (bytes || rows) fault("#GP: a register that the palette does not have");
      continue;
    }
    if (bytes > kBytes) fault("#GP: rows of more than 64 bytes");
    if (rows > kRows) fault("#GP: more than 16 rows");
    if ((bytes == 0) != (rows == 0)) fault("#GP: rows without bytes or bytes without rows");
    s.rows[t] = rows, s.bytes[t] = bytes;
  }
  s.configured = true;
  state = s;
  configured_times++;
}

inline void used(int t) {
  if (!state.configured) fault("#UD: tiles are not configured");
  if (t < 0 || t >= kTiles || state.rows[t] == 0) fault("#UD: a register that is not configured");
}

inline void zero(int t) {
  used(t);
  std::memset(state.data[t], 0, sizeof state.data[t]);
}

inline void load(int t, const void *from, int64_t stride) {
  zero(t); // rows and bytes behind the configured ones
  for (int r = 0; r < state.rows[t]; r++) std::memcpy(state.data[t][r], static_cast<const char *>(from) + r * stride, size_t(state.bytes[t]));
}

inline void store(int t, void *to, int64_t stride) {
  used(t);
  for (int r = 0; r < state.rows[t]; r++) std::memcpy(static_cast<char *>(to) + r * stride, state.data[t][r], size_t(state.bytes[t]));
}

// The sums of a row grow by the products of four codes with four of each column. All 16
// columns at once, which is fast; those that are not configured are zeros in b. The
// sanitizers, with which this would take most of the time of all tests, look at the kernel.
[[gnu::no_sanitize_address, gnu::no_sanitize_undefined]] inline void add_products(uint8_t (&c)[kBytes], const uint8_t *a, const uint8_t (&b)[kBytes]) {
  uint32_t sums[kBytes / 4];
  std::memcpy(sums, c, sizeof sums);
  for (int n = 0; n < kBytes / 4; n++)
    for (int i = 0; i < 4; i++) sums[n] += uint32_t(int32_t(a[i]) * int8_t(b[4 * n + i]));
  std::memcpy(c, sums, sizeof sums);
}

// TDPBUSD
inline void dot(int c, int a, int b) {
  used(c), used(a), used(b);
  if (c == a || a == b || c == b) fault("#UD: one register in two places");
  if (state.rows[c] != state.rows[a]) fault("#UD: sums have other rows than the left operand");
  if (state.bytes[c] != state.bytes[b]) fault("#UD: sums have other columns than the right operand");
  if (state.bytes[a] != 4 * state.rows[b]) fault("#UD: the operands differ in the length of a product");
  if (state.bytes[a] % 4 || state.bytes[c] % 4) fault("#UD: columns are not whole");
  for (int m = 0; m < state.rows[c]; m++)
    for (int k = 0; k < state.rows[b]; k++) add_products(state.data[c][m], state.data[a][m] + 4 * k, state.data[b][k]);
  dots++;
}

} // namespace fewbit::emulated
