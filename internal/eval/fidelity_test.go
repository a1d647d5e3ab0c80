package eval

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

var (
	nan32 = float32(math.NaN())
	inf32 = float32(math.Inf(1))
)

func observed(t *testing.T, y, q []float32) Error {
	t.Helper()
	var e Error
	if err := e.Observe(y, q); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestErrorByHand(t *testing.T) {
	for _, c := range []struct {
		name                      string
		y, q                      []float32
		sqnr, cosine, max, relMSE float64
	}{
		{"nothing", nil, nil, 0, 1, 0, 0},
		{"equal", []float32{1, -2, 3}, []float32{1, -2, 3}, MaxSQNR, 1, 0, 0},
		{"both silent", []float32{0, 0}, []float32{0, 0}, MaxSQNR, 1, 0, 0},
		{"noise in silence", []float32{0, 0}, []float32{0, 1}, -MaxSQNR, 0, 1, 1e20},
		{"vanished", []float32{3, 4}, []float32{0, 0}, 0, 0, 4, 1},
		{"negated", []float32{3, 4}, []float32{-3, -4}, -20 * math.Log10(2), -1, 8, 4},
		{"a tenth off", []float32{10, 0}, []float32{9, 0}, 20, 1, 1, .01},
		{"orthogonal", []float32{1, 0}, []float32{0, 1}, -10 * math.Log10(2), 0, 1, 2},
	} {
		e := observed(t, c.y, c.q)
		if !near(e.SQNR(), c.sqnr, sumTol) || !near(e.Cosine(), c.cosine, sumTol) || !near(e.MaxAbs, c.max, sumTol) || !near(e.RelMSE(), c.relMSE, sumTol) {
			t.Errorf("%s: SQNR %g cosine %g max %g relative %g, expected %g %g %g %g", c.name, e.SQNR(), e.Cosine(), e.MaxAbs, e.RelMSE(), c.sqnr, c.cosine, c.max, c.relMSE)
		}
	}
}

func TestErrorOddValues(t *testing.T) {
	mask := float32(-math.MaxFloat32)
	ninf := float32(math.Inf(-1))
	y := []float32{1, nan32, inf32, 2, mask, mask, 5, 6, 7}
	q := []float32{1, nan32, inf32, nan32, mask, ninf, ninf, 1e31, 7}
	e := observed(t, y, q)
	want := Error{Count: 2, Signal: 50, Dot: 50, QuantSq: 50, Masked: 1, RefNonFinite: 2, QuantNonFinite: 5, Broken: 3}
	if e != want {
		t.Errorf("got %+v, expected %+v", e, want)
	}
	if e.Sound() {
		t.Error("broken elements count as sound")
	}
	if e.SQNR() != MaxSQNR {
		t.Errorf("SQNR of the rest is %g", e.SQNR())
	}
}

func TestErrorLengths(t *testing.T) {
	var e Error
	if err := e.Observe(make([]float32, 3), make([]float32, 4)); !errors.Is(err, ErrLength) {
		t.Errorf("got %v, expected ErrLength", err)
	}
	if e != (Error{}) {
		t.Errorf("refused tensors were counted: %+v", e)
	}
}

// TestErrorProperties: scaling both tensors changes nothing, SQNR follows the
// noise, splitting and merging gives the sums of the whole.
func TestErrorProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	y, noise := make([]float32, 10_000), make([]float32, 10_000)
	for i := range y {
		y[i], noise[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
	}
	add := func(f, scale float32) []float32 {
		r := make([]float32, len(y))
		for i := range r {
			r[i] = scale * (y[i] + f*noise[i])
		}
		return r
	}
	for _, f := range []float32{1, .1, .01, .001} {
		e := observed(t, y, add(f, 1))
		// Equal variances: -20*log10(f) within sampling error (0.1 dB at 10,000).
		if want := -20 * math.Log10(float64(f)); math.Abs(e.SQNR()-want) > .2 {
			t.Errorf("noise %g: SQNR %g, expected about %g", f, e.SQNR(), want)
		}
		// cos² = 1/(1+f²) for independent noise.
		if want := 1 / math.Sqrt(1+float64(f*f)); math.Abs(e.Cosine()-want) > .02 {
			t.Errorf("noise %g: cosine %g, expected about %g", f, e.Cosine(), want)
		}
		const scale = 1024 // a power of two: exact in float32
		ys := make([]float32, len(y))
		for i := range ys {
			ys[i] = scale * y[i]
		}
		if s := observed(t, ys, add(f, scale)); !near(s.SQNR(), e.SQNR(), 1e-6) || !near(s.Cosine(), e.Cosine(), 1e-6) {
			t.Errorf("scaled by %d: SQNR %g cosine %g, expected %g %g", scale, s.SQNR(), s.Cosine(), e.SQNR(), e.Cosine())
		}
		q := add(f, 1)
		var a, b Error
		for i := 0; i < len(y); i += 777 {
			into := &a
			if i%2 == 0 {
				into = &b
			}
			if err := into.Observe(y[i:min(len(y), i+777)], q[i:min(len(y), i+777)]); err != nil {
				t.Fatal(err)
			}
		}
		a.Merge(b)
		if a.Count != e.Count || a.MaxAbs != e.MaxAbs || !near(a.SQNR(), e.SQNR(), sumTol) || !near(a.Cosine(), e.Cosine(), sumTol) {
			t.Errorf("merged %+v, expected %+v", a, e)
		}
	}
}

func FuzzError(f *testing.F) {
	f.Add([]byte{0, 0, 128, 63}, []byte{0, 0, 0, 64})
	f.Add([]byte{0, 0, 192, 127}, []byte{0, 0, 128, 255})
	f.Add([]byte{255, 255, 127, 127}, []byte{255, 255, 127, 255})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		n := min(len(a), len(b)) / 4
		y, q := make([]float32, n), make([]float32, n)
		for i := range n {
			y[i], q[i] = f32(a[4*i:]), f32(b[4*i:])
		}
		e := observed(t, y, q)
		for name, v := range map[string]float64{"SQNR": e.SQNR(), "cosine": e.Cosine(), "relative": e.RelMSE(), "max": e.MaxAbs} {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%s is %g", name, v)
			}
		}
		if s := e.SQNR(); s < -MaxSQNR || s > MaxSQNR {
			t.Errorf("SQNR %g", s)
		}
		if c := e.Cosine(); c < -1 || c > 1 {
			t.Errorf("cosine %g", c)
		}
		if e.Count+e.Masked > int64(n) {
			t.Errorf("%d of %d counted", e.Count+e.Masked, n)
		}
	})
}

