package calib

import (
	"context"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// One test for each known defect of today's tools in calibration
// (microsoft/onnxruntime unless said otherwise), showing our result right.

// Defect 1 (#9597): at its defaults the entropy method equals minmax.
func TestDefect1EntropyIsNotMinMax(t *testing.T) {
	x := append(normal(1, 200000, 1), 30, -25, 28)
	h := observed(x...)
	if bins := len(h.Linear()); bins < 2048 {
		t.Fatalf("%d bins of |x|, expected at least 2048", bins)
	}
	e, m := threshold(t, MethodEntropy, h, U8), threshold(t, MethodMinMax, h, U8)
	if m != (Range{-25, 30}) {
		t.Errorf("minmax: %v", m)
	}
	if e.Hi > 8 || e.Lo < -8 || e.Hi < 2 || e.Lo > -2 {
		t.Errorf("entropy keeps %v of a normal distribution with three outliers", e)
	}
}

// Defect 2: CalibMaxIntermediateOutputs=n throws away every full chunk; 8
// batches with n=3 gave [-18, 14.3] where the true range was [-470, 260].
func TestDefect2EveryChunkCounts(t *testing.T) {
	c := NewCollector(2, map[string]Spec{"x": {}})
	var all []float32
	for i := range 8 {
		x := normal(uint64(i), 20000+i, math.Pow(2, float64(8-i)))
		all = append(all, x...)
		if err := c.Observe(context.Background(), engine.Feeds{"x": tensor.From(x, int64(len(x)))}, SampleID{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := c.Stats("x").Histogram().MinMax()
	if r.Lo != slices.Min(all) || r.Hi != slices.Max(all) {
		t.Errorf("%v, expected [%v, %v]", r, slices.Min(all), slices.Max(all))
	}
	if err := equalHist(c.Stats("x").Histogram(), observed(all...)); err != nil {
		t.Error(err)
	}
}

// Defect 3 (#10571): one outlier of 1e5 among a million N(0,1) values gave a
// 99.999 % threshold of 8.9e-7.
func TestDefect3PercentileSurvivesAnOutlier(t *testing.T) {
	x := append(normal(11, 1_000_000, 1), 1e5)
	h := observed(x...)
	if !h.Concentrated() {
		t.Error("one linear bin holds nearly everything, and nothing says so")
	}
	// The tenth largest |x| of a million varies by some per cent itself.
	const truth, tol = 4.4172, 0.04
	got, err := Percentile(99.999).Threshold(h, S8)
	if err != nil || !near(got.AbsMax(), truth, tol) {
		t.Errorf("symmetric: %v %v, expected about %v", got, err, truth)
	}
	got, err = Percentile(99.999).Threshold(h, U8)
	if err != nil || !near(got.Hi, truth, 2*tol) || !near(got.Lo, -truth, 2*tol) {
		t.Errorf("asymmetric: %v %v, expected about %v", got, err, truth)
	}
	// The sample's own order statistic is the sharp check.
	abs := slices.Clone(x)
	for i := range abs {
		abs[i] = abs32(abs[i])
	}
	slices.Sort(abs)
	if got, _ = Percentile(99.99).Threshold(h, S8); !near(got.AbsMax(), abs[len(abs)-1-100], 0.01) {
		t.Errorf("99.99 %%: %v, the order statistic is %v", got, abs[len(abs)-101])
	}
	// An overflow among the values must not do it either.
	y := append(normal(12, 100000, 1), 3e38)
	if got, _ = Percentile(99.9).Threshold(observed(y...), S8); !near(got.AbsMax(), 3.2905, 0.03) {
		t.Errorf("with 3e38 among them: %v, expected about 3.29", got)
	}
}

// Defect 4 (#10503): every activation is kept until binning; BERT needs more
// than 120 GB at 32 samples.
func TestDefect4MemoryIsFlat(t *testing.T) {
	x := normal(13, 1<<16, 1)
	h := new(Histogram)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	observe := func(n int) uint64 {
		for range n {
			h.Observe(x)
		}
		return heap()
	}
	few := observe(10)
	many := observe(100)
	const slack = 64 << 10
	if many > few+slack {
		t.Errorf("the heap grew by %d bytes with ten times the data", many-few)
	}
	if n := testing.AllocsPerRun(20, func() { h.Observe(x) }); n > 1 {
		t.Errorf("%v allocations a call", n)
	}
	runtime.KeepAlive(h)
}

// Defect 5 (#18792): histogram observers raise on ragged shapes; NaN and Inf
// are silent in some methods and raise in others.
func TestDefect5RaggedShapesAndNaN(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	c := NewCollector(2, map[string]Spec{"x": {ChannelMax: true, Axis: -1}})
	for i, s := range []struct {
		x    []float32
		dims []int64
	}{
		{[]float32{1, 2, 3, -4, 5, 6}, []int64{1, 3, 2}},
		{[]float32{-7, 8}, []int64{1, 1, 2}},
		{[]float32{}, []int64{1, 0, 2}},
		{[]float32{nan, inf, -inf, .5}, []int64{1, 2, 2}},
	} {
		if err := c.Observe(context.Background(), engine.Feeds{"x": tensor.From(s.x, s.dims...)}, SampleID{byte(i)}); err != nil {
			t.Fatalf("shape %v: %v", s.dims, err)
		}
	}
	st := c.Stats("x")
	if m := st.ChannelMax(); !slices.Equal(m, []float32{7, 8}) {
		t.Errorf("channel maxima %v", m)
	}
	for _, m := range Names() {
		r, err := st.Threshold(m, U8)
		if err != nil || !(r.Hi <= 8 && r.Lo >= -7 && r.Hi > 0 && r.Lo < 0) {
			t.Errorf("%s: %v %v", m, r, err)
		}
	}
	r, err := c.Table("").Receipt(nil)
	if err != nil {
		t.Fatal(err)
	}
	if x := r.Tensors["x"]; x.NaN != 1 || x.Inf != 2 || x.Elements != 12 || len(r.Warnings) != 1 {
		t.Errorf("%+v %q", x, r.Warnings)
	}
}

// Defect 6: the same batches in reverse gave [-28.6, 28.8] and [-15.9, 16.1].
func TestDefect6OrderDoesNotMatter(t *testing.T) {
	var batches [][]float32
	for i := range 8 {
		batches = append(batches, normal(uint64(20+i), 30000, math.Pow(1.8, float64(i))))
	}
	forward, backward := new(Histogram), new(Histogram)
	for i := range batches {
		forward.Observe(batches[i])
		backward.Observe(batches[len(batches)-1-i])
	}
	for _, m := range Names() {
		if a, b := threshold(t, m, forward, U8), threshold(t, m, backward, U8); a != b {
			t.Errorf("%s: %v forward, %v backward", m, a, b)
		}
	}
}

// Defect 7: the calibration table holds max(lowest, highest), so [-100, 1] was
// written as 1.
func TestDefect7CacheHoldsTheLargerMagnitude(t *testing.T) {
	ranges := map[string]Range{"x": {-100, 1}}
	var ort, trt strings.Builder
	if err := WriteORT(&ort, ranges); err != nil || ort.String() != "x 100\n" {
		t.Errorf("ONNX Runtime: %q %v", ort.String(), err)
	}
	if err := WriteTensorRT(&trt, ranges); err != nil {
		t.Fatal(err)
	}
	s, err := ParseTensorRT(strings.NewReader(trt.String()))
	if err != nil || s["x"] != float32(100)/127 {
		t.Errorf("TensorRT: %v %v", s, err)
	}
}
