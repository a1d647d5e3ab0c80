// gemm_s8.cuh: C = A B^T of s8 on mma.sync (sm_80 on) and on dp4a (sm_75).
//
//     A [m, k]            B [n, k]           both with k innermost, as mma wants them
//   BM x BK  --cp.async-->  shared, STAGES deep  --ldmatrix-->  fragments  --mma-->  s32 in registers
//
// Why these tiles. Per k32 a warp tile of wm x wn reads (wm + wn) * 32 bytes from
// shared memory for wm * wn * 32 products. An SM reads 128 bytes a clock and
// multiplies 2048 a clock (A100), so 64x64 takes 64 clocks of mma for 32 of
// reading, 64x32 32 for 24, 32x32 16 for 16: the large tiles are bound by the
// tensor cores and the small ones exist for small problems. From L2 a block tile
// needs 1/BM + 1/BN bytes a product: 24 bytes a clock for 128x256 at full rate,
// half of what an SM gets on an A100.
//
// Shared memory holds rows of BK bytes in chunks of 16, the chunk's place XORed
// with the row, so that the 8 rows of an 8x8 matrix (ldmatrix) and the 8 chunks
// that a quarter of a warp writes (cp.async) lie in different banks:
//
//   BK 128: row r, chunk c at c ^ (r & 7)         a row is all 32 banks
//   BK  64: row r, chunk c at c ^ (r / 2 & 3)     two rows are
#pragma once
#include "epilogue.cuh"
#include "splitk.cuh"

struct GemmS8Args {
  const int8_t *a, *b;
  int64_t k, lda, ldb;
  int tiles_m, tiles_n;
  int split, k_tiles; // parts along k, and tiles of BK in each
  void *workspace;
  FbEpilogue e;
};

template <int BK>
__device__ __forceinline__ int s8_at(int row, int chunk) {
  static_assert(BK == 64 || BK == 128, "rows of half or all banks");
  return row * BK + ((BK == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3)) << 4);
}

// Tiles in bands of 8 rows of tiles: neighbours in time share rows of A and of B in L2.
__device__ __forceinline__ void s8_tile(const GemmS8Args &p, int64_t tile, int &tm, int &tn) {
  const int64_t band = 8 * (int64_t)p.tiles_n;
  const int first = (int)(tile / band) * 8, rows = p.tiles_m - first < 8 ? p.tiles_m - first : 8;
  const int in = (int)(tile % band);
  tm = first + in % rows;
  tn = in / rows;
}

// ROWS x BK bytes of a matrix from row0 and k0 on, BK further along k after each advance, by THREADS threads in chunks
// of 16 bytes. What lies outside the matrix is zero and its address not looked at.
template <int ROWS, int BK, int THREADS>
struct S8Loader {
  static constexpr int kChunks = BK / 16, kStep = THREADS / kChunks, kLoads = ROWS / kStep;
  static_assert(THREADS % kChunks == 0 && ROWS % kStep == 0 && kStep % 8 == 0, "every thread loads as often, its rows alike in the XOR");
  const int8_t *from; // of the thread's first row and chunk
  int stride, place, rows, left; // bytes between its rows; its place in shared memory; rows and bytes of k that it has

  __device__ __forceinline__ S8Loader(const int8_t *m, int64_t row0, int64_t total, int64_t ld, int64_t k, int64_t k0) {
    const int row = (int)threadIdx.x / kChunks, chunk = (int)threadIdx.x % kChunks;
    from = m + (row0 + row) * ld + k0 + chunk * 16;
    stride = kStep * (int)ld;
    place = s8_at<BK>(row, chunk);
    rows = (total - row0 < ROWS ? (int)(total - row0) : ROWS) - row;
    left = (int)(k - k0) - chunk * 16;
  }
  __device__ __forceinline__ bool inside(int i) const { return i * kStep < rows && left > 0; }
  __device__ __forceinline__ void copy(unsigned char *to) const {
#pragma unroll
    for (int i = 0; i < kLoads; i++) fb_cp_async<16>(to + place + i * kStep * BK, from + i * stride, inside(i));
  }
  __device__ __forceinline__ void advance() {
    from += BK;
    left -= BK;
  }
};

