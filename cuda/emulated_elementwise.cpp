//go:build cuda && cudaemu

#include "elementwise.cu"
