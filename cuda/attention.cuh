// attention.cuh: what the attention kernels have in common, and the one in
// plain FP32: exact, for every device and alignment.
//
// Softmax runs over the keys tile by tile (Milakov and Gimelshein 2018; Dao et
// al. 2022): a row keeps its maximum so far, the sum of exponentials and the
// weighted sum of V, and rescales both when the maximum grows. The scores never
// leave the registers.
//
// Masked rows follow ONNX Runtime's MultiHeadAttention: a mask is added to the
// scores, so that a row whose keys are all masked by the same amount is the
// softmax of equal values and no NaN. Minus infinity counts as -FLT_MAX (ONNX
// Runtime makes a row of it NaN). Padding adds the same amount to every key past
// key_lengths[b] (its mask_filter_value, -10000), which underflows to nothing
// unless no key is left: those keys are skipped, and where the length is below 1
// all take part.
#pragma once
#include <cfloat>

#include "float_io.cuh"

struct FbAttention {
  fb_attention d;
  const void *q, *k, *v;
  void *out;
  const float *mask;
  const int32_t *key_lengths;
  int tiles;   // of queries
  bool vector; // rows start where four values are aligned
};

// What one block works on: some rows of one head.
template <class T>
struct FbHead {
  const T *q, *k, *v;
  T *out;
  const float *mask; // row of query 0, or NULL
  int64_t mask_row;  // from query to query
  int first;         // query
  int keys;          // that any of the queries sees
  int all_keys;      // that take part: the row's limit without causality
  int diagonal;      // query i sees keys up to i + diagonal; large where not causal
};

template <class T>
__device__ __forceinline__ FbHead<T> fb_attention_head(const FbAttention &p, int tile_rows) {
  const fb_attention &d = p.d;
  const unsigned tile = blockIdx.x % (unsigned)p.tiles, item = blockIdx.x / (unsigned)p.tiles;
  const int64_t head = item % d.heads, batch = item / d.heads;
  FbHead<T> h;
  h.q = static_cast<const T *>(p.q) + batch * d.q_batch + head * d.head_dim;
  h.k = static_cast<const T *>(p.k) + batch * d.k_batch + head * d.head_dim;
  h.v = static_cast<const T *>(p.v) + batch * d.v_batch + head * d.v_dim;
  h.out = static_cast<T *>(p.out) + batch * d.o_batch + head * d.v_dim;
  h.mask_row = d.mask_q ? d.kv_len : 0;
  h.mask = p.mask ? p.mask + (batch * (d.mask_heads ? d.heads : 1) + (d.mask_heads ? head : 0)) * (d.mask_q ? d.q_len : 1) * d.kv_len : nullptr;
  h.first = (int)tile * tile_rows;
  h.all_keys = (int)d.kv_len;
  if (p.key_lengths) {
    const int32_t n = p.key_lengths[batch];
    if (n >= 1 && n < h.all_keys) h.all_keys = n;
  }
  h.diagonal = d.causal ? (int)(d.kv_len - d.q_len) : 0x3fffffff;
  h.keys = h.all_keys;
  if (d.causal) {
    const int64_t last = (int64_t)h.first + tile_rows + h.diagonal;
    if (last < h.keys) h.keys = (int)last;
  }
  return h;
}

// The value of minus infinity in a score; NaN stays NaN.
__device__ __forceinline__ float fb_finite_below(float x) { return x < -FLT_MAX ? -FLT_MAX : x; }

