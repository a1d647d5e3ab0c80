package pipeline

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// attention is one self-attention block as exporters decompose it: 4 heads of 8.
// The mask is additive, [batch, 1, 1, length]; mul scales by Mul instead of Div.
func attention(mask, mul bool) *graph.Model {
	op, c := "Div", float32(math.Sqrt(8))
	if mul {
		op, c = "Mul", 1/c
	}
	scores := "sc"
	in := []*graph.Value{value("x", -1, -1, 32)}
	if mask {
		scores = "masked"
		in = append(in, &graph.Value{Name: "mask", Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "batch"}, {N: 1}, {N: 1}, {N: -1, Name: "length"}}})
	}
	nodes := []*graph.Node{
		node("MatMul", "q", "x wq", "q"), node("MatMul", "k", "x wk", "k"), node("MatMul", "v", "x wv", "v"),
		node("Reshape", "qs", "q split", "qs"), node("Reshape", "ks", "k split", "ks"), node("Reshape", "vs", "v split", "vs"),
		node("Transpose", "qt", "qs", "qt", graph.AttrInts("perm", 0, 2, 1, 3)),
		node("Transpose", "kt", "ks", "kt", graph.AttrInts("perm", 0, 2, 3, 1)),
		node("Transpose", "vt", "vs", "vt", graph.AttrInts("perm", 0, 2, 1, 3)),
		node("MatMul", "scores", "qt kt", "s"), node(op, "scale", "s c", "sc"),
	}
	if mask {
		nodes = append(nodes, node("Add", "add", "sc mask", "masked"))
	}
	nodes = append(nodes, node("Softmax", "softmax", scores, "p", graph.AttrInt("axis", -1)),
		node("MatMul", "context", "p vt", "ctx"),
		node("Transpose", "join", "ctx", "j", graph.AttrInts("perm", 0, 2, 1, 3)),
		node("Reshape", "flat", "j joined", "a"), node("MatMul", "out", "a wo", "logits"))
	m := newModel(in, []*graph.Value{value("logits", -1, -1, 32)}, nodes...)
	r := rand.New(rand.NewPCG(7, 0))
	for _, w := range []string{"wq", "wk", "wv", "wo"} {
		m.Graph.SetInit(w, tensor.From(gauss(r, 32*32, .3), 32, 32))
	}
	m.Graph.SetInit("split", tensor.From([]int64{0, 0, 4, 8}, 4))
	m.Graph.SetInit("joined", tensor.From([]int64{0, 0, 32}, 3))
	m.Graph.SetInit("c", tensor.From([]float32{c}))
	return m
}

