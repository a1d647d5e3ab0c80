package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGoals(t *testing.T) {
	for _, g := range goals(nil, nil) {
		if g.Measured != nil || g.Met != nil || !strings.Contains(g.String(), "not measured") {
			t.Errorf("%+v without a measurement", g)
		}
	}
	s := &step{Name: "cuda"}
	s.read(`
BenchmarkBERT/int8-dynamic/scores=F32/1x128-16        100   700000 ns/op   1 texts/s
BenchmarkBERT/int8-dynamic/scores=F16/1x128-16        100   500000 ns/op   1 texts/s
BenchmarkBERT/int8-dynamic/scores=F16/32x128-16       100  2400000 ns/op   1 texts/s
BenchmarkGemmS8/4096x4096x4096/sums-16                100   1 ns/op   1000 TOPS
BenchmarkGemmS8/32x4096x4096/fused-16                 100   1 ns/op   120 TOPS
BenchmarkGemmS8/64x4096x4096/fused-16                 100   1 ns/op   180 TOPS
BenchmarkCopy-16                                      100   1 ns/op   3000 GB/s
BenchmarkGemmW4/1x4096x4096/a=f16-16                  100   1 ns/op   2000 GB/s
BenchmarkGemmW4/4x4096x4096/a=f16-16                  100   1 ns/op   2400 GB/s
BenchmarkGemmW4/16x4096x4096/a=f16-16                 100   1 ns/op   2700 GB/s
BenchmarkHistogram/normal/67108864-16                 100   1 ns/op   2700 GB/s
BenchmarkCalibration/entropy/fp32/512-16                1   2000000000 ns/op   256 samples/s
`)
	peers := map[string]json.RawMessage{
		"gpu": json.RawMessage(`{"rows": [{"name": "s8 4096x4096x4096", "tops": 1250}, {"name": "s8 32x4096x4096", "tops": 100}, {"name": "s8 64x4096x4096", "tops": 200}]}`),
		"cpu": json.RawMessage(`{"calibration": {"open_s": 2, "s_per_sample": 0.5, "search_s": 42}}`),
	}
	want := []float64{.5, 2.4, .8, .9, 2. / 3, .9, 150}
	met := []bool{true, false, true, false, true, true, true}
	got := goals(s.benchmarks, peers)
	for i, g := range got {
		if g.Measured == nil || math.Abs(*g.Measured-want[i]) > 1e-9 || *g.Met != met[i] {
			t.Errorf("%v, want %v, %v", g, want[i], met[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d goals", len(got))
	}
	delete(peers, "cpu")
	if g := goals(s.benchmarks, peers); g[6].Measured != nil || g[5].Measured == nil {
		t.Errorf("without the tool: %v, %v", g[5], g[6])
	}
}

// TestGoalsInDocs: docs/cuda.md has a row for each goal, and states no figure
// before there is a result to take it from.
func TestGoalsInDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/cuda.md")
	if err != nil {
		t.Fatal(err)
	}
	results, err := filepath.Glob("../../benchmarks/results/gpu-check*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range goals(nil, nil) {
		row := ""
		for line := range strings.Lines(string(page)) {
			if strings.HasPrefix(line, "| "+g.What+" |") {
				row = line
			}
		}
		switch {
		case row == "":
			t.Errorf("docs/cuda.md has no row %q", g.What)
		case len(results) == 0 && !strings.Contains(row, "not measured"):
			t.Errorf("a figure without a result: %s", row)
		}
	}
}
