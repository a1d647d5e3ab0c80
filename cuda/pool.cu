// pool.cu: maximum and average pooling of images, means of whole ones and of
// tokens. Bound by memory; windows overlap in the cache.
#include "strided.cuh"

namespace {

constexpr int kThreads = 256;

// The part of a window that lies in the image, and what an average divides by.
struct Window {
  int h0, h1, w0, w1;
  float count;
};
__device__ __forceinline__ Window window(const fb_pool &d, int oh, int ow) {
  const int h = oh * d.stride_h - d.pad_h, w = ow * d.stride_w - d.pad_w;
  Window r{max(h, 0), min(h + d.kh, d.h), max(w, 0), min(w + d.kw, d.w), 0.f};
  if (d.count_include_pad) r.count = (float)((min(h + d.kh, d.h + d.pad_h_end) - h) * (min(w + d.kw, d.w + d.pad_w_end) - w));
  else r.count = (float)(max(r.h1 - r.h0, 0) * max(r.w1 - r.w0, 0));
  return r;
}

struct PoolIndex {
  FbDivisor inner, ow, oh; // of y: innermost first
};

__global__ void __launch_bounds__(kThreads) pool_nchw(fb_pool d, PoolIndex index, uint32_t n, const float *__restrict__ x, float *__restrict__ y) {
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads) {
    const uint32_t row = index.ow.quotient(i), plane = index.oh.quotient(row);
    const Window k = window(d, (int)(row - plane * d.oh), (int)(i - row * d.ow));
    const float *from = x + (int64_t)plane * d.h * d.w;
    float a = d.average ? 0.f : -INFINITY;
    for (int h = k.h0; h < k.h1; h++)
      for (int w = k.w0; w < k.w1; w++) {
        const float v = from[h * d.w + w];
        a = d.average ? fb_add(a, v) : fmaxf(a, v);
      }
    y[i] = !d.average ? a : k.count > 0.f ? fb_div(a, k.count) : 0.f;
  }
}

// V channels of one pixel. T is float, or int8_t with its grids.
struct Grids {
  float x_scale, y_scale;
  int x_zero, y_zero;
  bool same;
};
__device__ __forceinline__ float finish(const fb_pool &d, const Grids &, float a, float count) { return !d.average ? a : count > 0.f ? fb_div(a, count) : 0.f; }
__device__ __forceinline__ int8_t finish(const fb_pool &d, const Grids &g, int a, float count) {
  if (!d.average && g.same) return (int8_t)(a + g.x_zero);
  float y = fb_mul((float)a, g.x_scale);
  if (d.average) y = count > 0.f ? fb_div(y, count) : 0.f;
  return fb_quantize_u8(y, g.y_scale, g.y_zero + 128);
}

template <class T, class A, int V>
__global__ void __launch_bounds__(kThreads) pool_nhwc(fb_pool d, Grids grids, PoolIndex index, uint32_t n, A lowest, const T *__restrict__ x, T *__restrict__ y) {
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads) {
    const uint32_t pixel = index.inner.quotient(i), row = index.ow.quotient(pixel), image = index.oh.quotient(row);
    const Window k = window(d, (int)(row - image * d.oh), (int)(pixel - row * d.ow));
    const T *from = x + (int64_t)image * d.h * d.w * d.c + (i - pixel * index.inner.divisor) * V;
    A a[V];
#pragma unroll
    for (int j = 0; j < V; j++) a[j] = d.average ? A(0) : lowest;
    for (int h = k.h0; h < k.h1; h++)
      for (int w = k.w0; w < k.w1; w++) {
        const FbVector<T, V> v = *reinterpret_cast<const FbVector<T, V> *>(from + (int64_t)(h * d.w + w) * d.c);
#pragma unroll
        for (int j = 0; j < V; j++) {
          const A value = (A)v.v[j] - (A)grids.x_zero;
          a[j] = d.average ? a[j] + value : a[j] > value ? a[j] : value;
        }
      }
    FbVector<T, V> r;
#pragma unroll
    for (int j = 0; j < V; j++) r.v[j] = finish(d, grids, a[j], k.count);
    *reinterpret_cast<FbVector<T, V> *>(y + (int64_t)i * V) = r;
  }
}

template <class T, class A, int V>
int run_nhwc(const fb_pool &d, const Grids &g, A lowest, const T *x, T *y, fb_stream s) {
  const PoolIndex index{FbDivisor::of((uint32_t)(d.c / V)), FbDivisor::of((uint32_t)d.ow), FbDivisor::of((uint32_t)d.oh)};
  const uint32_t n = (uint32_t)d.n * d.oh * d.ow * (d.c / V);
  FB_LAUNCH((pool_nhwc<T, A, V>), dim3(fb_grid(n, kThreads)), dim3(kThreads), 0, s, d, g, index, n, lowest, x, y);
  return fb_launch_status();
}

// ---- mean over tokens. Neighbouring threads take neighbouring columns, kParts share one.
constexpr int kParts = 8, kColumns = kThreads / kParts;

