// Package telemetry says how the models and the machine are doing: latency by
// phase against each model's target, the energy that each model took, and power,
// temperature, clocks, memory and errors of GPU and CPU. What cannot be read is
// null, with the reason beside it, and never 0.
package telemetry

import (
	"cmp"
	"context"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// sampleEvery is how often the sensors are read: NVML's own averages cover one
// second.
const sampleEvery = time.Second

// Options of a Collector; the zero value reads this machine.
type Options struct {
	// Sys and Proc stand for /sys and /proc; nil means the real ones.
	Sys, Proc fs.FS
	// GPU reads the GPUs; nil means NVML.
	GPU GPUReader
	// Energy attributes the GPUs' energy to models, CPUEnergy that of the processor
	// packages; nil means a new one.
	Energy, CPUEnergy *Energy
}

// GPUReader reads every GPU of the machine. It is called from one goroutine at
// a time.
type GPUReader interface {
	// Open finds the driver. Its error is the reason that clients see.
	Open() error
	// Read returns the state of every GPU.
	Read() ([]GPU, error)
	Close() error
}

// Collector gathers telemetry of one process.
type Collector struct {
	opts  Options
	start time.Time

	mu     sync.RWMutex // guards models
	models map[modelKey]*Latency

	swaps swaps

	sample  sync.Mutex // guards what follows, and serialises reading sensors
	taken   time.Time
	gpus    []GPU
	gpuErr  error
	gpuOpen bool
	gpuNext time.Time // when to look for a driver again
	cpu     CPU
	rapl    raplState
	process Process
}

type modelKey struct{ name, version string }

// New returns a Collector. Run keeps its sensors fresh; without it Snapshot
// reads them itself.
func New(o Options) *Collector {
	if o.Sys == nil {
		o.Sys = os.DirFS("/sys")
	}
	if o.Proc == nil {
		o.Proc = os.DirFS("/proc")
	}
	if o.GPU == nil {
		o.GPU = NewNVML(nil)
	}
	if o.Energy == nil {
		o.Energy = NewEnergy(nil)
	}
	if o.CPUEnergy == nil {
		o.CPUEnergy = NewEnergy(nil)
	}
	return &Collector{opts: o, start: time.Now(), models: map[modelKey]*Latency{}, swaps: swaps{running: map[string]*swapping{}}}
}

// Run reads the sensors every second until ctx ends, then lets go of the GPU
// driver.
func (c *Collector) Run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		c.Sample(time.Now())
		select {
		case <-ctx.Done():
			c.sample.Lock()
			if c.gpuOpen {
				_ = c.opts.GPU.Close()
				c.gpuOpen = false
			}
			c.sample.Unlock()
			return
		case <-tick.C:
		}
	}
}

// Model returns the latency recorder of a model version, the same one for the
// same names. A positive target replaces the one before.
func (c *Collector) Model(name, version string, target time.Duration) *Latency {
	k := modelKey{name, version}
	c.mu.RLock()
	l := c.models[k]
	c.mu.RUnlock()
	if l == nil {
		c.mu.Lock()
		if l = c.models[k]; l == nil {
			l = NewLatency(name, version, target)
			c.models[k] = l
		}
		c.mu.Unlock()
	}
	if target > 0 && l.Target() != target {
		l.SetTarget(target)
	}
	return l
}

// Forget drops a model version's recorder.
func (c *Collector) Forget(name, version string) {
	c.mu.Lock()
	delete(c.models, modelKey{name, version})
	c.mu.Unlock()
	c.opts.Energy.Forget(name, version)
	c.opts.CPUEnergy.Forget(name, version)
}

// Energy is told by whoever runs models on a GPU.
func (c *Collector) Energy() *Energy { return c.opts.Energy }

// CPUEnergy is told by whoever runs models on the CPU.
func (c *Collector) CPUEnergy() *Energy { return c.opts.CPUEnergy }

// latencies returns all recorders, sorted by name and version.
func (c *Collector) latencies() []*Latency {
	c.mu.RLock()
	ls := make([]*Latency, 0, len(c.models))
	for _, l := range c.models {
		ls = append(ls, l)
	}
	c.mu.RUnlock()
	slices.SortFunc(ls, func(a, b *Latency) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(len(a.version), len(b.version)), cmp.Compare(a.version, b.version))
	})
	return ls
}

