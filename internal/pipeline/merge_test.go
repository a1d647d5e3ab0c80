package pipeline

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// integerAttention is one attention block as Lower leaves it, 4 heads of 8, with
// a smoothing multiplication behind it and a layer normalization, whose result
// only another one reads, before it.
func integerAttention(mask bool) *graph.Model {
	ms := func(op, name string, in []string, out string, attrs ...*pb.AttributeProto) *graph.Node {
		return graph.NewNode(graph.DomainMS, op, name, in, []string{out}, attrs...)
	}
	product := func(n string) *graph.Node {
		return ms("MatMulIntegerToFloat", n, []string{"codes", "w" + n, "scale", "s" + n, "zero", "", "b" + n}, n)
	}
	in := []*graph.Value{value("x", -1, -1, 32)}
	nodes := []*graph.Node{
		node("LayerNormalization", "norm", "x gamma beta", "normed", graph.AttrInt("axis", -1)),
		node("Mul", "smooth_in", "normed inv", "smoothed"),
		node("QuantizeLinear", "quantize", "smoothed scale zero", "codes"),
		product("q"), product("k"), product("v"),
	}
	heads := []string{"q", "k", "v"}
	if mask {
		in = append(in, &graph.Value{Name: "mask", Type: tensor.Int64, Dims: []graph.Dim{{N: -1, Name: "batch"}, {N: -1, Name: "length"}}})
		heads = append(heads, "", "", "rows")
		nodes = append(nodes,
			node("Unsqueeze", "u1", "mask axis1", "m3"), node("Unsqueeze", "u2", "m3 axis2", "m4"),
			node("Cast", "cast", "m4", "mf", graph.AttrInt("to", int64(tensor.Float32))), node("Sub", "sub", "one mf", "off"), node("Mul", "far", "off least", "bias"),
			node("Shape", "shape", "q", "qshape"), node("Gather", "length", "qshape axis1", "n"), node("Concat", "sizes", "axis1 axis1 n axis1", "dims", graph.AttrInt("axis", 0)),
			node("Expand", "rows", "bias dims", "rows"))
	}
	nodes = append(nodes,
		ms("MultiHeadAttention", "attention", heads, "a", graph.AttrInt("num_heads", 4), graph.AttrFloat("scale", float32(1/math.Sqrt(8)))),
		node("Mul", "smooth_out", "a inv", "scaled"), node("Neg", "end", "scaled", "logits"))
	m := newModel(in, []*graph.Value{value("logits", -1, -1, 32)}, nodes...)
	m.Require(graph.DomainMS, 1)
	r := rand.New(rand.NewPCG(11, 0))
	inv := make([]float32, 32)
	for i := range inv {
		inv[i] = float32(.2 + .8*r.Float64())
	}
	for _, n := range []string{"q", "k", "v"} {
		codes := make([]int8, 32*32)
		for i := range codes {
			codes[i] = int8(r.IntN(255) - 127)
		}
		m.Graph.SetInit("w"+n, tensor.From(codes, 32, 32))
		m.Graph.SetInit("b"+n, tensor.From(gauss(r, 32, .5), 32))
		s := make([]float32, 32)
		for i := range s {
			s[i] = float32(.002 + .003*r.Float64())
		}
		m.Graph.SetInit("s"+n, tensor.From(s, 32))
	}
	m.Graph.SetInit("sk", tensor.From([]float32{.004})) // one scale for all columns
	m.Graph.SetInit("inv", tensor.From(inv, 32))
	m.Graph.SetInit("gamma", tensor.From(gauss(r, 32, 1), 32))
	m.Graph.SetInit("beta", tensor.From(gauss(r, 32, 1), 32))
	m.Graph.SetInit("scale", tensor.From([]float32{.02}))
	m.Graph.SetInit("zero", tensor.From([]uint8{131}))
	m.Graph.SetInit("one", tensor.From([]float32{1}))
	m.Graph.SetInit("least", tensor.From([]float32{-10000}))
	m.Graph.SetInit("axis1", tensor.From([]int64{1}, 1))
	m.Graph.SetInit("axis2", tensor.From([]int64{2}, 1))
	graph.InferShapes(m)
	return m
}

func countOps(m *graph.Model) map[string]int {
	count := map[string]int{}
	for _, n := range m.Graph.Nodes {
		count[n.Op]++
	}
	return count
}

var merging = []quant.Pass{quant.FoldDivisors{}, quant.MergeAttention{}}

