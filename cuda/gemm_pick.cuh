// gemm_pick.cuh: how long a product takes with a tile, in clocks, by counting.
// Good for comparing tiles and splits with each other, not for anything else.
#pragma once
#include "splitk.cuh"

// What an SM does in a clock from a compute capability on (NVIDIA's architecture
// papers; mma on Hopper as measured, 62 % of wgmma): multiply-adds on tensor
// cores of s8 (f16 half of it), bytes from L2.
struct FbRate {
  int sm, mma, l2;
};

static inline const FbRate &fb_rate(int sm) {
  static const FbRate rates[] = {{90, 2540, 32}, {86, 1024, 24}, {80, 2048, 40}, {0, 0, 24}};
  const FbRate *r = rates;
  while (r->sm > sm) r++;
  return *r;
}

struct FbTile {
  int bm, bn, bk, stages;
  int shared;   // bytes of dynamic shared memory a block
  int resident; // blocks that an SM's registers hold
  bool persistent = false; // a block takes several tiles
};

// A kernel has up to 1 KiB of static shared memory beside.
static inline bool fb_fits(const FbTile &t, const fb_device_info &dev) { return t.shared + 1024 <= dev.smem_per_block; }

struct FbStep { // clocks that one step of bk takes in each unit, blocks beside it not counted
  int64_t multiply, shared, l2;
};

struct FbChoice {
  int config = -1, split = 1; // no part of a split is empty
  int steps = 0;              // of bk, in a part
  int64_t tiles = 0, clocks = 0;
};

constexpr int kFbMaxSplit = 32;
constexpr int64_t kFbMaxParts = int64_t(64) << 20; // bytes of partial sums that are worth their traffic

// m x n x k with k in up to `split` parts: for each step the slowest unit, times the blocks that an SM gets, not less
// than the latency of one step alone or of memory over the stages under way.
static inline FbChoice fb_estimate(const FbTile &t, const FbStep &s, int64_t m, int64_t n, int64_t k, int split, bool zeroed, const fb_device_info &dev) {
  FbChoice r;
  r.tiles = fb_ceil_div(m, t.bm) * fb_ceil_div(n, t.bn);
  const int64_t steps = fb_ceil_div(k, t.bk);
  r.steps = (int)fb_ceil_div(steps, split);
  r.split = (int)fb_ceil_div(steps, r.steps);
  const int64_t step = s.multiply > s.shared ? (s.multiply > s.l2 ? s.multiply : s.l2) : (s.shared > s.l2 ? s.shared : s.l2);
  const int64_t alone = 120 + 40 * (t.bk / 32), arrival = 900 / (t.stages > 1 ? t.stages - 1 : 1), latency = alone > arrival ? alone : arrival;
  const int64_t start = 1200, out = (int64_t)t.bm * t.bn * 4 / fb_rate(dev.sm).l2;
  const int64_t fits = (dev.smem_per_block + 1024) / (t.shared + 2048); // a block costs 1 KiB more (programming guide, shared memory of 8.0)
  const int64_t resident = fits < 1 ? 1 : fits < t.resident ? fits : t.resident;
  const int64_t per_sm = fb_ceil_div(r.tiles * r.split, dev.sms);
  auto round = [&](int64_t blocks) { return blocks ? start + r.steps * (blocks * step > latency ? blocks * step : latency) : 0; };
  r.clocks = per_sm / resident * round(resident) + round(per_sm % resident) + per_sm * out;
  if (t.persistent && per_sm > 1) r.clocks -= (per_sm - 1) * start;
  if (r.split > 1) r.clocks += per_sm * out + fb_ceil_div(r.tiles, dev.sms) * r.split * out + (zeroed ? 1000 : 3000);
  return r;
}

// The best split, or the one asked for.
static inline FbChoice fb_best_split(const FbTile &t, const FbStep &s, int64_t m, int64_t n, int64_t k, int asked, bool zeroed, const fb_device_info &dev) {
  FbChoice best = fb_estimate(t, s, m, n, k, asked > 0 ? asked : 1, zeroed, dev);
  if (asked > 0) return best;
  for (int split = 2; split <= kFbMaxSplit && split <= fb_ceil_div(k, t.bk); split++) {
    if (best.tiles > FB_SPLIT_TILES || best.tiles * split * t.bm * t.bn * 4 > kFbMaxParts) break;
    const FbChoice r = fb_estimate(t, s, m, n, k, split, zeroed, dev);
    if (r.clocks < best.clocks) best = r;
  }
  return best;
}

static inline size_t fb_choice_workspace(const FbTile &t, const FbChoice &c) { return fb_split_bytes(c.tiles, c.split, (int64_t)t.bm * t.bn); }

// Whether the workspace serves c; its counters are zeroed unless they are known to be.
static inline int fb_prepare_split(const FbTile &t, const FbChoice &c, void *workspace, size_t bytes, bool zeroed, fb_stream s) {
  if (c.split == 1) return FB_OK;
  if (c.tiles > FB_SPLIT_TILES) return FB_UNSUPPORTED;
  if (!workspace || !fb_aligned(workspace, 16) || bytes < fb_choice_workspace(t, c)) return FB_WORKSPACE;
  if (!zeroed) FB_LAUNCH(fb_split_zero<256>, dim3(1), dim3(256), 0, s, static_cast<unsigned *>(workspace));
  return FB_OK;
}
