package native

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// firsts counts the operators of m that compute the first row of each sample alone.
func firsts(t *testing.T, e *Engine, m *graph.Model) (n int) {
	t.Helper()
	l := lowering{m: m.Clone(), e: e.Engine, threads: 2}
	defer l.free()
	if _, err := l.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.m.Graph.Nodes {
		if node.Op == opEncoderLayers && node.Str("read", "") == "first" {
			n++
		}
	}
	return n
}

// TestFirstRowRead: other rows are left out where nobody reads them, and nowhere else.
func TestFirstRowRead(t *testing.T) {
	e := newEngine(t)
	const last = "layer.1.ffn.norm" // of the post-normalized model
	reader := func(m *graph.Model) *graph.Node {
		for _, n := range m.Graph.Nodes {
			if n.Outputs[0] == "pooler.first" {
				return n
			}
		}
		t.Fatal("nobody reads the first row")
		return nil
	}
	output := func(m *graph.Model, name string) {
		m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: name, Type: tensor.Float32})
	}
	// between puts an operator before the reader.
	between := func(op string, inputs []string, attrs ...*pb.AttributeProto) func(m *graph.Model) {
		return func(m *graph.Model) {
			r := reader(m)
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", op, "between", append([]string{r.In(0)}, inputs...), []string{"between"}, attrs...))
			r.Inputs[0] = "between"
			if err := m.Graph.Sort(); err != nil {
				t.Fatal(err)
			}
		}
	}
	slice := func(from, to, axis int64) func(m *graph.Model) {
		return func(m *graph.Model) {
			for name, v := range map[string]int64{"from": from, "to": to, "axis": axis} {
				m.Graph.SetInit(name, tensor.From([]int64{v}, 1))
			}
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Slice", "part", []string{reader(m).In(0), "from", "to", "axis"}, []string{"part"}))
			output(m, "part")
		}
	}
	vector := func(edit func(m *graph.Model), dims ...int64) func(m *graph.Model) {
		return func(m *graph.Model) {
			n := int64(1)
			for _, d := range dims {
				n *= d
			}
			m.Graph.SetInit("v", tensor.From(make([]float32, n), dims...))
			edit(m)
		}
	}
	hidden := int64(opstest.TinyBERT.Hidden)
	for name, tc := range map[string]struct {
		head  opstest.Head
		first bool
		edit  func(m *graph.Model)
		want  int
	}{
		"the first row":                 {opstest.Classifier, false, nil, 1},
		"behind a last normalization":   {opstest.Classifier, true, nil, 1},
		"a slice of it as well":         {opstest.Classifier, false, slice(0, 1, 1), 1},
		"a slice of two rows as well":   {opstest.Classifier, false, slice(0, 2, 1), 0},
		"a slice of a column as well":   {opstest.Classifier, false, slice(0, 1, 2), 0},
		"the second row":                {opstest.Classifier, false, func(m *graph.Model) { m.Graph.SetInit("first", tensor.From([]int64{1})) }, 0},
		"the last row":                  {opstest.Classifier, false, func(m *graph.Model) { m.Graph.SetInit("first", tensor.From([]int64{-1})) }, 0},
		"a row that is computed":        {opstest.Classifier, false, func(m *graph.Model) { reader(m).Inputs[1] = "input_ids" }, 0},
		"the first column":              {opstest.Classifier, false, func(m *graph.Model) { reader(m).Attrs = []*pb.AttributeProto{graph.AttrInt("axis", 2)} }, 0},
		"the first sample":              {opstest.Classifier, false, func(m *graph.Model) { reader(m).Attrs = nil }, 0},
		"all rows are an output":        {opstest.Classifier, false, func(m *graph.Model) { output(m, reader(m).In(0)) }, 0},
		"normalized rows are an output": {opstest.Classifier, true, func(m *graph.Model) { output(m, reader(m).In(0)) }, 0},
		"others read all rows":          {opstest.Classifier, false, func(m *graph.Model) { readsPadding(m, last) }, 0},
		"others read the number of rows": {opstest.Classifier, false, func(m *graph.Model) {
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Shape", "s", []string{last}, []string{"s"}))
			output(m, "s")
		}, 0},
		"nobody reads a row":              {opstest.Tokens, false, nil, 0},
		"a mean":                          {opstest.MeanPool, false, nil, 0},
		"behind an operator by element":   {opstest.Classifier, false, between("Tanh", nil), 1},
		"behind a softmax over rows":      {opstest.Classifier, false, between("Softmax", nil, graph.AttrInt("axis", 1)), 0},
		"behind a sum with a vector":      {opstest.Classifier, false, vector(between("Add", []string{"v"}), hidden), 1},
		"behind a sum with rows":          {opstest.Classifier, false, vector(between("Add", []string{"v"}), 1, 1, hidden), 0},
		"behind a sum with another layer": {opstest.Classifier, false, between("Add", []string{"layer.0.ffn.norm"}), 0},
		"behind a product":                {opstest.Classifier, false, vector(between("MatMul", []string{"v"}), hidden, hidden), 1},
		"behind a normalization over all": {opstest.Classifier, false, between("LayerNormalization", []string{"layer.1.ffn.norm.gamma"}, graph.AttrInt("axis", 1)), 0},
		"behind a normalization":          {opstest.Classifier, false, between("LayerNormalization", []string{"layer.1.ffn.norm.gamma"}, graph.AttrInt("axis", 2)), 1},
		"an earlier layer's first as well": {opstest.Classifier, false, func(m *graph.Model) {
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Gather", "early", []string{"layer.0.ffn.norm", "first"}, []string{"early"}, graph.AttrInt("axis", 1)))
			output(m, "early")
		}, 1},
	} {
		c := opstest.TinyBERT
		c.Head, c.NormFirst = tc.head, tc.first
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		if tc.edit != nil {
			tc.edit(m)
		}
		if got := firsts(t, e, m); got != tc.want {
			t.Errorf("%s: %d operators, want %d", name, got, tc.want)
		}
	}
	for name, want := range map[string]int{"bge-sdpa-ts14": 1, "minilm-sdpa-ts14": 0} { // as exporters write it
		m := opstest.Native(t, form(t, filepath.Join("testdata", "forms", name+".onnx.gz")), quant.INT8Dynamic)
		if got := firsts(t, e, m); got != want {
			t.Errorf("%s: %d operators, want %d", name, got, want)
		}
	}
}

