// conv_float.cuh: what the kernels of conv_float.cu have in common, and those
// without tensor cores: true FP32 by fma, every device before sm_80, and groups
// of few filters, which have one thread an output.
#pragma once
#include "conv_geometry.cuh"
#include "float_io.cuh"
#include "strided.cuh"

struct FbConvFloat {
  const float *x, *bias, *residual;
  const void *filter; // f32, or f16
  float *y;
  int c, h, w, oc, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int cg, og, k, act;
  int m;                // pixels of all images
  int tiles_m, tiles_n; // of pixels, of the filters of a group
  bool vector;          // fma: four neighbours of a filter are aligned; tensor cores: four pixels of y and residual are, and of one image
  float act_min, act_max;
  FbDivisor by_ow, by_ohw, by_taps, by_kw;
};

__device__ __forceinline__ float fb_conv_finish(const FbConvFloat &p, float sum, int oc, int64_t at) {
  if (p.bias) sum = fb_add(sum, p.bias[oc]);
  if (p.residual) sum = fb_add(sum, p.residual[at]);
  return fb_activate(p.act, sum, p.act_min, p.act_max);
}

// Where a pixel of the output lies, and what it reads.
struct FbPixel {
  int image, ih, iw; // of the window's first tap
  int inside;        // number within its image's channel
};
__device__ __forceinline__ FbPixel fb_pixel(const FbConvFloat &p, uint32_t m) {
  FbPixel q;
  q.image = (int)p.by_ohw.quotient(m);
  q.inside = (int)(m - (uint32_t)q.image * p.by_ohw.divisor);
  const int oh = (int)p.by_ow.quotient((uint32_t)q.inside);
  q.ih = oh * p.stride_h - p.pad_h;
  q.iw = (q.inside - oh * (int)p.by_ow.divisor) * p.stride_w - p.pad_w;
  return q;
}

constexpr int kConvTile = 64, kConvTileThreads = 128;

// 64 filters x 64 pixels a block, 8 x 4 a thread, k in steps of 16 through two buffers.
template <class T>
__global__ void __launch_bounds__(kConvTileThreads, 4) conv_fma(const FbConvFloat p) {
  constexpr int kTile = kConvTile, kStep = 16, kLd = kTile + 4;
  FB_SHARED(float, tile_f, 2 * kStep * kLd);
  FB_SHARED(float, tile_x, 2 * kStep * kLd);
  const int tid = (int)threadIdx.x;
  const int at_m = (int)(blockIdx.x % (unsigned)p.tiles_m), rest = (int)(blockIdx.x / (unsigned)p.tiles_m);
  const int group = rest / p.tiles_n, f0 = rest % p.tiles_n * kTile;
  const int64_t m0 = (int64_t)at_m * kTile;

  // Filters: 4 of k, of two rows 32 apart. Patches: one pixel, every second k.
  const int row = tid / 4, k_at = tid % 4 * 4, column = tid % kTile, k_odd = tid / kTile;
  const T *filter = static_cast<const T *>(p.filter) + ((int64_t)group * p.og + f0 + row) * p.k;
  const bool in_m = m0 + column < p.m;
  const FbPixel at = fb_pixel(p, in_m ? (uint32_t)(m0 + column) : 0u);
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
    const FbPixel to = fb_pixel(p, (uint32_t)(m0 + tx + j));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int f = f0 + ty + i % 4 + i / 4 * (kTile / 2), oc = group * p.og + f;
      if (f >= p.og) continue;
      const int64_t y = ((int64_t)to.image * p.oc + oc) * (int)p.by_ohw.divisor + to.inside;
      p.y[y] = fb_conv_finish(p, acc[i][j], oc, y);
    }
  }
}

// One thread an output: depthwise filters, and groups too small for tiles.
template <class T>
__global__ void __launch_bounds__(256) conv_direct(const FbConvFloat p, int64_t n, FbDivisor64 by_ohw, FbDivisor64 by_oc) {
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
    const int64_t plane = by_ohw.quotient(i), image = by_oc.quotient(plane);
    const int oc = (int)(plane - image * by_oc.divisor), group = oc / p.og;
    const FbPixel at = fb_pixel(p, (uint32_t)(i - plane * by_ohw.divisor));
    const float *x = p.x + (image * p.c + group * p.cg) * p.h * p.w;
    const T *f = static_cast<const T *>(p.filter) + (int64_t)oc * p.k;
    float sum = 0.f;
    for (int c = 0; c < p.cg; c++, x += (int64_t)p.h * p.w)
      for (int r = 0; r < p.kh; r++)
        for (int s = 0; s < p.kw; s++, f++) {
          const int ih = at.ih + r * p.dil_h, iw = at.iw + s * p.dil_w;
          if ((unsigned)ih < (unsigned)p.h && (unsigned)iw < (unsigned)p.w) sum = fmaf(fb_to_float<T>(*f), x[ih * p.w + iw], sum);
        }
    p.y[i] = fb_conv_finish(p, sum, oc, i);
  }
}
