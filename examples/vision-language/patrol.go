package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
)

// The device that stands in where this machine has no sensors: a small board with
// passive cooling. What it draws depends on the share of the time that a frame was
// being answered, which is measured; its temperature follows as in a circuit of one
// resistor and one capacitor.
const (
	idleWatts, busyWatts = 2.0, 10.0
	degreesPerWatt       = 6.0
	// thermalSeconds is short, so that a flight of a minute shows what takes a real board some.
	thermalSeconds       = 5.0
	coolAir, hotAir      = 28.0, 46.0
	hotFrom, hotTo       = 0.4, 0.65 // of the flight: hovering over hot ground
	topShare             = 0.8       // of the time, that FP32 takes at the highest rate
	patrolW, patrolC     = 7.5, 78.0
	latencyBudgetFactors = 4 // times FP32's own p50: the machine is not the drone's
)

// air is the temperature around the device at a share of the flight.
func air(at float64) float64 {
	if at < hotFrom || at > hotTo {
		return coolAir
	}
	return hotAir
}

// board is the simulated device.
type board struct{ celsius float64 }

// step passes seconds at a busy share of the time and returns power and temperature.
func (b *board) step(busy, seconds, air float64) (watts, celsius float64) {
	watts = idleWatts + (busyWatts-idleWatts)*min(max(busy, 0), 1)
	goal := air + degreesPerWatt*watts
	b.celsius = goal + (b.celsius-goal)*math.Exp(-seconds/thermalSeconds)
	return watts, b.celsius
}

// tick is one entry of the flight's log.
type tick struct {
	Seconds float64 `json:"seconds"` // since the start
	Setting setting `json:"setting"`
	Frames  int     `json:"frames"`
	Busy    float64 `json:"busy"`
	reading
	Action string `json:"action,omitempty"`
}

// patrol is the log of the flight.
type patrol struct {
	Budget budget    `json:"budget"`
	Ladder []setting `json:"ladder"`
	Ticks  []tick    `json:"ticks"`
	// Where the figures are from: "measured", or "simulated" with the reason.
	Power       string  `json:"power_from"`
	Temperature string  `json:"temperature_from"`
	Agree       int     `json:"right"` // frames whose class was right
	Frames      int     `json:"frames"`
	Load        float64 `json:"load1"`
}

// sensors are those of the server's telemetry; nil is what it cannot read.
type sensors struct {
	CPU struct {
		PowerW       *float64          `json:"power_w"`
		TemperatureC *float64          `json:"temperature_c"`
		Reasons      map[string]string `json:"reasons"`
	} `json:"cpu"`
}

// fly looks at one frame after the other, reads power and temperature each tick,
// and lets the governor choose precision and rate.
func (e *example) fly(ctx context.Context, o *outcome) (p patrol, err error) {
	p.Load = harness.LoadAverage()
	top := topShare * 1000 / o.Latency.FP32.P50
	p.Budget = budget{latencyBudgetFactors * o.Latency.FP32.P50, patrolW, patrolC}
	p.Ladder = []setting{{"FP32", false, top}, {"INT8", true, top}, {"INT8, half the frames", true, top / 2}, {"INT8, a quarter", true, top / 4}}
	var sense sensors
	if err := e.api.Do(ctx, http.MethodGet, "/telemetry", "", nil, &sense); err != nil {
		return p, err
	}
	from := func(v *float64, field string) string {
		if v != nil {
			return "measured"
		}
		return "simulated: " + sense.CPU.Reasons[field]
	}
	p.Power, p.Temperature = from(sense.CPU.PowerW, "power_w"), from(sense.CPU.TemperatureC, "temperature_c")
	g, b := newGovernor(p.Budget, p.Ladder), board{celsius: air(0) + degreesPerWatt*idleWatts}
	ask := [2]func(i int) (int, error){e.frames(o.Float), e.frames(o.Job.Version)}
	frame := 0
	for n := range e.ticks {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		s := g.now()
		t := tick{Seconds: float64(n) * e.tick.Seconds(), Setting: s}
		var took []time.Duration
		begin, which := time.Now(), 0
		if s.Quantized {
			which = 1
		}
		every := time.Duration(float64(time.Second) / s.Rate)
		for due := begin; due.Before(begin.Add(e.tick)); due = due.Add(every) {
			time.Sleep(time.Until(due))
			asked := time.Now()
			class, err := ask[which](frame)
			if err != nil {
				return p, err
			}
			took = append(took, time.Since(asked))
			if class == int(e.data.test.labels[frame%e.data.test.n()]) {
				p.Agree++
			}
			frame++
			if time.Since(begin) > e.tick {
				break // the device cannot keep up: the frames that were due meanwhile are dropped
			}
		}
		time.Sleep(time.Until(begin.Add(e.tick)))
		length := time.Since(begin).Seconds()
		var busy time.Duration
		for _, d := range took {
			busy += d
		}
		slices.Sort(took)
		t.Frames, t.Busy, t.LatencyMS = len(took), min(busy.Seconds()/length, 1), harness.Milliseconds(harness.Quantile(took, .5))
		t.Watts, t.Celsius = b.step(t.Busy, length, air(float64(n)/float64(e.ticks)))
		if p.Power == "measured" || p.Temperature == "measured" {
			sense = sensors{}
			if err := e.api.Do(ctx, http.MethodGet, "/telemetry", "", nil, &sense); err != nil {
				return p, err
			}
			if v := sense.CPU.PowerW; v != nil && p.Power == "measured" {
				t.Watts = *v
			}
			if v := sense.CPU.TemperatureC; v != nil && p.Temperature == "measured" {
				t.Celsius = *v
			}
		}
		if why := g.next(t.reading); why != "" {
			t.Action = fmt.Sprintf("%s -> %s: %s", s.Name, g.now().Name, why)
			fmt.Fprintf(e.out, "    %5.1f s  %s\n", t.Seconds, t.Action)
		}
		p.Ticks = append(p.Ticks, t)
	}
	p.Frames = frame
	return p, nil
}

// frames returns a function that asks a version about one test image and gives
// the class.
func (e *example) frames(version string) func(i int) (int, error) {
	return func(i int) (int, error) {
		i %= e.data.test.n()
		a, err := e.ask(version, e.data.test, i, i+1)
		if err != nil {
			return 0, err
		}
		return best(a.logits), nil
	}
}
