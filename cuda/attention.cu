// attention.cu: softmax(Q K^T scale + mask) V on tensor cores (sm_80 and later),
// with scores from F16 or from INT8 Q and K. attention.cuh has the method, the
// convention for masks and the kernel in FP32.
#include <type_traits>

#include "attention.cuh"

namespace {

constexpr int kQueries = 64, kKeys = 64, kThreads = 128; // a warp has 16 queries
template <int N> using Constant = std::integral_constant<int, N>;
constexpr float kLog2e = 1.44269504088896341f;

// The shared memory of one stage: a tile of K, of V, the scales of K, a row of
// the mask. Rows are an odd number of 16-byte units: ldmatrix meets no bank twice.
template <bool S8, int DIM>
struct Stage {
  static constexpr int kRowK = S8 ? DIM + 16 : DIM * 2 + 16, kRowV = DIM * 2 + 16;
  static constexpr int kV = kKeys * kRowK, kScale = kV + kKeys * kRowV, kMask = kScale + (S8 ? kKeys * 4 : 0), kBytes = kMask + kKeys * 4;
};

__device__ __forceinline__ void read8(const float *from, float (&to)[8]) {
  const float4 a = *reinterpret_cast<const float4 *>(from), b = *reinterpret_cast<const float4 *>(from + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
__device__ __forceinline__ void read8(const fb_f16 *from, float (&to)[8]) {
  const uint4 w = *reinterpret_cast<const uint4 *>(from);
  fb_f16 h[8];
  memcpy(h, &w, 16);
#pragma unroll
  for (int j = 0; j < 8; j++) to[j] = fb_f16_to_f32(h[j]);
}

// 8 values as halves in shared memory. In f16 it is a copy that runs beside the arithmetic.
__device__ __forceinline__ void copy8(void *to, const fb_f16 *from, bool inside) { fb_cp_async<16>(to, from, inside); }
__device__ __forceinline__ void copy8(void *to, const float *from, bool inside) {
  float v[8] = {};
  if (inside) read8(from, v);
  *static_cast<uint4 *>(to) = make_uint4(fb_pack_f16x2(v[0], v[1]), fb_pack_f16x2(v[2], v[3]), fb_pack_f16x2(v[4], v[5]), fb_pack_f16x2(v[6], v[7]));
}

// Symmetric INT8 of a row of Q or K with its own scale (1 for a row of zeros):
// 127 steps to the largest magnitude.
struct Grid8 {
  float scale, inverse;
};
__device__ __forceinline__ Grid8 grid8(float largest) {
  if (!(largest > 0.f)) return Grid8{1.f, 1.f};
  return Grid8{fb_div(largest, 127.f), fb_div(127.f, largest)};
}
__device__ __forceinline__ uint32_t pack8(const float *v, float inverse) { // four of them
  uint32_t r = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) r |= (uint32_t)(uint8_t)fb_clamp(__float2int_rn(fb_mul(v[j], inverse)), -127, 127) << 8 * j;
  return r;
}

// T is the type of Q, K, V and the result; DIM what head_dim and v_dim are
// padded to. Fragments are as in PTX ISA, mma.m16n8k16 and m16n8k32: lane
// 4 g + t has rows g and g + 8.
template <class T, bool S8, int DIM>
__device__ __forceinline__ void attend(const FbAttention &p) {
  using S = Stage<S8, DIM>;
  constexpr int kStepsQ = S8 ? DIM / 32 : DIM / 16; // 32 bytes of a row each
  FB_DYN_SHARED(unsigned char, shared);
  const fb_attention &d = p.d;
  const FbHead<T> head = fb_attention_head<T>(p, kQueries);
  const int tid = (int)threadIdx.x, lane = fb_lane(), g = lane >> 2, t = lane & 3, row0 = head.first + (tid >> 5) * 16 + g;

  // Tiles of K and V are copied in order; a thread has the same columns of rows
  // that are a constant apart.
  constexpr int kChunks = DIM / 8, kApart = kThreads / kChunks;
  const int r = tid / kChunks, at = tid % kChunks * 8;
  const bool has_k = at < d.head_dim, has_v = at < d.v_dim;
  const T *from_k = head.k + r * d.k_row + at, *from_v = head.v + r * d.v_row + at;
  int left = head.all_keys - r; // rows from this one on that take part
  auto load = [&](unsigned char *stage, auto flight) { // flight: rows in registers at a time, where copies are not asynchronous
    unsigned char *to = stage + r * S::kRowK + at * (S8 ? 1 : 2), *to_v = stage + S::kV + r * S::kRowV + at * 2;
#pragma unroll(S8 || sizeof(T) == 4 ? decltype(flight)::value : kKeys / kApart)
    for (int i = 0; i < kKeys / kApart; i++) {
      // Rows that take no part are zero: their weight is, and 0 * NaN is NaN.
      const bool in_k = i * kApart < left && has_k, in_v = i * kApart < left && has_v;
      if (S8) {
        float v[8] = {}, largest = 0.f;
        if (in_k) read8(from_k, v);
#pragma unroll
        for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[j]));
#pragma unroll
        for (int o = kChunks / 2; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, o));
        const Grid8 grid = grid8(largest);
        *reinterpret_cast<uint2 *>(to + i * kApart * S::kRowK) = make_uint2(pack8(v, grid.inverse), pack8(v + 4, grid.inverse));
        if (at == 0) reinterpret_cast<float *>(stage + S::kScale)[i * kApart + r] = grid.scale;
      } else {
        copy8(to + i * kApart * S::kRowK, in_k ? from_k : head.k, in_k);
      }
      copy8(to_v + i * kApart * S::kRowV, in_v ? from_v : head.v, in_v);
      from_k += kApart * d.k_row;
      from_v += kApart * d.v_row;
    }
    if (head.mask && !d.mask_q && tid < kKeys) {
      const int key = head.all_keys - left + tid - r;
      fb_cp_async<4>(stage + S::kMask + tid * 4, head.mask + (key < head.all_keys ? key : 0), key < head.all_keys);
    }
    left -= kKeys;
    fb_cp_commit();
  };
  load(shared, Constant<4>());

  // Q goes to the fragments directly; each row is read once.
  uint32_t fq[kStepsQ][4];
  float scale_q[2] = {1.f, 1.f};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int query = row0 + 8 * i;
    const T *from = head.q + (int64_t)(query < d.q_len ? query : 0) * d.q_row;
    const int dim = query < d.q_len ? d.head_dim : 0;
    if (S8) {
      float v[DIM / 16][4], largest = 0.f; // columns 16 s + 4 t
#pragma unroll
      for (int s = 0; s < DIM / 16; s++) {
        const int at = 16 * s + 4 * t;
        fb_read4(from + (at < dim ? at : 0), at < dim ? 4 : 0, true, v[s]);
#pragma unroll
        for (int j = 0; j < 4; j++) largest = fmaxf(largest, fabsf(v[s][j]));
      }
#pragma unroll
      for (int o = 2; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, o));
      const Grid8 grid = grid8(largest);
      scale_q[i] = grid.scale;
