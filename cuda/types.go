//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import "fmt"

// Type is the type of a tensor's elements.
type Type int32

// The element types. Bool is a byte, 0 or 1.
const (
	F32  Type = C.FB_F32
	F16  Type = C.FB_F16
	BF16 Type = C.FB_BF16
	S8   Type = C.FB_S8
	U8   Type = C.FB_U8
	S32  Type = C.FB_S32
	S64  Type = C.FB_S64
	U32  Type = C.FB_U32
	Bool Type = C.FB_BOOL
)

var types = [...]struct {
	name string
	size int
}{F32: {"f32", 4}, F16: {"f16", 2}, BF16: {"bf16", 2}, S8: {"s8", 1}, U8: {"u8", 1}, S32: {"s32", 4}, S64: {"s64", 8}, U32: {"u32", 4}, Bool: {"bool", 1}}

func (t Type) String() string {
	if t < 0 || int(t) >= len(types) {
		return fmt.Sprintf("Type(%d)", int32(t))
	}
	return types[t].name
}

// Size is the bytes of one element, 0 for what is no type.
func (t Type) Size() int {
	if t < 0 || int(t) >= len(types) {
		return 0
	}
	return types[t].size
}

// Act is an activation, of an epilogue or of Unary.
type Act int32

// The activations. Clip takes its bounds from the call.
const (
	None      Act = C.FB_ACT_NONE
	Relu      Act = C.FB_ACT_RELU
	Gelu      Act = C.FB_ACT_GELU // with erf
	GeluTanh  Act = C.FB_ACT_GELU_TANH
	QuickGelu Act = C.FB_ACT_QUICK_GELU // x sigmoid(1.702 x)
	Silu      Act = C.FB_ACT_SILU
	Clip      Act = C.FB_ACT_CLIP
)

var acts = [...]string{None: "none", Relu: "relu", Gelu: "gelu", GeluTanh: "gelu-tanh", QuickGelu: "quick-gelu", Silu: "silu", Clip: "clip"}

func (a Act) String() string {
	if a < 0 || int(a) >= len(acts) {
		return fmt.Sprintf("Act(%d)", int32(a))
	}
	return acts[a]
}
