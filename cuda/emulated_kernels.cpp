//go:build cuda && cudaemu

#include "kernels.cu"
