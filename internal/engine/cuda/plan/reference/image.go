package reference

import (
	"math"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
)

// taps calls f for every input element under the window of output (oh, ow).
func taps(h, w, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw int64, f func(ky, kx, y, x int64)) {
	for ky := range kh {
		for kx := range kw {
			y, x := oh*sh-ph+ky*dh, ow*sw-pw+kx*dw
			if y >= 0 && y < h && x >= 0 && x < w {
				f(ky, kx, y, x)
			}
		}
	}
}

func (m *machine) convS8(s *plan.ConvS8) {
	c := s.Conv
	cg, og := c.C/c.Groups, c.OC/c.Groups
	x, w := s8(m, s.X, c.N*c.H*c.W*c.C), s8(m, s.B, c.OC*c.KH*c.KW*cg)
	scale, bias := f32(m, s.BScale, c.OC), f32(m, s.Bias, c.OC)
	total := c.N * c.OH * c.OW * c.OC
	res := s8(m, s.Residual, total)
	for at := range total {
		o, ow, oh, n := at%c.OC, at/c.OC%c.OW, at/c.OC/c.OW%c.OH, at/c.OC/c.OW/c.OH
		acc := int32(0)
		taps(c.H, c.W, c.KH, c.KW, oh, ow, c.StrideH, c.StrideW, c.PadH, c.PadW, c.DilH, c.DilW, func(ky, kx, y, xx int64) {
			for i := range cg {
				acc += (int32(x[((n*c.H+y)*c.W+xx)*c.C+o/og*cg+i]) - s.XZero) * int32(w[((o*c.KH+ky)*c.KW+kx)*cg+i])
			}
		})
		y := float32(acc) * (s.XScale * scale[o])
		if bias != nil {
			y += bias[o]
		}
		if res != nil {
			y += float32(int32(res[at])-s.ResidualZero) * s.ResidualScale
		}
		y = activate(s.Act, s.ActMin, s.ActMax, y)
		if s.Out == plan.S8 {
			s8(m, s.Y, total)[at] = code(y, s.OutScale, s.OutZero)
		} else {
			f32(m, s.Y, total)[at] = y
		}
	}
}

func (m *machine) convFloat(s *plan.ConvFloat) {
	c := s.Conv
	cg, og := c.C/c.Groups, c.OC/c.Groups
	x, w := f32(m, s.X, c.N*c.H*c.W*c.C), []float32(nil)
	switch n := c.OC * c.KH * c.KW * cg; s.Products {
	case plan.FP16:
		x, w = toHalf(x), fromHalf(view[uint16](m, s.B, n))
	case plan.TF32:
		x, w = toTF32(x), toTF32(f32(m, s.B, n))
	default:
		w = f32(m, s.B, n)
	}
	bias, out := f32(m, s.Bias, c.OC), f32(m, s.Y, c.N*c.OH*c.OW*c.OC)
	for at := range out {
		i := int64(at)
		ow, oh, o, n := i%c.OW, i/c.OW%c.OH, i/c.OW/c.OH%c.OC, i/c.OW/c.OH/c.OC
		sum := 0.0
		taps(c.H, c.W, c.KH, c.KW, oh, ow, c.StrideH, c.StrideW, c.PadH, c.PadW, c.DilH, c.DilW, func(ky, kx, y, xx int64) {
			for g := range cg {
				sum += float64(x[((n*c.C+o/og*cg+g)*c.H+y)*c.W+xx]) * float64(w[((o*cg+g)*c.KH+ky)*c.KW+kx])
			}
		})
		y := float32(sum)
		if bias != nil {
			y += bias[o]
		}
		out[at] = activate(s.Act, s.ActMin, s.ActMax, y)
	}
}

// pool returns the mean or the largest of what get reads under a window.
func pool(p plan.Pool, oh, ow int64, get func(y, x int64) float32) float32 {
	top, sum, n := float32(math.Inf(-1)), 0.0, int64(0)
	taps(p.H, p.W, p.KH, p.KW, oh, ow, p.StrideH, p.StrideW, p.PadH, p.PadW, 1, 1, func(_, _, y, x int64) {
		v := get(y, x)
		top = max(top, v)
		sum += float64(v)
		n++
	})
	if !p.Average {
		return top
	}
	if p.CountIncludePad { // what lies beyond the padding, with ceil_mode, does not count
		n = 0
		taps(p.H+p.PadH+p.PadHEnd, p.W+p.PadW+p.PadWEnd, p.KH, p.KW, oh, ow, p.StrideH, p.StrideW, 0, 0, 1, 1, func(_, _, _, _ int64) { n++ })
	}
	return float32(sum / float64(n))
}

