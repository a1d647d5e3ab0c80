package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestClasses: what the operators are for is seen before and after attention is
// fused, and in convolutional networks.
func TestClasses(t *testing.T) {
	// The encoder reads a table, its output goes through a residual Add to a pooled head.
	encoder := attention(true, false)
	encoder.Graph.Inputs[0] = &graph.Value{Name: "ids", Type: tensor.Int64, Dims: []graph.Dim{{N: -1}, {N: -1}}}
	encoder.Graph.Outputs = []*graph.Value{value("classes", -1, 24)}
	last := encoder.Graph.Nodes[len(encoder.Graph.Nodes)-1]
	last.Outputs[0] = "o"
	encoder.Graph.Nodes = append([]*graph.Node{node("Gather", "words", "table ids", "x", graph.AttrInt("axis", 0))}, append(encoder.Graph.Nodes,
		node("Add", "residual", "o x", "r"), node("ReduceMean", "pool", "r", "m", graph.AttrInts("axes", 1), graph.AttrInt("keepdims", 0)),
		node("MatMul", "classify", "m wc", "l"), node("Add", "classify/bias", "l bc", "lb"), node("Softmax", "probabilities", "lb", "classes"))...)
	encoder.Graph.SetInit("table", tensor.From(make([]float32, 1024*32), 1024, 32))
	encoder.Graph.SetInit("wc", tensor.From(make([]float32, 32*24), 32, 24))
	encoder.Graph.SetInit("bc", tensor.From(make([]float32, 24), 24))
	fused := encoder.Clone()
	if _, err := quant.Run(context.Background(), fused, quant.Prepare(quant.Config{Scheme: quant.INT8, Target: quant.ORTCPU}), quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(fused.Graph.Nodes, func(n *graph.Node) bool { return n.Op == "MultiHeadAttention" }) {
		t.Fatal("the block was not fused")
	}
	odd := encoder.Clone()
	odd.Graph.SetInit("table", tensor.From(make([]float32, 1024*20), 1024, 20))
	for _, c := range []struct {
		name string
		m    *graph.Model
		want map[string]string
	}{
		{"encoder", encoder, map[string]string{"@attention": "q k v", "@head": "classify", "@embeddings": "words", "@convolutions": "", "@matmuls": "q k v out classify"}},
		{"fused", fused, map[string]string{"@attention": "q k v", "@head": "classify", "@embeddings": "words", "@convolutions": "", "@matmuls": "q k v out classify"}},
		{"odd table", odd, map[string]string{"@embeddings": ""}},
		{"cnn", cnn(), map[string]string{"@attention": "", "@head": "head", "@embeddings": "", "@convolutions": "stem dw pw", "@matmuls": "head"}},
		{"mlp", mlp(), map[string]string{"@attention": "", "@head": "down", "@matmuls": "up down"}},
	} {
		for class, want := range c.want {
			nodes, ok := quant.ClassOf(c.m, class, quant.PrecisionINT4)
			var names []string
			for _, n := range nodes {
				names = append(names, n.Name)
			}
			if got := strings.Join(names, " "); !ok || got != want {
				t.Errorf("%s: %s is %q, want %q", c.name, class, got, want)
			}
		}
	}
}

// TestClassRules: a class gets its precision, later rules win, and a class that
// the model lacks is no error.
func TestClassRules(t *testing.T) {
	p := testPipeline(t)
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, cnn()), Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: npy(t, 3, 96, 3, 16, 16), NoLatency: true, Force: true,
		Config: quant.Config{Rules: []quant.Rule{{Match: "@head", Precision: quant.PrecisionFP16}, {Match: "@attention", Precision: quant.PrecisionFP16}, {Match: "@convolutions", Precision: quant.PrecisionFP32}, {Match: "stem", Precision: quant.PrecisionINT8}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rep.Operators {
		if want := map[string]string{"head": "fp16", "dw": "fp32", "pw": "fp32", "stem": "int8"}[o.Name]; o.Precision != want {
			t.Errorf("%s is %s, want %s", o.Name, o.Precision, want)
		}
	}
	_, err = p.Quantize(context.Background(), Request{Model: save(t, cnn()), Calib: npy(t, 3, 8, 3, 16, 16), Config: quant.Config{Rules: []quant.Rule{{Match: "@heads", Precision: quant.PrecisionFP16}}}}, nil)
	if !errors.Is(err, quant.ErrConfig) || !strings.Contains(err.Error(), "no such class of operators; use @attention, @convolutions, @embeddings, @head, @matmuls") {
		t.Errorf("%v", err)
	}
}
