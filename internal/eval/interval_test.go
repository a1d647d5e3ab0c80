package eval

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func TestWilsonProperties(t *testing.T) {
	for n := 1; n <= 60; n++ {
		for k := 0; k <= n; k++ {
			w, mirror := Wilson(k, n), Wilson(n-k, n)
			p := float64(k) / float64(n)
			if !w.Contains(p) || w.Lo < 0 || w.Hi > 1 {
				t.Fatalf("Wilson(%d, %d) = %v does not hold %g or leaves [0, 1]", k, n, w, p)
			}
			if math.Abs(w.Lo-(1-mirror.Hi)) > 1e-12 {
				t.Fatalf("Wilson(%d, %d) = %v is not the mirror of %v", k, n, w, mirror)
			}
		}
	}
	if w := Wilson(0, 0); w != (Interval{0, 1}) {
		t.Errorf("nothing known gives %v", w)
	}
}

// draw throws a fair table of n paired answers with the given chances of the
// reference alone, or the quantized model alone, being right.
func draw(rng *rand.Rand, n int, refOnly, quantOnly float64) (p Paired) {
	for range n {
		u := rng.Float64()
		p.Add(u < refOnly || u > .5, u >= refOnly && u < refOnly+quantOnly || u > .5)
	}
	return p
}

// TestWilsonCoverage sums the binomial chances of every outcome whose interval
// holds the truth. The expected values are SciPy's.
func TestWilsonCoverage(t *testing.T) {
	for _, c := range []struct {
		n       int
		p, want float64
	}{{200, .505, .944046634766285}, {100, .55, .9443702854144506}, {1000, .51, .9463700916637288}} {
		var cover float64
		for k := 0; k <= c.n; k++ {
			if Wilson(k, c.n).Contains(c.p) {
				a, _ := math.Lgamma(float64(c.n + 1))
				b, _ := math.Lgamma(float64(k + 1))
				d, _ := math.Lgamma(float64(c.n - k + 1))
				cover += math.Exp(a - b - d + float64(k)*math.Log(c.p) + float64(c.n-k)*math.Log(1-c.p))
			}
		}
		if !near(cover, c.want, 1e-8) {
			t.Errorf("n = %d, p = %g: covered in %.9f of the outcomes, expected %.9f", c.n, c.p, cover, c.want)
		}
	}
}

// TestDifferenceCoverage repeats experiments whose truth is known and counts
// how often the interval holds it. 2,000 repetitions have a standard error of
// half a point at 95 %; the bar leaves three of them.
func TestDifferenceCoverage(t *testing.T) {
	const reps, least = 2000, .935
	rng := rand.New(rand.NewPCG(11, 12))
	for _, c := range []struct {
		n                  int
		refOnly, quantOnly float64
	}{{100, .05, .05}, {100, .1, .02}, {1000, .01, .008}, {1000, .03, .03}, {200, .005, .005}} {
		truth, hits := c.quantOnly-c.refOnly, 0
		for range reps {
			if d := draw(rng, c.n, c.refOnly, c.quantOnly).Difference(); d.Lo <= truth && truth <= d.Hi {
				hits++
			}
		}
		if got := float64(hits) / reps; got < least {
			t.Errorf("%+v: the interval holds the truth in %.3f of the runs", c, got)
		}
	}
}

func TestMedianCoverage(t *testing.T) {
	const reps = 2000
	rng := rand.New(rand.NewPCG(13, 14))
	for _, n := range []int{6, 20, 51} {
		hits := 0
		for range reps {
			a, b := make([]float64, n), make([]float64, n)
			for i := range a {
				drift := math.Exp(rng.NormFloat64()) // hits both
				a[i], b[i] = 3*drift*math.Exp(.1*rng.NormFloat64()), drift*math.Exp(.1*rng.NormFloat64())
			}
			if r := PairedRatio(a, b); r.Lo <= 3 && 3 <= r.Hi {
				hits++
			}
		}
		if got := float64(hits) / reps; got < .935 {
			t.Errorf("n = %d: the interval holds the true ratio in %.3f of the runs", n, got)
		}
	}
}

