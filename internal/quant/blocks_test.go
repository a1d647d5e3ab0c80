package quant

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// blockCases is testdata/blocks.json, which blocks.py made with NumPy.
type blockCases struct {
	HQQ struct {
		K, N   int
		W      []float32
		Scales [][]float64
	}
	AWQ struct {
		K, N                    int
		X, W                    []float32
		Exponent, After, Before float64
	}
}

func readBlocks(t *testing.T) (c blockCases) {
	t.Helper()
	b, err := os.ReadFile("testdata/blocks.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestHQQ: the scales of the published iteration, and no weight's mean error above
// that of rounding to nearest.
func TestHQQ(t *testing.T) {
	c := readBlocks(t).HQQ
	q, err := quantizeInt4(c.W, c.K, c.N, nil, hqqBlock, nil)
	if err != nil {
		t.Fatal(err)
	}
	for col, want := range c.Scales {
		for b, s := range want {
			if got := float64(q.Scales[col*q.Blocks()+b]); math.Abs(got-s) > 1e-5*math.Abs(s) {
				t.Errorf("column %d, block %d: scale %v, want %v", col, b, got, s)
			}
		}
	}
	mean := func(got []float32) (sum float64) {
		for i, v := range c.W {
			sum += math.Abs(float64(v - got[i]))
		}
		return sum
	}
	near, err := nearestInt4(c.W, c.K, c.N, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := mean(q.Dequantize()), mean(near.Dequantize()); !(a < b) {
		t.Errorf("mean error %v, of rounding to nearest %v", a, b)
	}
	// 8 bits by channel: never above rounding to nearest, and a channel of zeros stays.
	w := slices.Clone(c.W)
	for i := range c.K {
		w[i*c.N] = 0
	}
	dims := []int64{int64(c.K), int64(c.N)}
	cfg := Config{Granularity: PerChannel}
	eight, err := hqqWeight(w, dims, 1, cfg)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := QuantizeWeight(w, dims, 1, PerChannel, cfg.weightScheme())
	if err != nil {
		t.Fatal(err)
	}
	for ch := range c.N {
		var a, b float64
		x, y := eight.Dequantize(), plain.Dequantize()
		for i := ch; i < len(w); i += c.N {
			a, b = a+math.Abs(float64(w[i]-x[i])), b+math.Abs(float64(w[i]-y[i]))
		}
		if a > b*(1+1e-6) {
			t.Errorf("channel %d: mean error %v, of rounding to nearest %v", ch, a, b)
		}
	}
	if _, err := hqqWeight([]float32{1, float32(math.NaN())}, []int64{1, 2}, 1, cfg); !errors.Is(err, ErrWeight) {
		t.Errorf("NaN: %v", err)
	}
}

func awqModel(c blockCases) (*graph.Model, []*Op, *Rows) {
	m := model([]*graph.Value{value("x", -1, int64(c.AWQ.K))}, []*graph.Value{value("a", -1, 4), value("b", -1, 2)},
		node("MatMul", "one", "x w1", "a"), node("MatMul", "two", "x w2", "b"))
	n := c.AWQ.N
	var w1, w2 []float32
	for i, v := range c.AWQ.W {
		if i%n < 4 {
			w1 = append(w1, v)
		} else {
			w2 = append(w2, v)
		}
	}
	k := int64(c.AWQ.K)
	m.Graph.SetInit("w1", tensor.From(w1, k, 4))
	m.Graph.SetInit("w2", tensor.From(w2, k, 2))
	ops := []*Op{{Node: m.Graph.Nodes[0], Kind: Linear, X: []string{"x"}, W: "w1", OutAxis: 1, Out: "a"}, {Node: m.Graph.Nodes[1], Kind: Linear, X: []string{"x"}, W: "w2", OutAxis: 1, Out: "b"}}
	rows := NewRows(c.AWQ.K)
	for i := 0; i < len(c.AWQ.X); i += c.AWQ.K {
		_ = rows.Observe(uint64(i), c.AWQ.X[i:i+c.AWQ.K])
	}
	return m, ops, rows
}

// TestAWQ: exponent and errors are those of the formulas in NumPy, and the graph
// with the divisors computes what the codes stand for.
func TestAWQ(t *testing.T) {
	c := readBlocks(t)
	m, ops, rows := awqModel(c)
	s := NewSolved()
	ctx := context.Background()
	gain, err := s.SolveAWQ(ctx, PlainAlgebra{}, Config{}, m.Graph, ops, rows)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(gain.Solved/c.AWQ.After-1) > 1e-3 || math.Abs(gain.Nearest/c.AWQ.Before-1) > 1e-3 {
		t.Errorf("errors %v and %v, want %v and %v", gain.Solved, gain.Nearest, c.AWQ.After, c.AWQ.Before)
	}
	mean := make([]float64, c.AWQ.K)
	for i, v := range c.AWQ.X {
		mean[i%c.AWQ.K] += math.Abs(float64(v)) * float64(c.AWQ.K) / float64(len(c.AWQ.X))
	}
	d := s.Divisors["x"]
	for j, want := range awqDivisors(mean, c.AWQ.Exponent) {
		if math.Abs(float64(d[j]/want)-1) > 1e-3 {
			t.Fatalf("divisor %d is %v, want %v", j, d[j], want)
		}
	}
	cfg, err := Config{Scheme: INT4, Weights: AWQ}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	pass := &BlockWeights{Plan: &Plan{Config: cfg, Ops: ops}, Solved: s}
	if _, err := pass.Run(ctx, m); err != nil {
		t.Fatal(err)
	}
	muls := 0
	for _, n := range m.Graph.Nodes {
		if n.Is("Mul") {
			muls++
			by, _ := m.Graph.Init(n.In(1)).F32()
			for j := range by {
				if math.Abs(float64(by[j]*d[j])-1) > 1e-6 {
					t.Fatalf("channel %d is multiplied by %v and its weights by %v", j, by[j], d[j])
				}
			}
		} else if n.Op != "MatMulNBits" || n.In(0) == "x" {
			t.Errorf("%s reads %q", n.Op, n.In(0))
		}
	}
	if muls != 1 {
		t.Errorf("%d multiplications for one input", muls)
	}
}

// TestAWQRefuses: settings and data that do not fit.
func TestAWQRefuses(t *testing.T) {
	if _, err := (Config{Weights: AWQ}).WithDefaults(); !errors.Is(err, ErrConfig) {
		t.Errorf("8 bits: %v", err)
	}
	c := readBlocks(t)
	c.AWQ.X = slices.Clone(c.AWQ.X)
	c.AWQ.X[3] = float32(math.Inf(1))
	m, ops, rows := awqModel(c)
	s := NewSolved()
	if _, err := s.SolveAWQ(context.Background(), PlainAlgebra{}, Config{}, m.Graph, ops, rows); !errors.Is(err, ErrSingular) || s.Len() > 0 {
		t.Errorf("infinite input: %v", err)
	}
	c.AWQ.X[3] = 0
	c.AWQ.W = slices.Clone(c.AWQ.W)
	c.AWQ.W[5] = float32(math.NaN())
	m, ops, rows = awqModel(c)
	if _, err := s.SolveAWQ(context.Background(), PlainAlgebra{}, Config{}, m.Graph, ops, rows); !errors.Is(err, ErrWeight) || s.Len() > 0 {
		t.Errorf("NaN: %v", err)
	}
}
