// fb_cuda.h: the one header through which kernels see the machine.
//
// Two builds of one source: nvcc for a GPU (fb_ptx.cuh), and g++ -DFB_EMU for
// the emulation (emulate/emulate.h). Kernels keep to this subset:
//
//   FB_LAUNCH(kernel, grid, block, smem, stream, args...)   never <<<>>>
//   FB_DYN_SHARED(T, name)       the dynamic shared memory of the launch
//   FB_SHARED(T, name, count)    static shared memory, flat
//   fb_*                         everything that is PTX on a GPU
//
// Warp operations take the full mask and blocks are whole warps: a partial warp
// is an error in emulation, because mma and ldmatrix are undefined there.
#ifndef FB_CUDA_H
#define FB_CUDA_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fewbit_cuda.h"

// IEEE half and bfloat as bits: conversions below, arithmetic in float.
struct fb_f16 { uint16_t bits; };
struct fb_bf16 { uint16_t bits; };

#ifdef FB_EMU
#include "emulate/emulate.h"
#else
#include "fb_ptx.cuh"
#endif

// Two halves in a register, the first in the low bits: what mma reads.
__device__ __forceinline__ uint32_t fb_pack_f16x2(float lo, float hi) {
  return (uint32_t)fb_f32_to_f16(lo).bits | (uint32_t)fb_f32_to_f16(hi).bits << 16;
}

// Round to nearest even in the bits; NaN stays NaN.
__host__ __device__ __forceinline__ fb_bf16 fb_f32_to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return fb_bf16{(uint16_t)(u >> 16 | 0x40)};
  return fb_bf16{(uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
__host__ __device__ __forceinline__ float fb_bf16_to_f32(fb_bf16 x) {
  uint32_t u = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// What the launches since the last call left, as the status of an entry.
static inline int fb_launch_status() {
  int e = (int)cudaGetLastError();
  return e == 0 ? FB_OK : FB_CUDA_ERROR + e;
}

#endif
