// gemm_float.cu: matrix products that stay in float. FP32 by fma
// (gemm_float.cuh); TF32 and F16 on tensor cores: copies run three steps ahead
// of the mma instructions (cp.async, ldmatrix, mma; sm_80 and later).
#include "cublaslt.h"
#include "gemm_float.cuh"
#include "mma_float.cuh"

#include <cstdio>

namespace {

// BM x BN a block, 16 MT x 8 NT a warp.
template <class T, bool TRANS_B, bool ALIGNED, int BM, int BN, int MT, int NT>
__device__ __forceinline__ void product(const FbGemmFloat &p) {
  constexpr int kAcross = BN / (8 * NT), kThreads = BM / (16 * MT) * kAcross * 32;
  constexpr int kChunk = 16 / (int)sizeof(T), kStep = kFbStepBytes / (int)sizeof(T);
  constexpr int kBytesA = BM * kFbRowBytes, kBytesB = fb_stage_b<T, TRANS_B, BN>(), kRowB = fb_row_kn<T, BN>();
  constexpr int kLoadsA = BM * 4 / kThreads, kLoadsB = BN * 4 / kThreads;
  static_assert(BM * 4 % kThreads == 0 && BN * 4 % kThreads == 0, "whole chunks");
  FB_DYN_SHARED(unsigned char, shared);
  unsigned char *stages_b = shared + kFbStages * kBytesA;
  const fb_gemm_float &d = p.d;
  const FbTile at = fb_gemm_tile(p, blockIdx.x);
  const T *a = static_cast<const T *>(p.a) + at.batch * d.stride_a, *b = static_cast<const T *>(p.b) + at.batch * d.stride_b;
  const int64_t m0 = (int64_t)at.m * BM, n0 = (int64_t)at.n * BN;
  const int tid = (int)threadIdx.x, warp = tid >> 5;
  const int wm = warp / kAcross * 16 * MT, wn = warp % kAcross * 8 * NT;
  const int steps = (int)fb_ceil_div(d.k, kStep);

  // What a thread copies each step: chunks of the same column, rows apart by a
  // constant. left counts the elements from there on; none in rows that do not exist.
  constexpr int kPerRowB = TRANS_B ? 4 : BN / kChunk, kApartA = kThreads / 4, kApartB = kThreads / kPerRowB;
  const int ra = tid / 4, rb = tid / kPerRowB;
  const int k_at = tid % 4 * kChunk;
  const T *from_a = a + (m0 + ra) * d.lda + k_at;
  const T *from_b = TRANS_B ? b + (n0 + rb) * d.ldb + k_at : b + (int64_t)rb * d.ldb + n0 + tid % kPerRowB * kChunk;
  unsigned char *const to_a = shared + ra * kFbRowBytes + tid % 4 * 16;
  unsigned char *const to_b = stages_b + rb * (TRANS_B ? kFbRowBytes : kRowB) + tid % kPerRowB * 16;
  const int rows_a = (int)(d.m - m0) - ra, rows_b = TRANS_B ? (int)(d.n - n0) - rb : (int)(d.n - n0) - tid % kPerRowB * kChunk;
  int next = 0, left = (int)d.k - k_at, left_rows = (int)d.k - rb;
  auto load = [&](int stage) {
    if (next++ < steps) {
#pragma unroll
      for (int i = 0; i < kLoadsA; i++)
        fb_copy16<ALIGNED>(to_a + stage * kBytesA + i * kApartA * kFbRowBytes, from_a + i * kApartA * d.lda, a, i * kApartA < rows_a ? left : 0);
#pragma unroll
      for (int i = 0; i < kLoadsB; i++) {
        if (TRANS_B) fb_copy16<ALIGNED>(to_b + stage * kBytesB + i * kApartB * kFbRowBytes, from_b + i * kApartB * d.ldb, b, i * kApartB < rows_b ? left : 0);
        else fb_copy16<ALIGNED>(to_b + stage * kBytesB + i * kApartB * kRowB, from_b + i * kApartB * d.ldb, b, i * kApartB < left_rows ? rows_b : 0);
      }
      from_a += kStep;
      from_b += TRANS_B ? kStep : kStep * d.ldb;
      left -= kStep;
      left_rows -= kStep;
    }
    fb_cp_commit(); // also an empty one: the waits below count groups
  };

  float acc[MT][NT][4] = {};
#pragma unroll
  for (int s = 0; s < kFbStages - 1; s++) load(s);
  for (int step = 0; step < steps; step++) {
    fb_cp_wait<kFbStages - 2>();
    __syncthreads(); // this step has landed for everyone, and everyone is done with the buffer that the next load fills
    load((step + kFbStages - 1) % kFbStages);
    fb_mma_step<T, TRANS_B, BN>(acc, shared + step % kFbStages * kBytesA + wm * kFbRowBytes, stages_b + step % kFbStages * kBytesB + wn * (TRANS_B ? kFbRowBytes : (int)sizeof(T)));
  }
  __syncthreads(); // all copies have landed, and the stages become staging of the epilogue
  fb_store_mma<MT, NT>(fb_gemm_store(p, at.batch), acc, m0 + wm, n0 + wn, reinterpret_cast<float *>(shared) + warp * fb_stage_words(NT));
}

template <class T, bool TRANS_B, int TILE>
__global__ void __launch_bounds__(TILE * 2, kFbResident<TILE>) gemm_mma(FbGemmFloat p) {
  product<T, TRANS_B, true, TILE, TILE, TILE / 32, 4>(p);
}
template <class T, bool TRANS_B>
__global__ void __launch_bounds__(128, kFbResident<64>) gemm_mma_unaligned(FbGemmFloat p) {
  product<T, TRANS_B, false, 64, 64, 2, 4>(p);
}

enum Kernel { kSkinny, kFma, kMma };

struct Choice {
  Kernel kernel;
  int tile; // m and n of a block, 128 or 64
};

// The kernel for d on a device. Large tiles read least, where they still give
// every multiprocessor one.
Choice pick(const fb_gemm_float &d, const fb_device_info &dev) {
  const bool tensor = dev.sm >= 80 && (d.in == FB_F16 || d.tf32);
  const int64_t blocks = fb_ceil_div(d.m, 128) * fb_ceil_div(d.n, 128) * d.batch;
  const int tile = blocks >= dev.sms ? 128 : 64;
  if (d.m <= kSkinnyRows) return Choice{kSkinny, tile};
  return Choice{tensor ? kMma : kFma, tile};
}

template <class T, bool TRANS_B>
void launch(FbGemmFloat &p, const Choice &choice, int64_t blocks, bool aligned, fb_stream s) {
  const dim3 grid((unsigned)blocks);
  switch (choice.kernel) {
  case kSkinny:
    if (TRANS_B) FB_LAUNCH(gemm_skinny_nk<T>, grid, dim3(kSkinnyWarps * 32), 0, s, p);
    else FB_LAUNCH(gemm_skinny_kn<T>, grid, dim3(kSkinnyWarps * 32), 0, s, p);
    break;
  case kFma:
    if (choice.tile == 128) FB_LAUNCH((gemm_fma<T, TRANS_B, 128, 128, 8>), grid, dim3(256), 0, s, p);
    else FB_LAUNCH((gemm_fma<T, TRANS_B, 64, 64, 4>), grid, dim3(128), 0, s, p);
    break;
  case kMma: {
    const size_t large = kFbStages * (128 * kFbRowBytes + fb_stage_b<T, TRANS_B, 128>()), small = kFbStages * (64 * kFbRowBytes + fb_stage_b<T, TRANS_B, 64>());
    static_assert(8 * fb_stage_words(4) * 4 <= kFbStages * 128 * kFbRowBytes && 4 * fb_stage_words(4) * 4 <= kFbStages * 64 * kFbRowBytes, "the epilogue stages in the pipeline's memory");
    if (choice.tile == 128 && aligned) FB_LAUNCH((gemm_mma<T, TRANS_B, 128>), grid, dim3(256), large, s, p);
    else if (aligned) FB_LAUNCH((gemm_mma<T, TRANS_B, 64>), grid, dim3(128), small, s, p);
    else FB_LAUNCH((gemm_mma_unaligned<T, TRANS_B>), grid, dim3(128), small, s, p);
  }
  }
}

// Rows of `cols` elements that start at multiples of `bytes` and hold whole chunks of them.
bool chunks(const void *p, int64_t ld, int64_t stride, int64_t batch, int64_t cols, int64_t size, int64_t bytes) {
  return fb_aligned(p, (size_t)bytes) && ld * size % bytes == 0 && (batch == 1 || stride * size % bytes == 0) && cols * size % bytes == 0;
}

constexpr int64_t kMax = 0x7fffffff; // of m, n, k, batch and the grid

} // namespace