#pragma unroll
      for (int s = 0; s < DIM / 16; s++) fq[s / 2][s % 2 * 2 + i] = pack8(v[s], grid.inverse);
    } else {
#pragma unroll
      for (int s = 0; s < DIM / 8; s++) { // columns 8 s + 2 t
        const int at = 8 * s + 2 * t;
        uint32_t r = 0;
        if (at < dim) {
          if (sizeof(T) == 2) {
            r = *reinterpret_cast<const uint32_t *>(from + at);
          } else {
            const float2 f = *reinterpret_cast<const float2 *>(from + at);
            r = fb_pack_f16x2(f.x, f.y);
          }
        }
        fq[s / 2][s % 2 * 2 + i] = r;
      }
    }
  }

  // In powers of two: exp(x - y) = 2^(x log2e - y log2e).
  const float scale = d.scale * kLog2e;
  float most[2] = {-FLT_MAX, -FLT_MAX}, total[2] = {}, acc[DIM / 8][4] = {};
  const int tiles = (head.keys + kKeys - 1) / kKeys;
  fb_cp_wait<0>();
  __syncthreads();
  for (int tile = 0; tile < tiles; tile++) {
    const int key0 = tile * kKeys;
    const unsigned char *stage = shared + (tile & 1) * S::kBytes;
    if (tile + 1 < tiles) load(shared + ((tile + 1) & 1) * S::kBytes, Constant<2>());

    float x[kKeys / 8][4]; // scores: keys 8 n + 2 t and the next, of both rows
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
      const unsigned char *rows = stage + (n * 8 + (lane & 7) + (lane >> 4) * 8) * S::kRowK + (lane >> 3 & 1) * 16;
      uint32_t fk[4];
      if (S8) {
        int32_t s[2][4] = {};
#pragma unroll
        for (int i = 0; i < kStepsQ; i++) {
          fb_ldmatrix_x4(fk, rows + i * 32);
          fb_mma_s8(s[0], fq[i], fk[0], fk[1]);
          fb_mma_s8(s[1], fq[i], fk[2], fk[3]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float2 sk = *reinterpret_cast<const float2 *>(stage + S::kScale + ((n + h) * 8 + 2 * t) * 4);
#pragma unroll
          for (int j = 0; j < 4; j++) x[n + h][j] = (float)s[h][j] * (scale_q[j / 2] * (j % 2 ? sk.y : sk.x));
        }
      } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int j = 0; j < 4; j++) x[n + h][j] = 0.f;
#pragma unroll
        for (int i = 0; i < kStepsQ; i++) {
          fb_ldmatrix_x4(fk, rows + i * 32);
          fb_mma_f16(x[n], fq[i], fk[0], fk[1]);
          fb_mma_f16(x[n + 1], fq[i], fk[2], fk[3]);
        }
      }
    }

    // How many of this lane's keys take part: 8 n + j, counted from 2 t of the tile, below limit.
    int limit[2];
