package ops

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

func ortEngine(t *testing.T) engine.Engine {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	return e
}

// linear is one quantized product with all inner values as outputs.
func linear(t *testing.T, opset int64, w []int8, k, n int, scale []float32, sums []int32) *graph.Model {
	t.Helper()
	v := func(name string, ty tensor.DType) *graph.Value { return &graph.Value{Name: name, Type: ty} }
	m := &graph.Model{IR: 7, Opsets: map[string]int64{"": opset}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "linear", Inputs: []*graph.Value{v("x", tensor.Float32)}, Info: map[string]*graph.Value{},
		Outputs: []*graph.Value{v("q", tensor.Uint8), v("s", tensor.Float32), v("z", tensor.Uint8), v("y", tensor.Float32)},
		Nodes: []*graph.Node{
			graph.NewNode(Domain, OpQuantizeRows, "quantize", []string{"x"}, []string{"q", "s", "z"}),
			graph.NewNode(Domain, OpMatMulQuantized, "product", []string{"q", "s", "z", "w", "ws", "sums"}, []string{"y"}),
		}}}
	m.Graph.SetInit("w", tensor.From(w, int64(k), int64(n)))
	m.Graph.SetInit("ws", tensor.From(scale, int64(n)))
	m.Graph.SetInit("sums", tensor.From(sums, int64(n)))
	if err := Install(m); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t *testing.T, e engine.Engine, m *graph.Model) engine.Session {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := e.OpenFile(context.Background(), path, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestStockBodies: in ONNX Runtime, over every opset that a model may have,
// the bodies give the reference's answer, bit for bit.
func TestStockBodies(t *testing.T) {
	e := ortEngine(t)
	r := rand.New(rand.NewPCG(1, 2))
	for opset := int64(MinOpset); opset <= 22; opset++ {
		t.Run(fmt.Sprint("opset ", opset), func(t *testing.T) {
			k, n := 5+r.IntN(90), 1+r.IntN(40)
			w, scale, sums := randomWeight(t, r, k, n)
			s := open(t, e, linear(t, opset, w, k, n, scale, sums))
			for _, lead := range [][]int64{{1}, {7}, {2, 3}, {3, 1, 4}, {2, 2, 2, 3}, {0}, {2, 0}, {}} {
				rows := 1
				for _, d := range lead {
					rows *= int(d)
				}
				x := randomRows(r, rows, k)
				res, err := s.Run(context.Background(), engine.Feeds{"x": tensor.From(x, append(slices.Clone(lead), int64(k))...)}, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := res.Tensors()
				a, err := QuantizeRows(x, rows, k)
				if err != nil {
					t.Fatal(err)
				}
				want, err := MatMulQuantized(a, w, n, scale, sums)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(tensor.View[uint8](got["q"]), a.Codes) || !slices.Equal(tensor.View[uint8](got["z"]), a.Zero) {
					t.Fatalf("%v: codes or zero points differ", lead)
				}
				if !slices.Equal(tensor.View[float32](got["s"]), a.Scale) || !slices.Equal(tensor.View[float32](got["y"]), want) {
					t.Fatalf("%v: scales or products differ", lead)
				}
				if !slices.Equal(got["y"].Dims, append(slices.Clone(lead), int64(n))) || !slices.Equal(got["s"].Dims, append(slices.Clone(lead), 1)) {
					t.Fatalf("%v: shapes %v %v", lead, got["y"].Dims, got["s"].Dims)
				}
				res.Close()
			}
		})
	}
}

func randomWeight(t *testing.T, r *rand.Rand, k, n int) ([]int8, []float32, []int32) {
	t.Helper()
	w, scale := make([]int8, k*n), make([]float32, n)
	for i := range w {
		w[i] = int8(r.IntN(255) - 127)
	}
	for i := range scale {
		scale[i] = float32(math.Exp(r.NormFloat64() - 4))
	}
	sums, err := ColumnSums(w, k, n)
	if err != nil {
		t.Fatal(err)
	}
	return w, scale, sums
}

// randomRows mixes rows of every kind: both signs, one sign, zeros, outliers,
// tiny and huge values, exact ties.
func randomRows(r *rand.Rand, m, k int) []float32 {
	x := make([]float32, m*k)
	for i := range m {
		row := x[i*k : (i+1)*k]
		scale := math.Exp(4 * r.NormFloat64())
		kind := r.IntN(7)
		for j := range row {
			v := r.NormFloat64() * scale
			switch kind {
			case 0:
				v = math.Abs(v)
			case 1:
				v = -math.Abs(v)
			case 2:
				v = 0
			case 3:
				v = float64(r.IntN(511)) / 2 // ties when the largest is 255
			case 4:
				v *= 1e-38
			case 5:
				v *= 1e30
			}
			row[j] = float32(v)
		}
		if kind == 3 {
			row[0] = 255
		}
	}
	return x
}
