package eval

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// reference holds values computed by SciPy and NumPy (testdata/reference.py).
type reference struct {
	Wilson []struct {
		K, N   int
		Lo, Hi float64
	}
	McNemar []struct {
		B, C int
		P    float64
	}
	MedianRank []struct {
		N, Rank  int
		Coverage float64
	} `json:"median_rank"`
	Quantile struct{ X, Q, V []float64 }
	Error    []struct {
		Y, Z   []float32
		SQNR   float64
		Cosine float64
		MaxAbs float64 `json:"max_abs"`
		RelMSE float64 `json:"rel_mse"`
	}
	Pool struct {
		H    []float32
		Mask []int64
		V    []float64
	}
	Nearest struct {
		N, D, Same int
		Ref, Quant []float32
	}
}

func readReference(t *testing.T) (r reference) {
	t.Helper()
	b, err := os.ReadFile("testdata/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// near compares with a tolerance relative to the larger side. 1e-9 covers the
// order of float64 sums and the accuracy of Lgamma.
func near(a, b, tol float64) bool {
	return a == b || math.Abs(a-b) <= tol*math.Max(1e-12, math.Max(math.Abs(a), math.Abs(b)))
}

const sumTol = 1e-9

func TestAgainstReference(t *testing.T) {
	r := readReference(t)
	for _, c := range r.Wilson {
		// SciPy leaves rounding residue of 1e-17 at the ends.
		if got := Wilson(c.K, c.N); math.Abs(got.Lo-c.Lo) > 1e-12 || math.Abs(got.Hi-c.Hi) > 1e-12 {
			t.Errorf("Wilson(%d, %d) = %v, expected %v..%v", c.K, c.N, got, c.Lo, c.Hi)
		}
	}
	for _, c := range r.McNemar {
		if got := (Paired{RefOnly: c.B, QuantOnly: c.C}).McNemar(); !near(got, c.P, sumTol) {
			t.Errorf("McNemar(%d, %d) = %g, expected %g", c.B, c.C, got, c.P)
		}
	}
	for _, c := range r.MedianRank {
		x := make([]float64, c.N)
		for i := range x {
			x[i] = float64(i + 1)
		}
		ci, cov := MedianInterval(x)
		if ci.Lo != float64(c.Rank) || ci.Hi != float64(c.N+1-c.Rank) || !near(cov, c.Coverage, sumTol) {
			t.Errorf("n = %d: ranks %v with coverage %g, expected from %d with %g", c.N, ci, cov, c.Rank, c.Coverage)
		}
	}
	s := Summarize(r.Quantile.X)
	for i, got := range []float64{s.Min, s.P1, s.P5, s.P50, s.P90, s.P99, s.Max} {
		if !near(got, r.Quantile.V[i], sumTol) {
			t.Errorf("quantile %g is %g, expected %g", r.Quantile.Q[i], got, r.Quantile.V[i])
		}
	}
	for i, c := range r.Error {
		var e Error
		if err := e.Observe(c.Y, c.Z); err != nil {
			t.Fatal(err)
		}
		if !near(e.SQNR(), c.SQNR, sumTol) || !near(e.Cosine(), c.Cosine, sumTol) || !near(e.MaxAbs, c.MaxAbs, sumTol) || !near(e.RelMSE(), c.RelMSE, sumTol) {
			t.Errorf("case %d: SQNR %g cosine %g max %g relative %g, expected %g %g %g %g", i, e.SQNR(), e.Cosine(), e.MaxAbs, e.RelMSE(), c.SQNR, c.Cosine, c.MaxAbs, c.RelMSE)
		}
	}
	v, err := MeanPool(tensor.From(r.Pool.H, 1, 5, 3), engine.Feeds{"attention_mask": tensor.From(r.Pool.Mask, 1, 5)}, DefaultMask)
	if err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if !near(float64(v[i]), r.Pool.V[i], 1e-6) { // float32 result
			t.Errorf("pooled[%d] = %g, expected %g", i, v[i], r.Pool.V[i])
		}
	}
	var n neighbours
	d := r.Nearest.D
	for i := range r.Nearest.N {
		n.add(r.Nearest.Ref[i*d:(i+1)*d], r.Nearest.Quant[i*d:(i+1)*d])
	}
	if got, want := n.agreement(), Proportion("nearest-neighbour agreement", r.Nearest.Same, r.Nearest.N); got != want {
		t.Errorf("nearest neighbours %v, expected %v", got, want)
	}
}
