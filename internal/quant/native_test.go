package quant

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestNativeRules: what has no native form is refused or stays in float, and
// says why.
func TestNativeRules(t *testing.T) {
	c, err := Config{Target: CUDA}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	old := mlp()
	old.Opsets[""] = ops.MinOpset - 1
	if _, err := NewPlan(old, c); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "opset 11") {
		t.Errorf("an old opset: %v", err)
	}
	for scheme, opset := range map[Scheme]int64{INT8: quantizeOpset, INT8Dynamic: dynamicOpset, INT4: 8} {
		c, err := Config{Target: ORTCPU, Scheme: scheme}.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		old.Opsets[""] = opset
		if _, err := NewPlan(old, c); err != nil {
			t.Errorf("%s, opset %d: %v", scheme, opset, err)
		}
		old.Opsets[""] = opset - 1
		want := fmt.Sprintf("scheme %s needs a model of opset %d or above, this one has %d;", scheme, opset, opset-1)
		if _, err := NewPlan(old, c); scheme != INT4 && (!errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s, opset %d: %v, want %q", scheme, opset-1, err, want)
		}
	}
	const k, n = ops.MaxK + 1, minLinearOut
	m := model([]*graph.Value{value("x", -1, k)}, []*graph.Value{value("y", -1, n)}, node("MatMul", "deep", "x w", "y"))
	m.Graph.SetInit("w", tensor.From(make([]float32, k*n), k, n))
	if _, err := NewPlan(m, c); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "INT32") {
		t.Errorf("a deep product: %v", err)
	}
	other, err := Config{Target: QDQ}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(m, other); err != nil {
		t.Errorf("a deep product in another form: %v", err)
	}
	if _, err := NewPlan(withFewbit(mlp()), c); !errors.Is(err, ErrQuantized) {
		t.Errorf("quantized already: %v", err)
	}
}

func withFewbit(m *graph.Model) *graph.Model {
	m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode(ops.Domain, ops.OpQuantizeRows, "", []string{"x"}, []string{"q", "s", "z"}))
	return m
}

// TestNativeBesideConvolution: a matrix product whose input a convolution reads
// too takes the dequantized copy, and has rows of its own.
func TestNativeBesideConvolution(t *testing.T) {
	m := model([]*graph.Value{value("x", -1, 4, 8, 16)}, []*graph.Value{value("y", -1, 4, 8, 16), value("z", -1, 4, 8, 16)},
		node("Conv", "c1", "x k1", "a", graph.AttrInts("pads", 1, 1, 1, 1)),
		node("Conv", "c2", "a k1", "b", graph.AttrInts("pads", 1, 1, 1, 1)),
		node("Add", "end", "b x", "y"),
		node("MatMul", "rows", "a w", "z"))
	weight(m, "k1", 1, 4, 4, 3, 3)
	weight(m, "w", 2, 16, 16)
	// Names that the rewriting would like to use are taken.
	m.Graph.Nodes = append(m.Graph.Nodes, node("Relu", "trap", "x", "a_rows_scale"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("a_rows_scale", -1, 4, 8, 16))
	m, _ = rewrite(t, m, Config{Target: CUDA}, "")
	var product, rows *graph.Node
	for _, n := range m.Graph.Nodes {
		switch n.Op {
		case ops.OpMatMulQuantized:
			product = n
		case ops.OpQuantizeRows:
			rows = n
		}
	}
	if product == nil || rows == nil || rows.In(0) != "a_1_dequantized" || product.In(0) != rows.Outputs[0] || product.Outputs[0] != "z" {
		t.Errorf("rows %v, product %v", rows, product)
	}
	if err := ops.Verify(m); err != nil {
		t.Error(err)
	}
	sums, err := ops.ColumnSums(tensor.View[int8](m.Graph.Init(product.In(3))), 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range tensor.View[int32](m.Graph.Init(product.In(5))) {
		if v != sums[i] {
			t.Errorf("column %d adds up to %d, the file says %d", i, sums[i], v)
		}
	}
}

// TestFakeQuantRows: what the search for smoothing measures is the operator.
func TestFakeQuantRows(t *testing.T) {
	const m, k = 700, 130 // enough for several goroutines
	x := randoms(3, m*k)
	got, err := fakeQuantRows(x, k)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ops.QuantizeRows(x, m, k)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range q.Dequantize() {
		if got[i] != v {
			t.Fatalf("element %d: %v, want %v", i, got[i], v)
		}
	}
	x[m*k-1] /= 0 * x[0]
	if _, err := fakeQuantRows(x, k); !errors.Is(err, ops.ErrValue) {
		t.Errorf("infinity: %v", err)
	}
}
