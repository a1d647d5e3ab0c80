//go:build cuda && cudaemu

package cuda

import (
	"strings"
	"testing"
	"unsafe"
)

func sizeOf[T any](v T) uintptr { return unsafe.Sizeof(v) }

func seeds() []uint32       { return []uint32{0, 1, 2, 3, 4} }
func configure(seed uint32) { Emulate(seed, 90) }
func message() string       { return EmulatorMessage() }
func isEmulated() bool      { return true }

// The emulator has to find what it says it finds: each kernel of
// emulated_selftest.cpp has one defect.
func TestEmulatorFindsDefects(t *testing.T) {
	for _, c := range []struct {
		defect int
		says   string
	}{
		{0, ""},
		{1, "not reached by all threads"},
		{2, "different __syncthreads"},
		{3, "while"},
		{4, "different operations"},
		{5, "past the start of an allocation"},
		{6, "before an allocation"},
		{7, "not aligned"},
		{8, "by 16 lanes"},
		{9, "read too early"},
		{10, "wrong sum"},
		{11, "written around"},
	} {
		found := ""
		for _, seed := range seeds() {
			Emulate(seed, 90)
			if m := defect(c.defect); m != "" {
				found = m
				break
			}
		}
		if (c.says == "") != (found == "") || !strings.Contains(found, c.says) {
			t.Errorf("defect %d: found %q, want %q", c.defect, found, c.says)
		}
	}
}
