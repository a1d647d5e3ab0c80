// gemm_s8_sm90.cuh: C = A B^T of s8 on wgmma (Hopper).
//
//   warpgroup 0, one thread   TMA: tiles of A and B into a ring of stages
//   warpgroups 1 and 2        wgmma on 64 rows each, then the epilogue
//
//   full[s]    TMA has filled stage s               1 arrival + its bytes
//   empty[s]   all 8 multiplying warps are done     8 arrivals
//
// A block stays on its SM and takes every gridDim-th tile, so that tiles of the
// next one come in during an epilogue. Why 128x256: an SM multiplies 4096 a clock;
// a step of 128 along k takes 1024 clocks and 48 KiB from L2, 48 bytes a clock
// where an SM gets about 32 when all ask at once, so the reads that neighbours
// share decide; 128x128 needs 64. Shared memory gives wgmma 64 rows of A and all
// of B for each warpgroup: 80 KiB a step, 640 of 1024 clocks.
//
// Registers: 128 threads of warpgroup 0 need 40, the accumulators of the others
// 128 (of 256 columns): 40 * 128 + 232 * 256 = 64512 of 65536.
#pragma once
#include "fb_sm90.cuh"
#include "gemm_s8.cuh"

#ifdef FB_EMU
#define FB_GRID_CONSTANT
#else
#define FB_GRID_CONSTANT __grid_constant__
#endif

struct GemmS8Sm90Args {
  FbTensorMap a, b; // boxes of 128 and of BN rows
  GemmS8Args g;
};

template <int BN>
struct S8Wgmma {
  static constexpr int BM = 128, BK = 128, kThreads = 384, kA = BM * BK, kStage = (BM + BN) * BK;
  static constexpr int kStages = BN == 256 ? 4 : 6, kWarps = 8;
  static constexpr int kShared = kStages * kStage + kWarps * fb_stage_words(BN / 8) * 4;
};

template <int BN>
__global__ void __launch_bounds__(384, 1) gemm_s8_wgmma(const FB_GRID_CONSTANT GemmS8Sm90Args p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FB_EMU)
  using C = S8Wgmma<BN>;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(uint64_t, full, C::kStages);
  FB_SHARED(uint64_t, empty, C::kStages);
  const int tid = (int)threadIdx.x, group = tid / 128;
  const int64_t tiles = (int64_t)p.g.tiles_m * p.g.tiles_n;
  const int steps = (int)fb_ceil_div(p.g.k, C::BK);
  if (tid == 0) {
    for (int s = 0; s < C::kStages; s++) {
      fb_mbar_init(&full[s], 1);
      fb_mbar_init(&empty[s], C::kWarps);
    }
    fb_mbar_init_done();
  }
  __syncthreads();

  int stage = 0, phase = 0; // of the ring; phase turns each time round
  if (group == 0) {
    fb_registers_down<40>();
    if (tid != 0) return;
    fb_tma_prefetch(&p.a);
    fb_tma_prefetch(&p.b);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int tm, tn;
      s8_tile(p.g, tile, tm, tn);
      for (int k = 0; k < steps; k++) {
        fb_mbar_wait(&empty[stage], phase ^ 1);
        fb_mbar_arrive_expect(&full[stage], C::kStage);
        fb_tma_load(shared + stage * C::kStage, &p.a, k * C::BK, tm * C::BM, &full[stage]);
        fb_tma_load(shared + stage * C::kStage + C::kA, &p.b, k * C::BK, tn * BN, &full[stage]);
        if (++stage == C::kStages) stage = 0, phase ^= 1;
      }
    }
    return;
  }

  fb_registers_up<232>();
  const int warp = tid / 32 - 4, row = (group - 1) * 64;
  int *staged = reinterpret_cast<int *>(shared + C::kStages * C::kStage) + warp * fb_stage_words(BN / 8);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int tm, tn;
    s8_tile(p.g, tile, tm, tn);
    int acc[BN / 2];
    int behind = 0; // the stage that the product under way reads
#pragma unroll 1
    for (int k = 0; k < steps; k++) {
      fb_mbar_wait(&full[stage], phase);
      const unsigned char *a = shared + stage * C::kStage + row * C::BK, *b = shared + stage * C::kStage + C::kA;
      fb_wgmma_fence();
#pragma unroll
      for (int i = 0; i < C::BK; i += 32) fb_wgmma_s8<BN>(acc, a + i, b + i, k > 0 || i > 0);
      fb_wgmma_commit();
      fb_wgmma_wait<1>(acc); // the product of the step before
      if (k > 0 && fb_lane() == 0) fb_mbar_arrive(&empty[behind]);
      behind = stage;
      if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
    fb_wgmma_wait<0>(acc);
    if (fb_lane() == 0) fb_mbar_arrive(&empty[behind]);
    fb_store_mma<1, BN / 8>(p.g.e, reinterpret_cast<int(&)[1][BN / 8][4]>(acc), (int64_t)tm * C::BM + row + warp % 4 * 16, (int64_t)tn * BN, staged);
  }
#else
  __trap();
#endif
}
