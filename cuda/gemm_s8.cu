// gemm_s8.cu: which kernel a product of s8 matrices gets, and its launch. The
// kernels are in gemm_s8.cuh.
#include "gemm_s8.cuh"

#include <cstdio>

namespace {

enum Kind { Dp4a, Mma };

struct Config {
  Kind kind;
  int bm, bn, bk, warps_m, warps_n, stages;
  int shared;   // bytes a block
  int resident; // blocks that an SM's registers hold
  void (*launch)(const GemmS8Args &, unsigned blocks, fb_stream);
};

void launch_dp4a(const GemmS8Args &p, unsigned blocks, fb_stream s) { FB_LAUNCH(gemm_s8_dp4a, dim3(blocks), dim3(kDp4aThreads), kDp4aShared, s, p); }

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int RESIDENT>
void launch_mma(const GemmS8Args &p, unsigned blocks, fb_stream s) {
  const auto kernel = gemm_s8_mma<BM, BN, BK, WM, WN, STAGES, RESIDENT>;
  FB_LAUNCH(kernel, dim3(blocks), dim3(32 * WM * WN), (S8Mma<BM, BN, BK, WM, WN, STAGES>::kShared), s, p);
}

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int RESIDENT>
constexpr Config mma() {
  return Config{Mma, BM, BN, BK, WM, WN, STAGES, S8Mma<BM, BN, BK, WM, WN, STAGES>::kShared, RESIDENT, launch_mma<BM, BN, BK, WM, WN, STAGES, RESIDENT>};
}

// Rows of 16 and 32 are for products whose weights are read once: what counts is bytes on their way, 32 KiB a block.
const Config kConfigs[] = {
    {Dp4a, kDp4aTile, kDp4aTile, 64, 2, 2, 1, kDp4aShared, 4, launch_dp4a},
    mma<16, 64, 128, 1, 4, 5, 8>(),
    mma<32, 64, 128, 1, 4, 4, 6>(),
    mma<64, 64, 64, 2, 2, 4, 5>(),
    mma<64, 128, 64, 2, 2, 4, 3>(),
    mma<128, 128, 64, 2, 2, 4, 2>(),
    mma<128, 256, 64, 2, 4, 4, 1>(),
};
constexpr int kConfigCount = (int)(sizeof kConfigs / sizeof kConfigs[0]);

constexpr int64_t kMaxK = 65792;               // 255 * 128 * k < 2^31
constexpr int64_t kMaxStride = int64_t(1) << 23; // a tile's rows are addressed with 32 bits
constexpr int64_t kMaxBlocks = 0x7fffffff;     // gridDim.x
constexpr int kMaxSplit = 32;
constexpr int64_t kMaxParts = int64_t(64) << 20; // bytes of partial sums that are worth their traffic

// What an SM does in a clock (NVIDIA's architecture papers; mma on Hopper as measured, 62 % of wgmma).
struct Rate {
  int sm, mma, l2; // from this capability on: multiply-adds on tensor cores, bytes from L2
};
const Rate kRates[] = {{90, 2540, 32}, {86, 1024, 24}, {80, 2048, 40}, {0, 0, 24}};
constexpr int kDp4aRate = 256;

const Rate &rate_of(int sm) {
  const Rate *r = kRates;
  while (r->sm > sm) r++;
  return *r;
}

// A kernel has up to 1 KiB of static shared memory beside, and a block costs 1 KiB more (programming guide, shared memory of 8.0).
bool runs_on(const Config &c, const fb_device_info &dev) { return c.shared + 1024 <= dev.smem_per_block && (c.kind == Dp4a || dev.sm >= 80); }

struct Choice {
  int config = -1, split = 1; // split: no part is empty
  int k_tiles = 0;            // in a part
  int64_t tiles = 0, clocks = 0;
};

// The product on config c with k in `split` parts, and an estimate of its time in clocks: for each k tile the slowest
// of tensor cores, shared memory and L2, times the blocks that an SM gets, not less than the latency of one step or of memory
// over the stages under way.
Choice estimate(const fb_gemm_s8 &d, const fb_device_info &dev, int at, int split) {
  const Config &c = kConfigs[at];
  const Rate &rate = rate_of(dev.sm);
  Choice r;
  r.config = at;
  r.tiles = fb_ceil_div(d.m, c.bm) * fb_ceil_div(d.n, c.bn);
  const int steps = (int)fb_ceil_div(d.k, c.bk);
  r.k_tiles = (int)fb_ceil_div(steps, split);
  r.split = (int)fb_ceil_div(steps, r.k_tiles);

  const int64_t warps = c.warps_m * c.warps_n, out = (int64_t)c.bm * c.bn * 4 / rate.l2;
  const int64_t multiply = (int64_t)c.bm * c.bn * c.bk / (c.kind == Dp4a ? kDp4aRate : rate.mma);
  const int64_t shared = ((c.bm + c.bn) + warps * (c.bm / c.warps_m + c.bn / c.warps_n)) * c.bk / 128;
  const int64_t l2 = ((d.m < c.bm ? d.m : c.bm) + (d.n < c.bn ? d.n : c.bn)) * c.bk / rate.l2;
  const int64_t step = multiply > shared ? (multiply > l2 ? multiply : l2) : (shared > l2 ? shared : l2);
  const int64_t alone = 120 + 40 * (c.bk / 32), arrival = 900 / (c.stages > 1 ? c.stages - 1 : 1), latency = alone > arrival ? alone : arrival, start = 1200;

  const int64_t fits = (dev.smem_per_block + 1024) / (c.shared + 2048);
  const int64_t resident = fits < 1 ? 1 : fits < c.resident ? fits : c.resident;
  const int64_t per_sm = fb_ceil_div(r.tiles * r.split, dev.sms), rest = per_sm % resident;
  auto round = [&](int64_t blocks) { return blocks ? start + r.k_tiles * (blocks * step > latency ? blocks * step : latency) : 0; };
  r.clocks = per_sm / resident * round(resident) + round(rest) + per_sm * out;
  if (r.split > 1) r.clocks += per_sm * out + fb_ceil_div(r.tiles, dev.sms) * r.split * out + (d.zeroed ? 1000 : 3000);
  return r;
}

Choice best_split(const fb_gemm_s8 &d, const fb_device_info &dev, int at) {
  if (d.split > 0) return estimate(d, dev, at, d.split);
  Choice best = estimate(d, dev, at, 1);
  const Config &c = kConfigs[at];
  const int64_t steps = fb_ceil_div(d.k, c.bk);
  for (int split = 2; split <= kMaxSplit && split <= steps; split++) {
    if (best.tiles > FB_SPLIT_TILES || best.tiles * split * c.bm * c.bn * 4 > kMaxParts) break;
    const Choice r = estimate(d, dev, at, split);
    if (r.clocks < best.clocks) best = r;
  }
  return best;
}

Choice pick(const fb_gemm_s8 &d, const fb_device_info &dev) {
  Choice best;
  if (d.config > 0) {
    if (runs_on(kConfigs[d.config - 1], dev)) best = best_split(d, dev, d.config - 1);
    return best;
  }
  fb_gemm_s8 any = d;
  any.split = 0;
  for (int i = 0; i < kConfigCount; i++) {
    if (!runs_on(kConfigs[i], dev) || (kConfigs[i].kind == Dp4a && dev.sm >= 80)) continue;
    const Choice r = best_split(any, dev, i);
    if (best.config < 0 || r.clocks < best.clocks) best = r;
  }
  return best;
}

bool bad_shape(const fb_gemm_s8 *d) {
  return !d || d->m < 0 || d->n < 1 || d->k < 1 || d->k > kMaxK || d->m > kMaxBlocks || d->n > kMaxBlocks || d->config < 0 || d->config > kConfigCount || d->split < 0 ||
         d->split > kMaxSplit;
}

size_t workspace_of(const Choice &c) {
  const Config &f = kConfigs[c.config];
  return fb_split_bytes(c.tiles, c.split, (int64_t)f.bm * f.bn);
}

// One warp a row.
__global__ void __launch_bounds__(128) row_sums(const int8_t *__restrict__ b, int64_t n, int64_t k, int64_t ldb, int32_t *__restrict__ sums) {
  for (int64_t row = blockIdx.x * (int64_t)4 + (threadIdx.x >> 5); row < n; row += (int64_t)gridDim.x * 4) {
    int sum = 0;
    for (int64_t i = fb_lane(); i < k; i += 32) sum += b[row * ldb + i];
    sum = fb_warp_sum(sum);
    if (fb_lane() == 0) sums[row] = sum;
  }
}

} // namespace

