package quant

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestAddGrams: what this processor's instructions sum is what the loop in Go does, bit for
// bit, and the groups beside are left alone.
func TestAddGrams(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 0))
	for k := 1; k <= 50; k++ {
		groups, n := 1+r.IntN(9), 1+r.IntN(70)
		rows, sum := make([]float32, n*groups*k), make([]float32, groups*TriangleRow(k))
		for i := range rows {
			rows[i] = float32(r.NormFloat64())
		}
		for i := range sum {
			sum[i] = float32(r.NormFloat64())
		}
		from := r.IntN(groups)
		to := from + r.IntN(groups-from+1)
		want := slices.Clone(sum)
		addGramsGo(want, rows, n, groups, k, from, to)
		if addGrams(sum, rows, n, groups, k, from, to); !slices.Equal(sum, want) {
			t.Fatalf("%d rows of %d values, groups %d to %d of %d: other sums", n, k, from, to, groups)
		}
	}
}