// ---- FP32 by fma. A block has 32 queries, a warp 8 of them; tiles of 32 keys.
// Eight lanes share two rows: for the scores they split the keys, for the result
// the dimensions, so that a row's maximum and sum stay where they are.
template <class T, int DIM>
__global__ void __launch_bounds__(128, DIM == 128 ? 3 : 4) attention_f32(FbAttention p) {
  constexpr int kRows = 32, kKeys = 32, kLd = DIM + 4, kLdP = kKeys + 4, kVectors = DIM / 32;
  FB_SHARED(float, sq, kRows *kLd);
  FB_SHARED(float, skv, kKeys *kLd); // K, then V
  FB_SHARED(float, sp, kRows *kLdP); // each warp's rows are its own
  const fb_attention &d = p.d;
  const FbHead<T> head = fb_attention_head<T>(p, kRows);
  const int tid = (int)threadIdx.x, lane = fb_lane(), column = lane & 7, row0 = (tid >> 5) * 8 + (lane >> 3) * 2;

  auto load = [&](float *to, const T *from, int64_t ld, int first, int rows, int dim) {
    for (int c = tid; c < 32 * DIM / 4; c += 128) {
      const int r = c / (DIM / 4), at = c % (DIM / 4) * 4;
      float v[4];
      const bool inside = first + r < rows && at < dim;
      fb_read4(from + (inside ? (int64_t)(first + r) * ld + at : 0), inside ? dim - at : 0, p.vector, v);
      *reinterpret_cast<float4 *>(to + r * kLd + at) = make_float4(v[0], v[1], v[2], v[3]);
    }
  };
  load(sq, head.q, d.q_row, head.first, (int)d.q_len, d.head_dim);

  float most[2] = {-FLT_MAX, -FLT_MAX}, total[2] = {}, acc[2][kVectors][4] = {};
  for (int key0 = 0; key0 < head.keys; key0 += kKeys) {
    load(skv, head.k, d.k_row, key0, head.all_keys, d.head_dim);
    __syncthreads();
    float x[2][4] = {}; // keys column + 8 j
#pragma unroll 4
    for (int at = 0; at < DIM; at += 4) {
      float4 q[2];
#pragma unroll
      for (int i = 0; i < 2; i++) q[i] = *reinterpret_cast<const float4 *>(sq + (row0 + i) * kLd + at);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float4 k = *reinterpret_cast<const float4 *>(skv + (column + 8 * j) * kLd + at);
#pragma unroll
        for (int i = 0; i < 2; i++) x[i][j] = fmaf(q[i].w, k.w, fmaf(q[i].z, k.z, fmaf(q[i].y, k.y, fmaf(q[i].x, k.x, x[i][j]))));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int query = head.first + row0 + i;
      float largest = most[i];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int key = key0 + column + 8 * j;
        const bool seen = key < head.all_keys && key <= query + head.diagonal;
        float s = x[i][j] * d.scale;
        if (head.mask && seen && query < d.q_len) s = fb_finite_below(s + head.mask[query * head.mask_row + key]);
        x[i][j] = seen ? s : -INFINITY;
        largest = fmaxf(largest, x[i][j]);
      }
#pragma unroll
      for (int o = 4; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, o));
      const float rescale = expf(most[i] - largest);
      most[i] = largest;
      total[i] *= rescale;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float e = expf(x[i][j] - largest);
        total[i] += e;
        sp[(row0 + i) * kLdP + column + 8 * j] = e;
      }
#pragma unroll
      for (int c = 0; c < kVectors; c++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][c][j] *= rescale;
    }
    __syncthreads();
    load(skv, head.v, d.v_row, key0, head.all_keys, d.v_dim);
    __syncthreads();
#pragma unroll 2
    for (int key = 0; key < kKeys; key += 4) {
      float e[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float4 f = *reinterpret_cast<const float4 *>(sp + (row0 + i) * kLdP + key);
        e[i][0] = f.x, e[i][1] = f.y, e[i][2] = f.z, e[i][3] = f.w;
      }
#pragma unroll
      for (int l = 0; l < 4; l++)
#pragma unroll
        for (int c = 0; c < kVectors; c++) {
          const float4 v = *reinterpret_cast<const float4 *>(skv + (key + l) * kLd + c * 32 + column * 4);
#pragma unroll
          for (int i = 0; i < 2; i++) {
            acc[i][c][0] = fmaf(e[i][l], v.x, acc[i][c][0]);
            acc[i][c][1] = fmaf(e[i][l], v.y, acc[i][c][1]);
            acc[i][c][2] = fmaf(e[i][l], v.z, acc[i][c][2]);
            acc[i][c][3] = fmaf(e[i][l], v.w, acc[i][c][3]);
          }
        }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int o = 4; o; o >>= 1) total[i] = fb_add(total[i], __shfl_xor_sync(kFullWarp, total[i], o));
    const int query = head.first + row0 + i;
    if (query >= d.q_len) continue;
#pragma unroll
    for (int c = 0; c < kVectors; c++) {
      const int at = c * 32 + column * 4;
#pragma unroll
      for (int j = 0; j < 4; j++) acc[i][c][j] = fb_div(acc[i][c][j], total[i]);
      fb_write4(head.out + query * d.o_row + at, d.v_dim - at, p.vector, acc[i][c]);
    }
  }
}
