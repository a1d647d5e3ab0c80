package calib

import (
	"fmt"
	"math"
)

// Layout of a Histogram.
//
// The largest |x| seen, in [2^e, 2^(e+1)), fixes the bin width 2^k with
// k = e+1-binBits, so that the top 2048 to 4096 bins of |x| are in use:
//
//	|x|   0 ........... 2^(k+7) ........................... R = 2^(k+12)
//	      log cells     linear bins of width 2^k, number 128 to 4095
//	      128 an octave
//
// Values below 2^(k+7) are counted by the top 7 mantissa bits of the float
// itself (the bfloat16 truncation), which is finer than 2^k and does not
// depend on k. So one outlier cannot swallow the resolution of the rest, and
// widening (k grows with the maximum, never shrinks) is a pure union of cells:
// every linear bin at 2^k lies inside exactly one bin at 2^(k+1), or one log
// cell. That is why batches, order and shards never change the result.
const (
	// NumBins is the number of linear bins over [-R, R).
	NumBins = 2 * sideBins
	// CellsPerOctave is the resolution below the linear bins.
	CellsPerOctave = 1 << cellBits

	binBits  = 12
	sideBins = 1 << binBits
	cellBits = 7
	cellSh   = 23 - cellBits // float bits -> cell code
	firstLin = CellsPerOctave

	// minExp is the smallest k: 2^-k stays a normal float32 and no linear bin
	// holds a denormal. Smaller tensors are counted in log cells alone.
	minExp = -120

	absMask  = 0x7fffffff
	infBits  = 0x7f800000
	octaves  = 255     // exponent fields of finite floats
	noDirect = 1 << 11 // below this many values the table of the fast path does not pay
)

// Histogram is an exact, mergeable histogram of float32 values over their
// whole range, with exact minimum, maximum and counts. NaN and infinities are
// counted apart and never binned. The zero value is ready to use.
type Histogram struct {
	state  binState
	sides  [2]side // 0: x > 0, 1: x < 0
	finite uint64  // includes zeros
	zeros  uint64
	nan    uint64
	inf    [2]uint64 // +Inf, -Inf
	lo, hi float32   // exact; valid when finite > 0
}

// side counts one sign. Slices appear on first use: most tensors after an
// activation function have one sign only.
type side struct {
	lin []uint64 // nil or sideBins long; below firstLin always 0
	low [octaves]*[CellsPerOctave]uint64
}

// binState is everything that maps a float to its cell; a function of k.
type binState struct {
	set   bool
	k     int
	scale float32 // 2^-k
	thr   uint32  // float bits of 2^(k+cellBits), where the linear bins begin
	limit uint32  // float bits of R; larger values need a larger k
}

func stateFor(k int) binState {
	s := binState{set: true, k: k, scale: float32(math.Ldexp(1, -k)), thr: uint32(k+cellBits+127) << 23, limit: infBits}
	if e := k + binBits + 127; e < 255 {
		s.limit = uint32(e) << 23
	}
	return s
}

// expFor is k as a pure function of the bits of the largest finite |x|.
func expFor(absBits uint32) int {
	return max(int(absBits>>23)-127+1-binBits, minExp)
}

// edge returns the float bits of the lower edge of linear bin j.
func (s binState) edge(j int) uint32 {
	return math.Float32bits(float32(math.Ldexp(float64(j), s.k)))
}

var _ Observer = (*Histogram)(nil)

// Observe adds the values of x.
func (h *Histogram) Observe(x []float32) { h.observe(x, bestKernels()) }

func (h *Histogram) observe(x []float32, kn kernels) {
	if !h.state.set {
		h.state = stateFor(minExp)
	}
	if len(x) < noDirect {
		h.addSlow(x)
		return
	}
	t := scratch.Get().(*binTable)
	defer scratch.Put(t)
	held := 0 // chunks counted in t and not yet in h
	for len(x) > 0 {
		c := x[:min(chunk, len(x))]
		x = x[len(c):]
		f := kn.scan(c)
		if f.absMax >= infBits { // NaN or Inf inside: one value at a time
			if a := finiteMax(c); a >= h.state.limit && held > 0 {
				h.flush(t, kn)
				held = 0
			}
			h.addSlow(c)
			continue
		}
		if f.absMax >= h.state.limit {
			if held > 0 {
				h.flush(t, kn)
				held = 0
			}
			h.widen(expFor(f.absMax))
		}
		h.note(f.lo, f.hi, uint64(len(c)))
		r := kn.bin(c, h.state.scale, h.state.base(), t)
		h.zeros += uint64(r.zeros)
		if r.below > r.zeros { // tiny values, left of the table's window
			for _, v := range c {
				if a := math.Float32bits(v) & absMask; a != 0 && int32(a>>cellSh) <= h.state.base() {
					h.addBits(math.Float32bits(v), 1)
				}
			}
		}
		if held++; held == maxHeld {
			h.flush(t, kn)
			held = 0
		}
	}
	if held > 0 {
		h.flush(t, kn)
	}
}

