//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import "unsafe"

// GemmFloat is C = act(Alpha * A B + bias) + residual, in float, for each item
// of a batch. The zero Alpha, Batch and leading dimensions stand for 1 and for
// dense rows.
type GemmFloat struct {
	M, N, K int64
	In      Type // of A and B: F32, by fma, or F16, on tensor cores with F32 accumulators
	TF32    bool // F32 rounded to TF32 on tensor cores; before sm_80, as F32
	Out     Type // F32 or F16
	TransB  bool // B is [N, K] and not [K, N]

	LdA, LdB, LdC int64 // elements from row to row

	// Batch items lie the strides apart (elements); 0 shares A or B.
	Batch, StrideA, StrideB, StrideC int64

	Alpha          float32
	Act            Act
	ActMin, ActMax float32

	Own bool // never cuBLASLt
}

// CublasLt reports whether the machine's cuBLASLt is used, and its version or why not.
func CublasLt() (used bool, about string) {
	var text [128]C.char
	used = C.fb_cublaslt(&text[0], C.size_t(len(text))) != 0
	return used, C.GoString(&text[0])
}

// ResetCublasLt gives up what the library holds of a device: before the context
// goes, or with lost after it went.
func ResetCublasLt(lost bool) { C.fb_cublaslt_reset(cbool(lost)) }

// Pick describes the kernel that g gets on a device where rows are multiples of
// 16 bytes; "" where there is none.
func (g *GemmFloat) Pick(on Info) string {
	d, info := g.c(), C.fb_device_info{sm: C.int(on.SM), sms: C.int(on.SMs), smem_per_block: C.int(on.SharedPerBlock)}
	var buffer [pickText]C.char
	if C.fb_gemm_float_pick(&d, &info, &buffer[0], pickText) != C.FB_OK {
		return ""
	}
	return C.GoString(&buffer[0])
}

// Run launches it. bias [N] f32 and residual f32, which lies as C does, may be 0.
func (g *GemmFloat) Run(a, b, bias, residual, c Ptr, s Stream) error {
	d := g.c()
	return check("float gemm", C.fb_gemm_float_run(&d, unsafe.Pointer(at[byte](a)), unsafe.Pointer(at[byte](b)), at[C.float](bias), unsafe.Pointer(at[byte](residual)), unsafe.Pointer(at[byte](c)), stream(s)))
}

func (g *GemmFloat) c() C.fb_gemm_float {
	or := func(v, otherwise int64) C.int64_t {
		if v == 0 {
			return C.int64_t(otherwise)
		}
		return C.int64_t(v)
	}
	cols := g.N
	d := C.fb_gemm_float{
		m: C.int64_t(g.M), n: C.int64_t(g.N), k: C.int64_t(g.K), in: C.int(g.In), out: C.int(g.Out), act: C.int(g.Act), act_min: C.float(g.ActMin), act_max: C.float(g.ActMax),
		batch: or(g.Batch, 1), stride_a: C.int64_t(g.StrideA), stride_b: C.int64_t(g.StrideB), stride_c: C.int64_t(g.StrideC), alpha: C.float(g.Alpha), trans_b: cbool(g.TransB), tf32: cbool(g.TF32), own: cbool(g.Own),
	}
	if g.TransB {
		cols = g.K
	}
	if g.Alpha == 0 {
		d.alpha = 1
	}
	d.lda, d.ldb, d.ldc = or(g.LdA, g.K), or(g.LdB, cols), or(g.LdC, g.N)
	return d
}
