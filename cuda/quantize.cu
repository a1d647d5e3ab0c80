// quantize.cu: float to integer grids and back (docs/ops.md). All of it is
// bound by memory: one read of the input, one write of the result.
#include "common.cuh"

namespace {

constexpr int kThreads = 128; // a row is one block's
constexpr int kWarps = kThreads / 32;

// One row a block. ITEMS > 0 keeps the row in registers, 4 * ITEMS values a
// thread; 0 reads it twice, for rows that do not fit.
template <int ITEMS>
__global__ void __launch_bounds__(kThreads) quantize_rows(const float *__restrict__ x, int64_t k, const float *__restrict__ divisor, int8_t *__restrict__ q, int64_t ldq,
                                                          float *__restrict__ scale, int32_t *__restrict__ zero, bool vector) {
  FB_SHARED(float, scratch, kWarps);
  const float *row = x + blockIdx.x * k;
  int8_t *out = q + blockIdx.x * ldq;
  const int tid = (int)threadIdx.x;
  float v[ITEMS > 0 ? ITEMS : 1][4];
  float lo = 0.f, hi = 0.f;

  auto load = [&](int64_t at, float (&to)[4]) {
    if (vector && at + 4 <= k) {
      const float4 f = *reinterpret_cast<const float4 *>(row + at);
      to[0] = f.x, to[1] = f.y, to[2] = f.z, to[3] = f.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) to[j] = at + j < k ? row[at + j] : 0.f;
    }
    if (divisor) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (at + j < k) to[j] = fb_div(to[j], divisor[at + j]);
    }
  };
  auto range = [&](const float (&of)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) lo = fminf(lo, of[j]), hi = fmaxf(hi, of[j]);
  };
  if (ITEMS > 0) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      load((int64_t)(i * kThreads + tid) * 4, v[i]);
      range(v[i]);
    }
  } else {
    for (int64_t at = tid * 4; at < k; at += kThreads * 4) {
      load(at, v[0]);
      range(v[0]);
    }
  }
  lo = fb_block_reduce<kWarps>(lo, scratch, FbMin());
  hi = fb_block_reduce<kWarps>(hi, scratch, FbMax());
  const FbGrid grid = fb_row_grid(lo, hi);
  if (tid == 0) {
    scale[blockIdx.x] = grid.scale;
    zero[blockIdx.x] = grid.zero_u8 - 128;
  }
  auto store = [&](int64_t at, const float (&of)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at + j < ldq) out[at + j] = at + j < k ? fb_quantize_u8(of[j], grid.scale, grid.zero_u8) : (int8_t)0;
  };
  if (ITEMS > 0) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) store((int64_t)(i * kThreads + tid) * 4, v[i]);
  } else {
    for (int64_t at = tid * 4; at < k; at += kThreads * 4) {
      load(at, v[0]);
      store(at, v[0]);
    }
  }
  // The padding beyond what the loops above covered.
  const int64_t covered = ITEMS > 0 ? (int64_t)ITEMS * kThreads * 4 : fb_ceil_div(k, 4) * 4;
  for (int64_t at = covered + tid; at < ldq; at += kThreads) out[at] = 0;
}

__global__ void __launch_bounds__(256) quantize_tensor(const float *__restrict__ x, int64_t m, int64_t k, const float *__restrict__ divisor, float scale, int zero_u8,
                                                       int8_t *__restrict__ q, int64_t ldq) {
  const int64_t n = m * ldq;
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
    const int64_t row = i / ldq, col = i % ldq;
    if (col >= k) {
      q[i] = 0;
      continue;
    }
    float v = x[row * k + col];
    if (divisor) v = fb_div(v, divisor[col]);
    q[i] = fb_quantize_u8(v, scale, zero_u8);
  }
}

__global__ void __launch_bounds__(256) quantize_channels(const float *__restrict__ x, int64_t n, int64_t c, int64_t inner, const float *__restrict__ scale, int8_t *__restrict__ q) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256)
    q[i] = (int8_t)fb_clamp(__float2int_rn(fb_div(x[i], scale[i / inner % c])), -127, 127);
}

