package quant

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// pruneCase is one of testdata/prune.json, which prune.py made with NumPy from the
// authors' algorithms.
type pruneCase struct {
	K, N                   int
	Share                  float64
	Pattern                bool
	X, W, Magnitude, Wanda []float32
	SparseGPT              []float32
}

func linearOp() *Op {
	return &Op{Node: graph.NewNode("", "MatMul", "fc", []string{"x", "w"}, []string{"y"}), Kind: Linear, X: []string{"x"}, W: "w", OutAxis: 1, InAxis: 0, Out: "y"}
}

func gramOf(t *testing.T, x []float32, k int) *Gram {
	t.Helper()
	g := &Gram{K: k, Groups: 1}
	if err := errors.Join(g.Observe(context.Background(), PlainAlgebra{}, x), g.Flush(context.Background(), PlainAlgebra{})); err != nil {
		t.Fatal(err)
	}
	return g
}

// share is how much of v is zero.
func share(v []float32) float64 { return float64(Zeros(v)) / float64(len(v)) }

// TestPruneIsThePublishedOne: the same zeros, and with SparseGPT the same values of
// what is left, as the authors' code.
func TestPruneIsThePublishedOne(t *testing.T) {
	b, err := os.ReadFile("testdata/prune.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []pruneCase
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for i, c := range cases {
		s := Sparsity{c.Share, c.Pattern}
		gram := gramOf(t, c.X, c.K)
		for method, want := range map[PruneMethod][]float32{Magnitude: c.Magnitude, Wanda: c.Wanda, SparseGPT: c.SparseGPT} {
			got, err := Prune(ctx, PlainAlgebra{}, linearOp(), []int64{int64(c.K), int64(c.N)}, c.W, gram, method, s)
			if err != nil {
				t.Fatalf("case %d, %s: %v", i, method, err)
			}
			for j, v := range got {
				if (v == 0) != (want[j] == 0) || math.Abs(float64(v-want[j])) > 2e-4*(1+math.Abs(float64(want[j]))) {
					t.Fatalf("case %d, %s: weight %d is %v, want %v", i, method, j, v, want[j])
				}
			}
			// The other layout of a weight gives the same.
			op := linearOp()
			op.OutAxis, op.InAxis = 0, 1
			turned, err := Prune(ctx, PlainAlgebra{}, op, []int64{int64(c.N), int64(c.K)}, transpose2D(c.W, c.K, c.N), gram, method, s)
			if err != nil {
				t.Fatal(err)
			}
			if method != Magnitude && !slices.Equal(transpose2D(turned, c.N, c.K), got) {
				t.Errorf("case %d, %s: a transposed weight is pruned otherwise", i, method)
			}
		}
	}
}

// TestSparseGPTGains: less error of the output than leaving the rest as it is.
func TestSparseGPTGains(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(3, 1))
	const k, n, rows = 48, 20, 400
	x, w := make([]float32, rows*k), make([]float32, k*n)
	for i := range rows {
		common := float32(r.NormFloat64())
		for c := range k {
			x[i*k+c] = common + float32(r.NormFloat64())*.5
		}
	}
	for i := range w {
		w[i] = float32(r.NormFloat64())
	}
	gram := gramOf(t, x, k)
	loss := map[PruneMethod]float64{}
	for _, method := range PruneMethods {
		got, err := Prune(ctx, PlainAlgebra{}, linearOp(), []int64{k, n}, w, gram, method, Sparsity{Share: .5})
		if err != nil {
			t.Fatal(err)
		}
		if z := share(got); z != .5 {
			t.Errorf("%s: %v of the weights are zero", method, z)
		}
		d := make([]float32, len(w))
		for i := range d {
			d[i] = w[i] - got[i]
		}
		y, err := (PlainAlgebra{}).MatMul(ctx, x, rows, k, d, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range y {
			loss[method] += float64(v) * float64(v)
		}
	}
	if loss[SparseGPT] > .5*loss[Wanda] || loss[SparseGPT] > .5*loss[Magnitude] {
		t.Errorf("squared errors %v: SparseGPT gains nothing", loss)
	}
}

// TestPruneConvolution: 2:4 counts along the channels of one tap, each group by
// its own Hessian.
func TestPruneConvolution(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(4, 1))
	dims := []int64{6, 8, 3, 3}
	op := &Op{Node: graph.NewNode("", "Conv", "conv", []string{"x", "w"}, []string{"y"}, graph.AttrInt("group", 2)), Kind: Conv, X: []string{"x"}, W: "w", OutAxis: 0, InAxis: 1}
	w := make([]float32, 6*8*9)
	for i := range w {
		w[i] = float32(r.NormFloat64())
	}
	x := make([]float32, 16*8*8)
	gram, err := GramOf(op, dims)
	if err != nil {
		t.Fatal(err)
	}
	for sample := range uint64(4) {
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		if err := gram.ObserveConv(ctx, PlainAlgebra{}, op, dims, x, []int64{1, 16, 8, 8}, sample); err != nil {
			t.Fatal(err)
		}
	}
	for _, method := range PruneMethods {
		got, err := Prune(ctx, PlainAlgebra{}, op, dims, w, gram, method, Sparsity{Share: .5, Pattern: true})
		if err != nil {
			t.Fatal(err)
		}
		for o := range 6 {
			for tap := range 9 {
				for c := 0; c < 8; c += 4 {
					zeros := 0
					for i := range 4 {
						if got[(o*8+c+i)*9+tap] == 0 {
							zeros++
						}
					}
					if zeros != 2 {
						t.Fatalf("%s: %d zeros of output %d, tap %d, channels from %d", method, zeros, o, tap, c)
					}
				}
			}
		}
		if got, err = Prune(ctx, PlainAlgebra{}, op, dims, w, gram, method, Sparsity{Share: .25}); err != nil || math.Abs(share(got)-.25) > .01 {
			t.Errorf("%s: %v of the weights are zero (%v)", method, share(got), err)
		}
	}
}

