//go:build cuda && cudaemu

#include "conv_f32.cu"
