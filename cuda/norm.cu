// norm.cu: LayerNorm with what surrounds it in an encoder (the residual before,
// the row quantization after), and softmax. Bound by memory: the row stays in
// registers between the passes. Sums run in a fixed order, so the same input
// gives the same bits.
#include "float_io.cuh"
#include <cfloat>

namespace {

constexpr int kThreads = 128; // a row of LayerNorm is one block's
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxRows = 0x7fffffff; // gridDim.x

// Four neighbours of a row of k values; zeros past its end.
__device__ __forceinline__ void load4(const float *row, int64_t at, int64_t k, bool vector, float (&to)[4]) { fb_read4(row + at, k - at, vector, to); }
__device__ __forceinline__ void store4(float *row, int64_t at, int64_t k, bool vector, const float (&v)[4]) { fb_write4(row + at, k - at, vector, v); }

struct LayerNorm {
  const float *x, *residual, *gamma, *beta, *divisor;
  float *sum, *y;
  int8_t *q;
  float *scale;
  int32_t *zero;
  int64_t k, ldq;
  float epsilon;
  bool vector;   // every float row starts at 16 bytes
  bool vector_q; // rows of q start at 4
};

// One row a block, 4 * ITEMS values a thread; ITEMS = 0 reads the row again in
// each pass instead. What it reads again, it reads from where it wrote it, so
// sum and y may be x or residual.
template <int ITEMS>
__global__ void __launch_bounds__(kThreads, 3) layer_norm(LayerNorm p) {
  FB_SHARED(float, scratch, kWarps);
  const int64_t row = blockIdx.x, base = row * p.k;
  const int tid = (int)threadIdx.x;
  float kept[ITEMS > 0 ? ITEMS : 1][4];

  // f(at, v) for each four of the thread's values.
  auto each = [&](auto f) {
    if (ITEMS > 0) {
#pragma unroll
      for (int i = 0; i < ITEMS; i++) f((int64_t)(i * kThreads + tid) * 4, kept[i]);
    } else {
      for (int64_t at = (int64_t)tid * 4; at < p.k; at += kThreads * 4) f(at, kept[0]);
    }
  };
  auto load = [&](int64_t at, float (&v)[4]) {
    load4(p.x + base, at, p.k, p.vector, v);
    if (p.residual) {
      float r[4];
      load4(p.residual + base, at, p.k, p.vector, r);
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = fb_add(v[j], r[j]);
    }
  };
  auto reload = [&](int64_t at, float (&v)[4]) {
    if (ITEMS > 0) return;
    if (p.sum) load4(p.sum + base, at, p.k, p.vector, v);
    else load(at, v);
  };

  float total = 0.f;
  each([&](int64_t at, float(&v)[4]) {
    load(at, v);
#pragma unroll
    for (int j = 0; j < 4; j++) total = fb_add(total, v[j]);
    if (p.sum) store4(p.sum + base, at, p.k, p.vector, v);
  });
  const float mean = fb_div(fb_block_reduce<kWarps>(total, scratch, FbSum()), (float)p.k);

  float squares = 0.f;
  each([&](int64_t at, float(&v)[4]) {
    reload(at, v);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float d = at + j < p.k ? fb_add(v[j], -mean) : 0.f;
      squares = fb_add(squares, fb_mul(d, d));
    }
  });
  const float variance = fb_div(fb_block_reduce<kWarps>(squares, scratch, FbSum()), (float)p.k);
  const float rstd = fb_div(1.f, sqrtf(fb_add(variance, p.epsilon)));

  // fb_mul and fb_add: a value computed twice (ITEMS = 0) must be the same twice.
  auto normalise = [&](int64_t at, float (&v)[4]) {
    float g[4], b[4] = {};
    load4(p.gamma, at, p.k, p.vector, g);
    if (p.beta) load4(p.beta, at, p.k, p.vector, b);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = fb_add(fb_mul(fb_mul(fb_add(v[j], -mean), rstd), g[j]), b[j]);
  };
  auto smooth = [&](int64_t at, float (&v)[4]) {
    if (!p.divisor) return;
    float d[4];
    load4(p.divisor, at, p.k, p.vector, d);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = fb_div(v[j], at + j < p.k ? d[j] : 1.f);
  };
  float lo = 0.f, hi = 0.f;
  each([&](int64_t at, float(&v)[4]) {
    reload(at, v);
    normalise(at, v);
    if (p.y) store4(p.y + base, at, p.k, p.vector, v);
    if (!p.q) return;
    smooth(at, v);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at + j < p.k) lo = fminf(lo, v[j]), hi = fmaxf(hi, v[j]);
  });
  if (!p.q) return;

  lo = fb_block_reduce<kWarps>(lo, scratch, FbMin());
  hi = fb_block_reduce<kWarps>(hi, scratch, FbMax());
  const FbGrid grid = fb_row_grid(lo, hi);
  if (tid == 0) {
    p.scale[row] = grid.scale;
    p.zero[row] = grid.zero_u8 - 128;
  }
  int8_t *out = p.q + row * p.ldq;
  each([&](int64_t at, float(&v)[4]) {
    if (ITEMS == 0) {
      if (p.y) load4(p.y + base, at, p.k, p.vector, v);
      else reload(at, v), normalise(at, v);
      smooth(at, v);
    }
    int8_t c[4];
#pragma unroll
    for (int j = 0; j < 4; j++) c[j] = at + j < p.k ? fb_quantize_u8(v[j], grid.scale, grid.zero_u8) : (int8_t)0;
    if (p.vector_q && at + 4 <= p.ldq) {
      *reinterpret_cast<char4 *>(out + at) = make_char4(c[0], c[1], c[2], c[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (at + j < p.ldq) out[at + j] = c[j];
    }
  });
  // The padding beyond what the loop above covered.
  const int64_t covered = ITEMS > 0 ? (int64_t)ITEMS * kThreads * 4 : fb_ceil_div(p.k, 4) * 4;
  for (int64_t at = covered + tid; at < p.ldq; at += kThreads) out[at] = 0;
}

// ---- softmax. The maximum is at least -FLT_MAX and so is each value: a row of
// minus infinities is uniform, as one of equal finite values, and not NaN. A
// NaN stays one.
__device__ __forceinline__ float finite_below(float v) { return v < -FLT_MAX ? -FLT_MAX : v; }

// One row a warp, 4 * ITEMS values a lane.
template <int ITEMS>
__global__ void __launch_bounds__(kThreads) softmax_warp(const float *x, int64_t m, int64_t k, float *y, bool vector) {
  const int64_t row = blockIdx.x * (int64_t)kWarps + (threadIdx.x >> 5);
  if (row >= m) return;
  x += row * k;
  y += row * k;
  float v[ITEMS][4], most = -FLT_MAX, total = 0.f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    load4(x, (i * 32 + fb_lane()) * 4, k, vector, v[i]);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if ((i * 32 + fb_lane()) * 4 + j < k) most = fmaxf(most, v[i][j] = finite_below(v[i][j]));
  }
  most = fb_warp_max(most);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      v[i][j] = (i * 32 + fb_lane()) * 4 + j < k ? expf(fb_add(v[i][j], -most)) : 0.f;
      total = fb_add(total, v[i][j]);
    }
  total = fb_warp_sum(total);
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) v[i][j] = fb_div(v[i][j], total);
    store4(y, (i * 32 + fb_lane()) * 4, k, vector, v[i]);
  }
}

