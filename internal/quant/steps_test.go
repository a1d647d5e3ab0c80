package quant

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestSteps: scales are whole multiples of the column's unit, in every method, and the
// INT8 weight of the file is what they stand for.
func TestSteps(t *testing.T) {
	const k, n = 96, 7
	w := randoms(9, k*n)
	for i := range 32 { // a block that needs a step of 0, one far larger than the others, and a column of zeros
		w[(32+i)*n] *= 1e-4
		w[i*n+1] *= 100
		w[i*n+2], w[(32+i)*n+2], w[(64+i)*n+2] = 0, 0, 0
	}
	x := randoms(10, 200*k)
	gram := make([]float32, TriangleRow(k))
	for r := range 200 {
		for i := range k {
			for j := range i + 1 {
				gram[TriangleRow(i)+j] += x[r*k+i] * x[r*k+j]
			}
		}
	}
	f, err := newFactor(context.Background(), PlainAlgebra{}, gram, k, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []WeightMethod{RTN, MSEWeights, HQQ, GPTQ} {
		c := Config{Scheme: INT4, Target: CPU, Weights: by}
		units := c.units(w, k, n)
		var q *BlockWeight
		var err error
		if by == GPTQ {
			q, _, err = solveInt4(context.Background(), PlainAlgebra{}, f, w, n, units)
		} else {
			q, _, err = c.weight4(nil, nil, &Op{Precision: PrecisionINT4}, w, k, n)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range q.Scales {
			step := float64(s / units[i/q.Blocks()])
			if m := math.Abs(step); math.Abs(m-math.Round(m)) > 1e-4 || m < .9 || m > ops.MaxStep+.1 {
				t.Errorf("%s: scale %d is %v units", by, i, step)
			}
		}
		_, eight, err := q.expandable(units)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range q.Dequantize() {
			if got := float32(eight[i]) * units[i%n]; math.Abs(float64(got-v)) > 1e-6*math.Abs(float64(v)) {
				t.Fatalf("%s: weight %d is %v, want %v", by, i, got, v)
			}
		}
	}
	if (Config{Scheme: INT4, Target: CUDA}).units(w, k, n) != nil || (Config{Scheme: INT8, Target: CPU}).units(w, k, n) != nil {
		t.Error("other forms have units")
	}
}

// TestStepScale: the nearest steps, by hand.
func TestStepScale(t *testing.T) {
	one := []float32{1, 1, 1}
	for _, c := range []struct{ scale, unit, want float32 }{
		{1, .25, 1}, {-1, .25, -1}, {1.05, 1, 1}, {.1, 1, 1}, {-.1, 1, -1}, {100, 1, 15},
	} {
		x := []float32{-8, 7, 3.2}
		switch {
		case c.scale == 100:
			x = []float32{-800, 700, 320}
		case c.scale < 0:
			x = []float32{8, -7, -3.2}
		}
		if got := stepScale(x, one, c.scale, c.unit); got != c.want {
			t.Errorf("scale %v, unit %v: %v, want %v", c.scale, c.unit, got, c.want)
		}
	}
}

// TestInt4Native: the operators of docs/ops.md stand for each product, whose rows
// are quantized once for all that read them.
func TestInt4Native(t *testing.T) {
	d := make([]float32, 32)
	for i := range d {
		d[i] = 2
	}
	t.Run("divisors", func(t *testing.T) { testInt4Native(t, &Solved{Divisors: map[string][]float32{"a": d}}, nil) })
	t.Run("smoothing", func(t *testing.T) { testInt4Native(t, NewSolved(), Choices{"a": {Tensor: "a", Smooth: d}}) })
}

// What is learned of a weight in steps is the weight that it stands for: with the
// divisors of its input.
func TestRoundedIsSmoothed(t *testing.T) {
	c, err := Config{Scheme: INT4, Target: CPU}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := mlp()
	if _, err := Run(context.Background(), m, Prepare(c), Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	smooth := make([]float32, 32)
	for i := range smooth {
		smooth[i] = 2
	}
	seen := false
	for _, op := range p.Ops {
		if p.Source(op.X[0]) != "a" {
			continue
		}
		w, err := m.Graph.Init(op.W).F32()
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Rounded(m.Graph, op, Choices{"a": {Tensor: "a", Smooth: smooth}}, NewSolved(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range r.Values {
			if v != 2*w[i] {
				t.Fatalf("value %d is %g, its weight %g", i, v, w[i])
			}
		}
		seen = true
	}
	if !seen {
		t.Fatal("nothing reads a")
	}
}

func testInt4Native(t *testing.T, s *Solved, choices Choices) {
	c, err := Config{Scheme: INT4, Target: CPU}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := mlp()
	if _, err := Run(context.Background(), m, Prepare(c), Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	float := map[string][]float32{}
	for _, op := range p.Ops {
		v, err := m.Graph.Init(op.W).F32()
		if err != nil {
			t.Fatal(err)
		}
		float[op.Node.Outputs[0]] = v
	}
	if _, err := Run(context.Background(), m, []Pass{&BlockWeights{Plan: p, Solved: s, Choices: choices}}, Dump{}); err != nil {
		t.Fatal(err)
	}
	if err := ops.Verify(m); err != nil {
		t.Fatal(err)
	}
	count, ix := map[string]int{}, m.Graph.Index()
	for _, n := range m.Graph.Nodes {
		count[n.Op]++
		if n.Op != ops.OpMatMulQuantized {
			continue
		}
		b, err := ops.BlocksOf(m.Graph, ix.Producer(n.In(3)))
		if err != nil {
			t.Fatal(err)
		}
		w, err := ops.ExpandBlocks(b.Codes, b.Steps, b.K, b.N)
		if err != nil {
			t.Fatal(err)
		}
		sums, err := ops.ColumnSums(w, b.K, b.N)
		if err != nil {
			t.Fatal(err)
		}
		scale, want := tensor.View[float32](m.Graph.Init(n.In(4))), float[n.Outputs[0]]
		divided := ix.Producer(ix.Producer(n.In(0)).In(0)) != nil && ix.Producer(ix.Producer(n.In(0)).In(0)).Is("Div")
		for i, v := range tensor.View[int32](m.Graph.Init(n.In(5))) {
			if v != sums[i] {
				t.Errorf("%s: column %d adds up to %d, the file says %d", n.Name, i, sums[i], v)
			}
		}
		plain, err := QuantizeInt4(want, b.K, b.N, nil)
		if err != nil {
			t.Fatal(err)
		}
		near := plain.Dequantize()
		var e, least float64
		for i, v := range w {
			got := float32(v) * scale[i%b.N]
			if divided {
				got /= 2
			}
			e += float64(got-want[i]) * float64(got-want[i])
			least += float64(near[i]-want[i]) * float64(near[i]-want[i])
		}
		const worse = 1.1 // than with a scale of each block's own
		if e > worse*least {
			t.Errorf("%s: the weights are off by %.3g, with any scales by %.3g", n.Name, math.Sqrt(e), math.Sqrt(least))
		}
	}
	// x feeds one product, a (divided) two, which read w1 with and without divisors.
	if count[ops.OpQuantizeRows] != 2 || count[ops.OpMatMulQuantized] != 3 || count[ops.OpExpandBlocks] != 3 || count["Div"] != 1 || count["Add"] != 2 {
		t.Errorf("%v", count)
	}
}

// TestInt4NativeRules: what has no blocks of 32 rows stays in float and says why.
func TestInt4NativeRules(t *testing.T) {
	c, err := Config{Scheme: INT4, Target: CPU}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	deep := func(k int64) *graph.Model {
		m := model([]*graph.Value{value("x", -1, k)}, []*graph.Value{value("y", -1, 16)}, node("MatMul", "product", "x w", "y"))
		m.Graph.SetInit("w", tensor.From(make([]float32, k*16), k, 16))
		return m
	}
	if _, err := NewPlan(deep(33), c); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "33 inputs: 4-bit weights of target cpu need a multiple of 32") {
		t.Errorf("33 inputs: %v", err)
	}
	if _, err := NewPlan(deep(ops.MaxK+ops.BlockRows), c); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "INT32") {
		t.Errorf("a deep product: %v", err)
	}
	old := mlp()
	old.Opsets[""] = ops.MinOpset - 1
	if _, err := NewPlan(old, c); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "opset 11") {
		t.Errorf("an old opset: %v", err)
	}
	c.Target = ORTCPU
	if _, err := NewPlan(deep(33), c); err != nil {
		t.Errorf("33 inputs in another form: %v", err)
	}
}
