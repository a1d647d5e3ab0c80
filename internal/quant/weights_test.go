package quant

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

func randoms(seed int64, n int) []float32 {
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * math.Exp(r.NormFloat64()))
	}
	return x
}

// TestQuantizeWeightReference compares with a second, plain implementation that
// walks indices instead of strides.
func TestQuantizeWeightReference(t *testing.T) {
	dims := []int64{3, 4, 5}
	w := randoms(1, 60)
	at := func(i, j, k int) int { return (i*4+j)*5 + k }
	for axis := range 3 {
		for _, g := range []Granularity{PerChannel, PerTensor} {
			q, err := QuantizeWeight(w, dims, axis, g, calib.S8)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				for j := range 4 {
					for k := range 5 {
						c := []int{i, j, k}[axis]
						var amax float64
						for i2 := range 3 {
							for j2 := range 4 {
								for k2 := range 5 {
									if g == PerTensor || []int{i2, j2, k2}[axis] == c {
										amax = math.Max(amax, math.Abs(float64(w[at(i2, j2, k2)])))
									}
								}
							}
						}
						scale := float32(amax) / 127
						want := int8(math.RoundToEven(float64(w[at(i, j, k)]) / float64(scale)))
						if got := q.Codes[at(i, j, k)]; got != want {
							t.Fatalf("axis %d %s [%d,%d,%d]: code %d, want %d", axis, g, i, j, k, got, want)
						}
					}
				}
			}
		}
	}
}

// TestQuantizeWeightError: no weight is further than half a scale from its
// code's value, with 8 and with 7 bits.
func TestQuantizeWeightError(t *testing.T) {
	for _, reduce := range []bool{false, true} {
		s := calib.S8
		s.ReduceRange = reduce
		_, top := s.Codes()
		w := randoms(2, 64*32)
		q, err := QuantizeWeight(w, []int64{64, 32}, 1, PerChannel, s)
		if err != nil {
			t.Fatal(err)
		}
		d := q.Dequantize()
		for i := range w {
			half := float64(q.Scales[i%32]) / 2
			if e := math.Abs(float64(w[i] - d[i])); e > half*(1+1e-5) {
				t.Fatalf("reduce=%v: weight %v is %v away, half a scale is %v", reduce, w[i], e, half)
			}
			if c := int32(q.Codes[i]); c > top || c < -top {
				t.Fatalf("reduce=%v: code %d outside ±%d", reduce, c, top)
			}
		}
	}
}

func TestQuantizeWeightEdges(t *testing.T) {
	q, err := QuantizeWeight(make([]float32, 4), []int64{2, 2}, 0, PerChannel, calib.S8)
	if err != nil || q.Scales[0] <= 0 || q.Codes[0] != 0 {
		t.Errorf("zeros: %+v, %v", q, err)
	}
	for name, w := range map[string][]float32{"nan": {float32(math.NaN()), 0}, "inf": {float32(math.Inf(1)), 0}} {
		if _, err := QuantizeWeight(w, []int64{1, 2}, 0, PerChannel, calib.S8); !errors.Is(err, ErrWeight) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range []struct {
		n    int
		dims []int64
		axis int
	}{{3, []int64{2, 2}, 0}, {4, []int64{2, 2}, 2}, {4, []int64{2, 2}, -1}} {
		if _, err := QuantizeWeight(make([]float32, c.n), c.dims, c.axis, PerChannel, calib.S8); err == nil {
			t.Errorf("%+v accepted", c)
		}
	}
}

// TestRowsDoNotDependOnOrder: the kept rows are the same for every order of the
// samples, and are rows of the data.
func TestRowsDoNotDependOnOrder(t *testing.T) {
	const samples, k = 40, 200
	data := make([][]float32, samples)
	for i := range data {
		data[i] = randoms(int64(i), k*(20+i%7)) // ragged
	}
	run := func(order []int) []float32 {
		r := NewRows(k)
		for _, i := range order {
			if err := r.Observe(uint64(i)*77, data[i]); err != nil {
				t.Fatal(err)
			}
		}
		if r.Len() != leastRows {
			t.Fatalf("%d rows kept", r.Len())
		}
		return r.Values()
	}
	order := rand.New(rand.NewPCG(9, 0)).Perm(samples)
	a := run(order)
	rand.New(rand.NewPCG(10, 0)).Shuffle(samples, func(i, j int) { order[i], order[j] = order[j], order[i] })
	b := run(order)
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("value %d: %v and %v", i, a[i], b[i])
		}
	}
	if err := NewRows(4).Observe(1, make([]float32, 6)); err == nil {
		t.Error("6 values accepted as rows of 4")
	}
}

