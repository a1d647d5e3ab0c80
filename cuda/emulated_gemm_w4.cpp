//go:build cuda && cudaemu

#include "gemm_w4.cu"
