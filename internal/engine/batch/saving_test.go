package batch

import (
	"math/rand/v2"
	"testing"
	"time"
)

// run simulates a queue that is never empty, on a machine whose speed changes
// by a quarter now and then and which is sometimes busy with something else. It
// returns the shares of runs, after the first hundred, that were of two and of
// more requests.
func run(seed uint64, fixed, each float64) (two, more float64) {
	r := rand.New(rand.NewPCG(seed, 7))
	const size, runs = 128, 4000
	var v saving
	slow, busy := 1.0, 0
	for i := range runs {
		if r.IntN(150) == 0 {
			slow = 1 + 0.25*float64(r.IntN(2))
		}
		if r.IntN(300) == 0 {
			busy = 20
		}
		n := 1
		for ; n < 8; n++ {
			if float64((n+1)*size) > maxGrowth*max(v.largest, size) {
				break
			}
			if p := v.pays(float64(n*size), size, float64((n+1)*size)); p == no || p == unknown && n > 1 {
				break
			}
		}
		took := (fixed + each*float64(n)) * slow * (1 + 0.04*r.NormFloat64())
		if busy > 0 {
			busy--
			took *= 1 + 2*r.Float64()
		}
		v.observe(float64(n*size), n > 1, time.Duration(took*1e6))
		switch {
		case i < 100:
		case n == 2:
			two++
		case n > 2:
			more++
		}
	}
	return two / (runs - 100), more / (runs - 100)
}

// What a change of the machine's speed looks like must not be taken for a gain:
// a percentile of 99 leaves room for one disturbed request in a hundred.
func TestSpeedOfTheMachineIsNoSaving(t *testing.T) {
	for _, own := range []float64{1, 20} {
		var two, more float64
		const seeds = 20
		for seed := range uint64(seeds) {
			a, b := run(seed, 0, own)
			two, more = two+a/seeds, more+b/seeds
		}
		if two > 0.01 || more > 0.003 {
			t.Errorf("%v ms each: %.2f %% of runs were of two, %.2f %% of more, though joining saves nothing", own, 100*two, 100*more)
		}
	}
}

// And a real one is found soon and kept to.
func TestSavingIsFound(t *testing.T) {
	for _, c := range []struct{ fixed, each, least float64 }{{4, 16, 0.5}, {10, 10, 0.95}, {4, 1, 0.95}} {
		var joined float64
		const seeds = 20
		for seed := range uint64(seeds) {
			two, more := run(seed, c.fixed, c.each)
			joined += (two + more) / seeds
		}
		if joined < c.least {
			t.Errorf("%v ms a run and %v a request: %.1f %% of runs were joined, want %.0f", c.fixed, c.each, 100*joined, 100*c.least)
		}
	}
}
