//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// GemmW4 describes C [M, N] = act(A [M, K] W^T + bias) + residual with W [N, K] in INT4 blocks.
type GemmW4 struct {
	M, N, K        int64 // K is a multiple of 32 and of Block
	LDA, LDC       int64 // elements between rows; those of A are multiples of 16 bytes
	Block          int   // 32, 64, a multiple of 128, or K
	A              Type  // F16, or S8 with AScale [M] and AZero [M]
	Act            Act
	ActMin, ActMax float32
	Out            Type // F32 or F16
	Residual       Type // F32 or F16
	Config, Split  int  // 0: chosen; otherwise 1 + an index below GemmW4Configs, and blocks along K
	Zeroed         bool // the first CounterBytes of the workspace are zero, as each run leaves them
}

func (d *GemmW4) c() C.fb_gemm_w4 {
	return C.fb_gemm_w4{m: C.int64_t(d.M), n: C.int64_t(d.N), k: C.int64_t(d.K), lda: C.int64_t(d.LDA), ldc: C.int64_t(d.LDC), block: C.int(d.Block), a: C.int(d.A),
		act: C.int(d.Act), act_min: C.float(d.ActMin), act_max: C.float(d.ActMax), out: C.int(d.Out), residual: C.int(d.Residual), config: C.int(d.Config), split: C.int(d.Split), zeroed: cbool(d.Zeroed)}
}

// W4PackedBytes is the size of n x k weights as W4Pack shuffles them.
func W4PackedBytes(n, k int64) int64 { return (n + 31) / 32 * 32 * k / 2 }

// W4PackedScales is the number of scales, and of sums for zero points, beside them.
func W4PackedScales(n, k int64, block int) int64 { return (k/int64(block) + 1) * ((n + 31) / 32 * 32) }

// W4Pack shuffles weights q [n, k/2] and scale [n, k/block], as QuantizeBlocksS4
// writes them, into the order that GemmW4 reads.
func W4Pack(q, scale Ptr, n, k int64, block int, packed, packedScale Ptr, s Stream) error {
	return check("pack INT4 weights", C.fb_w4_pack(at[C.uint8_t](q), at[C.float](scale), C.int64_t(n), C.int64_t(k), C.int(block), at[C.uint8_t](packed), at[C.float](packedScale), stream(s)))
}

// Run launches the product on s. B and BScale are what W4Pack wrote; there is no BSum.
func (d *GemmW4) Run(o GemmOperands, s Stream) error {
	c := d.c()
	return check(fmt.Sprintf("INT4 product %dx%dx%d", d.M, d.N, d.K), C.fb_gemm_w4_run(&c, unsafe.Pointer(at[byte](o.A)), at[C.float](o.AScale), at[C.int32_t](o.AZero), at[C.uint8_t](o.B), at[C.float](o.BScale),
		at[C.float](o.Bias), unsafe.Pointer(at[byte](o.Residual)), unsafe.Pointer(at[byte](o.C)), unsafe.Pointer(at[byte](o.Workspace)), C.size_t(o.WorkspaceBytes), stream(s)))
}

// Workspace is the bytes that Run needs on the current device.
func (d *GemmW4) Workspace() int64 {
	c := d.c()
	return int64(C.fb_gemm_w4_workspace(&c))
}

// Pick returns the configuration that d gets on a device, and describes it; -1 where there is none.
func (d *GemmW4) Pick(on Info) (config int, text string) {
	c, info := d.c(), on.c()
	var buffer [pickText]C.char
	config = int(C.fb_gemm_w4_pick(&c, &info, &buffer[0], pickText))
	if config < 0 {
		return config, ""
	}
	return config, C.GoString(&buffer[0])
}

// GemmW4Configs is the number of configurations.
func GemmW4Configs() int { return int(C.fb_gemm_w4_configs()) }
