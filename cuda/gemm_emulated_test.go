//go:build cuda && cudaemu

package cuda

import (
	"fmt"
	"testing"
)

// On other generations other kernels are chosen.
func TestGemmOnOtherDevices(t *testing.T) {
	for _, sm := range []int{75, 80, 89, 100} {
		Emulate(1, sm)
		for i, c := range [][3]int{{1, 64, 512}, {100, 130, 96}} {
			p := randomS8(uint64(i), c[0], c[1], c[2], c[2], c[2], c[1])
			_, text := p.Pick(must(t))
			p.run(t, fmt.Sprintf("sm_%d, %s", sm, text))
		}
	}
}
