package eval

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
)

// z95 is the 97.5 % quantile of the normal distribution.
const z95 = 1.959963984540054

// Wilson returns the 95 % score interval of a proportion hits/n (Wilson 1927;
// Brown, Cai and DasGupta 2001 recommend it). It stays inside [0, 1] and is
// honest for hits = 0 and hits = n. n <= 0 gives [0, 1].
func Wilson(hits, n int) Interval {
	if n <= 0 {
		return Interval{0, 1}
	}
	f, z2 := float64(n), z95*z95
	p := float64(hits) / f
	mid := (p + z2/(2*f)) / (1 + z2/f)
	half := z95 / (1 + z2/f) * math.Sqrt(p*(1-p)/f+z2/(4*f*f))
	r := Interval{max(0, mid-half), min(1, mid+half)}
	// The closed form is exact at the ends; rounding is not.
	if hits <= 0 {
		r.Lo = 0
	}
	if hits >= n {
		r.Hi = 1
	}
	return r
}

// Proportion returns hits/n as a Score with its Wilson interval. n = 0 gives
// value 0 with the interval [0, 1].
func Proportion(name string, hits, n int) Score {
	s := Score{Name: name, N: n, HigherIsBetter: true}
	if n > 0 {
		s.Value = float64(hits) / float64(n)
	}
	w := Wilson(hits, n)
	s.Lo, s.Hi = w.Lo, w.Hi
	return s
}

// Paired is the table of two classifiers that answered the same samples.
type Paired struct {
	BothRight int `json:"both_right"`
	RefOnly   int `json:"ref_only"`   // only the reference (FP32) was right
	QuantOnly int `json:"quant_only"` // only the quantized model was right
	Neither   int `json:"neither"`
}

// Add counts one sample.
func (p *Paired) Add(refRight, quantRight bool) {
	switch {
	case refRight && quantRight:
		p.BothRight++
	case refRight:
		p.RefOnly++
	case quantRight:
		p.QuantOnly++
	default:
		p.Neither++
	}
}

// N returns the number of samples.
func (p Paired) N() int { return p.BothRight + p.RefOnly + p.QuantOnly + p.Neither }

// Ref returns the reference's accuracy.
func (p Paired) Ref() Score { return Proportion("accuracy", p.BothRight+p.RefOnly, p.N()) }

// Quant returns the quantized model's accuracy.
func (p Paired) Quant() Score { return Proportion("accuracy", p.BothRight+p.QuantOnly, p.N()) }

// Difference returns accuracy(quantized) - accuracy(reference), in -1..1, with
// a 95 % interval for matched pairs: the normal interval after adding one half
// to each cell of the table (Agresti and Min, Statistics in Medicine 24, 2005).
// Where no sample changed sides the plain normal interval would be a single
// point; this one still says how little n samples prove.
func (p Paired) Difference() Score {
	s := Score{Name: "accuracy difference", N: p.N(), Lo: -1, Hi: 1, HigherIsBetter: true}
	if s.N == 0 {
		return s
	}
	s.Value = float64(p.QuantOnly-p.RefOnly) / float64(s.N)
	n := float64(s.N) + 2
	d := float64(p.QuantOnly-p.RefOnly) / n
	half := z95 * math.Sqrt((float64(p.QuantOnly+p.RefOnly+1)/n-d*d)/n)
	s.Lo, s.Hi = max(-1, d-half), min(1, d+half)
	return s
}

// LeastPaired returns how many samples it takes until the interval of Difference
// reaches no further than loss where no sample changes sides: fewer prove nothing.
// loss is a share of all samples above 0.
func LeastPaired(loss float64) int {
	return max(1, int(math.Ceil(z95/loss))-2)
}

// DifferenceNormal is Difference with the plain interval value ± 1.96*sd/sqrt(n)
// of the per-sample differences, the form in which other tools publish it.
func (p Paired) DifferenceNormal() Score {
	s := p.Difference()
	if s.N == 0 {
		return s
	}
	n := float64(s.N)
	half := z95 * math.Sqrt(max(0, float64(p.QuantOnly+p.RefOnly)/n-s.Value*s.Value)/n)
	s.Lo, s.Hi = s.Value-half, s.Value+half
	return s
}

// McNemar returns the exact two-sided p-value of "both are equally often
// right": the binomial test of RefOnly against QuantOnly at one half.
func (p Paired) McNemar() float64 {
	n, k := p.RefOnly+p.QuantOnly, min(p.RefOnly, p.QuantOnly)
	if n == 0 {
		return 1
	}
	var sum float64
	for i := 0; i <= k; i++ {
		sum += binomial(n, i)
	}
	return min(1, 2*sum)
}