extern "C" {

int fb_gemm_s8_configs(void) { return kConfigCount; }

int fb_gemm_s8_pick(const fb_gemm_s8 *d, const fb_device_info *dev, char *text, size_t text_bytes) {
  if (bad_shape(d) || !dev || dev->sms < 1) return -1;
  const Choice c = pick(*d, *dev);
  if (c.config < 0) return -1;
  const Config &f = kConfigs[c.config];
  if (text && text_bytes)
    snprintf(text, text_bytes, "%s %dx%dx%d, %d warps, %d stage%s, %d KiB; %lld tiles, split %d; about %lld clocks", f.kind == Dp4a ? "dp4a" : "mma", f.bm, f.bn, f.bk,
             f.warps_m * f.warps_n, f.stages, f.stages > 1 ? "s" : "", f.shared >> 10, (long long)c.tiles, c.split, (long long)c.clocks);
  return c.config;
}

size_t fb_gemm_s8_workspace(const fb_gemm_s8 *d) {
  fb_device_info dev;
  if (bad_shape(d) || fb_device(&dev) != FB_OK) return 0;
  const Choice c = pick(*d, dev);
  return c.config < 0 ? 0 : workspace_of(c);
}

int fb_gemm_s8_run(const fb_gemm_s8 *d, const int8_t *a, const float *a_scale, const int32_t *a_zero, const int8_t *b, const float *b_scale, const int32_t *b_sum,
                   const float *bias, const void *residual, void *c, void *workspace, size_t workspace_bytes, fb_stream s) {
  if (bad_shape(d) || !a || !b || !c || d->lda < d->k || d->ldb < d->k || d->ldc < d->n || d->lda % 16 || d->ldb % 16 || d->lda > kMaxStride || d->ldb > kMaxStride || !fb_aligned(a, 16) || !fb_aligned(b, 16) ||
      (a_zero && !b_sum) || d->act < FB_ACT_NONE || d->act > FB_ACT_CLIP)
    return FB_BAD_ARGUMENT;
  if (d->out != FB_F32 && d->out != FB_F16 && d->out != FB_S8 && d->out != FB_S32) return FB_BAD_ARGUMENT;
  if (d->out != FB_S32 && (!a_scale || !b_scale)) return FB_BAD_ARGUMENT;
  if (d->out == FB_S8 && (!(d->out_scale > 0.f) || d->out_zero < -128 || d->out_zero > 127)) return FB_BAD_ARGUMENT;
  if (residual && d->residual != FB_F32 && d->residual != FB_F16) return FB_BAD_ARGUMENT;
  if (d->m == 0) return FB_OK;

  fb_device_info dev;
  if (const int e = fb_device(&dev)) return e;
  const Choice choice = pick(*d, dev);
  if (choice.config < 0) return FB_UNSUPPORTED;
  const Config &f = kConfigs[choice.config];
  if (choice.tiles * choice.split > kMaxBlocks) return FB_UNSUPPORTED;
  if (choice.split > 1) {
    if (choice.tiles > FB_SPLIT_TILES) return FB_UNSUPPORTED;
    if (!workspace || !fb_aligned(workspace, 16) || workspace_bytes < workspace_of(choice)) return FB_WORKSPACE;
    if (!d->zeroed) FB_LAUNCH(fb_split_zero<256>, dim3(1), dim3(256), 0, s, static_cast<unsigned *>(workspace));
  }
  GemmS8Args p = {};
  p.a = a, p.b = b;
  p.k = d->k, p.lda = d->lda, p.ldb = d->ldb;
  p.tiles_m = (int)fb_ceil_div(d->m, f.bm), p.tiles_n = (int)fb_ceil_div(d->n, f.bn);
  p.split = choice.split, p.k_tiles = choice.k_tiles;
  p.workspace = workspace;
  p.e = FbEpilogue{a_scale, a_zero, b_scale, b_sum, bias, residual, c, d->m, d->n, d->ldc, d->a_rows, d->act, d->out, d->residual, d->act_min, d->act_max, d->out_scale, d->out_zero, false};
  p.e.vector = fb_epilogue_vector(p.e);
  f.launch(p, (unsigned)(choice.tiles * choice.split), s);
  return fb_launch_status();
}

int fb_row_sums(const int8_t *b, int64_t n, int64_t k, int64_t ldb, int32_t *sums, fb_stream s) {
  if (!b || !sums || n < 0 || k < 1 || k > kMaxK || ldb < k) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  FB_LAUNCH(row_sums, dim3(fb_grid(n, 4)), dim3(128), 0, s, b, n, k, ldb, sums);
  return fb_launch_status();
}

} // extern "C"
