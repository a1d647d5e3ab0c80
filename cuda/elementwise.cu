// elementwise.cu: one value out for one value of each input (ONNX Add ... Where,
// Cast). Bound by memory: dense operands and those that broadcast along rows
// are read and written four at a time.
#include "strided.cuh"

namespace {

constexpr int kThreads = 256;

// ---- binary
__device__ __forceinline__ float arithmetic(int op, float a, float b) {
  switch (op) {
  case FB_ADD: return fb_add(a, b);
  case FB_SUB: return fb_add(a, -b);
  case FB_MUL: return fb_mul(a, b);
  case FB_DIV: return fb_div(a, b);
  case FB_POW: // ONNX Runtime squares and cubes by multiplication as well
    if (b == 2.f) return fb_mul(a, a);
    if (b == 3.f) return fb_mul(fb_mul(a, a), a);
    return powf(a, b);
  case FB_MIN: return a < b || a != a ? a : b; // NaN wins, as in ONNX Runtime
  default: return a > b || a != a ? a : b;     // FB_MAX
  }
}

// Integers wrap. A division by zero gives 0.
template <class T>
__device__ __forceinline__ T power(T a, T b) {
  if ((int64_t)b < 0) return a == 1 ? T(1) : a == T(-1) ? (b & 1 ? T(-1) : T(1)) : T(0); // the real power, truncated
  uint64_t r = 1, base = (uint64_t)a;
  for (uint64_t e = (uint64_t)b; e; e >>= 1) {
    if (e & 1) r *= base;
    base *= base;
  }
  return (T)r;
}
template <class T>
__device__ __forceinline__ T arithmetic(int op, T a, T b) {
  switch (op) {
  case FB_ADD: return (T)((uint64_t)a + (uint64_t)b);
  case FB_SUB: return (T)((uint64_t)a - (uint64_t)b);
  case FB_MUL: return (T)((uint64_t)a * (uint64_t)b);
  case FB_DIV:
    if (b == 0) return 0;
    if (T(-1) < T(0) && b == T(-1)) return (T)(0 - (uint64_t)a); // the lowest value would trap on a CPU
    return (T)(a / b);
  case FB_POW: return power(a, b);
  case FB_MIN: return a < b ? a : b;
  default: return a > b ? a : b;
  }
}
template <class T>
__device__ __forceinline__ uint8_t comparison(int op, T a, T b) {
  switch (op) {
  case FB_EQUAL: return a == b;
  case FB_LESS: return a < b;
  case FB_GREATER: return a > b;
  case FB_AND: return a != T(0) && b != T(0);
  default: return a != T(0) || b != T(0); // FB_OR
  }
}
bool compares(int op) { return op >= FB_EQUAL && op <= FB_OR; }

template <class T>
__device__ __forceinline__ void compute(int op, T a, T b, T &y) { y = arithmetic(op, a, b); }
struct Truth { uint8_t is; };
template <class T>
__device__ __forceinline__ void compute(int op, T a, T b, Truth &y) { y.is = comparison(op, a, b); }

// y has R = T, or Truth for comparisons. one: bit i means that operand i has one value for the V neighbours.
template <class T, class R, int V, class I>
__global__ void __launch_bounds__(kThreads) binary(int op, FbIndex<2, I> index, I n, const T *a, const T *b, int one, R *y) {
  const I step = (I)gridDim.x * kThreads;
  for (I i = (I)blockIdx.x * kThreads + (I)threadIdx.x; i < n; i += step) {
    int64_t at[2];
    index.offsets(i, at);
    const FbVector<T, V> va = fb_load_vector<T, V>(a + at[0], one & 1), vb = fb_load_vector<T, V>(b + at[1], one & 2);
    FbVector<R, V> r;
#pragma unroll
    for (int j = 0; j < V; j++) compute(op, va.v[j], vb.v[j], r.v[j]);
    *reinterpret_cast<FbVector<R, V> *>(y + (int64_t)i * V) = r;
  }
}

template <class T, class R>
int run_binary(int op, FbStrided<2> &s, const void *a, const void *b, void *y, fb_stream stream) {
  const T *pa = static_cast<const T *>(a), *pb = static_cast<const T *>(b);
  R *py = static_cast<R *>(y);
  if (s.dims[s.rank - 1] % 4 == 0 && s.vector(0, a, sizeof(T)) && s.vector(1, b, sizeof(T)) && fb_aligned(y, sizeof(R) * 4 < 16 ? sizeof(R) * 4 : 16) && s.fits32()) {
    const int one = (s.strides[0][s.rank - 1] == 0 ? 1 : 0) | (s.strides[1][s.rank - 1] == 0 ? 2 : 0);
    s.group4();
    FB_LAUNCH((binary<T, R, 4, uint32_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, op, (FbIndex<2, uint32_t>(s)), (uint32_t)s.n, pa, pb, one, py);
  } else if (s.fits32()) {
    FB_LAUNCH((binary<T, R, 1, uint32_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, op, (FbIndex<2, uint32_t>(s)), (uint32_t)s.n, pa, pb, 0, py);
  } else {
    FB_LAUNCH((binary<T, R, 1, int64_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, op, (FbIndex<2, int64_t>(s)), s.n, pa, pb, 0, py);
  }
  return fb_launch_status();
}

// ---- unary
__device__ __forceinline__ float unary(int op, float x, float p0, float p1) {
  switch (op) {
  // NaN passes, as in ONNX Runtime; epilogues (fb_activate) have no NaN to pass.
  case FB_ACT_RELU: return x < 0.f ? 0.f : x;
  case FB_ACT_CLIP: return x < p0 ? p0 : x > p1 ? p1 : x;
  case FB_ABS: return fabsf(x);
  case FB_NEG: return -x;
  case FB_EXP: return expf(x);
  case FB_LOG: return logf(x);
  case FB_SQRT: return sqrtf(x);
  case FB_RECIPROCAL: return fb_div(1.f, x);
  case FB_ERF: return erff(x);
  case FB_TANH: return tanhf(x);
  case FB_SIGMOID: return fb_div(1.f, 1.f + expf(-x));
  case FB_FLOOR: return floorf(x);
  case FB_CEIL: return ceilf(x);
  case FB_SIN: return sinf(x);
  case FB_COS: return cosf(x);
  case FB_HARDSIGMOID: {
    const float y = fb_add(fb_mul(p0, x), p1);
    return y < 0.f ? 0.f : y > 1.f ? 1.f : y;
  }
  case FB_HARDSWISH: {
    const float y = fb_add(fb_mul(x, 1.f / 6.f), 0.5f);
    return x * (y < 0.f ? 0.f : y > 1.f ? 1.f : y);
  }
  case FB_LEAKY_RELU: return x < 0.f ? fb_mul(p0, x) : x;
  default: return fb_activate(op, x, p0, p1);
  }
}

template <int V>
__global__ void __launch_bounds__(kThreads) unary_f32(int op, const float *x, int64_t n, float p0, float p1, float *y) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i * V < n; i += (int64_t)gridDim.x * kThreads) {
    FbVector<float, V> v = *reinterpret_cast<const FbVector<float, V> *>(x + i * V);
#pragma unroll
    for (int j = 0; j < V; j++) v.v[j] = unary(op, v.v[j], p0, p1);
    *reinterpret_cast<FbVector<float, V> *>(y + i * V) = v;
  }
}

__global__ void __launch_bounds__(kThreads) not_bool(const uint8_t *x, int64_t n, uint8_t *y) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < n; i += (int64_t)gridDim.x * kThreads) y[i] = x[i] == 0;
}

