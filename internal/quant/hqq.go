package quant

import (
	"math"
)

// Half-quadratic quantization (HQQ, Badri and Shaji 2023, "Half-Quadratic
// Quantization of Large Machine Learning Models") needs no data. It minimises a
// norm of the weights' error that outliers hardly count in, sum |w - q s|^p, by
// turns: e is the error shrunk towards 0 (the generalised soft threshold of the
// norm), and then what e leaves has a closed form. There that is the zero point, the
// scale being fixed; the formats written here have none, so here it is the scale,
// sum q (w - e) / sum q^2.
const (
	hqqNorm   = 0.7  // p
	hqqBeta   = 10.0 // weight of the coupling, and by what it grows a step
	hqqKappa  = 1.01
	hqqRounds = 20
)

// hqqScale returns the scale of the codes lo..hi for x, starting at start. It
// stops when the mean error no longer falls.
func hqqScale(x []float32, start float32, lo, hi float32) float32 {
	s, beta := float64(start), hqqBeta
	best, least := start, math.Inf(1)
	for range hqqRounds + 1 {
		var err, top, square float64
		for _, w := range x {
			q := float64(nearest(w, float32(s), lo, hi))
			d := float64(w) - q*s
			err += math.Abs(d)
			shrunk := max(math.Abs(d)-math.Pow(max(math.Abs(d), 1e-8), hqqNorm-1)/beta, 0)
			top += q * (float64(w) - math.Copysign(shrunk, d))
			square += q * q
		}
		if !(err < least) {
			break
		}
		best, least = float32(s), err
		if square == 0 || top == 0 {
			break
		}
		s = top / square
		if math.Abs(s) < minWeightScale {
			break
		}
		beta *= hqqKappa
	}
	return best
}

// hqqBlock is hqqScale for a block of 4 bits.
func hqqBlock(x, _ []float32) float32 {
	full := extremeScale(x)
	if full == minWeightScale {
		return full
	}
	return hqqScale(x, full, -8, 7)
}

// hqqWeight quantizes each channel of w so.
func hqqWeight(w []float32, dims []int64, axis int, c Config) (*Weight, error) {
	q, err := QuantizeWeight(w, dims, axis, c.Granularity, c.weightScheme())
	if err != nil {
		return nil, err
	}
	_, top := c.weightScheme().Codes()
	channels := make([][]float32, len(q.Scales))
	q.each(func(i, ch int) { channels[ch] = append(channels[ch], w[i]) })
	parallel(len(channels), len(w)/max(len(channels), 1)*hqqRounds, func(from, to int) {
		for ch := from; ch < to; ch++ {
			if q.Scales[ch] > minWeightScale {
				q.Scales[ch] = hqqScale(channels[ch], q.Scales[ch], -float32(top), float32(top))
			}
		}
	})
	q.each(func(i, ch int) { q.Codes[i] = roundCode(float64(w[i])/float64(q.Scales[ch]), top) })
	return q, nil
}
