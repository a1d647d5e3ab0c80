package native

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestGatesKept: what looks like a gate, a rotation, a part of one projection or an RMS normalization and is none
// keeps its operators, and gives what the file's functions give. Each edit is of the first
// layer of two.
func TestGatesKept(t *testing.T) {
	e := newEngine(t)
	first := func(m *graph.Model, is func(n *graph.Node) bool) *graph.Node {
		i := slices.IndexFunc(m.Graph.Nodes, is)
		if i < 0 {
			t.Fatal("no such node")
		}
		return m.Graph.Nodes[i]
	}
	op := func(name string) func(n *graph.Node) bool { return func(n *graph.Node) bool { return n.Is(name) } }
	// The Concat of the n-th rotation, queries first.
	turned := func(m *graph.Model, n int) *graph.Node {
		ix := m.Graph.Index()
		return first(m, func(c *graph.Node) bool {
			p := ix.Producer(c.In(0))
			if !c.Is("Concat") || p == nil || !p.Is("Neg") {
				return false
			}
			n--
			return n < 0
		})
	}
	// The Mul of the activation and the gate, of two products.
	gate := func(m *graph.Model) *graph.Node {
		ix := m.Graph.Index()
		product := func(v string) bool {
			p := ix.Producer(v)
			return p != nil && p.Is("MatMul") && m.Graph.Init(p.In(1)) != nil
		}
		return first(m, func(n *graph.Node) bool { return n.Is("Mul") && !product(n.In(0)) && product(n.In(1)) })
	}
	for name, tc := range map[string]struct {
		form         string
		edit         func(m *graph.Model)
		layers, soft int // EncoderLayers, Softmax and MultiHeadAttention
		rows         int // whether there are LinearRows
	}{
		"as it is":          {"nomic-sdpa-dy18", func(*graph.Model) {}, 1, 0, 0},
		"the gate is added": {"nomic-sdpa-dy18", func(m *graph.Model) { gate(m).Op = "Add" }, 1, 0, 1},
		"queries are turned the other way": {"nomic-sdpa-dy18", func(m *graph.Model) {
			c, ix := turned(m, 0), m.Graph.Index()
			ix.Producer(c.In(0)).Op = "Identity"
		}, 1, 1, 1},
		"halves change places": {"nomic-sdpa-dy18", func(m *graph.Model) { slices.Reverse(turned(m, 0).Inputs) }, 1, 1, 1},
		"the other half is negative": {"nomic-sdpa-dy18", func(m *graph.Model) {
			c, ix := turned(m, 1), m.Graph.Index()
			neg := ix.Producer(c.In(0))
			c.Inputs[1], neg.Inputs[0] = neg.In(0), c.In(1)
		}, 1, 1, 1},
		"keys have other positions": {"nomic-sdpa-dy18", func(m *graph.Model) {
			ix := m.Graph.Index()
			mul := ix.Only(turned(m, 1).Outputs[0])
			sum := ix.Only(mul.Outputs[0])
			other := ix.Producer(beside(sum, mul.Outputs[0]))
			sin := beside(mul, turned(m, 1).Outputs[0])
			for i, in := range other.Inputs {
				if n := ix.Producer(in); n != nil && n.Is("Unsqueeze") {
					other.Inputs[i] = sin // sin twice
				}
			}
		}, 1, 1, 1},
		"one projection": {"timm-image-sdpa-ts14", func(*graph.Model) {}, 1, 0, 0},
		"queries and keys change places": {"timm-image-sdpa-ts14", func(m *graph.Model) {
			s := first(m, op("Split"))
			s.Outputs[0], s.Outputs[1] = s.Outputs[1], s.Outputs[0]
		}, 1, 1, 1},
		"queries are keys": {"blip-image-eager-dy18", func(m *graph.Model) {
			q := first(m, func(n *graph.Node) bool {
				return n.Is("Gather") && n.Int("axis", 0) == 0 && len(m.Graph.Dims(n.In(0))) == 5
			})
			m.Graph.SetInit("one", tensor.From([]int64{1}))
			q.Inputs[1] = "one"
		}, 1, 1, 1},
		"torch.nn.MultiheadAttention": {"mha-first-sdpa-dy18", func(*graph.Model) {}, 1, 0, 0},
		"its queries are keys": {"mha-first-sdpa-dy18", func(m *graph.Model) {
			q := first(m, func(n *graph.Node) bool {
				return n.Is("Gather") && n.Int("axis", 0) == 0 && len(m.Graph.Dims(n.In(0))) == 4
			})
			m.Graph.SetInit("one", tensor.From([]int64{1}))
			q.Inputs[1] = "one"
		}, 1, 1, 1},
		"its heads are turned twice": {"mha-first-sdpa-dy18", func(m *graph.Model) {
			first(m, func(n *graph.Node) bool {
				return n.Is("Transpose") && slices.Equal(n.Ints("perm"), []int64{2, 0, 1, 3})
			}).Attrs = []*pb.AttributeProto{graph.AttrInts("perm", 2, 0, 3, 1)}
		}, 1, 1, 1},
		"a factor before the rotation": {"esm-sdpa-dy18", func(*graph.Model) {}, 1, 0, 0},
		"others read queries before the rotation": {"esm-sdpa-dy18", func(m *graph.Model) {
			ix := m.Graph.Index()
			lo, _, _ := graph.PartOf(m.Graph, ix, turned(m, 0).In(1))
			m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Relu", "other", []string{lo}, []string{"other"}))
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: "other", Type: tensor.Float32})
		}, 1, 1, 1},
		"RMS as it is": {"eurobert-sdpa-dy18", func(*graph.Model) {}, 1, 0, 0},
		"epsilon behind the root": {"eurobert-sdpa-dy18", func(m *graph.Model) {
			ix := m.Graph.Index()
			root := first(m, op("Sqrt"))
			add, by := ix.Producer(root.In(0)), ix.Only(root.Outputs[0])
			for i, in := range add.Inputs {
				if m.Graph.Init(in) == nil {
					root.Inputs[0], add.Inputs[i] = in, root.Outputs[0]
				}
			}
			by.Inputs[0] = add.Outputs[0]
			if err := m.Graph.Sort(); err != nil {
				t.Fatal(err)
			}
		}, 1, 0, 1},
		"a cube": {"eurobert-sdpa-dy18", func(m *graph.Model) { first(m, op("Pow")).Op = "Max" }, 1, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := form(t, filepath.Join("testdata", "forms", tc.form+".onnx.gz"))
			graph.InferShapes(m)
			graph.LiftConstants(m)
			tc.edit(m)
			feeds := formFeeds(m, 11)
			native := opstest.Native(t, m, quant.INT8Dynamic)
			got := operators(t, e, native)
			if got[opEncoderLayers] != tc.layers || got["Softmax"]+got["MultiHeadAttention"] != tc.soft || (got[opLinearRows] == 0) != (tc.rows == 0) {
				t.Error(got)
			}
			path := opstest.Save(t, native)
			formClose(t, feeds, outputs(t, e.Engine, path, feeds)["y"], outputs(t, e, path, feeds)["y"], formCosine)
		})
	}
}
