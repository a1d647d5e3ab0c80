package telemetry

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSwaps is how many finished swaps a Collector remembers.
	maxSwaps = 32
	// swapTail is how long after a switch its effects are looked for.
	swapTail = time.Second
)

// Swap is the change of a model from one version to another under its requests:
// from the begin of loading the new one until a second after the switch.
type Swap struct {
	Name      string    `json:"name"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	Began     time.Time `json:"began"`
	LoadMS    float64   `json:"load_ms" doc:"until requests reached the new version"`
	Requests  int64     `json:"requests" doc:"answered from the begin until a second after the switch"`
	Failed    int64     `json:"failed" doc:"not answered in that time, those refused for overload included"`
	Latencies Quantiles `json:"latency" doc:"of the whole request, null when none was answered"`
}

// swaps are those of a Collector. Requests look at active only.
type swaps struct {
	active atomic.Int32

	mu      sync.Mutex
	running map[string]*swapping // by model
	done    []Swap               // newest last
}

type swapping struct {
	swap   Swap
	total  counts
	failed atomic.Int64
}

// BeginSwap watches the requests of a model that changes from one version to
// another, until end is called with the time when requests reached the new one,
// and a second more. The zero time says that the change came to nothing.
func (c *Collector) BeginSwap(model, from, to string) (end func(switched time.Time)) {
	s := &swapping{swap: Swap{Name: model, From: from, To: to, Began: time.Now()}}
	w := &c.swaps
	w.mu.Lock()
	if w.running[model] == nil {
		w.active.Add(1)
	}
	w.running[model] = s // one that follows at once ends the watch over the one before
	w.mu.Unlock()
	return func(switched time.Time) {
		if switched.IsZero() {
			w.finish(s, false)
			return
		}
		s.swap.LoadMS = millis(switched.Sub(s.swap.Began))
		time.AfterFunc(swapTail, func() { w.finish(s, true) })
	}
}

func (w *swaps) finish(s *swapping, keep bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[s.swap.Name] == s {
		delete(w.running, s.swap.Name)
		w.active.Add(-1)
	}
	if !keep {
		return
	}
	var h Histogram
	h.mergeCounts(&s.total)
	s.swap.Requests, s.swap.Failed, s.swap.Latencies = int64(h.Count()), s.failed.Load(), quantiles(&h)
	if len(w.done) == maxSwaps {
		w.done = slices.Delete(w.done, 0, 1)
	}
	w.done = append(w.done, s.swap)
}

// Ended tells of a request of a model that took so long, answered or not.
func (c *Collector) Ended(model string, took time.Duration, answered bool) {
	if c.swaps.active.Load() == 0 {
		return
	}
	c.swaps.mu.Lock()
	s := c.swaps.running[model]
	c.swaps.mu.Unlock()
	switch {
	case s == nil:
	case answered:
		s.total.add(took)
	default:
		s.failed.Add(1)
	}
}

// Swaps returns the last finished swaps, the newest last.
func (c *Collector) Swaps() []Swap {
	c.swaps.mu.Lock()
	defer c.swaps.mu.Unlock()
	return slices.Clone(c.swaps.done)
}
