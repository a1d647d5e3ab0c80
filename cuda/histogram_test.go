//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/tensor"
)

// wild returns values of every kind that a tensor can hold, and every magnitude.
func wild(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	mode := r.IntN(7)
	for i := range x {
		switch mode {
		case 0: // any bits at all
			x[i] = math.Float32frombits(r.Uint32())
		case 1: // after ReLU
			x[i] = max(0, float32(r.NormFloat64()))
		case 2: // a mask among logits
			x[i] = float32(r.NormFloat64())
			if r.IntN(50) == 0 {
				x[i] = -math.MaxFloat32
			}
		case 3: // tiny, denormal
			x[i] = math.Float32frombits(r.Uint32N(1<<24) | r.Uint32()&(1<<31))
		case 4: // over many octaves
			x[i] = float32(math.Exp(r.NormFloat64() * 12))
		case 5: // one value
			x[i] = -6
		default:
			x[i] = float32(r.NormFloat64()) * 3
		}
	}
	for range r.IntN(4) {
		if n > 0 {
			x[r.IntN(n)] = [...]float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.Copysign(0, -1))}[r.IntN(4)]
		}
	}
	return x
}

// inAt copies v to the device, off values past a 16-byte boundary.
func inAt(t *testing.T, v []float32, off int) Ptr {
	t.Helper()
	if len(v) == 0 {
		return in(t, []float32{0})
	}
	return in(t, append(make([]float32, off), v...)).Add(int64(4 * off))
}

// facts counts x by the definition.
func facts(x []float32) RangeStats {
	lo, hi, top := float32(math.Inf(1)), float32(math.Inf(-1)), float32(0)
	var r RangeStats
	for _, v := range x {
		switch f := float64(v); {
		case f != f:
			r.NaN++
		case math.IsInf(f, 1):
			r.PosInf++
		case math.IsInf(f, -1):
			r.NegInf++
		default:
			r.Finite++
			if v == 0 {
				r.Zeros++
				v = 0
			}
			lo, hi, top = min(lo, v), max(hi, v), max(top, v, -v)
		}
	}
	r.Lo, r.Hi = math.MaxUint32, 0
	if r.Finite > 0 {
		key := func(v float32) uint32 {
			if b := math.Float32bits(v); v < 0 {
				return ^b
			} else {
				return b | 1<<31
			}
		}
		r.Lo, r.Hi, r.Top = key(lo), key(hi), math.Float32bits(top)
	}
	return r
}

func TestRange(t *testing.T) {
	schedules(t, func(t *testing.T) {
		const count = 14
		stats := device[RangeStats](t, count)
		ok(t, RangeInit(stats, count, 0))
		var all [count][]float32
		for round := range 2 {
			for i := range all {
				r := random(uint64(20*round + i))
				x := wild(r, []int{0, 1, 3, 4, 5, 33, 1000, 8191, 20000}[(i+round)%9])
				all[i] = append(all[i], x...)
				ok(t, RangeAdd(inAt(t, x, i%4), int64(len(x)), stats.Add(int64(i)*int64(unsafe.Sizeof(RangeStats{}))), 0))
			}
		}
		for i, got := range out[RangeStats](t, stats, count) {
			if want := facts(all[i]); got != want {
				t.Errorf("tensor %d: %+v, want %+v", i, got, want)
			}
			if lo, hi, ok := got.MinMax(); ok && (lo > hi || lo < 0 && math.Float32bits(max(-lo, hi)) != got.Top) {
				t.Errorf("tensor %d: from %v to %v, largest magnitude %v", i, lo, hi, math.Float32frombits(got.Top))
			}
		}
	})
}

// cellsOf counts x by the definition of calib/histogram.go alone.
func cellsOf(x []float32) (exponent int, linear [2]map[int]uint64, cells [2]map[int]uint64) {
	top := 0.
	for _, v := range x {
		if a := math.Abs(float64(v)); a <= math.MaxFloat32 {
			top = max(top, a)
		}
	}
	_, e := math.Frexp(top)
	exponent = max(e-12, -120)
	if top == 0 {
		exponent = -120
	}
	for i := range linear {
		linear[i], cells[i] = map[int]uint64{}, map[int]uint64{}
	}
	for _, v := range x {
		a, sign := math.Abs(float64(v)), 0
		if v < 0 {
			sign = 1
		}
		if a == 0 || !(a <= math.MaxFloat32) {
			continue
		}
		if bin := math.Floor(math.Ldexp(a, -exponent)); bin >= 128 {
			linear[sign][int(bin)]++
		} else {
			cells[sign][int(math.Float32bits(float32(a))>>16)]++
		}
	}
	return exponent, linear, cells
}

