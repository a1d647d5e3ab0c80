//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"math"
	"unsafe"
)

// Heads is one operand of Attention: tokens of heads * dimension elements.
type Heads struct {
	Data  Ptr
	Row   int64 // elements from token to token; 0: dense
	Batch int64 // elements from batch item to batch item; 0: dense
}

// Attention is softmax(Q K^T Scale + mask) V for each head.
//
// A query whose keys are all masked by the same amount, minus infinity
// included, gets the mean of V that the softmax of its scores gives, and no NaN.
type Attention struct {
	Batch, Heads  int64
	QLen, KVLen   int64
	HeadDim, VDim int     // multiples of 8 up to 128
	Type          Type    // of Q, K, V and Out: F32 or F16
	Scores        Type    // F32: by fma. F16: on tensor cores. S8: also, from Q and K quantized by row; V in F16
	Scale         float32 // 0: 1 / sqrt(HeadDim)
	Causal        bool    // query i sees keys up to i + KVLen - QLen
	Q, K, V, Out  Heads
	Mask          Ptr  // f32, added to the scores: [Batch, Heads or 1, QLen or 1, KVLen], or 0
	MaskHeads     bool // the mask has a plane for each head
	MaskQ         bool // the mask has a row for each query
	KeyLengths    Ptr  // s32 [Batch] or 0: keys past it take no part, unless it is below 1
}

// Run launches it. Before sm_80, and where rows do not start at multiples of 16
// bytes, Scores is F32.
func (a *Attention) Run(s Stream) error {
	or := func(v, otherwise int64) C.int64_t {
		if v == 0 {
			return C.int64_t(otherwise)
		}
		return C.int64_t(v)
	}
	wide, wideV := a.Heads*int64(a.HeadDim), a.Heads*int64(a.VDim)
	d := C.fb_attention{
		batch: C.int64_t(a.Batch), heads: C.int64_t(a.Heads), q_len: C.int64_t(a.QLen), kv_len: C.int64_t(a.KVLen), head_dim: C.int(a.HeadDim), v_dim: C.int(a.VDim),
		q_row: or(a.Q.Row, wide), k_row: or(a.K.Row, wide), v_row: or(a.V.Row, wideV), o_row: or(a.Out.Row, wideV),
		scale: C.float(a.Scale), causal: cbool(a.Causal), in: C.int(a.Type), scores: C.int(a.Scores), mask_q: cbool(a.MaskQ), mask_heads: cbool(a.MaskHeads),
	}
	d.q_batch, d.k_batch = or(a.Q.Batch, a.QLen*int64(d.q_row)), or(a.K.Batch, a.KVLen*int64(d.k_row))
	d.v_batch, d.o_batch = or(a.V.Batch, a.KVLen*int64(d.v_row)), or(a.Out.Batch, a.QLen*int64(d.o_row))
	if a.Scale == 0 {
		d.scale = C.float(1 / math.Sqrt(float64(a.HeadDim)))
	}
	return check("attention", C.fb_attention_run(&d, unsafe.Pointer(at[byte](a.Q.Data)), unsafe.Pointer(at[byte](a.K.Data)), unsafe.Pointer(at[byte](a.V.Data)),
		at[C.float](a.Mask), at[C.int32_t](a.KeyLengths), unsafe.Pointer(at[byte](a.Out.Data)), stream(s)))
}