__global__ void __launch_bounds__(kThreads) masked_mean(const float *__restrict__ x, const float *__restrict__ mask, int64_t columns, int64_t t, FbDivisor64 d, float *__restrict__ y) {
  FB_SHARED(float, sums, kThreads);
  FB_SHARED(float, weights, kThreads);
  const int col = (int)threadIdx.x % kColumns, part = (int)threadIdx.x / kColumns;
  for (int64_t c0 = (int64_t)blockIdx.x * kColumns; c0 < columns; c0 += (int64_t)gridDim.x * kColumns) {
    const int64_t c = c0 + col;
    float sum = 0.f, weight = 0.f;
    if (c < columns) {
      const int64_t b = d.quotient(c);
      const float *from = x + b * t * d.divisor + (c - b * d.divisor);
      for (int64_t i = part; i < t; i += kParts) {
        const float m = mask[b * t + i];
        sum = fb_add(sum, fb_mul(from[i * d.divisor], m));
        weight = fb_add(weight, m);
      }
    }
    sums[threadIdx.x] = sum;
    weights[threadIdx.x] = weight;
    __syncthreads();
    if (part == 0 && c < columns) {
#pragma unroll
      for (int p = 1; p < kParts; p++) sum = fb_add(sum, sums[p * kColumns + col]), weight = fb_add(weight, weights[p * kColumns + col]);
      y[c] = fb_div(sum, fmaxf(weight, 1e-9f));
    }
    __syncthreads();
  }
}

bool few(int64_t a, int64_t b, int64_t c, int64_t d) { // a b c d < 2^31, each in 1..2^31-1 (a may be 0)
  int64_t n = a;
  for (int64_t v : {b, c, d}) {
    if (n > INT32_MAX / v) return false;
    n *= v;
  }
  return true;
}

int refuse(const fb_pool *d) {
  if (!d || d->n < 0) return FB_BAD_ARGUMENT;
  for (int v : {d->h, d->w, d->c, d->oh, d->ow, d->kh, d->kw, d->stride_h, d->stride_w})
    if (v < 1) return FB_BAD_ARGUMENT;
  for (int v : {d->pad_h, d->pad_w, d->pad_h_end, d->pad_w_end})
    if (v < 0) return FB_BAD_ARGUMENT;
  if (d->pad_h >= d->kh || d->pad_w >= d->kw) return FB_BAD_ARGUMENT;
  // every window begins before the image ends
  if ((int64_t)(d->oh - 1) * d->stride_h - d->pad_h >= d->h || (int64_t)(d->ow - 1) * d->stride_w - d->pad_w >= d->w) return FB_BAD_ARGUMENT;
  constexpr int kLargest = 1 << 15; // of a window: its area is an int
  if (d->kh > kLargest || d->kw > kLargest || d->pad_h_end > kLargest || d->pad_w_end > kLargest || !few(d->n, d->h, d->w, d->c) || !few(d->n, d->oh, d->ow, d->c)) return FB_UNSUPPORTED;
  return FB_OK;
}

} // namespace

extern "C" {

int fb_pool_f32(const fb_pool *d, const float *x, float *y, fb_stream s) {
  if (const int r = refuse(d)) return r;
  if (!x || !y) return FB_BAD_ARGUMENT;
  if (d->n == 0) return FB_OK;
  if (d->nhwc) {
    const Grids none{};
    return d->c % 4 == 0 && fb_aligned(x, 16) && fb_aligned(y, 16) ? run_nhwc<float, float, 4>(*d, none, -INFINITY, x, y, s) : run_nhwc<float, float, 1>(*d, none, -INFINITY, x, y, s);
  }
  const PoolIndex index{FbDivisor::of(1), FbDivisor::of((uint32_t)d->ow), FbDivisor::of((uint32_t)d->oh)};
  const uint32_t n = (uint32_t)d->n * d->c * d->oh * d->ow;
  FB_LAUNCH(pool_nchw, dim3(fb_grid(n, kThreads)), dim3(kThreads), 0, s, *d, index, n, x, y);
  return fb_launch_status();
}

int fb_pool_s8(const fb_pool *d, const int8_t *x, float x_scale, int32_t x_zero, int8_t *y, float y_scale, int32_t y_zero, fb_stream s) {
  if (const int r = refuse(d)) return r;
  if (!x || !y || !d->nhwc || !(x_scale > 0.f) || !(y_scale > 0.f) || x_zero < -128 || x_zero > 127 || y_zero < -128 || y_zero > 127) return FB_BAD_ARGUMENT;
  if (d->average && !few(1, d->h, d->w, 255)) return FB_UNSUPPORTED;
  if (d->n == 0) return FB_OK;
  const Grids g{x_scale, y_scale, x_zero, y_zero, x_scale == y_scale && x_zero == y_zero};
  constexpr int kLowest = -256; // below every x - x_zero
  if (d->c % 16 == 0 && fb_aligned(x, 16) && fb_aligned(y, 16)) return run_nhwc<int8_t, int, 16>(*d, g, kLowest, x, y, s);
  if (d->c % 4 == 0 && fb_aligned(x, 4) && fb_aligned(y, 4)) return run_nhwc<int8_t, int, 4>(*d, g, kLowest, x, y, s);
  return run_nhwc<int8_t, int, 1>(*d, g, kLowest, x, y, s);
}

int fb_global_average_f32(const float *x, int n, int c, int64_t hw, int nhwc, float *y, fb_stream s) {
  if (n < 0 || c < 1 || hw < 1) return FB_BAD_ARGUMENT;
  return nhwc ? fb_reduce(FB_REDUCE_MEAN, x, n, hw, c, y, s) : fb_reduce(FB_REDUCE_MEAN, x, (int64_t)n * c, hw, 1, y, s);
}

int fb_masked_mean(const float *x, const float *mask, int64_t b, int64_t t, int64_t d, float *y, fb_stream s) {
  if (!x || !mask || !y || b < 0 || t < 0 || d < 1 || (b && (d > kMaxElements / b || (t && b * d > kMaxElements / t)))) return FB_BAD_ARGUMENT;
  if (b == 0) return FB_OK;
  FB_LAUNCH(masked_mean, dim3(fb_grid(b * d, kColumns)), dim3(kThreads), 0, s, x, mask, b * d, t, FbDivisor64::of(d), y);
  return fb_launch_status();
}

} // extern "C"
