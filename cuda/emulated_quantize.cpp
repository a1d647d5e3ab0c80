//go:build cuda && cudaemu

#include "quantize.cu"
