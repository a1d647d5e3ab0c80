package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

const repoRoot = "../.."

// table is the tiny encoder's embedding of tokens 0..3, [4,2].
var table = []float32{0, 0, 1, 2, 3, -4, -5, 6}

// tinyEncoder looks token ids up: [b,s] -> [b,s,2]; the mask is not read.
func tinyEncoder() *graph.Model {
	ids := func(name string) *graph.Value {
		return &graph.Value{Name: name, Type: tensor.Int64, Dims: []graph.Dim{{N: -1, Name: "b"}, {N: -1, Name: "s"}}}
	}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "g", Inputs: []*graph.Value{ids("input_ids"), ids("attention_mask")},
		Outputs: []*graph.Value{
			{Name: "hidden", Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "b"}, {N: -1, Name: "s"}, {N: 2}}},
			{Name: "pooled", Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "b"}, {N: -1, Name: "s"}, {N: 2}}},
		},
		Nodes: []*graph.Node{
			graph.NewNode("", "Gather", "look", []string{"table", "input_ids"}, []string{"hidden"}),
			graph.NewNode("", "Tanh", "pooler", []string{"hidden"}, []string{"pooled"}),
		},
		Info: map[string]*graph.Value{},
	}}
	m.Graph.SetInit("table", tensor.From(table, 4, 2))
	return m
}

func tinyHead() *head {
	h := &head{Labels: []string{"a", "b", "c"}, MaxTokens: 8, Pooling: "mean", WeightShape: []int64{3, 2}, Bias: []float32{.5, 0, -1}}
	var b []byte
	for _, w := range []float32{1, 0, 0, 1, 2, -1} {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(w))
	}
	h.Weight = base64.StdEncoding.EncodeToString(b)
	return h
}

// TestFold runs the folded model and compares it with pooling by hand; the
// second text is padded, and its padding must not count.
func TestFold(t *testing.T) {
	lib := filepath.Join(repoRoot, ".deps", "ort-1.32.0")
	if _, err := os.Stat(lib); err != nil && os.Getenv("FEWBIT_ORT_LIB") == "" {
		t.Skip("needs ONNX Runtime in .deps (make deps)")
	} else if err != nil {
		lib = ""
	}
	m := tinyEncoder()
	if err := fold(m, tinyHead()); err != nil {
		t.Fatal(err)
	}
	for _, n := range m.Graph.Nodes {
		if n.Name == "pooler" {
			t.Error("what only the second output needed is left in the graph")
		}
	}
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	e, err := ort.New(ort.Config{Library: lib})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.OpenFile(context.Background(), path, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Run(context.Background(), engine.Feeds{
		"input_ids":      tensor.From([]int64{1, 2, 3, 2, 3, 0}, 2, 3),
		"attention_mask": tensor.From([]int64{1, 1, 1, 1, 0, 0}, 2, 3),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := r.Tensors()["logits"].F32()
	if err != nil {
		t.Fatal(err)
	}
	// Means: ((1,2)+(3,-4)+(-5,6))/3 = (-1/3, 4/3) and (3,-4).
	want := []float32{-1./3 + .5, 4. / 3, -2./3 - 4./3 - 1, 3.5, -4, 6 + 4 - 1}
	for i := range want {
		if math.Abs(float64(got[i]-want[i])) > 1e-5 {
			t.Fatalf("logits %v, want %v", got, want)
		}
	}
}

func TestFoldRefuses(t *testing.T) {
	tests := []struct {
		name, want string
		edit       func(*graph.Model, *head)
	}{
		{"another width", "not [batch, sequence, 3]", func(_ *graph.Model, h *head) { h.WeightShape = []int64{2, 3} }},
		{"no mask", "no input attention_mask", func(m *graph.Model, _ *head) { m.Graph.Inputs = m.Graph.Inputs[:1] }},
		{"an old operator set", "opset 13", func(m *graph.Model, _ *head) { m.Opsets[""] = 12 }},
		{"a short weight", "its shape", func(_ *graph.Model, h *head) { h.Weight = "AAAA" }},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m, h := tinyEncoder(), tinyHead()
			tc.edit(m, h)
			if err := fold(m, h); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestCommittedHeads(t *testing.T) {
	for _, tc := range []struct {
		example         string
		classes, hidden int64
	}{{"news", 5, 384}, {"text-classification", 2, 768}} {
		h, _, err := readHead(filepath.Join(repoRoot, "examples", tc.example, "head.json"))
		if err != nil {
			t.Fatal(err)
		}
		w, err := h.weight()
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(h.Labels)) != tc.classes || w.Dims[0] != tc.classes || w.Dims[1] != tc.hidden {
			t.Errorf("%s: %d labels, weight %v", tc.example, len(h.Labels), w.Dims)
		}
	}
}

func TestAnotherEncoderIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.onnx"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := run(dir, filepath.Join(repoRoot, "examples", "news", "head.json"), filepath.Join(dir, "out"))
	if err == nil || !strings.Contains(err.Error(), "the head was trained on") {
		t.Errorf("error %v", err)
	}
}