__global__ void __launch_bounds__(256) dequantize_rows(const int8_t *__restrict__ q, int64_t n, int64_t k, int64_t ldq, const float *__restrict__ scale, const int32_t *__restrict__ zero, float *__restrict__ x) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
    const int64_t row = i / k;
    x[i] = (float)(q[row * ldq + i % k] - (zero ? zero[row] : 0)) * scale[row];
  }
}

__global__ void __launch_bounds__(256) dequantize_channels(const int8_t *__restrict__ q, int64_t n, int64_t c, int64_t inner, const float *__restrict__ scale, float *__restrict__ x) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) x[i] = (float)q[i] * scale[i / inner % c];
}

__global__ void __launch_bounds__(256) dequantize_tensor(const int8_t *__restrict__ q, int64_t n, float scale, int zero_s8, float *__restrict__ x) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) x[i] = (float)(q[i] - zero_s8) * scale;
}

// One warp a block of weights: the scale maps the value of largest magnitude to
// -8, so that all 16 levels are used (as llama.cpp's Q4_0 does).
__global__ void __launch_bounds__(128) quantize_blocks_s4(const float *__restrict__ x, int64_t blocks, int block, uint8_t *__restrict__ q, float *__restrict__ scale) {
  const int64_t warps = (int64_t)gridDim.x * 4;
  for (int64_t b = blockIdx.x * (int64_t)4 + (threadIdx.x >> 5); b < blocks; b += warps) {
    const float *v = x + b * block;
    float hi = 0.f, lo = 0.f;
    for (int i = fb_lane(); i < block; i += 32) hi = fmaxf(hi, v[i]), lo = fminf(lo, v[i]);
    hi = fb_warp_max(hi);
    lo = fb_warp_min(lo);
    float s = fb_div(hi > -lo ? hi : lo, -8.f); // ties go to the negative one
    if (s == 0.f) s = 1.f;
    if (fb_lane() == 0) scale[b] = s;
    for (int i = fb_lane() * 2; i < block; i += 64) {
      const int a = fb_clamp(__float2int_rn(fb_div(v[i], s)), -8, 7) + 8, c = fb_clamp(__float2int_rn(fb_div(v[i + 1], s)), -8, 7) + 8;
      q[(b * block + i) / 2] = (uint8_t)(a | c << 4);
    }
  }
}

__global__ void __launch_bounds__(256) dequantize_blocks_s4(const uint8_t *__restrict__ q, const float *__restrict__ scale, int64_t bytes, int block, float *__restrict__ x) {
  for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < bytes; i += (int64_t)gridDim.x * 256) {
    const float s = scale[2 * i / block];
    x[2 * i] = (float)((q[i] & 15) - 8) * s;
    x[2 * i + 1] = (float)((q[i] >> 4) - 8) * s;
  }
}

bool bad_block(int block) { return block < 16 || block > 256 || (block & (block - 1)); }
constexpr int64_t kMaxRows = 0x7fffffff; // gridDim.x

} // namespace

