// conv.cu: which kernel a convolution of s8 gets, and its launch. The kernels
// are in conv.cuh and conv_depthwise.cuh.
#include "conv.cuh"
#include "conv_depthwise.cuh"
#include "conv_geometry.cuh"
#include "gemm_pick.cuh"

#include <cstdio>

namespace {

enum Kind { Direct, Depthwise, Dp4a, Mma };
const char *const kKinds[] = {"direct", "depthwise", "dp4a", "mma"};

// How a chunk of 16 bytes along k is loaded, by the channels of a group.
enum Load { Point, Vec16, Vec8, Vec4, Bytes, kLoads };
const char *const kLoadNames[] = {"1x1", "16 bytes", "8 bytes", "4 bytes", "bytes"};
const int kLoadBytes[] = {16, 16, 8, 4, 1};

typedef void Launch(const ConvArgs &, unsigned blocks, fb_stream);

struct Config {
  Kind kind;
  int warps_m, warps_n;
  FbTile tile;
  Launch *launch[kLoads];
};

template <int VEC>
void launch_dp4a(const ConvArgs &p, unsigned blocks, fb_stream s) {
  FB_LAUNCH(conv_s8_dp4a<VEC>, dim3(blocks), dim3(kConvDp4aThreads), kConvDp4aShared, s, p);
}

template <int BM, int BN, int WM, int WN, int STAGES, int VEC, bool POINT, int RESIDENT>
void launch_mma(const ConvArgs &p, unsigned blocks, fb_stream s) {
  const auto kernel = conv_s8_mma<BM, BN, WM, WN, STAGES, VEC, POINT, RESIDENT>;
  FB_LAUNCH(kernel, dim3(blocks), dim3(32 * WM * WN), (ConvMma<BM, BN, WM, WN, STAGES>::kShared), s, p);
}

// Loads narrower than 16 bytes are for few channels, which the largest tiles are not for.
template <int BM, int BN, int WM, int WN, int STAGES, int RESIDENT>
constexpr Config mma() {
  return Config{Mma, WM, WN, {BM, BN, kConvBK, STAGES, ConvMma<BM, BN, WM, WN, STAGES>::kShared, RESIDENT},
                {launch_mma<BM, BN, WM, WN, STAGES, 16, true, RESIDENT>, launch_mma<BM, BN, WM, WN, STAGES, 16, false, RESIDENT>, nullptr, nullptr, nullptr}};
}
template <int BM, int BN, int WM, int WN, int STAGES, int RESIDENT>
constexpr Config mma_narrow() {
  Config c = mma<BM, BN, WM, WN, STAGES, RESIDENT>();
  c.launch[Vec8] = launch_mma<BM, BN, WM, WN, STAGES, 8, false, RESIDENT>;
  c.launch[Vec4] = launch_mma<BM, BN, WM, WN, STAGES, 4, false, RESIDENT>;
  c.launch[Bytes] = launch_mma<BM, BN, WM, WN, STAGES, 1, false, RESIDENT - 1>; // holds its bytes in registers
  return c;
}

const Config kConfigs[] = {
    {Direct, 0, 0, {}, {}},
    {Depthwise, 0, 0, {}, {}},
    {Dp4a, 2, 2, {kConvDp4aTile, kConvDp4aTile, kConvBK, 1, kConvDp4aShared, 4}, {launch_dp4a<16>, launch_dp4a<16>, launch_dp4a<4>, launch_dp4a<4>, launch_dp4a<1>}},
    mma_narrow<64, 32, 2, 2, 4, 5>(),
    mma<64, 64, 2, 2, 4, 4>(),
    mma_narrow<128, 64, 2, 2, 4, 3>(),
    mma<128, 128, 2, 2, 4, 2>(),
};
constexpr int kConfigCount = (int)(sizeof kConfigs / sizeof kConfigs[0]);

constexpr int kDp4aRate = 256;                    // multiply-adds a clock
constexpr int kLanes = 128;                       // instructions an SM issues for its lanes in a clock

bool bad_arguments(const fb_conv_s8 *d) {
  return fb_conv_bad(d) || d->config < 0 || d->config > kConfigCount || d->split < 0 || d->split > kFbMaxSplit;
}

Load load_of(const fb_conv_s8 &d) {
  const int cg = d.c / d.groups;
  if (cg % 16 == 0) {
    const bool inside = (int64_t)(d.oh - 1) * d.stride_h < d.h && (int64_t)(d.ow - 1) * d.stride_w < d.w;
    return d.kh == 1 && d.kw == 1 && d.pad_h == 0 && d.pad_w == 0 && inside ? Point : Vec16;
  }
  return cg % 8 == 0 ? Vec8 : cg % 4 == 0 ? Vec4 : Bytes;
}

bool is_depthwise(const fb_conv_s8 &d) {
  return d.groups == d.c && d.oc == d.c && d.c % 4 == 0 && d.kh == d.kw && (d.kh == 3 || d.kh == 5 || d.kh == 7) && d.stride_h == d.stride_w && d.stride_h <= 2 && d.dil_h == 1 && d.dil_w == 1;
}

bool runs_on(const Config &c, const fb_conv_s8 &d, const fb_device_info &dev) {
  switch (c.kind) {
  case Direct: return fb_conv_pixels(d) <= INT32_MAX / d.oc;
  case Depthwise: return is_depthwise(d);
  default: return c.launch[load_of(d)] && fb_fits(c.tile, dev) && (c.kind == Dp4a || dev.sm >= 80);
  }
}

// Estimates in clocks (gemm_pick.cuh). Loads narrower than 16 bytes cost instructions, about 6 each.
FbChoice choose(const fb_conv_s8 &d, const fb_device_info &dev, int at, int split) {
  const Config &c = kConfigs[at];
  const FbTile &t = c.tile;
  const int64_t m = fb_conv_pixels(d), k = fb_conv_depth(d), cg = d.c / d.groups, og = d.oc / d.groups;
  FbChoice r;
  r.config = at;
  if (c.kind == Direct) {
    const int64_t work = k * (cg % 4 ? 6 : 2) + 60;
    r.clocks = 1500 + m * d.oc / dev.sms * work / kLanes;
    return r;
  }
  if (c.kind == Depthwise) {
    r.clocks = 1500 + m * d.oc / dev.sms * (d.kh * fb_ceil_div(d.kh, 4) * 4 + 20) / kLanes;
    return r;
  }
  const FbRate &rate = fb_rate(dev.sm);
  const int64_t warps = c.warps_m * c.warps_n, bytes = kLoadBytes[load_of(d)];
  FbStep step;
  step.multiply = (int64_t)t.bm * t.bn * t.bk / (c.kind == Dp4a ? kDp4aRate : rate.mma);
  step.shared = ((t.bm + t.bn) + warps * (t.bm / c.warps_m + t.bn / c.warps_n)) * t.bk / 128 + (t.bm + t.bn) * t.bk / bytes * 6 / kLanes;
  step.l2 = ((m < t.bm ? m : t.bm) + (og < t.bn ? og : t.bn)) * t.bk / rate.l2;
  r = fb_best_split(t, step, fb_ceil_div(m, t.bm) * t.bm * d.groups, og, k, split, d.zeroed != 0, dev);
  r.config = at;
  return r;
}

FbChoice pick(const fb_conv_s8 &d, const fb_device_info &dev) {
  FbChoice best;
  if (d.config > 0) {
    if (runs_on(kConfigs[d.config - 1], d, dev)) best = choose(d, dev, d.config - 1, d.split);
    return best;
  }
  for (int i = 0; i < kConfigCount; i++) {
    if (!runs_on(kConfigs[i], d, dev) || (kConfigs[i].kind == Dp4a && dev.sm >= 80)) continue;
    const FbChoice r = choose(d, dev, i, 0);
    if (best.config < 0 || r.clocks < best.clocks) best = r;
  }
  return best;
}

ConvArgs arguments(const fb_conv_s8 &d, const int8_t *x, const int8_t *w, const ConvEpilogue &e) {
  ConvArgs p = {};
  p.x = x, p.filter = w, p.e = e;
  p.h = d.h, p.w = d.w, p.c = d.c, p.ow = d.ow, p.kh = d.kh, p.kw = d.kw;
  p.stride_h = d.stride_h, p.stride_w = d.stride_w, p.pad_h = d.pad_h, p.pad_w = d.pad_w, p.dil_h = d.dil_h, p.dil_w = d.dil_w;
  p.cg = d.c / d.groups, p.og = d.oc / d.groups, p.k = fb_conv_depth(d);
  p.m = (int)fb_conv_pixels(d);
  p.by_ow = FbDivisor::of((uint32_t)d.ow), p.by_ohw = FbDivisor::of((uint32_t)d.oh * d.ow), p.by_cg = FbDivisor::of((uint32_t)p.cg), p.by_kw = FbDivisor::of((uint32_t)d.kw);
  const int taps = kConvBK / p.cg;
  p.step_c = kConvBK - taps * p.cg, p.step_w = taps % d.kw * d.dil_w, p.step_h = taps / d.kw * d.dil_h;
  return p;
}

void launch_direct(const fb_conv_s8 &d, const ConvArgs &p, fb_stream s) {
  const uint32_t n = (uint32_t)p.m * (uint32_t)d.oc;
  const FbDivisor by_oc = FbDivisor::of((uint32_t)d.oc), by_og = FbDivisor::of((uint32_t)p.og);
  const dim3 grid(fb_grid(n, 256, 1 << 20));
  if (p.cg % 4 == 0) FB_LAUNCH(conv_s8_direct<true>, grid, dim3(256), 0, s, p, by_oc, by_og, n);
  else FB_LAUNCH(conv_s8_direct<false>, grid, dim3(256), 0, s, p, by_oc, by_og, n);
}

template <int K>
void launch_depthwise(const fb_conv_s8 &d, const ConvArgs &p, int sms, fb_stream s) {
  DepthwiseArgs a = {};
  const int tiles = (int)fb_ceil_div(d.ow, kDepthwiseStrip), quads = d.c / 4;
  a.p = p;
  a.by_tiles = FbDivisor::of((uint32_t)tiles), a.by_oh = FbDivisor::of((uint32_t)d.oh);
  a.strips = (int64_t)d.n * d.oh * tiles;
  a.quads_shift = quads >= 32 ? 5 : quads >= 16 ? 4 : 3;
  const int channels = 4 << a.quads_shift, across = kDepthwiseThreads >> a.quads_shift;
  const int64_t rows = fb_ceil_div(d.c, channels), wanted = fb_ceil_div(a.strips, across), enough = fb_ceil_div(16 * (int64_t)sms, rows); // a block reads its weights once
  const dim3 grid((unsigned)(wanted < enough ? wanted : enough), (unsigned)rows);
  const size_t shared = (size_t)K * ((K + 3) / 4) * channels * 4;
  if (d.stride_h == 1) FB_LAUNCH((conv_s8_depthwise<K, 1>), grid, dim3(kDepthwiseThreads), shared, s, a);
  else FB_LAUNCH((conv_s8_depthwise<K, 2>), grid, dim3(kDepthwiseThreads), shared, s, a);
}

} // namespace

