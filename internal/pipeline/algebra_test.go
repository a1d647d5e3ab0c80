package pipeline

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
)

// TestAlgebraOfEngine: the engine's kernels compute what plain loops do, past one tile
// and in sizes that no tile divides.
func TestAlgebraOfEngine(t *testing.T) {
	p, ctx := testPipeline(t), context.Background()
	lab, err := NewLab(p.Engine, 2, p.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	lab.Precision = FP32
	r := rand.New(rand.NewPCG(11, 0))
	near := func(what string, got, want float64) {
		if !(math.Abs(got-want) <= 1e-4*(1+math.Abs(want))) {
			t.Fatalf("%s is %v, want %v", what, got, want)
		}
	}
	const rows, k = 70, 2*gramTile + 37
	x := gauss(r, rows*k, 1)
	sums := [2][]float32{gauss(r, quant.TriangleRow(k), 1), nil}
	sums[1] = append(sums[1], sums[0]...)
	for i, alg := range []quant.Algebra{lab, quant.PlainAlgebra{}} {
		if err := alg.AddGram(ctx, sums[i], x, k); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range sums[1] {
		near("a sum of the Gram matrix", float64(sums[0][i]), float64(want))
	}
	// A convolution's are exact whatever the precision of products.
	lab.Precision = AutoPrecision
	conv := (&weightsPass{lab: lab}).sums(&source{ops: []*quant.Op{{Kind: quant.Conv}}})
	for i, alg := range []quant.Algebra{conv, quant.PlainAlgebra{}} {
		if err := alg.AddGram(ctx, sums[i], x, k); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range sums[1] {
		near("a sum of a convolution's Gram matrix", float64(sums[0][i]), float64(want))
	}
	// In BF16, where this processor has it, of values that it holds.
	for i, v := range x {
		x[i] = math.Float32frombits(math.Float32bits(v) &^ 0xffff)
	}
	for i, alg := range []quant.Algebra{lab, quant.PlainAlgebra{}} {
		if err := alg.AddGram(ctx, sums[i], x, k); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range sums[1] {
		near("a sum of the Gram matrix in BF16", float64(sums[0][i]), float64(want))
	}
	for _, m := range []int{1, rowTile + 1, 5*rowTile + 3} {
		const n = 19
		a, b := gauss(r, m*k, 1), gauss(r, k*n, 1)
		got, err := lab.MatMul(ctx, a, m, k, b, n)
		if err != nil {
			t.Fatal(err)
		}
		want, err := quant.PlainAlgebra{}.MatMul(ctx, a, m, k, b, n)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			near("a value of the product", float64(got[i]), float64(want[i]))
		}
		var c [2][]float64
		for i, alg := range []quant.Algebra{lab, quant.PlainAlgebra{}} {
			c[i] = make([]float64, m*n)
			// Rows of a that lie together, and some that do not: all but their last values.
			if err := alg.SubProduct(ctx, c[i], float64s(a), k, m, k, float64s(b), n); err != nil {
				t.Fatal(err)
			}
			if err := alg.SubProduct(ctx, c[i], float64s(a), k, m, k-5, float64s(b[:n*(k-5)]), n); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range c[1] {
			near("a value of the difference", c[0][i], want)
		}
	}
}

func float64s(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}