// TestRowsAreUniform: each of 4 samples of equal size gives about a quarter of
// the rows (binomial, n = 384: 96 ± 4.2 sigma), and of narrow rows more are kept.
func TestRowsAreUniform(t *testing.T) {
	const k = 1 << 8
	r := NewRows(k)
	for s := range 4 {
		x := make([]float32, 5000*k)
		for i := range x {
			x[i] = float32(s)
		}
		if err := r.Observe(uint64(s)<<32, x); err != nil {
			t.Fatal(err)
		}
	}
	var count [4]int
	for v := range slices.Chunk(r.Values(), k) {
		count[int(v[0])]++
	}
	if n := RowLimit(1); n != rowValues {
		t.Errorf("%d rows of one value", n)
	}
	for s, c := range count {
		if c < 60 || c > 132 {
			t.Errorf("sample %d has %d of %d rows", s, c, leastRows)
		}
	}
}

func TestSmoothVector(t *testing.T) {
	// sqrt(8/2) : sqrt(2/2) : sqrt(1e-5/2), divided by their geometric mean, and
	// no channel is stretched.
	s := smoothVector([]float32{8, 2, 0}, []float32{2, 2, 2}, 0.5)
	if r := s[0] / s[1]; math.Abs(float64(r)-2) > 1e-5 {
		t.Errorf("ratio %v, want 2", r)
	}
	mean := math.Cbrt(2 * 1 * math.Sqrt(5e-6))
	if math.Abs(float64(s[1])-1/mean) > 1e-4 || s[2] != smoothMin {
		t.Errorf("%v, want the second 1/%.4f and the third %d", s, mean, smoothMin)
	}
}

// TestFakeQuantize compares with calib's own codes.
func TestFakeQuantize(t *testing.T) {
	x := append(randoms(3, 5000), 0, 1e9, -1e9)
	for _, s := range []calib.Scheme{calib.U8, calib.S8} {
		p := calib.ParamsFor(calib.Range{Lo: -1.5, Hi: 4}, s)
		got := FakeQuantize(x, p, s)
		for i, v := range x {
			want := p.Dequantize(p.Quantize(v, s))
			if d := math.Abs(float64(got[i] - want)); d > float64(p.Scale)*1.0001 {
				t.Fatalf("%v: %v, want %v", v, got[i], want)
			} else if d > 1e-6 && math.Abs(math.Mod(math.Abs(float64(v)/float64(p.Scale)), 1)-.5) > 1e-3 {
				// They may differ only where x/scale and x*(1/scale) round to
				// different sides of a half.
				t.Fatalf("%v: %v, want %v", v, got[i], want)
			}
		}
	}
}

// A channel whose weights vanish beside its bias gets another scale; the codes of the
// other channels, which were solved for, stay.
func TestRaisedScalesLeaveOtherChannels(t *testing.T) {
	m := model([]*graph.Value{value("x", 1, 1, 4, 4)}, []*graph.Value{value("y", 1, 2, 3, 3)}, node("Conv", "conv", "x w b", "c"), node("Relu", "relu", "c", "r"), node("Identity", "out", "r", "y"))
	w := []float32{1e-15, 0, -1e-15, 0, 0.4, -1, 0.26, 0.1}
	m.Graph.SetInit("w", tensor.From(w, 2, 1, 2, 2))
	m.Graph.SetInit("b", tensor.From([]float32{5, 0.1}, 2))
	cfg, err := Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	q, err := QuantizeWeight(w, []int64{2, 1, 2, 2}, 0, PerChannel, calib.S8)
	if err != nil {
		t.Fatal(err)
	}
	solved := []int8{52, -126, 32, 14} // none is the nearest
	copy(q.Codes[4:], solved)
	s := NewSolved()
	s.Int8["c"] = q
	if _, err := (&Insert{Plan: p, Choices: fixed(p, ""), Solved: s}).Run(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	got := tensor.View[int8](m.Graph.Init("w_quantized"))
	if scales := tensor.View[float32](m.Graph.Init("w_scale")); scales[0] <= q.Scales[0] {
		t.Errorf("the first channel's scale is %g still: its bias does not fit", scales[0])
	}
	if !slices.Equal(got[4:], solved) {
		t.Errorf("codes %v became %v", solved, got[4:])
	}
}
