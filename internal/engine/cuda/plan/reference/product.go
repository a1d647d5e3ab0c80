package reference

import (
	"math"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/tensor"
)

func rne(x float32) float32 { return float32(math.RoundToEven(float64(x))) }

// code rounds x / scale to an s8 code. The clamp comes before the conversion:
// a quotient may lie outside the integers.
func code(x, scale float32, zero int32) int8 {
	q := rne(x/scale) + float32(zero)
	return int8(max(min(q, 127), -128))
}

func (m *machine) quantizeRows(s *plan.QuantizeRows) {
	m.rows(f32(m, s.X, s.M*s.K), s.M, s.K, f32(m, s.Divisor, s.K), s8(m, s.Q, s.M*s.LdQ), s.LdQ, f32(m, s.Scale, s.M), s32(m, s.Zero, s.M))
}

// rows follows docs/ops.md, QuantizeRows, with codes shifted by 128.
func (m *machine) rows(x []float32, rows, k int64, divisor []float32, q []int8, ld int64, scale []float32, zero []int32) {
	row := make([]float32, k)
	for r := range rows {
		var lo, hi float32
		for i := range row {
			row[i] = x[r*k+int64(i)]
			if divisor != nil {
				row[i] /= divisor[i]
			}
			lo, hi = min(lo, row[i]), max(hi, row[i])
		}
		s := (hi - lo) / 255
		if s == 0 {
			s = 1
		}
		z := max(min(rne(-lo/s), 255), 0)
		for i, v := range row {
			q[r*ld+int64(i)] = int8(max(min(rne(v/s)+z, 255), 0) - 128)
		}
		for i := k; i < ld; i++ {
			q[r*ld+i] = 0
		}
		scale[r], zero[r] = s, int32(z)-128
	}
}

func (m *machine) quantizeTensor(s *plan.QuantizeTensor) {
	x, q := f32(m, s.X, s.M*s.K), s8(m, s.Q, s.M*s.LdQ)
	for r := range s.M {
		for i := range s.LdQ {
			q[r*s.LdQ+i] = 0
			if i < s.K {
				q[r*s.LdQ+i] = code(x[r*s.K+i], s.Scale, s.Zero-128)
			}
		}
	}
}

func activate(a plan.Act, lo, hi, x float32) float32 {
	v := float64(x)
	switch a {
	case plan.ActRelu:
		return max(x, 0)
	case plan.ActGelu:
		return float32(.5 * v * (1 + math.Erf(v/math.Sqrt2)))
	case plan.ActGeluTanh:
		return float32(.5 * v * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+.044715*v*v*v))))
	case plan.ActQuickGelu:
		return float32(v / (1 + math.Exp(-1.702*v)))
	case plan.ActSilu:
		return float32(v / (1 + math.Exp(-v)))
	case plan.ActClip:
		return min(max(x, lo), hi)
	}
	return x
}

func (m *machine) gemmS8(s *plan.GemmS8) {
	rows := int64(1)
	if s.Rows {
		rows = s.M
	}
	a, b := s8(m, s.A, (s.M-1)*s.LdA+s.K), s8(m, s.B, s.N*s.LdB)
	as, az := f32(m, s.AScale, rows), s32(m, s.AZero, rows)
	bs, sum, bias := f32(m, s.BScale, s.N), s32(m, s.BSum, s.N), f32(m, s.Bias, s.N)
	res := f32(m, s.Residual, (s.M-1)*s.LdC+s.N)
	for i := range s.M {
		r := i
		if !s.Rows {
			r = 0
		}
		for j := range s.N {
			acc := int32(0)
			for k := range s.K {
				acc += int32(a[i*s.LdA+k]) * int32(b[j*s.LdB+k])
			}
			acc -= az[r] * sum[j]
			y := float32(acc) * (as[r] * bs[j])
			if bias != nil {
				y += bias[j]
			}
			y = activate(s.Act, s.ActMin, s.ActMax, y)
			if res != nil {
				y += res[i*s.LdC+j]
			}
			if s.Out == plan.S8 {
				s8(m, s.C, (s.M-1)*s.LdC+s.N)[i*s.LdC+j] = code(y, s.OutScale, s.OutZero)
			} else {
				f32(m, s.C, (s.M-1)*s.LdC+s.N)[i*s.LdC+j] = y
			}
		}
	}
}

