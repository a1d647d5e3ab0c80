//go:build cuda && cudaemu

package cuda

import "testing"

// TestCublasLt: with the library there, tensor core products go through it where its
// epilogue can do them, and come out the same; what it refuses or fails with, the
// kernels do.
func TestCublasLt(t *testing.T) {
	configure(0)
	defer cublasLtDouble(false, 0)
	for _, c := range []struct {
		name     string
		fail     int
		products bool
	}{{"works", 0, true}, {"finds no algorithm", 1, false}, {"fails", 2, false}} {
		t.Run(c.name, func(t *testing.T) {
			cublasLtDouble(true, c.fail)
			if used, about := CublasLt(); !used || about != "a double" {
				t.Errorf("%v, %q", used, about)
			}
			gemmFloatSweep(t, true)
			if n := cublasLtProducts(); (n > 0) != c.products {
				t.Errorf("%d products", n)
			}
			shared := gemmFloatCase{GemmFloat: GemmFloat{In: F16, TransB: true}}.shape(20, 24, 32, 0, 3)
			shared.StrideB = 0
			shared.run(t, true)
		})
	}
	cublasLtDouble(true, 0)
	g := gemmFloatCase{GemmFloat: GemmFloat{In: F16, Own: true}}.shape(64, 64, 64, 0, 1)
	g.run(t, true)
	exact := gemmFloatCase{GemmFloat: GemmFloat{In: F32}}.shape(64, 64, 64, 0, 1)
	exact.run(t, true)
	if n := cublasLtProducts(); n != 0 {
		t.Errorf("%d products that are the kernels'", n)
	}
	g.Own = false
	g.run(t, true)
	g.run(t, true)
	if n := cublasLtProducts(); n != 2 {
		t.Errorf("%d products, want 2", n)
	}
	ResetCublasLt(false)
	if open := cublasLtDouble(false, 0); open != 0 {
		t.Errorf("%d of the library's objects are open", open)
	}
	if used, about := CublasLt(); used {
		t.Errorf("used though taken away: %s", about)
	}
}
