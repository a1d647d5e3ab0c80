package ops

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// slack is what the rounding of x / scale and of (q - zero) * scale adds to
// half a step: two units in the last place of a quotient up to 255.
const slack = 255 * 0x1p-22

// leastNormal is the smallest scale that has all its 24 bits. Below it the
// scale itself is rounded to few bits and the range is not covered.
const leastNormal = 0x1p-126

func TestQuantizeRows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 0))
	for range 300 {
		m, k := r.IntN(9), 1+r.IntN(70)
		x := randomRows(r, m, k)
		q, err := QuantizeRows(x, m, k)
		if err != nil {
			t.Fatal(err)
		}
		back := q.Dequantize()
		for i, v := range x {
			s := q.Scale[i/k]
			if !(s > 0) {
				t.Fatalf("scale %v", s)
			}
			if d := math.Abs(float64(v) - float64(back[i])); s >= leastNormal && d > float64(s)*(.5+slack) {
				t.Fatalf("%v became %v: more than half of the step %v", v, back[i], s)
			}
			if v == 0 && back[i] != 0 {
				t.Fatalf("zero became %v", back[i])
			}
		}
	}
}

// TestExactRows: integers that span 255 steps of a power of two are kept.
func TestExactRows(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 0))
	for range 100 {
		low, step := r.IntN(256), float32(math.Ldexp(1, r.IntN(100)-50))
		x := []float32{float32(-low) * step, float32(255-low) * step}
		for range 20 {
			x = append(x, float32(r.IntN(256)-low)*step)
		}
		q, err := QuantizeRows(x, 1, len(x))
		if err != nil {
			t.Fatal(err)
		}
		if q.Scale[0] != step || int(q.Zero[0]) != low || !slices.Equal(q.Dequantize(), x) {
			t.Fatalf("%v became %v (scale %v, zero %d)", x, q.Dequantize(), q.Scale[0], q.Zero[0])
		}
	}
}

// TestRowsAreIndependent: a row's codes do not depend on the rows around it,
// nor on a power of two that multiplies it.
func TestRowsAreIndependent(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 0))
	const m, k = 40, 33
	x := randomRows(r, m, k)
	all, err := QuantizeRows(x, m, k)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m {
		row := slices.Clone(x[i*k : (i+1)*k])
		if all.Scale[i] > leastNormal && all.Scale[i] < 1e30 && all.Scale[i] != 1 {
			for j := range row {
				row[j] *= 4
			}
		}
		one, err := QuantizeRows(row, 1, k)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(one.Codes, all.Codes[i*k:(i+1)*k]) || one.Zero[0] != all.Zero[i] {
			t.Fatalf("row %d differs alone", i)
		}
	}
}

// TestRounding pins ties and both ends: the values are chosen so that scale is
// 1 and every quotient exact.
func TestRounding(t *testing.T) {
	x := []float32{-1.5, 253.5, -.5, .5, 1.5, 2.5, 0}
	q, err := QuantizeRows(x, 1, len(x))
	if err != nil {
		t.Fatal(err)
	}
	// zero = rne(1.5) = 2; rne(253.5) + 2 = 256 is clamped.
	if want := []uint8{0, 255, 2, 2, 4, 4, 2}; q.Scale[0] != 1 || q.Zero[0] != 2 || !slices.Equal(q.Codes, want) {
		t.Errorf("scale %v, zero %d, codes %v", q.Scale[0], q.Zero[0], q.Codes)
	}
	for _, x := range [][]float32{{0, 0, 0}, {1e-45, 0, 0}, {float32(math.Copysign(0, -1))}} {
		q, err := QuantizeRows(x, 1, len(x))
		if err != nil || q.Scale[0] != 1 || q.Zero[0] != 0 || slices.Max(q.Codes) != 0 {
			t.Errorf("%v: %+v, %v", x, q, err)
		}
	}
}

// TestMatMulQuantized: the accumulators against sums of (q - zero) * w in
// INT64, the result against the product of the dequantized operands.
func TestMatMulQuantized(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 0))
	for range 60 {
		m, k, n := r.IntN(6), 1+r.IntN(130), r.IntN(20)
		w, scale, sums := randomWeight(t, r, k, n)
		x := make([]float32, m*k)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		a, err := QuantizeRows(x, m, k)
		if err != nil {
			t.Fatal(err)
		}
		acc, err := Accumulate(a, w, n, sums)
		if err != nil {
			t.Fatal(err)
		}
		y, err := MatMulQuantized(a, w, n, scale, sums)
		if err != nil {
			t.Fatal(err)
		}
		back := a.Dequantize()
		for i := range m {
			for j := range n {
				var exact int64
				var real, size float64
				for l := range k {
					exact += (int64(a.Codes[i*k+l]) - int64(a.Zero[i])) * int64(w[l*n+j])
					p := float64(back[i*k+l]) * float64(w[l*n+j]) * float64(scale[j])
					real += p
					size += math.Abs(p)
				}
				if int64(acc[i*n+j]) != exact {
					t.Fatalf("[%d,%d]: accumulator %d, exactly %d", i, j, acc[i*n+j], exact)
				}
				// Three roundings to 24 bits, and those of Dequantize.
				if d := math.Abs(real - float64(y[i*n+j])); d > size*4*0x1p-24 {
					t.Fatalf("[%d,%d]: %v, in real numbers %v", i, j, y[i*n+j], real)
				}
			}
		}
	}
}

