package main

import (
	"encoding/json"
	"fmt"
	"math"
)

// goal is a figure that the first version is to reach on an H100.
type goal struct {
	What string  `json:"what"`
	Bar  float64 `json:"bar"`
	// Less: the figure has to be below the bar, not at least the bar.
	Less bool   `json:"less,omitempty"`
	Unit string `json:"unit"`
	// Measured and Met are absent where this run lacks what they are made of: a
	// benchmark that failed or had no time, a peer that is not installed.
	Measured *float64 `json:"measured,omitempty"`
	Met      *bool    `json:"met,omitempty"`
}

func (g goal) String() string {
	sign := ">="
	if g.Less {
		sign = "<"
	}
	if g.Measured == nil {
		return fmt.Sprintf("%s: not measured (bar: %s %g %s)", g.What, sign, g.Bar, g.Unit)
	}
	return fmt.Sprintf("%s: %.3g %s (bar: %s %g): %s", g.What, *g.Measured, g.Unit, sign, g.Bar, map[bool]string{true: "met", false: "MISSED"}[*g.Met])
}

// facts answers what goals ask for; NaN is unknown and spreads.
type facts struct {
	benchmarks []benchmark
	peers      map[string]json.RawMessage
}

// of returns a metric of the benchmarks whose names are one of these, the best: the
// smallest time, or the largest rate.
func (f facts) of(metric string, names ...string) float64 {
	best := math.NaN()
	for _, b := range f.benchmarks {
		for _, n := range names {
			if v, ok := b.Metrics[metric]; ok && b.Name == n && (math.IsNaN(best) || (metric == "ns/op") == (v < best)) {
				best = v
			}
		}
	}
	return best
}

// least is the smallest of the values, NaN where one is unknown.
func least(v ...float64) float64 {
	r := math.Inf(1)
	for _, x := range v {
		r = math.Min(r, x) // math.Min of a NaN is NaN
	}
	return r
}

// cublas is the rate of a product of integers in PyTorch, in 1e12 operations a second.
func (f facts) cublas(m, n, k int) float64 {
	var gpu struct {
		Rows []struct {
			Name string  `json:"name"`
			Tops float64 `json:"tops"`
		} `json:"rows"`
	}
	if json.Unmarshal(f.peers["gpu"], &gpu) == nil {
		for _, r := range gpu.Rows {
			if r.Name == fmt.Sprintf("s8 %dx%dx%d", m, n, k) && r.Tops > 0 {
				return r.Tops
			}
		}
	}
	return math.NaN()
}

// tool is how long ONNX Runtime's calibrator takes for that many samples, from
// what fewer took.
func (f facts) tool(samples float64) float64 {
	var cpu struct {
		Calibration struct {
			Open   float64 `json:"open_s"`
			Sample float64 `json:"s_per_sample"`
			Search float64 `json:"search_s"`
		} `json:"calibration"`
	}
	if json.Unmarshal(f.peers["cpu"], &cpu) != nil || cpu.Calibration.Sample <= 0 {
		return math.NaN()
	}
	return cpu.Calibration.Open + samples*cpu.Calibration.Sample + cpu.Calibration.Search
}

func goals(benchmarks []benchmark, peers map[string]json.RawMessage) []goal {
	f := facts{benchmarks, peers}
	bert := func(shape string) float64 {
		var names []string
		for _, scores := range []string{"F32", "F16", "S8"} {
			names = append(names, "BERT/int8-dynamic/scores="+scores+"/"+shape)
		}
		return f.of("ns/op", names...) / 1e6
	}
	gemm := func(m, n, k int, kind string) float64 {
		return f.of("TOPS", fmt.Sprintf("GemmS8/%dx%dx%d/%s", m, n, k, kind)) / f.cublas(m, n, k)
	}
	copied := f.of("GB/s", "Copy")
	w4 := func(m int) float64 { return f.of("GB/s", fmt.Sprintf("GemmW4/%dx4096x4096/a=f16", m)) / copied }
	const samples = 512
	list := []goal{
		{What: "BERT-base INT8, 128 tokens, batch 1", Bar: .6, Less: true, Unit: "ms", Measured: known(bert("1x128"))},
		{What: "BERT-base INT8, 128 tokens, batch 32", Bar: 2.3, Less: true, Unit: "ms", Measured: known(bert("32x128"))},
		{What: "INT8 GEMM 4096x4096x4096 against cuBLASLt", Bar: .8, Unit: "times", Measured: known(gemm(4096, 4096, 4096, "sums"))},
		{What: "INT8 GEMM with the fused epilogue, M = 32 and 64, against cuBLASLt's sums alone", Bar: 1, Unit: "times",
			Measured: known(least(gemm(32, 4096, 4096, "fused"), gemm(64, 4096, 4096, "fused")))},
		{What: "W4A16 GEMM, M = 1 to 16, share of the copy's bandwidth", Bar: .65, Unit: "times", Measured: known(least(w4(1), w4(4), w4(16)))},
		{What: "histogram, share of the copy's bandwidth", Bar: .8, Unit: "times", Measured: known(f.of("GB/s", fmt.Sprintf("Histogram/normal/%d", 64<<20)) / copied)},
		{What: "entropy calibration of BERT-base, 512 samples, against ONNX Runtime's Python tool on the same machine's CPU", Bar: 50, Unit: "times",
			Measured: known(f.tool(samples) / (f.of("ns/op", fmt.Sprintf("Calibration/entropy/fp32/%d", samples)) / 1e9))},
	}
	for i := range list {
		if g := &list[i]; g.Measured != nil {
			met := *g.Measured >= g.Bar
			if g.Less {
				met = *g.Measured < g.Bar
			}
			g.Met = &met
		}
	}
	return list
}

// known is nil for what is unknown.
func known(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}
