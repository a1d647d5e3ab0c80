//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// CounterBytes is how much at the start of a product's workspace has to be zero where its descriptor says Zeroed.
const CounterBytes = C.FB_COUNTER_BYTES

// GemmS8 describes C [M, N] = act((A [M, K] - zero) B [N, K]^T * scales + bias) + residual on s8.
type GemmS8 struct {
	M, N, K int64 // K at most 65792
	// Elements between rows. LDA and LDB are multiples of 16; up to the next
	// multiple of 16 from K, A or B is zero.
	LDA, LDB, LDC  int64
	PerRow         bool // AScale and AZero have M values, not one
	Act            Act
	ActMin, ActMax float32
	Out            Type    // F32, F16, S8 or S32: the sums themselves
	OutScale       float32 // S8
	OutZero        int32   // S8: the s8 zero point
	Residual       Type    // F32 or F16
	Config, Split  int     // 0: chosen; otherwise 1 + an index below GemmS8Configs, and blocks along K
	Zeroed         bool    // the first CounterBytes of the workspace are zero, as each run leaves them
}

// GemmOperands are the tensors of a product. Those that it does not have are 0.
type GemmOperands struct {
	A, AScale, AZero  Ptr // s8 (or f16), f32, s32
	B, BScale, BSum   Ptr // weights, f32, s32
	Bias, Residual, C Ptr // f32; C may be Residual
	Workspace         Ptr // aligned to 16
	WorkspaceBytes    int64
}

func (d *GemmS8) c() C.fb_gemm_s8 {
	return C.fb_gemm_s8{m: C.int64_t(d.M), n: C.int64_t(d.N), k: C.int64_t(d.K), lda: C.int64_t(d.LDA), ldb: C.int64_t(d.LDB), ldc: C.int64_t(d.LDC),
		a_rows: cbool(d.PerRow), act: C.int(d.Act), act_min: C.float(d.ActMin), act_max: C.float(d.ActMax), out: C.int(d.Out), out_scale: C.float(d.OutScale),
		out_zero: C.int32_t(d.OutZero), residual: C.int(d.Residual), config: C.int(d.Config), split: C.int(d.Split), zeroed: cbool(d.Zeroed)}
}

const pickText = 160 // bytes of a configuration's description

func (d Info) c() C.fb_device_info {
	return C.fb_device_info{sm: C.int(d.SM), sms: C.int(d.SMs), smem_per_block: C.int(d.SharedPerBlock), emulated: cbool(d.Emulated)}
}

func cbool(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

// Run launches the product on s.
func (d *GemmS8) Run(o GemmOperands, s Stream) error {
	c := d.c()
	return check(fmt.Sprintf("s8 product %dx%dx%d", d.M, d.N, d.K), C.fb_gemm_s8_run(&c, at[C.int8_t](o.A), at[C.float](o.AScale), at[C.int32_t](o.AZero), at[C.int8_t](o.B), at[C.float](o.BScale), at[C.int32_t](o.BSum),
		at[C.float](o.Bias), unsafe.Pointer(at[byte](o.Residual)), unsafe.Pointer(at[byte](o.C)), unsafe.Pointer(at[byte](o.Workspace)), C.size_t(o.WorkspaceBytes), stream(s)))
}

// Workspace is the bytes that Run needs on the current device.
func (d *GemmS8) Workspace() int64 {
	c := d.c()
	return int64(C.fb_gemm_s8_workspace(&c))
}

// Pick returns the configuration that d gets on a device, and describes it; -1 where there is none.
func (d *GemmS8) Pick(on Info) (config int, text string) {
	c, info := d.c(), on.c()
	var buffer [pickText]C.char
	config = int(C.fb_gemm_s8_pick(&c, &info, &buffer[0], pickText))
	if config < 0 {
		return config, ""
	}
	return config, C.GoString(&buffer[0])
}

// GemmS8Configs is the number of configurations.
func GemmS8Configs() int { return int(C.fb_gemm_s8_configs()) }

// RowSums sums each row of b [n, k] s8: what GemmS8 wants as BSum.
func RowSums(b Ptr, n, k, ldb int64, sums Ptr, s Stream) error {
	return check("row sums", C.fb_row_sums(at[C.int8_t](b), C.int64_t(n), C.int64_t(k), C.int64_t(ldb), at[C.int32_t](sums), stream(s)))
}