// TestLargestK: no accumulator overflows at MaxK, whatever the codes.
func TestLargestK(t *testing.T) {
	a := &Rows{M: 1, K: MaxK, Codes: make([]uint8, MaxK), Scale: []float32{1}, Zero: []uint8{0}}
	w := make([]int8, MaxK)
	for i := range w {
		a.Codes[i], w[i] = 255, -128
	}
	sums, err := ColumnSums(w, MaxK, 1)
	if err != nil {
		t.Fatal(err)
	}
	acc, err := Accumulate(a, w, 1, sums)
	if err != nil || int64(acc[0]) != -255*128*int64(MaxK) {
		t.Errorf("%v, %v", acc, err)
	}
}

func TestErrors(t *testing.T) {
	inf := float32(math.Inf(1))
	for name, c := range map[string]struct {
		x    []float32
		m, k int
		want error
	}{
		"too few":         {[]float32{1, 2, 3}, 2, 2, ErrShape},
		"empty rows":      {nil, 3, 0, ErrShape},
		"negative":        {nil, -1, 0, ErrShape},
		"product too big": {nil, math.MaxInt/2 + 1, 2, ErrShape},
		"long rows":       {make([]float32, MaxK+1), 1, MaxK + 1, ErrShape},
		"NaN":             {[]float32{1, inf - inf}, 1, 2, ErrValue},
		"infinity":        {[]float32{1, inf}, 1, 2, ErrValue},
		"infinite range":  {[]float32{-3e38, 3e38}, 1, 2, ErrValue},
	} {
		if _, err := QuantizeRows(c.x, c.m, c.k); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := &Rows{M: 1, K: 2, Codes: []uint8{1, 2}, Scale: []float32{1}, Zero: []uint8{0}}
	w, sums := []int8{1, 2, 3, 4}, []int32{4, 6}
	for name, err := range map[string]error{
		"weight":     second(Accumulate(a, w[:3], 2, sums)),
		"sums":       second(Accumulate(a, w, 2, sums[:1])),
		"activation": second(Accumulate(&Rows{M: 2, K: 2, Codes: a.Codes}, w, 2, sums)),
		"nil":        second(Accumulate(nil, w, 2, sums)),
		"scales":     second(MatMulQuantized(a, w, 2, []float32{1}, sums)),
		"column":     second(ColumnSums(w, 3, 2)),
	} {
		if !errors.Is(err, ErrShape) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

var update = flag.Bool("update", false, "write the bodies in docs/ops.md anew")

// TestDocs: docs/ops.md shows the bodies that Install writes.
func TestDocs(t *testing.T) {
	const page, head, tail = "../../docs/ops.md", "```text\n", "```\n"
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(old), head)
	_, after, ok2 := strings.Cut(rest, tail)
	if !ok || !ok2 {
		t.Fatal("docs/ops.md has no block of text")
	}
	fs, err := functions(17)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%s.%s(%s) -> (%s)\n", f.GetDomain(), f.GetName(), strings.Join(f.Input, ", "), strings.Join(f.Output, ", "))
		for _, n := range f.Node {
			fmt.Fprintf(&b, "  %s = %s(%s)", n.Output[0], n.GetOpType(), strings.Join(n.Input, ", "))
			if len(n.Attribute) > 0 {
				_, attrs, _ := strings.Cut(graph.NewNode("", n.GetOpType(), "", nil, nil, n.Attribute...).String(), " {")
				fmt.Fprintf(&b, " {%s", attrs)
			}
			b.WriteByte('\n')
		}
	}
	text := before + head + b.String() + tail + after
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != string(old) {
		t.Errorf("the bodies are not those of docs/ops.md (-update rewrites them):\n%s", b.String())
	}
}

// TestFunctions: Install writes what Verify accepts, once; a function of our
// name with another body is refused by both.
func TestFunctions(t *testing.T) {
	empty := func(opset int64) *graph.Model {
		return &graph.Model{IR: 7, Opsets: map[string]int64{"": opset}, Graph: &graph.Graph{}}
	}
	for opset := int64(MinOpset); opset < 25; opset++ {
		m := empty(opset)
		clone := m.Clone()
		for range 2 {
			if err := Install(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := Verify(m); err != nil || len(m.Functions()) != 2 || m.IR < minIR || m.Opsets[Domain] != Version {
			t.Errorf("opset %d: %d functions, IR %d, %v", opset, len(m.Functions()), m.IR, err)
		}
		if len(clone.Functions()) != 0 {
			t.Error("an earlier clone has the functions too")
		}
	}
	if err := Install(empty(MinOpset - 1)); !errors.Is(err, ErrOpset) {
		t.Errorf("old opset: %v", err)
	}
	m := empty(17)
	if err := Install(m); err != nil {
		t.Fatal(err)
	}
	other := proto.CloneOf(m.Function(Domain, OpQuantizeRows))
	other.Node[0].OpType = proto.String("Identity")
	m.AddFunction(other)
	if err := Verify(m); !errors.Is(err, ErrBody) {
		t.Errorf("another body: %v", err)
	}
	if err := Install(m); !errors.Is(err, ErrBody) {
		t.Errorf("another body installed over: %v", err)
	}
	m = empty(17)
	m.AddFunction(&pb.FunctionProto{Name: proto.String("Other"), Domain: proto.String(Domain)})
	if err := Verify(m); !errors.Is(err, ErrBody) {
		t.Errorf("an unknown operator of the domain: %v", err)
	}
	if err := Verify(empty(7)); err != nil {
		t.Errorf("a model without functions: %v", err)
	}
}