func (m *machine) gemmW4(s *plan.GemmW4) {
	blocks := s.K / s.Block
	q, scale := m.bytes(s.Packed, s.N*s.K/2), f32(m, s.PackedScale, s.N*blocks)
	bias, res, c := f32(m, s.Bias, s.N), f32(m, s.Residual, (s.M-1)*s.LdC+s.N), f32(m, s.C, (s.M-1)*s.LdC+s.N)
	var a func(i, k int64) float64
	if s.AType == plan.S8 {
		codes, as, az := s8(m, s.A, (s.M-1)*s.LdA+s.K), f32(m, s.AScale, s.M), s32(m, s.AZero, s.M)
		a = func(i, k int64) float64 { return float64(int32(codes[i*s.LdA+k])-az[i]) * float64(as[i]) }
	} else {
		half := view[uint16](m, s.A, (s.M-1)*s.LdA+s.K)
		a = func(i, k int64) float64 { return float64(tensor.F16ToF32(half[i*s.LdA+k])) }
	}
	for i := range s.M {
		for j := range s.N {
			sum := 0.0
			for k := range s.K {
				w := q[(j*s.K+k)/2] >> (4 * (k % 2)) & 15
				sum += a(i, k) * float64(int(w)-8) * float64(scale[j*blocks+k/s.Block])
			}
			y := float32(sum)
			if bias != nil {
				y += bias[j]
			}
			y = activate(s.Act, s.ActMin, s.ActMax, y)
			if res != nil {
				y += res[i*s.LdC+j]
			}
			c[i*s.LdC+j] = y
		}
	}
}

func (m *machine) gemmFloat(s *plan.GemmFloat) {
	rows := s.K
	if s.TransB {
		rows = s.N
	}
	cols := s.K + s.N - rows
	a := m.operand(s, s.A, (s.Batch-1)*s.StrideA+(s.M-1)*s.LdA+s.K)
	b := m.operand(s, s.B, (s.Batch-1)*s.StrideB+(rows-1)*s.LdB+cols)
	n := (s.Batch-1)*s.StrideC + (s.M-1)*s.LdC + s.N
	c, bias, res := f32(m, s.C, n), f32(m, s.Bias, s.N), f32(m, s.Residual, n)
	for z := range s.Batch {
		for i := range s.M {
			for j := range s.N {
				sum := 0.0
				for k := range s.K {
					at := k*s.LdB + j
					if s.TransB {
						at = j*s.LdB + k
					}
					sum += float64(a[z*s.StrideA+i*s.LdA+k]) * float64(b[z*s.StrideB+at])
				}
				y := s.Alpha * float32(sum)
				if bias != nil {
					y += bias[j]
				}
				y = activate(s.Act, s.ActMin, s.ActMax, y)
				at := z*s.StrideC + i*s.LdC + j
				if res != nil {
					y += res[at]
				}
				c[at] = y
			}
		}
	}
}

// operand returns n elements as the product multiplies them.
func (m *machine) operand(s *plan.GemmFloat, r plan.Ref, n int64) []float32 {
	switch {
	case s.In == plan.F16:
		return fromHalf(view[uint16](m, r, n))
	case s.TF32:
		return toTF32(f32(m, r, n))
	}
	return f32(m, r, n)
}

// toTF32 rounds to nearest, away from zero: cvt.rna.tf32.
func toTF32(x []float32) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = math.Float32frombits((math.Float32bits(v) + 1<<12) &^ (1<<13 - 1))
	}
	return y
}

// toHalf rounds to F16.
func toHalf(x []float32) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = tensor.F16ToF32(tensor.F32ToF16(v))
	}
	return y
}

func fromHalf(h []uint16) []float32 {
	x := make([]float32, len(h))
	for i, v := range h {
		x[i] = tensor.F16ToF32(v)
	}
	return x
}

