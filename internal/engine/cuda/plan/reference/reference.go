// Package reference executes plans in plain Go on host memory: what each entry
// of cuda/fewbit_cuda.h is specified to compute, without tiles, warps or
// vectors. It is the independent check of plans on machines without a GPU.
package reference

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrIndex: an id lies outside its table.
var ErrIndex = errors.New("index outside its table")

// Run executes p on the inputs and returns its outputs. Memory that no step has
// written holds NaN, so that reading it shows.
func Run(p *plan.Plan, in map[string]*tensor.Tensor) (map[string]*tensor.Tensor, error) {
	m := &machine{p: p, arena: poisoned(p.Arena), weights: map[int][]byte{}}
	for i, b := range p.Buffers {
		if b.Kind != plan.Arena {
			m.weights[i] = poisoned(b.Bytes)
			if b.Fill == nil {
				continue
			}
			data := b.Fill()
			if int64(len(data)) != b.Bytes {
				return nil, fmt.Errorf("weight %q has %d bytes, %d announced", b.Key, len(data), b.Bytes)
			}
			copy(m.weights[i], data)
		}
	}
	for _, b := range p.Inputs {
		t := in[b.Name]
		if t == nil || t.Type != b.Type || int64(len(t.Data)) != b.Bytes {
			return nil, fmt.Errorf("input %q is missing or does not fit", b.Name)
		}
		copy(m.bytes(b.Ref, b.Bytes), t.Data)
	}
	if p.Fault != (plan.Ref{}) {
		view[int32](m, p.Fault, 1)[0] = 0
	}
	for _, list := range [][]plan.Step{p.Init, p.Steps} {
		for i, s := range list {
			if err := m.step(s); err != nil {
				return nil, fmt.Errorf("step %d %s: %w", i, plan.Text(s), err)
			}
		}
	}
	if p.Fault != (plan.Ref{}) && view[int32](m, p.Fault, 1)[0] != 0 {
		return nil, ErrIndex
	}
	out := map[string]*tensor.Tensor{}
	for _, b := range p.Outputs {
		t := &tensor.Tensor{Type: b.Type, Dims: b.Dims, Data: m.bytes(b.Ref, b.Bytes)}
		out[b.Name] = t.Clone()
	}
	return out, nil
}

type machine struct {
	p       *plan.Plan
	arena   []byte
	weights map[int][]byte
}

// poisoned memory reads as NaN, in float32 and float16.
func poisoned(n int64) []byte {
	w := make([]uint64, (n+7)/8+1)
	for i := range w {
		w[i] = 0x7fc17fc17fc17fc1
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), n)
}

// bytes returns n bytes at r. Slices end with their buffer, so that an access
// outside of it shows.
func (m *machine) bytes(r plan.Ref, n int64) []byte {
	memory := m.weights[r.Buf]
	if b := m.p.Buffers[r.Buf]; b.Kind == plan.Arena {
		memory = m.arena[b.Offset : b.Offset+b.Bytes : b.Offset+b.Bytes]
	}
	return memory[r.Offset : r.Offset+n : len(memory)]
}

// view returns n elements at r; nil for NULL.
func view[T any](m *machine, r plan.Ref, n int64) []T {
	if r == (plan.Ref{}) {
		return nil
	}
	var z T
	data := m.bytes(r, n*int64(unsafe.Sizeof(z)))
	if len(data) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&data[0])), n)
}

func f32(m *machine, r plan.Ref, n int64) []float32 { return view[float32](m, r, n) }
func s8(m *machine, r plan.Ref, n int64) []int8     { return view[int8](m, r, n) }
func s32(m *machine, r plan.Ref, n int64) []int32   { return view[int32](m, r, n) }

