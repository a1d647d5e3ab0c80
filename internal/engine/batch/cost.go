package batch

import (
	"math"
	"time"
)

// cost predicts how long a run takes from its padded size: a line fitted by
// least squares to what was measured, recent runs counting more. The intercept
// is what a run costs by itself, and so what running two requests as one saves.
type cost struct {
	n, x, xx, y, xy float64 // decayed sums of weights, sizes, seconds
	dev             float64 // decayed mean of |measured - predicted|
}

const (
	// costDecay gives a run half its weight after 34 more.
	costDecay = 0.98
	// costSpread is the relative spread of sizes (variance over squared mean)
	// from which on intercept and slope can be told apart.
	costSpread = 1e-3
	// maxLate is the largest allowance for deviations, as a share.
	maxLate = 0.25
)

func (c *cost) observe(size float64, d time.Duration) {
	s := d.Seconds()
	if c.n > 0 {
		e := c.predict(size)
		c.dev += (1 - costDecay) * (math.Abs(s-e.Seconds()) - c.dev)
	}
	c.n = c.n*costDecay + 1
	c.x = c.x*costDecay + size
	c.xx = c.xx*costDecay + size*size
	c.y = c.y*costDecay + s
	c.xy = c.xy*costDecay + size*s
}

// line returns intercept and slope in seconds. Before runs of different sizes have
// been seen it goes through the origin.
func (c *cost) line() (a, b float64) {
	if c.n == 0 {
		return 0, 0
	}
	mx, my := c.x/c.n, c.y/c.n
	v := c.xx/c.n - mx*mx
	if v <= costSpread*mx*mx {
		return 0, my / math.Max(mx, 1)
	}
	b = math.Max((c.xy/c.n-mx*my)/v, 0)
	if a = my - b*mx; a < 0 {
		return 0, my / mx
	}
	return a, b
}

// predict returns the expected duration of a run of that size, 0 before the first.
func (c *cost) predict(size float64) time.Duration {
	a, b := c.line()
	return time.Duration((a + b*size) * float64(time.Second))
}

// late is a duration that few runs exceed: two mean deviations more than
// predicted, but not more than maxLate of it, which a machine that was busy
// for a while must not leave behind.
func (c *cost) late(size float64) time.Duration {
	d := c.predict(size)
	return d + min(time.Duration(2*c.dev*float64(time.Second)), time.Duration(maxLate*float64(d)))
}

// corrected takes in a run that was tried although it was predicted to end too
// late. Nothing else ran meanwhile, so it counts as much as all before.
func (c *cost) corrected(size float64, d time.Duration) {
	if e := c.predict(size); e > 0 {
		f := (1 + d.Seconds()/e.Seconds()) / 2
		c.y *= f
		c.xy *= f
		c.dev *= f
	}
}
