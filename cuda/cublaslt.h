// cublaslt.h: the part of NVIDIA's cuBLASLt that gemm_float.cu calls, opened at run
// time. Declared here, because no build needs the library or its headers: opaque
// handles, the numbers of the attributes used, and the result of the heuristic, as
// cublasLt.h of CUDA 12 and 13 has them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fewbit_cuda.h"

enum {
  FB_LT_F32 = 0, FB_LT_F16 = 2,                                   // cudaDataType_t
  FB_LT_COMPUTE_F32 = 68, FB_LT_COMPUTE_TF32 = 77,                // cublasComputeType_t
  FB_LT_N = 0, FB_LT_T = 1,                                       // cublasOperation_t
  FB_LT_DESC_TRANSA = 3, FB_LT_DESC_TRANSB = 4, FB_LT_DESC_EPILOGUE = 7, FB_LT_DESC_BIAS = 8, // cublasLtMatmulDescAttributes_t
  FB_LT_EPILOGUE_RELU = 2, FB_LT_EPILOGUE_BIAS = 4, FB_LT_EPILOGUE_DEFAULT = 1,               // cublasLtEpilogue_t, or-ed but for the last
  FB_LT_LAYOUT_BATCH = 5, FB_LT_LAYOUT_STRIDE = 6,                // cublasLtMatrixLayoutAttribute_t
  FB_LT_PREF_WORKSPACE = 1, FB_LT_PREF_ALIGN_A = 5,               // cublasLtMatmulPreferenceAttributes_t; B, C and D follow A
};

struct FbLtAlgo { uint64_t data[8]; };
struct FbLtHeuristic { // cublasLtMatmulHeuristicResult_t
  FbLtAlgo algo;
  size_t workspace;
  int state; // cublasStatus_t
  float waves;
  int reserved[4];
};

// The library's functions; each returns a cublasStatus_t, 0 for success.
struct FbCublasLt {
  int (*Create)(void **handle);
  int (*Destroy)(void *handle);
  size_t (*GetVersion)();
  int (*MatmulDescCreate)(void **desc, int compute, int scale_type);
  int (*MatmulDescDestroy)(void *desc);
  int (*MatmulDescSetAttribute)(void *desc, int attribute, const void *value, size_t bytes);
  int (*MatrixLayoutCreate)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*MatrixLayoutDestroy)(void *layout);
  int (*MatrixLayoutSetAttribute)(void *layout, int attribute, const void *value, size_t bytes);
  int (*MatmulPreferenceCreate)(void **preference);
  int (*MatmulPreferenceDestroy)(void *preference);
  int (*MatmulPreferenceSetAttribute)(void *preference, int attribute, const void *value, size_t bytes);
  int (*MatmulAlgoGetHeuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted, FbLtHeuristic *found, int *count);
  int (*Matmul)(void *handle, void *desc, const void *alpha, const void *a, void *layout_a, const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                void *d, void *layout_d, const FbLtAlgo *algo, void *workspace, size_t workspace_bytes, fb_stream stream);
};

// Runs the product where the library is there and can: FB_UNSUPPORTED otherwise,
// with nothing launched, and the caller's own kernel does it.
int fb_cublaslt_run(const fb_gemm_float *d, const void *a, const void *b, const float *bias, const float *residual, void *c, fb_stream s);
