//go:build cuda && cudaemu

#include "attention.cu"
