package calib

import (
	"fmt"
	"math"
)

// MaxChannels bounds the channels of one tensor, observed or read from a file.
const MaxChannels = 1 << 20

// Value i of a tensor in row-major order belongs to channel (i/inner) %
// channels, where inner is the product of the dimensions after the channel
// axis: 1 when that is the last one.

// ChannelMax holds max|x| per channel, which SmoothQuant needs for the last
// axis of a MatMul's input. NaN and infinities are ignored. Memory: 4 bytes a
// channel.
type ChannelMax struct{ m []float32 }

// NewChannelMax returns an observer of n channels (1 to MaxChannels).
func NewChannelMax(n int) (*ChannelMax, error) {
	if err := checkChannels(n); err != nil {
		return nil, err
	}
	return &ChannelMax{make([]float32, n)}, nil
}

func checkChannels(n int) error {
	if n < 1 || n > MaxChannels {
		return fmt.Errorf("%w: %d channels, expected 1 to %d", ErrShape, n, MaxChannels)
	}
	return nil
}

var _ Observer = (*ChannelMax)(nil)

// Observe adds x, whose last axis has as many values as there are channels; an
// incomplete last row is ignored (Stats refuses it).
func (c *ChannelMax) Observe(x []float32) { c.ObserveInner(x, 1) }

// ObserveInner adds x with inner values in a row for each channel.
func (c *ChannelMax) ObserveInner(x []float32, inner int) {
	if inner == 1 {
		bestKernels().absMax(x, c.m)
		return
	}
	eachChannel(x, len(c.m), inner, func(ch int, run []float32) {
		if a := finiteMax(run); a > math.Float32bits(c.m[ch]) {
			c.m[ch] = math.Float32frombits(a)
		}
	})
}

// eachChannel calls f with each run of inner values of one channel.
func eachChannel(x []float32, channels, inner int, f func(ch int, run []float32)) {
	if inner < 1 {
		return
	}
	for ch := 0; len(x) >= inner; x = x[inner:] {
		f(ch, x[:inner])
		if ch++; ch == channels {
			ch = 0
		}
	}
}

// Merge takes the larger of each channel; o must be a *ChannelMax of as many.
func (c *ChannelMax) Merge(o Observer) error {
	p, ok := o.(*ChannelMax)
	if !ok || len(p.m) != len(c.m) {
		return fmt.Errorf("%w: per-channel maxima of %d channels and %s", ErrMerge, len(c.m), describe(o))
	}
	for i, v := range p.m {
		c.m[i] = max(c.m[i], v)
	}
	return nil
}

func describe(o Observer) string {
	switch p := o.(type) {
	case *ChannelMax:
		return fmt.Sprintf("%d", len(p.m))
	case *ChannelSum:
		return fmt.Sprintf("sums of %d", len(p.s))
	}
	return fmt.Sprintf("%T", o)
}

// Max returns max|x| by channel. The slice is the observer's own: do not write.
func (c *ChannelMax) Max() []float32 { return c.m }

// ChannelSum holds the exact sum of each channel, for bias correction. It is
// optional: 3 to 5 ns a value and 96 bytes a channel. NaN and infinities are
// ignored, and not counted in the mean.
type ChannelSum struct {
	s []exactSum
	n []uint64
}

// NewChannelSum returns an observer of n channels (1 to MaxChannels).
func NewChannelSum(n int) (*ChannelSum, error) {
	if err := checkChannels(n); err != nil {
		return nil, err
	}
	return &ChannelSum{make([]exactSum, n), make([]uint64, n)}, nil
}

var _ Observer = (*ChannelSum)(nil)

// Observe adds x, whose last axis has as many values as there are channels.
func (c *ChannelSum) Observe(x []float32) { c.ObserveInner(x, 1) }

// ObserveInner adds x with inner values in a row for each channel.
func (c *ChannelSum) ObserveInner(x []float32, inner int) {
	if inner == 1 {
		for ; len(x) >= len(c.s); x = x[len(c.s):] {
			for i, v := range x[:len(c.s)] {
				if math.Float32bits(v)&absMask < infBits {
					c.s[i].add(v)
					c.n[i]++
				}
			}
		}
		return
	}
	eachChannel(x, len(c.s), inner, func(ch int, run []float32) {
		s := &c.s[ch]
		for _, v := range run {
			if math.Float32bits(v)&absMask < infBits {
				s.add(v)
				c.n[ch]++
			}
		}
	})
}

// Merge adds the sums of o, a *ChannelSum of as many channels.
func (c *ChannelSum) Merge(o Observer) error {
	p, ok := o.(*ChannelSum)
	if !ok || len(p.s) != len(c.s) {
		return fmt.Errorf("%w: sums of %d channels and %s", ErrMerge, len(c.s), describe(o))
	}
	for i := range c.s {
		c.s[i].merge(&p.s[i])
		c.n[i] += p.n[i]
	}
	return nil
}

// Mean returns the mean by channel, exact before its one rounding; 0 for a
// channel without a finite value.
func (c *ChannelSum) Mean() []float64 {
	m := make([]float64, len(c.s))
	for i := range m {
		m[i] = c.s[i].over(c.n[i])
	}
	return m
}
