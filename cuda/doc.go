// Package cuda holds fewbit's CUDA kernels and their Go bindings.
//
// The kernels are one source for two builds: nvcc for a real GPU, and the host
// compiler with the emulation in emulate/ for tests on every machine. Build
// tags choose: none, nothing of this package but this comment; cuda, the real
// kernels (make cuda); cuda,cudaemu, the emulated ones.
package cuda
