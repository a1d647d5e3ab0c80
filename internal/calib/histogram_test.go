package calib

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

// normal returns n values of N(0, sigma).
func normal(seed uint64, n int, sigma float64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * sigma)
	}
	return x
}

func observed(x ...float32) *Histogram {
	h := new(Histogram)
	h.Observe(x)
	return h
}

// equalHist compares everything that counts: empty and absent cells are equal.
func equalHist(a, b *Histogram) error {
	if a.finite != b.finite || a.zeros != b.zeros || a.nan != b.nan || a.inf != b.inf {
		return fmt.Errorf("counts differ: %d/%d/%d/%v and %d/%d/%d/%v", a.finite, a.zeros, a.nan, a.inf, b.finite, b.zeros, b.nan, b.inf)
	}
	if a.finite > 0 && (math.Float32bits(a.lo) != math.Float32bits(b.lo) || math.Float32bits(a.hi) != math.Float32bits(b.hi)) {
		return fmt.Errorf("range differs: [%v, %v] and [%v, %v]", a.lo, a.hi, b.lo, b.hi)
	}
	if a.Width() != b.Width() {
		return fmt.Errorf("width differs: %v and %v", a.Width(), b.Width())
	}
	if x, y := a.Cells(), b.Cells(); len(x)+len(y) > 0 && !reflect.DeepEqual(x, y) {
		return fmt.Errorf("cells differ: %d and %d of them", len(x), len(y))
	}
	return nil
}

// edge names a cell: the end nearer to zero, and the sign.
type edge struct {
	at  float64
	neg bool
}

// reference counts the cells of x one by one from the definition alone.
func reference(x []float32) map[edge]uint64 {
	top := 0.
	for _, v := range x {
		if a := math.Abs(float64(v)); a < math.Inf(1) {
			top = math.Max(top, a)
		}
	}
	_, e := math.Frexp(top) // top in [2^(e-1), 2^e)
	k := max(e-binBits, minExp)
	cells := map[edge]uint64{}
	for _, v := range x {
		f := float64(v)
		if f == 0 || f != f || math.IsInf(f, 0) {
			continue
		}
		a, w := math.Abs(f), math.Ldexp(1, k)
		if a < w*CellsPerOctave {
			_, e := math.Frexp(a)
			w = math.Ldexp(1, max(e-1, -126)-cellBits)
		}
		cells[edge{math.Floor(a/w) * w, f < 0}]++
	}
	return cells
}

// hard returns values of every kind a tensor can hold, and every magnitude.
func hard(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	mode := r.IntN(6)
	for i := range x {
		switch mode {
		case 0: // any bits at all
			x[i] = math.Float32frombits(r.Uint32())
		case 1: // after ReLU
			x[i] = max(0, float32(r.NormFloat64()))
		case 2: // a mask among logits
			x[i] = float32(r.NormFloat64())
			if r.IntN(50) == 0 {
				x[i] = -3.4028235e38
			}
		case 3: // tiny, denormal
			x[i] = math.Float32frombits(r.Uint32N(1<<24) | r.Uint32()&(1<<31))
		case 4: // wide log-normal
			x[i] = float32(math.Exp(r.NormFloat64() * 12))
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

func TestHistogramMatchesDefinition(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		x := hard(r, []int{1, 17, 3000, 9000, 40000}[r.IntN(5)])
		want := reference(x)
		for _, kn := range available() {
			h := new(Histogram)
			h.observe(x, kn)
			n := 0
			for _, c := range h.Cells() {
				if c.Lo == 0 && c.Hi == 0 {
					continue
				}
				n++
				at := edge{c.Lo, false}
				if c.Hi <= 0 {
					at = edge{-c.Hi, true}
				}
				if want[at] != c.Count {
					t.Fatalf("seed %d, %s: cell [%g, %g] holds %d, expected %d", seed, kn.name, c.Lo, c.Hi, c.Count, want[at])
				}
			}
			if n != len(want) {
				t.Fatalf("seed %d, %s: %d cells, expected %d", seed, kn.name, n, len(want))
			}
		}
	}
}

// Any order, any batch size, any split into shards, any kernel: same state.
func TestHistogramOrderAndShardsDoNotMatter(t *testing.T) {
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 3))
		var x []float32
		for range 1 + r.IntN(4) {
			x = append(x, hard(r, r.IntN(30000))...)
		}
		want := new(Histogram)
		want.observe(x, plain)
		for _, kn := range available() {
			y := append([]float32(nil), x...)
			r.Shuffle(len(y), func(i, j int) { y[i], y[j] = y[j], y[i] })
			shards := make([]*Histogram, 1+r.IntN(5))
			for i := range shards {
				shards[i] = new(Histogram)
			}
			for len(y) > 0 {
				n := min(len(y), 1+r.IntN(12000))
				shards[r.IntN(len(shards))].observe(y[:n], kn)
				y = y[n:]
			}
			got := new(Histogram)
			for _, i := range r.Perm(len(shards)) {
				if err := got.Merge(shards[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := equalHist(got, want); err != nil {
				t.Fatalf("seed %d, %s: %v", seed, kn.name, err)
			}
		}
	}
}

func FuzzHistogramKernels(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 128, 63})
	f.Add(make([]byte, 40))
	f.Add([]byte("\x00\x00\xc0\x7f\xff\xff\x7f\xff\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x := make([]float32, 0, 3*noDirect)
		for i := 0; i+4 <= len(b); i += 4 {
			x = append(x, math.Float32frombits(binary.LittleEndian.Uint32(b[i:])))
		}
		want := new(Histogram)
		want.Observe(nil)
		for range 1 + 2*noDirect/(len(x)+1) { // long enough for the fast path
			want.addSlow(x)
		}
		y := x
		for range 2 * noDirect / (len(x) + 1) {
			y = append(y, x...)
		}
		for _, kn := range available() {
			got := new(Histogram)
			got.observe(y, kn)
			if err := equalHist(got, want); err != nil {
				t.Fatalf("%s: %v", kn.name, err)
			}
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	x := normal(1, 1<<20, 1)
	relu := append([]float32(nil), x...)
	for i := range relu {
		relu[i] = max(relu[i], 0)
	}
	for _, d := range []struct {
		name string
		x    []float32
	}{{"normal1M", x}, {"normal48k", x[:49152]}, {"relu1M", relu}, {"zero1M", make([]float32, 1<<20)}} {
		for _, kn := range available() {
			b.Run(d.name+"/"+kn.name, func(b *testing.B) {
				h := new(Histogram)
				for b.Loop() {
					h.observe(d.x, kn)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(d.x)), "ns/elem")
			})
		}
	}
}
