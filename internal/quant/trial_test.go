package quant

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
)

func TestSpreadColumns(t *testing.T) {
	energy := make([]float64, 1000)
	var total float64
	for i, v := range randoms(5, len(energy)) {
		if energy[i] = float64(v * v); i == 7 {
			energy[i] = 1e6 // most of all
		}
		total += energy[i]
	}
	columns, counts := spreadColumns(energy, 100)
	if len(columns) < 99 || len(columns) > 100 { // the sums may miss the last by a rounding
		t.Fatalf("%d columns", len(columns))
	}
	if i := slices.Index(columns, 7); i < 0 || counts[i] != 1 {
		t.Errorf("column 7 of %v has no term of its own", columns)
	}
	// Terms that are as large as the energies have their exact sum, but for those that
	// are drawn as if they were larger.
	var sum float64
	for i, c := range columns {
		if i > 0 && c <= columns[i-1] {
			t.Fatalf("column %d behind %d", c, columns[i-1])
		}
		sum += counts[i] * energy[c]
	}
	if math.Abs(sum/total-1) > columnLeast {
		t.Errorf("the sum is estimated as %g of it", sum/total)
	}
	for name, energy := range map[string][]float64{"no energy": make([]float64, 960), "infinite": append(make([]float64, 959), math.Inf(1)), "no number": append(make([]float64, 959), math.NaN())} {
		columns, counts := spreadColumns(energy, 96)
		if len(columns) != 96 || len(counts) != 96 {
			t.Fatalf("%s: %d columns", name, len(columns))
		}
		for i, c := range columns {
			if c/10 != i || math.Abs(counts[i]-10) > 1e-9 {
				t.Fatalf("%s: draw %d is column %d for %v", name, i, c, counts[i])
			}
		}
	}
}

// TestTrialColumns: on a sample of columns every setting has nearly the error that it
// has on all of them, which are measured here as plainly as the formula says.
func TestTrialColumns(t *testing.T) {
	const m, k = 96, 64
	widths := []int{500, 300}
	mod := &graph.Model{Graph: &graph.Graph{}}
	weight(mod, "a", 1, k, 500)
	weight(mod, "b", 2, 300, k) // the other way round
	a, err := mod.Graph.Init("a").F32()
	if err != nil {
		t.Fatal(err)
	}
	for i := range a { // few columns make most of the output
		if i%500%50 == 0 {
			a[i] *= 8
		}
	}
	group := []*Op{{Kind: Linear, W: "a", InAxis: 0, OutAxis: 1}, {Kind: Linear, W: "b", InAxis: 1, OutAxis: 0}}
	cfg, err := Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	x := randoms(3, m*k)
	chMax := make([]float32, k)
	for i := range x {
		if i%k < 3 {
			x[i] *= 30
		}
		chMax[i%k] = max(chMax[i%k], x[i], -x[i])
	}
	trials := map[int]*trial{}
	for _, most := range []int{0, trialColumns} {
		tr := &trial{cfg: cfg, gemm: PlainAlgebra{}, x: x, m: m, k: k, scheme: cfg.actScheme()}
		if err := tr.weights(mod.Graph, group, most); err != nil {
			t.Fatal(err)
		}
		if err := tr.reference(context.Background()); err != nil {
			t.Fatal(err)
		}
		trials[most] = tr
	}
	all, some := trials[0], trials[trialColumns]
	if all.n != widths[0]+widths[1] || some.n > trialColumns || some.n < trialColumns*9/10 {
		t.Fatalf("%d and %d columns", all.n, some.n)
	}
	for i := range all.rowMax {
		if all.rowMax[i] != some.rowMax[i] {
			t.Fatalf("largest weight of channel %d: %v of some columns, %v of all", i, some.rowMax[i], all.rowMax[i])
		}
	}
	for _, alpha := range append([]float64{0}, smoothAlphas...) {
		var s []float32
		if alpha > 0 {
			s = smoothVector(chMax, all.rowMax, alpha)
		}
		h := all.smoothedHistogram(orOnes(s, k), chMax, true)
		r, err := cfg.threshold(h, "minmax", all.scheme)
		if err != nil {
			t.Fatal(err)
		}
		errs := map[int]float64{}
		for most, tr := range trials {
			e, err := tr.errors(context.Background(), s, []candidate{{"minmax", r.WithZero()}})
			if err != nil {
				t.Fatal(err)
			}
			errs[most] = e[0]
		}
		if ratio := errs[trialColumns] / errs[0]; math.Abs(ratio-1) > .08 {
			t.Errorf("exponent %v: %.4g on some columns, %.4g on all", alpha, errs[trialColumns], errs[0])
		}
	}
}

func orOnes(s []float32, k int) []float32 {
	if s != nil {
		return s
	}
	s = make([]float32, k)
	for i := range s {
		s[i] = 1
	}
	return s
}

// TestTrialWeights: a weight that is not finite is refused by its name.
func TestTrialWeights(t *testing.T) {
	mod := &graph.Model{Graph: &graph.Graph{}}
	weight(mod, "a", 1, 4, 20)
	weight(mod, "b", 2, 4, 20)
	b, err := mod.Graph.Init("b").F32()
	if err != nil {
		t.Fatal(err)
	}
	b[7] = float32(math.NaN())
	tr := trial{k: 4}
	err = tr.weights(mod.Graph, []*Op{{Kind: Linear, W: "a", OutAxis: 1}, {Kind: Linear, W: "b", OutAxis: 1}}, 0)
	if !errors.Is(err, ErrWeight) || !strings.Contains(err.Error(), `weight "b": bad weight: it holds NaN or infinity`) {
		t.Errorf("NaN: %v", err)
	}
}
