//go:build cuda && cudaemu

#include "memory.cu"