func f32(b []byte) float32 {
	return math.Float32frombits(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
}

func TestTensors(t *testing.T) {
	a, b := Tensors{}, Tensors{}
	for _, o := range []struct {
		into Tensors
		name string
		q    float32
	}{{a, "good", 1.001}, {a, "bad", 1.5}, {b, "bad", 1.5}, {b, "twin", 1.5}, {b, "broken", nan32}, {b, "exact", 1}} {
		if err := o.into.Observe(o.name, []float32{1, 2}, []float32{o.q, 2}); err != nil {
			t.Fatal(err)
		}
	}
	a.Merge(b)
	var names []string
	for _, r := range a.Ranked() {
		names = append(names, r.Name)
	}
	if want := []string{"broken", "bad", "twin", "good", "exact"}; !reflect.DeepEqual(names, want) {
		t.Errorf("ranked %v, expected %v", names, want)
	}
	if a["bad"].Count != 4 || b["bad"].Count != 2 {
		t.Errorf("merged counts %d and %d, expected 4 and 2", a["bad"].Count, b["bad"].Count)
	}
	if err := a.Observe("x", []float32{1}, nil); !errors.Is(err, ErrLength) {
		t.Errorf("got %v, expected ErrLength", err)
	}
}

func TestSummarize(t *testing.T) {
	if s := Summarize(nil); s != (Summary{}) {
		t.Errorf("nothing gives %+v", s)
	}
	if s := Summarize([]float64{3}); s.N != 1 || s.Mean != 3 || s.P1 != 3 || s.P99 != 3 {
		t.Errorf("one value gives %+v", s)
	}
	x := []float64{5, 1, 3}
	if Summarize(x); x[0] != 5 {
		t.Error("the argument was sorted in place")
	}
}

func BenchmarkError(b *testing.B) {
	y := make([]float32, 1<<20)
	for i := range y {
		y[i] = float32(i%255) - 127
	}
	b.SetBytes(int64(8 * len(y)))
	var e Error
	for b.Loop() {
		if err := e.Observe(y, y); err != nil {
			b.Fatal(err)
		}
	}
}
