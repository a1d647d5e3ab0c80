package calib

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

func threshold(t *testing.T, method string, h *Histogram, s Scheme) Range {
	t.Helper()
	th, err := ByName(method)
	if err != nil {
		t.Fatal(err)
	}
	r, err := th.Threshold(h, s)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return r
}

func near(a, b float32, tol float64) bool {
	return math.Abs(float64(a-b)) <= tol*math.Max(math.Abs(float64(a)), math.Abs(float64(b)))
}

func relu(x []float32) []float32 {
	y := slices.Clone(x)
	for i := range y {
		y[i] = max(y[i], 0)
	}
	return y
}

// Every method: 0 inside, within what was seen, whatever the data.
func TestThresholdsStayInside(t *testing.T) {
	for seed := range uint64(18) {
		h := observed(hard(rand.New(rand.NewPCG(seed, 5)), 4000)...)
		seen, ok := h.MinMax()
		if !ok {
			continue
		}
		seen = seen.WithZero()
		for _, m := range append(Names(), "percentile:99", "percentile:100") {
			for _, s := range schemes[:4] {
				r := threshold(t, m, h, s)
				if !(r.Lo <= 0 && r.Hi >= 0 && r.Lo >= seen.Lo && r.Hi <= seen.Hi) {
					t.Errorf("seed %d: %s gives %v of %v", seed, m, r, seen)
				}
			}
		}
	}
}

func TestThresholdsOfTrivialTensors(t *testing.T) {
	for _, c := range []struct {
		name string
		h    *Histogram
		want Range
	}{
		{"zeros", observed(0, 0, 0), Range{}},
		{"constant", observed(5, 5, 5, 5), Range{0, 5}},
		{"negative constant", observed(-3, -3), Range{-3, 0}},
		{"denormal", observed(1e-42, 1e-42), Range{0, 1e-42}},
	} {
		for _, m := range Names() {
			r := threshold(t, m, c.h, U8)
			// The cut inside the one cell may move by a share (1-p) of it.
			if !near(r.Lo, c.want.Lo, 1e-3) || !near(r.Hi, c.want.Hi, 1e-3) {
				t.Errorf("%s of %s: %v, expected %v", m, c.name, r, c.want)
			}
		}
	}
	for _, m := range Names() {
		th, _ := ByName(m)
		if _, err := th.Threshold(new(Histogram), U8); !errors.Is(err, ErrNoData) {
			t.Errorf("%s of nothing: %v", m, err)
		}
		nan := float32(math.NaN())
		if _, err := th.Threshold(observed(nan, float32(math.Inf(1)), nan), U8); !errors.Is(err, ErrAllNaN) {
			t.Errorf("%s of NaN: %v", m, err)
		}
	}
}