func histogram(t *testing.T, p Ptr) *Histogram {
	t.Helper()
	ok(t, Sync(0))
	h := make([]Histogram, 1)
	ok(t, CopyOut(h, p))
	return &h[0]
}

// asCalib is what internal/calib makes of a device's histogram.
func asCalib(t *testing.T, d *Histogram) *calib.Histogram {
	t.Helper()
	lo, hi, _ := d.Range.MinMax()
	c := &calib.Counts{Finite: d.Range.Finite, Zeros: d.Range.Zeros, NaN: d.Range.NaN, Inf: [2]uint64{d.Range.PosInf, d.Range.NegInf}, Lo: lo, Hi: hi, Exp: int(d.Exponent)}
	for i := range c.Linear {
		c.Linear[i], c.Cells[i] = d.Linear[i][:], d.Cells[i][:]
	}
	h := new(calib.Histogram)
	if err := h.AddCounts(c); err != nil {
		t.Fatal(err)
	}
	return h
}

// Several tensors at a time, several times, growing and not: the same counts as
// by the definition, and as internal/calib's own observer.
func TestHistogram(t *testing.T) {
	schedules(t, func(t *testing.T) {
		const count = 9
		const size = int64(unsafe.Sizeof(Histogram{}))
		all := device[Histogram](t, count)
		ok(t, HistogramInit(all, count, 0))
		var seen [count][]float32
		for round := range 3 {
			var taps []Tap
			for i := range seen {
				r := random(uint64(100*round + i))
				n := []int{1, 0, 5, 200, 4096, 33000, 3, 70001, 9000}[(i+round)%count]
				x := wild(r, n)
				seen[i] = append(seen[i], x...)
				taps = append(taps, Tap{inAt(t, x, (i+round)%4), int64(n), all.Add(int64(i) * size)})
			}
			ok(t, HistogramObserve(taps, 0))
		}
		for i, x := range seen {
			h := histogram(t, all.Add(int64(i)*size))
			if want := facts(x); h.Range != want {
				t.Errorf("tensor %d: %+v, want %+v", i, h.Range, want)
			}
			exponent, linear, cells := cellsOf(x)
			if int(h.Exponent) != exponent {
				t.Errorf("tensor %d: bins of 2^%d, want 2^%d", i, h.Exponent, exponent)
			}
			for s := range 2 {
				for j, n := range h.Linear[s] {
					if n != linear[s][j] {
						t.Fatalf("tensor %d, sign %d: bin %d holds %d, want %d", i, s, j, n, linear[s][j])
					}
				}
				for j, n := range h.Cells[s] {
					if n != cells[s][j] {
						t.Fatalf("tensor %d, sign %d: cell %d holds %d, want %d", i, s, j, n, cells[s][j])
					}
				}
			}
			want := new(calib.Histogram)
			want.Observe(x)
			if got := asCalib(t, h); !reflect.DeepEqual(got.Cells(), want.Cells()) || got.Width() != want.Width() {
				t.Errorf("tensor %d differs from calib", i)
			}
		}
	})
}

// More taps than one launch takes.
func TestHistogramOfManyTaps(t *testing.T) {
	const count = 130
	const size = int64(unsafe.Sizeof(Histogram{}))
	configure(1)
	all := device[Histogram](t, count)
	ok(t, HistogramInit(all, count, 0))
	taps := make([]Tap, count)
	for i := range taps {
		taps[i] = Tap{in(t, []float32{float32(i + 1), -1}), 2, all.Add(int64(i) * size)}
	}
	ok(t, HistogramObserve(taps, 0))
	for i := range taps {
		if h := histogram(t, taps[i].Histogram); h.Range != facts([]float32{float32(i + 1), -1}) || asCalib(t, h).Count() != 2 {
			t.Fatalf("tensor %d: %+v", i, h.Range)
		}
	}
}

func TestChannelMax(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 1, 1}, {3, 5, 1}, {77, 130, 1}, {300, 7, 1}, {2, 3, 49}, {9, 12, 1}, {4, 5, 2}, {2, 40, 100}} {
			outer, channels, inner := c[0], c[1], c[2]
			m := in(t, make([]float32, channels))
			want, err := calib.NewChannelMax(channels)
			if err != nil {
				t.Fatal(err)
			}
			for round := range 2 {
				x := wild(random(uint64(channels+round)), outer*channels*inner)
				ok(t, ChannelMax(in(t, x), int64(outer), int64(channels), int64(inner), m, 0))
				want.ObserveInner(x, inner)
			}
			equal(t, fmt.Sprint(c), out[float32](t, m, channels), want.Max())
		}
	})
}

