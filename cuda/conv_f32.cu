// conv_f32.cu: convolutions that stay in float, NCHW, in true FP32 by fma. As a
// product of matrices that is never stored: filters [oc, k] times patches
// [k, pixels], k = c/groups kh kw in the order of the filter, so that
// neighbouring threads read and write neighbouring pixels. Groups of few
// filters have one thread an output instead.
#include "conv_geometry.cuh"
#include "float_io.cuh"
#include "strided.cuh"

namespace {

struct Args {
  const float *x, *filter, *bias, *residual;
  float *y;
  int c, h, w, oc, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int cg, og, k, act;
  int m;                // pixels of all images
  int tiles_m, tiles_n; // of pixels, of the filters of a group
  bool vector;          // four neighbours of a filter are aligned
  float act_min, act_max;
  FbDivisor by_ow, by_ohw, by_taps, by_kw;
};

__device__ __forceinline__ float finish(const Args &p, float sum, int oc, int64_t at) {
  if (p.bias) sum = fb_add(sum, p.bias[oc]);
  if (p.residual) sum = fb_add(sum, p.residual[at]);
  return fb_activate(p.act, sum, p.act_min, p.act_max);
}

// Where a pixel of the output lies, and what it reads.
struct Pixel {
  int image, ih, iw; // of the window's first tap
  int inside;        // number within its image's channel
};
__device__ __forceinline__ Pixel pixel_of(const Args &p, uint32_t m) {
  Pixel q;
  q.image = (int)p.by_ohw.quotient(m);
  q.inside = (int)(m - (uint32_t)q.image * p.by_ohw.divisor);
  const int oh = (int)p.by_ow.quotient((uint32_t)q.inside);
  q.ih = oh * p.stride_h - p.pad_h;
  q.iw = (q.inside - oh * (int)p.by_ow.divisor) * p.stride_w - p.pad_w;
  return q;
}

constexpr int kTile = 64, kStep = 16, kLd = kTile + 4, kTileThreads = 128;

// 64 filters x 64 pixels a block, 8 x 4 a thread, k in steps of 16 through two buffers.
__global__ void __launch_bounds__(kTileThreads, 4) conv_f32_tile(const Args p) {
  FB_SHARED(float, tile_f, 2 * kStep * kLd);
  FB_SHARED(float, tile_x, 2 * kStep * kLd);
  const int tid = (int)threadIdx.x;
  const int at_m = (int)(blockIdx.x % (unsigned)p.tiles_m), rest = (int)(blockIdx.x / (unsigned)p.tiles_m);
  const int group = rest / p.tiles_n, f0 = rest % p.tiles_n * kTile;
  const int64_t m0 = (int64_t)at_m * kTile;

  // Filters: 4 of k, of two rows 32 apart. Patches: one pixel, every second k.
  const int row = tid / 4, k_at = tid % 4 * 4, column = tid % kTile, k_odd = tid / kTile;
  const float *filter = p.filter + ((int64_t)group * p.og + f0 + row) * p.k;
  const bool in_m = m0 + column < p.m;
  const Pixel at = pixel_of(p, in_m ? (uint32_t)(m0 + column) : 0u);
  const float *image = p.x + (int64_t)((int64_t)at.image * p.c + group * p.cg) * p.h * p.w;
  float next_f[2][4], next_x[kStep / 2];
  auto load = [&](int k0) {
#pragma unroll
    for (int i = 0; i < 2; i++) fb_read4(filter + (int64_t)i * 32 * p.k + k0 + k_at, f0 + row + i * 32 < p.og ? p.k - k0 - k_at : 0, p.vector, next_f[i]);
#pragma unroll
    for (int i = 0; i < kStep / 2; i++) {
      const int k = k0 + k_odd + 2 * i;
      next_x[i] = 0.f;
      if (!in_m || k >= p.k) continue;
      const int c = (int)p.by_taps.quotient((uint32_t)k), tap = k - c * (int)p.by_taps.divisor, r = (int)p.by_kw.quotient((uint32_t)tap), s = tap - r * p.kw;
      const int ih = at.ih + r * p.dil_h, iw = at.iw + s * p.dil_w;
      if ((unsigned)ih < (unsigned)p.h && (unsigned)iw < (unsigned)p.w) next_x[i] = image[(c * p.h + ih) * p.w + iw];
    }
  };
  auto store = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) tile_f[(buffer * kStep + k_at + j) * kLd + row + i * 32] = next_f[i][j];
#pragma unroll
    for (int i = 0; i < kStep / 2; i++) tile_x[(buffer * kStep + k_odd + 2 * i) * kLd + column] = next_x[i];
  };

  // A thread's 8 filters are two fours half a tile apart.
  const int tx = tid % 16 * 4, ty = tid / 16 * 4;
  float acc[8][4] = {};
  load(0);
  store(0);
  __syncthreads();
  const int steps = (int)fb_ceil_div(p.k, kStep);
  for (int s = 0; s < steps; s++) {
    if (s + 1 < steps) load((s + 1) * kStep);
    const float *sf = tile_f + (s & 1) * kStep * kLd, *sx = tile_x + (s & 1) * kStep * kLd;
#pragma unroll
    for (int k = 0; k < kStep; k++) {
      float f[8], x[4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float4 v = *reinterpret_cast<const float4 *>(sf + k * kLd + ty + half * kTile / 2);
        f[4 * half] = v.x, f[4 * half + 1] = v.y, f[4 * half + 2] = v.z, f[4 * half + 3] = v.w;
      }
      const float4 v = *reinterpret_cast<const float4 *>(sx + k * kLd + tx);
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fmaf(f[i], x[j], acc[i][j]);
    }
    if (s + 1 < steps) store((s + 1) & 1);
    __syncthreads();
  }

