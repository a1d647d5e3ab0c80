//go:build cuda && cudaemu

#include "emulate/hopper.cpp"
