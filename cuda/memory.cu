// memory.cu: what the tests of the kernels need of a device, and which device it is.
#include "fb_cuda.h"
#ifdef FB_EMU
#include "emulate/emulate_api.h"
#endif

extern "C" {

#ifdef FB_EMU

int fb_device(fb_device_info *out) {
  if (!out) return FB_BAD_ARGUMENT;
  *out = fb_device_info{fb_emu_sm(), 4, 227 << 10, 1};
  return FB_OK;
}
int fb_malloc(void **out, size_t bytes) { return (*out = fb_emu_alloc(bytes)) ? FB_OK : FB_CUDA_ERROR + cudaErrorMemoryAllocation; }
int fb_free(void *p) {
  const int e = fb_emu_free(p);
  return e ? FB_CUDA_ERROR + e : FB_OK;
}
int fb_copy_in(void *dst, const void *src, size_t bytes) { return memcpy(dst, src, bytes), FB_OK; }
int fb_copy_out(void *dst, const void *src, size_t bytes) { return memcpy(dst, src, bytes), FB_OK; }
int fb_sync(fb_stream) { return FB_OK; }

#else

static int code(cudaError_t e) { return e == cudaSuccess ? FB_OK : FB_CUDA_ERROR + (int)e; }

int fb_device(fb_device_info *out) {
  if (!out) return FB_BAD_ARGUMENT;
  int at = 0, major = 0, minor = 0;
  cudaError_t e = cudaGetDevice(&at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&out->sms, cudaDevAttrMultiProcessorCount, at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&out->smem_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, at);
  out->sm = 10 * major + minor;
  out->emulated = 0;
  return code(e);
}
int fb_malloc(void **out, size_t bytes) { return code(cudaMalloc(out, bytes)); }
int fb_free(void *p) { return code(cudaFree(p)); }
int fb_copy_in(void *dst, const void *src, size_t bytes) { return code(cudaMemcpy(dst, src, bytes, cudaMemcpyHostToDevice)); }
int fb_copy_out(void *dst, const void *src, size_t bytes) { return code(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost)); }
int fb_sync(fb_stream s) { return code(cudaStreamSynchronize((cudaStream_t)s)); }

#endif

} // extern "C"
