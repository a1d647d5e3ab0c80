// mma_float.cuh: what products of floats on tensor cores share, matrices
// (gemm_float.cu) and convolutions (conv_float.cu): tiles in a ring of stages in
// shared memory, filled three steps ahead, and the step that multiplies one.
//
// T is float, rounded to TF32 as it goes to the tensor cores, or fb_f16. In
// bytes their fragments are the same: 16 rows x 32 bytes of A, 8 columns x 32
// bytes of B, and a step is two of them along k.
#pragma once
#include "epilogue.cuh"
#include "float_io.cuh"

constexpr int kFbStages = 4;
constexpr int kFbStepBytes = 64;               // of k: 32 halves or 16 floats
constexpr int kFbRowBytes = kFbStepBytes + 16; // of A, and of B [n, k]: an odd number of 16-byte units: ldmatrix meets no bank twice

// Of B [k, n], which keeps its rows as they are: TF32 rows are 8 banks apart, those of halves as kFbRowBytes.
template <class T, int BN>
__host__ __device__ constexpr int fb_row_kn() { return BN * (int)sizeof(T) + (sizeof(T) == 4 ? 32 : 16); }

// Shared memory of a stage of B.
template <class T, bool TRANS_B, int BN>
__host__ __device__ constexpr int fb_stage_b() { return TRANS_B ? BN * kFbRowBytes : kFbStepBytes / (int)sizeof(T) * fb_row_kn<T, BN>(); }

// Blocks of tiles of TILE x TILE that the shared memory of an SM of sm_90 is enough for. The compiler is told, lest it spill registers for more.
template <int TILE> constexpr int kFbResident = TILE == 64 ? 5 : 2;

// 16 bytes from global to shared memory: `count` elements exist. ALIGNED:
// count is either all or none.
template <bool ALIGNED, class T>
__device__ __forceinline__ void fb_copy16(void *to, const T *from, const T *valid, int count) {
  if (ALIGNED) {
    fb_cp_async<16>(to, count > 0 ? from : valid, count > 0);
  } else {
    constexpr int kCount = 16 / (int)sizeof(T);
    T v[kCount] = {};
#pragma unroll
    for (int j = 0; j < kCount; j++)
      if (j < count) v[j] = from[j];
    uint4 w;
    memcpy(&w, v, 16);
    *static_cast<uint4 *>(to) = w;
  }
}

template <class T> __device__ __forceinline__ uint32_t fb_fragment(uint32_t v);
template <> __device__ __forceinline__ uint32_t fb_fragment<fb_f16>(uint32_t v) { return v; }
template <> __device__ __forceinline__ uint32_t fb_fragment<float>(uint32_t v) { return fb_to_tf32(__uint_as_float(v)); }
__device__ __forceinline__ void fb_mma(fb_f16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fb_mma_f16(d, a, b0, b1); }
__device__ __forceinline__ void fb_mma(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fb_mma_tf32(d, a, b0, b1); }

// acc += A B over one stage, 16 MT x 8 NT of it. sa is the warp's first row of
// A; sb its first column: of B [n, k] (TRANS_B), or of B [k, n], BN wide.
template <class T, bool TRANS_B, int BN, int MT, int NT>
__device__ __forceinline__ void fb_mma_step(float (&acc)[MT][NT][4], const unsigned char *sa, const unsigned char *sb) {
  constexpr int kRow = fb_row_kn<T, BN>();
  static_assert(NT % 2 == 0, "pairs of tiles");
  const int lane = fb_lane();
#pragma unroll
  for (int half = 0; half < 2; half++) { // 32 bytes of k
    uint32_t fa[MT][4], fb[NT][2];
#pragma unroll
    for (int i = 0; i < MT; i++) {
      fb_ldmatrix_x4(fa[i], sa + (16 * i + (lane & 15)) * kFbRowBytes + half * 32 + (lane >> 4) * 16);
#pragma unroll
      for (int j = 0; j < 4; j++) fa[i][j] = fb_fragment<T>(fa[i][j]);
    }
#pragma unroll
    for (int i = 0; i < NT; i += 2) {
      uint32_t r[4];
      if (TRANS_B) {
        fb_ldmatrix_x4(r, sb + (8 * i + (lane & 7) + (lane >> 4) * 8) * kFbRowBytes + half * 32 + (lane >> 3 & 1) * 16);
      } else if (sizeof(T) == 2) {
        fb_ldmatrix_x4_trans(r, sb + (half * 16 + (lane & 15)) * kRow + (8 * i + (lane >> 4) * 8) * 2);
      } else { // ldmatrix transposes halves only
#pragma unroll
        for (int j = 0; j < 4; j++) r[j] = *reinterpret_cast<const uint32_t *>(sb + (half * 8 + (lane & 3) + (j & 1) * 4) * kRow + (8 * i + (j >> 1) * 8 + (lane >> 2)) * 4);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) fb[i + j / 2][j % 2] = fb_fragment<T>(r[j]);
    }
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NT; j++) fb_mma(T(), acc[i][j], fa[i], fb[j][0], fb[j][1]);
  }
}