func TestByName(t *testing.T) {
	for _, bad := range []string{"", "kl", "percentile:", "percentile:50", "percentile:100.1", "percentile:NaN", "percentile:x", MethodMovingAverage} {
		if _, err := ByName(bad); !errors.Is(err, ErrMethod) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	m := Builtin()
	m["half"] = ThresholderFunc(func(h *Histogram, _ Scheme) (Range, error) {
		r, _ := h.MinMax()
		return Range{r.Lo / 2, r.Hi / 2}, nil
	})
	th, err := m.ByName("half")
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := th.Threshold(observed(-2, 4), U8); r != (Range{-1, 2}) {
		t.Error(r)
	}
	if _, err := ByName("half"); err == nil {
		t.Error("one set leaks into another")
	}
}

// exact order statistics, for comparison.
func tails(x []float32, tail float64) Range {
	s := slices.Clone(x)
	slices.Sort(s)
	k := int(tail * float64(len(s)))
	return Range{s[k], s[len(s)-1-k]}
}

func TestPercentileMatchesOrderStatistics(t *testing.T) {
	// One cell is 1/128 of an octave at most; between order statistics far
	// out the interpolation has its own freedom.
	const tol = 0.015
	x := normal(3, 200000, 2)
	h := observed(x...)
	for _, p := range []float64{90, 99, 99.9, 99.99} {
		got, err := Percentile(p).Threshold(h, U8)
		if err != nil {
			t.Fatal(err)
		}
		want := tails(x, (1-p/100)/2)
		if !near(got.Lo, want.Lo, tol) || !near(got.Hi, want.Hi, tol) {
			t.Errorf("%v %%: %v, expected %v", p, got, want)
		}
		abs := slices.Clone(x)
		for i := range abs {
			abs[i] = abs32(abs[i])
		}
		slices.Sort(abs)
		one := abs[len(abs)-1-int((1-p/100)*float64(len(abs)))]
		if got, _ = Percentile(p).Threshold(h, S8); !near(got.AbsMax(), one, tol) {
			t.Errorf("%v %% symmetric: %v, expected %v", p, got, one)
		}
		y := relu(x)
		slices.Sort(y)
		one = y[len(y)-1-int((1-p/100)*float64(len(y)))]
		if got, _ = Percentile(p).Threshold(observed(relu(x)...), U8); got.Lo != 0 || !near(got.Hi, one, tol) {
			t.Errorf("%v %% after ReLU: %v, expected %v", p, got, one)
		}
	}
	if got := threshold(t, "percentile:100", h, U8); got != (Range{h.lo, h.hi}) {
		t.Errorf("100 %%: %v", got)
	}
}

// naiveKL is the definition, without prefix sums.
func naiveKL(bins []uint64, levels, i int) float64 {
	c := make([]float64, len(bins))
	for j, v := range bins {
		c[j] = float64(v)
	}
	c[0] = c[1]
	p := slices.Clone(c[:i])
	for _, v := range c[i:] {
		p[i-1] += v
	}
	q := make([]float64, i)
	part := func(j int) int { return j * levels / i }
	for l := range levels {
		sum, n := 0., 0
		for j := range i {
			if part(j) == l && c[j] > 0 {
				sum += c[j]
				n++
			}
		}
		for j := range i {
			if part(j) == l && c[j] > 0 {
				q[j] = sum / float64(n)
			}
		}
	}
	ps, qs := 0., 0.
	for j := range i {
		ps += p[j]
		qs += q[j]
	}
	d := 0.
	for j := range i {
		if p[j] > 0 {
			d += p[j] / ps * math.Log(p[j]/ps/(q[j]/qs))
		}
	}
	return d
}

func TestEntropyGolden(t *testing.T) {
	b, err := os.ReadFile("testdata/entropy.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name         string
		Levels, Keep int
		Bins         []uint64
		Divergence   float64
	}
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	// Both sum in another order; candidates closer than this are equally good.
	const tol = 1e-9
	for _, c := range cases {
		got := bestKL(c.Bins, c.Levels)
		if got == c.Keep {
			continue
		}
		if d := naiveKL(c.Bins, c.Levels, got); math.Abs(d-c.Divergence) > tol {
			t.Errorf("%s: keeps %d bins (divergence %g), modelopt keeps %d (%g)", c.Name, got, d, c.Keep, c.Divergence)
		}
	}
}

func TestLogTable(t *testing.T) {
	const tol = 2e-15 // a few last places: the table entry, the product and the series each round
	r := rand.New(rand.NewPCG(1, 10))
	for range 100000 {
		x := math.Ldexp(1+r.Float64(), r.IntN(200)-100)
		if got, want := logSteps().log(x), math.Log(x); math.Abs(got-want) > tol*max(1, math.Abs(want)) {
			t.Fatalf("log %v: %v, expected %v", x, got, want)
		}
	}
}

func TestEntropyUsesAllLevelsOfOneSign(t *testing.T) {
	x := normal(8, 300000, 1)
	gelu := slices.Clone(x)
	for i, v := range x {
		gelu[i] = float32(float64(v) * .5 * (1 + math.Erf(float64(v)/math.Sqrt2)))
	}
	gelu = append(gelu, 135, 180) // the tail of GELU in BERT; its minimum is -0.17
	for _, c := range []struct {
		name   string
		x      []float32
		s      Scheme
		levels int
	}{{"relu", relu(x), U8, 256}, {"gelu", gelu, U8, 256}, {"relu", relu(x), S8, 128}, {"normal", x, U8, 128}} {
		h := observed(c.x...)
		want := float32(float64(bestKL(h.Linear(), c.levels)) * h.Width())
		if got := threshold(t, MethodEntropy, h, c.s); got.Hi != min(want, h.hi) {
			t.Errorf("%s: %v, expected %v with %d levels", c.name, got, want, c.levels)
		}
	}
}

// direct is the quantization error of the values themselves.
func direct(x []float32, r Range, s Scheme) (e float64) {
	q := ParamsFor(r, s)
	for _, v := range x {
		d := float64(q.Dequantize(q.Quantize(v, s))) - float64(v)
		e += d * d
	}
	return e
}

func TestMSEIsNearTheBestOfADirectSearch(t *testing.T) {
	const tol = 1.02 // the histogram takes the mass of a cell as uniform
	x := normal(4, 8000, 1)
	skew := slices.Clone(x)
	for i := range skew {
		skew[i] = float32(math.Exp(float64(x[i]))) - 2
	}
	outlier := append(slices.Clone(x), 40, -25)
	for name, d := range map[string][]float32{"normal": x, "skew": skew, "outlier": outlier, "relu": relu(x)} {
		h := observed(d...)
		full, _ := h.MinMax()
		for _, s := range []Scheme{U8, S8, {Type: S8.Type, Symmetric: true, Bits: 4}, {Type: U8.Type, Bits: 4}} {
			got := direct(d, threshold(t, MethodMSE, h, s), s)
			best := direct(d, full, s)
			for i := 1; i <= 12; i++ {
				for j := 1; j <= 12; j++ {
					if i != j && (s.Symmetric || full.Lo >= 0) {
						continue
					}
					best = min(best, direct(d[:len(d):len(d)], Range{full.Lo * float32(i) / 12, full.Hi * float32(j) / 12}, s))
				}
			}
			if got > best*tol {
				t.Errorf("%s, %+v: error %g, a coarse direct search finds %g", name, s, got, best)
			}
		}
	}
}

func TestClippedShare(t *testing.T) {
	x := normal(6, 100000, 1)
	h := observed(x...)
	for _, r := range []Range{{-1, 1}, {-2, .5}, {0, 10}, {-100, 100}, {0, 0}} {
		n := 0.
		for _, v := range x {
			if v < r.Lo || v > r.Hi {
				n++
			}
		}
		if got := ClippedShare(h, r); math.Abs(got-n/1e5) > 1e-3 {
			t.Errorf("%v: %v, counted %v", r, got, n/1e5)
		}
	}
	if got := ClippedShare(observed(5, 5, 0), Range{0, 5}); got != 0 {
		t.Errorf("nothing is outside, got %v", got)
	}
	if ClippedShare(new(Histogram), Range{0, 1}) != 0 {
		t.Error("an empty tensor clips nothing")
	}
}

func BenchmarkThreshold(b *testing.B) {
	x := normal(1, 1<<20, 1)
	sets := map[string]*Histogram{"normal": observed(x...), "relu": observed(relu(x)...)}
	for _, m := range Names() {
		th, _ := ByName(m)
		for d, h := range sets {
			b.Run(m+"/"+d, func(b *testing.B) {
				for b.Loop() {
					if _, err := th.Threshold(h, U8); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
