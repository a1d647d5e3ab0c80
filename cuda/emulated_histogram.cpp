//go:build cuda && cudaemu

#include "histogram.cu"
