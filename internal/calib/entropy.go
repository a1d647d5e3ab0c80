package calib

import (
	"math"
	"sync"
)

const (
	// firstCandidate is the smallest number of bins that a threshold keeps.
	firstCandidate = 128
	// oneSided: an end shorter than this part of the other does not count, so
	// that the tail of GELU or Swish leaves all codes to the long end.
	oneSided = 1e-3
)

// entropy is TensorRT's calibration: the threshold t of |x| whose clipped
// distribution P loses least information (Kullback-Leibler) when quantized to
// the levels of the scheme (Migacz, "8-bit inference with TensorRT", GTC
// 2017; modelopt's compute_amax_entropy for the details).
//
// Bins are those of Histogram.Linear, with h[0] = h[1] on a copy against the
// spike at zero. For each i, P is h[:i] with everything beyond added to its
// last bin; Q splits the unfolded h[:i] into one part a level and spreads each
// part's sum evenly over its non-empty bins. The last minimum wins.
//
// cuda/histogram.cu makes the same search on a device and finds the same bits:
// every logarithm is logTable's, and each product is rounded before it is added
// (an explicit conversion, or the compiler may fuse the two).
func entropy(h *Histogram, s Scheme) (Range, error) {
	if err := h.check(); err != nil {
		return Range{}, err
	}
	seen := Range{h.lo, h.hi}
	one := -h.lo <= oneSided*h.hi || h.hi <= oneSided*-h.lo
	levels := 1 << (s.CodeBits() - 1)
	if one && !s.Symmetric {
		levels *= 2
	}
	bins := h.Linear()
	if len(bins) <= max(firstCandidate, levels) {
		return seen.WithZero(), nil
	}
	return EntropyRange(seen, h.state.k, len(bins), bestKL(bins, levels)), nil
}

// EntropyRange is the range of values from seen.Lo to seen.Hi when the search
// keeps that many of their linear bins of |x|, 2^exp wide: the last step of
// MethodEntropy, for a search that a device has made (fb_kl_threshold).
func EntropyRange(seen Range, exp, bins, keep int) Range {
	if keep >= bins {
		return seen.WithZero()
	}
	t := float32(float64(keep) * math.Ldexp(1, exp))
	return Range{-t, t}.clamp(seen)
}

// bestKL returns how many bins to keep. With prefix sums a candidate costs one
// logarithm a level.
//
//	D(i) = sum p/N log((p/N) / (q/S)),  N = all, S = h[:i]
//	     = (sum p log p - sum p log q)/N - log N + log S
//
// and sum p log q needs, for each part, its sum and its non-empty bins.
func bestKL(bins []uint64, levels int) int {
	n, steps := len(bins), logSteps()
	c := make([]float64, n)
	for i, v := range bins {
		c[i] = float64(v)
	}
	c[0] = c[1]
	sum := make([]float64, n+1)         // of c
	plogp := make([]float64, n+1)       // of c log c
	filled := make([]int32, n+1)        // non-empty bins
	logs := make([]float64, n/levels+3) // log of 1..; a part has at most n/levels+1 bins
	for i, v := range c {
		sum[i+1] = sum[i] + v
		plogp[i+1] = plogp[i] + steps.xlogx(v)
		filled[i+1] = filled[i]
		if v > 0 {
			filled[i+1]++
		}
	}
	for i := range logs[1:] {
		logs[i+1] = steps.log(float64(i + 1))
	}
	total := sum[n]
	best, keep := math.Inf(1), n
	for i := max(firstCandidate, levels); i <= n; i++ {
		last, tail := c[i-1], total-sum[i]
		if sum[i] == 0 || last == 0 && tail > 0 { // Q has nothing where P has: infinite
			continue
		}
		cross, start, q := 0., 0, 0.
		for j, acc := 0, levels-1; j < levels; j++ {
			acc += i
			end := acc / levels // ceil((j+1)*i/levels)
			if part := sum[end] - sum[start]; part > 0 {
				q = steps.log(part) - logs[filled[end]-filled[start]]
				cross += float64(part * q)
			}
			start = end
		}
		cross += float64(tail * q) // q is that of the last part, which holds bin i-1
		d := (plogp[i]-steps.xlogx(last)+steps.xlogx(last+tail)-cross)/total - steps.log(total) + steps.log(sum[i])
		if d <= best {
			best, keep = d, i
		}
	}
	return keep
}

const logBits = 9

// logTable holds, for each step of the mantissa, the reciprocal of its middle
// and the logarithm of that middle.
type logTable [1 << logBits][2]float64

var logSteps = sync.OnceValue(func() *logTable {
	t := new(logTable)
	for i := range t {
		m := 1 + (float64(i)+.5)/(1<<logBits)
		t[i] = [2]float64{1 / m, math.Log(m)}
	}
	return t
})

// log returns the natural logarithm of a positive normal x to about 1e-15: a
// table and four terms of the series in |r| < 2^-10. math.Log takes twice as
// long, and entropy needs half a million of them for a tensor.
func (t *logTable) log(x float64) float64 {
	b := math.Float64bits(x)
	s := &t[b>>(52-logBits)&(1<<logBits-1)]
	r := float64(math.Float64frombits(b&(1<<52-1)|1023<<52)*s[0]) - 1
	series := float64(r * (1 - float64(r*(.5-float64(r*(1./3-float64(r*.25)))))))
	return float64(float64(int(b>>52)-1023)*math.Ln2) + s[1] + series
}

func (t *logTable) xlogx(x float64) float64 {
	if x <= 0 {
		return 0
	}
	return float64(x * t.log(x))
}
