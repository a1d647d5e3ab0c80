package quant

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRowsFetched: rows that are fetched by Wanted's numbers make the sample that
// looking at all of them makes, also when others come in between.
func TestRowsFetched(t *testing.T) {
	const k = 300 // of which as few rows as of any are kept
	r := rand.New(rand.NewPCG(1, 2))
	all, fetched := NewRows(k), NewRows(k)
	type late struct {
		key  uint64
		rows []int
		x    []float32
	}
	var waiting []late
	most := 0
	for range 40 {
		key, n := r.Uint64(), 1+r.IntN(2*leastRows)
		x := make([]float32, n*k)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		if err := all.Observe(key, x); err != nil {
			t.Fatal(err)
		}
		rows := fetched.Wanted(key, n)
		most = max(most, len(rows))
		if !slices.IsSorted(rows) {
			t.Fatalf("rows %v", rows)
		}
		var some []float32
		for _, i := range rows {
			some = append(some, x[i*k:(i+1)*k]...)
		}
		waiting = append(waiting, late{key, rows, some})
		if len(waiting) == 3 {
			for _, w := range waiting {
				if err := fetched.Keep(w.key, w.rows, w.x); err != nil {
					t.Fatal(err)
				}
			}
			waiting = nil
		}
	}
	for _, w := range waiting {
		if err := fetched.Keep(w.key, w.rows, w.x); err != nil {
			t.Fatal(err)
		}
	}
	if most > leastRows || fetched.Len() != leastRows || !slices.Equal(fetched.Values(), all.Values()) {
		t.Errorf("%d rows, at most %d wanted at once; they differ from the %d of all", fetched.Len(), most, all.Len())
	}
	if err := fetched.Keep(1, []int{0}, make([]float32, k+1)); err == nil {
		t.Error("values that are no rows were taken")
	}
}

// Choices are made by the rows that have neither NaN nor infinity.
func TestRowsFinite(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	rows, clean := NewRows(2), NewRows(2)
	if err := rows.Observe(7, []float32{nan, 1, 1, -inf}); err != nil {
		t.Fatal(err)
	}
	if x, m := rows.Finite(); m != 0 || len(x) != 0 || !rows.empty() {
		t.Errorf("%d finite rows %v, expected none", m, x)
	}
	for _, r := range []*Rows{rows, clean} {
		if err := r.Observe(3, []float32{1, 2, 3, 4}); err != nil {
			t.Fatal(err)
		}
	}
	if x, m := rows.Finite(); m != 2 || !slices.Equal(x, clean.Values()) || rows.empty() || rows.Len() != 4 {
		t.Errorf("%d finite rows %v of %d, expected %v", m, x, rows.Len(), clean.Values())
	}
}