#pragma unroll
    for (int i = 0; i < 2; i++) limit[i] = min(head.all_keys, row0 + 8 * i + 1 + head.diagonal) - key0 - 2 * t;
    if (!head.mask) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) x[n][j] *= scale;
    } else if (!d.mask_q) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
        const float2 m = *reinterpret_cast<const float2 *>(stage + S::kMask + (n * 8 + 2 * t) * 4);
#pragma unroll
        for (int j = 0; j < 4; j++) x[n][j] = fb_finite_below(fmaf(j % 2 ? m.y : m.x, kLog2e, x[n][j] * scale));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float *row = head.mask + (int64_t)min(row0 + 8 * i, (int)d.q_len - 1) * head.mask_row + key0 + 2 * t;
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const float m = 8 * n + j < limit[i] ? row[8 * n + j] : 0.f;
            x[n][2 * i + j] = fb_finite_below(fmaf(m, kLog2e, x[n][2 * i + j] * scale));
          }
      }
    }
    if (key0 + kKeys > head.all_keys || d.causal) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (8 * n + j % 2 >= limit[j / 2]) x[n][j] = -INFINITY;
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
      float largest = most[i];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) largest = fmaxf(largest, fmaxf(x[n][2 * i], x[n][2 * i + 1]));
#pragma unroll
      for (int o = 2; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, o));
      const float rescale = fb_exp2(most[i] - largest);
      most[i] = largest;
      total[i] *= rescale;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          x[n][2 * i + j] = fb_exp2(x[n][2 * i + j] - largest);
          total[i] += x[n][2 * i + j];
        }
#pragma unroll
      for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) acc[n][2 * i + j] *= rescale;
    }

    // The scores' accumulators of two tiles of 8 keys are the fragment of 16.
#pragma unroll
    for (int k = 0; k < kKeys / 16; k++) {
      const uint32_t fp[4] = {fb_pack_f16x2(x[2 * k][0], x[2 * k][1]), fb_pack_f16x2(x[2 * k][2], x[2 * k][3]), fb_pack_f16x2(x[2 * k + 1][0], x[2 * k + 1][1]),
                              fb_pack_f16x2(x[2 * k + 1][2], x[2 * k + 1][3])};
      const unsigned char *rows = stage + S::kV + (k * 16 + (lane & 15)) * S::kRowV + (lane >> 4) * 16;
#pragma unroll
      for (int n = 0; n < DIM / 8; n += 2) {
        uint32_t fv[4];
        fb_ldmatrix_x4_trans(fv, rows + n * 16);
        fb_mma_f16(acc[n], fp, fv[0], fv[1]);
        fb_mma_f16(acc[n + 1], fp, fv[2], fv[3]);
      }
    }
    fb_cp_wait<0>();
    __syncthreads(); // the next tile has landed, and this one may be overwritten
  }

#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int o = 2; o; o >>= 1) total[i] = fb_add(total[i], __shfl_xor_sync(kFullWarp, total[i], o));
    const float inverse = fb_div(1.f, total[i]);
    const int query = row0 + 8 * i;
    T *to = head.out + (int64_t)query * d.o_row;
#pragma unroll
    for (int n = 0; n < DIM / 8; n += 2) {
      // Lane t has columns 2 t of tiles n and n + 1. Pairs of lanes exchange, so that
      // even ones have four columns of n and odd ones of n + 1.
      const float a0 = acc[n][2 * i] * inverse, a1 = acc[n][2 * i + 1] * inverse, b0 = acc[n + 1][2 * i] * inverse, b1 = acc[n + 1][2 * i + 1] * inverse;
      const bool odd = t & 1;
      const float r0 = __shfl_xor_sync(kFullWarp, odd ? a0 : b0, 1), r1 = __shfl_xor_sync(kFullWarp, odd ? a1 : b1, 1);
      const float v[4] = {odd ? r0 : a0, odd ? r1 : a1, odd ? b0 : r0, odd ? b1 : r1};
      const int at = (n + odd) * 8 + t / 2 * 4;
      if (query < d.q_len && at < d.v_dim) fb_write4(to + at, 4, true, v);
    }
  }
}

