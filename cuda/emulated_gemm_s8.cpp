//go:build cuda && cudaemu

#include "gemm_s8.cu"
