// float_io.cuh: float tensors that are f32 or f16 in memory and f32 in registers.
#pragma once
#include "common.cuh"

template <class T> __device__ __forceinline__ float fb_to_float(T v);
template <> __device__ __forceinline__ float fb_to_float<float>(float v) { return v; }
template <> __device__ __forceinline__ float fb_to_float<fb_f16>(fb_f16 v) { return fb_f16_to_f32(v); }

// Four neighbours of which `count` exist; the others read as zero. vector says
// that four of them are aligned.
template <class T>
__device__ __forceinline__ void fb_read4(const T *from, int64_t count, bool vector, float (&to)[4]) {
  T v[4] = {};
  if (vector && count >= 4) {
    if (sizeof(T) == 4) {
      const uint4 w = *reinterpret_cast<const uint4 *>(from);
      memcpy(v, &w, sizeof v);
    } else {
      const uint2 w = *reinterpret_cast<const uint2 *>(from);
      memcpy(v, &w, sizeof v);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j < count) v[j] = from[j];
  }
#pragma unroll
  for (int j = 0; j < 4; j++) to[j] = fb_to_float<T>(v[j]);
}

template <class T>
__device__ __forceinline__ void fb_write4(T *to, int64_t count, bool vector, const float (&v)[4]) {
  if (sizeof(T) == 4) {
    float *f = reinterpret_cast<float *>(to);
    if (vector && count >= 4) {
      *reinterpret_cast<float4 *>(f) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) f[j] = v[j];
    }
  } else {
    fb_f16 *h = reinterpret_cast<fb_f16 *>(to);
    if (vector && count >= 4) {
      *reinterpret_cast<uint2 *>(h) = make_uint2(fb_pack_f16x2(v[0], v[1]), fb_pack_f16x2(v[2], v[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < count) h[j] = fb_f32_to_f16(v[j]);
    }
  }
}
