// conv_float.cu: convolutions that stay in float, NCHW, as a product of matrices
// that is never stored: filters [oc, k] times patches [k, pixels], k = c/groups
// kh kw in the order of the filter, so that neighbouring threads read and write
// neighbouring pixels. FP32 by fma (conv_float.cuh); TF32 and FP16 on tensor
// cores, by the machinery of gemm_float.cu (sm_80 and later).
#include "conv_float.cuh"
#include "mma_float.cuh"

#include <cstdio>

namespace {

// What element k of a filter reads, seen from the first tap of a window.
struct alignas(8) Tap {
  uint32_t offset; // in its image; adding wraps, and what lies inside the image ends up right
  int at;          // row << 16 | column, < 0 past the last
};
constexpr int kOutside = -(1 << 30); // no tap brings a row from there into the image

// The patches of a block in B's stages. A thread has one pixel, and of a step
// every kThreads / BN th element.
template <class T, int BN, int THREADS> struct Patches;

// TF32: B is [k, n]. Elements are copied one by one, in the background.
template <int BN, int THREADS>
struct Patches<float, BN, THREADS> {
  static constexpr bool kTransB = false;
  static constexpr int kStep = kFbStepBytes / 4, kApart = THREADS / BN, kLoads = kStep / kApart, kRow = fb_row_kn<float, BN>();
  static_assert(THREADS % BN == 0 && kStep % kApart == 0, "every thread has one pixel, and loads as often");
  const FbConvFloat &p;
  const float *image;
  int ih, iw;
  uint32_t base;
  int place, first;

  __device__ __forceinline__ Patches(const FbConvFloat &args, int group, int64_t m0) : p(args) {
    const int column = (int)threadIdx.x % BN;
    const bool in = m0 + column < p.m;
    const FbPixel at = fb_pixel(p, in ? (uint32_t)(m0 + column) : 0u);
    image = p.x + ((int64_t)at.image * p.c + group * p.cg) * p.h * p.w;
    ih = in ? at.ih : kOutside, iw = at.iw;
    base = (uint32_t)at.ih * (uint32_t)p.w + (uint32_t)at.iw;
    first = (int)threadIdx.x / BN;
    place = first * kRow + column * 4;
  }
  __device__ __forceinline__ bool inside(const Tap &t) const {
    return t.at >= 0 && (unsigned)(ih + (t.at >> 16)) < (unsigned)p.h && (unsigned)(iw + (t.at & 0xffff)) < (unsigned)p.w;
  }
  __device__ __forceinline__ void fetch(const Tap *taps, unsigned char *stage) {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const Tap t = taps[first + i * kApart];
      const bool in = inside(t);
      fb_cp_async<4>(stage + place + i * kApart * kRow, in ? image + (base + t.offset) : p.x, in);
    }
  }
  __device__ __forceinline__ void store(unsigned char *) const {}
};

// FP16: B is [n, k]. Elements are rounded on their way through registers, where
// they stay while a step is multiplied.
template <int BN, int THREADS>
struct Patches<fb_f16, BN, THREADS> : Patches<float, BN, THREADS> {
  using Base = Patches<float, BN, THREADS>;
  static constexpr bool kTransB = true;
  static constexpr int kStep = kFbStepBytes / 2, kLoads = kStep / Base::kApart;
  static_assert(kLoads % 8 == 0, "whole chunks of 16 bytes");
  float next[kLoads];
  int place;

  __device__ __forceinline__ Patches(const FbConvFloat &args, int group, int64_t m0) : Base(args, group, m0) {
    place = (int)threadIdx.x % BN * kFbRowBytes + this->first * kLoads * 2;
  }
  __device__ __forceinline__ void fetch(const Tap *taps, unsigned char *) {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const Tap t = taps[this->first * kLoads + i];
      next[i] = this->inside(t) ? this->image[this->base + t.offset] : 0.f;
    }
  }
  __device__ __forceinline__ void store(unsigned char *stage) const {
#pragma unroll
    for (int i = 0; i < kLoads; i += 8) {
      const float *v = next + i;
      *reinterpret_cast<uint4 *>(stage + place + i * 2) = make_uint4(fb_pack_f16x2(v[0], v[1]), fb_pack_f16x2(v[2], v[3]), fb_pack_f16x2(v[4], v[5]), fb_pack_f16x2(v[6], v[7]));
    }
  }
};

