//go:build cuda && cudaemu

// Defects of kernels on barriers, TMA and wgmma, which the emulation has to find (TestEmulatorFindsHopperDefects).
#include "common.cuh"
#include "emulate/emulate_api.h"
#include "fb_sm90.cuh"

#include <cstdio>

namespace {

enum Defect { kNone, kReadEarly, kNoCommit, kOverwrite, kReleaseEarly, kWrongPhase, kNoArrival, kWrongBytes, kNotInitialised, kMisaligned, kLanes, kWarps, kWriteAccumulators, kLeaves, kOverrun };
constexpr int kSteps = 5, kStages = 2, kStage = 64 * 128 + 128 * 128;
constexpr int kSum = 128 * (1 + 4 + 9 + 16 + 25); // of the steps' squares

// One tile of 64 x 128: a thread of warp 0 loads, warps 4 to 7 multiply.
__global__ void __launch_bounds__(256) defective_sm90(int defect, const FbTensorMap map_a, const FbTensorMap map_b, int *wrong) {
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(uint64_t, full, kStages);
  FB_SHARED(uint64_t, empty, kStages);
  const int tid = (int)threadIdx.x;
  if (tid == 0 && defect != kNotInitialised)
    for (int s = 0; s < kStages; s++) {
      fb_mbar_init(&full[s], 1);
      fb_mbar_init(&empty[s], 4);
    }
  __syncthreads();
  if (tid == 0) {
    for (int k = 0; k < kSteps; k++) {
      const int s = k % kStages, round = k / kStages;
      unsigned char *to = shared + s * kStage;
      if (defect != kOverwrite) fb_mbar_wait(&empty[s], defect == kWrongPhase ? round & 1 : (round & 1) ^ 1);
      fb_mbar_arrive_expect(&full[s], defect == kWrongBytes ? kStage + 16 : kStage);
      fb_tma_load(to + (defect == kMisaligned ? 128 : 0), &map_a, k * 128, 0, &full[s]);
      fb_tma_load(to + 64 * 128, &map_b, k * 128, 0, &full[s]);
      if (defect == kOverrun) fb_mbar_arrive(&full[s]);
    }
    if (defect == kLeaves) {
      fb_mbar_wait(&empty[kSteps % kStages], (kSteps / kStages & 1) ^ 1);
      fb_mbar_arrive_expect(&full[kSteps % kStages], kStage);
      fb_tma_load(shared + kSteps % kStages * kStage, &map_a, 0, 0, &full[kSteps % kStages]);
    }
  }
  if (tid < 128) return;
  int acc[64];
  for (int k = 0; k < kSteps; k++) {
    const int s = k % kStages;
    fb_mbar_wait(&full[s], k / kStages & 1);
    const unsigned char *a = shared + s * kStage, *b = a + 64 * 128;
    if (defect == kLanes && fb_lane() == 7) b += 32;
    fb_wgmma_fence();
    for (int i = 0; i < 128; i += 32)
      if (defect != kWarps || tid < 224 || i) fb_wgmma_s8<128>(acc, a + i, b + i, k > 0 || i > 0);
    if (defect != kNoCommit) fb_wgmma_commit();
    if (defect == kWriteAccumulators) acc[3] = 0;
    if (defect == kReleaseEarly && fb_lane() == 0) fb_mbar_arrive(&empty[s]);
    if (defect != kReadEarly || k < kSteps - 1) fb_wgmma_wait<0>(acc);
    if (defect != kReleaseEarly && defect != kNoArrival && fb_lane() == 0) fb_mbar_arrive(&empty[s]);
  }
  for (int i = 0; i < 64; i++)
    if (acc[i] != kSum) atomicAdd(wrong, 1);
}

} // namespace

extern "C" const char *fb_emu_selftest_sm90(int defect) {
  static char text[600];
  const int depth = 128 * kSteps;
  auto *a = static_cast<int8_t *>(fb_emu_alloc(64 * depth)), *b = static_cast<int8_t *>(fb_emu_alloc(128 * depth));
  auto *wrong = static_cast<int *>(fb_emu_alloc(sizeof(int)));
  // Both factors are the step's number, so that a tile of another step is seen, and a mixture too.
  for (int i = 0; i < 64 * depth; i++) a[i] = (int8_t)(1 + i % depth / 128);
  for (int i = 0; i < 128 * depth; i++) b[i] = (int8_t)(1 + i % depth / 128);
  *wrong = 0;
  FbTensorMap map_a, map_b;
  fb_tensor_map(&map_a, a, depth, 64, depth, 64);
  fb_tensor_map(&map_b, b, depth, 128, depth, 128);
  FB_LAUNCH(defective_sm90, dim3(1), dim3(256), kStages * kStage, nullptr, defect, map_a, map_b, wrong);
  text[0] = 0;
  if (cudaGetLastError() != cudaSuccess) fb_emu_message(text, sizeof text);
  else if (*wrong) snprintf(text, sizeof text, "wrong sums");
  fb_emu_free(a);
  fb_emu_free(b);
  fb_emu_free(wrong);
  return text;
}
