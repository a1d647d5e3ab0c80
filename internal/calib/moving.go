package calib

// MovingAverageC is the usual weight of the newest sample.
const MovingAverageC = 0.01

// MovingAverage follows the smallest and largest value of each sample with an
// exponential average (Krishnamoorthi 2018, section 3.1.1): lo += C*(min - lo).
// Each Observe is one sample. The result depends on the order of the samples
// by definition, so it does not merge and Collector needs the samples one
// after the other.
type MovingAverage struct {
	c      float64
	lo, hi float64
	n      uint64
}

// NewMovingAverage returns an observer with weight c in (0, 1]; anything else
// means MovingAverageC.
func NewMovingAverage(c float64) *MovingAverage {
	if !(c > 0 && c <= 1) {
		c = MovingAverageC
	}
	return &MovingAverage{c: c}
}

var _ Observer = (*MovingAverage)(nil)

// Observe adds one sample; one without a finite value is ignored.
func (m *MovingAverage) Observe(x []float32) {
	h := Histogram{state: stateFor(minExp)}
	f := bestKernels().scan(x)
	if f.absMax < infBits && len(x) > 0 {
		h.note(f.lo, f.hi, 1)
	} else {
		for _, v := range x {
			if v-v == 0 { // finite
				h.note(v, v, 1)
			}
		}
	}
	if r, ok := h.MinMax(); ok {
		m.add(r)
	}
}

// add follows one sample's smallest and largest value.
func (m *MovingAverage) add(r Range) {
	m.n++
	if m.n == 1 {
		m.lo, m.hi = float64(r.Lo), float64(r.Hi)
		return
	}
	m.lo += m.c * (float64(r.Lo) - m.lo)
	m.hi += m.c * (float64(r.Hi) - m.hi)
}

// Merge always returns ErrOrderDependent.
func (m *MovingAverage) Merge(Observer) error { return ErrOrderDependent }

// Range returns the averaged range extended to 0, or ErrNoData.
func (m *MovingAverage) Range() (Range, error) {
	if m.n == 0 {
		return Range{}, ErrNoData
	}
	return Range{float32(m.lo), float32(m.hi)}.WithZero(), nil
}
