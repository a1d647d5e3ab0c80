// reduce.cu: sums, means and extremes over one axis (ONNX ReduceSum ...). The
// order of a sum depends on the shape only, so results are the same every time.
#include "strided.cuh"

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float start(int op) { return op == FB_REDUCE_MAX ? -INFINITY : op == FB_REDUCE_MIN ? INFINITY : 0.f; }
__device__ __forceinline__ float both(int op, float a, float b) { return op == FB_REDUCE_MAX ? fmaxf(a, b) : op == FB_REDUCE_MIN ? fminf(a, b) : fb_add(a, b); }
__device__ __forceinline__ float add(int op, float a, float x) { return both(op, a, op == FB_REDUCE_L2 ? fb_mul(x, x) : x); }
__device__ __forceinline__ float finish(int op, float a, int64_t axis) {
  if (op == FB_REDUCE_MEAN) return axis ? fb_div(a, (float)axis) : 0.f;
  return op == FB_REDUCE_L2 ? sqrtf(a) : a;
}

// Dense rows: WARPS warps take one, a block has kThreads / 32 / WARPS of them.
template <int WARPS>
__global__ void __launch_bounds__(kThreads) reduce_rows(int op, const float *__restrict__ x, int64_t outer, int64_t axis, float *__restrict__ y, bool vector) {
  constexpr int kRows = kThreads / 32 / WARPS, kLanes = 32 * WARPS;
  FB_SHARED(float, scratch, kThreads / 32);
  const int at = (int)threadIdx.x % kLanes;
  const int64_t row = (int64_t)blockIdx.x * kRows + threadIdx.x / kLanes;
  float a = start(op);
  if (row < outer) {
    const float *from = x + row * axis;
    if (vector) {
      for (int64_t i = at; i < axis / 4; i += kLanes) {
        const float4 v = reinterpret_cast<const float4 *>(from)[i];
        a = add(op, add(op, add(op, add(op, a, v.x), v.y), v.z), v.w);
      }
    } else {
      for (int64_t i = at; i < axis; i += kLanes) a = add(op, a, from[i]);
    }
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) a = both(op, a, __shfl_xor_sync(kFullWarp, a, o));
  if (WARPS > 1) {
    if (fb_lane() == 0) scratch[threadIdx.x / 32] = a;
    __syncthreads();
    a = scratch[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) a = both(op, a, scratch[w]);
  }
  if (row < outer && at == 0) y[row] = finish(op, a, axis);
}

// Columns: neighbouring threads take neighbouring columns, ROWS threads share one.
template <int ROWS>
__global__ void __launch_bounds__(kThreads) reduce_columns(int op, const float *__restrict__ x, int64_t columns, int64_t axis, FbDivisor64 inner, float *__restrict__ y) {
  constexpr int kColumns = kThreads / ROWS;
  FB_SHARED(float, parts, kThreads);
  const int col = (int)threadIdx.x % kColumns, part = (int)threadIdx.x / kColumns;
  for (int64_t c0 = (int64_t)blockIdx.x * kColumns; c0 < columns; c0 += (int64_t)gridDim.x * kColumns) {
    const int64_t c = c0 + col;
    float a = start(op);
    if (c < columns) {
      const int64_t outer = inner.quotient(c);
      const float *from = x + outer * axis * inner.divisor + (c - outer * inner.divisor);
      for (int64_t i = part; i < axis; i += ROWS) a = add(op, a, from[i * inner.divisor]);
    }
    if (ROWS > 1) {
      parts[threadIdx.x] = a;
      __syncthreads();
      a = parts[col];
#pragma unroll
      for (int p = 1; p < ROWS; p++) a = both(op, a, parts[p * kColumns + col]);
      __syncthreads();
    }
    if (part == 0 && c < columns) y[c] = finish(op, a, axis);
  }
}

} // namespace

extern "C" int fb_reduce(int op, const float *x, int64_t outer, int64_t axis, int64_t inner, float *y, fb_stream s) {
  if (!x || !y || op < FB_REDUCE_SUM || op > FB_REDUCE_L2 || outer < 0 || axis < 0 || inner < 0) return FB_BAD_ARGUMENT;
  if (outer == 0 || inner == 0) return FB_OK;
  if (outer > kMaxElements / inner || (axis && outer * inner > kMaxElements / axis)) return FB_BAD_ARGUMENT;
  const dim3 block(kThreads);
  if (inner == 1 && outer > INT32_MAX) return FB_BAD_ARGUMENT; // gridDim.x
  const bool vector = axis % 4 == 0 && fb_aligned(x, 16);
  if (inner == 1 && axis <= 2048) FB_LAUNCH(reduce_rows<1>, dim3((unsigned)fb_ceil_div(outer, kThreads / 32)), block, 0, s, op, x, outer, axis, y, vector);
  else if (inner == 1) FB_LAUNCH(reduce_rows<8>, dim3((unsigned)outer), block, 0, s, op, x, outer, axis, y, vector);
  else if (axis <= 16) FB_LAUNCH(reduce_columns<1>, dim3(fb_grid(outer * inner, kThreads)), block, 0, s, op, x, outer * inner, axis, FbDivisor64::of(inner), y);
  else FB_LAUNCH(reduce_columns<8>, dim3(fb_grid(outer * inner, kThreads / 8)), block, 0, s, op, x, outer * inner, axis, FbDivisor64::of(inner), y);
  return fb_launch_status();
}
