package calib

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// Thresholder chooses the range of one tensor from its histogram. The result
// contains 0 and lies within the observed values (extended to 0).
// ErrNoData and ErrAllNaN say that there is nothing to choose from.
type Thresholder interface {
	Threshold(h *Histogram, s Scheme) (Range, error)
}

// ThresholderFunc makes a function a Thresholder.
type ThresholderFunc func(h *Histogram, s Scheme) (Range, error)

// Threshold calls f.
func (f ThresholderFunc) Threshold(h *Histogram, s Scheme) (Range, error) { return f(h, s) }

// Names of the built-in methods. Percentile takes its coverage after a colon:
// "percentile:99.999".
const (
	MethodMinMax     = "minmax"
	MethodPercentile = "percentile"
	MethodEntropy    = "entropy"
	MethodMSE        = "mse"
	// MethodMovingAverage needs Spec.MovingAverage while observing; it reads
	// no histogram, so Stats.Threshold knows it and ByName does not.
	MethodMovingAverage = "moving-average"
)

// DefaultPercentile is the share of values kept, in per cent.
const DefaultPercentile = 99.99

// Methods is a set of threshold methods by name, open for additions.
type Methods map[string]Thresholder

// Builtin returns a new set of minmax, percentile, entropy and mse.
func Builtin() Methods {
	return Methods{
		MethodMinMax:     ThresholderFunc(minMax),
		MethodPercentile: Percentile(DefaultPercentile),
		MethodEntropy:    ThresholderFunc(entropy),
		MethodMSE:        ThresholderFunc(mse),
	}
}

// Names returns the names in the set, sorted.
func (m Methods) Names() []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// ByName returns the method of that name, or ErrMethod listing what there is.
func (m Methods) ByName(name string) (Thresholder, error) {
	if t, ok := m[name]; ok {
		return t, nil
	}
	if p, ok := strings.CutPrefix(name, MethodPercentile+":"); ok {
		v, err := strconv.ParseFloat(p, 64)
		if err != nil || !(v > 50 && v <= 100) {
			return nil, fmt.Errorf("%w: %q: the coverage must be a number above 50 and at most 100, as in percentile:99.99", ErrMethod, name)
		}
		return Percentile(v), nil
	}
	return nil, fmt.Errorf("%w %q: choose one of %s", ErrMethod, name, strings.Join(m.Names(), ", "))
}

// Names returns the names of the built-in methods, sorted.
func Names() []string { return Builtin().Names() }

// ByName returns the built-in method of that name ("percentile:99.999" sets
// the coverage), or ErrMethod.
func ByName(name string) (Thresholder, error) { return Builtin().ByName(name) }

// check reports why h has no range.
func (h *Histogram) check() error {
	switch {
	case h.finite > 0:
		return nil
	case h.nan+h.inf[0]+h.inf[1] > 0:
		return fmt.Errorf("%w: %d NaN, %d infinite; check the model's input preparation", ErrAllNaN, h.nan, h.inf[0]+h.inf[1])
	}
	return fmt.Errorf("%w: nothing was observed", ErrNoData)
}

func minMax(h *Histogram, _ Scheme) (Range, error) {
	if err := h.check(); err != nil {
		return Range{}, err
	}
	return Range{h.lo, h.hi}.WithZero(), nil
}

// Percentile keeps the given share of the values, in per cent (50 to 100],
// interpolating linearly inside a cell. An asymmetric scheme loses half of the
// rest at each end of a tensor that has both signs; a symmetric one cuts |x|.
type Percentile float64

// Threshold implements Thresholder.
func (p Percentile) Threshold(h *Histogram, s Scheme) (Range, error) {
	if err := h.check(); err != nil {
		return Range{}, err
	}
	tail := (1 - float64(p)/100) * float64(h.finite)
	var r Range
	switch {
	case s.Symmetric:
		t := cut(h.magnitudes(3), tail)
		r = Range{-t, t}
	case h.lo < 0 && h.hi > 0:
		r = Range{-cut(h.magnitudes(2), tail/2), cut(h.magnitudes(1), tail/2)}
	default: // one sign: one tail
		r = Range{-cut(h.magnitudes(2), tail), cut(h.magnitudes(1), tail)}
	}
	return r.clamp(Range{h.lo, h.hi}), nil
}

// cut returns the magnitude that tail values exceed.
func cut(cells []Cell, tail float64) float32 {
	for i := len(cells) - 1; i >= 0; i-- {
		c := cells[i]
		if n := float64(c.Count); n >= tail {
			return float32(math.Max(c.Lo, c.Hi-tail/n*(c.Hi-c.Lo)))
		}
		tail -= float64(c.Count)
	}
	return 0
}