// TestFirstRowChangesNothing: a classifier gives the same bits when the rows that nobody
// reads are not computed; and it opens with dimensions that are written in the file.
func TestFirstRowChangesNothing(t *testing.T) {
	e := newEngine(t)
	for form := range 3 {
		c := opstest.TinyBERT
		c.Head, c.Decomposed, c.NormFirst = opstest.Classifier, form == 1, form == 2
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		whole := m.Clone()
		last := "layer.1.ffn.norm"
		if c.NormFirst {
			last = "final.norm"
		}
		readsPadding(whole, last)
		if a, b := firsts(t, e, m), firsts(t, e, whole); a != 1 || b != 0 {
			t.Fatalf("form %d: %d and %d operators, want 1 and 0", form, a, b)
		}
		one, all := opstest.Save(t, m), opstest.Save(t, whole)
		for _, s := range [][2]int{{1, 1}, {1, 9}, {4, 40}, {40, 3}} {
			batch, length := s[0], s[1]
			feeds := c.Feeds(3, batch, length)
			mask := tensor.View[int64](feeds["attention_mask"])
			for i := range mask {
				mask[i] = 1
				if b, at := i/length, i%length; b%4 == 2 || at > (b*7+5)%length { // some samples are all padding
					mask[i] = 0
				}
			}
			want, got := outputs(t, e, all, feeds)["logits"], outputs(t, e, one, feeds)["logits"]
			a, b := tensor.View[float32](want), tensor.View[float32](got)
			if len(a) != len(b) || len(b) != batch*c.Labels {
				t.Fatalf("form %d, %v: %v, want %v", form, s, got.Dims, want.Dims)
			}
			for i := range b {
				if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
					t.Fatalf("form %d, %v: [%d] is %v, want %v", form, s, i, b[i], a[i])
				}
			}
		}
	}
}