// TestZerosSurvive: what was pruned stays zero in every form of weights.
func TestZerosSurvive(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(5, 1))
	for trial := range 20 {
		k, n := 32*(1+r.IntN(3)), 16+r.IntN(20)
		x, w := make([]float32, (k+20)*k), make([]float32, k*n)
		for i := range x {
			x[i] = float32(r.NormFloat64() + 1)
		}
		for i := range w {
			w[i] = float32(r.NormFloat64() * math.Exp(r.NormFloat64()))
		}
		gram := gramOf(t, x, k)
		dims := []int64{int64(k), int64(n)}
		sparse, err := Prune(ctx, PlainAlgebra{}, linearOp(), dims, w, gram, PruneMethods[trial%3], Sparsity{Share: .5, Pattern: trial%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		forms := map[string][]float32{}
		for _, g := range []Granularity{PerChannel, PerTensor} {
			c, err := Config{Granularity: g}.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			q, err := QuantizeWeight(sparse, dims, 1, g, c.weightScheme())
			if err != nil {
				t.Fatal(err)
			}
			forms["rtn "+string(g)] = q.Dequantize()
			if q, err = clippedWeight(sparse, dims, 1, c); err != nil {
				t.Fatal(err)
			}
			forms["mse "+string(g)] = q.Dequantize()
			s := NewSolved()
			m := &graph.Graph{Info: map[string]*graph.Value{}}
			m.SetInit("w", tensor.From(sparse, dims...))
			if _, err := s.SolveGPTQ(ctx, PlainAlgebra{}, &Plan{Config: c}, m, []*Op{linearOp()}, gram, nil); err != nil {
				t.Fatal(err)
			}
			forms["gptq "+string(g)] = s.Int8["y"].Dequantize()
		}
		q4, err := QuantizeInt4(sparse, k, n, nil)
		if err != nil {
			t.Fatal(err)
		}
		forms["int4"] = q4.Dequantize()
		f, err := newFactor(ctx, PlainAlgebra{}, gram.Sum, k, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if q4, _, err = solveInt4(ctx, PlainAlgebra{}, f, sparse, n, nil); err != nil {
			t.Fatal(err)
		}
		forms["gptq int4"] = q4.Dequantize()
		for name, v := range forms {
			for i := range v {
				if sparse[i] == 0 && v[i] != 0 {
					t.Fatalf("%s: a pruned weight became %v", name, v[i])
				}
			}
		}
	}
}

func TestPruneRefuses(t *testing.T) {
	for _, s := range []string{"", "0", "1", "1.5", "-0.5", "nan", "inf", "2:3", "1:4", "4:2", "2:4:8", "half", "120%"} {
		if got, err := ParseSparsity(s); !errors.Is(err, ErrConfig) {
			t.Errorf("sparsity %q is read as %v (%v)", s, got, err)
		}
	}
	for s, want := range map[string]Sparsity{"2:4": {.5, true}, "0.5": {.5, false}, "50%": {.5, false}, " 0.9 ": {.9, false}} {
		if got, err := ParseSparsity(s); err != nil || got != want {
			t.Errorf("sparsity %q is read as %v (%v)", s, got, err)
		}
	}
	ctx := context.Background()
	dims, w, x := []int64{4, 2}, []float32{1, 2, 3, 4, 5, 6, 7, 8}, []float32{1, 2, 3, 4}
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		w, x   []float32
		method PruneMethod
		s      Sparsity
		want   error
	}{
		"2:4 with another share": {w, x, Magnitude, Sparsity{.7, true}, ErrConfig},
		"no share":               {w, x, Magnitude, Sparsity{}, ErrConfig},
		"NaN in the weight":      {[]float32{1, nan, 3, 4, 5, 6, 7, 8}, x, Magnitude, Sparsity{Share: .5}, ErrWeight},
		"NaN in the inputs":      {w, []float32{1, nan, 3, 4}, SparseGPT, Sparsity{Share: .5}, ErrSingular},
		"inputs of zeros":        {w, make([]float32, 4), SparseGPT, Sparsity{Share: .5}, ErrSingular},
		"Wanda, NaN":             {w, []float32{1, nan, 3, 4}, Wanda, Sparsity{.5, true}, ErrSingular},
		"no data":                {w, nil, Wanda, Sparsity{Share: .5}, ErrConfig},
	} {
		var gram *Gram
		if c.x != nil {
			gram = gramOf(t, c.x, 4)
		}
		if _, err := Prune(ctx, PlainAlgebra{}, linearOp(), dims, c.w, gram, c.method, c.s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLowest(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1))
	for range 200 {
		scores := make([]float32, 1+r.IntN(60))
		for i := range scores {
			scores[i] = float32(r.IntN(6)) * .37 // with ties
		}
		count := r.IntN(len(scores) + 1)
		order := make([]int, len(scores))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case scores[a] < scores[b]:
				return -1
			case scores[a] > scores[b]:
				return 1
			}
			return 0
		})
		want := make([]bool, len(scores))
		for _, i := range order[:count] {
			want[i] = true
		}
		if got := lowest(scores, count); !slices.Equal(got, want) {
			t.Fatalf("the %d lowest of %v: %v", count, scores, got)
		}
	}
}
