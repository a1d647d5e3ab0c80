package graph

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

var update = flag.Bool("update", false, "rewrite testdata/passes/*.txt")

// attentionHead is what exporters leave around an attention: a Linear as
// Transpose -> MatMul, a reshape whose target is computed from Shape, Dropout.
func attentionHead() *Model {
	one := func(out string, v int64) *Node { return constant(out, AttrInt("value_int", v)) }
	m := model(
		NewNode("", "Transpose", "wt", []string{"w"}, []string{"wT"}, AttrInts("perm", 1, 0)),
		NewNode("", "MatMul", "fc", []string{"x", "wT"}, []string{"h"}),
		NewNode("", "Identity", "tied", []string{"b"}, []string{"b_tied"}),
		NewNode("", "Add", "bias", []string{"h", "b_tied"}, []string{"h2"}),
		NewNode("", "Shape", "shape", []string{"h2"}, []string{"s"}),
		one("zero", 0), one("last", 1), one("heads", 2),
		NewNode("", "Gather", "rows", []string{"s", "zero"}, []string{"n"}, AttrInt("axis", 0)),
		NewNode("", "Gather", "width", []string{"s", "last"}, []string{"d"}, AttrInt("axis", 0)),
		NewNode("", "Div", "size", []string{"d", "heads"}, []string{"hd"}),
		constant("ax", AttrInts("value_ints", 0)),
		NewNode("", "Unsqueeze", "u0", []string{"n", "ax"}, []string{"n1"}),
		NewNode("", "Unsqueeze", "u1", []string{"heads", "ax"}, []string{"heads1"}),
		NewNode("", "Unsqueeze", "u2", []string{"hd", "ax"}, []string{"hd1"}),
		NewNode("", "Concat", "target", []string{"n1", "heads1", "hd1"}, []string{"t"}, AttrInt("axis", 0)),
		NewNode("", "Reshape", "split", []string{"h2", "t"}, []string{"r"}),
		constant("ratio", attrTensor("value", tensor.From([]float32{.1}))),
		NewNode("", "Dropout", "drop", []string{"r", "ratio"}, []string{"y"}),
	)
	m.Graph.SetInit("w", tensor.From([]float32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24}, 6, 4))
	m.Graph.SetInit("b", tensor.From([]float32{1, 2, 3, 4, 5, 6}, 6))
	m.Graph.Outputs[0].Type = tensor.Float32
	return m
}

// branches holds constants inside and outside an If: what the branches
// capture stays by name, what is inside them stays untouched.
func branches() *Model {
	m := model(
		constant("c", attrTensor("value", tensor.From([]bool{true}))),
		constant("k", attrTensor("value", tensor.From([]float32{1, 2, 3, 4}, 2, 2))),
		NewNode("", "Transpose", "t", []string{"k"}, []string{"kT"}),
		NewNode("", "Identity", "i", []string{"kT"}, []string{"kI"}),
		NewNode("", "If", "if", []string{"c"}, []string{"y"}, branch("then_branch", "kT"), branch("else_branch", "kI")),
	)
	m.Graph.Inputs = nil
	return m
}

// positions is BERT's position lookup: Range over a symbolic length stays,
// over a known one folds.
func positions() *Model {
	m := model(
		NewNode("", "Shape", "s", []string{"x"}, []string{"s"}, AttrInt("start", 1)),
		NewNode("", "Squeeze", "sq", []string{"s"}, []string{"len"}),
		NewNode("", "Range", "r", []string{"zero", "len", "one"}, []string{"ids"}),
		NewNode("", "Gather", "g", []string{"table", "ids"}, []string{"rows"}),
		NewNode("", "Add", "a", []string{"x", "rows"}, []string{"y"}),
	)
	m.Graph.SetInit("zero", tensor.From([]int64{0}))
	m.Graph.SetInit("one", tensor.From([]int64{1}))
	m.Graph.SetInit("table", tensor.From([]float32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 10))
	return m
}

// TestPassesGolden compares the text form before and after the folding passes
// with testdata/passes (go test -run PassesGolden -update rewrites it).
func TestPassesGolden(t *testing.T) {
	conv := bnCases(t)[0]
	for name, m := range map[string]*Model{
		"attention_head": attentionHead(), "branches": branches(), "positions": positions(), "conv_bn": conv.model(),
	} {
		var b strings.Builder
		b.WriteString("# before\n" + m.Text())
		LiftConstants(m)
		DropIdentities(m)
		FoldConstants(m)
		FoldBatchNorm(m)
		InferShapes(m)
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b.WriteString("# after\n" + m.Text())
		for _, n := range m.Graph.Nodes {
			for _, o := range n.Outputs {
				if v := m.Graph.Info[o]; v != nil {
					b.WriteString("info " + v.String() + "\n")
				}
			}
		}
		path := filepath.Join("testdata", "passes", name+".txt")
		if *update {
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s differs from %s (see -update):\n%s", name, path, b.String())
		}
	}
}

// TestPassesAgain: the passes find nothing in their own result.
func TestPassesAgain(t *testing.T) {
	for _, m := range []*Model{attentionHead(), branches(), positions()} {
		for round := range 2 {
			n := LiftConstants(m) + DropIdentities(m) + FoldConstants(m) + FoldBatchNorm(m)
			if round == 1 && n != 0 {
				t.Errorf("the second round changed %d nodes", n)
			}
		}
	}
}
