// gemm_float.cuh: what the kernels of gemm_float.cu have in common, and those
// without tensor cores: true FP32, and every device before sm_80.
#pragma once
#include "epilogue.cuh"
#include "float_io.cuh"

struct FbGemmFloat {
  fb_gemm_float d;
  const void *a, *b;
  FbEpilogue e; // c and residual of the first item of the batch
  int tiles_m, tiles_n;
  bool vector_a, vector_b; // rows start where a thread's chunk is aligned, and end with a whole one
};

// The tile that a block computes. Blocks that run together share rows of A and
// columns of B: they go down eight tiles, then to the next column.
struct FbTile {
  int64_t batch;
  int m, n;
};
__device__ __forceinline__ FbTile fb_gemm_tile(const FbGemmFloat &p, unsigned block) {
  const unsigned tiles = (unsigned)p.tiles_m * (unsigned)p.tiles_n, across = 8u * (unsigned)p.tiles_n;
  const unsigned t = block % tiles, group = t / across, first = group * 8;
  const unsigned rows = (unsigned)p.tiles_m - first < 8 ? (unsigned)p.tiles_m - first : 8;
  return FbTile{block / tiles, (int)(first + t % across % rows), (int)(t % across / rows)};
}

// What the epilogue does with four columns of accumulators.
struct FbFloatStore {
  FbEpilogue e;
  float alpha;
};
__device__ __forceinline__ void fb_store4(const FbFloatStore &s, int64_t row, int64_t col, float (&acc)[4]) {
  if (row >= s.e.m || col >= s.e.n) return;
  float y[4];
#pragma unroll
  for (int j = 0; j < 4; j++) y[j] = fb_mul(s.alpha, acc[j]);
  fb_finish4(s.e, row, col, y);
}
__device__ __forceinline__ FbFloatStore fb_gemm_store(const FbGemmFloat &p, int64_t batch) {
  FbFloatStore s{p.e, p.d.alpha};
  FbEpilogue &e = s.e;
  const int64_t at = batch * p.d.stride_c;
  e.c = static_cast<char *>(e.c) + at * (e.out == FB_F16 ? 2 : 4);
  if (e.residual) e.residual = static_cast<const float *>(e.residual) + at;
  return s;
}

