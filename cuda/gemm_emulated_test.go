//go:build cuda && cudaemu

package cuda

import (
	"fmt"
	"strings"
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

// What hopper.h says is found: each kernel of emulated_selftest_sm90.cpp has one defect, seen on some schedule.
func TestEmulatorFindsHopperDefects(t *testing.T) {
	for n, c := range []struct{ defect, says string }{
		{"none", ""},
		{"accumulators read before the wait", "wrong sums"},
		{"no commit", "wrong sums"},
		{"a stage overwritten without waiting", "once more"},
		{"a stage released before its products are done", "wrong sums"},
		{"wrong phase", "nothing ends"},
		{"no arrival", "nothing ends"},
		{"too many bytes expected", "nothing ends"},
		{"barrier not initialised", "not initialised"},
		{"misaligned tile", "not aligned"},
		{"lanes disagree", "different operands"},
		{"a warp leaves a product out", "different numbers of wgmma"},
		{"accumulators written while under way", "under way are written"},
		{"the block ends before its tiles have come", "brings it tiles"},
		{"one arrival too many", "once more"},
	} {
		found := ""
		for _, seed := range seeds() {
			Emulate(seed, 90)
			if m := defectSM90(n); m != "" {
				if found = m; strings.Contains(m, c.says) {
					break
				}
			}
		}
		if (c.says == "") != (found == "") || !strings.Contains(found, c.says) {
			t.Errorf("%s: found %q, want %q", c.defect, found, c.says)
		}
	}
}
