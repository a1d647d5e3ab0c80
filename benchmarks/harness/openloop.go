package harness

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Sample is one request of an open loop.
type Sample struct {
	Due, Took time.Duration // since the loop began, and from then to the answer
	Err       error
}

// Poisson are requests of an open loop that have not been sent.
func Poisson(rate float64, length time.Duration, seed uint64) (samples []Sample) {
	r := rand.New(rand.NewPCG(seed, 1))
	for at := 0.0; ; {
		at += -math.Log(1-r.Float64()) / rate
		d := time.Duration(at * float64(time.Second))
		if d >= length {
			return samples
		}
		samples = append(samples, Sample{Due: d})
	}
}

// OpenLoop sends requests at the rate (a second), at Poisson arrivals, for so
// long, and waits for all answers. Latency counts from the instant that a
// request was due, whatever became of those before.
func OpenLoop(f func() error, rate float64, length time.Duration, seed uint64) []Sample {
	samples := Poisson(rate, length, seed)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range samples {
		d := samples[i].Due
		if wait := d - time.Since(start); wait > 0 {
			time.Sleep(wait)
		}
		wg.Go(func() {
			err := f()
			samples[i] = Sample{Due: d, Took: time.Since(start) - d, Err: err}
		})
	}
	wg.Wait()
	return samples
}

// Tally sorts what became of the requests of an open loop.
type Tally struct {
	Sent     int     `json:"sent"`
	Answered int     `json:"answered"`
	Refused  int     `json:"refused"` // 503 or 429
	Failed   int     `json:"failed"`  // anything else
	P50MS    float64 `json:"p50_ms"`
	P90MS    float64 `json:"p90_ms"`
	P99MS    float64 `json:"p99_ms"`
	MaxMS    float64 `json:"max_ms"`
	// RefusedP99MS is how long a refusal took.
	RefusedP99MS float64 `json:"refused_p99_ms,omitempty"`

	example error // of the failed
}

// Count tallies samples, and says so when some failed.
func Count(samples []Sample) Tally {
	t := Tally{Sent: len(samples)}
	var took, refused []time.Duration
	for _, s := range samples {
		switch {
		case s.Err == nil:
			took = append(took, s.Took)
		case Refused(s.Err):
			refused = append(refused, s.Took)
		default:
			t.Failed++
			t.example = s.Err
		}
	}
	slices.Sort(took)
	slices.Sort(refused)
	t.Answered, t.Refused = len(took), len(refused)
	t.P50MS, t.P90MS, t.P99MS = Milliseconds(Quantile(took, .5)), Milliseconds(Quantile(took, .9)), Milliseconds(Quantile(took, .99))
	t.MaxMS, t.RefusedP99MS = Milliseconds(Quantile(took, 1)), Milliseconds(Quantile(refused, .99))
	if t.Failed > 0 {
		Say("%d of %d requests failed, for example: %v", t.Failed, t.Sent, t.example)
	}
	return t
}

// Milliseconds of d, with three digits behind the point.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Quantile returns the value below which a share q of the durations lies
// (nearest rank).
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
