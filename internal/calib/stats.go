package calib

import (
	"fmt"
	"sync"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Spec says what to collect of one tensor besides its histogram.
type Spec struct {
	// ChannelMax collects max|x| and ChannelMean exact means by channel.
	ChannelMax, ChannelMean bool
	// Axis is the channel axis; negative counts from the end (-1: the last,
	// for a MatMul; 1 for a convolution's NCHW).
	Axis int
	// MovingAverage collects the moving average range as well. Samples must
	// then be observed one after the other, and tables do not merge.
	MovingAverage bool
}

func (s Spec) channels() bool { return s.ChannelMax || s.ChannelMean }

// Channels returns how a tensor of n values with these dimensions is cut: value i
// belongs to channel i/inner%channels. It returns ErrShape for what has no such
// axis or too many channels.
func (s Spec) Channels(n int64, dims []int64) (channels, inner int64, err error) {
	elems, err := tensor.Elems(dims)
	if err != nil {
		return 0, 0, err
	}
	axis := s.Axis
	if axis < 0 {
		axis += len(dims)
	}
	if axis < 0 || axis >= len(dims) || elems != n {
		return 0, 0, fmt.Errorf("%w: channel axis %d of shape %v with %d values", ErrShape, s.Axis, dims, n)
	}
	inner = 1
	for _, d := range dims[axis+1:] {
		inner *= d
	}
	if dims[axis] > MaxChannels {
		return 0, 0, checkChannels(MaxChannels + 1)
	}
	return dims[axis], inner, nil
}

// Stats are everything collected of one tensor. All methods are safe for
// concurrent use while values are observed.
type Stats struct {
	mu     sync.Mutex
	spec   Spec
	calls  uint64
	hist   Histogram
	max    *ChannelMax // set by the first tensor when asked for
	sum    *ChannelSum
	moving *MovingAverage
	ranges map[string]Range // by method; see Table.Fill
	found  map[search]Range // by Collector.Found, for the values so far
}

// search is what a threshold is looked for by.
type search struct {
	method string
	scheme Scheme
}

// NewStats returns empty statistics.
func NewStats(spec Spec) *Stats {
	s := &Stats{spec: spec}
	if spec.MovingAverage {
		s.moving = NewMovingAverage(MovingAverageC)
	}
	return s
}

// Observe adds one tensor's values. Shapes may be ragged: only the length of
// the channel axis, where one is observed, must stay the same (else ErrShape).
// x is not retained.
func (s *Stats) Observe(x []float32, dims []int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spec.channels() && len(x) > 0 {
		if err := s.observeChannels(x, dims); err != nil {
			return err
		}
	}
	s.hist.Observe(x)
	s.found = nil
	if s.moving != nil {
		s.moving.Observe(x)
	}
	s.calls++
	return nil
}

func (s *Stats) observeChannels(x []float32, dims []int64) error {
	channels, inner, err := s.spec.Channels(int64(len(x)), dims)
	if err != nil {
		return err
	}
	if s.spec.ChannelMax {
		if s.max == nil {
			if s.max, err = NewChannelMax(int(channels)); err != nil {
				return err
			}
		}
		if len(s.max.m) != int(channels) {
			return fmt.Errorf("%w: axis %d of shape %v, earlier samples had %d channels", ErrShape, s.spec.Axis, dims, len(s.max.m))
		}
		s.max.ObserveInner(x, int(inner))
	}
	if s.spec.ChannelMean {
		if s.sum == nil {
			if s.sum, err = NewChannelSum(int(channels)); err != nil {
				return err
			}
		}
		if len(s.sum.s) != int(channels) {
			return fmt.Errorf("%w: axis %d of shape %v, earlier samples had %d channels", ErrShape, s.spec.Axis, dims, len(s.sum.s))
		}
		s.sum.ObserveInner(x, int(inner))
	}
	return nil
}

// merge adds o, which is not being observed any more. It does not touch the
// moving average.
func (s *Stats) merge(o *Stats) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spec != o.spec {
		return fmt.Errorf("%w: one has the observers %+v, the other %+v", ErrMerge, s.spec, o.spec)
	}
	if err := s.hist.Merge(&o.hist); err != nil {
		return err
	}
	s.found = nil
	s.calls += o.calls
	if o.max != nil {
		if s.max == nil {
			s.max = &ChannelMax{make([]float32, len(o.max.m))}
		}
		if err := s.max.Merge(o.max); err != nil {
			return err
		}
	}
	if o.sum != nil {
		if s.sum == nil {
			s.sum = &ChannelSum{make([]exactSum, len(o.sum.s)), make([]uint64, len(o.sum.s))}
		}
		return s.sum.Merge(o.sum)
	}
	return nil
}

// Spec returns what is being collected.
func (s *Stats) Spec() Spec { return s.spec }

// Histogram returns a copy of the histogram.
func (s *Stats) Histogram() *Histogram {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hist.Clone()
}

// ChannelMax returns max|x| by channel, nil when it was not collected.
func (s *Stats) ChannelMax() []float32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.max == nil {
		return nil
	}
	return append([]float32(nil), s.max.m...)
}

// ChannelMean returns the mean by channel, nil when it was not collected.
func (s *Stats) ChannelMean() []float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sum == nil {
		return nil
	}
	return s.sum.Mean()
}

// Threshold returns the range that a method chooses: one of the built-in names
// or MethodMovingAverage. Methods by value go through Histogram.
func (s *Stats) Threshold(method string, scheme Scheme) (Range, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if method == MethodMovingAverage {
		if s.moving == nil {
			return Range{}, fmt.Errorf("%w: %s was not collected; set it before observing", ErrMethod, method)
		}
		return s.moving.Range()
	}
	if r, ok := s.found[search{method, scheme}]; ok {
		return r, nil
	}
	th, err := ByName(method)
	if err != nil {
		return Range{}, err
	}
	return th.Threshold(&s.hist, scheme)
}

// find notes the range that a method chooses, as somebody else, a device, has
// found it: Threshold returns it without a search until more values come.
func (s *Stats) find(method string, scheme Scheme, r Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found == nil {
		s.found = map[search]Range{}
	}
	s.found[search{method, scheme}] = r
}