// spread makes a histogram of arbitrary counts whose largest value is in bin last-1.
func spread(r *rand.Rand, last int) *Histogram {
	h := &Histogram{Exponent: int32(r.IntN(20) - 15)}
	kind, shape := r.IntN(5), r.Float64()*8
	n := func(i int) uint64 {
		x := float64(i) / float64(last)
		switch kind {
		case 0: // smooth
			return uint64(1e9 * math.Exp(-x*x*shape*shape))
		case 1: // sparse
			if r.IntN(12) == 0 {
				return 1 + r.Uint64N(5)
			}
			return 0
		case 2: // counts that no float64 sum of them keeps exactly
			return 1<<51 + r.Uint64N(1<<51)
		case 3: // all alike: candidates that are equally good
			return 7
		default:
			return r.Uint64N(1 << uint(r.IntN(30)))
		}
	}
	one := r.IntN(2) == 0
	for j := 128; j < last; j++ {
		h.Linear[0][j] = n(j)
		if !one {
			h.Linear[1][j] = n(j)
		}
	}
	top := uint32(int(h.Exponent)+7+127) * 128 // the cell that bin 128 begins with
	for c := top - 800; c < top; c++ {
		h.Cells[0][c] = n(int(c-top+800)/7) / 4
	}
	h.Linear[0][last-1] += 1
	h.Range.Zeros = r.Uint64N(1000)
	sum := h.Range.Zeros
	for i := range h.Linear {
		for _, v := range h.Linear[i] {
			sum += v
		}
		for _, v := range h.Cells[i] {
			sum += v
		}
	}
	hi := float32(math.Ldexp(float64(last-1), int(h.Exponent)))
	lo := float32(math.Float32frombits((top - 800) << 16))
	if h.Range.Zeros > 0 {
		lo = 0
	}
	if !one {
		lo = -hi
	}
	h.Range.Finite = sum
	h.Range.Top = math.Float32bits(hi)
	h.Range.Hi = h.Range.Top | 1<<31
	if h.Range.Lo = math.Float32bits(lo) | 1<<31; lo < 0 {
		h.Range.Lo = ^math.Float32bits(lo)
	}
	return h
}

// divergence is the definition of calib/entropy.go, without prefix sums.
func divergence(counts []uint64, levels, keep int) float64 {
	c := make([]float64, len(counts))
	for i, v := range counts {
		c[i] = float64(v)
	}
	c[0] = c[1]
	p, q := append([]float64(nil), c[:keep]...), make([]float64, keep)
	for _, v := range c[keep:] {
		p[keep-1] += v
	}
	for l := range levels {
		sum, n := 0., 0.
		part := func(f func(i int)) {
			for i := (l*keep + levels - 1) / levels; i < ((l+1)*keep+levels-1)/levels; i++ {
				if c[i] > 0 {
					f(i)
				}
			}
		}
		part(func(i int) { sum += c[i]; n++ })
		part(func(i int) { q[i] = sum / n })
	}
	ps, qs, d := 0., 0., 0.
	for i := range p {
		ps += p[i]
		qs += q[i]
	}
	for i := range p {
		if p[i] > 0 {
			d += p[i] / ps * math.Log(p[i]/ps/(q[i]/qs))
		}
	}
	return d
}

