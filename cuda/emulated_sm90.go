//go:build cuda && cudaemu

package cuda

// const char *fb_emu_selftest_sm90(int defect);
import "C"

// defectSM90 is like defect, for kernels of Hopper.
func defectSM90(n int) string { return C.GoString(C.fb_emu_selftest_sm90(C.int(n))) }
