// gemm_w4.cu: products with INT4 weights, which kernel they get, and the
// offline shuffle of the weights. The kernels are in gemm_w4.cuh.
#include "gemm_pick.cuh"
#include "gemm_w4.cuh"

#include <cstdio>

namespace {

struct Config {
  bool plain;
  int warps;
  FbTile f16, s8;
  void (*launch)(bool f16, const GemmW4Args &, unsigned blocks, fb_stream);
};

void launch_plain(bool f16, const GemmW4Args &p, unsigned blocks, fb_stream s) {
  if (f16) FB_LAUNCH(gemm_w4_plain<true>, dim3(blocks), dim3(128), 0, s, p);
  else FB_LAUNCH(gemm_w4_plain<false>, dim3(blocks), dim3(128), 0, s, p);
}

template <int BM, int WARPS, int STAGES, int RESIDENT>
void launch_mma(bool f16, const GemmW4Args &p, unsigned blocks, fb_stream s) {
  const auto w4a16 = gemm_w4_mma<true, BM, WARPS, STAGES, RESIDENT>, w4a8 = gemm_w4_mma<false, BM, WARPS, STAGES, RESIDENT>;
  if (f16) FB_LAUNCH(w4a16, dim3(blocks), dim3(32 * WARPS), (W4<true, BM, WARPS, STAGES>::kShared), s, p);
  else FB_LAUNCH(w4a8, dim3(blocks), dim3(32 * WARPS), (W4<false, BM, WARPS, STAGES>::kShared), s, p);
}

template <int BM, int WARPS, int STAGES, int RESIDENT>
constexpr Config mma() {
  return Config{false, WARPS,
                {BM, 32 * WARPS, kW4K, STAGES, W4<true, BM, WARPS, STAGES>::kShared, RESIDENT},
                {BM, 32 * WARPS, kW4K, STAGES, W4<false, BM, WARPS, STAGES>::kShared, RESIDENT},
                launch_mma<BM, WARPS, STAGES, RESIDENT>};
}

// With up to 16 rows, a block has 30 to 60 KiB of weights and scales on their way. Wider blocks read A less often,
// narrower ones are more.
const Config kConfigs[] = {
    {true, 4, {kW4PlainM, kW4PlainN, 32, 1, 0, 8}, {kW4PlainM, kW4PlainN, 32, 1, 0, 8}, launch_plain},
    mma<8, 4, 4, 4>(),
    mma<16, 4, 4, 4>(),
    mma<16, 8, 4, 2>(),
    mma<32, 4, 4, 3>(),
    mma<64, 4, 3, 2>(),
};
constexpr int kConfigCount = (int)(sizeof kConfigs / sizeof kConfigs[0]);
constexpr int64_t kMaxSize = 0x7fffffff;
constexpr int64_t kMaxDepth = int64_t(1) << 24;
constexpr int kPlainRate = 32; // multiply-adds a clock of the plain kernel, which reads shared memory for each

const FbTile &tile_of(const fb_gemm_w4 &d, int config) { return d.a == FB_F16 ? kConfigs[config].f16 : kConfigs[config].s8; }
bool runs_on(const fb_gemm_w4 &d, int config, const fb_device_info &dev) { return fb_fits(tile_of(d, config), dev) && (kConfigs[config].plain || dev.sm >= 80); }

FbChoice choose(const fb_gemm_w4 &d, const fb_device_info &dev, int at, int split) {
  const FbTile &t = tile_of(d, at);
  const FbRate &rate = fb_rate(dev.sm);
  const int64_t products = (int64_t)t.bm * t.bn * t.bk, size = d.a == FB_F16 ? 2 : 1;
  const int64_t scales = 4 * (int64_t)t.bn * (d.block < t.bk ? t.bk / d.block : 1), weights = (int64_t)t.bn * t.bk / 2;
  FbStep step;
  step.multiply = kConfigs[at].plain ? products / kPlainRate : size * products / rate.mma;
  step.shared = (t.bm * t.bk * size * (1 + kConfigs[at].warps) + 2 * weights + scales) / 128;
  step.l2 = ((d.m < t.bm ? d.m : t.bm) * t.bk * size + weights + scales) / rate.l2;
  FbChoice r = fb_best_split(t, step, d.m, d.n, d.k, kConfigs[at].plain ? 1 : split, d.zeroed != 0, dev);
  r.config = at;
  return r;
}

FbChoice pick(const fb_gemm_w4 &d, const fb_device_info &dev) {
  FbChoice best;
  if (d.config > 0) return runs_on(d, d.config - 1, dev) ? choose(d, dev, d.config - 1, d.split) : best;
  for (int i = 0; i < kConfigCount; i++) {
    if (!runs_on(d, i, dev) || (kConfigs[i].plain && dev.sm >= 80)) continue;
    const FbChoice r = choose(d, dev, i, 0);
    if (best.config < 0 || r.clocks < best.clocks) best = r;
  }
  return best;
}

bool bad_block(int64_t k, int block) { return block < 1 || k % block || k % 32 || (block != 32 && block != 64 && block % 128 && block != k); }

bool bad_shape(const fb_gemm_w4 *d) {
  return !d || d->m < 0 || d->m > kMaxSize || d->n < 1 || d->n > kMaxSize || d->k < 1 || d->k > kMaxDepth || bad_block(d->k, d->block) || (d->a != FB_F16 && d->a != FB_S8) ||
         d->config < 0 || d->config > kConfigCount || d->split < 0 || d->split > kFbMaxSplit;
}

int64_t padded(int64_t n) { return fb_ceil_div(n, 32) * 32; }

// A thread a word of the result: tile of 32 columns, 32 of k, lane, word.
__global__ void __launch_bounds__(256) pack(const uint8_t *__restrict__ q, int64_t n, int64_t k, int64_t words, uint32_t *__restrict__ packed) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < words; i += (int64_t)gridDim.x * 256) {
    const int64_t tile = i / 128, k32 = k / 32;
    const int lane = (int)(i % 128) / 4;
    const int64_t column = tile / k32 * 32 + i % 4 * 8 + lane / 4, at = column * (k / 2) + tile % k32 * 16 + lane % 4 * 4;
    uint32_t word = 0;
    for (int v = 0; v < 8; v++) {
      const uint32_t u = column < n ? q[at + v / 2] >> v % 2 * 4 & 15 : 8;
      word |= u << w4_nibble(v) * 4;
    }
    packed[i] = word;
  }
}

