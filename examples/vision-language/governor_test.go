package main

import (
	"math"
	"strings"
	"testing"
)

// device answers each setting with what it draws, as the board of the flight does.
type device struct {
	board
	air float64
}

// run lets g govern for n ticks of half a second and returns the settings it chose.
func (d *device) run(g *governor, n int) (at []int, actions []string) {
	for range n {
		s := g.now()
		busy := topShare * s.Rate / 100 // FP32 is busy for topShare at 100 frames a second
		if s.Quantized {
			busy /= 1.5
		}
		w, c := d.step(busy, .5, d.air)
		if why := g.next(reading{5, w, c}); why != "" {
			actions = append(actions, why)
		}
		at = append(at, g.at)
	}
	return at, actions
}

func ladder() []setting {
	return []setting{{"FP32", false, 100}, {"INT8", true, 100}, {"half", true, 50}, {"quarter", true, 25}}
}

// TestGovernor: it leaves what draws too much, gives up frames in hot air and takes
// them back in cool air.
func TestGovernor(t *testing.T) {
	g := newGovernor(budget{20, 6.9, 70}, ladder())
	d := &device{board{40}, 28}
	at, actions := d.run(g, 20)
	// FP32 draws 8.4 W, INT8 6.3 W, which leaves 65.8 degrees in cool air.
	if at[0] != 1 || at[19] != 1 || len(actions) != 1 || !strings.Contains(actions[0], "8.4 W, 6.9 allowed") {
		t.Errorf("cool air: settings %v, %v", at, actions)
	}
	d.air = 40 // INT8 would reach 77.6 degrees, half the frames 64.8
	at, actions = d.run(g, 40)
	if at[39] != 2 || len(actions) != 1 || !strings.Contains(actions[0], "degrees, 70 allowed") {
		t.Errorf("hot air: settings %v, %v", at, actions)
	}
	d.air = 20 // INT8 reaches 57.6 degrees
	at, _ = d.run(g, 40)
	if at[39] != 1 {
		t.Errorf("cool again: settings %v", at)
	}
}

// TestGovernorDoesNotSwing: a better setting that never fits is tried less and less.
func TestGovernorDoesNotSwing(t *testing.T) {
	g := newGovernor(budget{20, 6.5, 1000}, ladder()) // INT8 at 6.3 W is within, but not by a tenth; half is calm
	d := &device{board{40}, 28}
	d.run(g, 20)
	g.budget.Watts = 6 // now INT8 is past it
	tries := func(n int) (ups int) {
		at, _ := d.run(g, n)
		for i := 1; i < len(at); i++ {
			if at[i] < at[i-1] {
				ups++
			}
		}
		return ups
	}
	early, late := tries(200), tries(200)
	if early == 0 || late >= early || late > 3 {
		t.Errorf("%d tries in the first 200 ticks, %d in the next", early, late)
	}
}

// TestGovernorAtTheEnds: nothing below the last setting, nothing above the first.
func TestGovernorAtTheEnds(t *testing.T) {
	g := newGovernor(budget{1, 1, 1}, ladder())
	for range 100 {
		g.next(reading{100, 100, 100})
	}
	if g.at != 3 {
		t.Errorf("setting %d when nothing is within the budget", g.at)
	}
	g = newGovernor(budget{10, 10, 100}, ladder())
	for range 100 {
		if why := g.next(reading{1, 1, 1}); why != "" {
			t.Fatal(why)
		}
	}
	if g.at != 0 {
		t.Errorf("setting %d when everything is", g.at)
	}
	for name, r := range map[string]reading{"ms": {11, 1, 1}, "W": {1, 11, 1}, "degrees": {1, 1, 101}} {
		if why := g.budget.over(r); !strings.Contains(why, " "+name+",") {
			t.Errorf("over %s: %q", name, why)
		}
	}
}

// TestBoard: the temperature ends where heat in and out are equal, and power
// follows the busy share.
func TestBoard(t *testing.T) {
	b := board{20}
	var w, c float64
	for range 200 {
		w, c = b.step(.5, 1, 30)
	}
	if w != 6 || math.Abs(c-66) > 1e-6 {
		t.Errorf("%g W, %g degrees, want 6 and 66", w, c)
	}
	if w, _ := b.step(7, 1, 30); w != busyWatts {
		t.Errorf("%g W at most %g", w, busyWatts)
	}
}
