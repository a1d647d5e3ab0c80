package graph

import (
	"fmt"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// folds runs FoldConstants on one node of constants whose output is read.
func folds(n *Node, in ...*tensor.Tensor) (*Model, int) {
	n.Outputs = []string{"v"}
	m := model(n, NewNode("", "Relu", "", []string{"v"}, []string{"y"}))
	for i, t := range in {
		name := fmt.Sprint("i", i)
		m.Graph.SetInit(name, t)
		n.Inputs = append(n.Inputs, name)
	}
	return m, FoldConstants(m)
}

// TestFoldKeeps: what would be too large, undefined or wrong stays a node, and
// the model stays what it was.
func TestFoldKeeps(t *testing.T) {
	i64 := func(v ...int64) *tensor.Tensor { return tensor.From(v, int64(len(v))) }
	scalar := func(v int64) *tensor.Tensor { return tensor.From([]int64{v}) }
	f32 := func(v ...float32) *tensor.Tensor { return tensor.From(v, int64(len(v))) }
	const big = foldElems + 1
	for _, c := range []struct {
		node *Node
		in   []*tensor.Tensor
	}{
		{NewNode("", "ConstantOfShape", "", nil, nil), []*tensor.Tensor{i64(big)}},
		{NewNode("", "ConstantOfShape", "", nil, nil), []*tensor.Tensor{i64(1<<62, 1<<62)}},
		{NewNode("", "ConstantOfShape", "", nil, nil), []*tensor.Tensor{i64(-1)}},
		{NewNode("", "Expand", "", nil, nil), []*tensor.Tensor{f32(1), i64(big)}},
		{NewNode("", "Range", "", nil, nil), []*tensor.Tensor{scalar(0), scalar(big), scalar(1)}},
		{NewNode("", "Range", "", nil, nil), []*tensor.Tensor{scalar(0), scalar(-1 << 63), scalar(-1)}},
		{NewNode("", "Range", "", nil, nil), []*tensor.Tensor{scalar(0), scalar(5), scalar(0)}},
		{NewNode("", "Range", "", nil, nil), []*tensor.Tensor{tensor.From([]float32{0}), tensor.From([]float32{1}), tensor.From([]float32{.1})}}, // rounding
		{NewNode("", "Div", "", nil, nil), []*tensor.Tensor{i64(1), i64(0)}},
		{NewNode("", "Div", "", nil, nil), []*tensor.Tensor{i64(-1 << 63), i64(-1)}},
		{NewNode("", "Mod", "", nil, nil), []*tensor.Tensor{i64(1), i64(0)}},
		{NewNode("", "Mod", "", nil, nil), []*tensor.Tensor{i64(-7), i64(3)}}, // fmod decides
		{NewNode("", "Mod", "", nil, nil), []*tensor.Tensor{i64(7), i64(-3)}},
		{NewNode("", "Mod", "", nil, nil), []*tensor.Tensor{tensor.From([]float32{7}, 1), tensor.From([]float32{3}, 1)}},
		{NewNode("", "Gather", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(2)}},
		{NewNode("", "Gather", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(-3)}},
		{NewNode("", "Gather", "", nil, nil, AttrInt("axis", 5)), []*tensor.Tensor{f32(1, 2), i64(0)}},
		{NewNode("", "Reshape", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(3)}},
		{NewNode("", "Reshape", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(-1, -1)}},
		{NewNode("", "Reshape", "", nil, nil), []*tensor.Tensor{f32(), i64(0, -1)}},
		{NewNode("", "Transpose", "", nil, nil, AttrInts("perm", 0, 0)), []*tensor.Tensor{tensor.From([]float32{1}, 1, 1)}},
		{NewNode("", "Squeeze", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(0)}},
		{NewNode("", "Concat", "", nil, nil), []*tensor.Tensor{f32(1), f32(2)}}, // no axis
		{NewNode("", "Concat", "", nil, nil, AttrInt("axis", 0)), []*tensor.Tensor{f32(1), i64(2)}},
		{NewNode("", "Slice", "", nil, nil), []*tensor.Tensor{f32(1, 2), i64(0), i64(1), i64(0), i64(0)}}, // step 0
		{NewNode("", "Add", "", nil, nil), []*tensor.Tensor{f32(1, 2), f32(1, 2, 3)}},
		{NewNode("", "Add", "", nil, nil), []*tensor.Tensor{f32(1), i64(1)}},
		{NewNode("", "Pow", "", nil, nil), []*tensor.Tensor{i64(4), f32(.5)}}, // 2, not 4 to the power 0
		{NewNode("", "Cast", "", nil, nil, AttrInt("to", int64(tensor.Int32))), []*tensor.Tensor{f32(1e20)}},
		{NewNode("", "Cast", "", nil, nil, AttrInt("to", int64(tensor.String))), []*tensor.Tensor{f32(1)}},
		{NewNode("", "Cast", "", nil, nil, AttrInt("to", 99)), []*tensor.Tensor{f32(1)}},
		{NewNode("", "Flatten", "", nil, nil), []*tensor.Tensor{{Type: tensor.String, Dims: []int64{1}, Strings: [][]byte{{}}}}},
		{NewNode("", "Erf", "", nil, nil), []*tensor.Tensor{f32(1)}}, // not a known evaluator
		{NewNode(DomainMS, "Add", "", nil, nil), []*tensor.Tensor{f32(1), f32(1)}},
	} {
		m, n := folds(c.node, c.in...)
		if n != 0 || len(m.Graph.Nodes) != 2 || len(m.Graph.Inits()) != len(c.in) {
			t.Errorf("%s: folded to %v", c.node, m.Graph.Init("v"))
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", c.node, err)
		}
	}
	out := model(NewNode("", "Neg", "", []string{"k"}, []string{"y"}))
	out.Graph.SetInit("k", f32(1))
	if FoldConstants(out) != 0 {
		t.Error("a graph output was folded")
	}
	old, _ := folds(NewNode("", "Neg", "", nil, nil), f32(1))
	old.Opsets[""] = 6
	old.Graph.Nodes = []*Node{NewNode("", "Neg", "", []string{"v"}, []string{"y"})}
	if FoldConstants(old) != 0 {
		t.Error("folded at opset 6")
	}
}

// TestFoldBudget: many nodes, each within its own limit, stop at the limit for
// all of them.
func TestFoldBudget(t *testing.T) {
	m := model()
	g := m.Graph
	g.SetInit("n", tensor.From([]int64{foldElems}, 1))
	last := "x"
	const nodes = 1000
	for i := range nodes {
		c, s := fmt.Sprint("c", i), fmt.Sprint("s", i)
		g.Nodes = append(g.Nodes, NewNode("", "ConstantOfShape", "", []string{"n"}, []string{c}), NewNode("", "Concat", "", []string{last, c}, []string{s}))
		last = s
	}
	g.Outputs[0].Name = last
	folded := FoldConstants(m)
	if want := foldSlackBytes / (4 * foldElems); folded < want-1 || folded > want {
		t.Errorf("folded %d nodes of %d bytes, want about %d", folded, 4*foldElems, want)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}

// TestFoldShared: a weight that is read elsewhere stays as it was.
func TestFoldShared(t *testing.T) {
	m := model(
		NewNode("", "Transpose", "", []string{"w"}, []string{"wT"}),
		NewNode("", "MatMul", "", []string{"x", "wT"}, []string{"a"}),
		NewNode("", "Gather", "", []string{"w", "ids"}, []string{"b"}),
		NewNode("", "Add", "", []string{"a", "b"}, []string{"y"}),
	)
	w := tensor.From([]float32{1, 2, 3, 4, 5, 6, 7, 8}, 2, 4)
	m.Graph.SetInit("w", w)
	m.Graph.Inputs = append(m.Graph.Inputs, &Value{Name: "ids", Type: tensor.Int64, Dims: fixed([]int64{1})})
	if FoldConstants(m) != 1 || m.Graph.Init("w") != w || fmt.Sprint(tensor.View[float32](m.Graph.Init("wT"))) != "[1 5 2 6 3 7 4 8]" {
		t.Errorf("\n%s", m.Text())
	}
}

// TestFoldTied: an Identity of a weight does not become a second weight, also
// where what reads it is folded.
func TestFoldTied(t *testing.T) {
	m := model(
		NewNode("", "Identity", "", []string{"w"}, []string{"w2"}),
		NewNode("", "Identity", "", []string{"w2"}, []string{"w3"}),
		NewNode("", "Transpose", "", []string{"w3"}, []string{"wT"}),
		NewNode("", "MatMul", "", []string{"x", "wT"}, []string{"a"}),
		NewNode("", "Gather", "", []string{"w2", "ids"}, []string{"b"}),
		NewNode("", "Add", "", []string{"a", "b"}, []string{"y"}),
	)
	m.Graph.SetInit("w", tensor.From([]float32{1, 2, 3, 4, 5, 6, 7, 8}, 2, 4))
	m.Graph.Inputs = append(m.Graph.Inputs, &Value{Name: "ids", Type: tensor.Int64, Dims: fixed([]int64{1})})
	if n := FoldConstants(m); n != 3 || fmt.Sprint(m.Graph.Inits()) != "[w wT]" || m.Graph.Nodes[1].Inputs[0] != "w" {
		t.Errorf("folded %d\n%s", n, m.Text())
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	unread := model(NewNode("", "Identity", "", []string{"w"}, []string{"w2"}), NewNode("", "Neg", "", []string{"w2"}, []string{"v"}),
		NewNode("", "Relu", "", []string{"v"}, []string{"y"}))
	unread.Graph.SetInit("w", tensor.From([]float32{1}, 1))
	if n := FoldConstants(unread); n != 2 || fmt.Sprint(unread.Graph.Inits()) != "[v]" {
		t.Errorf("folded %d\n%s", n, unread.Text())
	}
}

func BenchmarkFoldTranspose(b *testing.B) { // BERT-base's word embedding, tied to the output layer
	w := tensor.From(make([]float32, 30522*768), 30522, 768)
	b.SetBytes(int64(len(w.Data)))
	for b.Loop() {
		if _, n := folds(NewNode("", "Transpose", "", nil, nil), w); n != 1 {
			b.Fatal("not folded")
		}
	}
}

// TestFoldMod: of numbers that are not negative both kinds of Mod are the same.
func TestFoldMod(t *testing.T) {
	for fmod := range int64(2) {
		m, n := folds(NewNode("", "Mod", "", nil, nil, AttrInt("fmod", fmod)), tensor.From([]int64{0, 2, 7, 9}, 4), tensor.From([]int64{3}, 1))
		if v := m.Graph.Init("v"); n != 1 || v == nil || !slices.Equal(tensor.View[int64](v), []int64{0, 2, 1, 0}) {
			t.Errorf("fmod %d: %d folded to %v", fmod, n, v)
		}
	}
}
