package reference

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/tensor"
)

// walk calls f with the offset of each element under every view.
func walk(views []plan.View, f func(at []int64)) {
	dims := views[0].Dims
	index, at := make([]int64, len(dims)), make([]int64, len(views))
	for {
		f(at)
		i := len(dims) - 1
		for ; i >= 0; i-- {
			index[i]++
			for k, v := range views {
				at[k] += v.Strides[i]
			}
			if index[i] < dims[i] {
				break
			}
			for k, v := range views {
				at[k] -= v.Strides[i] * dims[i]
			}
			index[i] = 0
		}
		if i < 0 {
			return
		}
	}
}

// extent is the number of elements that a view spans from its first on.
func extent(v plan.View) int64 {
	n := int64(1)
	for i, d := range v.Dims {
		n += (d - 1) * max(v.Strides[i], 0)
	}
	return n
}

// before is the number of elements that a view spans before its first.
func before(v plan.View) int64 {
	n := int64(0)
	for i, d := range v.Dims {
		n -= (d - 1) * min(v.Strides[i], 0)
	}
	return n
}

func (m *machine) binary(s *plan.Binary) error {
	switch s.Type {
	case plan.F32:
		return zip(m, s, func(x, y float32) float32 {
			if s.Op == plan.Pow {
				return float32(math.Pow(float64(x), float64(y)))
			}
			return x / y
		})
	case plan.S64:
		return zip(m, s, func(x, y int64) int64 { return divide(x, y) })
	case plan.S32:
		return zip(m, s, func(x, y int32) int32 { return int32(divide(int64(x), int64(y))) })
	case plan.U8, plan.Bool:
		return zip(m, s, func(x, y uint8) uint8 { return x / max(y, 1) })
	}
	return fmt.Errorf("type %v", s.Type)
}

func divide(x, y int64) int64 {
	if y == 0 {
		return 0
	}
	return x / y
}

func zip[T float32 | int64 | int32 | uint8](m *machine, s *plan.Binary, other func(x, y T) T) error {
	a, b := view[T](m, s.A, extent(s.AV)), view[T](m, s.B, extent(s.BV))
	n := extent(s.Out)
	views := []plan.View{s.Out, {Dims: s.Out.Dims, Strides: s.AV.Strides}, {Dims: s.Out.Dims, Strides: s.BV.Strides}}
	if s.Op >= plan.Equal && s.Op <= plan.Or {
		y := view[uint8](m, s.Y, n)
		walk(views, func(at []int64) {
			l, r := a[at[1]], b[at[2]]
			y[at[0]] = 0
			if (s.Op == plan.Equal && l == r) || (s.Op == plan.Less && l < r) || (s.Op == plan.Greater && l > r) ||
				(s.Op == plan.And && l != 0 && r != 0) || (s.Op == plan.Or && (l != 0 || r != 0)) {
				y[at[0]] = 1
			}
		})
		return nil
	}
	y := view[T](m, s.Y, n)
	walk(views, func(at []int64) {
		l, r := a[at[1]], b[at[2]]
		switch s.Op {
		case plan.Add:
			y[at[0]] = l + r
		case plan.Sub:
			y[at[0]] = l - r
		case plan.Mul:
			y[at[0]] = l * r
		case plan.Min:
			y[at[0]] = min(l, r)
		case plan.Max:
			y[at[0]] = max(l, r)
		default:
			y[at[0]] = other(l, r)
		}
	})
	return nil
}

func (m *machine) unary(s *plan.Unary) error {
	if s.Op == plan.Not {
		y := view[uint8](m, s.Y, s.N)
		for i, v := range view[uint8](m, s.X, s.N) {
			y[i] = 1 - min(v, 1)
		}
		return nil
	}
	x, y := f32(m, s.X, s.N), f32(m, s.Y, s.N)
	var f func(v float64) float64
	switch s.Op {
	case 0:
		for i, v := range x {
			y[i] = activate(s.Act, s.P0, s.P1, v)
		}
		return nil
	case plan.Abs:
		f = math.Abs
	case plan.Neg:
		f = func(v float64) float64 { return -v }
	case plan.Exp:
		f = math.Exp
	case plan.Log:
		f = math.Log
	case plan.Sqrt:
		f = math.Sqrt
	case plan.Reciprocal:
		f = func(v float64) float64 { return 1 / v }
	case plan.Erf:
		f = math.Erf
	case plan.Tanh:
		f = math.Tanh
	case plan.Sigmoid:
		f = func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
	case plan.Floor:
		f = math.Floor
	case plan.Ceil:
		f = math.Ceil
	case plan.Sin:
		f = math.Sin
	case plan.Cos:
		f = math.Cos
	case plan.HardSigmoid:
		f = func(v float64) float64 { return max(0, min(1, float64(s.P0)*v+float64(s.P1))) }
	case plan.HardSwish:
		f = func(v float64) float64 { return v * max(0, min(1, v/6+.5)) }
	case plan.LeakyRelu:
		f = func(v float64) float64 { return max(v, 0) + float64(s.P0)*min(v, 0) }
	default:
		return fmt.Errorf("operation %d", s.Op)
	}
	for i, v := range x {
		y[i] = float32(f(float64(v)))
	}
	return nil
}