// binomial returns the probability of k heads in n throws of a fair coin.
func binomial(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return math.Exp(a - b - c - float64(n)*math.Ln2)
}

// Bounds of a bootstrap.
const (
	// DefaultResamples is enough for the second digit of a 95 % interval.
	DefaultResamples = 2000
	maxResamples     = 1_000_000
	// bootstrapMost: from here on a mean's normal interval is as good, and a
	// bootstrap would take seconds.
	bootstrapMost = 5000
)

// Bootstrap returns the 95 % percentile interval of metric over n samples
// (Efron 1979). metric gets indexes into the samples, drawn with replacement;
// the slice is reused between calls. The same seed gives the same interval on
// every machine. A resample whose metric is NaN is left out.
// resamples 0 means DefaultResamples.
func Bootstrap(n, resamples int, seed uint64, metric func(idx []int) float64) (Interval, error) {
	if resamples == 0 {
		resamples = DefaultResamples
	}
	if n <= 0 {
		return Interval{}, fmt.Errorf("%w: bootstrap over %d samples", ErrNoSamples, n)
	}
	if resamples < 20 || resamples > maxResamples {
		return Interval{}, fmt.Errorf("%w: %d bootstrap resamples, expected 20..%d", ErrOptions, resamples, maxResamples)
	}
	rng := rand.New(rand.NewPCG(seed, 0x66657762697400))
	idx := make([]int, n)
	vals := make([]float64, 0, resamples)
	for range resamples {
		for i := range idx {
			idx[i] = rng.IntN(n)
		}
		if v := metric(idx); !math.IsNaN(v) {
			vals = append(vals, v)
		}
	}
	if len(vals) == 0 {
		return Interval{}, fmt.Errorf("%w: the metric is undefined on every resample", ErrNoSamples)
	}
	sort.Float64s(vals)
	return Interval{quantile(vals, 0.025), quantile(vals, 0.975)}, nil
}

// MeanScore returns the mean of x with its bootstrapped interval, or from 5,000
// values on its normal one. ErrNoSamples when x is empty.
func MeanScore(name string, x []float64, seed uint64, higherIsBetter bool) (Score, error) {
	if len(x) == 0 {
		return Score{}, fmt.Errorf("%w: mean of nothing", ErrNoSamples)
	}
	n := float64(len(x))
	var sum float64
	for _, v := range x {
		sum += v
	}
	s := Score{Name: name, Value: sum / n, N: len(x), HigherIsBetter: higherIsBetter}
	if len(x) > bootstrapMost {
		var sq float64
		for _, v := range x {
			sq += (v - s.Value) * (v - s.Value)
		}
		half := z95 * math.Sqrt(sq/n/n)
		s.Lo, s.Hi = s.Value-half, s.Value+half
		return s, nil
	}
	ci, err := Bootstrap(len(x), 0, seed, func(idx []int) float64 {
		var sum float64
		for _, i := range idx {
			sum += x[i]
		}
		return sum / n
	})
	s.Lo, s.Hi = ci.Lo, ci.Hi
	return s, err
}

// MedianInterval returns the order-statistic interval of the median of sorted:
// the tightest symmetric pair of ranks whose exact binomial coverage is at
// least 95 %. It needs no assumption about the distribution. Below six values
// no pair reaches 95 %; the whole range is returned with its real coverage.
func MedianInterval(sorted []float64) (ci Interval, coverage float64) {
	n := len(sorted)
	if n == 0 {
		return Interval{}, 0
	}
	// Ranks l..n+1-l (1-based) cover 1 - 2*P(Binomial(n, 1/2) <= l-1).
	tail, l := binomial(n, 0), 1
	for l < (n+1)/2 {
		next := tail + binomial(n, l)
		if 1-2*next < 0.95 {
			break
		}
		tail, l = next, l+1
	}
	return Interval{sorted[l-1], sorted[n-l]}, max(0, 1-2*tail)
}

// quantile interpolates linearly between order statistics (Hyndman and Fan's
// definition 7, numpy's default). sorted must not be empty.
func quantile(sorted []float64, q float64) float64 {
	pos := q * float64(len(sorted)-1)
	i := int(pos)
	if i >= len(sorted)-1 {
		return sorted[len(sorted)-1]
	}
	if sorted[i] == sorted[i+1] { // also keeps Inf - Inf out
		return sorted[i]
	}
	return sorted[i] + (pos-float64(i))*(sorted[i+1]-sorted[i])
}