// What the epilogue does with four pixels of a filter.
struct Store {
  const FbConvFloat &p;
  int group;
};
__device__ __forceinline__ void fb_store4(const Store &s, int64_t row, int64_t col, float (&acc)[4]) {
  const FbConvFloat &p = s.p;
  if (row >= p.og || col >= p.m) return;
  const int oc = s.group * p.og + (int)row, plane = (int)p.by_ohw.divisor, image = (int)p.by_ohw.quotient((uint32_t)col);
  int inside = (int)col - image * plane;
  int64_t at = ((int64_t)image * p.oc + oc) * plane + inside;
  if (p.vector) { // four of one image
    if (p.bias) {
      const float b = p.bias[oc];
#pragma unroll
      for (int j = 0; j < 4; j++) acc[j] = fb_add(acc[j], b);
    }
    if (p.residual) {
      const float4 r = *reinterpret_cast<const float4 *>(p.residual + at);
      acc[0] = fb_add(acc[0], r.x), acc[1] = fb_add(acc[1], r.y), acc[2] = fb_add(acc[2], r.z), acc[3] = fb_add(acc[3], r.w);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) acc[j] = fb_activate(p.act, acc[j], p.act_min, p.act_max);
    *reinterpret_cast<float4 *>(p.y + at) = make_float4(acc[0], acc[1], acc[2], acc[3]);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (col + j >= p.m) break;
    p.y[at] = fb_conv_finish(p, acc[j], oc, at);
    at++;
    if (++inside == plane) inside = 0, at += (int64_t)(p.oc - 1) * plane; // the next image
  }
}

constexpr int kTapSlots = 4;

// BM filters x BN pixels a block, 16 MT x 8 NT a warp. ALIGNED: filters are whole
// chunks of 16 bytes.
template <class T, bool ALIGNED, int BM, int BN, int MT, int NT>
__device__ __forceinline__ void product(const FbConvFloat &p) {
  constexpr int kAcross = BN / (8 * NT), kThreads = BM / (16 * MT) * kAcross * 32;
  constexpr int kChunk = 16 / (int)sizeof(T), kStep = kFbStepBytes / (int)sizeof(T);
  using B = Patches<T, BN, kThreads>;
  constexpr int kBytesA = BM * kFbRowBytes, kBytesB = fb_stage_b<T, B::kTransB, BN>(), kLoadsA = BM * 4 / kThreads, kApartA = kThreads / 4;
  static_assert(BM * 4 % kThreads == 0 && kTapSlots * kStep <= kThreads, "whole chunks; the first taps in one go");
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(Tap, taps, kTapSlots * kStep);
  unsigned char *stages_b = shared + kFbStages * kBytesA;
  const int tid = (int)threadIdx.x, warp = tid >> 5, wm = warp / kAcross * 16 * MT, wn = warp % kAcross * 8 * NT;
  // Filters go fastest: blocks that run together share pixels, which are more.
  const int at_m = (int)(blockIdx.x / (unsigned)p.tiles_n), group = at_m / p.tiles_m;
  const int f0 = (int)(blockIdx.x - (unsigned)at_m * (unsigned)p.tiles_n) * BM;
  const int64_t m0 = (int64_t)(at_m - group * p.tiles_m) * BN;
  const int steps = (int)fb_ceil_div(p.k, kStep);

  // The taps of step s are worked out once, a step before its elements are fetched.
  auto work_out = [&](int k, int slot) {
    Tap t{0u, -1};
    if (k < p.k) {
      const int c = (int)p.by_taps.quotient((uint32_t)k), tap = k - c * (int)p.by_taps.divisor, r = (int)p.by_kw.quotient((uint32_t)tap), s = tap - r * p.kw;
      t.offset = ((uint32_t)c * (uint32_t)p.h + (uint32_t)(r * p.dil_h)) * (uint32_t)p.w + (uint32_t)(s * p.dil_w);
      t.at = r * p.dil_h << 16 | s * p.dil_w;
    }
    taps[slot] = t;
  };
  if (tid < kTapSlots * kStep) work_out(tid, tid);

  const int ra = tid / 4, k_at = tid % 4 * kChunk, rows = p.og - f0 - ra;
  const T *filter = static_cast<const T *>(p.filter), *from = filter + ((int64_t)group * p.og + f0 + ra) * p.k + k_at;
  unsigned char *const to = shared + ra * kFbRowBytes + tid % 4 * 16;
  B patches(p, group, m0);
  int next = 0, left = p.k - k_at;
  auto fetch = [&](int stage) {
    if (next < steps) {
#pragma unroll
      for (int i = 0; i < kLoadsA; i++)
        fb_copy16<ALIGNED>(to + stage * kBytesA + i * kApartA * kFbRowBytes, from + (int64_t)i * kApartA * p.k, filter, i * kApartA < rows ? left : 0);
      patches.fetch(taps + next % kTapSlots * kStep, stages_b + stage * kBytesB);
      from += kStep;
      left -= kStep;
    }
    fb_cp_commit(); // also an empty one: the waits below count groups
  };
  auto store = [&](int stage) {
    if (next++ < steps) patches.store(stages_b + stage * kBytesB);
  };

  float acc[MT][NT][4] = {};
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kFbStages - 1; s++) {
    fetch(s);
    store(s);
  }
  for (int step = 0; step < steps; step++) {
    fb_cp_wait<kFbStages - 2>();
    __syncthreads(); // this step has landed for everyone, and everyone is done with the stage and the taps that are filled next
    const int stage = (step + kFbStages - 1) % kFbStages;
    fetch(stage);
    if (tid < kStep) work_out((step + kTapSlots) * kStep + tid, step % kTapSlots * kStep + tid);
    fb_mma_step<T, B::kTransB, BN>(acc, shared + step % kFbStages * kBytesA + wm * kFbRowBytes,
                                   stages_b + step % kFbStages * kBytesB + wn * (B::kTransB ? kFbRowBytes : (int)sizeof(T)));
    store(stage);
  }
  __syncthreads(); // all copies have landed, and the stages become staging of the epilogue
  fb_store_mma<MT, NT>(Store{p, group}, acc, f0 + wm, m0 + wn, reinterpret_cast<float *>(shared) + warp * fb_stage_words(NT));
}

