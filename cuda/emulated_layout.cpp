//go:build cuda && cudaemu

#include "layout.cu"
