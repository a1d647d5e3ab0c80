//go:build cuda

package cuda

import (
	"fmt"

	kernels "github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
)

// launch queues one step. addr finds its operands. The device's context is
// current.
func launch(step plan.Step, addr func(plan.Ref) device.Ptr, stream *device.Stream) error {
	at := func(r plan.Ref) kernels.Ptr { return kernels.Ptr(addr(r)) }
	on := kernels.Stream(stream.Handle())
	switch s := step.(type) {
	case *plan.QuantizeRows:
		return kernels.QuantizeRows(at(s.X), s.M, s.K, at(s.Divisor), at(s.Q), s.LdQ, at(s.Scale), at(s.Zero), on)
	case *plan.QuantizeTensor:
		return kernels.QuantizeTensor(at(s.X), s.M, s.K, 0, s.Scale, uint8(s.Zero), at(s.Q), s.LdQ, on)
	case *plan.DequantizeTensor:
		return kernels.DequantizeTensor(at(s.Q), s.N, s.Scale, s.Zero, at(s.X), on)
	case *plan.QuantizeToNHWC:
		return kernels.QuantizeToNHWC(at(s.X), s.N, s.C, s.HW, s.Scale, uint8(s.Zero), at(s.Q), s.LdC, on)
	case *plan.DequantizeToNCHW:
		return kernels.DequantizeToNCHW(at(s.Q), s.N, s.C, s.HW, s.LdC, s.Scale, s.Zero, at(s.X), on)
	case *plan.GemmS8:
		d := gemmS8(s)
		return d.Run(kernels.GemmOperands{A: at(s.A), AScale: at(s.AScale), AZero: at(s.AZero), B: at(s.B), BScale: at(s.BScale), BSum: at(s.BSum),
			Bias: at(s.Bias), Residual: at(s.Residual), C: at(s.C), Workspace: at(s.Work), WorkspaceBytes: s.WorkBytes}, on)
	case *plan.W4Pack:
		return kernels.W4Pack(at(s.Q), at(s.Scale), s.N, s.K, int(s.Block), at(s.Packed), at(s.PackedScale), on)
	case *plan.GemmW4:
		d := gemmW4(s)
		return d.Run(kernels.GemmOperands{A: at(s.A), AScale: at(s.AScale), AZero: at(s.AZero), B: at(s.Packed), BScale: at(s.PackedScale),
			Bias: at(s.Bias), Residual: at(s.Residual), C: at(s.C), Workspace: at(s.Work), WorkspaceBytes: s.WorkBytes}, on)
	case *plan.GemmFloat:
		d := kernels.GemmFloat{M: s.M, N: s.N, K: s.K, In: kernels.Type(s.In), TF32: s.TF32, TransB: s.TransB, LdA: s.LdA, LdB: s.LdB, LdC: s.LdC,
			Batch: s.Batch, StrideA: s.StrideA, StrideB: s.StrideB, StrideC: s.StrideC, Alpha: s.Alpha,
			Act: kernels.Act(s.Act), ActMin: s.ActMin, ActMax: s.ActMax}
		return d.Run(at(s.A), at(s.B), at(s.Bias), at(s.Residual), at(s.C), on)
	case *plan.Attention:
		d := kernels.Attention{Batch: s.Batch, Heads: s.Heads, QLen: s.QLen, KVLen: s.KVLen, HeadDim: int(s.HeadDim), VDim: int(s.VDim),
			Type: kernels.F32, Scores: kernels.Type(s.Scores), Scale: s.Scale, Causal: s.Causal,
			Q: kernels.Heads{Data: at(s.Q), Row: s.QRow, Batch: s.QBatch}, K: kernels.Heads{Data: at(s.K), Row: s.KRow, Batch: s.KBatch},
			V: kernels.Heads{Data: at(s.V), Row: s.VRow, Batch: s.VBatch}, Out: kernels.Heads{Data: at(s.Out), Row: s.ORow, Batch: s.OBatch},
			Mask: at(s.Mask), MaskHeads: s.MaskHeads, MaskQ: s.MaskQ, KeyLengths: at(s.KeyLengths)}
		return d.Run(on)
	case *plan.ConvS8:
		d := convS8(s)
		return d.Run(kernels.ConvOperands{X: at(s.X), W: at(s.B), WScale: at(s.BScale), WSum: at(s.BSum), Bias: at(s.Bias), Residual: at(s.Residual),
			Y: at(s.Y), Workspace: at(s.Work), WorkspaceBytes: s.WorkBytes}, on)
	case *plan.ConvFloat:
		return kernels.ConvFloat(geometry(&s.Conv, s.Act, s.ActMin, s.ActMax), kernels.Products(s.Products), at(s.X), at(s.B), at(s.Bias), 0, at(s.Y), on)
	case *plan.LayerNorm:
		d := kernels.LayerNorm{M: s.M, K: s.K, Epsilon: s.Epsilon, Input: at(s.X), Residual: at(s.Residual), Gamma: at(s.Gamma), Beta: at(s.Beta),
			Sum: at(s.Sum), Y: at(s.Y), Divisor: at(s.Divisor), Q: at(s.Q), LdQ: s.LdQ, Scale: at(s.Scale), Zero: at(s.Zero)}
		return d.Run(on)
	case *plan.Softmax:
		return kernels.Softmax(at(s.X), s.M, s.K, at(s.Y), on)
	case *plan.Embed:
		tables := make([]kernels.EmbedTable, len(s.Tables))
		for i, t := range s.Tables {
			tables[i] = kernels.EmbedTable{Rows: at(t.Rows), Bits: int(t.Bits), Block: int(t.Block), Count: t.Count, Scale: at(t.Scale), IDs: at(t.IDs), Period: t.IDsPeriod}
		}
		return kernels.Embed(tables, s.Tokens, s.Dim, at(s.Out), at(s.Fault), on)
	case *plan.PoolF32:
		return kernels.PoolF32(pool(s.Pool, false), at(s.X), at(s.Y), on)
	case *plan.PoolS8:
		return kernels.PoolS8(pool(s.Pool, true), at(s.X), s.XScale, s.XZero, at(s.Y), s.YScale, s.YZero, on)
	case *plan.GlobalAverage:
		return kernels.GlobalAverage(at(s.X), int(s.N), int(s.C), s.HW, s.NHWC, at(s.Y), on)
	case *plan.MaskedMean:
		return kernels.MaskedMean(at(s.X), at(s.Mask), s.B, s.T, s.D, at(s.Y), on)
	case *plan.Binary:
		return kernels.Binary(kernels.Op(s.Op), kernels.Type(s.Type), view(s.Out), at(s.A), view(s.AV), at(s.B), view(s.BV), at(s.Y), on)
	case *plan.Unary:
		if s.Op == 0 {
			return kernels.Activate(kernels.Act(s.Act), at(s.X), s.N, s.P0, s.P1, at(s.Y), on)
		}
		return kernels.Unary(kernels.Op(s.Op), at(s.X), s.N, s.P0, s.P1, at(s.Y), on)
	case *plan.Where:
		return kernels.Where(int(s.Size), view(s.Out), at(s.Cond), view(s.CV), at(s.A), view(s.AV), at(s.B), view(s.BV), at(s.Y), on)
	case *plan.Copy:
		return kernels.Copy(int(s.Size), view(s.Src), at(s.X), view(s.Dst), at(s.Y), on)
	case *plan.Cast:
		return kernels.Cast(kernels.Type(s.From), kernels.Type(s.To), at(s.X), s.N, at(s.Y), on)
	case *plan.Gather:
		return kernels.Gather(int(s.Size), at(s.X), s.Outer, s.Axis, s.Inner, at(s.IDs), s.NIDs, at(s.Y), at(s.Fault), on)
	case *plan.Reduce:
		return kernels.Reduce(kernels.Reduction(s.Op), at(s.X), s.Outer, s.Axis, s.Inner, at(s.Y), on)
	}
	return fmt.Errorf("%s: %w", step.Entry(), kernels.ErrUnsupported)
}

