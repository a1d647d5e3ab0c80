package telemetry

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// maxError is what a bucket of 1/64 of its edge may be off at its middle.
const maxError = 1.0 / 128

func TestBuckets(t *testing.T) {
	last := -1
	for _, ns := range []int64{-5, 0, 1, 63, 64, 65, 127, 128, 129, 1000, 1e6, 50e6, 1e9, 100e9, 1 << 37, math.MaxInt64} {
		b := bucketOf(ns)
		if b < last || b >= numBuckets {
			t.Errorf("%d ns is in bucket %d, after bucket %d", ns, b, last)
		}
		last = b
		if ns > 0 && ns < 1<<maxBits {
			if off := math.Abs(bucketMiddle(b)-float64(ns)) / float64(ns); off > maxError {
				t.Errorf("%d ns: middle %v is off by %.2f %%", ns, bucketMiddle(b), 100*off)
			}
		}
	}
	for b := range numBuckets { // every bucket holds its own middle
		if got := bucketOf(int64(bucketMiddle(b))); got != b {
			t.Fatalf("the middle of bucket %d is in bucket %d", b, got)
		}
	}
}

// Quantiles against sorting, on the shapes that latencies have.
func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() float64{
		"log-normal": func() float64 { return 5e6 * math.Exp(rng.NormFloat64()) },
		"uniform":    func() float64 { return 1e3 + 1e8*rng.Float64() },
		"two modes": func() float64 {
			if rng.IntN(100) == 0 {
				return 3e8 + 1e7*rng.Float64()
			}
			return 4e6
		},
		"microseconds": func() float64 { return 200 + 5000*rng.Float64() },
	} {
		var h Histogram
		all := make([]time.Duration, 20_000)
		var sum time.Duration
		for i := range all {
			all[i] = time.Duration(draw())
			sum += all[i]
			h.Add(all[i])
		}
		slices.Sort(all)
		for _, q := range []float64{.001, .5, .9, .99, .999, 1} {
			want := all[int(math.Ceil(q*float64(len(all))))-1]
			if got := h.Quantile(q); math.Abs(float64(got-want)) > maxError*float64(want)+1 {
				t.Errorf("%s: quantile %v is %v, sorting says %v", name, q, got, want)
			}
		}
		if h.Max() != all[len(all)-1] || h.Quantile(1) != h.Max() || h.Mean() != sum/time.Duration(len(all)) || h.Count() != uint64(len(all)) {
			t.Errorf("%s: max %v, mean %v, count %d", name, h.Max(), h.Mean(), h.Count())
		}
	}
	var empty Histogram
	if empty.Quantile(.5) != 0 || empty.Mean() != 0 {
		t.Error("an empty histogram has quantiles")
	}
}

// Merging parts, in any order, is the same as adding everything to one.
func TestMergeIsExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var whole Histogram
	parts := make([]Histogram, 7)
	for range 5000 {
		d := time.Duration(rng.Int64N(1e9))
		whole.Add(d)
		parts[rng.IntN(len(parts))].Add(d)
	}
	for range 5 {
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		var sum Histogram
		for i := range parts {
			sum.Merge(&parts[i])
		}
		if sum != whole {
			t.Fatal("merged parts differ from the whole")
		}
	}
}

func TestWindows(t *testing.T) {
	l := NewLatency("m", "1", 50*time.Millisecond)
	at := func(s int) time.Time { return l.start.Add(time.Duration(s) * time.Second) }
	req := func(total time.Duration) Durations { return Durations{Infer: total / 2, Total: total} }
	l.Observe(at(0), req(100*time.Millisecond))
	l.Observe(at(100), req(10*time.Millisecond))
	l.Observe(at(101), req(50*time.Millisecond)) // the target itself is not over
	for _, c := range []struct {
		now         int
		window      string
		count, over int64
	}{
		{0, "1m", 1, 1}, {10, "1m", 1, 1}, {101, "1m", 2, 0}, {101, "5m", 3, 1}, {101, "total", 3, 1},
		{155, "1m", 2, 0}, {200, "1m", 0, 0}, {299, "5m", 3, 1}, {330, "5m", 2, 0}, {500, "5m", 0, 0}, {5000, "total", 3, 1},
	} {
		w := l.Snapshot(at(c.now)).Windows[c.window]
		if w.Count != c.count || w.OverTarget != c.over {
			t.Errorf("at %d s, %s: %d requests, %d over; want %d, %d", c.now, c.window, w.Count, w.OverTarget, c.count, c.over)
		}
		if (w.OverTargetShare == nil) != (c.count == 0) || (w.Phases["total"].P50 == nil) != (c.count == 0) {
			t.Errorf("at %d s, %s: an empty window must be null, a full one not: %+v", c.now, c.window, w)
		}
	}
	// A slot that comes round again starts empty.
	l.Observe(at(ringSlots*15+1), req(time.Millisecond))
	if w := l.Snapshot(at(ringSlots*15 + 1)).Windows["1m"]; w.Count != 1 {
		t.Errorf("a reused slot has %d requests, want 1", w.Count)
	}
	l.throttled(at(ringSlots*15+2), 4)
	if w := l.Snapshot(at(ringSlots*15 + 2)).Windows["1m"]; len(w.GPUThrottle) != 1 || w.GPUThrottle[0] != "power cap" {
		t.Errorf("throttle reasons %v", w.GPUThrottle)
	}
}

// No request is lost when many goroutines observe while slots turn over.
func TestObserveConcurrently(t *testing.T) {
	l := NewLatency("m", "1", time.Millisecond)
	const workers, each = 8, 2000
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				l.Observe(l.start.Add(time.Duration(i)*100*time.Millisecond), Durations{Total: time.Duration(w) * time.Millisecond})
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			l.Snapshot(l.start.Add(time.Minute))
		}
	})
	wg.Wait()
	s := l.Snapshot(l.start.Add(each * 100 * time.Millisecond))
	if s.Windows["total"].Count != workers*each || s.Windows["total"].OverTarget != (workers-2)*each {
		t.Errorf("%+v", s.Windows["total"])
	}
	if n := s.Windows["1m"].Count; n < workers*600 || n > workers*750 {
		t.Errorf("the last minute has %d requests, want about %d", n, workers*600)
	}
}

func BenchmarkObserve(b *testing.B) {
	l := NewLatency("m", "1", 50*time.Millisecond)
	now := time.Now()
	b.RunParallel(func(pb *testing.PB) {
		d := Durations{1e3, 2e3, 5e6, 4e3, 6e6}
		for pb.Next() {
			l.Observe(now, d)
		}
	})
}
