package quant

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
)

// gptqCase is one of testdata/gptq.json, which gptq.py made with NumPy from the
// published algorithm.
type gptqCase struct {
	K, N         int
	X, W, Scales []float32
	Top          float32
	Codes        []int8
}

type gptqCases struct {
	Columns, Long, Blocks gptqCase
	Convs                 []struct {
		Name                                    string
		Shape, Kernel, Strides, Pads, Dilations []int64
		X                                       []float32
		Group                                   int64
		Rows                                    int64
		Gram                                    []float64
	}
}

func readGPTQ(t *testing.T) (c gptqCases) {
	t.Helper()
	b, err := os.ReadFile("testdata/gptq.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *gptqCase) factor(t *testing.T, byPower bool) *factor {
	t.Helper()
	ctx := context.Background()
	g := &Gram{K: c.K, Groups: 1}
	if err := errors.Join(g.Observe(ctx, PlainAlgebra{}, c.X), g.Flush(ctx, PlainAlgebra{})); err != nil {
		t.Fatal(err)
	}
	if want := int64(len(c.X) / c.K); g.Rows != want {
		t.Fatalf("%d rows, want %d", g.Rows, want)
	}
	f, err := newFactor(ctx, PlainAlgebra{}, g.Sum, c.K, nil, byPower)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// steps is what the errors d cost step by step.
func (f *factor) steps(d []float32, n int) (sum float64) {
	for c := range n {
		for i, r := range f.order {
			e := float64(d[r*n+c])
			for j := range i {
				e += float64(f.m[i*f.k+j]) * float64(d[f.order[j]*n+c])
			}
			sum += e * e * f.power[i]
		}
	}
	return sum
}

// TestGPTQIsThePublishedOne: the same codes as the form with the inverse Hessian.
func TestGPTQIsThePublishedOne(t *testing.T) {
	ctx := context.Background()
	cases := readGPTQ(t)
	for name, c := range map[string]gptqCase{"columns": cases.Columns, "long": cases.Long} {
		f := c.factor(t, true)
		r, err := f.round(ctx, PlainAlgebra{}, c.W, c.N, grid{lo: -c.Top, hi: c.Top, scales: c.Scales})
		if err != nil {
			t.Fatal(err)
		}
		sameCodes(t, name, r.codes, c.Codes)
		// What the steps added up is the error of the whole.
		d := make([]float32, len(c.W))
		for i, q := range r.dequantize(c.K, c.N, 0) {
			d[i] = c.W[i] - q
		}
		whole, err := f.cost(ctx, PlainAlgebra{}, d, c.N)
		if loss := f.steps(d, c.N); err != nil || math.Abs(whole-loss) > 1e-3*whole {
			t.Errorf("%s: error %v in steps, %v as a whole (%v)", name, loss, whole, err)
		}
	}
	c := cases.Blocks
	r, err := c.factor(t, false).round(ctx, PlainAlgebra{}, c.W, c.N, grid{lo: -8, hi: 7, group: Int4Block, fit: bestScale})
	if err != nil {
		t.Fatal(err)
	}
	sameCodes(t, "blocks", r.codes, c.Codes)
	for i, s := range r.scales {
		if d := math.Abs(float64(s - c.Scales[i])); d > 1e-5*math.Abs(float64(s)) {
			t.Errorf("scale %d: %v, want %v", i, s, c.Scales[i])
		}
	}
	q := packInt4(r.codes, r.scales, c.K, c.N)
	for i, v := range r.dequantize(c.K, c.N, Int4Block) {
		if got := q.Dequantize()[i]; got != v {
			t.Fatalf("packed weight %d is %v, want %v", i, got, v)
		}
	}
}

func sameCodes(t *testing.T, name string, got, want []int8) {
	t.Helper()
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: code %d is %d, want %d", name, i, got[i], want[i])
			return
		}
	}
}