extern "C" int fb_gemm_float_pick(const fb_gemm_float *d, const fb_device_info *dev, char *text, size_t text_bytes) {
  if (!d || !dev || dev->sms < 1 || !text || !text_bytes || d->m < 1 || d->n < 1 || d->k < 1 || d->batch < 1 || d->m > kMax || d->n > kMax || d->batch > kMax) return FB_BAD_ARGUMENT;
  const Choice c = pick(*d, *dev);
  const char *in = d->in == FB_F16 ? "f16" : d->tf32 && c.kernel == kMma ? "tf32" : "f32";
  if (c.kernel == kSkinny)
    snprintf(text, text_bytes, "skinny %s, %d rows at most", in, (int)kSkinnyRows);
  else
    snprintf(text, text_bytes, "%s %s %dx%d; %lld tiles%s", c.kernel == kMma ? "mma" : "fma", in, c.tile, c.tile,
             (long long)(fb_ceil_div(d->m, c.tile) * fb_ceil_div(d->n, c.tile) * d->batch), c.kernel == kMma && !d->own ? "; cuBLASLt first" : "");
  return FB_OK;
}

extern "C" int fb_gemm_float_run(const fb_gemm_float *d, const void *a, const void *b, const float *bias, const void *residual_f32, void *c, fb_stream s) {
  if (!d || !a || !b || !c || d->m < 0 || d->n < 0 || d->k < 1 || d->batch < 1 || d->m > kMax || d->n > kMax || d->k > kMax || d->batch > kMax) return FB_BAD_ARGUMENT;
  if (d->lda < d->k || d->ldb < (d->trans_b ? d->k : d->n) || d->ldc < d->n || d->stride_a < 0 || d->stride_b < 0 || d->stride_c < 0) return FB_BAD_ARGUMENT;
  if ((d->in != FB_F32 && d->in != FB_F16) || (d->out != FB_F32 && d->out != FB_F16) || d->act < FB_ACT_NONE || d->act > FB_ACT_CLIP || (d->tf32 && d->in != FB_F32)) return FB_BAD_ARGUMENT;
  if (d->batch > 1 && d->stride_c < (d->m - 1) * d->ldc + d->n) return FB_BAD_ARGUMENT; // results would overlap
  if (d->m == 0 || d->n == 0) return FB_OK;
  fb_device_info dev;
  if (int e = fb_device(&dev)) return e;
  const Choice choice = pick(*d, dev);
  if (choice.kernel == kMma && !d->own && fb_cublaslt_run(d, a, b, bias, static_cast<const float *>(residual_f32), c, s) == FB_OK) return FB_OK;

  FbGemmFloat p = {};
  p.d = *d;
  p.a = a;
  p.b = b;
  p.e.bias = bias;
  p.e.residual = residual_f32;
  p.e.residual_type = FB_F32;
  p.e.c = c;
  p.e.m = d->m;
  p.e.n = d->n;
  p.e.ldc = d->ldc;
  p.e.act = d->act;
  p.e.act_min = d->act_min;
  p.e.act_max = d->act_max;
  p.e.out = d->out;
  p.e.vector = fb_epilogue_vector(p.e) && (d->batch == 1 || d->stride_c % 4 == 0);
  const int64_t size = d->in == FB_F16 ? 2 : 4, b_cols = d->trans_b ? d->k : d->n;
  p.vector_a = chunks(a, d->lda, d->stride_a, d->batch, d->k, size, 4 * size);
  p.vector_b = chunks(b, d->ldb, d->stride_b, d->batch, b_cols, size, 4 * size);
  const bool aligned = chunks(a, d->lda, d->stride_a, d->batch, d->k, size, 16) && chunks(b, d->ldb, d->stride_b, d->batch, b_cols, size, 16);
  const int tile = choice.kernel == kMma && !aligned ? 64 : choice.tile;
  const int64_t tiles_m = choice.kernel == kSkinny ? 1 : fb_ceil_div(d->m, tile);
  const int64_t tiles_n = fb_ceil_div(d->n, choice.kernel != kSkinny ? tile : d->trans_b ? kSkinnyWarps : 32);
  if (tiles_m * tiles_n > kMax / d->batch) return FB_UNSUPPORTED;
  p.tiles_m = (int)tiles_m;
  p.tiles_n = (int)tiles_n;
  const int64_t blocks = tiles_m * tiles_n * d->batch;
  if (d->in == FB_F16) d->trans_b ? launch<fb_f16, true>(p, choice, blocks, aligned, s) : launch<fb_f16, false>(p, choice, blocks, aligned, s);
  else d->trans_b ? launch<float, true>(p, choice, blocks, aligned, s) : launch<float, false>(p, choice, blocks, aligned, s);
  return fb_launch_status();
}
