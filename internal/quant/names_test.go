package quant

import (
	"context"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// named returns a model with everything that preparing renames or adds: a Gemm whose
// weight another one reads transposed, a convolution without a bias, a table. Each of
// these names is taken by a value or constant of the model's own.
func named() *graph.Model {
	m := model([]*graph.Value{value("x", -1, 32), value("image", -1, 2, 4, 4), value("ids", -1)}, nil,
		node("Gemm", "", "x tied row", "fc", graph.AttrInt("transB", 1)),
		node("Gemm", "", "x tied row", "other", graph.AttrInt("transB", 1)),
		node("Relu", "fc_Add", "fc", "fc_product"),
		node("Mul", "", "fc_product fc_weight", "weighed"),
		node("Add", "", "weighed fc_bias", "y"),
		node("Conv", "", "image kernel", "conv"),
		node("Add", "", "conv conv_bias", "z"),
		node("Gather", "", "table ids", "e"),
		node("Gather", "", "table2 ids", "e2"),
		node("Mul", "", "e table_row_scales", "e3"),
		node("Neg", "", "e2", "e_row"),
	)
	for _, n := range []string{"y", "z", "e3", "e_row", "other"} {
		m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: n, Type: tensor.Float32})
	}
	m.Graph.Inputs[2].Type = tensor.Int64
	weight(m, "tied", 1, 16, 32)
	weight(m, "row", 2, 1, 16)
	weight(m, "fc_weight", 3, 16)
	weight(m, "fc_bias", 4, 16)
	weight(m, "kernel", 5, 4, 2, 3, 3)
	weight(m, "conv_bias", 6, 1, 4, 1, 1)
	weight(m, "table", 7, minTableRows, 32)
	weight(m, "table2", 8, minTableRows, 32)
	weight(m, "table_row_scales", 9, 32)
	return m
}

// What preparing adds has names of its own: constants keep their values, and no two
// nodes have one name, which ONNX Runtime refuses. Nodes need not have names at all.
func TestPreparedNamesAreFree(t *testing.T) {
	for _, target := range []Target{ORTCPU, CPU, QDQ} {
		m, own := named(), named()
		c := Config{Target: target}
		for _, p := range Prepare(c) { // those that fold constants would take the traps away
			if slices.Contains([]string{"gemm-to-matmul", "own-biases"}, p.Name()) {
				if _, err := p.Run(context.Background(), m); err != nil {
					t.Fatal(target, err)
				}
			}
		}
		if _, err := (Embeddings{Config: c}).Run(context.Background(), m); err != nil {
			t.Fatal(target, err)
		}
		for _, name := range []string{"fc_weight", "fc_bias", "conv_bias", "table_row_scales"} {
			if got := m.Graph.Init(name); got == nil || string(got.Data) != string(own.Graph.Init(name).Data) {
				t.Errorf("%s: %q is no longer the model's own", target, name)
			}
		}
		names, made := map[string]bool{}, map[string]bool{}
		for _, n := range m.Graph.Nodes {
			if n.Name != "" && names[n.Name] {
				t.Errorf("%s: two nodes are called %q", target, n.Name)
			}
			names[n.Name] = true
			for _, o := range n.Outputs {
				if made[o] {
					t.Errorf("%s: %q is made twice", target, o)
				}
				made[o] = true
			}
		}
		if err := m.Graph.Sort(); err != nil {
			t.Error(target, err)
		}
	}
}

// A weight in 4 bits takes no name that the model has.
func TestInt4NamesAreFree(t *testing.T) {
	m := model([]*graph.Value{value("x", -1, 32)}, []*graph.Value{value("y", -1, 16)},
		node("MatMul", "fc", "x w", "h"),
		node("Relu", "", "h", "w_int4"),
		node("Pow", "", "w_int4 w_int4_scale", "y"))
	weight(m, "w", 1, 32, 16)
	weight(m, "w_int4_scale", 2, 16)
	own := string(m.Graph.Init("w_int4_scale").Data)
	p, err := NewPlan(m, Config{Scheme: INT4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&BlockWeights{Plan: p}).Run(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	if got := m.Graph.Init("w_int4_scale"); got == nil || string(got.Data) != own {
		t.Error("w_int4_scale is no longer the model's own")
	}
	if m.Graph.Init("w_int4") != nil {
		t.Error("w_int4 is a value and a constant")
	}
}
