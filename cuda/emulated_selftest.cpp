//go:build cuda && cudaemu

// Kernels with one defect each, which the emulation has to find (TestEmulatorFindsDefects).
#include "common.cuh"
#include "emulate/emulate_api.h"

#include <cstdio>

namespace {

__global__ void defective(int defect, float *data, int n, int *result) {
  FB_SHARED(int, shared, 64);
  FB_DYN_SHARED(float, dynamic);
  const int tid = (int)threadIdx.x;
  switch (defect) {
  case 0:
    shared[tid] = tid;
    __syncthreads();
    if (shared[63 - tid] != 63 - tid) *result = 1;
    break;
  case 1:
    if (tid == 5) return;
    __syncthreads();
    break;
  case 2:
    if (tid < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    break;
  case 3:
    if (tid & 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    break;
  case 4:
    if (tid & 1) __ballot_sync(kFullWarp, 1);
    else __shfl_xor_sync(kFullWarp, tid, 1);
    break;
  case 5: data[n + 4] = 1.f; break;
  case 6: *result = (int)data[-4096]; break;
  case 7: {
    uint32_t r[4];
    fb_ldmatrix_x4(r, reinterpret_cast<char *>(shared) + 4);
    break;
  }
  case 8:
    if (tid < 16) __shfl_xor_sync(kFullWarp, tid, 1);
    break;
  case 9: // no wait before the read
    fb_cp_async<4>(&dynamic[tid], &data[tid], true);
    fb_cp_commit();
    __syncthreads();
    if (dynamic[tid] != 1.f) *result = 9;
    break;
  case 10: // no barrier between write and read
    shared[tid] = 1;
    if (tid == 40) {
      int sum = 0;
      for (int i = 0; i < 64; i++) sum += shared[i];
      *result = sum == 64 ? 0 : 10;
    }
    break;
  case 11: data[n] = 1.f; break; // within the last 16 bytes
  }
}

} // namespace

extern "C" const char *fb_emu_selftest(int defect) {
  static char text[600];
  const int n = 65; // 260 bytes: the allocation's last page has a red zone
  float *data = static_cast<float *>(fb_emu_alloc(n * sizeof(float)));
  int *result = static_cast<int *>(fb_emu_alloc(sizeof(int)));
  for (int i = 0; i < n; i++) data[i] = 1.f;
  *result = 0;
  FB_LAUNCH(defective, dim3(1), dim3(64), 64 * sizeof(float), nullptr, defect, data, n, result);
  text[0] = 0;
  if (cudaGetLastError() != cudaSuccess) fb_emu_message(text, sizeof text);
  else if (*result == 9) snprintf(text, sizeof text, "read too early");
  else if (*result == 10) snprintf(text, sizeof text, "wrong sum");
  if (fb_emu_free(data) && !text[0]) fb_emu_message(text, sizeof text);
  fb_emu_free(result);
  return text;
}
