package telemetry

import (
	"sync/atomic"
	"time"
)

// Phase is a part of a request's way through the server.
type Phase int

// The phases, in the order a request meets them. Total runs from the arrival
// of the request to its last byte, so it holds the others and what lies
// between them.
const (
	Queue   Phase = iota // waiting for its turn
	Prepare              // reading the body, decoding it, tokenizing
	Infer                // the model
	Finish               // encoding the answer and writing it
	Total
	numPhases
)

// Phases is the number of phases, Total included.
const Phases = int(numPhases)

var phaseNames = [numPhases]string{"queue", "prepare", "infer", "finish", "total"}

func (p Phase) String() string { return phaseNames[p] }

// Durations holds one request's time in each phase.
type Durations [numPhases]time.Duration

// A window is made of slots; the ring holds those of the longest window and
// the one being filled.
const (
	slotLength = 15 * time.Second
	ringSlots  = int(5*time.Minute/slotLength) + 1
)

// slot holds the requests of one slotLength.
type slot struct {
	epoch    int64
	phases   [numPhases]counts
	over     atomic.Int64
	throttle atomic.Uint64 // clock event reasons seen, ORed
}

// Latency records one model version's requests against its target. All of its
// methods may be called at once from many goroutines; Observe takes no lock.
// It holds at most 1 MB, and 100 kB when idle.
type Latency struct {
	name, version string
	target        atomic.Int64
	start         time.Time
	ring          [ringSlots]atomic.Pointer[slot]
	all           [numPhases]wideCounts
	over          atomic.Int64
}

// wideCounts is counts for the process's whole life, where 32 bits might wrap.
type wideCounts struct {
	bucket [numBuckets]atomic.Uint64
	sum    atomic.Int64
	max    atomic.Int64
}

// NewLatency returns a recorder for one model version.
func NewLatency(name, version string, target time.Duration) *Latency {
	l := &Latency{name: name, version: version, start: time.Now()}
	l.target.Store(int64(target))
	return l
}

// SetTarget changes the latency target for the requests that follow.
func (l *Latency) SetTarget(d time.Duration) { l.target.Store(int64(d)) }

// Target returns the latency target.
func (l *Latency) Target() time.Duration { return time.Duration(l.target.Load()) }

// slotAt returns the slot of now, putting a new one in place of an old one.
func (l *Latency) slotAt(now time.Time) *slot {
	epoch := int64(now.Sub(l.start) / slotLength)
	place := &l.ring[int(max(epoch, 0))%ringSlots]
	s := place.Load()
	if s != nil && s.epoch >= epoch {
		return s
	}
	fresh := &slot{epoch: epoch}
	if place.CompareAndSwap(s, fresh) {
		return fresh
	}
	return place.Load()
}

// Observe records one finished request.
func (l *Latency) Observe(now time.Time, d Durations) {
	s := l.slotAt(now)
	for p := range d {
		s.phases[p].add(d[p])
		w := &l.all[p]
		ns := int64(max(d[p], 0))
		w.bucket[bucketOf(ns)].Add(1)
		w.sum.Add(ns)
		for {
			m := w.max.Load()
			if ns <= m || w.max.CompareAndSwap(m, ns) {
				break
			}
		}
	}
	if d[Total] > l.Target() {
		s.over.Add(1)
		l.over.Add(1)
	}
}

// throttled notes clock event reasons in the current slot.
func (l *Latency) throttled(now time.Time, reasons uint64) {
	if reasons == 0 {
		return
	}
	s := l.slotAt(now)
	for {
		r := s.throttle.Load()
		if r|reasons == r || s.throttle.CompareAndSwap(r, r|reasons) {
			return
		}
	}
}

