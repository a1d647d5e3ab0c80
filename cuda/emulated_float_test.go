//go:build cuda && cudaemu

package cuda

import (
	"fmt"
	"testing"
)

// onTuring runs f on every schedule of a device without the instructions of sm_80.
func onTuring(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer configure(0)
	for _, seed := range seeds() {
		t.Run(fmt.Sprintf("schedule=%d", seed), func(t *testing.T) {
			Emulate(seed, 75)
			f(t)
		})
	}
}

// On a device without the instructions of sm_80, attention computes in FP32
// whatever was asked for.
func TestAttentionBeforeTensorCores(t *testing.T) {
	onTuring(t, func(t *testing.T) { attentionSweep(t, true) })
}

// And products neither round to TF32 nor need the tensor cores for F16.
func TestGemmFloatBeforeTensorCores(t *testing.T) {
	onTuring(t, func(t *testing.T) { gemmFloatSweep(t, false) })
}

// Nor do convolutions; FP16 filters are multiplied as they are.
func TestConvFloatBeforeTensorCores(t *testing.T) {
	onTuring(t, func(t *testing.T) { convFloatSweep(t, false) })
}
