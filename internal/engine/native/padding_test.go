package native

import (
	"context"
	"math"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// skips counts the operators of m that skip padding.
func skips(t *testing.T, e *Engine, m *graph.Model) (n int) {
	t.Helper()
	l := lowering{m: m.Clone(), e: e.Engine, threads: 2}
	defer l.free()
	if _, err := l.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.m.Graph.Nodes {
		if node.Op == opEncoderLayers && node.Str("padding", "") == "skip" {
			n++
		}
	}
	return n
}

// readsPadding adds an output that reads every row of value.
func readsPadding(m *graph.Model, value string) {
	m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "ReduceMean", "mean", []string{value}, []string{"mean"}, graph.AttrInts("axes", 1)))
	m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: "mean", Type: tensor.Float32})
}

// TestPaddingSkipped: padding is skipped where nobody reads it.
func TestPaddingSkipped(t *testing.T) {
	e := newEngine(t)
	const last = "last_hidden_state"
	node := func(op, in, out string, attrs ...any) func(m *graph.Model) {
		return func(m *graph.Model) {
			n := graph.NewNode("", op, out, []string{in}, []string{out})
			for _, a := range attrs {
				switch a := a.(type) {
				case string:
					n.Inputs = append(n.Inputs, a)
				case int:
					n.Attrs = append(n.Attrs, graph.AttrInt("axis", int64(a)))
				}
			}
			m.Graph.Nodes = append(m.Graph.Nodes, n)
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: out, Type: tensor.Float32})
		}
	}
	constant := func(name string, v ...int64) func(m *graph.Model) {
		return func(m *graph.Model) { m.Graph.SetInit(name, tensor.From(v, int64(len(v)))) }
	}
	all := func(edits ...func(*graph.Model)) func(m *graph.Model) {
		return func(m *graph.Model) {
			for _, f := range edits {
				f(m)
			}
		}
	}
	masked := func(mask string, edit func(m *graph.Model)) func(m *graph.Model) {
		return func(m *graph.Model) {
			edit(m)
			for _, n := range m.Graph.Nodes {
				if n.Op == "MultiHeadAttention" {
					n.Inputs[5] = mask
				}
			}
			if err := m.Graph.Sort(); err != nil {
				t.Fatal(err)
			}
		}
	}
	slice := func(from, to, axis int64) func(m *graph.Model) {
		return all(constant("from", from), constant("to", to), constant("axis", axis), node("Slice", last, "part", "from", "to", "axis"))
	}
	for name, tc := range map[string]struct {
		head opstest.Head
		edit func(m *graph.Model)
		want int
	}{
		"an output":                    {opstest.Tokens, nil, 1},
		"a mean with the mask":         {opstest.MeanPool, nil, 1},
		"the first token":              {opstest.Classifier, nil, 1},
		"a slice of the first token":   {opstest.Tokens, slice(0, 1, 1), 1},
		"a slice of two tokens":        {opstest.Tokens, slice(0, 2, 1), 0},
		"a slice of channels":          {opstest.Tokens, slice(0, 1, 2), 0},
		"the second token":             {opstest.Classifier, func(m *graph.Model) { m.Graph.SetInit("first", tensor.From([]int64{1}, 1)) }, 0},
		"a mean without the mask":      {opstest.Tokens, func(m *graph.Model) { readsPadding(m, last) }, 0},
		"behind an operator":           {opstest.Tokens, all(node("Tanh", last, "tanh"), func(m *graph.Model) { readsPadding(m, "tanh") }), 0},
		"an operator by element":       {opstest.Tokens, node("Tanh", last, "tanh"), 1},
		"normalized":                   {opstest.Tokens, all(node("LayerNormalization", last, "normal", "layer.1.ffn.norm.gamma", "layer.1.ffn.norm.beta")), 1},
		"normalized over all":          {opstest.Tokens, all(node("LayerNormalization", last, "normal", "layer.1.ffn.norm.gamma", "layer.1.ffn.norm.beta", 1)), 0},
		"the largest of each channel":  {opstest.Tokens, node("ReduceMax", last, "most"), 0},
		"a softmax over the tokens":    {opstest.Tokens, node("Softmax", last, "shares", 1), 0},
		"turned":                       {opstest.Tokens, node("Transpose", last, "turned"), 0},
		"its shape":                    {opstest.Tokens, node("Shape", last, "shape"), 1},
		"two chains":                   {opstest.Tokens, node("Identity", "layer.0.ffn.norm", "early"), 2},
		"the first of two chains read": {opstest.Tokens, func(m *graph.Model) { readsPadding(m, "layer.0.ffn.norm") }, 1},
		"a mean with another mask": {opstest.MeanPool, func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Name == "pool.mask" {
					n.Inputs[0] = "token_type_ids"
				}
			}
		}, 0},
		"a mask of fractions": {opstest.MeanPool, func(m *graph.Model) {
			for _, v := range m.Graph.Inputs {
				if v.Name == "attention_mask" {
					v.Type = tensor.Float32
				}
			}
		}, 0},
		"a constant mask": {opstest.Tokens, masked("hides", func(m *graph.Model) {
			m.Graph.SetInit("hides", tensor.From([]float32{0, 0, 0, -10000}, 1, 1, 1, 4))
		}), 0},
		"a mask of the length alone": {opstest.Tokens, masked("hides", func(m *graph.Model) {
			m.Graph.SetInit("row", tensor.From([]float32{0, 0, 0, -10000}, 1, 1, 1, 4))
			m.Graph.SetInit("zero", tensor.From([]int64{0}, 1))
			m.Graph.SetInit("three", tensor.From([]int64{3}, 1))
			m.Graph.SetInit("one", tensor.From([]int64{1}, 1))
			m.Graph.Nodes = append(m.Graph.Nodes,
				graph.NewNode("", "Shape", "size", []string{"input_ids"}, []string{"size"}),
				graph.NewNode("", "Gather", "length", []string{"size", "one"}, []string{"length"}, graph.AttrInt("axis", 0)),
				graph.NewNode("", "Slice", "hides", []string{"row", "zero", "length", "three"}, []string{"hides"}))
		}), 0},
		"no mask": {opstest.Tokens, func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Op == "MultiHeadAttention" {
					n.Inputs = n.Inputs[:3]
				}
			}
		}, 0},
	} {
		c := opstest.TinyBERT
		c.Head = tc.head
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		if tc.edit != nil {
			tc.edit(m)
		}
		if got := skips(t, e, m); got != tc.want {
			t.Errorf("%s: %d skip padding, want %d", name, got, tc.want)
		}
	}
}