// TestFusedAttention: the fused operator computes what the decomposed block
// does, for several batch sizes and lengths, with padding masked.
func TestFusedAttention(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	lab, err := NewLab(p.Engine, 2, p.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	cfg, err := quant.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, mask := range []bool{true, false} {
		for _, mul := range []bool{true, false} {
			t.Run(fmt.Sprintf("mask=%v mul=%v", mask, mul), func(t *testing.T) {
				m := attention(mask, mul)
				fused := m.Clone()
				if _, err := quant.Run(ctx, fused, quant.Prepare(cfg), quant.Dump{}); err != nil {
					t.Fatal(err)
				}
				if count := countOps(fused); count["MultiHeadAttention"] != 1 || count["Softmax"] != 0 || count["Transpose"] != 0 {
					t.Fatalf("not fused: %v", count)
				}
				sameLogits(t, lab, m, fused, func(x *rand.Rand, b, n int64) engine.Feeds {
					feeds := engine.Feeds{"x": tensor.From(gauss(x, int(b*n*32), 1), b, n, 32)}
					if mask {
						v := make([]float32, b*n)
						for i := range v {
							if int64(i)%n > n/2 {
								v[i] = -10000
							}
						}
						feeds["mask"] = tensor.From(v, b, 1, 1, n)
					}
					return feeds
				})
			})
		}
	}
}

// sameLogits: both models give the same, for several batch sizes and lengths.
func sameLogits(t *testing.T, lab *Lab, a, b *graph.Model, feeds func(r *rand.Rand, batch, length int64) engine.Feeds) {
	t.Helper()
	var outs [2]engine.Session
	for i, x := range []*graph.Model{a, b} {
		var err error
		if outs[i], err = lab.Open(context.Background(), x, nil, engine.Options{}); err != nil {
			t.Fatal(err)
		}
		defer outs[i].Close()
	}
	r := rand.New(rand.NewPCG(8, 0))
	for _, shape := range [][2]int64{{1, 1}, {1, 7}, {3, 16}, {2, 33}} {
		f := feeds(r, shape[0], shape[1])
		var got [2][]float32
		for i, s := range outs {
			got[i] = logits(t, s, f)
		}
		for i := range got[0] {
			if d := math.Abs(float64(got[0][i] - got[1][i])); !(d < 1e-4) {
				t.Fatalf("%v: element %d: %v and %v", shape, i, got[0][i], got[1][i])
			}
		}
	}
}

// TestMaskOfTwoAttentions: rows and their encoder share a padding mask, which each kernel
// gets with as many rows as it has queries.
func TestMaskOfTwoAttentions(t *testing.T) {
	p := testPipeline(t)
	lab, err := NewLab(p.Engine, 2, p.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	cfg, err := quant.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := attention(true, false)
	queries := value("z", -1, -1, 32)
	queries.Dims[1].Name = "queries"
	m.Graph.Inputs = append(m.Graph.Inputs, queries)
	out := value("logits", -1, -1, 32)
	out.Dims[1].Name = "queries"
	m.Graph.Outputs = []*graph.Value{out}
	own := map[string]bool{"mask": true, "split": true, "joined": true, "c": true}
	for _, n := range slices.Clone(m.Graph.Nodes) { // again, from the first block's output, with queries of z
		again := graph.NewNode(n.Domain, n.Op, n.Name+"2", slices.Clone(n.Inputs), slices.Clone(n.Outputs), n.Attrs...)
		for i, in := range again.Inputs {
			switch {
			case in == "x" && n.Name == "q":
				again.Inputs[i] = "z"
			case in == "x":
				again.Inputs[i] = "memory"
			case !own[in] && m.Graph.Init(in) == nil:
				again.Inputs[i] = in + "2"
			}
		}
		if again.Outputs[0] += "2"; n.Name == "out" {
			again.Outputs[0], n.Outputs[0] = "logits", "memory"
		}
		m.Graph.Nodes = append(m.Graph.Nodes, again)
	}
	fused := m.Clone()
	if _, err := quant.Run(context.Background(), fused, quant.Prepare(cfg), quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	if count := countOps(fused); count["MultiHeadAttention"] != 2 {
		t.Fatalf("not fused: %v", count)
	}
	sameLogits(t, lab, m, fused, func(x *rand.Rand, b, n int64) engine.Feeds {
		mask := make([]float32, b*n)
		for i := range mask {
			if int64(i)%n > n/2 {
				mask[i] = -10000
			}
		}
		return engine.Feeds{"x": tensor.From(gauss(x, int(b*n*32), 1), b, n, 32), "z": tensor.From(gauss(x, int(b*5*32), 1), b, 5, 32), "mask": tensor.From(mask, b, 1, 1, n)}
	})
}

// TestAttentionLeftAlone: what is not exactly that block stays as it is.
func TestAttentionLeftAlone(t *testing.T) {
	cfg, err := quant.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(m *graph.Model){
		"probabilities are an output": func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("p", -1, 4, -1, -1)) },
		"scores are an output":        func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("s", -1, 4, -1, -1)) },
		"another permutation":         func(m *graph.Model) { m.Graph.Nodes[7].Attrs[0].Ints = []int64{0, 2, 1, 3} },
		"softmax over heads":          func(m *graph.Model) { m.Graph.Nodes[12].Attrs[0] = graph.AttrInt("axis", 1) },
		"the scale is not constant": func(m *graph.Model) {
			m.Graph.DropInit("c")
			m.Graph.Inputs = append(m.Graph.Inputs, value("c"))
		},
		"qdq": func(m *graph.Model) { cfg.Target = quant.QDQ },
	} {
		cfg.Target = quant.ORTCPU
		m := attention(true, false)
		edit(m)
		if _, err := quant.Run(context.Background(), m, quant.Prepare(cfg), quant.Dump{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, n := range m.Graph.Nodes {
			if n.Op == "MultiHeadAttention" {
				t.Errorf("%s: fused", name)
			}
		}
	}
}