// WM x WN warps share a tile of BM x BN; the registers are for RESIDENT blocks on an SM.
template <int BM, int BN, int BK, int WM, int WN, int STAGES>
struct S8Mma {
  static constexpr int kThreads = 32 * WM * WN, kWarpM = BM / WM, kWarpN = BN / WN, kMT = kWarpM / 16, kNT = kWarpN / 8;
  static constexpr int kStage = (BM + BN) * BK, kSteps = BK / 32;
  static constexpr int kEpilogue = WM * WN * fb_stage_words(kNT) * 4;
  static constexpr int kShared = STAGES * kStage > kEpilogue ? STAGES * kStage : kEpilogue;
  static_assert(kMT * 16 * WM == BM && kNT % 2 == 0 && kNT * 8 * WN == BN && kSteps % 2 == 0, "whole mma tiles");
};

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(32 * WM *WN, RESIDENT) gemm_s8_mma(const GemmS8Args p) {
  using C = S8Mma<BM, BN, BK, WM, WN, STAGES>;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(int, last, 1);
  const int lane = fb_lane(), warp = (int)threadIdx.x >> 5, wm = warp / WN, wn = warp % WN;
  const int part = (int)(blockIdx.x % p.split);
  const int64_t tile = blockIdx.x / p.split;
  int tm, tn;
  s8_tile(p, tile, tm, tn);
  const int64_t k0 = (int64_t)part * p.k_tiles * BK;
  S8Loader<BM, BK, C::kThreads> load_a(p.a, (int64_t)tm * BM, p.e.m, p.lda, p.k, k0);
  S8Loader<BN, BK, C::kThreads> load_b(p.b, (int64_t)tn * BN, p.e.n, p.ldb, p.k, k0);
  const int total = (int)fb_ceil_div(p.k, BK) - part * p.k_tiles, count = total < p.k_tiles ? total : p.k_tiles;

  auto copy = [&](int kt, int stage) {
    if (kt < count) {
      load_a.copy(shared + stage);
      load_b.copy(shared + stage + BM * BK);
      load_a.advance();
      load_b.advance();
    }
    fb_cp_commit(); // an empty group too: the waits count groups
  };

  int acc[C::kMT][C::kNT][4] = {};
  uint32_t a[2][C::kMT][4], b[2][C::kNT / 2][4];
  // ldmatrix x4. A: rows 0-7 and 8-15 of 16 bytes, then the next 16 bytes. B: both 16 bytes of rows 0-7, then of 8-15.
  const int a_row = wm * C::kWarpM + (lane & 15), a_chunk = lane >> 4;
  const int b_row = wn * C::kWarpN + (lane & 7) + (lane >> 4 << 3), b_chunk = lane >> 3 & 1;
  auto fragments = [&](int stage, int step, int to) {
    const unsigned char *at = shared + stage + s8_at<BK>(a_row, step * 2 + a_chunk);
#pragma unroll
    for (int i = 0; i < C::kMT; i++) fb_ldmatrix_x4(a[to][i], at + i * 16 * BK);
    at = shared + stage + BM * BK + s8_at<BK>(b_row, step * 2 + b_chunk);
#pragma unroll
    for (int j = 0; j < C::kNT / 2; j++) fb_ldmatrix_x4(b[to][j], at + j * 16 * BK);
  };

#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s, s * C::kStage);
  fb_cp_wait<STAGES - 2>();
  __syncthreads();
  fragments(0, 0, 0);
  int reading = 0, writing = (STAGES - 1) * C::kStage; // stages, as offsets
#pragma unroll 1
  for (int kt = 0; kt < count; kt++) {
#pragma unroll
    for (int step = 0; step < C::kSteps; step++) {
      if (step == C::kSteps - 1) {
        // Nobody reads this stage after the barrier, and everybody's part of the next one has arrived.
        fb_cp_wait<STAGES - 2>();
        __syncthreads();
        writing = reading;
        reading = reading == (STAGES - 1) * C::kStage ? 0 : reading + C::kStage;
        fragments(reading, 0, 0); // of no use, and none of harm, after the last tile
      } else {
        fragments(reading, step + 1, (step + 1) & 1);
      }
      if (step == 0) copy(kt + STAGES - 1, writing); // into the stage that the last barrier freed
#pragma unroll
      for (int j = 0; j < C::kNT; j++)
#pragma unroll
        for (int i = 0; i < C::kMT; i++) fb_mma_s8(acc[i][j], a[step & 1][i], b[step & 1][j / 2][j % 2 * 2], b[step & 1][j / 2][j % 2 * 2 + 1]);
    }
  }
  // The loop's last barrier freed the stages for the epilogue: what is read after it, nobody uses.
  if (p.split > 1 && !fb_split_sum<C::kThreads, C::kMT * C::kNT>(reinterpret_cast<int(&)[C::kMT * C::kNT][4]>(acc), p.workspace, tile, part, p.split, last)) return;
  fb_store_mma<C::kMT, C::kNT>(p.e, acc, (int64_t)tm * BM + wm * C::kWarpM, (int64_t)tn * BN + wn * C::kWarpN,
                               reinterpret_cast<int *>(shared) + warp * fb_stage_words(C::kNT));
}