func TestDifference(t *testing.T) {
	p := Paired{BothRight: 900, RefOnly: 20, QuantOnly: 8, Neither: 72}
	d, n := p.Difference(), p.DifferenceNormal()
	if d.Value != -.012 || n.Value != -.012 {
		t.Errorf("difference %g, %g, expected -0.012", d.Value, n.Value)
	}
	// By hand: sd = sqrt(.028 - .012²), half = 1.959964*sd/sqrt(1000).
	if half := .010344; math.Abs(n.Hi-n.Value-half) > 1e-6 || math.Abs(n.Value-n.Lo-half) > 1e-6 {
		t.Errorf("normal interval %g..%g, expected -0.012 ± %g", n.Lo, n.Hi, half)
	}
	// The adjusted interval is close to it, and to the bootstrap of the same data.
	var diffs []float64
	for i := range 1000 {
		switch {
		case i < 20:
			diffs = append(diffs, -1)
		case i < 28:
			diffs = append(diffs, 1)
		default:
			diffs = append(diffs, 0)
		}
	}
	boot, err := MeanScore("difference", diffs, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []Score{n, boot} {
		if math.Abs(other.Lo-d.Lo) > .0012 || math.Abs(other.Hi-d.Hi) > .0012 {
			t.Errorf("interval %g..%g is far from %g..%g", d.Lo, d.Hi, other.Lo, other.Hi)
		}
	}
	// Nobody changed sides: the plain interval claims certainty, ours does not.
	same := Paired{BothRight: 190, Neither: 10}
	if d := same.Difference(); d.Value != 0 || d.Lo >= 0 || d.Hi <= 0 || d.Hi > .02 {
		t.Errorf("no discordant samples give %+v", d)
	}
	if n := same.DifferenceNormal(); n.Lo != 0 || n.Hi != 0 {
		t.Errorf("plain interval %+v", n)
	}
	if d := (Paired{}).Difference(); d.Lo != -1 || d.Hi != 1 {
		t.Errorf("no samples give %+v", d)
	}
}

func TestBootstrap(t *testing.T) {
	x := make([]float64, 400)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range x {
		x[i] = 5 + rng.NormFloat64()
	}
	a, err := MeanScore("m", x, 42, true)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := MeanScore("m", x, 42, true)
	c, _ := MeanScore("m", x, 43, true)
	if a != b {
		t.Error("the same seed gives another interval")
	}
	if a == c {
		t.Error("another seed gives the same interval")
	}
	// The normal theory: 1.96/sqrt(400) = 0.098.
	if half := (a.Hi - a.Lo) / 2; math.Abs(half-.098) > .015 {
		t.Errorf("half width %g, expected about 0.098", half)
	}
	// Many values take the closed form, which agrees.
	long := make([]float64, bootstrapMost+1)
	for i := range long {
		long[i] = x[i%len(x)]
	}
	l, err := MeanScore("m", long, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * 1.96 / math.Sqrt(float64(len(long))); math.Abs((l.Hi-l.Lo)-want) > .1*want {
		t.Errorf("width %g, expected about %g", l.Hi-l.Lo, want)
	}
	if _, err := Bootstrap(0, 0, 1, nil); !errors.Is(err, ErrNoSamples) {
		t.Errorf("no samples: %v", err)
	}
	if _, err := Bootstrap(3, 5, 1, nil); !errors.Is(err, ErrOptions) {
		t.Errorf("5 resamples: %v", err)
	}
	if _, err := Bootstrap(3, 0, 1, func([]int) float64 { return math.NaN() }); !errors.Is(err, ErrNoSamples) {
		t.Errorf("undefined metric: %v", err)
	}
	if ci, err := Bootstrap(1, 0, 1, func([]int) float64 { return 7 }); err != nil || ci != (Interval{7, 7}) {
		t.Errorf("one sample: %v %v", ci, err)
	}
}

// TestLeastPaired: with so many samples two equal models prove the loss, with one less they do not.
func TestLeastPaired(t *testing.T) {
	for _, loss := range []float64{0.5, 0.05, 0.01, 0.001} {
		n := LeastPaired(loss)
		if d := (Paired{BothRight: n}).Difference(); -d.Lo > loss {
			t.Errorf("%v: %d samples leave %v", loss, n, -d.Lo)
		}
		if d := (Paired{BothRight: n - 1}).Difference(); n > 2 && -d.Lo <= loss {
			t.Errorf("%v: %d samples suffice already", loss, n-1)
		}
	}
}