template <int TILE>
__global__ void __launch_bounds__(TILE * 2, kFbResident<TILE>) conv_tf32_mma(const FbConvFloat p) { product<float, true, TILE, TILE, TILE / 32, 4>(p); }
template <int TILE>
__global__ void __launch_bounds__(TILE * 2, kFbResident<TILE>) conv_f16_mma(const FbConvFloat p) { product<fb_f16, true, TILE, TILE, TILE / 32, 4>(p); }
__global__ void __launch_bounds__(128, kFbResident<64>) conv_tf32_unaligned(const FbConvFloat p) { product<float, false, 64, 64, 2, 4>(p); }
__global__ void __launch_bounds__(128, kFbResident<64>) conv_f16_unaligned(const FbConvFloat p) { product<fb_f16, false, 64, 64, 2, 4>(p); }

constexpr int kFewFilters = 8; // fewer in a group: tiles would be mostly empty

enum Kernel { kDirect, kFma, kMma };

struct Choice {
  Kernel kernel;
  int tile; // filters and pixels of a block
};

// The kernel for d on a device. Large tiles read least, where they are not half
// empty and still give every multiprocessor one.
Choice pick(const fb_conv_s8 &d, int products, bool aligned, const fb_device_info &dev) {
  const int64_t og = d.oc / d.groups;
  if (og < kFewFilters) return Choice{kDirect, 1};
  if (products == FB_PRODUCTS_FP32 || dev.sm < 80) return Choice{kFma, kConvTile};
  const int64_t blocks = fb_ceil_div(fb_conv_pixels(d), 128) * fb_ceil_div(og, 128) * d.groups;
  return Choice{kMma, aligned && og > 64 && blocks >= dev.sms ? 128 : 64};
}

template <class T>
void launch(const fb_conv_s8 &d, FbConvFloat &p, const Choice &choice, int64_t blocks, bool aligned, fb_stream s) {
  switch (choice.kernel) {
  case kDirect: {
    const int64_t n = (int64_t)p.m * d.oc;
    FB_LAUNCH(conv_direct<T>, dim3(fb_grid(n, 256, 1 << 20)), dim3(256), 0, s, p, n, FbDivisor64::of((int64_t)d.oh * d.ow), FbDivisor64::of(d.oc));
    break;
  }
  case kFma: FB_LAUNCH(conv_fma<T>, dim3((unsigned)blocks), dim3(kConvTileThreads), 0, s, p); break;
  case kMma: {
    constexpr bool kHalf = sizeof(T) == 2, kTransB = Patches<T, 64, 128>::kTransB;
    const size_t large = kFbStages * (128 * kFbRowBytes + fb_stage_b<T, kTransB, 128>()), small = kFbStages * (64 * kFbRowBytes + fb_stage_b<T, kTransB, 64>());
    static_assert(8 * fb_stage_words(4) * 4 <= kFbStages * 128 * kFbRowBytes && 4 * fb_stage_words(4) * 4 <= kFbStages * 64 * kFbRowBytes, "the epilogue stages in the pipeline's memory");
    const auto whole = kHalf ? conv_f16_mma<128> : conv_tf32_mma<128>, quarter = kHalf ? conv_f16_mma<64> : conv_tf32_mma<64>, unaligned = kHalf ? conv_f16_unaligned : conv_tf32_unaligned;
    if (choice.tile == 128) FB_LAUNCH(whole, dim3((unsigned)blocks), dim3(256), large, s, p);
    else if (aligned) FB_LAUNCH(quarter, dim3((unsigned)blocks), dim3(128), small, s, p);
    else FB_LAUNCH(unaligned, dim3((unsigned)blocks), dim3(128), small, s, p);
  }
  }
}

} // namespace

