//go:build cuda && cudaemu

#include "embed.cu"