func (m *machine) step(s plan.Step) error {
	switch s := s.(type) {
	case *plan.QuantizeRows:
		m.quantizeRows(s)
	case *plan.QuantizeTensor:
		m.quantizeTensor(s)
	case *plan.DequantizeTensor:
		x := f32(m, s.X, s.N)
		for i, q := range s8(m, s.Q, s.N) {
			x[i] = float32(int32(q)-s.Zero) * s.Scale
		}
	case *plan.QuantizeToNHWC:
		x, q := f32(m, s.X, s.N*s.C*s.HW), s8(m, s.Q, s.N*s.HW*s.LdC)
		for at := range q {
			i := int64(at)
			q[at] = int8(s.Zero - 128)
			if c := i % s.LdC; c < s.C {
				q[at] = code(x[(i/s.LdC/s.HW*s.C+c)*s.HW+i/s.LdC%s.HW], s.Scale, s.Zero-128)
			}
		}
	case *plan.DequantizeToNCHW:
		x, q := f32(m, s.X, s.N*s.C*s.HW), s8(m, s.Q, s.N*s.HW*s.LdC)
		for at := range x {
			i := int64(at)
			c, hw, n := i/s.HW%s.C, i%s.HW, i/s.HW/s.C
			x[at] = float32(int32(q[(n*s.HW+hw)*s.LdC+c])-s.Zero) * s.Scale
		}
	case *plan.GemmS8:
		m.gemmS8(s)
	case *plan.W4Pack: // the order of the kernel is its own: here none
		copy(m.bytes(s.Packed, s.N*s.K/2), m.bytes(s.Q, s.N*s.K/2))
		copy(f32(m, s.PackedScale, s.N*s.K/s.Block), f32(m, s.Scale, s.N*s.K/s.Block))
	case *plan.GemmW4:
		m.gemmW4(s)
	case *plan.GemmFloat:
		m.gemmFloat(s)
	case *plan.Attention:
		m.attention(s)
	case *plan.ConvS8:
		m.convS8(s)
	case *plan.ConvFloat:
		m.convFloat(s)
	case *plan.LayerNorm:
		m.layerNorm(s)
	case *plan.Softmax:
		x, y := f32(m, s.X, s.M*s.K), f32(m, s.Y, s.M*s.K)
		for r := range s.M {
			softmax(x[r*s.K:(r+1)*s.K], y[r*s.K:(r+1)*s.K])
		}
	case *plan.Embed:
		m.embed(s)
	case *plan.PoolF32:
		m.poolF32(s)
	case *plan.PoolS8:
		m.poolS8(s)
	case *plan.GlobalAverage:
		m.globalAverage(s)
	case *plan.MaskedMean:
		m.maskedMean(s)
	case *plan.Binary:
		return m.binary(s)
	case *plan.Unary:
		return m.unary(s)
	case *plan.Where:
		m.where(s)
	case *plan.Copy:
		m.copy(s)
	case *plan.Cast:
		return m.cast(s)
	case *plan.Gather:
		m.gather(s)
	case *plan.Reduce:
		m.reduce(s)
	default:
		return fmt.Errorf("unknown step %T", s)
	}
	return nil
}

// Work is about how many element operations a step takes here.
func Work(s plan.Step) int64 {
	switch s := s.(type) {
	case *plan.GemmS8:
		return s.M * s.N * s.K
	case *plan.GemmW4:
		return s.M * s.N * s.K
	case *plan.GemmFloat:
		return s.Batch * s.M * s.N * s.K
	case *plan.Attention:
		return s.Batch * s.Heads * s.QLen * s.KVLen * (s.HeadDim + s.VDim)
	case *plan.ConvS8:
		return s.N * s.OH * s.OW * s.OC * s.KH * s.KW * s.C
	case *plan.ConvFloat:
		return s.N * s.OH * s.OW * s.OC * s.KH * s.KW * s.C
	case *plan.PoolF32:
		return s.N * s.OH * s.OW * s.C * s.KH * s.KW
	case *plan.PoolS8:
		return s.N * s.OH * s.OW * s.C * s.KH * s.KW
	}
	return 1
}