// Snapshot is the body of GET /telemetry.
type Snapshot struct {
	Time          time.Time      `json:"time"`
	UptimeSeconds float64        `json:"uptime_seconds"`
	Models        []ModelLatency `json:"models"`
	Engines       []ModelEngine  `json:"engines,omitempty" doc:"which engine answers for each loaded version; absent where there is only ONNX Runtime on the CPU"`
	Swaps         []Swap         `json:"swaps,omitempty" doc:"the last changes of a model's default version, and how its requests fared through them"`
	ModelMemory   *ModelMemory   `json:"model_memory,omitempty" doc:"what the loaded models occupy of the memory that they share"`
	GPU           []GPU          `json:"gpu" null:"true" doc:"one entry per GPU; null when there is none, with reasons.gpu"`
	CPU           CPU            `json:"cpu"`
	Process       Process        `json:"process"`
	Reasons       Reasons        `json:"reasons,omitempty" doc:"why a field is null, by its name"`
}

// ModelMemory is the memory that models share.
type ModelMemory struct {
	BudgetBytes int64 `json:"budget_bytes" doc:"of all models together; 0 is unbounded"`
	UsedBytes   int64 `json:"used_bytes" doc:"charged for versions that are loaded, being loaded or being unloaded"`
	Loads       int64 `json:"loads" doc:"versions loaded since the start"`
	Evictions   int64 `json:"evictions" doc:"versions unloaded to make room for others"`
}

// ModelEngine is which engine answers for a version, and why.
type ModelEngine struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// At is the placement.
	At engine.Placement `json:"at"`
}

// Reasons says why fields of the object it stands in are null, by JSON name.
type Reasons map[string]string

func (r *Reasons) set(field, reason string) {
	if *r == nil {
		*r = Reasons{}
	}
	(*r)[field] = reason
}

// gpuRetry is how long a machine without a driver is left alone.
const gpuRetry = 30 * time.Second

// Sample reads the sensors now.
func (c *Collector) Sample(now time.Time) {
	c.sample.Lock()
	defer c.sample.Unlock()
	c.sampleLocked(now)
}

func (c *Collector) sampleLocked(now time.Time) {
	if !c.gpuOpen && !now.Before(c.gpuNext) {
		if c.gpuErr = c.opts.GPU.Open(); c.gpuErr == nil {
			c.gpuOpen = true
		} else {
			c.gpuNext = now.Add(gpuRetry)
		}
	}
	c.gpus = nil
	if c.gpuOpen {
		c.gpus, c.gpuErr = c.opts.GPU.Read()
		c.opts.Energy.Sample(c.gpus)
	}
	c.cpu = readCPU(c.opts.Sys, c.opts.Proc, now, &c.rapl)
	joules := c.cpu.EnergyJ
	if c.cpu.PowerW == nil { // a part is missing since the reading before
		joules = nil
	}
	c.opts.CPUEnergy.Sample([]GPU{{UUID: Packages, EnergyJ: joules}})
	c.process = readProcess(c.opts.Proc)
	c.taken = now

	var throttle uint64
	for i := range c.gpus {
		throttle |= c.gpus[i].throttle
	}
	if throttle &= throttleSlow; throttle != 0 {
		for _, l := range c.latencies() {
			l.throttled(now, throttle)
		}
	}
}

// Snapshot summarises latencies and the newest sensor readings, which are at
// most twice sampleEvery old.
func (c *Collector) Snapshot() Snapshot {
	now := time.Now()
	s := Snapshot{Time: now.UTC(), UptimeSeconds: now.Sub(c.start).Seconds(), Models: []ModelLatency{}}
	s.Swaps = c.Swaps()
	c.sample.Lock()
	defer c.sample.Unlock()
	c.freshen(now)
	for _, l := range c.latencies() {
		m := l.Snapshot(now)
		m.Energy = c.opts.Energy.Model(l.name, l.version)
		if m.CPUEnergy = c.opts.CPUEnergy.Model(l.name, l.version); m.CPUEnergy == nil {
			m.Reasons.set("cpu_energy", cmp.Or(c.cpu.Reasons["energy_j"], "it has not run on the CPU between two readings of the energy counters"))
		}
		s.Models = append(s.Models, m)
	}
	s.GPU, s.CPU, s.Process = slices.Clone(c.gpus), c.cpu, c.process
	if s.GPU == nil {
		reason := "no NVIDIA GPU on this machine"
		if c.gpuErr != nil {
			reason = c.gpuErr.Error()
		}
		s.Reasons.set("gpu", reason)
	}
	return s
}

// Sensors returns the newest readings of the GPUs and the processors.
func (c *Collector) Sensors() ([]GPU, CPU) {
	c.sample.Lock()
	defer c.sample.Unlock()
	c.freshen(time.Now())
	return slices.Clone(c.gpus), c.cpu
}

// freshen samples when nothing has for a while. c.sample is held.
func (c *Collector) freshen(now time.Time) {
	if now.Sub(c.taken) > 2*sampleEvery {
		c.sampleLocked(now)
	}
}
