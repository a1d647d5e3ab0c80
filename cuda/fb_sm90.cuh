// fb_sm90.cuh: what Hopper adds: barriers in shared memory, tiles by TMA, and
// products of four warps at once (PTX ISA: mbarrier, cp.async.bulk.tensor,
// wgmma). The emulation has the same names in emulate/hopper.h.
//
// Tiles in shared memory are rows of 128 bytes in the 128-byte swizzle: the chunk
// of 16 bytes at address bits 4..6 lies where these bits XOR bits 7..9 say. A tile
// begins at a multiple of 1024, and is named by a pointer to it, or to 32, 64 or 96
// bytes along k in it.
#pragma once
#include "fb_cuda.h"

#ifdef FB_EMU
#include "emulate/hopper.h"
#else
#include <cuda.h>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define FB_SM90(statement) statement
#else
#define FB_SM90(statement) __trap()
#endif

typedef CUtensorMap FbTensorMap; // as a kernel's __grid_constant__ parameter

// Describes rows x cols bytes, `stride` bytes between rows (a multiple of 16), read in boxes of box_rows x 128 with zeros outside.
static inline int fb_tensor_map(FbTensorMap *map, const void *base, int64_t cols, int64_t rows, int64_t stride, int box_rows) {
  typedef CUresult (*Encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                             CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] { // the driver is not linked
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(f) : nullptr;
  }();
  if (!encode) return FB_UNSUPPORTED;
  const cuuint64_t dims[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, strides[1] = {(cuuint64_t)stride};
  const cuuint32_t box[2] = {128, (cuuint32_t)box_rows}, step[2] = {1, 1};
  const CUresult e = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void *>(base), dims, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return e == CUDA_SUCCESS ? FB_OK : FB_BAD_ARGUMENT;
}

// ---- mbarrier: a phase ends when `count` threads have arrived and the bytes expected have come
__device__ __forceinline__ void fb_mbar_init(uint64_t *bar, int count) {
  FB_SM90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(fb_shared_address(bar)), "r"(count) : "memory"));
}
// Makes initialised barriers visible to TMA; then __syncthreads.
__device__ __forceinline__ void fb_mbar_init_done() { FB_SM90(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory")); }
__device__ __forceinline__ void fb_mbar_arrive(uint64_t *bar) {
  FB_SM90(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(fb_shared_address(bar)) : "memory"));
}
__device__ __forceinline__ void fb_mbar_arrive_expect(uint64_t *bar, int bytes) {
  FB_SM90(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(fb_shared_address(bar)), "r"(bytes) : "memory"));
}
// Waits until the phase of this parity is over. The first phase has parity 0; that before it is over from the start.
__device__ __forceinline__ void fb_mbar_wait(uint64_t *bar, int parity) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(fb_shared_address(bar)), "r"(parity) : "memory");
  } while (!done);
#else
  __trap();
#endif
}

// ---- TMA: the box at byte col of row `row`, into a tile; its bytes count on bar
__device__ __forceinline__ void fb_tma_load(void *tile, const FbTensorMap *map, int col, int row, uint64_t *bar) {
  FB_SM90(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(fb_shared_address(tile)), "l"(map),
                       "r"(fb_shared_address(bar)), "r"(col), "r"(row)
                       : "memory"));
}
__device__ __forceinline__ void fb_tma_prefetch(const FbTensorMap *map) { FB_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory")); }

// ---- registers of a warpgroup, after the launch gave every thread the same
template <int N>
__device__ __forceinline__ void fb_registers_down() { FB_SM90(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N))); }
template <int N>
__device__ __forceinline__ void fb_registers_up() { FB_SM90(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N))); }

// ---- wgmma: D [64, N] (+)= A [64, 32 bytes] B [N, 32 bytes]^T, both tiles; asynchronous until the wait that covers it.
// Warp w of four has rows 16 w .. 16 w + 15, in each group of 8 columns as mma m16n8.
__device__ __forceinline__ void fb_wgmma_fence() { FB_SM90(asm volatile("wgmma.fence.sync.aligned;" ::: "memory")); }
__device__ __forceinline__ void fb_wgmma_commit() { FB_SM90(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")); }
// PTX ISA, matrix descriptor: address / 16, 1024 bytes between groups of 8 rows, 128-byte swizzle.
__device__ __forceinline__ uint64_t fb_wgmma_tile(const void *p) { return (uint64_t)(fb_shared_address(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62; }

template <int N>
__device__ __forceinline__ void fb_wgmma_s8(int32_t (&d)[N / 2], const void *a, const void *b, bool accumulate);

#define FB_R4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define FB_R16(d, i) FB_R4(d, i), FB_R4(d, i + 4), FB_R4(d, i + 8), FB_R4(d, i + 12)
#define FB_R64(d, i) FB_R16(d, i), FB_R16(d, i + 16), FB_R16(d, i + 32), FB_R16(d, i + 48)
#define FB_R128(d, i) FB_R64(d, i), FB_R64(d, i + 64)

// The wait names the accumulators, so that nothing reads them before it.
template <>
__device__ __forceinline__ void fb_wgmma_s8<128>(int32_t (&d)[64], const void *a, const void *b, bool accumulate) {
  FB_SM90(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
                       "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                       "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                       "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                       "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                       "}, %64, %65, p;\n}"
                       : FB_R64(d, 0) : "l"(fb_wgmma_tile(a)), "l"(fb_wgmma_tile(b)), "r"((int)accumulate) : "memory"));
}
template <int PENDING>
__device__ __forceinline__ void fb_wgmma_wait(int32_t (&d)[64]) {
  FB_SM90(asm volatile("wgmma.wait_group.sync.aligned %64;" : FB_R64(d, 0) : "n"(PENDING) : "memory"));
}

template <>
__device__ __forceinline__ void fb_wgmma_s8<256>(int32_t (&d)[128], const void *a, const void *b, bool accumulate) {
  FB_SM90(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
                       "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                       "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                       "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                       "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                       "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                       "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                       "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                       "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
                       "}, %128, %129, p;\n}"
                       : FB_R128(d, 0) : "l"(fb_wgmma_tile(a)), "l"(fb_wgmma_tile(b)), "r"((int)accumulate) : "memory"));
}
template <int PENDING>
__device__ __forceinline__ void fb_wgmma_wait(int32_t (&d)[128]) {
  FB_SM90(asm volatile("wgmma.wait_group.sync.aligned %128;" : FB_R128(d, 0) : "n"(PENDING) : "memory"));
}

#undef FB_R4
#undef FB_R16
#undef FB_R64
#undef FB_R128
#undef FB_SM90
#endif