// note records n finite values between lo and hi.
func (h *Histogram) note(lo, hi float32, n uint64) {
	lo, hi = lo+0, hi+0 // -0 becomes +0: the sign of a zero depends on order
	if h.finite == 0 {
		h.lo, h.hi = lo, hi
	} else {
		h.lo, h.hi = min(h.lo, lo), max(h.hi, hi)
	}
	h.finite += n
}

// addSlow adds x one value at a time, NaN and infinities included.
func (h *Histogram) addSlow(x []float32) {
	if a := finiteMax(x); a >= h.state.limit {
		h.widen(expFor(a))
	}
	lo, hi, n := float32(math.Inf(1)), float32(math.Inf(-1)), uint64(0)
	for _, v := range x {
		b := math.Float32bits(v)
		switch a := b & absMask; {
		case a > infBits:
			h.nan++
			continue
		case a == infBits:
			h.inf[b>>31]++
			continue
		case a == 0:
			h.zeros++
			v = 0
		default:
			h.addBits(b, 1)
		}
		lo, hi = min(lo, v), max(hi, v)
		n++
	}
	if n > 0 {
		h.note(lo, hi, n)
	}
}

func finiteMax(x []float32) (a uint32) {
	for _, v := range x {
		if b := math.Float32bits(v) & absMask; b < infBits && b > a {
			a = b
		}
	}
	return a
}

// addBits counts n values with the cell of float b, which is finite, not zero
// and below the limit.
func (h *Histogram) addBits(b uint32, n uint64) {
	s := &h.sides[b>>31]
	if a := b & absMask; a >= h.state.thr {
		s.linear()[int(math.Float32frombits(a)*h.state.scale)] += n
	} else {
		s.octave(int(a >> 23))[a>>cellSh&(CellsPerOctave-1)] += n
	}
}

func (s *side) linear() []uint64 {
	if s.lin == nil {
		s.lin = make([]uint64, sideBins)
	}
	return s.lin
}

func (s *side) octave(e int) *[CellsPerOctave]uint64 {
	if s.low[e] == nil {
		s.low[e] = new([CellsPerOctave]uint64)
	}
	return s.low[e]
}

// widen raises the bin width to 2^k. Each linear bin moves, whole, into the
// cell that holds its lower edge; log cells stay.
func (h *Histogram) widen(k int) {
	old := h.state
	if old.set && k <= old.k {
		return
	}
	h.state = stateFor(k)
	for i := range h.sides {
		lin := h.sides[i].lin
		for j := firstLin; j < len(lin); j++ { // ascending: a bin only moves down
			if n := lin[j]; n > 0 {
				lin[j] = 0
				h.addBits(old.edge(j)|uint32(i)<<31, n)
			}
		}
	}
}

// Merge adds what o has seen; o must be a *Histogram and is not changed.
func (h *Histogram) Merge(o Observer) error {
	p, ok := o.(*Histogram)
	if !ok {
		return fmt.Errorf("%w: histogram and %T", ErrMerge, o)
	}
	if p == h {
		p = h.Clone()
	}
	if !h.state.set {
		h.state = stateFor(minExp)
	}
	if p.state.set {
		h.widen(p.state.k)
	}
	for i := range p.sides {
		s := &p.sides[i]
		for j := firstLin; j < len(s.lin); j++ {
			if n := s.lin[j]; n > 0 {
				h.addBits(p.state.edge(j)|uint32(i)<<31, n)
			}
		}
		for e, cells := range s.low {
			if cells == nil {
				continue
			}
			to := h.sides[i].octave(e)
			for c, n := range cells {
				to[c] += n
			}
		}
	}
	if p.finite > 0 {
		h.note(p.lo, p.hi, p.finite)
	}
	h.zeros += p.zeros
	h.nan += p.nan
	h.inf[0] += p.inf[0]
	h.inf[1] += p.inf[1]
	return nil
}

// Clone returns an independent copy.
func (h *Histogram) Clone() *Histogram {
	c := *h
	for i := range c.sides {
		s := &c.sides[i]
		if s.lin != nil {
			s.lin = append([]uint64(nil), s.lin...)
		}
		for e, cells := range s.low {
			if cells != nil {
				d := *cells
				s.low[e] = &d
			}
		}
	}
	return &c
}

// Count returns the number of finite values, zeros included.
func (h *Histogram) Count() uint64 { return h.finite }

// Zeros returns how many values were exactly 0 (of either sign).
func (h *Histogram) Zeros() uint64 { return h.zeros }

// NaN returns how many values were NaN.
func (h *Histogram) NaN() uint64 { return h.nan }

// Inf returns how many values were +Inf and -Inf.
func (h *Histogram) Inf() (pos, neg uint64) { return h.inf[0], h.inf[1] }

// MinMax returns the exact smallest and largest finite value, or false when
// there is none.
func (h *Histogram) MinMax() (Range, bool) {
	return Range{h.lo, h.hi}, h.finite > 0
}

// Constant reports whether every finite value was the same.
func (h *Histogram) Constant() bool { return h.finite > 0 && h.lo == h.hi }

// AbsMax returns the exact largest finite |x|, 0 when there is none.
func (h *Histogram) AbsMax() float32 {
	if h.finite == 0 {
		return 0
	}
	return max(-h.lo, h.hi)
}
