// gemm_s8.cu: which kernel a product of s8 matrices gets, and its launch. The
// kernels are in gemm_s8.cuh and gemm_s8_sm90.cuh.
#include "gemm_pick.cuh"
#include "gemm_s8.cuh"
#include "gemm_s8_sm90.cuh"

#include <cstdio>

namespace {

enum Kind { Dp4a, Mma, Wgmma };
const char *const kKinds[] = {"dp4a", "mma", "wgmma"};

struct Config {
  Kind kind;
  int warps_m, warps_n;
  FbTile tile;
  int (*launch)(const GemmS8Args &, unsigned blocks, fb_stream);
};

int launch_dp4a(const GemmS8Args &p, unsigned blocks, fb_stream s) {
  FB_LAUNCH(gemm_s8_dp4a, dim3(blocks), dim3(kDp4aThreads), kDp4aShared, s, p);
  return fb_launch_status();
}

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int RESIDENT>
int launch_mma(const GemmS8Args &p, unsigned blocks, fb_stream s) {
  const auto kernel = gemm_s8_mma<BM, BN, BK, WM, WN, STAGES, RESIDENT>;
  FB_LAUNCH(kernel, dim3(blocks), dim3(32 * WM * WN), (S8Mma<BM, BN, BK, WM, WN, STAGES>::kShared), s, p);
  return fb_launch_status();
}

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int RESIDENT>
constexpr Config mma() {
  return Config{Mma, WM, WN, {BM, BN, BK, STAGES, S8Mma<BM, BN, BK, WM, WN, STAGES>::kShared, RESIDENT}, launch_mma<BM, BN, BK, WM, WN, STAGES, RESIDENT>};
}

template <int BN>
int launch_wgmma(const GemmS8Args &g, unsigned blocks, fb_stream s) {
  using C = S8Wgmma<BN>;
  GemmS8Sm90Args p;
  p.g = g;
  if (const int e = fb_tensor_map(&p.a, g.a, g.k, g.e.m, g.lda, C::BM)) return e;
  if (const int e = fb_tensor_map(&p.b, g.b, g.k, g.e.n, g.ldb, BN)) return e;
  FB_LAUNCH(gemm_s8_wgmma<BN>, dim3(blocks), dim3(C::kThreads), C::kShared, s, p);
  return fb_launch_status();
}

template <int BN>
constexpr Config wgmma() {
  using C = S8Wgmma<BN>;
  return Config{Wgmma, 2, 1, {C::BM, BN, C::BK, C::kStages, C::kShared, 1, true}, launch_wgmma<BN>};
}

// Rows of 16 and 32 are for products whose weights are read once: what counts is bytes on their way, 32 KiB a block.
const Config kConfigs[] = {
    {Dp4a, 2, 2, {kDp4aTile, kDp4aTile, 64, 1, kDp4aShared, 4}, launch_dp4a},
    mma<16, 64, 128, 1, 4, 5, 8>(),
    mma<32, 64, 128, 1, 4, 4, 6>(),
    mma<64, 64, 64, 2, 2, 4, 5>(),
    mma<64, 128, 64, 2, 2, 4, 3>(),
    mma<128, 128, 64, 2, 2, 4, 2>(),
    mma<128, 256, 64, 2, 4, 4, 1>(),
    wgmma<128>(),
    wgmma<256>(),
};
constexpr int kConfigCount = (int)(sizeof kConfigs / sizeof kConfigs[0]);

constexpr int64_t kMaxK = 65792;               // 255 * 128 * k < 2^31
constexpr int64_t kMaxStride = int64_t(1) << 23; // a tile's rows are addressed with 32 bits
constexpr int64_t kMaxBlocks = 0x7fffffff;     // gridDim.x
constexpr int kDp4aRate = 256, kWgmmaRate = 4096; // multiply-adds a clock

// wgmma exists on Hopper alone.
bool runs_on(const Config &c, const fb_device_info &dev) { return fb_fits(c.tile, dev) && (c.kind == Dp4a || (c.kind == Mma && dev.sm >= 80) || dev.sm == 90); }

FbChoice choose(const fb_gemm_s8 &d, const fb_device_info &dev, int at, int split) {
  const Config &c = kConfigs[at];
  const FbTile &t = c.tile;
  const FbRate &rate = fb_rate(dev.sm);
  FbStep step;
  step.multiply = (int64_t)t.bm * t.bn * t.bk / (c.kind == Dp4a ? kDp4aRate : c.kind == Wgmma ? kWgmmaRate : rate.mma);
  step.shared = (int64_t)(t.bm + t.bn + c.warps_m * c.warps_n * (t.bm / c.warps_m + t.bn / c.warps_n)) * t.bk / 128;
  step.l2 = ((d.m < t.bm ? d.m : t.bm) + (d.n < t.bn ? d.n : t.bn)) * t.bk / rate.l2;
  FbChoice r = fb_best_split(t, step, d.m, d.n, d.k, c.kind == Wgmma ? 1 : split, d.zeroed != 0, dev);
  r.config = at;
  return r;
}

FbChoice pick(const fb_gemm_s8 &d, const fb_device_info &dev) {
  FbChoice best;
  if (d.config > 0) return runs_on(kConfigs[d.config - 1], dev) ? choose(d, dev, d.config - 1, d.split) : best;
  for (int i = 0; i < kConfigCount; i++) {
    if (!runs_on(kConfigs[i], dev) || (kConfigs[i].kind == Dp4a && dev.sm >= 80)) continue;
    const FbChoice r = choose(d, dev, i, 0);
    if (best.config < 0 || r.clocks < best.clocks) best = r;
  }
  return best;
}

bool bad_shape(const fb_gemm_s8 *d) {
  return !d || d->m < 0 || d->n < 1 || d->k < 1 || d->k > kMaxK || d->m > kMaxBlocks || d->n > kMaxBlocks || d->config < 0 || d->config > kConfigCount || d->split < 0 ||
         d->split > kFbMaxSplit;
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
  const FbChoice c = pick(*d, *dev);
  if (c.config < 0) return -1;
  const Config &f = kConfigs[c.config];
  const FbTile &t = f.tile;
  if (text && text_bytes)
    snprintf(text, text_bytes, "%s %dx%dx%d, %d warps, %d stage%s, %d KiB; %lld tiles, split %d; about %lld clocks", kKinds[f.kind], t.bm, t.bn, t.bk,
             f.kind == Wgmma ? 8 : f.warps_m * f.warps_n, t.stages, t.stages > 1 ? "s" : "", t.shared >> 10, (long long)c.tiles, c.split, (long long)c.clocks);
  return c.config;
}

size_t fb_gemm_s8_workspace(const fb_gemm_s8 *d) {
  fb_device_info dev;
  if (bad_shape(d) || fb_device(&dev) != FB_OK) return 0;
  const FbChoice c = pick(*d, dev);
  return c.config < 0 ? 0 : fb_choice_workspace(kConfigs[c.config].tile, c);
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
  const FbChoice choice = pick(*d, dev);
  if (choice.config < 0) return FB_UNSUPPORTED;
  const Config &f = kConfigs[choice.config];
  if (choice.tiles * choice.split > kMaxBlocks) return FB_UNSUPPORTED;
  if (const int e = fb_prepare_split(f.tile, choice, workspace, workspace_bytes, d->zeroed != 0, s)) return e;
  GemmS8Args p = {};
  p.a = a, p.b = b;
  p.k = d->k, p.lda = d->lda, p.ldb = d->ldb;
  p.tiles_m = (int)fb_ceil_div(d->m, f.tile.bm), p.tiles_n = (int)fb_ceil_div(d->n, f.tile.bn);
  p.split = choice.split, p.k_tiles = choice.steps;
  p.workspace = workspace;
  p.e = FbEpilogue{a_scale, a_zero, b_scale, b_sum, bias, residual, c, d->m, d->n, d->ldc, d->a_rows, d->act, d->out, d->residual, d->act_min, d->act_max, d->out_scale, d->out_zero, false};
  p.e.vector = fb_epilogue_vector(p.e);
  const int64_t blocks = choice.tiles * choice.split;
  return f.launch(p, (unsigned)(f.tile.persistent && blocks > dev.sms ? dev.sms : blocks), s);
}

int fb_row_sums(const int8_t *b, int64_t n, int64_t k, int64_t ldb, int32_t *sums, fb_stream s) {
  if (!b || !sums || n < 0 || k < 1 || k > kMaxK || ldb < k) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  FB_LAUNCH(row_sums, dim3(fb_grid(n, 4)), dim3(128), 0, s, b, n, k, ldb, sums);
  return fb_launch_status();
}

} // extern "C"