extern "C" int fb_conv_float_pick(const fb_conv_s8 *d, int products, const fb_device_info *dev, char *text, size_t text_bytes) {
  if (fb_conv_bad(d) || d->n < 1 || products < FB_PRODUCTS_FP32 || products > FB_PRODUCTS_FP16 || !dev || dev->sms < 1 || !text || !text_bytes || fb_conv_too_large(*d)) return FB_BAD_ARGUMENT;
  const bool aligned = fb_conv_depth(*d) * (products == FB_PRODUCTS_FP16 ? 2 : 4) % 16 == 0;
  const Choice c = pick(*d, products, aligned, *dev);
  if (c.kernel == kDirect)
    snprintf(text, text_bytes, "direct f32");
  else
    snprintf(text, text_bytes, "%s %s %dx%d%s; %lld tiles", c.kernel == kFma ? "fma" : "mma", c.kernel == kFma ? "f32" : products == FB_PRODUCTS_FP16 ? "f16" : "tf32", c.tile, c.tile,
             c.kernel == kMma && !aligned ? ", filters not aligned" : "", (long long)(fb_ceil_div(fb_conv_pixels(*d), c.tile) * fb_ceil_div(d->oc / d->groups, c.tile) * d->groups));
  return FB_OK;
}

extern "C" int fb_conv_float(const fb_conv_s8 *d, int products, const float *x, const void *w, const float *bias, const float *residual, float *y, fb_stream s) {
  if (fb_conv_bad(d) || products < FB_PRODUCTS_FP32 || products > FB_PRODUCTS_FP16 || !x || !w || !y) return FB_BAD_ARGUMENT;
  if (d->n == 0) return FB_OK;
  if (fb_conv_too_large(*d)) return FB_UNSUPPORTED;
  fb_device_info dev;
  if (const int e = fb_device(&dev)) return e;
  FbConvFloat p = {};
  p.x = x, p.filter = w, p.bias = bias, p.residual = residual, p.y = y;
  p.c = d->c, p.h = d->h, p.w = d->w, p.oc = d->oc, p.kh = d->kh, p.kw = d->kw;
  p.stride_h = d->stride_h, p.stride_w = d->stride_w, p.pad_h = d->pad_h, p.pad_w = d->pad_w, p.dil_h = d->dil_h, p.dil_w = d->dil_w;
  p.cg = d->c / d->groups, p.og = d->oc / d->groups, p.k = fb_conv_depth(*d), p.m = (int)fb_conv_pixels(*d);
  p.act = d->act, p.act_min = d->act_min, p.act_max = d->act_max;
  p.by_ow = FbDivisor::of((uint32_t)d->ow), p.by_ohw = FbDivisor::of((uint32_t)d->oh * d->ow);
  p.by_taps = FbDivisor::of((uint32_t)d->kh * d->kw), p.by_kw = FbDivisor::of((uint32_t)d->kw);
  const int size = products == FB_PRODUCTS_FP16 ? 2 : 4;
  const bool aligned = p.k * size % 16 == 0 && fb_aligned(w, 16);
  const Choice choice = pick(*d, products, aligned, dev);
  p.vector = choice.kernel == kMma ? d->oh * d->ow % 4 == 0 && fb_aligned(y, 16) && fb_aligned(residual, 16) : p.k % 4 == 0 && fb_aligned(w, 4 * (size_t)size);
  const int64_t tiles_m = fb_ceil_div(p.m, choice.tile), tiles_n = fb_ceil_div(p.og, choice.tile), blocks = tiles_m * tiles_n * d->groups;
  if (choice.kernel != kDirect && blocks > INT32_MAX) return FB_UNSUPPORTED;
  p.tiles_m = (int)tiles_m, p.tiles_n = (int)tiles_n;
  if (size == 2) launch<fb_f16>(*d, p, choice, blocks, aligned, s);
  else launch<float>(*d, p, choice, blocks, aligned, s);
  return fb_launch_status();
}
