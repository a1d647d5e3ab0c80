//go:build cuda && cudaemu

#include "conv.cu"
