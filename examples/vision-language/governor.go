package main

import "fmt"

// budget is what the device may take.
type budget struct {
	LatencyMS float64 `json:"latency_ms"` // p50 of a frame
	Watts     float64 `json:"watts"`
	Celsius   float64 `json:"celsius"`
}

// reading is what a moment took.
type reading struct {
	LatencyMS float64 `json:"latency_ms"`
	Watts     float64 `json:"watts"`
	Celsius   float64 `json:"celsius"`
}

// over says what is past the budget, "" for nothing.
func (b budget) over(r reading) string {
	switch {
	case r.Celsius > b.Celsius:
		return fmt.Sprintf("%.1f degrees, %.0f allowed", r.Celsius, b.Celsius)
	case r.Watts > b.Watts:
		return fmt.Sprintf("%.1f W, %.1f allowed", r.Watts, b.Watts)
	case r.LatencyMS > b.LatencyMS:
		return fmt.Sprintf("%.1f ms, %.0f allowed", r.LatencyMS, b.LatencyMS)
	}
	return ""
}

// within reports whether everything stays below this share of the budget.
func (b budget) within(r reading, share float64) bool {
	return r.LatencyMS < share*b.LatencyMS && r.Watts < share*b.Watts && r.Celsius < share*b.Celsius
}

// setting is one way to do the work.
type setting struct {
	Name      string  `json:"name"`
	Quantized bool    `json:"quantized"`
	Rate      float64 `json:"rate"` // frames a second
}

const (
	// settleTicks pass after a change before the next one: what it does must show first.
	settleTicks = 4
	// calmTicks within calmShare of the budget allow one step up.
	calmTicks = 10
	calmShare = 0.9
	// A step up that had to be taken back makes the next wait longer, up to this factor.
	maxPatience = 16
)

// governor keeps a budget: it goes down the ladder, whose first setting is the
// best and the most costly, as soon as something is past the budget, and up again
// when it has been calm for a while. Each step up that had to be taken back
// doubles the wait before the next, so that it does not swing.
type governor struct {
	budget   budget
	ladder   []setting
	at       int
	since    int // ticks since the last change
	calm     int
	patience int // 1, 2, 4, ...
	rose     bool
}

func newGovernor(b budget, ladder []setting) *governor {
	return &governor{budget: b, ladder: ladder, patience: 1, since: settleTicks}
}

func (g *governor) now() setting { return g.ladder[g.at] }

// next takes one reading and returns why the setting changed, "" where it did not.
func (g *governor) next(r reading) string {
	g.since++
	why := g.budget.over(r)
	switch {
	case why != "":
		g.calm = 0
		if g.since <= settleTicks || g.at == len(g.ladder)-1 {
			return ""
		}
		if g.rose {
			g.patience = min(2*g.patience, maxPatience)
		}
		g.move(g.at+1, false)
		return why
	case g.budget.within(r, calmShare):
		g.calm++
	default:
		g.calm = 0
	}
	if g.at > 0 && g.calm >= calmTicks*g.patience {
		g.move(g.at-1, true)
		return fmt.Sprintf("within %.0f %% of the budget for a while", 100*calmShare)
	}
	if g.rose && g.calm >= calmTicks {
		g.rose, g.patience = false, 1 // the step up held
	}
	return ""
}

func (g *governor) move(to int, up bool) { g.at, g.since, g.calm, g.rose = to, 0, 0, up }
