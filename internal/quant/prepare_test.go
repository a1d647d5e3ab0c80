package quant

import (
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestNamesThatAreTaken: what is prepared gets names of its own, also where another
// constant already has the one that it would get.
func TestNamesThatAreTaken(t *testing.T) {
	added := model([]*graph.Value{value("x", -1, 3, 8, 8)}, []*graph.Value{value("y", -1, 4, 8, 8)},
		node("Conv", "c", "x k", "c"), node("Add", "add", "c c_bias", "y"))
	weight(added, "k", 1, 4, 3, 1, 1)
	weight(added, "c_bias", 2, 1)
	want := slices.Clone(added.Graph.Init("c_bias").Data)
	if ownBiases(added) != 1 || !slices.Equal(added.Graph.Init("c_bias").Data, want) {
		t.Errorf("the bias of a convolution took the place of what is added: %v", added.Graph.Init("c_bias"))
	}

	tied := model([]*graph.Value{value("x", -1, 16)}, []*graph.Value{value("y", -1, 16)},
		node("Gemm", "fc", "x fc_weight", "fc", graph.AttrInt("transB", 1)), node("Gemm", "fc2", "fc fc_weight", "y", graph.AttrInt("transB", 1)))
	weight(tied, "fc_weight", 3, 16, 16)
	v := transpose2D(tensor.View[float32](tied.Graph.Init("fc_weight")), 16, 16)
	if n := gemmToMatMul(tied); n != 2 {
		t.Fatalf("%d Gemms rewritten", n)
	}
	for _, n := range tied.Graph.Nodes {
		if got := tensor.View[float32](tied.Graph.Init(n.In(1))); !slices.Equal(got, v) {
			t.Errorf("%s: its weight is not the transposed one", n)
		}
	}
	if err := tied.Check(); err != nil {
		t.Error(err)
	}

	ids := value("ids", -1, 4)
	ids.Type = tensor.Int64
	table := model([]*graph.Value{ids}, []*graph.Value{value("y", -1, 4, 8)},
		node("Gather", "look", "table ids", "found"), node("Add", "add", "found table_rows", "y"))
	weight(table, "table", 4, minTableRows, 8)
	weight(table, "table_rows", 5, 8)
	want = slices.Clone(table.Graph.Init("table_rows").Data)
	if s, err := (Embeddings{}).Run(t.Context(), table); err != nil || s.Changed != 1 {
		t.Fatal(s, err)
	}
	if !slices.Equal(table.Graph.Init("table_rows").Data, want) {
		t.Error("the codes of a table took the place of what is added")
	}
}

// TestBiasReadElsewhere: correction changes a convolution's bias, and nothing else.
func TestBiasReadElsewhere(t *testing.T) {
	m := model([]*graph.Value{value("x", -1, 3, 8, 8)}, []*graph.Value{value("y", -1, 4, 8, 8), value("b", 4)}, node("Conv", "c", "x k b", "y"))
	weight(m, "k", 1, 4, 3, 1, 1)
	weight(m, "b", 2, 4)
	if n := ownBiases(m); n != 1 || m.Graph.Nodes[0].In(2) == "b" {
		t.Errorf("%d biases, %s: b is an output too", n, m.Graph.Nodes[0])
	}
}
