package calib

import "math"

// Cell is one cell of a histogram: Count values in [Lo, Hi) where positive, in
// (Lo, Hi] where negative, exactly 0 where Lo == Hi == 0. The outermost cells
// end at the observed minimum and maximum.
type Cell struct {
	Lo, Hi float64
	Count  uint64
}

// Cells returns the non-empty cells from the smallest to the largest value.
// Widths differ: 1/128 of an octave near zero, 2^k beyond (see Histogram).
func (h *Histogram) Cells() []Cell {
	pos, neg := h.magnitudes(1), h.magnitudes(2)
	all := make([]Cell, 0, len(pos)+len(neg)+1)
	for i := len(neg) - 1; i >= 0; i-- {
		all = append(all, Cell{-neg[i].Hi, -neg[i].Lo, neg[i].Count})
	}
	if h.zeros > 0 {
		all = append(all, Cell{0, 0, h.zeros})
	}
	return append(all, pos...)
}

// magnitudes returns the non-empty cells of |x| without zeros, ascending;
// signs is 1 (positive values), 2 (negative) or 3 (both).
func (h *Histogram) magnitudes(signs int) []Cell {
	var use []*side
	top := 0.
	for i := range h.sides {
		if signs>>i&1 == 1 {
			use = append(use, &h.sides[i])
			top = math.Max(top, [2]float64{float64(h.hi), -float64(h.lo)}[i])
		}
	}
	cells := make([]Cell, 0, sideBins)
	add := func(lo, hi float64, n uint64) {
		if n > 0 {
			cells = append(cells, Cell{lo, math.Min(hi, top), n})
		}
	}
	for e := 0; e < octaves; e++ {
		for c := 0; c < CellsPerOctave; c++ {
			var n uint64
			seen := false
			for _, s := range use {
				if s.low[e] != nil {
					seen = true
					n += s.low[e][c]
				}
			}
			if !seen {
				break
			}
			code := e<<cellBits | c
			add(codeEdge(code), codeEdge(code+1), n)
		}
	}
	w := math.Ldexp(1, h.state.k)
	for j := firstLin; j < sideBins; j++ {
		var n uint64
		for _, s := range use {
			if s.lin != nil {
				n += s.lin[j]
			}
		}
		add(float64(j)*w, float64(j+1)*w, n)
	}
	return cells
}

// codeEdge is the lower edge of a log cell.
func codeEdge(code int) float64 {
	if code >= octaves<<cellBits {
		return math.Ldexp(1, 128)
	}
	return float64(math.Float32frombits(uint32(code) << cellSh))
}

// Width returns the width 2^k of the linear bins.
func (h *Histogram) Width() float64 {
	if !h.state.set {
		return math.Ldexp(1, minExp)
	}
	return math.Ldexp(1, h.state.k)
}

// Linear returns the counts of |x| in linear bins of Width, up to the bin that
// holds the largest |x| (2048 to 4096 bins, fewer only for tensors below
// 2^-109). Zeros are in bin 0.
func (h *Histogram) Linear() []uint64 {
	if h.finite == 0 {
		return nil
	}
	inv := 1 / h.Width()
	bins := make([]uint64, int(float64(h.AbsMax())*inv)+1)
	bins[0] = h.zeros
	for i := range h.sides {
		s := &h.sides[i]
		for e, cells := range s.low {
			if cells == nil {
				continue
			}
			for c, n := range cells {
				if n > 0 {
					bins[int(codeEdge(e<<cellBits|c)*inv)] += n
				}
			}
		}
		for j := firstLin; j < len(s.lin) && j < len(bins); j++ {
			bins[j] += s.lin[j]
		}
	}
	return bins
}

// concentrated is the share of the non-zero mass in one linear bin above which
// equal-width bins say nothing about the distribution.
const concentrated = 0.99

// Concentrated reports whether outliers stretch the range so far that one
// linear bin holds more than 99 % of the non-zero values. The thresholders
// read the log cells below, so their result stays sharp; the report warns.
func (h *Histogram) Concentrated() bool {
	bins := h.Linear()
	if len(bins) == 0 || h.lo == h.hi {
		return false
	}
	bins[0] -= h.zeros
	var top uint64
	for _, n := range bins {
		top = max(top, n)
	}
	return float64(top) > concentrated*float64(h.finite-h.zeros)
}

// ClippedShare returns the share (0 to 1) of the finite values of h outside r,
// interpolating inside the cells where r ends.
func ClippedShare(h *Histogram, r Range) float64 {
	if h.finite == 0 {
		return 0
	}
	out := 0.
	for _, c := range h.Cells() {
		out += float64(c.Count) * (c.below(float64(r.Lo)) + c.above(float64(r.Hi)))
	}
	return math.Min(out/float64(h.finite), 1)
}

// below is the share of the cell's mass under x.
func (c Cell) below(x float64) float64 {
	if c.Hi <= c.Lo {
		if c.Lo < x {
			return 1
		}
		return 0
	}
	return math.Max(0, math.Min((x-c.Lo)/(c.Hi-c.Lo), 1))
}

// above is the share of the cell's mass over x.
func (c Cell) above(x float64) float64 {
	if c.Hi <= c.Lo {
		if c.Lo > x {
			return 1
		}
		return 0
	}
	return math.Max(0, math.Min((c.Hi-x)/(c.Hi-c.Lo), 1))
}

// Moments returns the mean and the variance, from the cells (each value within
// 1/256 of its magnitude), so they are independent of order like the counts.
func (h *Histogram) Moments() (mean, variance float64) {
	if h.finite == 0 {
		return 0, 0
	}
	var s1, s2 float64
	for _, c := range h.Cells() {
		n, a, b := float64(c.Count), c.Lo, c.Hi
		s1 += n * (a + b) / 2
		s2 += n * (a*a + a*b + b*b) / 3
	}
	mean = s1 / float64(h.finite)
	return mean, math.Max(0, s2/float64(h.finite)-mean*mean)
}
