//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// Conv is the geometry of a convolution and what follows it. Pads are those at
// the start; those at the end follow from the output's size.
type Conv struct {
	N, H, W, C       int // input
	OC, KH, KW       int // filters [OC, KH, KW, C / Groups], or [OC, C / Groups, KH, KW] for floats
	OH, OW           int // output
	StrideH, StrideW int
	PadH, PadW       int
	DilH, DilW       int
	Groups           int
	Act              Act
	ActMin, ActMax   float32
}

// ConvS8 describes y = act((x - XZero) * w * scales + bias + residual) on NHWC
// s8.
type ConvS8 struct {
	Conv
	XScale        float32
	XZero         int32   // s8 zero point, which padding stands for as well
	Out           Type    // S8 or F32
	OutScale      float32 // S8
	OutZero       int32   // S8
	ResidualScale float32
	ResidualZero  int32
	Config, Split int  // 0: chosen; otherwise 1 + an index below ConvS8Configs, and blocks along the filter
	Zeroed        bool // the first CounterBytes of the workspace are zero, as each run leaves them
}

// ConvOperands are the tensors of a convolution. Those that it does not have are 0.
type ConvOperands struct {
	X, W           Ptr // s8, aligned to 16
	WScale, WSum   Ptr // f32 and s32 [OC]; WSum, the sum of each filter, where XZero is not 0
	Bias, Residual Ptr // f32 [OC]; s8 as Y
	Y              Ptr // may be Residual
	Workspace      Ptr // aligned to 16
	WorkspaceBytes int64
}

func (d *Conv) c() C.fb_conv_s8 {
	return C.fb_conv_s8{n: C.int(d.N), h: C.int(d.H), w: C.int(d.W), c: C.int(d.C), oc: C.int(d.OC), kh: C.int(d.KH), kw: C.int(d.KW), oh: C.int(d.OH), ow: C.int(d.OW),
		stride_h: C.int(d.StrideH), stride_w: C.int(d.StrideW), pad_h: C.int(d.PadH), pad_w: C.int(d.PadW), dil_h: C.int(d.DilH), dil_w: C.int(d.DilW), groups: C.int(d.Groups),
		act: C.int(d.Act), act_min: C.float(d.ActMin), act_max: C.float(d.ActMax)}
}

func (d *ConvS8) c() C.fb_conv_s8 {
	c := d.Conv.c()
	c.x_scale, c.x_zero = C.float(d.XScale), C.int32_t(d.XZero)
	c.out, c.out_scale, c.out_zero = C.int(d.Out), C.float(d.OutScale), C.int32_t(d.OutZero)
	c.residual_scale, c.residual_zero = C.float(d.ResidualScale), C.int32_t(d.ResidualZero)
	c.config, c.split, c.zeroed = C.int(d.Config), C.int(d.Split), cbool(d.Zeroed)
	return c
}

func (d *Conv) String() string {
	return fmt.Sprintf("%dx%dx%dx%d, %d filters of %dx%d, stride %d,%d, pad %d,%d, dilation %d,%d, groups %d, to %dx%d",
		d.N, d.H, d.W, d.C, d.OC, d.KH, d.KW, d.StrideH, d.StrideW, d.PadH, d.PadW, d.DilH, d.DilW, d.Groups, d.OH, d.OW)
}

// Run launches the convolution on s.
func (d *ConvS8) Run(o ConvOperands, s Stream) error {
	c := d.c()
	status := C.fb_conv_s8_run(&c, at[C.int8_t](o.X), at[C.int8_t](o.W), at[C.float](o.WScale), at[C.int32_t](o.WSum), at[C.float](o.Bias), at[C.int8_t](o.Residual), raw(o.Y),
		raw(o.Workspace), C.size_t(o.WorkspaceBytes), stream(s))
	if status == C.FB_OK {
		return nil
	}
	return check("s8 convolution "+d.String(), status)
}

// Workspace is the bytes that Run needs on the current device.
func (d *ConvS8) Workspace() int64 {
	c := d.c()
	return int64(C.fb_conv_s8_workspace(&c))
}

// Pick returns the configuration that d gets on a device, and describes it; -1 where there is none.
func (d *ConvS8) Pick(on Info) (config int, text string) {
	c, info := d.c(), C.fb_device_info{sm: C.int(on.SM), sms: C.int(on.SMs), smem_per_block: C.int(on.SharedPerBlock)}
	var buffer [192]C.char
	config = int(C.fb_conv_s8_pick(&c, &info, &buffer[0], C.size_t(len(buffer))))
	if config < 0 {
		return config, ""
	}
	return config, C.GoString(&buffer[0])
}

// ConvS8Configs is the number of configurations.
func ConvS8Configs() int { return int(C.fb_conv_s8_configs()) }

// Products is how floats multiply; sums are FP32 in each.
type Products int32

// The kinds of products.
const (
	FP32 Products = C.FB_PRODUCTS_FP32 // operands as they are
	TF32 Products = C.FB_PRODUCTS_TF32 // rounded to 10 bits behind the point, on tensor cores
	FP16 Products = C.FB_PRODUCTS_FP16 // rounded to F16, on tensor cores
)

// PickConvFloat describes the kernel that a convolution of floats gets on a device,
// its tensors aligned to 16 bytes; "" where there is none.
func PickConvFloat(g Conv, products Products, on Info) string {
	c, info := g.c(), C.fb_device_info{sm: C.int(on.SM), sms: C.int(on.SMs), smem_per_block: C.int(on.SharedPerBlock)}
	var buffer [pickText]C.char
	if C.fb_conv_float_pick(&c, C.int(products), &info, &buffer[0], pickText) != C.FB_OK {
		return ""
	}
	return C.GoString(&buffer[0])
}

// ConvFloat launches a convolution of floats: x [N, C, H, W], w [OC, C / Groups,
// KH, KW], y and residual [N, OC, OH, OW]; y = act(x * w + bias + residual). All are
// F32, but w is F16 for FP16. bias [OC] and residual may be 0; y may be the residual.
// Groups of fewer than 8 filters, and all before sm_80, multiply operands as they are.
func ConvFloat(g Conv, products Products, x, w, bias, residual, y Ptr, s Stream) error {
	c := g.c()
	status := C.fb_conv_float(&c, C.int(products), at[C.float](x), unsafe.Pointer(at[byte](w)), at[C.float](bias), at[C.float](residual), at[C.float](y), stream(s))
	if status == C.FB_OK {
		return nil
	}
	return check("float convolution "+g.String(), status)
}
