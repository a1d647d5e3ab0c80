//go:build cuda && cudaemu

#include "norm.cu"
