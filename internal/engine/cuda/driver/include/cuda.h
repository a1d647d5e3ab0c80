/* Stands before the toolkit's cuda.h on the include path, so that gorgonia.org/cu
 * v0.9.6, which is written for the C interface of CUDA 12 and older, compiles
 * with the headers of CUDA 13 as well. That changed the arguments of a few
 * functions; the new ones are called with what the old ones meant. */
#ifndef FEWBIT_CUDA_COMPAT_H
#define FEWBIT_CUDA_COMPAT_H

#include_next <cuda.h>

#if CUDA_VERSION >= 13000
#undef cuCtxCreate
#undef cuMemAdvise
#undef cuMemPrefetchAsync
#undef cuGraphAddDependencies
#undef cuGraphGetEdges

static inline CUresult fewbit_cuCtxCreate(CUcontext *context, unsigned flags, CUdevice device) {
  return cuCtxCreate_v4(context, (CUctxCreateParams *)0, flags, device);
}
/* A device below 0 was CU_DEVICE_CPU. */
static inline CUmemLocation fewbit_location(CUdevice device) {
  CUmemLocation at = {0};
  at.type = device < 0 ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE;
  at.id = device < 0 ? 0 : device;
  return at;
}
static inline CUresult fewbit_cuMemAdvise(CUdeviceptr p, size_t bytes, CUmem_advise advice, CUdevice device) {
  return cuMemAdvise_v2(p, bytes, advice, fewbit_location(device));
}
static inline CUresult fewbit_cuMemPrefetchAsync(CUdeviceptr p, size_t bytes, CUdevice device, CUstream stream) {
  return cuMemPrefetchAsync_v2(p, bytes, fewbit_location(device), 0, stream);
}
static inline CUresult fewbit_cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t n) {
  return cuGraphAddDependencies_v2(graph, from, to, (const CUgraphEdgeData *)0, n);
}
static inline CUresult fewbit_cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *n) {
  return cuGraphGetEdges_v2(graph, from, to, (CUgraphEdgeData *)0, n);
}
#define cuCtxCreate fewbit_cuCtxCreate
#define cuMemAdvise fewbit_cuMemAdvise
#define cuMemPrefetchAsync fewbit_cuMemPrefetchAsync
#define cuGraphAddDependencies fewbit_cuGraphAddDependencies
#define cuGraphGetEdges fewbit_cuGraphGetEdges
#endif

#endif