// A warp a column: its scales, and the sum of its weights.
__global__ void __launch_bounds__(128) pack_scales(const uint8_t *__restrict__ q, const float *__restrict__ scale, int64_t n, int64_t n32, int64_t k, int block, float *__restrict__ packed) {
  const int64_t blocks = k / block;
  for (int64_t column = blockIdx.x * (int64_t)4 + (threadIdx.x >> 5); column < n32; column += (int64_t)gridDim.x * 4) {
    float total = 0.f;
    for (int64_t b = 0; b < blocks; b++) {
      float s = 0.f;
      if (column < n) {
        int sum = 0;
        const uint8_t *from = q + (column * k + b * block) / 2;
        for (int i = fb_lane(); i < block / 2; i += 32) sum += (from[i] & 15) + (from[i] >> 4) - 16;
        s = scale[column * blocks + b];
        total = fb_add(total, fb_mul(s, (float)fb_warp_sum(sum)));
      }
      if (fb_lane() == 0) packed[b * n32 + column] = s;
    }
    if (fb_lane() == 0) packed[blocks * n32 + column] = total;
  }
}

} // namespace

extern "C" {

int fb_w4_pack(const uint8_t *q, const float *scale, int64_t n, int64_t k, int block, uint8_t *packed, float *packed_scale, fb_stream s) {
  if (!q || !scale || !packed || !packed_scale || n < 1 || n > kMaxSize || k < 1 || k > kMaxDepth || bad_block(k, block) || !fb_aligned(packed, 16) || !fb_aligned(packed_scale, 16))
    return FB_BAD_ARGUMENT;
  const int64_t words = padded(n) * k / 8;
  FB_LAUNCH(pack, dim3(fb_grid(words, 1024)), dim3(256), 0, s, q, n, k, words, reinterpret_cast<uint32_t *>(packed));
  FB_LAUNCH(pack_scales, dim3(fb_grid(padded(n), 4)), dim3(128), 0, s, q, scale, n, padded(n), k, block, packed_scale);
  return fb_launch_status();
}

int fb_gemm_w4_configs(void) { return kConfigCount; }

int fb_gemm_w4_pick(const fb_gemm_w4 *d, const fb_device_info *dev, char *text, size_t text_bytes) {
  if (bad_shape(d) || !dev || dev->sms < 1) return -1;
  const FbChoice c = pick(*d, *dev);
  if (c.config < 0) return -1;
  const FbTile &t = tile_of(*d, c.config);
  if (text && text_bytes)
    snprintf(text, text_bytes, "%s %dx%dx%d, %d warps, %d stage%s, %d KiB; %lld tiles, split %d; about %lld clocks", kConfigs[c.config].plain ? "fma" : "mma", t.bm, t.bn, t.bk,
             kConfigs[c.config].warps, t.stages, t.stages > 1 ? "s" : "", t.shared >> 10, (long long)c.tiles, c.split, (long long)c.clocks);
  return c.config;
}

size_t fb_gemm_w4_workspace(const fb_gemm_w4 *d) {
  fb_device_info dev;
  if (bad_shape(d) || fb_device(&dev) != FB_OK) return 0;
  const FbChoice c = pick(*d, dev);
  return c.config < 0 ? 0 : fb_choice_workspace(tile_of(*d, c.config), c);
}

int fb_gemm_w4_run(const fb_gemm_w4 *d, const void *a, const float *a_scale, const int32_t *a_zero, const uint8_t *packed, const float *packed_scale, const float *bias, const void *residual,
                   void *c, void *workspace, size_t workspace_bytes, fb_stream s) {
  if (bad_shape(d) || !a || !packed || !packed_scale || !c || d->lda < d->k || d->ldc < d->n || !fb_aligned(a, 16) || !fb_aligned(packed, 16) || !fb_aligned(packed_scale, 16) ||
      d->act < FB_ACT_NONE || d->act > FB_ACT_CLIP || (d->out != FB_F32 && d->out != FB_F16) || (residual && d->residual != FB_F32 && d->residual != FB_F16))
    return FB_BAD_ARGUMENT;
  const bool f16 = d->a == FB_F16;
  if (d->lda % (f16 ? 8 : 16) || (f16 ? a_scale || a_zero : !a_scale)) return FB_BAD_ARGUMENT;
  if (d->m == 0) return FB_OK;

  fb_device_info dev;
  if (const int e = fb_device(&dev)) return e;
  const FbChoice choice = pick(*d, dev);
  if (choice.config < 0) return FB_UNSUPPORTED;
  const FbTile &t = tile_of(*d, choice.config);
  if (choice.tiles * choice.split > kMaxSize) return FB_UNSUPPORTED;
  if (const int e = fb_prepare_split(t, choice, workspace, workspace_bytes, d->zeroed != 0, s)) return e;
  GemmW4Args p = {};
  p.a = a, p.packed = packed, p.scale = packed_scale;
  p.n32 = padded(d->n), p.k = d->k, p.row_bytes = d->lda * (f16 ? 2 : 1);
  p.blocks = (int)(d->k / d->block), p.block = d->block == d->k ? 0 : d->block;
  p.tiles_n = (int)fb_ceil_div(d->n, t.bn), p.split = choice.split, p.steps = choice.steps;
  p.workspace = workspace;
  p.e.e = FbEpilogue{a_scale, a_zero, nullptr, nullptr, bias, residual, c, d->m, d->n, d->ldc, 1, d->act, d->out, d->residual, d->act_min, d->act_max, 0.f, 0, false};
  p.e.e.vector = fb_epilogue_vector(p.e.e);
  p.e.w_sum = packed_scale + p.blocks * p.n32;
  kConfigs[choice.config].launch(f16, p, (unsigned)(choice.tiles * choice.split), s);
  return fb_launch_status();
}

} // extern "C"