// ---- where
template <class T, int V, class I>
__global__ void __launch_bounds__(kThreads) where(FbIndex<3, I> index, I n, const uint8_t *cond, const T *a, const T *b, int one, T *y) {
  const I step = (I)gridDim.x * kThreads;
  for (I i = (I)blockIdx.x * kThreads + (I)threadIdx.x; i < n; i += step) {
    int64_t at[3];
    index.offsets(i, at);
    const FbVector<uint8_t, V> c = fb_load_vector<uint8_t, V>(cond + at[0], one & 1);
    const FbVector<T, V> va = fb_load_vector<T, V>(a + at[1], one & 2), vb = fb_load_vector<T, V>(b + at[2], one & 4);
    FbVector<T, V> r;
#pragma unroll
    for (int j = 0; j < V; j++) r.v[j] = c.v[j] ? va.v[j] : vb.v[j];
    *reinterpret_cast<FbVector<T, V> *>(y + (int64_t)i * V) = r;
  }
}

template <class T>
int run_where(FbStrided<3> &s, const uint8_t *cond, const void *a, const void *b, void *y, fb_stream stream) {
  const T *pa = static_cast<const T *>(a), *pb = static_cast<const T *>(b);
  T *py = static_cast<T *>(y);
  if (s.dims[s.rank - 1] % 4 == 0 && s.vector(0, cond, 1) && s.vector(1, a, sizeof(T)) && s.vector(2, b, sizeof(T)) && fb_aligned(y, sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) && s.fits32()) {
    int one = 0;
    for (int i = 0; i < 3; i++) one |= s.strides[i][s.rank - 1] == 0 ? 1 << i : 0;
    s.group4();
    FB_LAUNCH((where<T, 4, uint32_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, (FbIndex<3, uint32_t>(s)), (uint32_t)s.n, cond, pa, pb, one, py);
  } else if (s.fits32()) {
    FB_LAUNCH((where<T, 1, uint32_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, (FbIndex<3, uint32_t>(s)), (uint32_t)s.n, cond, pa, pb, 0, py);
  } else {
    FB_LAUNCH((where<T, 1, int64_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, (FbIndex<3, int64_t>(s)), s.n, cond, pa, pb, 0, py);
  }
  return fb_launch_status();
}

// ---- cast
//
// The ONNX specification leaves open what a float outside the integer's range
// becomes; this is what ONNX Runtime does on x86-64 (cvttss2si): truncation to
// s32, or s64 for 64-bit and u32 targets, whose lowest value stands for NaN and
// everything outside, and of that the low bits.
__device__ __forceinline__ int32_t truncate32(float x) { return x >= -2147483648.f && x < 2147483648.f ? (int32_t)x : INT32_MIN; }
__device__ __forceinline__ int64_t truncate64(float x) { return x >= -9223372036854775808.f && x < 9223372036854775808.f ? (int64_t)x : INT64_MIN; }

// A value on its way: integers as s64, floats as f32.
struct Value {
  bool real;
  float f;
  int64_t i;
};
__device__ __forceinline__ Value load_value(int type, const void *x, int64_t i) {
  switch (type) {
  case FB_F32: return {true, static_cast<const float *>(x)[i], 0};
  case FB_F16: return {true, fb_f16_to_f32(static_cast<const fb_f16 *>(x)[i]), 0};
  case FB_BF16: return {true, fb_bf16_to_f32(static_cast<const fb_bf16 *>(x)[i]), 0};
  case FB_S8: return {false, 0.f, static_cast<const int8_t *>(x)[i]};
  case FB_S32: return {false, 0.f, static_cast<const int32_t *>(x)[i]};
  case FB_S64: return {false, 0.f, static_cast<const int64_t *>(x)[i]};
  case FB_U32: return {false, 0.f, static_cast<const uint32_t *>(x)[i]};
  case FB_BOOL: return {false, 0.f, static_cast<const uint8_t *>(x)[i] != 0};
  default: return {false, 0.f, static_cast<const uint8_t *>(x)[i]}; // FB_U8
  }
}
__device__ __forceinline__ void store_value(int type, const Value &v, void *y, int64_t i) {
  const float f = v.real ? v.f : (float)v.i;
  switch (type) {
  case FB_F32: static_cast<float *>(y)[i] = f; break;
  case FB_F16: static_cast<fb_f16 *>(y)[i] = fb_f32_to_f16(f); break;
  case FB_BF16: static_cast<fb_bf16 *>(y)[i] = fb_f32_to_bf16(f); break;
  case FB_S64: static_cast<int64_t *>(y)[i] = v.real ? truncate64(f) : v.i; break;
  case FB_U32: static_cast<uint32_t *>(y)[i] = (uint32_t)(v.real ? truncate64(f) : v.i); break;
  case FB_S32: static_cast<int32_t *>(y)[i] = v.real ? truncate32(f) : (int32_t)v.i; break;
  case FB_BOOL: static_cast<uint8_t *>(y)[i] = v.real ? v.f != 0.f : v.i != 0; break;
  default: static_cast<uint8_t *>(y)[i] = (uint8_t)(v.real ? truncate32(f) : v.i); // FB_S8, FB_U8
  }
}

__global__ void __launch_bounds__(kThreads) cast(int from, int to, const void *x, int64_t n, void *y) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < n; i += (int64_t)gridDim.x * kThreads) store_value(to, load_value(from, x, i), y, i);
}

// Between f32 and f16, four at a time: activations of INT4 products go this way.
__device__ __forceinline__ void convert(float x, fb_f16 &y) { y = fb_f32_to_f16(x); }
__device__ __forceinline__ void convert(fb_f16 x, float &y) { y = fb_f16_to_f32(x); }
template <class S, class D>
__global__ void __launch_bounds__(kThreads) cast4(const S *__restrict__ x, int64_t groups, D *__restrict__ y) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < groups; i += (int64_t)gridDim.x * kThreads) {
    const FbVector<S, 4> v = reinterpret_cast<const FbVector<S, 4> *>(x)[i];
    FbVector<D, 4> r;
#pragma unroll
    for (int j = 0; j < 4; j++) convert(v.v[j], r.v[j]);
    reinterpret_cast<FbVector<D, 4> *>(y)[i] = r;
  }
}

