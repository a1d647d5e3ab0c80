package batch

import (
	"math"
	"time"
)

// saving learns what joining requests is worth: how much shorter one run of two
// is than two runs, as a share of one. It is told of every run and fits a + b
// size to the times, as cost does, but after dividing them by how fast the
// machine is at the moment: otherwise one that got slower since requests were
// last joined would make every join look like a gain, and one long batch on
// such an error makes all that wait miss their percentile.
//
// Runs scatter in proportion to how long they take, so that the line is fitted
// to time by size over 1/size, in which a is the slope.
type saving struct {
	n, u, uu, z, uz float64 // decayed sums of weights, 1/size, time/size at speed 1
	dev             float64 // decayed mean of |measured - fitted| over fitted
	speed           float64 // what runs take at present, in what the line says
	largest         float64 // size measured
	pause, since    int     // runs between two trials; runs since the last
	joins           bool    // it is known to pay
}

const (
	// minSaving is the share of its own time that joining a batch must save a
	// request: less is not worth making the others in the batch wait for it.
	// Where it is known to pay, it does so until less than half is left.
	minSaving = 0.10
	// maxGrowth is how much larger than any before a joined run may be: the line
	// ends where caches overflow, and is not to be followed far beyond what was
	// measured.
	maxGrowth = 2
	// savingDecay gives a run half its weight after 346 more: what a model gains
	// from joining hardly changes, the speed of the machine is taken out.
	savingDecay = 0.998
	// speedStep is how far one run moves the speed towards its own, and maxOff
	// bounds what one run that was disturbed can do.
	speedStep, maxOff = 0.3, 1.5
	// minDev is the least scatter of runs that is believed, offBy how wrong a
	// single run of two may be beyond it, since the speed may just have changed.
	minDev, offBy = 0.02, 0.3
	// firstPause and lastPause bound how many runs lie between two that are
	// joined to learn whether it pays; each trial doubles the pause. The first of
	// two waits for both, so trials are kept to fewer than one in a hundred.
	firstPause, lastPause = 2, 256
)

// observe takes in a run of that padded size; joined says whether it was of several requests.
func (v *saving) observe(size float64, joined bool, d time.Duration) {
	if v.since++; joined {
		v.since, v.pause = 0, min(max(2*v.pause, firstPause), lastPause)
	}
	if v.n == 0 {
		v.speed = 1
	}
	y := d.Seconds() / v.speed
	if a, b := v.line(); v.n > 0 && a+b*size > 0 {
		r := min(max(y/(a+b*size), 1/maxOff), maxOff)
		y = r * (a + b*size)
		v.dev += (1 - costDecay) * (math.Abs(r-1) - v.dev)
		v.speed *= math.Pow(r, speedStep)
	}
	u, z := 1/size, y/size
	v.n = v.n*savingDecay + 1
	v.u = v.u*savingDecay + u
	v.uu = v.uu*savingDecay + u*u
	v.z = v.z*savingDecay + z
	v.uz = v.uz*savingDecay + u*z
	v.largest = max(v.largest, size)
}

// spread is the sum of squared deviations of 1/size from its mean.
func (v *saving) spread() float64 {
	return max(v.uu-v.u*v.u/v.n, 1e-9*v.uu)
}

// line returns intercept and slope over size at speed 1.
func (v *saving) line() (a, b float64) {
	a = (v.uz - v.u*v.z/v.n) / v.spread()
	if b = (v.z - a*v.u) / v.n; b < 0 {
		return v.uz / v.uu, 0
	}
	return a, b
}

// verdict is what is known about joining.
type verdict int

const (
	no verdict = iota
	unknown
	yes
)

// pays judges whether a request that takes own by itself should join a group of
// size apart, so that together they are of size with. unknown is worth a trial.
func (v *saving) pays(apart, own, with float64) verdict {
	if v.n == 0 {
		return unknown
	}
	a, b := v.line()
	alone := a + b*own
	if alone <= 0 {
		return no
	}
	share, most := (a+b*(apart+own-with))/alone, a/alone // most: without padding
	// Two standard errors, a standard deviation being 1.25 mean ones; and what
	// runs as telling as one of two of this size against one may be off by.
	e := v.spread() * own * own
	doubt := 2.5*max(v.dev, minDev)/math.Sqrt(e) + offBy/(4*e)
	switch {
	case most-doubt >= minSaving:
		v.joins = true
	case most < minSaving/2:
		v.joins = false
	}
	switch {
	case v.joins && share >= minSaving/2:
		return yes
	case !v.joins && share+doubt >= minSaving && v.since >= v.pause:
		return unknown
	}
	return no
}