// window merges the slots of the last d, and the one being filled.
func (l *Latency) window(now time.Time, d time.Duration) (phases [numPhases]Histogram, over int64, throttle uint64) {
	newest := int64(now.Sub(l.start) / slotLength)
	oldest := newest - int64(d/slotLength)
	for i := range l.ring {
		s := l.ring[i].Load()
		if s == nil || s.epoch < oldest || s.epoch > newest {
			continue
		}
		for p := range phases {
			phases[p].mergeCounts(&s.phases[p])
		}
		over += s.over.Load()
		throttle |= s.throttle.Load()
	}
	return phases, over, throttle
}

func (l *Latency) total() (phases [numPhases]Histogram, over int64) {
	for p := range phases {
		h, w := &phases[p], &l.all[p]
		for i := range w.bucket {
			h.n[i] = w.bucket[i].Load()
			h.total += h.n[i]
		}
		h.sum, h.maxima = w.sum.Load(), w.max.Load()
	}
	return phases, l.over.Load()
}

// Quantiles describes a phase within a window, in milliseconds; null when the
// window is empty.
type Quantiles struct {
	P50  *float64 `json:"p50_ms"`
	P90  *float64 `json:"p90_ms"`
	P99  *float64 `json:"p99_ms"`
	P999 *float64 `json:"p999_ms"`
	Mean *float64 `json:"mean_ms"`
	Max  *float64 `json:"max_ms"`
}

// Window is one model's latency over a span of time.
type Window struct {
	Count int64 `json:"count" doc:"requests answered"`
	// OverTarget counts the requests whose total was above the target.
	OverTarget      int64                `json:"over_target"`
	OverTargetShare *float64             `json:"over_target_share" doc:"0..1, null without requests"`
	GPUThrottle     []string             `json:"gpu_throttle,omitempty" doc:"reasons for lowered GPU clocks seen in this window"`
	Phases          map[string]Quantiles `json:"phases" doc:"by phase: queue, prepare, infer, finish, total"`
}

// ModelLatency is one model version's latency against its target.
type ModelLatency struct {
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	TargetMS float64           `json:"target_ms"`
	Windows  map[string]Window `json:"windows" doc:"by window: 1m, 5m, total"`
	Energy   *ModelEnergy      `json:"energy,omitempty" doc:"what it took on GPUs; absent when it has not run on one whose energy can be read"`
	// CPUEnergy holds whatever else the packages did meanwhile: they have one counter.
	CPUEnergy *ModelEnergy `json:"cpu_energy" doc:"energy of the processor packages (RAPL) while it ran on the CPU, all that they did at that time included"`
	Reasons   Reasons      `json:"reasons,omitempty" doc:"why a field is null, by its name"`
}

// Snapshot summarises l.
func (l *Latency) Snapshot(now time.Time) ModelLatency {
	m := ModelLatency{Name: l.name, Version: l.version, TargetMS: millis(l.Target()), Windows: map[string]Window{}}
	for name, d := range map[string]time.Duration{"1m": time.Minute, "5m": 5 * time.Minute} {
		phases, over, throttle := l.window(now, d)
		m.Windows[name] = newWindow(&phases, over, throttle)
	}
	phases, over := l.total()
	m.Windows["total"] = newWindow(&phases, over, 0)
	return m
}

func newWindow(phases *[numPhases]Histogram, over int64, throttle uint64) Window {
	w := Window{Count: int64(phases[Total].Count()), OverTarget: over, GPUThrottle: throttleNames(throttle), Phases: map[string]Quantiles{}}
	if w.Count > 0 {
		share := float64(over) / float64(w.Count)
		w.OverTargetShare = &share
	}
	for p := range phases {
		w.Phases[Phase(p).String()] = quantiles(&phases[p])
	}
	return w
}

func quantiles(h *Histogram) Quantiles {
	if h.Count() == 0 {
		return Quantiles{}
	}
	ms := func(d time.Duration) *float64 { v := millis(d); return &v }
	return Quantiles{ms(h.Quantile(.5)), ms(h.Quantile(.9)), ms(h.Quantile(.99)), ms(h.Quantile(.999)), ms(h.Mean()), ms(h.Max())}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
