// conv_geometry.cuh: which convolutions the kernels of conv.cu and conv_float.cu
// can index, by the same rules for both.
#pragma once
#include "fb_cuda.h"

constexpr int64_t kConvMaxK = 65792;                      // 255 * 128 * k < 2^31
constexpr int64_t kConvMaxImage = int64_t(1) << 30;       // elements of x: addressed with 32 bits
constexpr int64_t kConvMaxPixels = INT32_MAX - (1 << 15); // of y
constexpr int kConvMaxExtent = 1 << 15;                   // of a dilated filter, of padding and of strides

inline bool fb_conv_bad(const fb_conv_s8 *d) {
  if (!d || d->n < 0 || d->pad_h < 0 || d->pad_w < 0 || d->act < FB_ACT_NONE || d->act > FB_ACT_CLIP) return true;
  for (int v : {d->h, d->w, d->c, d->oc, d->kh, d->kw, d->oh, d->ow, d->stride_h, d->stride_w, d->dil_h, d->dil_w, d->groups})
    if (v < 1) return true;
  for (int v : {d->kh, d->kw, d->stride_h, d->stride_w, d->dil_h, d->dil_w})
    if (v > kConvMaxExtent) return true;
  if (d->c % d->groups || d->oc % d->groups || d->pad_h > kConvMaxExtent || d->pad_w > kConvMaxExtent || d->kh * d->dil_h > kConvMaxExtent || d->kw * d->dil_w > kConvMaxExtent) return true;
  return (int64_t)d->kh * d->kw * (d->c / d->groups) > kConvMaxK || d->oh > INT32_MAX / d->stride_h - kConvMaxExtent || d->ow > INT32_MAX / d->stride_w - kConvMaxExtent;
}

inline bool fb_conv_too_large(const fb_conv_s8 &d) {
  int64_t in = d.n, pixels = d.n;
  for (int v : {d.h, d.w, d.c}) {
    if (in > kConvMaxImage / v) return true;
    in *= v;
  }
  for (int v : {d.oh, d.ow}) {
    if (pixels > kConvMaxPixels / v) return true;
    pixels *= v;
  }
  return pixels * d.groups > INT32_MAX;
}

inline int64_t fb_conv_pixels(const fb_conv_s8 &d) { return (int64_t)d.n * d.oh * d.ow; }
inline int fb_conv_depth(const fb_conv_s8 &d) { return d.kh * d.kw * (d.c / d.groups); }
