package calib

import (
	"fmt"
	"math"
)

// LinearBins and LogCells are the sizes of the arrays of Counts, for each sign.
const (
	LinearBins = sideBins
	LogCells   = octaves << cellBits
)

// Counts are a histogram as plain arrays: what a device counts (fb_histogram of
// cuda/fewbit_cuda.h) in the cells of Histogram.
type Counts struct {
	Finite, Zeros, NaN uint64    // Finite includes Zeros
	Inf                [2]uint64 // +Inf, -Inf
	Lo, Hi             float32   // of the finite values; nothing where there is none
	// Exp is k of the linear bins' width 2^k. It follows from Lo and Hi.
	Exp int
	// Linear and Cells are by sign, positive first: LinearBins counts by
	// |x| / 2^k, of which the first 128 are 0, and LogCells counts of smaller |x|
	// by the upper 16 bits of the float.
	Linear, Cells [2][]uint64
}

// AddCounts adds what a device has counted. Counts that are not those of a
// histogram give ErrMerge and change nothing.
func (h *Histogram) AddCounts(c *Counts) error {
	p := Histogram{finite: c.Finite, zeros: c.Zeros, nan: c.NaN, inf: c.Inf}
	if c.Finite > 0 {
		p.lo, p.hi = c.Lo+0, c.Hi+0
		if !(p.lo <= p.hi) || math.Float32bits(p.AbsMax()) >= infBits || c.Exp != expFor(math.Float32bits(p.AbsMax())) {
			return fmt.Errorf("%w: values from %v to %v in bins of 2^%d", ErrMerge, c.Lo, c.Hi, c.Exp)
		}
		p.state = stateFor(c.Exp)
	} else {
		p.state = stateFor(minExp)
	}
	total := c.Zeros
	for i := range p.sides {
		if len(c.Linear[i]) != LinearBins || len(c.Cells[i]) != LogCells {
			return fmt.Errorf("%w: %d linear bins and %d cells, expected %d and %d", ErrMerge, len(c.Linear[i]), len(c.Cells[i]), LinearBins, LogCells)
		}
		for j, n := range c.Linear[i] {
			if total += n; n == 0 {
				continue
			}
			if j < firstLin {
				return fmt.Errorf("%w: linear bin %d is not empty", ErrMerge, j)
			}
			p.sides[i].linear()[j] = n
		}
		for code, n := range c.Cells[i] {
			if total += n; n == 0 {
				continue
			}
			if code >= int(p.state.thr>>cellSh) {
				return fmt.Errorf("%w: log cell %d is not empty, the linear bins begin below", ErrMerge, code)
			}
			p.sides[i].octave(code >> cellBits)[code&(CellsPerOctave-1)] = n
		}
	}
	if total != c.Finite {
		return fmt.Errorf("%w: the cells hold %d values, expected %d", ErrMerge, total, c.Finite)
	}
	return h.Merge(&p)
}

// Partial is what somebody else, a device, observed of one tensor.
type Partial struct {
	Calls     uint64 // tensors observed
	Histogram *Histogram
	// ChannelMax is max|x| by channel, nil where nothing was seen.
	ChannelMax []float32
	// Samples are the smallest and largest value of each tensor that had a finite
	// one, in order: what the moving average follows.
	Samples []Range
}

// Add adds p, which must have what Spec asks for, except exact means: no device
// collects them (ErrMerge).
func (s *Stats) Add(p Partial) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.spec.ChannelMean:
		return fmt.Errorf("%w: exact means by channel are collected from the values alone", ErrMerge)
	case p.Histogram == nil:
		return fmt.Errorf("%w: there is no histogram", ErrMerge)
	case p.ChannelMax != nil && !s.spec.ChannelMax:
		return fmt.Errorf("%w: maxima by channel were not asked for", ErrMerge)
	case p.ChannelMax != nil && s.max != nil && len(s.max.m) != len(p.ChannelMax):
		return fmt.Errorf("%w: %d channels, earlier samples had %d", ErrShape, len(p.ChannelMax), len(s.max.m))
	}
	if p.ChannelMax != nil {
		if s.max == nil {
			m, err := NewChannelMax(len(p.ChannelMax))
			if err != nil {
				return err
			}
			s.max = m
		}
		if err := s.max.Merge(&ChannelMax{p.ChannelMax}); err != nil {
			return err
		}
	}
	if s.moving != nil {
		for _, r := range p.Samples {
			s.moving.add(r)
		}
	}
	s.calls += p.Calls
	s.found = nil
	return s.hist.Merge(p.Histogram)
}

// Found notes the ranges that a method chooses for tensors, where a device has
// searched them in the very same statistics. Threshold then returns them, until
// more is observed. Tensors that are not collected are ignored.
func (c *Collector) Found(method string, scheme Scheme, ranges map[string]Range) {
	for name, r := range ranges {
		if s := c.stats[name]; s != nil {
			s.find(method, scheme, r)
		}
	}
}

// Add adds what a device observed of the samples ids. Tensors that are not
// collected are ignored. On an error the statistics hold a part of it and should
// be dropped.
func (c *Collector) Add(tensors map[string]Partial, ids ...SampleID) error {
	for name, p := range tensors {
		if s := c.stats[name]; s != nil {
			if err := s.Add(p); err != nil {
				return fmt.Errorf("tensor %q: %w", name, err)
			}
		}
	}
	c.mu.Lock()
	c.ids = append(c.ids, ids...)
	c.mu.Unlock()
	return nil
}
