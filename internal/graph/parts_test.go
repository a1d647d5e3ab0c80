package graph

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// chain is n products with a weight of 64 bytes each and a skip connection over all.
func chain(n int) *Model {
	dims := []Dim{{N: -1, Name: "batch"}, {N: 4}}
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &Graph{Name: "g",
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: dims}},
		Outputs: []*Value{{Name: "y", Type: tensor.Float32, Dims: dims}}}}
	at := "x"
	for i := range n {
		w, h := fmt.Sprint("w", i), fmt.Sprint("h", i)
		m.Graph.SetInit(w, tensor.From(make([]float32, 16), 4, 4))
		m.Graph.Nodes = append(m.Graph.Nodes, NewNode("", "MatMul", h, []string{at, w}, []string{h}))
		at = h
	}
	m.Graph.Nodes = append(m.Graph.Nodes, NewNode("", "Add", "skip", []string{at, "h0"}, []string{"y"}))
	InferShapes(m)
	return m
}

func names(vs []*Value) string {
	var s []string
	for _, v := range vs {
		s = append(s, v.Name)
	}
	return strings.Join(s, " ")
}

func describeParts(parts []*Model) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%s | %d nodes, %s | %s\n", names(p.Graph.Inputs), len(p.Graph.Nodes), strings.Join(p.Graph.Inits(), " "), names(p.Graph.Outputs))
	}
	return b.String()
}

func TestParts(t *testing.T) {
	m := chain(5)
	before := m.Text()
	parts := m.Parts(128)
	if got, want := describeParts(parts), "x | 2 nodes, w0 w1 | h0 h1\nh1 | 2 nodes, w2 w3 | h3\nh3 h0 | 2 nodes, w4 | y\n"; got != want {
		t.Errorf("parts of 128 bytes:\n%swant\n%s", got, want)
	}
	for _, p := range parts {
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
	if m.Text() != before {
		t.Error("the model was changed")
	}
	if got := m.Parts(1); len(got) != 5 { // the sum reads no constant: it stays with the last product
		t.Errorf("parts of one product:\n%s", describeParts(got))
	}
	if got := m.Parts(5 * 64); got != nil {
		t.Errorf("what fits was cut:\n%s", describeParts(got))
	}
}

// TestPartsWhere: a value of unknown type is not cut, nor a model that hands out its
// input; a body's reads count.
func TestPartsWhere(t *testing.T) {
	m := chain(5)
	delete(m.Graph.Info, "h0") // alive until the end
	if got := describeParts(m.Parts(64)); strings.Count(got, "\n") != 1 && got != "" {
		t.Errorf("cut through a value of unknown type:\n%s", got)
	}
	m = chain(3)
	m.Graph.Outputs = append(m.Graph.Outputs, &Value{Name: "x", Type: tensor.Float32})
	if got := m.Parts(64); got != nil {
		t.Errorf("a model with its input as output:\n%s", describeParts(got))
	}
	m = gate(&pb.NodeProto{OpType: proto.String("Add"), Input: []string{"s", "h"}, Output: []string{"r"}})
	m.Graph.SetInit("v", tensor.From([]float32{1, 2, 3, 4}, 2, 2))
	m.Graph.Nodes = slices.Insert(m.Graph.Nodes, 1, NewNode("", "MatMul", "", []string{"x", "w"}, []string{"g"}), NewNode("", "MatMul", "", []string{"g", "v"}, []string{"h"}))
	InferShapes(m)
	if got, want := describeParts(m.Parts(16)), "x | 2 nodes, w | s g\ng s x c | 2 nodes, v | y\n"; got != want {
		t.Errorf("with a body:\n%swant\n%s", got, want)
	}
}
