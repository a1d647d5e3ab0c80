package telemetry

import (
	"sync"
	"time"
)

// Energy attributes the energy of GPUs, or of the processor packages, to the models
// that ran on them. What follows says GPU for either.
//
// A GPU counts its energy much more coarsely than a run is long, so it is shared
// out between two readings of the counter. Of the energy of such a window, the
// part that the GPU was running something, by time, goes to the models in
// proportion to how long each ran; the rest was idle and belongs to nobody.
// Where there is no counter, the window's power (the mean of the readings at its
// ends) times its length stands for it. A window without either counts neither
// energy nor requests, so that their quotient stays right.
//
// All methods are safe for concurrent use.
type Energy struct {
	now func() time.Time

	mu     sync.Mutex
	gpus   map[string]*gpuEnergy // by UUID
	models map[modelKey]*modelEnergy
}

// gpuEnergy is one GPU since its newest reading.
type gpuEnergy struct {
	at     time.Time // of the reading; zero before the first one
	joules *float64
	watts  *float64

	running map[*gpuRun]bool
	since   time.Time // when the first of these began, or the reading
	busy    time.Duration
	share   map[modelKey]*windowShare
}

// gpuRun is a run that has not ended; begin is at the earliest the newest reading.
type gpuRun struct {
	key   modelKey
	begin time.Time
}

// windowShare is what a model did in the window.
type windowShare struct {
	ran            time.Duration
	runs, requests int64
}

type modelEnergy struct {
	from, to       time.Time // of the first and last window counted
	joules         float64
	seconds        float64
	runs, requests int64
	estimated      bool // some of it from power
}

// Packages stands for all processor packages where a GPU's UUID would stand: their
// counters are read together.
const Packages = "packages"

// ModelEnergy is the energy that a model version has taken, idle time left out.
type ModelEnergy struct {
	From     time.Time `json:"from" doc:"begin of the first reading's window that it ran in"`
	To       time.Time `json:"to" doc:"end of the last one; what ran later is not counted yet"`
	Joules   float64   `json:"joules" doc:"energy while this version ran, from then to then"`
	Seconds  float64   `json:"run_seconds" doc:"time that it ran; at the same time as others counts in full"`
	Requests int64     `json:"requests" doc:"requests that were answered with it"`
	Runs     int64     `json:"runs" doc:"batches"`
	// The quotients are null before the first request.
	PerRequest *float64 `json:"joules_per_request"`
	PerRun     *float64 `json:"joules_per_run"`
	Source     string   `json:"source" doc:"counter: an energy counter; power: at least partly readings of power over time"`
}

// NewEnergy returns a meter that reads the time from now; nil means time.Now.
func NewEnergy(now func() time.Time) *Energy {
	if now == nil {
		now = time.Now
	}
	return &Energy{now: now, gpus: map[string]*gpuEnergy{}, models: map[modelKey]*modelEnergy{}}
}

// Run notes that a model version begins a run for that many requests on the GPU
// with this UUID ("GPU-..."). The function that it returns, called once, ends it:
// a run that did not answer its requests took energy all the same.
func (e *Energy) Run(gpu, name, version string, requests int) (end func(answered bool)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.gpu(gpu)
	r := &gpuRun{modelKey{name, version}, e.now()}
	if len(g.running) == 0 {
		g.since = r.begin
	}
	g.running[r] = true
	return func(answered bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !g.running[r] {
			return
		}
		now := e.now()
		s := g.of(r.key)
		s.ran += now.Sub(r.begin)
		if answered {
			s.runs++
			s.requests += int64(requests)
		}
		if delete(g.running, r); len(g.running) == 0 {
			g.busy += now.Sub(g.since)
		}
	}
}

func (e *Energy) gpu(uuid string) *gpuEnergy {
	g := e.gpus[uuid]
	if g == nil {
		g = &gpuEnergy{running: map[*gpuRun]bool{}, share: map[modelKey]*windowShare{}}
		e.gpus[uuid] = g
	}
	return g
}

func (g *gpuEnergy) of(k modelKey) *windowShare {
	s := g.share[k]
	if s == nil {
		s = &windowShare{}
		g.share[k] = s
	}
	return s
}

// Sample ends the window of every GPU in gpus, which have just been read.
func (e *Energy) Sample(gpus []GPU) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for i := range gpus {
		if gpus[i].UUID != "" { // else it is lost
			e.close(e.gpu(gpus[i].UUID), now, &gpus[i])
		}
	}
}

// close shares out the window and begins the next one.
func (e *Energy) close(g *gpuEnergy, now time.Time, reading *GPU) {
	length := now.Sub(g.at)
	if !g.at.IsZero() && length <= 0 {
		return
	}
	for r := range g.running {
		g.of(r.key).ran += now.Sub(r.begin)
		r.begin = now
	}
	if len(g.running) > 0 {
		g.busy += now.Sub(g.since)
		g.since = now
	}
	if joules, estimated, ok := g.spent(reading, length); ok {
		var ran time.Duration
		for _, s := range g.share {
			ran += s.ran
		}
		for k, s := range g.share {
			m := e.models[k]
			if m == nil {
				m = &modelEnergy{from: g.at}
				e.models[k] = m
			}
			m.to = now
			if ran > 0 {
				m.joules += joules * min(1, g.busy.Seconds()/length.Seconds()) * (s.ran.Seconds() / ran.Seconds())
			}
			m.seconds += s.ran.Seconds()
			m.runs += s.runs
			m.requests += s.requests
			m.estimated = m.estimated || estimated
		}
	}
	g.at, g.joules, g.watts = now, reading.EnergyJ, powerOf(reading)
	g.busy = 0
	clear(g.share)
}

// spent is the GPU's energy since the reading before.
func (g *gpuEnergy) spent(reading *GPU, length time.Duration) (joules float64, estimated, ok bool) {
	if g.at.IsZero() {
		return 0, false, false
	}
	// A counter that has fallen began anew with its driver.
	if a, b := g.joules, reading.EnergyJ; a != nil && b != nil && *b >= *a {
		return *b - *a, false, true
	}
	if a, b := g.watts, powerOf(reading); a != nil && b != nil {
		return (*a + *b) / 2 * length.Seconds(), true, true
	}
	return 0, false, false
}

// powerOf prefers the mean of a second, which is about how often power is read.
func powerOf(g *GPU) *float64 {
	if g.PowerAverageW != nil {
		return g.PowerAverageW
	}
	return g.PowerW
}

// Forget drops what a model version has taken.
func (e *Energy) Forget(name, version string) {
	e.mu.Lock()
	delete(e.models, modelKey{name, version})
	e.mu.Unlock()
}

// Model returns what a model version has taken up to the newest reading, nil when
// it has not run where energy can be read.
func (e *Energy) Model(name, version string) *ModelEnergy {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.models[modelKey{name, version}]
	if m == nil {
		return nil
	}
	v := &ModelEnergy{From: m.from.UTC(), To: m.to.UTC(), Joules: m.joules, Seconds: m.seconds, Requests: m.requests, Runs: m.runs, Source: "counter"}
	if m.estimated {
		v.Source = "power"
	}
	if m.requests > 0 {
		j := m.joules / float64(m.requests)
		v.PerRequest = &j
	}
	if m.runs > 0 {
		j := m.joules / float64(m.runs)
		v.PerRun = &j
	}
	return v
}