extern "C" {

int fb_conv_s8_configs(void) { return kConfigCount; }

int fb_conv_s8_pick(const fb_conv_s8 *d, const fb_device_info *dev, char *text, size_t text_bytes) {
  if (bad_arguments(d) || fb_conv_too_large(*d) || !dev || dev->sms < 1) return -1;
  const FbChoice c = pick(*d, *dev);
  if (c.config < 0) return -1;
  const Config &f = kConfigs[c.config];
  if (text && text_bytes) {
    if (f.kind == Direct || f.kind == Depthwise)
      snprintf(text, text_bytes, "%s; about %lld clocks", kKinds[f.kind], (long long)c.clocks);
    else
      snprintf(text, text_bytes, "%s %dx%dx%d by %s, %d warps, %d stage%s, %d KiB; %lld tiles, split %d; about %lld clocks", kKinds[f.kind], f.tile.bm, f.tile.bn, f.tile.bk,
               kLoadNames[load_of(*d)], f.warps_m * f.warps_n, f.tile.stages, f.tile.stages > 1 ? "s" : "", f.tile.shared >> 10, (long long)c.tiles, c.split, (long long)c.clocks);
  }
  return c.config;
}

size_t fb_conv_s8_workspace(const fb_conv_s8 *d) {
  fb_device_info dev;
  if (bad_arguments(d) || fb_conv_too_large(*d) || fb_device(&dev) != FB_OK) return 0;
  const FbChoice c = pick(*d, dev);
  return c.config < 0 ? 0 : fb_choice_workspace(kConfigs[c.config].tile, c);
}

int fb_conv_s8_run(const fb_conv_s8 *d, const int8_t *x, const int8_t *w, const float *w_scale, const int32_t *w_sum, const float *bias, const int8_t *residual,
                   void *y, void *workspace, size_t workspace_bytes, fb_stream s) {
  if (bad_arguments(d) || !x || !w || !w_scale || !y || !fb_aligned(x, 16) || !fb_aligned(w, 16) || d->x_zero < -128 || d->x_zero > 127 || (d->x_zero && !w_sum) ||
      (d->out != FB_S8 && d->out != FB_F32) || (d->out == FB_S8 && fb_bad_grid(d->out_scale, d->out_zero)) || (residual && (d->residual_zero < -128 || d->residual_zero > 127)))
    return FB_BAD_ARGUMENT;
  if (d->n == 0) return FB_OK;
  fb_device_info dev;
  if (const int e = fb_device(&dev)) return e;
  if (fb_conv_too_large(*d)) return FB_UNSUPPORTED;
  const FbChoice choice = pick(*d, dev);
  if (choice.config < 0) return FB_UNSUPPORTED;
  const Config &f = kConfigs[choice.config];

  ConvEpilogue e = {};
  e.w_scale = w_scale, e.w_sum = d->x_zero ? w_sum : nullptr, e.bias = bias, e.residual = residual, e.y = y;
  e.x_scale = d->x_scale, e.residual_scale = d->residual_scale, e.x_zero = d->x_zero, e.residual_zero = d->residual_zero;
  e.oc = d->oc, e.act = d->act, e.act_min = d->act_min, e.act_max = d->act_max, e.s8 = d->out == FB_S8;
  if (e.s8) {
    bool folded;
    e.grid = fb_requantizer(d->out_scale, d->out_zero, d->act, d->act_min, d->act_max, &folded);
    if (folded) e.act = FB_ACT_NONE;
  }
  ConvArgs p = arguments(*d, x, w, e);
  p.e.vector = (f.kind == Depthwise || p.og % 4 == 0) && fb_aligned(y, e.s8 ? 4 : 16) && fb_aligned(residual, 4);
  switch (f.kind) {
  case Direct: launch_direct(*d, p, s); break;
  case Depthwise:
    if (d->kh == 3) launch_depthwise<3>(*d, p, dev.sms, s);
    else if (d->kh == 5) launch_depthwise<5>(*d, p, dev.sms, s);
    else launch_depthwise<7>(*d, p, dev.sms, s);
    break;
  default: {
    if (choice.tiles * choice.split > INT32_MAX) return FB_UNSUPPORTED;
    if (const int r = fb_prepare_split(f.tile, choice, workspace, workspace_bytes, d->zeroed != 0, s)) return r;
    p.tiles_m = (int)fb_ceil_div(p.m, f.tile.bm), p.tiles_n = (int)fb_ceil_div(p.og, f.tile.bn);
    p.split = choice.split, p.k_tiles = choice.steps, p.workspace = workspace;
    f.launch[load_of(*d)](p, (unsigned)(choice.tiles * choice.split), s);
  }
  }
  return fb_launch_status();
}

} // extern "C"
