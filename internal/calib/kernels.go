package calib

import (
	"math"
	"sync"
	"unsafe"
)

// The fast path counts a chunk in a small table of 16-bit counters that stays
// in the first-level cache, and adds the table to the histogram when a counter
// could overflow. Layout of one sign's half of the table:
//
//	0         values left of the window, zeros included (not counted here)
//	1..4095   log cells, at code - base: the 32 octaves below the linear bins
//	4096..    linear bins j = 128..4095 at j + 3968
//
// Two copies of the table take turns, so that runs of equal values do not wait
// for the store before them.
const (
	chunk     = 8192
	window    = 4096
	linOffset = window - firstLin
	half      = 8192 // slots a sign
	copies    = 2
	// maxHeld chunks put at most 15*8192/2 = 61440 in one counter.
	maxHeld = 15
)

type binTable [copies][2 * half]uint16

// A table comes back to the pool empty. It is allocated as words, so that its
// counters can be looked at four at a time.
var scratch = sync.Pool{New: func() any {
	return (*binTable)(unsafe.Pointer(new([unsafe.Sizeof(binTable{}) / 8]uint64)))
}}

// base is the cell code of slot 0; never negative, so that zero is in slot 0.
func (s binState) base() int32 { return max(int32(s.thr>>cellSh)-window, 0) }

// scanFacts describe one chunk. lo and hi mean nothing when absMax says that
// a NaN or an infinity is inside.
type scanFacts struct {
	absMax uint32 // largest bits of |x|; >= infBits: not all finite
	lo, hi float32
}

// binFacts count the values that slot 0 received; below includes zeros.
type binFacts struct{ below, zeros int32 }

// kernels is one implementation of the inner loops. All agree bit for bit
// (fuzzed).
type kernels struct {
	name string
	scan func(x []float32) scanFacts
	// bin adds finite x, each below the limit of scale's k, to t.
	bin func(x []float32, scale float32, base int32, t *binTable) binFacts
	// drain adds the counters a and b, as long as to, to it and zeroes them.
	drain func(a, b []uint16, to []uint64)
	// absMax raises m[j] to |x[i*len(m)+j]|, ignoring NaN and infinities.
	absMax func(x, m []float32)
}

var plain = kernels{"go", scanGo, binGo, drainGo, absMaxGo}

var bestKernels = sync.OnceValue(func() kernels {
	ks := available()
	return ks[len(ks)-1]
})

func scanGo(x []float32) scanFacts {
	f := scanFacts{lo: float32(math.Inf(1)), hi: float32(math.Inf(-1))}
	for _, v := range x {
		f.absMax = max(f.absMax, math.Float32bits(v)&absMask)
		if v < f.lo {
			f.lo = v
		}
		if v > f.hi {
			f.hi = v
		}
	}
	return f
}

func binGo(x []float32, scale float32, base int32, t *binTable) (r binFacts) {
	for i, v := range x {
		b := math.Float32bits(v)
		a := b & absMask
		slot := int32(math.Float32frombits(a)*scale) + linOffset
		if slot < window {
			slot = int32(a>>cellSh) - base
			if slot <= 0 {
				slot = 0
				r.below++
				if a == 0 {
					r.zeros++
				}
			}
		}
		t[i&1][uint32(slot)&(half-1)|b>>31*half]++
	}
	return r
}

func absMaxGo(x, m []float32) {
	for ; len(x) >= len(m) && len(m) > 0; x = x[len(m):] {
		for j, v := range x[:len(m)] {
			if a := math.Float32bits(v) & absMask; a < infBits && a > math.Float32bits(m[j]) {
				m[j] = math.Float32frombits(a)
			}
		}
	}
}

func drainGo(a, b []uint16, to []uint64) {
	a, b = a[:len(to)], b[:len(to)]
	for i := range to {
		to[i] += uint64(a[i]) + uint64(b[i])
	}
	clear(a)
	clear(b)
}

// flush moves the counts of t into h and leaves t empty. The window starts on
// an octave, so each octave's cells lie together in t.
func (h *Histogram) flush(t *binTable, kn kernels) {
	first := int(h.state.base()) >> cellBits
	for i := range h.sides {
		s := &h.sides[i]
		a, b := t[0][i*half:(i+1)*half], t[1][i*half:(i+1)*half]
		a[0], b[0] = 0, 0
		for at := 0; at < window; at += CellsPerOctave {
			if a, b := a[at:at+CellsPerOctave], b[at:at+CellsPerOctave]; anyCount(a) || anyCount(b) {
				kn.drain(a, b, s.octave(first + at>>cellBits)[:])
			}
		}
		if a, b := a[window:linOffset+sideBins], b[window:linOffset+sideBins]; s.lin != nil || anyCount(a) || anyCount(b) {
			kn.drain(a, b, s.linear()[firstLin:])
		}
	}
}

// anyCount reports whether a counter is not 0; len(c) is a multiple of 4.
func anyCount(c []uint16) bool {
	for _, w := range unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(c))), len(c)/4) {
		if w != 0 {
			return true
		}
	}
	return false
}
