//go:build cuda && cudaemu

#include "pool.cu"
