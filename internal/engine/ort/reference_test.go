package ort

import (
	"math"

	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// What the operators of libfewbit_cpu compute, one value after the other.

// geluTolerance is that of the kernels' erf.
const geluTolerance = 2e-6

// projected is LinearRows of the rows of x.
func projected(x []float32, w int8Weight, divisor, bias, residual []float32, act string) []float64 {
	m := len(x) / w.k
	y := make([]float64, m*w.n)
	sums, err := ops.ColumnSums(w.codes, w.k, w.n)
	if err != nil {
		panic(err) // a weight that the test made
	}
	for r := range m {
		row := append([]float32(nil), x[r*w.k:(r+1)*w.k]...)
		for i := range divisor {
			row[i] /= divisor[i]
		}
		var out []float32
		q, err := ops.QuantizeRows(row, 1, w.k)
		if err == nil {
			out, err = ops.MatMulQuantized(q, w.codes, w.n, w.scales, sums)
		}
		for c := range w.n {
			v := float32(math.NaN())
			if err == nil {
				v = out[c]
			}
			if len(bias) > 0 {
				v += bias[c]
			}
			v = float32(activated(act, float64(v)))
			if residual != nil {
				v += residual[r*w.n+c]
			}
			y[r*w.n+c] = float64(v)
		}
	}
	return y
}

// activated is the activation of that name, none without.
func activated(act string, v float64) float64 {
	switch act {
	case "gelu":
		return v * .5 * (1 + math.Erf(v/math.Sqrt2))
	case "gelu_tanh":
		return v * .5 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+.044715*v*v*v)))
	case "quick_gelu":
		return v / (1 + math.Exp(-1.702*v))
	case "silu":
		return v / (1 + math.Exp(-v))
	case "relu":
		return max(v, 0)
	}
	return v
}

// bentLayer is a layer of EncoderLayers as the fuzzer makes it; its weight of
// queries, keys and values has columns of zeros behind those of each head.
type bentLayer struct {
	products    [4]int8Weight // QKV, Out, Up, Down
	divisors    [4][]float32
	biases      [4][]float32
	gamma, beta [2][]float32
}

// encoded is EncoderLayers, nil where it is not known: where attention has values
// that attended does not take, or a value is no number or a huge one.
func encoded(x []float32, mask *tensor.Tensor, layers []bentLayer, batch, length, heads, size int64, first bool, act string) []float64 {
	width := int(heads * size)
	single := func(v []float64) []float32 {
		out := make([]float32, len(v))
		for i := range v {
			out[i] = float32(v[i])
		}
		return out
	}
	normal := func(v, gamma, beta []float32) []float32 {
		out := make([]float32, len(v))
		for r := 0; r < len(v); r += width {
			mean, variance := 0., 0.
			for _, f := range v[r : r+width] {
				mean += float64(f) / float64(width)
			}
			for _, f := range v[r : r+width] {
				variance += (float64(f) - mean) * (float64(f) - mean) / float64(width)
			}
			for i := range width {
				out[r+i] = float32((float64(v[r+i])-mean)/math.Sqrt(variance+encEpsilon)*float64(gamma[i]) + float64(beta[i]))
			}
		}
		return out
	}
	for _, l := range layers {
		project := func(i int, from, residual []float32, act string) []float32 {
			return single(projected(from, l.products[i], l.divisors[i], l.biases[i], residual, act))
		}
		in := x
		if first {
			in = normal(x, l.gamma[0], l.beta[0])
		}
		wide := project(0, in, nil, "")
		padded := int64(l.products[0].n) / (3 * heads)
		qkv := make([]float32, 0, len(x)*3)
		for r := range batch * length {
			for part := range int64(3) {
				for h := range heads {
					qkv = append(qkv, wide[((r*heads+h)*3+part)*padded:][:size]...)
				}
			}
		}
		a, _ := attended(qkv, mask, batch, length, heads, size, encScale)
		if a == nil {
			return nil
		}
		middle := project(1, single(a), x, "")
		if !first {
			middle = normal(middle, l.gamma[0], l.beta[0])
		}
		in = middle
		if first {
			in = normal(middle, l.gamma[1], l.beta[1])
		}
		x = project(3, project(2, in, nil, act), middle, "")
		if !first {
			x = normal(x, l.gamma[1], l.beta[1])
		}
	}
	want := make([]float64, len(x))
	for i, v := range x {
		if !(math.Abs(float64(v)) < 1e6) { // the rest would vanish beside it
			return nil
		}
		want[i] = float64(v)
	}
	return want
}

