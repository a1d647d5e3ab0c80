//go:build cuda && cudaemu

package cuda

import "testing"

// On a device without the instructions of sm_80, attention computes in FP32
// whatever was asked for.
func TestAttentionBeforeTensorCores(t *testing.T) {
	Emulate(1, 75)
	defer configure(0)
	attentionSweep(t, true)
}

// And products neither round to TF32 nor need the tensor cores for F16.
func TestGemmFloatBeforeTensorCores(t *testing.T) {
	Emulate(1, 75)
	defer configure(0)
	gemmFloatSweep(t, false)
}

// Nor do convolutions; FP16 filters are multiplied as they are.
func TestConvFloatBeforeTensorCores(t *testing.T) {
	Emulate(1, 75)
	defer configure(0)
	convFloatSweep(t, false)
}
