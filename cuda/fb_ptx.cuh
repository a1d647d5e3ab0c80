// fb_ptx.cuh: the GPU side of fb_cuda.h. Instructions that an architecture
// lacks trap there; the host never picks a kernel that would meet one.
#pragma once
#include <cuda_runtime.h>

#define FB_DYN_SHARED(T, name)                               \
  extern __shared__ __align__(1024) unsigned char fb_dyn[];  \
  T *name = reinterpret_cast<T *>(fb_dyn)
#define FB_SHARED(T, name, count) __shared__ T name[count]

// More than 48 KiB of dynamic shared memory has to be asked for (CUDA
// programming guide, 7.2.3: opt-in shared memory).
template <class K>
static inline void fb_allow_shared(K kernel, size_t bytes) {
  if (bytes > 48 * 1024) cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}
#define FB_LAUNCH(kernel, grid, block, smem, stream, ...)                              \
  do {                                                                                 \
    fb_allow_shared(kernel, (smem));                                                   \
    kernel<<<(grid), (block), (smem), (cudaStream_t)(stream)>>>(__VA_ARGS__);          \
  } while (0)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FB_SM80(statement) __trap()
#else
#define FB_SM80(statement) statement
#endif

static inline int64_t fb_grid_limit(int64_t limit) { return limit; }

__device__ __forceinline__ int fb_lane() { return (int)(threadIdx.x & 31); }
__device__ __forceinline__ uint32_t fb_shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---- asynchronous copies (PTX ISA: cp.async), BYTES 4, 8 or 16; !pred writes zeros. src must be valid either way.
template <int BYTES>
__device__ __forceinline__ void fb_cp_async(void *dst, const void *src, bool pred) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int i = 0; i < BYTES / 4; i++) static_cast<uint32_t *>(dst)[i] = pred ? static_cast<const uint32_t *>(src)[i] : 0u;
#else
  const int n = pred ? BYTES : 0;
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(fb_shared_address(dst)), "l"(src), "r"(n) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(fb_shared_address(dst)), "l"(src), "r"(n), "n"(BYTES) : "memory");
#endif
}
__device__ __forceinline__ void fb_cp_commit() { FB_SM80(asm volatile("cp.async.commit_group;" ::: "memory")); }
template <int N>
__device__ __forceinline__ void fb_cp_wait() { FB_SM80(asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory")); }

// ---- ldmatrix: 8x8 matrices of 16 bits, lane l gives the row address of row l (PTX ISA: ldmatrix)
__device__ __forceinline__ void fb_ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(fb_shared_address(row)) : "memory");
}
__device__ __forceinline__ void fb_ldmatrix_x2(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(fb_shared_address(row)) : "memory");
}
__device__ __forceinline__ void fb_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(fb_shared_address(row)) : "memory");
}
__device__ __forceinline__ void fb_ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(fb_shared_address(row)) : "memory");
}

// ---- tensor cores: D = A B + D, A row-major 16 x 32 bytes, B column-major 8 x 32 bytes (PTX ISA: mma fragments)
__device__ __forceinline__ void fb_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FB_SM80(asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                       : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)));
}
__device__ __forceinline__ void fb_mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FB_SM80(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                       : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)));
}
__device__ __forceinline__ void fb_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FB_SM80(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                       : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)));
}
__device__ __forceinline__ void fb_mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FB_SM80(asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                       : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)));
}
// Nearest TF32, ties away from zero, as cvt.rna.
__device__ __forceinline__ uint32_t fb_to_tf32(float x) {
  uint32_t r = __float_as_uint(x);
  FB_SM80(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x)));
  return r;
}

// ---- conversions and bits
__device__ __forceinline__ fb_f16 fb_f32_to_f16(float x) {
  fb_f16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
__device__ __forceinline__ float fb_f16_to_f32(fb_f16 h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
  return x;
}
// Arithmetic on two halves at once, each rounded to nearest even.
__device__ __forceinline__ uint32_t fb_hadd2(uint32_t a, uint32_t b) { uint32_t r; asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ uint32_t fb_hsub2(uint32_t a, uint32_t b) { uint32_t r; asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ uint32_t fb_hmul2(uint32_t a, uint32_t b) { uint32_t r; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ uint32_t fb_hfma2(uint32_t a, uint32_t b, uint32_t c) { uint32_t r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
// Any function of three bits, LUT as in PTX: 0xf0 is a, 0xcc is b, 0xaa is c.
template <int LUT>
__device__ __forceinline__ uint32_t fb_lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(LUT));
  return r;
}
// 2^x to 2 ulp (ex2.approx): softmax.
__device__ __forceinline__ float fb_exp2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// exact product, sum and quotient, whatever the contraction flags
__device__ __forceinline__ float fb_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float fb_add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float fb_div(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double fb_dmul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double fb_dadd(double a, double b) { return __dadd_rn(a, b); }
