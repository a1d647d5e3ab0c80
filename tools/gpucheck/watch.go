package main

import (
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// reading is what NVML said of the GPU while a step ran.
type reading struct {
	Samples         int      `json:"samples"`
	PowerMeanW      float64  `json:"power_mean_w"`
	PowerMaxW       float64  `json:"power_max_w"`
	EnergyJ         *float64 `json:"energy_j"` // by the board's counter
	TemperatureMaxC float64  `json:"temperature_max_c"`
	ClockMinMHz     float64  `json:"clock_sm_min_mhz"`
	ClockMaxMHz     float64  `json:"clock_sm_max_mhz"`
	Throttle        []string `json:"throttle_reasons"` // whatever was seen once
}

// watcher samples until stop.
type watcher struct {
	end  chan struct{}
	done chan *reading
}

const sampleEvery = 100 * time.Millisecond

func watchGPU(sensors *telemetry.NVML, uuid string) watcher {
	w := watcher{end: make(chan struct{}), done: make(chan *reading, 1)}
	go func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		var r reading
		var first *float64
		for {
			if g := one(sensors, uuid); g != nil {
				r.add(g)
				if first == nil {
					first = g.EnergyJ
				}
				if first != nil && g.EnergyJ != nil {
					joules := *g.EnergyJ - *first
					r.EnergyJ = &joules
				}
			}
			select {
			case <-tick.C:
			case <-w.end:
				w.done <- &r
				return
			}
		}
	}()
	return w
}

// one reads the GPU of that UUID, or the only one.
func one(sensors *telemetry.NVML, uuid string) *telemetry.GPU {
	all, err := sensors.Read()
	if err != nil {
		return nil
	}
	for i := range all {
		if all[i].UUID == uuid || len(all) == 1 {
			return &all[i]
		}
	}
	return nil
}

func (r *reading) add(g *telemetry.GPU) {
	power := value(g.PowerW)
	r.PowerMeanW = (r.PowerMeanW*float64(r.Samples) + power) / float64(r.Samples+1)
	r.PowerMaxW = max(r.PowerMaxW, power)
	r.TemperatureMaxC = max(r.TemperatureMaxC, value(g.TemperatureC))
	clock := value(g.ClockSMMHz)
	if r.Samples == 0 || clock < r.ClockMinMHz {
		r.ClockMinMHz = clock
	}
	r.ClockMaxMHz = max(r.ClockMaxMHz, clock)
	for _, t := range g.Throttle {
		known := false
		for _, k := range r.Throttle {
			known = known || k == t
		}
		if !known {
			r.Throttle = append(r.Throttle, t)
		}
	}
	r.Samples++
}

func value(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// stop ends the watching; nil where there was none.
func (w watcher) stop() *reading {
	if w.end == nil {
		return nil
	}
	close(w.end)
	r := <-w.done
	if r.Samples == 0 {
		return nil
	}
	return r
}