func pool(p plan.Pool, nhwc bool) kernels.Pool {
	return kernels.Pool{N: int(p.N), H: int(p.H), W: int(p.W), C: int(p.C), OH: int(p.OH), OW: int(p.OW), KH: int(p.KH), KW: int(p.KW),
		StrideH: int(p.StrideH), StrideW: int(p.StrideW), PadH: int(p.PadH), PadW: int(p.PadW), PadHEnd: int(p.PadHEnd), PadWEnd: int(p.PadWEnd),
		Average: p.Average, CountIncludePad: p.CountIncludePad, NHWC: nhwc}
}

// view is a plan's View for the kernels; planning keeps its rank within bounds.
func view(v plan.View) kernels.View {
	k := kernels.View{Rank: len(v.Dims)}
	copy(k.Dims[:], v.Dims)
	copy(k.Strides[:], v.Strides)
	return k
}

// gemmS8 is the descriptor of an s8 product. The session's workspaces start as
// zeros and serve nothing else.
func gemmS8(s *plan.GemmS8) *kernels.GemmS8 {
	return &kernels.GemmS8{M: s.M, N: s.N, K: s.K, LDA: s.LdA, LDB: s.LdB, LDC: s.LdC, PerRow: s.Rows,
		Act: kernels.Act(s.Act), ActMin: s.ActMin, ActMax: s.ActMax, Out: kernels.Type(s.Out), OutScale: s.OutScale, OutZero: s.OutZero, Zeroed: true}
}

// geometry is a plan's convolution for the kernels; planning bounds its sizes.
func geometry(c *plan.Conv, act plan.Act, lo, hi float32) kernels.Conv {
	return kernels.Conv{N: int(c.N), H: int(c.H), W: int(c.W), C: int(c.C), OC: int(c.OC), KH: int(c.KH), KW: int(c.KW), OH: int(c.OH), OW: int(c.OW),
		StrideH: int(c.StrideH), StrideW: int(c.StrideW), PadH: int(c.PadH), PadW: int(c.PadW), DilH: int(c.DilH), DilW: int(c.DilW), Groups: int(c.Groups),
		Act: kernels.Act(act), ActMin: lo, ActMax: hi}
}

// convS8 is the descriptor of an s8 convolution.
func convS8(s *plan.ConvS8) *kernels.ConvS8 {
	return &kernels.ConvS8{
		Conv: geometry(&s.Conv, s.Act, s.ActMin, s.ActMax), XScale: s.XScale, XZero: s.XZero, Out: kernels.Type(s.Out), OutScale: s.OutScale, OutZero: s.OutZero,
		ResidualScale: s.ResidualScale, ResidualZero: s.ResidualZero, Zeroed: true}
}

func gemmW4(s *plan.GemmW4) *kernels.GemmW4 {
	return &kernels.GemmW4{M: s.M, N: s.N, K: s.K, LDA: s.LdA, LDC: s.LdC, Block: int(s.Block), A: kernels.Type(s.AType),
		Act: kernels.Act(s.Act), ActMin: s.ActMin, ActMax: s.ActMax, Zeroed: true}
}