// TestGPTQGains: less output error than rounding to nearest on correlated inputs.
func TestGPTQGains(t *testing.T) {
	c := readGPTQ(t).Long
	f := c.factor(t, true)
	ctx := context.Background()
	r, err := f.round(ctx, PlainAlgebra{}, c.W, c.N, grid{lo: -7, hi: 7, scales: c.Scales})
	if err != nil {
		t.Fatal(err)
	}
	near := make([]float32, len(c.W))
	for i, v := range c.W {
		near[i] = nearest(v, c.Scales[i%c.N], -7, 7) * c.Scales[i%c.N]
	}
	g, err := f.gain(ctx, PlainAlgebra{}, c.W, c.N, r.dequantize(c.K, c.N, 0), near)
	if err != nil || !(g.Solved < .7*g.Nearest) {
		t.Errorf("error %v solved, %v rounded to nearest (%v)", g.Solved, g.Nearest, err)
	}
}

// TestGramOfConvolutions compares patches with NumPy's.
func TestGramOfConvolutions(t *testing.T) {
	for _, c := range readGPTQ(t).Convs {
		n := node("Conv", c.Name, "x w", "y", graph.AttrInts("strides", c.Strides...), graph.AttrInts("pads", c.Pads...),
			graph.AttrInts("dilations", c.Dilations...), graph.AttrInt("group", c.Group))
		op := &Op{Node: n, Kind: Conv}
		dims := append([]int64{c.Group, c.Shape[1] / c.Group}, c.Kernel...)
		g, err := GramOf(op, dims)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		if err := errors.Join(g.ObserveConv(ctx, PlainAlgebra{}, op, dims, c.X, c.Shape, 1), g.Flush(ctx, PlainAlgebra{})); err != nil {
			t.Fatal(err)
		}
		if g.Rows != c.Rows || g.Groups*g.K*g.K != len(c.Gram) || len(g.Sum) != g.Groups*TriangleRow(g.K) {
			t.Fatalf("%s: %d rows and %d sums in %d groups, want %d rows and %d products", c.Name, g.Rows, len(g.Sum), g.Groups, c.Rows, len(c.Gram))
		}
		for i, v := range c.Gram {
			row, col := i/g.K%g.K, i%g.K
			if col > row {
				continue
			}
			if got := g.group(i / g.K / g.K)[TriangleRow(row)+col]; math.Abs(float64(got)-v) > 1e-4*(1+math.Abs(v)) {
				t.Fatalf("%s: sum %d is %v, want %v", c.Name, i, got, v)
			}
		}
	}
}