func softmax(x, y []float32) {
	top := float32(math.Inf(-1))
	for _, v := range x {
		top = max(top, v)
	}
	sum := 0.0
	e := make([]float64, len(x))
	for i, v := range x {
		if !math.IsInf(float64(top), -1) {
			e[i] = math.Exp(float64(v - top))
		}
		sum += e[i]
	}
	for i := range y {
		y[i] = float32(e[i] / sum)
	}
}

func (m *machine) attention(s *plan.Attention) {
	span := func(r plan.Ref, batch, row, length, width int64) []float32 {
		return f32(m, r, (s.Batch-1)*batch+(length-1)*row+width)
	}
	q, k := span(s.Q, s.QBatch, s.QRow, s.QLen, s.Heads*s.HeadDim), span(s.K, s.KBatch, s.KRow, s.KVLen, s.Heads*s.HeadDim)
	v, out := span(s.V, s.VBatch, s.VRow, s.KVLen, s.Heads*s.VDim), span(s.Out, s.OBatch, s.ORow, s.QLen, s.Heads*s.VDim)
	planes, lines := int64(1), int64(1)
	if s.MaskHeads {
		planes = s.Heads
	}
	if s.MaskQ {
		lines = s.QLen
	}
	mask := f32(m, s.Mask, s.Batch*planes*lines*s.KVLen)
	lengths := s32(m, s.KeyLengths, s.Batch)
	scores, p := make([]float32, s.KVLen), make([]float32, s.KVLen)
	for b := range s.Batch {
		for h := range s.Heads {
			for i := range s.QLen {
				for j := range s.KVLen {
					dot := 0.0
					for d := range s.HeadDim {
						dot += float64(q[b*s.QBatch+i*s.QRow+h*s.HeadDim+d]) * float64(k[b*s.KBatch+j*s.KRow+h*s.HeadDim+d])
					}
					scores[j] = float32(dot) * s.Scale
					if mask != nil {
						scores[j] += mask[((b*planes+h%planes)*lines+i%lines)*s.KVLen+j]
					}
					if (s.Causal && j > i+s.KVLen-s.QLen) || (lengths != nil && j >= int64(lengths[b])) {
						scores[j] = float32(math.Inf(-1))
					}
				}
				softmax(scores, p)
				for d := range s.VDim {
					sum := 0.0
					for j := range s.KVLen {
						sum += float64(p[j]) * float64(v[b*s.VBatch+j*s.VRow+h*s.VDim+d])
					}
					out[b*s.OBatch+i*s.ORow+h*s.VDim+d] = float32(sum)
				}
			}
		}
	}
}

func (m *machine) layerNorm(s *plan.LayerNorm) {
	n := s.M * s.K
	x, res, gamma, beta := f32(m, s.X, n), f32(m, s.Residual, n), f32(m, s.Gamma, s.K), f32(m, s.Beta, s.K)
	out := make([]float32, n)
	row := make([]float32, s.K)
	for r := range s.M {
		mean, square := 0.0, 0.0
		for i := range row {
			row[i] = x[r*s.K+int64(i)]
			if res != nil {
				row[i] += res[r*s.K+int64(i)]
			}
			mean += float64(row[i])
		}
		if sum := f32(m, s.Sum, n); sum != nil {
			copy(sum[r*s.K:], row)
		}
		mean /= float64(s.K)
		for _, v := range row {
			square += (float64(v) - mean) * (float64(v) - mean)
		}
		inv := 1 / math.Sqrt(square/float64(s.K)+float64(s.Epsilon))
		for i, v := range row {
			y := float32((float64(v)-mean)*inv) * gamma[i]
			if beta != nil {
				y += beta[i]
			}
			out[r*s.K+int64(i)] = y
		}
	}
	if y := f32(m, s.Y, n); y != nil {
		copy(y, out)
	}
	if s.Q != (plan.Ref{}) {
		m.rows(out, s.M, s.K, f32(m, s.Divisor, s.K), s8(m, s.Q, s.M*s.LdQ), s.LdQ, f32(m, s.Scale, s.M), s32(m, s.Zero, s.M))
	}
}