// TestPaddingChangesNothing: what skips padding gives what the same model gives
// that does not, bit for bit, and zeros in the rows that are padding.
func TestPaddingChangesNothing(t *testing.T) {
	e := newEngine(t)
	const batch, length = 5, 40
	for form := range 3 {
		for _, head := range []opstest.Head{opstest.Tokens, opstest.MeanPool, opstest.Classifier} {
			c := opstest.TinyBERT
			c.Head, c.Decomposed, c.NormFirst = head, form == 1, form == 2
			m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
			whole := m.Clone()
			last := "layer.1.ffn.norm"
			if c.NormFirst {
				last = "final.norm"
			}
			if head == opstest.Tokens {
				last = "last_hidden_state"
			}
			readsPadding(whole, last)
			if a, b := skips(t, e, m), skips(t, e, whole); a != 1 || b != 0 {
				t.Fatalf("head %v: %d and %d skip padding, want 1 and 0", head, a, b)
			}
			feeds := c.Feeds(3, batch, length)
			mask := tensor.View[int64](feeds["attention_mask"])
			for b, real := range []int{length, 7, 21, 0, 2} { // the fourth is all padding
				for i := range length {
					mask[b*length+i] = 0
					if i < real && (b != 2 || i%5 != 2) { // the third has holes
						mask[b*length+i] = 1
					}
				}
			}
			var beta []float32
			if c.NormFirst {
				beta = tensor.View[float32](m.Graph.Init("final.norm.beta"))
			}
			counts := []int{length, 7, 21, length, 2} // rows that are computed
			want, got := outputs(t, e, opstest.Save(t, whole), feeds), outputs(t, e, opstest.Save(t, m), feeds)
			for name, g := range got {
				a, b := tensor.View[float32](want[name]), tensor.View[float32](g)
				if len(a) != len(b) {
					t.Fatalf("%s: %v, want %v", name, g.Dims, want[name].Dims)
				}
				for i := range b {
					w := a[i]
					if len(g.Dims) == 3 && !c.NormFirst && i/c.Hidden%length >= counts[i/(c.Hidden*length)] {
						w = 0
					}
					if len(g.Dims) == 3 && c.NormFirst && i/c.Hidden%length >= counts[i/(c.Hidden*length)] {
						w = beta[i%c.Hidden] // zeros, normalized
					}
					if math.Float32bits(b[i]) != math.Float32bits(w) {
						t.Fatalf("form %d: %s %v: [%d] is %v, want %v", form, name, g.Dims, i, b[i], w)
					}
				}
			}
		}
	}
}