func (m *machine) poolF32(s *plan.PoolF32) {
	x, y := f32(m, s.X, s.N*s.C*s.H*s.W), f32(m, s.Y, s.N*s.C*s.OH*s.OW)
	for at := range y {
		i := int64(at)
		ow, oh, nc := i%s.OW, i/s.OW%s.OH, i/s.OW/s.OH
		y[at] = pool(s.Pool, oh, ow, func(yy, xx int64) float32 { return x[(nc*s.H+yy)*s.W+xx] })
	}
}

func (m *machine) poolS8(s *plan.PoolS8) {
	x, y := s8(m, s.X, s.N*s.C*s.H*s.W), s8(m, s.Y, s.N*s.C*s.OH*s.OW)
	for at := range y {
		i := int64(at)
		c, ow, oh, n := i%s.C, i/s.C%s.OW, i/s.C/s.OW%s.OH, i/s.C/s.OW/s.OH
		v := pool(s.Pool, oh, ow, func(yy, xx int64) float32 {
			return float32(int32(x[((n*s.H+yy)*s.W+xx)*s.C+c])-s.XZero) * s.XScale
		})
		y[at] = code(v, s.YScale, s.YZero)
	}
}

func (m *machine) globalAverage(s *plan.GlobalAverage) {
	x, y := f32(m, s.X, s.N*s.C*s.HW), f32(m, s.Y, s.N*s.C)
	for n := range s.N {
		for c := range s.C {
			sum := 0.0
			for i := range s.HW {
				at := (n*s.C+c)*s.HW + i
				if s.NHWC {
					at = (n*s.HW+i)*s.C + c
				}
				sum += float64(x[at])
			}
			y[n*s.C+c] = float32(sum / float64(s.HW))
		}
	}
}

func (m *machine) maskedMean(s *plan.MaskedMean) {
	x, mask, y := f32(m, s.X, s.B*s.T*s.D), f32(m, s.Mask, s.B*s.T), f32(m, s.Y, s.B*s.D)
	for b := range s.B {
		count := 0.0
		for t := range s.T {
			count += float64(mask[b*s.T+t])
		}
		for d := range s.D {
			sum := 0.0
			for t := range s.T {
				sum += float64(x[(b*s.T+t)*s.D+d]) * float64(mask[b*s.T+t])
			}
			y[b*s.D+d] = float32(sum / max(count, 1e-9))
		}
	}
}

func (m *machine) embed(s *plan.Embed) {
	out := f32(m, s.Out, s.Tokens*s.Dim)
	clear(out)
	for _, t := range s.Tables {
		period := t.IDsPeriod
		if period == 0 {
			period = s.Tokens
		}
		ids := view[int64](m, t.IDs, period)
		for i := range s.Tokens {
			id, ok := index(ids[i%period], t.Count)
			if !ok {
				s32(m, s.Fault, 1)[0] = 1
			}
			for d := range s.Dim {
				at := id*s.Dim + d
				switch t.Bits {
				case 32:
					out[i*s.Dim+d] += f32(m, t.Rows, t.Count*s.Dim)[at]
				case 8:
					out[i*s.Dim+d] += float32(s8(m, t.Rows, t.Count*s.Dim)[at]) * f32(m, t.Scale, t.Count)[id]
				default:
					code := int(m.bytes(t.Rows, t.Count*s.Dim/2)[at/2]>>(4*(at%2))&15) - 8
					out[i*s.Dim+d] += float32(code) * f32(m, t.Scale, t.Count*s.Dim/t.Block)[at/t.Block]
				}
			}
		}
	}
}

// index is that of ONNX Gather: negative ones count from the end. One outside
// reads row 0.
func index(id, rows int64) (int64, bool) {
	if id < 0 {
		id += rows
	}
	if id < 0 || id >= rows {
		return 0, false
	}
	return id, true
}