template <class T, int DIM>
__global__ void __launch_bounds__(kThreads, DIM == 128 ? 2 : 4) attention_f16(FbAttention p) { attend<T, false, DIM>(p); }
template <class T, int DIM>
__global__ void __launch_bounds__(kThreads, DIM == 128 ? 2 : DIM == 64 ? 3 : 4) attention_s8(FbAttention p) { attend<T, true, DIM>(p); }

template <class T, int DIM>
void launch(const FbAttention &p, int scores, unsigned blocks, fb_stream s) {
  const dim3 grid(blocks), block(kThreads);
  if (scores == FB_F32) FB_LAUNCH((attention_f32<T, DIM>), grid, dim3(128), 0, s, p);
  else if (scores == FB_S8) FB_LAUNCH((attention_s8<T, DIM>), grid, block, 2 * (Stage<true, DIM>::kBytes), s, p);
  else FB_LAUNCH((attention_f16<T, DIM>), grid, block, 2 * (Stage<false, DIM>::kBytes), s, p);
}

template <class T>
void launch(const FbAttention &p, int scores, unsigned blocks, fb_stream s) {
  const int dim = p.d.head_dim > p.d.v_dim ? p.d.head_dim : p.d.v_dim;
  if (dim <= 32) launch<T, 32>(p, scores, blocks, s);
  else if (dim <= 64) launch<T, 64>(p, scores, blocks, s);
  else launch<T, 128>(p, scores, blocks, s);
}

bool rows_aligned(const fb_attention &d, const void *q, const void *k, const void *v, const void *out, int64_t bytes) {
  const int64_t n = bytes / (d.in == FB_F16 ? 2 : 4);
  for (const void *p : {q, k, v, out})
    if (!fb_aligned(p, (size_t)bytes)) return false;
  for (int64_t stride : {d.q_row, d.k_row, d.v_row, d.o_row, d.q_batch, d.k_batch, d.v_batch, d.o_batch})
    if (stride % n) return false;
  return true;
}

constexpr int64_t kMaxLength = 1 << 24, kMaxBlocks = 0x7fffffff;

} // namespace

extern "C" int fb_attention_run(const fb_attention *a, const void *q, const void *k, const void *v, const float *mask, const int32_t *key_lengths, void *out, fb_stream s) {
  if (!a || !q || !k || !v || !out) return FB_BAD_ARGUMENT;
  const fb_attention &d = *a;
  if (d.batch < 0 || d.batch > kMaxBlocks || d.heads < 1 || d.heads > kMaxBlocks || d.q_len < 0 || d.q_len > kMaxLength || d.kv_len < 1 || d.kv_len > kMaxLength) return FB_BAD_ARGUMENT;
  if (d.head_dim < 8 || d.head_dim > 128 || d.head_dim % 8 || d.v_dim < 8 || d.v_dim > 128 || d.v_dim % 8 || !std::isfinite(d.scale)) return FB_BAD_ARGUMENT;
  if ((d.in != FB_F32 && d.in != FB_F16) || (d.scores != FB_F32 && d.scores != FB_F16 && d.scores != FB_S8)) return FB_BAD_ARGUMENT;
  const int64_t wide_qk = d.heads * d.head_dim, wide_v = d.heads * d.v_dim;
  if (d.q_row < wide_qk || d.k_row < wide_qk || d.v_row < wide_v || d.o_row < wide_v || d.q_batch < 0 || d.k_batch < 0 || d.v_batch < 0 || d.o_batch < 0) return FB_BAD_ARGUMENT;
  if (d.batch > 1 && d.o_batch < (d.q_len - 1) * d.o_row + wide_v) return FB_BAD_ARGUMENT; // results would overlap
  if (d.causal && d.kv_len < d.q_len) return FB_BAD_ARGUMENT;                              // the first queries would see no key
  if (d.batch == 0 || d.q_len == 0) return FB_OK;
  fb_device_info dev;
  if (int e = fb_device(&dev)) return e;
  const int scores = dev.sm >= 80 && rows_aligned(d, q, k, v, out, 16) ? d.scores : FB_F32;
  FbAttention p{d, q, k, v, out, mask, key_lengths, (int)fb_ceil_div(d.q_len, scores == FB_F32 ? 32 : kQueries), rows_aligned(d, q, k, v, out, d.in == FB_F16 ? 8 : 16)};
  if (d.batch > kMaxBlocks / d.heads || d.batch * d.heads > kMaxBlocks / p.tiles) return FB_UNSUPPORTED;
  const unsigned blocks = (unsigned)(d.batch * d.heads * p.tiles);
  if (d.in == FB_F16) launch<fb_f16>(p, scores, blocks, s);
  else launch<float>(p, scores, blocks, s);
  return fb_launch_status();
}
