//go:build cuda && !cudaemu

package cuda

// The archive of kernels and the CUDA runtime, which opens the driver by itself
// when it is first used; their folders come from tools/cuda/go.sh.

// #cgo LDFLAGS: -lfewbit_cuda -lcudart_static -lstdc++ -lm -ldl -lrt -lpthread
import "C"

// Kernels begins the SHA-256 of the archive of kernels that is linked. The build sets it.
var Kernels = "unknown"