bool is_type(int t) { return t >= FB_F32 && t <= FB_BOOL; }

} // namespace

extern "C" {

int fb_binary(int op, int type, const fb_view *out, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s) {
  if (!out || !a || !av || !b || !bv || !y || op < FB_ADD || op > FB_OR) return FB_BAD_ARGUMENT;
  const bool bytes = type == FB_U8 || type == FB_BOOL;
  if ((op == FB_AND || op == FB_OR) && !bytes) return FB_BAD_ARGUMENT;
  FbStrided<2> v;
  if (!v.set(*out, {av, bv})) return FB_BAD_ARGUMENT;
  if (v.n == 0) return FB_OK;
  v.merge();
  const bool truth = compares(op);
  switch (type) {
  case FB_F32: return truth ? run_binary<float, Truth>(op, v, a, b, y, s) : run_binary<float, float>(op, v, a, b, y, s);
  case FB_S64: return truth ? run_binary<int64_t, Truth>(op, v, a, b, y, s) : run_binary<int64_t, int64_t>(op, v, a, b, y, s);
  case FB_S32: return truth ? run_binary<int32_t, Truth>(op, v, a, b, y, s) : run_binary<int32_t, int32_t>(op, v, a, b, y, s);
  case FB_U8:
  case FB_BOOL: return truth ? run_binary<uint8_t, Truth>(op, v, a, b, y, s) : run_binary<uint8_t, uint8_t>(op, v, a, b, y, s);
  default: return FB_UNSUPPORTED;
  }
}

int fb_unary(int op, const void *x, int64_t n, float p0, float p1, void *y, fb_stream s) {
  const bool activation = op > FB_ACT_NONE && op <= FB_ACT_CLIP;
  if (!x || !y || n < 0 || n > kMaxElements || (!activation && (op < FB_ABS || op > FB_LEAKY_RELU))) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  const float *px = static_cast<const float *>(x);
  float *py = static_cast<float *>(y);
  if (op == FB_NOT) FB_LAUNCH(not_bool, dim3(fb_grid(n, kThreads)), dim3(kThreads), 0, s, static_cast<const uint8_t *>(x), n, static_cast<uint8_t *>(y));
  else if (n % 4 == 0 && fb_aligned(x, 16) && fb_aligned(y, 16)) FB_LAUNCH(unary_f32<4>, dim3(fb_grid(n, 4 * kThreads)), dim3(kThreads), 0, s, op, px, n, p0, p1, py);
  else FB_LAUNCH(unary_f32<1>, dim3(fb_grid(n, kThreads)), dim3(kThreads), 0, s, op, px, n, p0, p1, py);
  return fb_launch_status();
}

int fb_where(int size, const fb_view *out, const uint8_t *cond, const fb_view *cv, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s) {
  if (!out || !cond || !cv || !a || !av || !b || !bv || !y) return FB_BAD_ARGUMENT;
  FbStrided<3> v;
  if (!v.set(*out, {cv, av, bv})) return FB_BAD_ARGUMENT;
  if (v.n == 0) return FB_OK;
  v.merge();
  switch (size) {
  case 1: return run_where<uint8_t>(v, cond, a, b, y, s);
  case 4: return run_where<uint32_t>(v, cond, a, b, y, s);
  case 8: return run_where<uint64_t>(v, cond, a, b, y, s);
  default: return FB_BAD_ARGUMENT;
  }
}

int fb_cast(int from, int to, const void *x, int64_t n, void *y, fb_stream s) {
  if (!x || !y || n < 0 || n > kMaxElements || !is_type(from) || !is_type(to)) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  const bool vector = n % 4 == 0 && fb_aligned(x, 16) && fb_aligned(y, 16);
  const dim3 grid4(fb_grid(n / 4, kThreads)), block(kThreads);
  if (vector && from == FB_F32 && to == FB_F16) FB_LAUNCH((cast4<float, fb_f16>), grid4, block, 0, s, static_cast<const float *>(x), n / 4, static_cast<fb_f16 *>(y));
  else if (vector && from == FB_F16 && to == FB_F32) FB_LAUNCH((cast4<fb_f16, float>), grid4, block, 0, s, static_cast<const fb_f16 *>(x), n / 4, static_cast<float *>(y));
  else FB_LAUNCH(cast, dim3(fb_grid(n, kThreads)), block, 0, s, from, to, x, n, y);
  return fb_launch_status();
}

} // extern "C"
