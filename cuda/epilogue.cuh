// epilogue.cuh: from accumulators to the output of a matrix product.
//
// Accumulators lie in the layout of the mma instruction: a row's neighbours are
// in four lanes, two columns each. A warp stages 16 rows x 32 columns through
// shared memory of its own, so that one lane then holds 4 consecutive columns:
// per-column operands, residual and result move as vectors, and a row of the
// chunk is 128 bytes of f32 or one 32-byte sector of s8.
#pragma once
#include "common.cuh"

struct FbEpilogue {
  const float *a_scale;  // [m] or [1]
  const int32_t *a_zero; // likewise, or NULL: all zero
  const float *b_scale;  // [n]
  const int32_t *b_sum;  // [n], read where a_zero is given
  const float *bias;     // [n] or NULL
  const void *residual;  // [m, ldc] or NULL
  void *c;
  int64_t m, n, ldc;
  int a_rows, act, out, residual_type;
  float act_min, act_max, out_scale;
  int32_t out_zero;
  bool vector; // whole groups of 4 columns may be accessed as vectors
};

static inline size_t fb_out_bytes(int out) { return out == FB_S8 ? 1 : out == FB_F16 ? 2 : 4; }

// Whether groups of four columns are aligned in every tensor.
static inline bool fb_epilogue_vector(const FbEpilogue &e) {
  return e.ldc % 4 == 0 && fb_aligned(e.c, 4 * fb_out_bytes(e.out)) && fb_aligned(e.b_scale, 16) && fb_aligned(e.b_sum, 16) && fb_aligned(e.bias, 16) &&
         fb_aligned(e.residual, 4 * fb_out_bytes(e.residual_type));
}

template <class T>
__device__ __forceinline__ void fb_load4(T (&to)[4], const T *from, int count, bool vector) {
  static_assert(sizeof(T) == 4, "four words");
  if (vector && count >= 4) {
    const int4 v = *reinterpret_cast<const int4 *>(from);
    memcpy(to, &v, 16);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = j < count ? from[j] : T(0);
  }
}

