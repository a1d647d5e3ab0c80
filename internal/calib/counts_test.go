package calib

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// counts returns h as a device would hold it.
func counts(h *Histogram) *Counts {
	c := &Counts{Finite: h.finite, Zeros: h.zeros, NaN: h.nan, Inf: h.inf, Lo: h.lo, Hi: h.hi, Exp: h.state.k}
	for i := range h.sides {
		c.Linear[i], c.Cells[i] = make([]uint64, LinearBins), make([]uint64, LogCells)
		copy(c.Linear[i], h.sides[i].lin)
		for e, cells := range h.sides[i].low {
			if cells != nil {
				copy(c.Cells[i][e*CellsPerOctave:], cells[:])
			}
		}
	}
	return c
}

func TestAddCounts(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 11))
		x := hard(r, r.IntN(9000))
		cut := 0
		if len(x) > 0 {
			cut = r.IntN(len(x))
		}
		got := observed(x[:cut]...)
		if err := got.AddCounts(counts(observed(x[cut:]...))); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := equalHist(got, observed(x...)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func TestAddCountsRefuses(t *testing.T) {
	for name, spoil := range map[string]func(c *Counts){
		"a count too many":     func(c *Counts) { c.Finite++ },
		"another exponent":     func(c *Counts) { c.Exp++ },
		"an infinite range":    func(c *Counts) { c.Hi = float32(math.Inf(1)) },
		"a range of NaN":       func(c *Counts) { c.Lo = float32(math.NaN()) },
		"a range turned round": func(c *Counts) { c.Lo, c.Hi = c.Hi, c.Lo },
		"too few bins":         func(c *Counts) { c.Linear[0] = c.Linear[0][1:] },
		"too few cells":        func(c *Counts) { c.Cells[1] = nil },
		"a bin below the first": func(c *Counts) {
			c.Linear[0][3], c.Finite = 1, c.Finite+1
		},
		"a cell above the first bin": func(c *Counts) {
			c.Cells[0][LogCells-1], c.Finite = 1, c.Finite+1
		},
	} {
		c := counts(observed(normal(1, 500, 1)...))
		spoil(c)
		h := new(Histogram)
		if err := h.AddCounts(c); !errors.Is(err, ErrMerge) || h.Count() != 0 {
			t.Errorf("%s: %v, %d values", name, err, h.Count())
		}
	}
}

func TestAddPartial(t *testing.T) {
	spec := Spec{ChannelMax: true, Axis: -1, MovingAverage: true}
	dims := []int64{2, 3}
	samples := [][]float32{{1, -2, 3, 4, 5, -6}, {-9, 0, 0, 0, 2, 1}, {float32(math.NaN()), 0, 1, 2, 3, 4}}
	want, got := NewStats(spec), NewStats(spec)
	for i, x := range samples {
		if err := want.Observe(x, dims); err != nil {
			t.Fatal(err)
		}
		m, _ := NewChannelMax(3)
		m.Observe(x)
		h := observed(x...)
		r, _ := h.MinMax()
		if i == 1 { // the device takes turns with the CPU
			if err := got.Observe(x, dims); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := got.Add(Partial{Calls: 1, Histogram: h, ChannelMax: m.Max(), Samples: []Range{r}}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := NewCollector(1, nil).Table(""), NewCollector(1, nil).Table("")
	a.Tensors, b.Tensors = map[string]*Stats{"x": want}, map[string]*Stats{"x": got}
	if x, y := written(t, a), written(t, b); x != y {
		t.Errorf("%s\nexpected\n%s", y, x)
	}
	h := observed(1)
	for name, c := range map[string]struct {
		spec Spec
		p    Partial
	}{
		"no histogram":      {Spec{}, Partial{}},
		"means":             {Spec{ChannelMean: true}, Partial{Histogram: h}},
		"maxima not wanted": {Spec{}, Partial{Histogram: h, ChannelMax: []float32{1}}},
	} {
		if err := NewStats(c.spec).Add(c.p); !errors.Is(err, ErrMerge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := got.Add(Partial{Histogram: h, ChannelMax: []float32{1}}); !errors.Is(err, ErrShape) {
		t.Error(err)
	}
}