// TestMergedAttention: folded and merged, a block computes what it did before,
// for several batch sizes and lengths, with padding of each sample's own.
func TestMergedAttention(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	lab, err := NewLab(p.Engine, 2, p.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	for _, mask := range []bool{true, false} {
		t.Run(fmt.Sprintf("mask=%v", mask), func(t *testing.T) {
			m := integerAttention(mask)
			merged := m.Clone()
			if _, err := quant.Run(ctx, merged, merging, quant.Dump{}); err != nil {
				t.Fatal(err)
			}
			if c := countOps(merged); c["QAttention"] != 1 || c["MatMulIntegerToFloat"]+c["MultiHeadAttention"]+c["Mul"]+c["Expand"] != 0 {
				t.Fatalf("not merged: %v", c)
			}
			shapes := map[string][]int64{"x": {1, 10, 32}, "mask": {1, 10}}
			before, after := report.CountMACs(integerWork(m, shapes)), report.CountMACs(integerWork(merged, shapes))
			if before != after || before.MACs == 0 || before.MACs == before.Total {
				t.Errorf("integer work %+v became %+v", before, after)
			}
			sameLogits(t, lab, m, merged, func(r *rand.Rand, b, n int64) engine.Feeds {
				feeds := engine.Feeds{"x": tensor.From(gauss(r, int(b*n*32), 1), b, n, 32)}
				if mask {
					v := make([]int64, b*n)
					for i := range v {
						if at := int64(i) % n; at == 0 || at < n-int64(i)/n*3 {
							v[i] = 1
						}
					}
					feeds["mask"] = tensor.From(v, b, n)
				}
				return feeds
			})
		})
	}
}

func logits(t *testing.T, s engine.Session, feeds engine.Feeds) []float32 {
	t.Helper()
	res, err := s.Run(context.Background(), feeds, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	v, err := res.Tensors()["logits"].F32()
	if err != nil {
		t.Fatal(err)
	}
	return append([]float32(nil), v...)
}

// TestMergeLeavesAlone: a block that QAttention would compute differently, and a
// multiplication whose operand somebody else reads, stay.
func TestMergeLeavesAlone(t *testing.T) {
	find := func(m *graph.Model, name string) *graph.Node {
		for _, n := range m.Graph.Nodes {
			if n.Name == name {
				return n
			}
		}
		panic(name)
	}
	merge := map[string]func(m *graph.Model){
		"another scale":            func(m *graph.Model) { find(m, "attention").Attrs[1] = graph.AttrFloat("scale", 1) },
		"heads that do not divide": func(m *graph.Model) { find(m, "attention").Attrs[0] = graph.AttrInt("num_heads", 5) },
		"causal": func(m *graph.Model) {
			n := find(m, "attention")
			n.Attrs = append(n.Attrs, graph.AttrInt("unidirectional", 1))
		},
		"keys of another input": func(m *graph.Model) {
			m.Graph.SetInit("other", tensor.From([]float32{.03}))
			find(m, "k").Inputs[2] = "other"
		},
		"values are an output":  func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("v", -1, -1, 32)) },
		"values read elsewhere": func(m *graph.Model) { find(m, "sub").Inputs[0] = "v" },
		"weights are an input": func(m *graph.Model) {
			m.Graph.DropInit("wq")
			m.Graph.Inputs = append(m.Graph.Inputs, value("wq", 32, 32))
		},
		"weights with a zero point": func(m *graph.Model) { find(m, "q").Inputs[5] = "zero" },
		"a mask of another kind":    func(m *graph.Model) { m.Graph.SetInit("one", tensor.From([]float32{2})) },
		"a mask that does not mask": func(m *graph.Model) { m.Graph.SetInit("least", tensor.From([]float32{-1})) },
		"a mask that is no constant": func(m *graph.Model) {
			m.Graph.DropInit("least")
			m.Graph.Inputs = append(m.Graph.Inputs, value("least"))
		},
		"a mask of reals":    func(m *graph.Model) { m.Graph.Inputs[1].Type = tensor.Float32 },
		"a key padding mask": func(m *graph.Model) { find(m, "attention").Inputs[4] = "mask" },
		"a present output":   func(m *graph.Model) { n := find(m, "attention"); n.Outputs = append(n.Outputs, "present") },
	}
	for name, edit := range merge {
		m := integerAttention(true)
		edit(m)
		if _, err := (quant.MergeAttention{}).Run(context.Background(), m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c := countOps(m); c["QAttention"] != 0 || c["MultiHeadAttention"] != 1 {
			t.Errorf("%s: merged", name)
		}
	}
	fold := map[string]struct {
		edit func(m *graph.Model)
		muls int // with the one of the mask
	}{
		"as it is":                   {func(*graph.Model) {}, 1},
		"the residual reads it too":  {func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("normed", -1, -1, 32)) }, 2},
		"no vector":                  {func(m *graph.Model) { m.Graph.SetInit("inv", tensor.From(make([]float32, 32), 1, 32)) }, 3},
		"of another width":           {func(m *graph.Model) { m.Graph.SetInit("inv", tensor.From([]float32{2}, 1)) }, 3},
		"values with a bias":         {func(m *graph.Model) { find(m, "attention").Inputs[3] = "beta" }, 2},
		"values read elsewhere":      {func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("v", -1, -1, 32)) }, 2},
		"a norm with its statistics": {func(m *graph.Model) { n := find(m, "norm"); n.Outputs = append(n.Outputs, "mean") }, 2},
		"behind a Relu": {func(m *graph.Model) {
			n := find(m, "norm")
			n.Op, n.Inputs, n.Attrs = "Relu", n.Inputs[:1], nil
		}, 2},
	}
	for name, c := range fold {
		m := integerAttention(true)
		c.edit(m)
		if _, err := (quant.FoldDivisors{}).Run(context.Background(), m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := countOps(m)["Mul"]; got != c.muls {
			t.Errorf("%s: %d multiplications, expected %d", name, got, c.muls)
		}
	}
}

// TestFoldKeepsSharedConstants: a constant that another operator reads as well is
// not changed under it.
func TestFoldKeepsSharedConstants(t *testing.T) {
	m := integerAttention(false)
	for _, n := range m.Graph.Nodes {
		if n.Name == "v" {
			n.Inputs[3], n.Inputs[6] = "sq", "bq"
		}
	}
	before := append([]float32(nil), tensor.View[float32](m.Graph.Init("sq"))...)
	if _, err := (quant.FoldDivisors{}).Run(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	for i, v := range tensor.View[float32](m.Graph.Init("sq")) {
		if v != before[i] {
			t.Fatalf("scale %d of the query became %v, was %v", i, v, before[i])
		}
	}
}
