//go:build cuda && cudaemu

#include "gemm_float.cu"