// The search on the device keeps the bins that internal/calib keeps.
func TestKLThreshold(t *testing.T) {
	// The definition and the prefix sums round differently.
	const tolerance = 1e-9
	schedules(t, func(t *testing.T) {
		const size = int64(unsafe.Sizeof(Histogram{}))
		var all []Histogram
		for seed := range uint64(10) {
			r := random(seed)
			all = append(all, *spread(r, 2049+r.IntN(2048)))
		}
		var gelu *Histogram
		{ // of values, zeros and small ones included
			h := device[Histogram](t, 3)
			ok(t, HistogramInit(h, 3, 0))
			x := normal(random(1), 30000)
			y := append([]float32{135}, x...)
			for i, v := range x {
				y[i+1] = float32(float64(v) * .5 * (1 + math.Erf(float64(v)/math.Sqrt2)))
			}
			ok(t, HistogramObserve([]Tap{{in(t, x), int64(len(x)), h}, {in(t, y), int64(len(y)), h.Add(size)}, {in(t, make([]float32, 9)), 9, h.Add(2 * size)}}, 0))
			all = append(all, *histogram(t, h), *histogram(t, h.Add(size)), *histogram(t, h.Add(2*size)))
			gelu = histogram(t, h.Add(size))
		}
		tiny := *gelu // fewer bins than levels: nothing to search
		clear(tiny.Linear[0][:])
		clear(tiny.Linear[1][:])
		clear(tiny.Cells[0][:])
		clear(tiny.Cells[1][:])
		tiny.Exponent, tiny.Range = -120, facts([]float32{1e-42})
		tiny.Cells[0][math.Float32bits(1e-42)>>16] = 1
		all = append(all, tiny)
		none := tiny
		none.Cells[0][math.Float32bits(1e-42)>>16] = 0
		none.Range = facts([]float32{float32(math.NaN())})
		all = append(all, none)

		h := in(t, all)
		logs := in(t, calib.LogTable())
		n := len(all)
		counts, tensors := device[uint64](t, n*LinearBins), device[KLTensor](t, n)
		keep, d := device[int32](t, n), device[float64](t, n)
		bytes := KLWorkspace(n)
		work := device[byte](t, int(bytes))
		for _, scheme := range []calib.Scheme{calib.U8, calib.S8, {Type: tensor.Uint4}, {Type: tensor.Int16, Symmetric: true}} {
			bits := scheme.Type.Bits()
			ok(t, HistogramLinear(h, n, bits, scheme.Symmetric, counts, tensors, 0))
			ok(t, KLThreshold(counts, tensors, n, logs, keep, d, work, bytes, 0))
			gotCounts, info := out[uint64](t, counts, n*LinearBins), out[KLTensor](t, tensors, n)
			gotKeep, gotD := out[int32](t, keep, n), out[float64](t, d, n)
			for i := range all {
				name := fmt.Sprintf("%v, tensor %d", scheme.Type, i)
				if all[i].Range.Finite == 0 {
					if info[i].Bins != 0 || gotKeep[i] != 0 || info[i].Others != 1 {
						t.Errorf("%s: %+v, keeps %d of nothing", name, info[i], gotKeep[i])
					}
					continue
				}
				c := asCalib(t, &all[i])
				bins := gotCounts[i*LinearBins:][:info[i].Bins]
				equal(t, name+": counts", bins, c.Linear())
				want, err := calib.ByName(calib.MethodEntropy)
				if err != nil {
					t.Fatal(err)
				}
				r, err := want.Threshold(c, scheme)
				if err != nil {
					t.Fatal(err)
				}
				seen, _ := c.MinMax()
				if got := calib.EntropyRange(seen, int(info[i].Exponent), len(bins), int(gotKeep[i])); got != r {
					t.Errorf("%s: %v, want %v", name, got, r)
				}
				if lo, hi := OfKey(info[i].Lo), OfKey(info[i].Hi); (calib.Range{Lo: lo, Hi: hi}) != seen {
					t.Errorf("%s: values from %v to %v, want %v", name, lo, hi, seen)
				}
				levels := int(info[i].Levels)
				if len(bins) <= max(128, levels) {
					if gotD[i] != 0 || int(gotKeep[i]) != len(bins) {
						t.Errorf("%s: keeps %d of %d", name, gotKeep[i], len(bins))
					}
					continue
				}
				if w := divergence(bins, levels, int(gotKeep[i])); math.Abs(gotD[i]-w) > tolerance {
					t.Errorf("%s: divergence %v, want %v", name, gotD[i], w)
				}
				for at := max(128, levels); at <= len(bins); at += 97 {
					if w := divergence(bins, levels, at); w < gotD[i]-tolerance {
						t.Errorf("%s: %d bins have the divergence %v, %d were kept for %v", name, at, w, gotKeep[i], gotD[i])
					}
				}
			}
		}
	})
}

