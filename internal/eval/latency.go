package eval

import (
	"context"
	"fmt"
	"sort"
	"time"
)

// Bounds of an interleaved measurement.
const (
	// DefaultRounds gives a p90 with a meaning; a p99 needs ten times as many.
	DefaultRounds = 50
	// MaxRounds bounds what one measurement keeps (8 bytes a round and candidate).
	MaxRounds = 1_000_000
	// curvePoints: the latency curve holds the quantiles 0, 1, ... 100 %.
	curvePoints = 101
)

// InterleaveOptions say how long to measure.
type InterleaveOptions struct {
	// Warmup rounds are run and forgotten.
	Warmup int
	// Rounds is the least number of measured rounds; 0 means DefaultRounds.
	Rounds int
	// MinTime keeps measuring past Rounds until this much time has passed.
	MinTime time.Duration
	// MaxTime stops early, once two rounds are in; 0 is no bound. It wins over
	// Rounds and MinTime.
	MaxTime time.Duration
}

// LatencyStats describes one candidate's latencies, in milliseconds.
type LatencyStats struct {
	N      int     `json:"n"`
	MeanMS float64 `json:"mean_ms"`
	MinMS  float64 `json:"min_ms"`
	P50MS  float64 `json:"p50_ms"`
	P90MS  float64 `json:"p90_ms"`
	P99MS  float64 `json:"p99_ms"`
	MaxMS  float64 `json:"max_ms"`
	// CurveMS holds the quantiles 0 %, 1 %, ... 100 %: the distribution for a plot.
	CurveMS []float64 `json:"curve_ms,omitempty"`
}

// Ratio says how many times faster a candidate is than the first one: the
// distribution of first/candidate taken round by round, so that a slow moment
// of the machine, which hits both, cancels.
type Ratio struct {
	Median float64 `json:"median"` // > 1: faster than the first
	// Lo and Hi bound the order-statistic interval of the median.
	Lo float64 `json:"lo"`
	Hi float64 `json:"hi"`
	// Coverage is the interval's exact confidence, at least 0.95 from six
	// rounds on.
	Coverage float64 `json:"coverage"`
	N        int     `json:"n"`
}

// Latency is the result of Interleave.
type Latency struct {
	Candidates []LatencyStats `json:"candidates"`
	// Ratios[i] compares the first candidate with candidate i; Ratios[0] is 1.
	Ratios []Ratio `json:"ratios"`
	Noise  Noise   `json:"noise"`
}

// Interleave runs the candidates in turn, A B C A B C ..., and describes how
// long each took and how many times faster than the first each is.
// The first error, or ctx's, ends it.
func Interleave(ctx context.Context, candidates []func(ctx context.Context) error, o InterleaveOptions) (*Latency, error) {
	if o.Rounds == 0 {
		o.Rounds = DefaultRounds
	}
	switch {
	case len(candidates) == 0:
		return nil, fmt.Errorf("%w: nothing to measure", ErrOptions)
	case o.Rounds < 0 || o.Rounds > MaxRounds || o.Warmup < 0 || o.Warmup > MaxRounds:
		return nil, fmt.Errorf("%w: %d rounds after %d warm-up rounds, expected 1..%d after 0..%[3]d", ErrOptions, o.Rounds, o.Warmup, MaxRounds)
	}
	start := time.Now()
	for range o.Warmup {
		for i, f := range candidates {
			if err := timed(ctx, f, nil); err != nil {
				return nil, fmt.Errorf("warm-up of candidate %d: %w", i, err)
			}
		}
		if o.MaxTime > 0 && time.Since(start) > o.MaxTime/2 {
			break
		}
	}
	before := readNoise()
	ms := make([][]float64, len(candidates))
	begin := time.Now()
	for round := 0; round < MaxRounds; round++ {
		if round >= 2 && o.MaxTime > 0 && time.Since(start) >= o.MaxTime {
			break
		}
		if round >= o.Rounds && time.Since(begin) >= o.MinTime {
			break
		}
		for i, f := range candidates {
			var d time.Duration
			if err := timed(ctx, f, &d); err != nil {
				return nil, fmt.Errorf("candidate %d, round %d: %w", i, round, err)
			}
			ms[i] = append(ms[i], float64(d)/float64(time.Millisecond))
		}
	}
	l := &Latency{Noise: noiseBetween(before, readNoise())}
	for i := range ms {
		l.Ratios = append(l.Ratios, PairedRatio(ms[0], ms[i]))
		l.Candidates = append(l.Candidates, StatsOf(ms[i]))
	}
	return l, nil
}

func timed(ctx context.Context, f func(ctx context.Context) error, d *time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.Now()
	err := f(ctx)
	if d != nil {
		*d = time.Since(t)
	}
	return err
}

// StatsOf describes latencies given in milliseconds, in any order.
func StatsOf(ms []float64) LatencyStats {
	if len(ms) == 0 {
		return LatencyStats{}
	}
	s := append([]float64(nil), ms...)
	sort.Float64s(s)
	sum := Summarize(s)
	r := LatencyStats{N: sum.N, MeanMS: sum.Mean, MinMS: sum.Min, P50MS: sum.P50, P90MS: sum.P90, P99MS: sum.P99, MaxMS: sum.Max}
	r.CurveMS = make([]float64, curvePoints)
	for i := range r.CurveMS {
		r.CurveMS[i] = quantile(s, float64(i)/(curvePoints-1))
	}
	return r
}

// PairedRatio compares latencies taken in the same rounds: the median of
// first[i]/other[i] and its interval. Rounds without a measurable time are
// left out.
func PairedRatio(first, other []float64) Ratio {
	r := make([]float64, 0, len(first))
	for i := range min(len(first), len(other)) {
		if first[i] > 0 && other[i] > 0 {
			r = append(r, first[i]/other[i])
		}
	}
	if len(r) == 0 {
		return Ratio{}
	}
	sort.Float64s(r)
	ci, cov := MedianInterval(r)
	return Ratio{Median: quantile(r, .5), Lo: ci.Lo, Hi: ci.Hi, Coverage: cov, N: len(r)}
}
