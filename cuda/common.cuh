// common.cuh: what most kernel families share.
#pragma once
#include "fb_cuda.h"

constexpr unsigned kFullWarp = ~0u;

__host__ __device__ constexpr int64_t fb_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for a grid-stride loop over n items: enough to fill the largest GPUs, few enough to amortise.
static inline unsigned fb_grid(int64_t n, int per_block, int64_t limit = 4096) {
  const int64_t blocks = fb_ceil_div(n, per_block);
  limit = fb_grid_limit(limit);
  return (unsigned)(blocks < 1 ? 1 : blocks > limit ? limit : blocks);
}

static inline bool fb_aligned(const void *p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

// ---- reductions; every lane or thread gets the result. The order is fixed: the same bits every time.
__device__ __forceinline__ float fb_warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fb_add(v, __shfl_xor_sync(kFullWarp, v, o));
  return v;
}
__device__ __forceinline__ float fb_warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, o));
  return v;
}
__device__ __forceinline__ float fb_warp_min(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fminf(v, __shfl_xor_sync(kFullWarp, v, o));
  return v;
}
__device__ __forceinline__ int fb_warp_sum(int v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(kFullWarp, v, o);
  return v;
}

// Over a one-dimensional block of WARPS warps. scratch holds WARPS values and
// may be used again after the call.
template <int WARPS, class T, class F>
__device__ __forceinline__ T fb_block_reduce(T v, T *scratch, F warp_reduce) {
  v = warp_reduce(v);
  if (WARPS == 1) return v;
  if (fb_lane() == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  static_assert((WARPS & (WARPS - 1)) == 0 && WARPS <= 32, "the warps' results are combined by a butterfly");
  T r = scratch[fb_lane() % WARPS]; // every warp combines the same values in the same order
#pragma unroll
  for (int o = WARPS / 2; o; o >>= 1) r = warp_reduce.both(r, __shfl_xor_sync(kFullWarp, r, o));
  __syncthreads();
  return r;
}
struct FbSum {
  __device__ float operator()(float v) const { return fb_warp_sum(v); }
  __device__ float both(float a, float b) const { return fb_add(a, b); }
};
struct FbMax {
  __device__ float operator()(float v) const { return fb_warp_max(v); }
  __device__ float both(float a, float b) const { return fmaxf(a, b); }
};
struct FbMin {
  __device__ float operator()(float v) const { return fb_warp_min(v); }
  __device__ float both(float a, float b) const { return fminf(a, b); }
};

// ---- quantization (docs/ops.md)
__device__ __forceinline__ int fb_clamp(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }
// The s8 value of x on the u8 grid (scale, zero_u8), shifted by -128.
__device__ __forceinline__ int8_t fb_quantize_u8(float x, float scale, int zero_u8) {
  // The quotient is bounded first: zero_u8 must not overflow what float2int saturated to.
  const int q = __float2int_rn(fminf(fmaxf(fb_div(x, scale), -1e6f), 1e6f));
  return (int8_t)(fb_clamp(q + zero_u8, 0, 255) - 128);
}
struct FbGrid {
  float scale;
  int zero_u8;
};
// The grid of a row whose values lie in [lo, hi], lo <= 0 <= hi.
__device__ __forceinline__ FbGrid fb_row_grid(float lo, float hi) {
  float scale = fb_div(fb_add(hi, -lo), 255.f);
  if (!(scale > 0.f)) return FbGrid{1.f, 0};
  return FbGrid{scale, fb_clamp(__float2int_rn(fb_div(-lo, scale)), 0, 255)};
}

// ---- activations of epilogues
__device__ __forceinline__ float fb_activate(int act, float x, float lo, float hi) {
  switch (act) {
  case FB_ACT_RELU: return fmaxf(x, 0.f);
  case FB_ACT_GELU: return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  case FB_ACT_GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  case FB_ACT_QUICK_GELU: return x / (1.f + expf(-1.702f * x));
  case FB_ACT_SILU: return x / (1.f + expf(-x));
  case FB_ACT_CLIP: return fminf(fmaxf(x, lo), hi);
  default: return x;
  }
}