// search is the search of calib/entropy.go in the order of sums that it promises:
// every bit of the divergence counts.
func search(counts []uint64, levels int) (keep int, best float64) {
	n, table := len(counts), calib.LogTable()
	log := func(x float64) float64 {
		b := math.Float64bits(x)
		s := table[2*(b>>43&511):]
		r := float64(math.Float64frombits(b&(1<<52-1)|1023<<52)*s[0]) - 1
		series := float64(r * (1 - float64(r*(.5-float64(r*(1./3-float64(r*.25)))))))
		return float64(float64(int(b>>52)-1023)*math.Ln2) + s[1] + series
	}
	xlogx := func(x float64) float64 {
		if x > 0 {
			return float64(x * log(x))
		}
		return 0
	}
	c := func(i int) float64 { return float64(counts[max(i, 1)]) }
	sum, plogp, filled := make([]float64, n+1), make([]float64, n+1), make([]int, n+1)
	for i := range n {
		sum[i+1], plogp[i+1], filled[i+1] = sum[i]+c(i), plogp[i]+xlogx(c(i)), filled[i]
		if c(i) > 0 {
			filled[i+1]++
		}
	}
	best = math.Inf(1)
	for i := max(128, levels); i <= n; i++ {
		last, tail := c(i-1), sum[n]-sum[i]
		if sum[i] == 0 || last == 0 && tail > 0 {
			continue
		}
		cross, q := 0., 0.
		for j := range levels {
			from, to := (j*i+levels-1)/levels, ((j+1)*i+levels-1)/levels
			if part := sum[to] - sum[from]; part > 0 {
				q = log(part) - log(float64(filled[to]-filled[from]))
				cross += float64(part * q)
			}
		}
		cross += float64(tail * q)
		if d := (plogp[i]-xlogx(last)+xlogx(last+tail)-cross)/sum[n] - log(sum[n]) + log(sum[i]); d <= best {
			best, keep = d, i
		}
	}
	return keep, best
}

// Counts that no tensor has, ties among them: of equally good ends the last one.
func TestKLSearchBitForBit(t *testing.T) {
	schedules(t, func(t *testing.T) {
		const n = 24
		counts, info := make([]uint64, n*LinearBins), make([]KLTensor, n)
		for i := range info {
			r := random(uint64(i))
			info[i] = KLTensor{Bins: int32(257 + r.IntN(LinearBins-256)), Levels: int32(1) << (1 + i%8)}
			if i == 1 {
				info[i].Bins = LinearBins
			}
			c := counts[i*LinearBins:][:info[i].Bins]
			switch i % 4 {
			case 0:
				c[1] = 5 // every end is as good
			case 1:
				for j := range c {
					c[j] = r.Uint64() >> (12 + r.IntN(50))
				}
			case 2:
				for range 3 + r.IntN(300) {
					c[r.IntN(len(c))] = 1 + r.Uint64N(9)
				}
			default:
				for j := range c {
					c[j] = 3
				}
			}
			c[len(c)-1]++
			if i == 4 {
				c[1], c[len(c)-1] = 5, 0
			}
		}
		keep, d := device[int32](t, n), device[float64](t, n)
		bytes := KLWorkspace(n)
		work := device[byte](t, int(bytes))
		ok(t, KLThreshold(in(t, counts), in(t, info), n, in(t, calib.LogTable()), keep, d, work, bytes, 0))
		gotKeep, gotD := out[int32](t, keep, n), out[float64](t, d, n)
		shorter := 0
		for i := range info {
			want, divergence := search(counts[i*LinearBins:][:info[i].Bins], int(info[i].Levels))
			if int(gotKeep[i]) != want || gotD[i] != divergence {
				t.Errorf("case %d: keeps %d of %d bins for %v, want %d for %v", i, gotKeep[i], info[i].Bins, gotD[i], want, divergence)
			}
			if want < int(info[i].Bins) {
				shorter++
			}
		}
		if shorter < n/4 {
			t.Errorf("%d of %d cases cut anything: they test nothing", shorter, n)
		}
	})
}

func TestHistogramRefusesArguments(t *testing.T) {
	x := device[float32](t, 64)
	for name, err := range map[string]error{
		"no ranges":        RangeInit(x, 0, 0),
		"negative":         RangeAdd(x, -1, x, 0),
		"not a float's":    RangeAdd(x.Add(2), 1, x, 0),
		"no histograms":    HistogramInit(0, 1, 0),
		"no histogram":     HistogramObserve([]Tap{{x, 1, 0}}, 0),
		"one histogram":    HistogramObserve([]Tap{{x, 1, x}, {x, 1, x}}, 0),
		"no channel":       ChannelMax(x, 1, 0, 1, x, 0),
		"one bit":          HistogramLinear(x, 1, 1, true, x, x, 0),
		"too many tensors": KLThreshold(x, x, 1<<16, x, x, x, x, 1<<40, 0),
		"no table":         KLThreshold(x, x, 1, 0, x, x, x, 1<<20, 0),
	} {
		if !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := KLThreshold(x, x, 2, x, x, 0, x, KLWorkspace(2)-1, 0); !errors.Is(err, ErrWorkspace) {
		t.Error(err)
	}
	ok(t, HistogramObserve(nil, 0))
	ok(t, RangeAdd(x, 0, x, 0))
}