// ---- dp4a: 128 threads, each 4 rows x 8 columns of 64 x 64, the next tile on its way through registers. 16 bytes of
// 4 + 8 rows feed 128 dp4a; in a quarter warp the rows of A are one and those of B lie in different banks.
constexpr int kDp4aTile = 64, kDp4aThreads = 128, kDp4aStride = kDp4aTile + 8;
constexpr int kDp4aShared = kDp4aTile * kDp4aStride * 4; // of the epilogue, more than two tiles of 64 x 64 bytes

__global__ void __launch_bounds__(kDp4aThreads) gemm_s8_dp4a(const GemmS8Args p) {
  constexpr int BK = 64;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(int, last, 1);
  const int tx = (int)threadIdx.x & 7, ty = (int)threadIdx.x >> 3;
  const int part = (int)(blockIdx.x % p.split);
  const int64_t tile = blockIdx.x / p.split;
  int tm, tn;
  s8_tile(p, tile, tm, tn);
  using Loader = S8Loader<kDp4aTile, BK, kDp4aThreads>;
  const int64_t k0 = (int64_t)part * p.k_tiles * BK;
  Loader load_a(p.a, (int64_t)tm * kDp4aTile, p.e.m, p.lda, p.k, k0), load_b(p.b, (int64_t)tn * kDp4aTile, p.e.n, p.ldb, p.k, k0);
  const int total = (int)fb_ceil_div(p.k, BK) - part * p.k_tiles, count = total < p.k_tiles ? total : p.k_tiles;
  unsigned char *sa = shared, *sb = shared + kDp4aTile * BK;
  int4 next_a[Loader::kLoads], next_b[Loader::kLoads];
  auto fetch = [&] {
    const int4 none = make_int4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < Loader::kLoads; i++) {
      next_a[i] = load_a.inside(i) ? *reinterpret_cast<const int4 *>(load_a.from + i * load_a.stride) : none;
      next_b[i] = load_b.inside(i) ? *reinterpret_cast<const int4 *>(load_b.from + i * load_b.stride) : none;
    }
    load_a.advance();
    load_b.advance();
  };

  int acc[4][8] = {};
  fetch();
#pragma unroll 1
  for (int kt = 0; kt < count; kt++) {
#pragma unroll
    for (int i = 0; i < Loader::kLoads; i++) {
      *reinterpret_cast<int4 *>(sa + load_a.place + i * Loader::kStep * BK) = next_a[i];
      *reinterpret_cast<int4 *>(sb + load_b.place + i * Loader::kStep * BK) = next_b[i];
    }
    __syncthreads();
    if (kt + 1 < count) fetch();
#pragma unroll
    for (int c = 0; c < BK / 16; c++) {
      int4 va[4];
#pragma unroll
      for (int i = 0; i < 4; i++) va[i] = *reinterpret_cast<const int4 *>(sa + s8_at<BK>(ty + 16 * i, c));
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int4 vb = *reinterpret_cast<const int4 *>(sb + s8_at<BK>(tx + 8 * j, c));
#pragma unroll
        for (int i = 0; i < 4; i++) acc[i][j] = __dp4a(va[i].w, vb.w, __dp4a(va[i].z, vb.z, __dp4a(va[i].y, vb.y, __dp4a(va[i].x, vb.x, acc[i][j]))));
      }
    }
    __syncthreads();
  }
  if (p.split > 1 && !fb_split_sum<kDp4aThreads, 8>(reinterpret_cast<int(&)[8][4]>(acc), p.workspace, tile, part, p.split, last)) return;

  int *stage = reinterpret_cast<int *>(shared);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) stage[(ty + 16 * i) * kDp4aStride + tx + 8 * j] = acc[i][j];
  __syncthreads();
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < kDp4aTile * kDp4aTile / 4; i += kDp4aThreads) {
    const int row = i / (kDp4aTile / 4), col = i % (kDp4aTile / 4) * 4;
    int v[4];
    const int4 bits = *reinterpret_cast<const int4 *>(stage + row * kDp4aStride + col);
    memcpy(v, &bits, 16);
    fb_store4(p.e, (int64_t)tm * kDp4aTile + row, (int64_t)tn * kDp4aTile + col, v);
  }
}
