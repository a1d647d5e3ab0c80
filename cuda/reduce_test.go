//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
)

// sumTolerance: a sum of n normal values in float is off by about sqrt(n) ulp.
const sumTolerance = 1e-5

func TestReduce(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range []struct{ outer, axis, inner int }{{1, 1, 1}, {9, 7, 1}, {3, 64, 1}, {20, 130, 1}, {2, 2500, 1}, {3, 4096, 1}, {2, 3, 5}, {1, 40, 33}, {3, 50, 70}, {2, 16, 300}, {4, 17, 1000}, {2, 0, 3}, {2, 0, 1}, {0, 4, 4}} {
			x := normal(random(uint64(c.axis)), c.outer*c.axis*c.inner)
			dx := in(t, x)
			for r := ReduceSum; r <= ReduceL2; r++ {
				y := device[float32](t, c.outer*c.inner)
				ok(t, Reduce(r, dx, int64(c.outer), int64(c.axis), int64(c.inner), y, 0))
				want := make([]float32, c.outer*c.inner)
				for i := range want {
					sum, squares, lo, hi := 0.0, 0.0, math.Inf(1), math.Inf(-1)
					for a := range c.axis {
						v := float64(x[(i/c.inner*c.axis+a)*c.inner+i%c.inner])
						sum, squares, lo, hi = sum+v, squares+v*v, min(lo, v), max(hi, v)
					}
					mean := sum / float64(max(c.axis, 1))
					want[i] = float32(map[Reduction]float64{ReduceSum: sum, ReduceMean: mean, ReduceMax: hi, ReduceMin: lo, ReduceL2: math.Sqrt(squares)}[r])
				}
				near(t, fmt.Sprintf("%v of %v", r, c), out[float32](t, y, len(want)), want, sumTolerance, 1)
			}
		}
	})
}

func TestReduceRefusesArguments(t *testing.T) {
	p := device[float32](t, 4)
	for name, err := range map[string]error{
		"null":      Reduce(ReduceSum, 0, 1, 1, 1, p, 0),
		"negative":  Reduce(ReduceSum, p, 1, -1, 1, p, 0),
		"too large": Reduce(ReduceSum, p, 1<<40, 1<<40, 1, p, 0),
		"operation": Reduce(Reduction(5), p, 1, 1, 1, p, 0),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := Reduction(7).String() + ReduceL2.String(); got != "Reduction(7)ReduceL2" {
		t.Errorf("reductions print as %q", got)
	}
}