// overflows is the size from which sums of FP32 may have no value.
const overflows = 1e37

// patchesOf are the rows that PatchesBF16 multiplies.
func patchesOf(x []float32, batch, channels, rows, columns, height, width int) (out []float32) {
	for b := range batch {
		for top := 0; top+height <= rows; top += height {
			for left := 0; left+width <= columns; left += width {
				for c := range channels {
					for y := top; y < top+height; y++ {
						out = append(out, x[((b*channels+c)*rows+y)*columns+left:][:width]...)
					}
				}
			}
		}
	}
	return out
}

// productBF16 is MatMulBF16 and how far a result may be from it: any distance in
// rows that are no numbers or nearly too large for any.
func productBF16(x, w []float32, k, n int, bias []float32) (want []float64, within func(int) float64) {
	m := len(x) / k
	want = make([]float64, m*n)
	size := make([]float64, m*n)
	for r := range m {
		for c := range n {
			i := r*n + c
			if bias != nil {
				want[i], size[i] = float64(bias[c]), math.Abs(float64(bias[c]))
			}
			for j := range k {
				p := float64(x[r*k+j]) * float64(w[j*n+c])
				want[i], size[i] = want[i]+p, size[i]+math.Abs(p)
			}
		}
	}
	for i := range want {
		if !(size[i] < overflows) {
			return nil, nil
		}
	}
	return want, func(i int) float64 { return bf16Tolerance*size[i] + overflows*1e-74 }
}

func bf16(v float32) float64 {
	b := math.Float32bits(v)
	return float64(math.Float32frombits((b + 0x7fff + b>>16&1) &^ 0xffff))
}

// attended is EncoderAttention of x [batch, length, 3, heads, size]; nothing is
// known where x has strange values.
func attended(x []float32, mask *tensor.Tensor, batch, length, heads, size int64, scale float64) (want []float64, within func(int) float64) {
	const usual = 8 // of standard normal values
	for _, v := range x {
		if !(math.Abs(float64(v)) < usual) {
			return nil, nil
		}
	}
	want = make([]float64, batch*length*heads*size)
	at := func(b, r, part, h, d int64) float64 { return bf16(x[(((b*length+r)*3+part)*heads+h)*size+d]) }
	bias := func(b, h, r, s int64) float64 {
		if mask == nil {
			return 0
		}
		at := int64(0)
		for i, v := range []int64{b, h, r, s} {
			if mask.Dims[i] == 1 {
				v = 0
			}
			at = at*mask.Dims[i] + v
		}
		return float64(tensor.View[float32](mask)[at])
	}
	scores := make([]float64, length)
	for b := range batch {
		for h := range heads {
			for r := range length {
				most, sum := math.Inf(-1), 0.
				for s := range length {
					scores[s] = 0
					for d := range size {
						scores[s] += at(b, r, 0, h, d) * at(b, s, 1, h, d)
					}
					scores[s] = scores[s]*scale + bias(b, h, r, s)
					most = max(most, scores[s])
				}
				for s := range scores {
					scores[s] = math.Exp(scores[s] - most)
					sum += scores[s]
				}
				for d := range size {
					v := 0.
					for s := range length {
						v += scores[s] * at(b, s, 2, h, d)
					}
					want[((b*length+r)*heads+h)*size+d] = v / sum
				}
			}
		}
	}
	// Weights behind the softmax are rounded to 8 bits; beside -10,000 scores lose some of theirs.
	return want, func(int) float64 { return usual * 3 / 512. }
}