func (m *machine) where(s *plan.Where) {
	cond := view[uint8](m, s.Cond, extent(s.CV))
	a, b := m.bytes(s.A, extent(s.AV)*s.Size), m.bytes(s.B, extent(s.BV)*s.Size)
	y := m.bytes(s.Y, extent(s.Out)*s.Size)
	walk([]plan.View{s.Out, s.CV, s.AV, s.BV}, func(at []int64) {
		src := b[at[3]*s.Size:]
		if cond[at[1]] != 0 {
			src = a[at[2]*s.Size:]
		}
		copy(y[at[0]*s.Size:(at[0]+1)*s.Size], src)
	})
}

func (m *machine) copy(s *plan.Copy) {
	back := before(s.Src)
	x := m.bytes(plan.Ref{Buf: s.X.Buf, Offset: s.X.Offset - back*s.Size}, (back+extent(s.Src))*s.Size)
	y := m.bytes(s.Y, extent(s.Dst)*s.Size)
	walk([]plan.View{s.Src, s.Dst}, func(at []int64) {
		copy(y[at[1]*s.Size:(at[1]+1)*s.Size], x[(back+at[0])*s.Size:])
	})
}

func (m *machine) cast(s *plan.Cast) error {
	var get func(i int64) float64
	switch s.From {
	case plan.F32:
		x := f32(m, s.X, s.N)
		get = func(i int64) float64 { return float64(x[i]) }
	case plan.F16:
		x := view[uint16](m, s.X, s.N)
		get = func(i int64) float64 { return float64(tensor.F16ToF32(x[i])) }
	case plan.S64:
		x := view[int64](m, s.X, s.N)
		get = func(i int64) float64 { return float64(x[i]) }
	case plan.S32:
		x := s32(m, s.X, s.N)
		get = func(i int64) float64 { return float64(x[i]) }
	case plan.U8, plan.Bool:
		x := view[uint8](m, s.X, s.N)
		get = func(i int64) float64 { return float64(x[i]) }
	case plan.S8:
		x := s8(m, s.X, s.N)
		get = func(i int64) float64 { return float64(x[i]) }
	default:
		return fmt.Errorf("from %v", s.From)
	}
	for i := range s.N {
		v := get(i)
		switch s.To {
		case plan.F32:
			f32(m, s.Y, s.N)[i] = float32(v)
		case plan.F16:
			view[uint16](m, s.Y, s.N)[i] = tensor.F32ToF16(float32(v))
		case plan.S64:
			view[int64](m, s.Y, s.N)[i] = int64(v)
		case plan.S32:
			s32(m, s.Y, s.N)[i] = int32(int64(v))
		case plan.U8:
			view[uint8](m, s.Y, s.N)[i] = uint8(int64(v))
		case plan.S8:
			s8(m, s.Y, s.N)[i] = int8(int64(v))
		case plan.Bool:
			view[uint8](m, s.Y, s.N)[i] = 0
			if v != 0 {
				view[uint8](m, s.Y, s.N)[i] = 1
			}
		default:
			return fmt.Errorf("to %v", s.To)
		}
	}
	return nil
}

func (m *machine) gather(s *plan.Gather) {
	x, y := m.bytes(s.X, s.Outer*s.Axis*s.Inner*s.Size), m.bytes(s.Y, s.Outer*s.NIDs*s.Inner*s.Size)
	row := s.Inner * s.Size
	for o := range s.Outer {
		for i, v := range view[int64](m, s.IDs, s.NIDs) {
			id, ok := index(v, s.Axis)
			if !ok {
				s32(m, s.Fault, 1)[0] = 1
			}
			copy(y[(o*s.NIDs+int64(i))*row:][:row], x[(o*s.Axis+id)*row:])
		}
	}
}

func (m *machine) reduce(s *plan.Reduce) {
	x, y := f32(m, s.X, s.Outer*s.Axis*s.Inner), f32(m, s.Y, s.Outer*s.Inner)
	for o := range s.Outer {
		for i := range s.Inner {
			sum, top, low, square := 0.0, float32(math.Inf(-1)), float32(math.Inf(1)), 0.0
			for a := range s.Axis {
				v := x[(o*s.Axis+a)*s.Inner+i]
				sum += float64(v)
				square += float64(v) * float64(v)
				top, low = max(top, v), min(low, v)
			}
			r := float32(sum)
			switch s.Op {
			case plan.ReduceMean:
				r = float32(sum / float64(s.Axis))
			case plan.ReduceMax:
				r = top
			case plan.ReduceMin:
				r = low
			case plan.ReduceL2:
				r = float32(math.Sqrt(square))
			}
			y[o*s.Inner+i] = r
		}
	}
}
