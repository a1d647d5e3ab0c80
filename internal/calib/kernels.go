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

var scratch = sync.Pool{New: func() any { return new(binTable) }}

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

// kernels is one implementation of the two inner loops. All agree bit for bit
// (fuzzed).
type kernels struct {
	name string
	scan func(x []float32) scanFacts
	// bin adds finite x, each below the limit of scale's k, to t.
	bin func(x []float32, scale float32, base int32, t *binTable) binFacts
	// absMax raises m[j] to |x[i*len(m)+j]|, ignoring NaN and infinities.
	absMax func(x, m []float32)
}

var plain = kernels{"go", scanGo, binGo, absMaxGo}

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

// flush moves the counts of t into h and leaves t empty.
func (h *Histogram) flush(t *binTable) {
	const lanes = 4 // 16-bit counters looked at together
	w0 := (*[2 * half / lanes]uint64)(unsafe.Pointer(&t[0]))
	w1 := (*[2 * half / lanes]uint64)(unsafe.Pointer(&t[1]))
	base := int(h.state.base())
	for w := range w0 {
		if w0[w]|w1[w] == 0 {
			continue
		}
		for i := w * lanes; i < (w+1)*lanes; i++ {
			n := uint64(t[0][i]) + uint64(t[1][i])
			slot := i & (half - 1)
			if n == 0 || slot == 0 {
				continue
			}
			s := &h.sides[i/half]
			if slot >= window {
				s.linear()[slot-linOffset] += n
			} else {
				code := slot + base
				s.octave(code >> cellBits)[code&(CellsPerOctave-1)] += n
			}
		}
		w0[w], w1[w] = 0, 0
	}
}
