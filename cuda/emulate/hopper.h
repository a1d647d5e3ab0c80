// hopper.h: what fb_sm90.cuh has, emulated. What is asynchronous on a GPU lands
// at once or as late as it may, as the schedule says: tiles of TMA when nothing
// else can run, in any order; products when they are waited for. Until then the
// accumulators hold poison. Found are also: barriers that are not initialised or
// overrun, waits that nothing ends, tiles that are not aligned, lanes or warps of a
// warpgroup that disagree, writes to accumulators under way.
#pragma once

using FbTensorMap = fbemu::TensorMap;

namespace fbemu {
void barrier_init(uint64_t *bar, int count);
void barrier_arrive(uint64_t *bar, int bytes);
void barrier_wait(uint64_t *bar, int parity);
void tma_load(void *tile, const FbTensorMap *map, int col, int row, uint64_t *bar);
void wgmma(int32_t *d, int n, const void *a, const void *b, bool accumulate);
void wgmma_commit();
void wgmma_wait(int32_t *d, size_t pending);
} // namespace fbemu

inline int fb_tensor_map(FbTensorMap *map, const void *base, int64_t cols, int64_t rows, int64_t stride, int box_rows) {
  if (reinterpret_cast<uintptr_t>(base) % 16 || stride % 16 || cols < 1 || rows < 1 || box_rows < 1 || box_rows > 256) return FB_BAD_ARGUMENT;
  *map = FbTensorMap{static_cast<const char *>(base), cols, rows, stride, box_rows};
  return FB_OK;
}
inline void fb_mbar_init(uint64_t *bar, int count) { fbemu::barrier_init(bar, count); }
inline void fb_mbar_init_done() {}
inline void fb_mbar_arrive(uint64_t *bar) { fbemu::barrier_arrive(bar, 0); }
inline void fb_mbar_arrive_expect(uint64_t *bar, int bytes) { fbemu::barrier_arrive(bar, bytes); }
inline void fb_mbar_wait(uint64_t *bar, int parity) { fbemu::barrier_wait(bar, parity); }
inline void fb_tma_load(void *tile, const FbTensorMap *map, int col, int row, uint64_t *bar) { fbemu::tma_load(tile, map, col, row, bar); }
inline void fb_tma_prefetch(const FbTensorMap *) {}
template <int N>
inline void fb_registers_down() {}
template <int N>
inline void fb_registers_up() {}
inline void fb_wgmma_fence() {}
inline void fb_wgmma_commit() { fbemu::wgmma_commit(); }
template <int N>
inline void fb_wgmma_s8(int32_t (&d)[N / 2], const void *a, const void *b, bool accumulate) {
  fbemu::wgmma(d, N, a, b, accumulate);
}
template <int PENDING, int N>
inline void fb_wgmma_wait(int32_t (&d)[N]) {
  fbemu::wgmma_wait(d, PENDING);
}