extern "C" {

int fb_quantize_rows(const float *x, int64_t m, int64_t k, const float *divisor, int8_t *q, int64_t ldq, float *scale, int32_t *zero, fb_stream s) {
  if (!x || !q || !scale || !zero || m < 0 || m > kMaxRows || k < 1 || ldq < k) return FB_BAD_ARGUMENT;
  if (m == 0) return FB_OK;
  const bool vector = k % 4 == 0 && fb_aligned(x, 16);
  if (k <= 4 * kThreads) FB_LAUNCH(quantize_rows<1>, dim3((unsigned)m), dim3(kThreads), 0, s, x, k, divisor, q, ldq, scale, zero, vector);
  else if (k <= 8 * kThreads) FB_LAUNCH(quantize_rows<2>, dim3((unsigned)m), dim3(kThreads), 0, s, x, k, divisor, q, ldq, scale, zero, vector);
  else if (k <= 32 * kThreads) FB_LAUNCH(quantize_rows<8>, dim3((unsigned)m), dim3(kThreads), 0, s, x, k, divisor, q, ldq, scale, zero, vector);
  else FB_LAUNCH(quantize_rows<0>, dim3((unsigned)m), dim3(kThreads), 0, s, x, k, divisor, q, ldq, scale, zero, vector);
  return fb_launch_status();
}

int fb_quantize_tensor(const float *x, int64_t m, int64_t k, const float *divisor, float scale, int32_t zero_u8, int8_t *q, int64_t ldq, fb_stream s) {
  if (!x || !q || m < 0 || k < 1 || ldq < k || !(scale > 0.f) || zero_u8 < 0 || zero_u8 > 255) return FB_BAD_ARGUMENT;
  if (m == 0) return FB_OK;
  FB_LAUNCH(quantize_tensor, dim3(fb_grid(m * ldq, 1024)), dim3(256), 0, s, x, m, k, divisor, scale, zero_u8, q, ldq);
  return fb_launch_status();
}

int fb_quantize_channels(const float *x, int64_t outer, int64_t c, int64_t inner, const float *scale, int8_t *q, fb_stream s) {
  if (!x || !q || !scale || outer < 0 || c < 1 || inner < 1) return FB_BAD_ARGUMENT;
  const int64_t n = outer * c * inner;
  if (n == 0) return FB_OK;
  FB_LAUNCH(quantize_channels, dim3(fb_grid(n, 1024)), dim3(256), 0, s, x, n, c, inner, scale, q);
  return fb_launch_status();
}

int fb_dequantize_rows(const int8_t *q, int64_t m, int64_t k, int64_t ldq, const float *scale, const int32_t *zero, float *x, fb_stream s) {
  if (!x || !q || !scale || m < 0 || k < 1 || ldq < k) return FB_BAD_ARGUMENT;
  if (m == 0) return FB_OK;
  FB_LAUNCH(dequantize_rows, dim3(fb_grid(m * k, 1024)), dim3(256), 0, s, q, m * k, k, ldq, scale, zero, x);
  return fb_launch_status();
}

int fb_dequantize_channels(const int8_t *q, int64_t outer, int64_t c, int64_t inner, const float *scale, float *x, fb_stream s) {
  if (!x || !q || !scale || outer < 0 || c < 1 || inner < 1) return FB_BAD_ARGUMENT;
  const int64_t n = outer * c * inner;
  if (n == 0) return FB_OK;
  FB_LAUNCH(dequantize_channels, dim3(fb_grid(n, 1024)), dim3(256), 0, s, q, n, c, inner, scale, x);
  return fb_launch_status();
}

int fb_dequantize_tensor(const int8_t *q, int64_t n, float scale, int32_t zero_s8, float *x, fb_stream s) {
  if (!x || !q || n < 0) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  FB_LAUNCH(dequantize_tensor, dim3(fb_grid(n, 1024)), dim3(256), 0, s, q, n, scale, zero_s8, x);
  return fb_launch_status();
}

int fb_quantize_blocks_s4(const float *x, int64_t n, int64_t k, int block, uint8_t *q, float *scale, fb_stream s) {
  if (!x || !q || !scale || n < 0 || k < 1 || bad_block(block) || k % block) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  const int64_t blocks = n * (k / block);
  FB_LAUNCH(quantize_blocks_s4, dim3(fb_grid(blocks, 4)), dim3(128), 0, s, x, blocks, block, q, scale);
  return fb_launch_status();
}

int fb_dequantize_blocks_s4(const uint8_t *q, const float *scale, int64_t n, int64_t k, int block, float *x, fb_stream s) {
  if (!x || !q || !scale || n < 0 || k < 1 || bad_block(block) || k % block) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  FB_LAUNCH(dequantize_blocks_s4, dim3(fb_grid(n * k / 2, 1024)), dim3(256), 0, s, q, scale, n * k / 2, block, x);
  return fb_launch_status();
}

} // extern "C"