#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (m0 + tx + j >= p.m) break;
    const Pixel to = pixel_of(p, (uint32_t)(m0 + tx + j));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int f = f0 + ty + i % 4 + i / 4 * (kTile / 2), oc = group * p.og + f;
      if (f >= p.og) continue;
      const int64_t y = ((int64_t)to.image * p.oc + oc) * (int)p.by_ohw.divisor + to.inside;
      p.y[y] = finish(p, acc[i][j], oc, y);
    }
  }
}

// One thread an output: depthwise filters, and groups too small for tiles.
__global__ void __launch_bounds__(256) conv_f32_direct(const Args p, int64_t n, FbDivisor64 by_ohw, FbDivisor64 by_oc) {
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
    const int64_t plane = by_ohw.quotient(i), image = by_oc.quotient(plane);
    const int oc = (int)(plane - image * by_oc.divisor), group = oc / p.og;
    const Pixel at = pixel_of(p, (uint32_t)(i - plane * by_ohw.divisor));
    const float *x = p.x + (image * p.c + group * p.cg) * p.h * p.w, *f = p.filter + (int64_t)oc * p.k;
    float sum = 0.f;
    for (int c = 0; c < p.cg; c++, x += (int64_t)p.h * p.w)
      for (int r = 0; r < p.kh; r++)
        for (int s = 0; s < p.kw; s++, f++) {
          const int ih = at.ih + r * p.dil_h, iw = at.iw + s * p.dil_w;
          if ((unsigned)ih < (unsigned)p.h && (unsigned)iw < (unsigned)p.w) sum = fmaf(*f, x[ih * p.w + iw], sum);
        }
    p.y[i] = finish(p, sum, oc, i);
  }
}

constexpr int kFewFilters = 8; // of a group: tiles would be mostly empty

} // namespace

extern "C" int fb_conv_f32(const fb_conv_s8 *d, const float *x, const float *w, const float *bias, const float *residual, float *y, fb_stream s) {
  if (fb_conv_bad(d) || !x || !w || !y) return FB_BAD_ARGUMENT;
  if (d->n == 0) return FB_OK;
  if (fb_conv_too_large(*d)) return FB_UNSUPPORTED;
  Args p = {};
  p.x = x, p.filter = w, p.bias = bias, p.residual = residual, p.y = y;
  p.c = d->c, p.h = d->h, p.w = d->w, p.oc = d->oc, p.kh = d->kh, p.kw = d->kw;
  p.stride_h = d->stride_h, p.stride_w = d->stride_w, p.pad_h = d->pad_h, p.pad_w = d->pad_w, p.dil_h = d->dil_h, p.dil_w = d->dil_w;
  p.cg = d->c / d->groups, p.og = d->oc / d->groups, p.k = fb_conv_depth(*d), p.m = (int)fb_conv_pixels(*d);
  p.act = d->act, p.act_min = d->act_min, p.act_max = d->act_max;
  p.by_ow = FbDivisor::of((uint32_t)d->ow), p.by_ohw = FbDivisor::of((uint32_t)d->oh * d->ow);
  p.by_taps = FbDivisor::of((uint32_t)d->kh * d->kw), p.by_kw = FbDivisor::of((uint32_t)d->kw);
  p.vector = p.k % 4 == 0 && fb_aligned(w, 16);
  if (p.og < kFewFilters) {
    const int64_t n = (int64_t)p.m * d->oc;
    FB_LAUNCH(conv_f32_direct, dim3(fb_grid(n, 256, 1 << 20)), dim3(256), 0, s, p, n, FbDivisor64::of((int64_t)d->oh * d->ow), FbDivisor64::of(d->oc));
    return fb_launch_status();
  }
  const int64_t tiles_m = fb_ceil_div(p.m, kTile), tiles_n = fb_ceil_div(p.og, kTile), blocks = tiles_m * tiles_n * d->groups;
  if (blocks > INT32_MAX) return FB_UNSUPPORTED;
  p.tiles_m = (int)tiles_m, p.tiles_n = (int)tiles_n;
  FB_LAUNCH(conv_f32_tile, dim3((unsigned)blocks), dim3(kTileThreads), 0, s, p);
  return fb_launch_status();
}
