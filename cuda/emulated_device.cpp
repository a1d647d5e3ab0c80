//go:build cuda && cudaemu

#include "emulate/emulate.cpp"
