package quant

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Weight is a quantized weight: codes in the layout of the original, one scale
// for each index of Axis (or one in all), zero point 0.
type Weight struct {
	Codes []int8
	Dims  []int64
	// Scales has Dims[Axis] entries, or one when per tensor.
	Scales []float32
	Axis   int
}

// QuantizeWeight quantizes w symmetrically to the codes of s: for each channel
// along axis, scale = max|w| / q with q the largest code (Jacob et al. 2018,
// arXiv:1712.05877, symmetric form), code = round half to even(w / scale).
// The error of every weight is at most scale/2.
func QuantizeWeight(w []float32, dims []int64, axis int, g Granularity, s calib.Scheme) (*Weight, error) {
	n, err := tensor.Elems(dims)
	if err != nil || int64(len(w)) != n || axis < 0 || axis >= len(dims) {
		return nil, fmt.Errorf("%w: %d weights for dimensions %v, axis %d", tensor.ErrShape, len(w), dims, axis)
	}
	q := &Weight{Codes: make([]int8, len(w)), Dims: dims, Axis: axis}
	_, top := s.Codes()
	channels, inner := int(dims[axis]), 1
	for _, d := range dims[axis+1:] {
		inner *= int(d)
	}
	if g == PerTensor {
		channels, inner = 1, len(w)
	}
	if inner == 1 && channels > 0 {
		return q, q.columns(w, channels, top)
	}
	amax := make([]float32, channels)
	for base := 0; base < len(w); base += channels * inner {
		for c := range channels {
			for _, v := range w[base+c*inner : base+(c+1)*inner] {
				a := float32(math.Abs(float64(v)))
				if !(a <= math.MaxFloat32) {
					return nil, fmt.Errorf("%w: it holds NaN or infinity", ErrWeight)
				}
				amax[c] = max(amax[c], a)
			}
		}
	}
	q.Scales = make([]float32, channels)
	inv := make([]float64, channels)
	for c, a := range amax {
		q.Scales[c] = weightScale(a, top)
		inv[c] = 1 / float64(q.Scales[c])
	}
	for base := 0; base < len(w); base += channels * inner {
		for c := range channels {
			lo := base + c*inner
			for i, v := range w[lo : lo+inner] {
				q.Codes[lo+i] = roundCode(float64(v)*inv[c], top)
			}
		}
	}
	return q, nil
}

// columns quantizes w, whose last axis are the channels, as QuantizeWeight does.
func (q *Weight) columns(w []float32, channels int, top int32) error {
	var mu sync.Mutex
	amax, finite := make([]float32, channels), true
	rows := len(w) / channels
	parallel(rows, channels, func(from, to int) {
		own, ok := make([]float32, channels), true
		for r := from; r < to; r++ {
			for c, v := range w[r*channels : (r+1)*channels] {
				a := float32(math.Abs(float64(v)))
				ok = ok && a <= math.MaxFloat32
				own[c] = max(own[c], a)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		finite = finite && ok
		for c, a := range own {
			amax[c] = max(amax[c], a)
		}
	})
	if !finite {
		return fmt.Errorf("%w: it holds NaN or infinity", ErrWeight)
	}
	q.Scales = make([]float32, channels)
	inv := make([]float64, channels)
	for c, a := range amax {
		q.Scales[c] = weightScale(a, top)
		inv[c] = 1 / float64(q.Scales[c])
	}
	parallel(rows, channels, func(from, to int) {
		for r := from; r < to; r++ {
			codes := q.Codes[r*channels : (r+1)*channels]
			for c, v := range w[r*channels : (r+1)*channels] {
				codes[c] = roundCode(float64(v)*inv[c], top)
			}
		}
	})
	return nil
}

// clone copies what may be changed.
func (q *Weight) clone() *Weight {
	c := *q
	c.Codes, c.Scales = slices.Clone(q.Codes), slices.Clone(q.Scales)
	return &c
}

// clippedWeight rounds to nearest with the scale of each channel that has the
// least squared error, which may clip the largest weights.
func clippedWeight(w []float32, dims []int64, axis int, c Config) (*Weight, error) {
	q, err := QuantizeWeight(w, dims, axis, c.Granularity, c.weightScheme())
	if err != nil || c.Granularity == PerTensor {
		return q, err
	}
	_, top := c.weightScheme().Codes()
	channels := make([][]float32, len(q.Scales))
	q.each(func(i, ch int) { channels[ch] = append(channels[ch], w[i]) })
	for ch, v := range channels {
		q.Scales[ch] = columnScales(nil, v, len(v), 1, top, nil, PerChannel)[0]
	}
	q.each(func(i, ch int) { q.Codes[i] = roundCode(float64(w[i])/float64(q.Scales[ch]), top) })
	return q, nil
}

// minWeightScale keeps a channel of zeros (or of denormals) at a scale whose
// product with an activation scale is still a normal float.
const minWeightScale = 1e-20

func weightScale(amax float32, top int32) float32 {
	return max(amax/float32(top), minWeightScale)
}

// roundCode rounds half to even and clips to [-top, top].
func roundCode(x float64, top int32) int8 {
	r := math.RoundToEven(x)
	return int8(max(min(r, float64(top)), -float64(top)))
}

// Dequantize returns scale * code for every weight.
func (q *Weight) Dequantize() []float32 {
	out := make([]float32, len(q.Codes))
	if n := len(q.Scales); n > 1 && q.Axis == len(q.Dims)-1 {
		parallel(len(out)/n, n, func(from, to int) {
			for r := from; r < to; r++ {
				row := out[r*n : (r+1)*n]
				for c, v := range q.Codes[r*n : (r+1)*n] {
					row[c] = float32(v) * q.Scales[c]
				}
			}
		})
		return out
	}
	q.each(func(i, c int) { out[i] = float32(q.Codes[i]) * q.Scales[c] })
	return out
}

// each calls f with every element index and its channel.
func (q *Weight) each(f func(i, channel int)) {
	if len(q.Scales) == 1 {
		for i := range q.Codes {
			f(i, 0)
		}
		return
	}
	channels, inner := int(q.Dims[q.Axis]), 1
	for _, d := range q.Dims[q.Axis+1:] {
		inner *= int(d)
	}
	for base := 0; base < len(q.Codes); base += channels * inner {
		for c := range channels {
			for i := base + c*inner; i < base+(c+1)*inner; i++ {
				f(i, c)
			}
		}
	}
}

// Tensor returns the codes as an INT8 tensor.
func (q *Weight) Tensor() *tensor.Tensor { return tensor.From(q.Codes, q.Dims...) }

// ScaleTensor returns the scales: a vector, or a scalar when per tensor.
func (q *Weight) ScaleTensor() *tensor.Tensor {
	if len(q.Scales) == 1 {
		return tensor.From(q.Scales)
	}
	return tensor.From(q.Scales, int64(len(q.Scales)))
}

// transpose2D returns w [r,c] as [c,r].
func transpose2D[T int8 | float32](w []T, r, c int) []T {
	t := make([]T, len(w))
	for i := range r {
		for j := range c {
			t[j*r+i] = w[i*c+j]
		}
	}
	return t
}