// One row a block, read three times: rows that do not fit a warp.
__global__ void __launch_bounds__(kThreads) softmax_block(const float *x, int64_t k, float *y, bool vector) {
  FB_SHARED(float, scratch, kWarps);
  x += blockIdx.x * k;
  y += blockIdx.x * k;
  const int64_t first = (int64_t)threadIdx.x * 4;
  float v[4], most = -FLT_MAX, total = 0.f;
  for (int64_t at = first; at < k; at += kThreads * 4) {
    load4(x, at, k, vector, v);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at + j < k) most = fmaxf(most, v[j]);
  }
  most = fb_block_reduce<kWarps>(most, scratch, FbMax());
  for (int64_t at = first; at < k; at += kThreads * 4) {
    load4(x, at, k, vector, v);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at + j < k) total = fb_add(total, expf(fb_add(finite_below(v[j]), -most)));
  }
  total = fb_block_reduce<kWarps>(total, scratch, FbSum());
  for (int64_t at = first; at < k; at += kThreads * 4) {
    load4(x, at, k, vector, v);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = fb_div(expf(fb_add(finite_below(v[j]), -most)), total);
    store4(y, at, k, vector, v);
  }
}

} // namespace

extern "C" {

int fb_layer_norm(const float *x, const float *residual, const float *gamma, const float *beta, int64_t m, int64_t k, float epsilon, float *sum, float *y,
                  const float *divisor, int8_t *q, int64_t ldq, float *scale, int32_t *zero, fb_stream s) {
  if (!x || !gamma || m < 0 || m > kMaxRows || k < 1 || !(epsilon >= 0.f)) return FB_BAD_ARGUMENT;
  if (q && (!scale || !zero || ldq < k)) return FB_BAD_ARGUMENT;
  if (m == 0 || (!sum && !y && !q)) return FB_OK;
  LayerNorm p{x, residual, gamma, beta, divisor, sum, y, q, scale, zero, k, ldq, epsilon, k % 4 == 0, ldq % 4 == 0 && fb_aligned(q, 4)};
  for (const float *f : {x, residual, gamma, beta, divisor, (const float *)sum, (const float *)y}) p.vector = p.vector && fb_aligned(f, 16);
  const dim3 grid((unsigned)m), block(kThreads);
  if (k <= 4 * kThreads) FB_LAUNCH(layer_norm<1>, grid, block, 0, s, p);
  else if (k <= 8 * kThreads) FB_LAUNCH(layer_norm<2>, grid, block, 0, s, p);
  else if (k <= 32 * kThreads) FB_LAUNCH(layer_norm<8>, grid, block, 0, s, p);
  else FB_LAUNCH(layer_norm<0>, grid, block, 0, s, p);
  return fb_launch_status();
}

int fb_softmax(const float *x, int64_t m, int64_t k, float *y, fb_stream s) {
  if (!x || !y || m < 0 || m > kMaxRows || k < 1) return FB_BAD_ARGUMENT;
  if (m == 0) return FB_OK;
  const bool vector = k % 4 == 0 && fb_aligned(x, 16) && fb_aligned(y, 16);
  const dim3 grid((unsigned)fb_ceil_div(m, kWarps)), block(kThreads);
  if (k <= 128) FB_LAUNCH(softmax_warp<1>, grid, block, 0, s, x, m, k, y, vector);
  else if (k <= 512) FB_LAUNCH(softmax_warp<4>, grid, block, 0, s, x, m, k, y, vector);
  else if (k <= 1024) FB_LAUNCH(softmax_warp<8>, grid, block, 0, s, x, m, k, y, vector);
  else FB_LAUNCH(softmax_block, dim3((unsigned)m), block, 0, s, x, k, y, vector);
  return fb_launch_status();
}

} // extern "C"