// c[row, col..col+3] = act(y + bias) + residual, in the output's type; columns from n on are left alone.
__device__ __forceinline__ void fb_finish4(const FbEpilogue &e, int64_t row, int64_t col, float (&y)[4]) {
  const int count = e.n - col < 4 ? (int)(e.n - col) : 4;
  const bool vector = e.vector && count == 4;
  const int64_t at = row * e.ldc + col;
  if (e.bias) {
    float bias[4];
    fb_load4(bias, e.bias + col, count, vector);
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = fb_add(y[j], bias[j]);
  }
  if (e.act != FB_ACT_NONE) {
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = fb_activate(e.act, y[j], e.act_min, e.act_max);
  }
  if (e.residual) {
    float r[4];
    if (e.residual_type == FB_F32) {
      fb_load4(r, static_cast<const float *>(e.residual) + at, count, vector);
    } else {
      const fb_f16 *from = static_cast<const fb_f16 *>(e.residual) + at;
      fb_f16 h[4] = {};
      if (vector) {
        const uint2 v = *reinterpret_cast<const uint2 *>(from);
        memcpy(h, &v, 8);
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j < count) h[j] = from[j];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) r[j] = fb_f16_to_f32(h[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = fb_add(y[j], r[j]);
  }
  switch (e.out) {
  case FB_F32: {
    float *to = static_cast<float *>(e.c) + at;
    if (vector) {
      *reinterpret_cast<float4 *>(to) = make_float4(y[0], y[1], y[2], y[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) to[j] = y[j];
    }
    break;
  }
  case FB_F16: {
    fb_f16 *to = static_cast<fb_f16 *>(e.c) + at;
    if (vector) {
      *reinterpret_cast<uint2 *>(to) = make_uint2(fb_pack_f16x2(y[0], y[1]), fb_pack_f16x2(y[2], y[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) to[j] = fb_f32_to_f16(y[j]);
    }
    break;
  }
  default: { // FB_S8
    int8_t *to = static_cast<int8_t *>(e.c) + at;
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) packed |= (uint32_t)(uint8_t)fb_quantize_u8(y[j], e.out_scale, e.out_zero + 128) << 8 * j;
    if (vector) {
      *reinterpret_cast<uint32_t *>(to) = packed;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) to[j] = (int8_t)(packed >> 8 * j);
    }
  }
  }
}

// What a product does with four columns of its accumulators: nothing outside the matrix, otherwise fb_finish4 with
// y = (acc - a_zero * b_sum) * (a_scale * b_scale). The difference is exact:
// |sum (a - zero) b| < 2^31 (the host bounds k), and what overflows on the way wraps back.
__device__ __forceinline__ void fb_store4(const FbEpilogue &e, int64_t row, int64_t col, int (&acc)[4]) {
  if (row >= e.m || col >= e.n) return;
  const int count = e.n - col < 4 ? (int)(e.n - col) : 4;
  const bool vector = e.vector && count == 4;
  const int64_t r = e.a_rows ? row : 0;
  if (e.a_zero) {
    int32_t sum[4];
    fb_load4(sum, e.b_sum + col, count, vector);
    const uint32_t zero = (uint32_t)e.a_zero[r];
#pragma unroll
    for (int j = 0; j < 4; j++) acc[j] = (int)((uint32_t)acc[j] - zero * (uint32_t)sum[j]);
  }
  if (e.out == FB_S32) {
    int32_t *to = static_cast<int32_t *>(e.c) + row * e.ldc + col;
    if (vector) {
      *reinterpret_cast<int4 *>(to) = make_int4(acc[0], acc[1], acc[2], acc[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) to[j] = acc[j];
    }
    return;
  }
  float scale[4], y[4];
  fb_load4(scale, e.b_scale + col, count, vector);
  const float a_scale = e.a_scale[r];
#pragma unroll
  for (int j = 0; j < 4; j++) y[j] = fb_mul((float)acc[j], fb_mul(a_scale, scale[j]));
  fb_finish4(e, row, col, y);
}

// ---- accumulators of m16n8 tiles
__host__ __device__ constexpr int fb_stage_cols(int nt) { return nt >= 4 ? 32 : nt * 8; }
// Words of staging that a warp of NT n8 tiles needs. The row stride leaves 8 banks between rows: writes of two columns
// by 16 lanes (4 rows x 4) and reads of four by 8 lanes meet no bank twice.
__host__ __device__ constexpr int fb_stage_words(int nt) { return 16 * (fb_stage_cols(nt) + 8); }

// Stores acc[MT][NT][4], whose first row and column are row0 and col0. stage is the warp's own.
// E is an FbEpilogue, or something else that fb_store4 takes with T.
template <int MT, int NT, class E, class T>
__device__ __forceinline__ void fb_store_mma(const E &e, T (&acc)[MT][NT][4], int64_t row0, int64_t col0, T *stage) {
  constexpr int kCols = fb_stage_cols(NT), kStride = kCols + 8, kTiles = kCols / 8, kAcross = NT / kTiles, kLanes = kCols / 4, kRows = 32 / kLanes;
  static_assert(NT % kTiles == 0 && NT >= 2, "a chunk is 16 or 32 columns");
  const int lane = fb_lane(), g = lane >> 2, t = lane & 3;
  // One copy of the code after the staging, whatever the number of chunks: the registers of a chunk are chosen by a
  // uniform branch, since they cannot be indexed.
#pragma unroll 1
  for (int chunk = 0; chunk < MT * kAcross; chunk++) {
#pragma unroll
    for (int i = 0; i < MT * kAcross; i++)
      if (i == chunk) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
          const T(&v)[4] = acc[i / kAcross][i % kAcross * kTiles + j];
          T *to = stage + g * kStride + j * 8 + t * 2;
          to[0] = v[0], to[1] = v[1];
          to[8 * kStride] = v[2], to[8 * kStride + 1] = v[3];
        }
      }
    __syncwarp();
#pragma unroll 1
    for (int r = lane / kLanes; r < 16; r += kRows) {
      T v[4];
      const int4 bits = *reinterpret_cast<const int4 *>(stage + r * kStride + lane % kLanes * 4);
      memcpy(v, &bits, 16);
      fb_store4(e, row0 + chunk / kAcross * 16 + r, col0 + chunk % kAcross * kCols + lane % kLanes * 4, v);
    }
    __syncwarp();
  }
}
