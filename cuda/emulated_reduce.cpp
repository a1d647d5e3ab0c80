//go:build cuda && cudaemu

#include "reduce.cu"