func TestGramRefuses(t *testing.T) {
	op := &Op{Node: node("Conv", "c", "x w", "y"), Kind: Conv}
	g := &Gram{K: 9, Groups: 1}
	ctx := context.Background()
	for name, dims := range map[string][]int64{"rank": {1, 1, 5}, "channels": {1, 2, 5, 5}, "small": {1, 1, 2, 2}} {
		if err := g.ObserveConv(ctx, PlainAlgebra{}, op, []int64{1, 1, 3, 3}, make([]float32, 50), dims, 0); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := g.Observe(ctx, PlainAlgebra{}, make([]float32, 10)); !errors.Is(err, ErrConfig) {
		t.Errorf("ragged rows: %v", err)
	}
	if _, err := GramOf(&Op{Kind: Linear, InAxis: 0}, []int64{GramMaxK + 1, 16}); !errors.Is(err, ErrConfig) {
		t.Errorf("too wide: %v", err)
	}
}

// TestCholesky: past one block of columns the factor gives the matrix back, and
// what is not positive definite is refused.
func TestCholesky(t *testing.T) {
	const k = 2*cholBlock + 37
	ctx := context.Background()
	x := randoms(3, k*(k+9))
	sum := make([]float32, TriangleRow(k))
	if err := (PlainAlgebra{}).AddGram(ctx, sum, x, k); err != nil {
		t.Fatal(err)
	}
	a := make([]float64, k*k)
	for i := range k {
		for j, v := range sum[TriangleRow(i):TriangleRow(i+1)] {
			a[i*k+j] = float64(v)
		}
		a[i*k+i] += 1
	}
	l := append([]float64(nil), a...)
	if err := cholesky(ctx, PlainAlgebra{}, l, k); err != nil {
		t.Fatal(err)
	}
	for i := range k {
		for j := range i + 1 {
			if got := dot(l[i*k:i*k+j+1], l[j*k:j*k+j+1]); math.Abs(got-a[i*k+j]) > 1e-8*(1+math.Abs(a[i*k+j])) {
				t.Fatalf("[%d,%d] is %v, want %v", i, j, got, a[i*k+j])
			}
		}
	}
	a[(k-1)*k+k-1] = -1
	if err := cholesky(ctx, PlainAlgebra{}, a, k); !errors.Is(err, ErrSingular) {
		t.Errorf("an indefinite matrix: %v", err)
	}
}

// TestFactorIsOfTheHessian: L'L is the damped Hessian of divided inputs, in the order
// that the factor names, past one square of those in which matrices are turned.
func TestFactorIsOfTheHessian(t *testing.T) {
	const k = 2*turnTile + 5
	ctx := context.Background()
	sum, smooth := make([]float32, TriangleRow(k)), make([]float32, k)
	if err := (PlainAlgebra{}).AddGram(ctx, sum, randoms(7, 3*k*k), k); err != nil {
		t.Fatal(err)
	}
	for i := range smooth {
		smooth[i] = 1 + float32(i%7)/4
	}
	f, err := newFactor(ctx, PlainAlgebra{}, sum, k, smooth, true)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i, j int) float64 {
		return float64(sum[TriangleRow(max(i, j))+min(i, j)]) / float64(smooth[i]) / float64(smooth[j])
	}
	var mean float64
	for i := range k {
		mean += at(i, i) / k
	}
	l := func(i, j int) float64 {
		if i == j {
			return math.Sqrt(f.power[i])
		}
		return float64(f.m[i*k+j]) * math.Sqrt(f.power[i])
	}
	for i := range k {
		for j := range i + 1 {
			want := at(f.order[i], f.order[j])
			if i == j {
				want += f.damp * mean
			}
			var got float64
			for q := range k {
				got += l(q, i) * l(q, j)
			}
			if math.Abs(got-want) > 1e-5*mean {
				t.Fatalf("[%d,%d] is %v, want %v", i, j, got, want)
			}
			if i != j && f.m[j*k+i] != 0 {
				t.Fatalf("[%d,%d] above the diagonal is %v", j, i, f.m[j*k+i])
			}
		}
	}
}

// TestFactorOfBadInputs: constant inputs are saved by damping, inputs that were
// never active round to nearest, and those with NaN are refused.
func TestFactorOfBadInputs(t *testing.T) {
	ctx := context.Background()
	const k = 8
	ones := make([]float32, TriangleRow(k))
	for i := range ones {
		ones[i] = 1e6
	}
	if _, err := newFactor(ctx, PlainAlgebra{}, ones, k, nil, false); err != nil {
		t.Errorf("rank one: %v", err)
	}
	f, err := newFactor(ctx, PlainAlgebra{}, make([]float32, TriangleRow(k)), k, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	w := randoms(1, k)
	r, err := f.round(ctx, PlainAlgebra{}, w, 1, grid{lo: -127, hi: 127, scales: []float32{.01}})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range w {
		if want := nearest(v, .01, -127, 127); float32(r.codes[i]) != want {
			t.Errorf("weight %d: code %d, want %v", i, r.codes[i], want)
		}
	}
	ones[0] = float32(math.NaN())
	if _, err := newFactor(ctx, PlainAlgebra{}, ones, k, nil, false); !errors.Is(err, ErrSingular) {
		t.Errorf("NaN: %v", err)
	}
}