// ---- tiles by fma: BM x BN a block, 8 x TN a thread, k in steps of 16 through
// two buffers. Shared memory is k-major, so that a step of k is a row of each.
template <class T, bool TRANS_B, int BM, int BN, int TN>
__global__ void __launch_bounds__((BM / 8) * (BN / TN), BM == 128 ? 2 : 4) gemm_fma(FbGemmFloat p) {
  constexpr int kThreads = (BM / 8) * (BN / TN), kStep = 16, kLdA = BM + 4, kLdB = BN + 4;
  constexpr int kLoadsA = BM * kStep / 4 / kThreads, kLoadsB = BN * kStep / 4 / kThreads;
  static_assert(BM * kStep / 4 % kThreads == 0 && BN * kStep / 4 % kThreads == 0 && TN % 4 == 0, "whole chunks");
  FB_SHARED(float, tile_a, 2 * kStep * kLdA);
  FB_SHARED(float, tile_b, 2 * kStep * kLdB);
  const fb_gemm_float &d = p.d;
  const FbTile at = fb_gemm_tile(p, blockIdx.x);
  const T *a = static_cast<const T *>(p.a) + at.batch * d.stride_a, *b = static_cast<const T *>(p.b) + at.batch * d.stride_b;
  const int64_t m0 = (int64_t)at.m * BM, n0 = (int64_t)at.n * BN;
  const int tid = (int)threadIdx.x;

  // What a thread copies each step: chunks of the same column, rows apart by a constant.
  constexpr int kPerRowB = TRANS_B ? 4 : BN / 4, kApartA = kThreads / 4, kApartB = kThreads / kPerRowB;
  const int ra = tid / 4, rb = tid / kPerRowB, k_at = tid % 4 * 4, n_at = tid % kPerRowB * 4;
  const T *from_a = a + (m0 + ra) * d.lda + k_at;
  const T *from_b = TRANS_B ? b + (n0 + rb) * d.ldb + k_at : b + (int64_t)rb * d.ldb + n0 + n_at;
  const int rows_a = (int)(d.m - m0) - ra, rows_b = (int)(d.n - n0) - (TRANS_B ? rb : n_at);
  int left = (int)d.k - k_at, left_rows = (int)d.k - rb;
  float next_a[kLoadsA][4], next_b[kLoadsB][4];
  auto load = [&]() {
#pragma unroll
    for (int i = 0; i < kLoadsA; i++) fb_read4(from_a + i * kApartA * d.lda, i * kApartA < rows_a ? left : 0, p.vector_a, next_a[i]);
#pragma unroll
    for (int i = 0; i < kLoadsB; i++) {
      if (TRANS_B) fb_read4(from_b + i * kApartB * d.ldb, i * kApartB < rows_b ? left : 0, p.vector_b, next_b[i]);
      else fb_read4(from_b + i * kApartB * d.ldb, i * kApartB < left_rows ? rows_b : 0, p.vector_b, next_b[i]);
    }
    from_a += kStep;
    from_b += TRANS_B ? kStep : kStep * d.ldb;
    left -= kStep;
    left_rows -= kStep;
  };
  auto store = [&](int buffer) {
    float *sa = tile_a + buffer * kStep * kLdA + ra, *sb = tile_b + buffer * kStep * kLdB;
#pragma unroll
    for (int i = 0; i < kLoadsA; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sa[(k_at + j) * kLdA + i * kApartA] = next_a[i][j];
#pragma unroll
    for (int i = 0; i < kLoadsB; i++) {
      if (TRANS_B) {
#pragma unroll
        for (int j = 0; j < 4; j++) sb[(k_at + j) * kLdB + rb + i * kApartB] = next_b[i][j];
      } else {
        *reinterpret_cast<float4 *>(sb + (rb + i * kApartB) * kLdB + n_at) = make_float4(next_b[i][0], next_b[i][1], next_b[i][2], next_b[i][3]);
      }
    }
  };

  // A thread's 8 rows are two fours half a tile apart, and likewise its columns:
  // the lanes of a warp then read neighbouring vectors.
  constexpr int kAcross = BN / TN, kGroups = TN / 4;
  const int tx = tid % kAcross * 4, ty = tid / kAcross * 4;
  float acc[8][TN] = {};
  load();
  store(0);
  __syncthreads();
  const int steps = (int)fb_ceil_div(d.k, kStep);
  for (int s = 0; s < steps; s++) {
    if (s + 1 < steps) load();
    const float *sa = tile_a + (s & 1) * kStep * kLdA, *sb = tile_b + (s & 1) * kStep * kLdB;
#pragma unroll
    for (int k = 0; k < kStep; k++) {
      float x[8], y[TN];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float4 f = *reinterpret_cast<const float4 *>(sa + k * kLdA + ty + h * BM / 2);
        x[4 * h] = f.x, x[4 * h + 1] = f.y, x[4 * h + 2] = f.z, x[4 * h + 3] = f.w;
      }
#pragma unroll
      for (int h = 0; h < kGroups; h++) {
        const float4 f = *reinterpret_cast<const float4 *>(sb + k * kLdB + tx + h * BN / kGroups);
        y[4 * h] = f.x, y[4 * h + 1] = f.y, y[4 * h + 2] = f.z, y[4 * h + 3] = f.w;
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
    if (s + 1 < steps) store((s + 1) & 1);
    __syncthreads();
  }

  const FbFloatStore to = fb_gemm_store(p, at.batch);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int64_t row = m0 + ty + i % 4 + i / 4 * (BM / 2);
#pragma unroll
    for (int h = 0; h < kGroups; h++) {
      const int64_t col = n0 + tx + h * (BN / kGroups);
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = acc[i][4 * h + j];
      fb_store4(to, row, col, v);
    }
  }
}

// ---- few rows (a pooler, a classifier): bound by reading B once

constexpr int kSkinnyRows = 8, kSkinnyWarps = 8;

// B [n, k]: a warp a column; its lanes share k.
template <class T>
__global__ void __launch_bounds__(kSkinnyWarps * 32, 4) gemm_skinny_nk(FbGemmFloat p) {
  const fb_gemm_float &d = p.d;
  const int64_t batch = blockIdx.x / p.tiles_n, n = (int64_t)(blockIdx.x % p.tiles_n) * kSkinnyWarps + (threadIdx.x >> 5);
  if (n >= d.n) return;
  const T *a = static_cast<const T *>(p.a) + batch * d.stride_a, *b = static_cast<const T *>(p.b) + batch * d.stride_b + n * d.ldb;
  float acc[kSkinnyRows] = {};
  for (int64_t k = fb_lane() * 4; k < d.k; k += 128) {
    float y[4];
    fb_read4(b + k, d.k - k, p.vector_b, y);
#pragma unroll
    for (int i = 0; i < kSkinnyRows; i++) {
      if (i >= d.m) break;
      float x[4];
      fb_read4(a + i * d.lda + k, d.k - k, p.vector_a, x);
#pragma unroll
      for (int j = 0; j < 4; j++) acc[i] = fmaf(x[j], y[j], acc[i]);
    }
  }
  FbFloatStore to = fb_gemm_store(p, batch);
  to.e.vector = false;
  to.e.n = n + 1; // one column
#pragma unroll
  for (int i = 0; i < kSkinnyRows; i++) {
    if (i >= d.m) break;
    float v[4] = {fb_warp_sum(acc[i])};
    if (fb_lane() == 0) fb_store4(to, i, n, v);
  }
}

// B [k, n]: a lane a column; the warps of a block share k.
template <class T>
__global__ void __launch_bounds__(kSkinnyWarps * 32, 4) gemm_skinny_kn(FbGemmFloat p) {
  FB_SHARED(float, parts, kSkinnyWarps * kSkinnyRows * 32);
  const fb_gemm_float &d = p.d;
  const int64_t batch = blockIdx.x / p.tiles_n, n0 = (int64_t)(blockIdx.x % p.tiles_n) * 32, n = n0 + fb_lane();
  const T *a = static_cast<const T *>(p.a) + batch * d.stride_a, *b = static_cast<const T *>(p.b) + batch * d.stride_b;
  const int warp = (int)threadIdx.x >> 5;
  float acc[kSkinnyRows] = {};
  for (int64_t k = warp * 4; k < d.k; k += kSkinnyWarps * 4) {
    float y[4];
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = n < d.n && k + j < d.k ? fb_to_float<T>(b[(k + j) * d.ldb + n]) : 0.f;
#pragma unroll
    for (int i = 0; i < kSkinnyRows; i++) {
      if (i >= d.m) break;
      float x[4];
      fb_read4(a + i * d.lda + k, d.k - k, p.vector_a, x);
#pragma unroll
      for (int j = 0; j < 4; j++) acc[i] = fmaf(x[j], y[j], acc[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kSkinnyRows; i++) parts[(warp * kSkinnyRows + i) * 32 + fb_lane()] = acc[i];
  __syncthreads();
  if (warp >= d.m || n >= d.n) return;
  float sum = 0.f; // warp i has row i
#pragma unroll
  for (int w = 0; w < kSkinnyWarps; w++) sum = fb_add(sum, parts[(w * kSkinnyRows + warp) * 32 + fb_lane()]);
  FbFloatStore to = fb_gemm_store(p, batch);
  to.e.vector = false;
  to.e.n = n + 1;
  float v[4] = {sum};
  fb_store4(to, warp, n, v);
}
