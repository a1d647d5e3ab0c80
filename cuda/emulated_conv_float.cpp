//go:build cuda && cudaemu

#include "conv_float.cu"
