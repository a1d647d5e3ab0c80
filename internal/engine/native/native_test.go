package native

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

func newEngine(t testing.TB) *Engine {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	if k := e.Kernels(); !k.Int8 {
		t.Skipf("needs bin/libfewbit_cpu.so (make build) and a processor that it has kernels for: %s", k.Reason)
	}
	return New(e, t.TempDir())
}

// Dimensions of the projections: neither is a multiple of a tile's.
const inner, outer = 70, 100

// projections is x -> [Div] -> QuantizeRows -> two products, with everything
// that may stand behind.
func projections(t *testing.T, smooth bool) *graph.Model {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	floats := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(r.NormFloat64())
		}
		return v
	}
	dims := func(last int64) []graph.Dim {
		return []graph.Dim{{N: -1, Name: "batch"}, {N: -1, Name: "row"}, {N: last}}
	}
	node := func(domain, op string, in, out []string) *graph.Node {
		return graph.NewNode(domain, op, out[0], in, out)
	}
	g := &graph.Graph{Name: "g", Info: map[string]*graph.Value{},
		Inputs:  []*graph.Value{{Name: "x", Type: tensor.Float32, Dims: dims(inner)}, {Name: "r", Type: tensor.Float32, Dims: dims(outer)}},
		Outputs: []*graph.Value{{Name: "y", Type: tensor.Float32, Dims: dims(outer)}, {Name: "z", Type: tensor.Float32, Dims: dims(outer)}}}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{"kept": "yes"}, Graph: g}
	x := "x"
	if smooth {
		s := floats(inner)
		for i := range s {
			s[i] = float32(math.Abs(float64(s[i]))) + 0.1
		}
		g.SetInit("s", tensor.From(s, inner))
		g.Nodes = append(g.Nodes, node("", "Div", []string{"x", "s"}, []string{"xs"}))
		x = "xs"
	}
	q := []string{"q", "scale", "zero"}
	g.Nodes = append(g.Nodes, node(ops.Domain, ops.OpQuantizeRows, []string{x}, q))
	for _, p := range []string{"a", "b"} {
		w := make([]int8, inner*outer)
		for i := range w {
			w[i] = int8(r.IntN(255) - 127)
		}
		sums, err := ops.ColumnSums(w, inner, outer)
		if err != nil {
			t.Fatal(err)
		}
		g.SetInit(p+"w", tensor.From(w, inner, outer))
		g.SetInit(p+"scale", tensor.From(floats(outer), outer))
		g.SetInit(p+"sum", tensor.From(sums, outer))
		g.SetInit(p+"bias", tensor.From(floats(outer), outer))
		in := append(append([]string(nil), q...), p+"w", p+"scale", p+"sum")
		g.Nodes = append(g.Nodes, node(ops.Domain, ops.OpMatMulQuantized, in, []string{p + "p"}))
	}
	g.Nodes = append(g.Nodes,
		node("", "Add", []string{"abias", "ap"}, []string{"av"}), node("", "Sum", []string{"r", "av"}, []string{"y"}),
		node("", "Add", []string{"bp", "bbias"}, []string{"z"}))
	if err := ops.Install(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func outputs(t *testing.T, e engine.Engine, path string, feeds engine.Feeds) map[string]*tensor.Tensor {
	t.Helper()
	return opstest.Run(t, e, path, feeds)
}

func operators(t *testing.T, e *Engine, m *graph.Model) map[string]int {
	t.Helper()
	l := lowering{m: m.Clone(), e: e.Engine, threads: 2}
	defer l.free()
	if _, err := l.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, n := range l.m.Graph.Nodes {
		count[n.Op]++
	}
	return count
}

// TestBitsOfTheBodies: the kernel gives what ONNX Runtime computes from the
// functions in the file, bit for bit.
func TestBitsOfTheBodies(t *testing.T) {
	e := newEngine(t)
	r := rand.New(rand.NewPCG(2, 2))
	for _, smooth := range []bool{false, true} {
		m := projections(t, smooth)
		if got := operators(t, e, m); len(got) != 1 || got[opLinearRows] != 2 {
			t.Errorf("smooth %v: %v, want two LinearRows", smooth, got)
		}
		path := opstest.Save(t, m)
		for _, shape := range [][2]int64{{1, 1}, {2, 9}, {1, 130}, {0, 3}} {
			x, res := make([]float32, shape[0]*shape[1]*inner), make([]float32, shape[0]*shape[1]*outer)
			for i := range x {
				x[i] = float32(r.NormFloat64() * 3)
			}
			for i := range res {
				res[i] = float32(r.NormFloat64())
			}
			feeds := engine.Feeds{"x": tensor.From(x, shape[0], shape[1], inner), "r": tensor.From(res, shape[0], shape[1], outer)}
			want, got := outputs(t, e.Engine, path, feeds), outputs(t, e, path, feeds)
			for name, w := range want {
				a, b := tensor.View[float32](w), tensor.View[float32](got[name])
				if len(a) != len(b) {
					t.Fatalf("%s: %v, want %v", name, got[name].Dims, w.Dims)
				}
				for i := range a {
					if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
						t.Fatalf("smooth %v, %v: %s[%d] is %v, the body says %v", smooth, shape, name, i, b[i], a[i])
					}
				}
			}
		}
	}
}

// TestLevels: so does each lower level of x86 that this processor has, and the
// encoder is one operator there.
func TestLevels(t *testing.T) {
	e := newEngine(t)
	for _, level := range []string{"avx512-vnni", "avx2-vnni", "avx2"} {
		if level == e.Kernels().Name {
			continue
		}
		c := exec.Command(os.Args[0], "-test.run=^(TestBitsOfTheBodies|TestEncoder)$", "-test.v")
		c.Env = append(os.Environ(), "FEWBIT_CPU_LEVEL="+level, envLevel+"="+level)
		out, err := c.CombinedOutput()
		if strings.Contains(string(out), noLevel) {
			t.Logf("this processor has no %s", level)
			continue
		}
		if err != nil || strings.Count(string(out), "--- PASS: ") != 2 {
			t.Errorf("%s: %v:\n%s", level, err, out)
		}
	}
}

// What a process of TestLevels is to run at, and what it says when it cannot.
const (
	envLevel = "FEWBIT_TEST_LEVEL"
	noLevel  = "runs at another level"
)

// TestKeepsWhatDoesNotFit: projections that are not as docs/ops.md says, and
// values that others read, stay.
func TestKeepsWhatDoesNotFit(t *testing.T) {
	e := newEngine(t)
	for name, tc := range map[string]struct {
		edit func(m *graph.Model)
		want map[string]int
	}{
		"sums that do not add up": {func(m *graph.Model) {
			m.Graph.SetInit("asum", tensor.From(make([]int32, outer), outer))
		}, map[string]int{ops.OpQuantizeRows: 1, ops.OpMatMulQuantized: 1, "Add": 1, "Sum": 1, opLinearRows: 1}},
		"a scale of another size": {func(m *graph.Model) {
			m.Graph.SetInit("bscale", tensor.From(make([]float32, 1), 1))
		}, map[string]int{ops.OpQuantizeRows: 1, ops.OpMatMulQuantized: 1, "Add": 1, opLinearRows: 1}},
		"a product that is an output": {func(m *graph.Model) {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: "ap", Type: tensor.Float32})
		}, map[string]int{opLinearRows: 2, "Add": 1, "Sum": 1}},
		"a residual of unknown shape": {func(m *graph.Model) {
			m.Graph.Inputs[1].Dims = []graph.Dim{{N: -1}, {N: -1}, {N: outer}}
		}, map[string]int{opLinearRows: 2, "Sum": 1}},
	} {
		m := projections(t, false)
		tc.edit(m)
		got := operators(t, e, m)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		for op, n := range tc.want {
			if got[op] != n {
				t.Errorf("%s: %v, want %v", name, got, tc.want)
			}
		}
	}
}

// encoderTolerance: attention may round its operands to BF16, and a value on the
// edge between two codes then gets the other one.
const encoderTolerance = 1.5e-2

func TestEncoder(t *testing.T) {
	e := newEngine(t)
	if want := os.Getenv(envLevel); want != "" && want != e.Kernels().Name {
		t.Fatal(noLevel)
	}
	base := opstest.TinyBERT
	for _, edit := range []func(c *opstest.BERT){
		func(*opstest.BERT) {},
		func(c *opstest.BERT) { c.Decomposed = true },
		func(c *opstest.BERT) { c.NormFirst = true },
		func(c *opstest.BERT) { c.NormFirst, c.Decomposed = true, true },
		func(c *opstest.BERT) { c.NormFirst, c.Act = true, opstest.QuickGelu },
		func(c *opstest.BERT) { c.NormFirst, c.Decomposed, c.Act = true, true, opstest.QuickGelu },
		func(c *opstest.BERT) { c.Act = opstest.GeluTanh },
		func(c *opstest.BERT) { c.Decomposed, c.Act = true, opstest.GeluTanhProduct },
		func(c *opstest.BERT) { c.Decomposed, c.Act = true, opstest.FastGelu },
		func(c *opstest.BERT) { c.NormFirst, c.Act = true, opstest.Silu },
		func(c *opstest.BERT) { c.Decomposed, c.Act = true, opstest.Relu },
		func(c *opstest.BERT) { c.Scores = opstest.Halved },
		func(c *opstest.BERT) { c.Scores, c.NormFirst, c.Act = opstest.Halved, true, opstest.QuickGelu },
		func(c *opstest.BERT) { c.Scores, c.Decomposed = opstest.Filled, true },
		func(c *opstest.BERT) { c.Scores = opstest.Filled },
		func(c *opstest.BERT) { c.Hidden, c.Heads = 72, 3 },
		func(c *opstest.BERT) { c.Hidden, c.Heads = 80, 2 },
		func(c *opstest.BERT) { c.Hidden, c.Heads = 72, 1 },
		func(c *opstest.BERT) { c.Hidden, c.Heads, c.NormFirst = 80, 1, true },
		func(c *opstest.BERT) { c.Hidden, c.Heads, c.Decomposed = 20, 4, true },
	} {
		c := base
		edit(&c)
		what := fmt.Sprintf("decomposed %v, normalization first %v, activation %d, scores %d, %d heads of %d", c.Decomposed, c.NormFirst, c.Act, c.Scores, c.Heads, c.Hidden/c.Heads)
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		got := operators(t, e, m)
		if got[opEncoderLayers] != 1 || got[opLinearRows]+got[opEncoderAttention]+got["MultiHeadAttention"]+got["Expand"] != 0 || got[ops.OpMatMulQuantized]+got["Erf"]+got["Gelu"]+got["FastGelu"]+got["Tanh"]+got["Relu"]+got["Sigmoid"] != 0 {
			t.Errorf("%s: %v", what, got)
		}
		path, feeds := opstest.Save(t, m), c.Feeds(3, 2, 17)
		want, out := outputs(t, e.Engine, path, feeds), outputs(t, e, path, feeds)
		for name, w := range want {
			a, b := tensor.View[float32](w), tensor.View[float32](out[name])
			var d, s float64
			for i := range a {
				if i/c.Hidden >= 17+16 { // the second sample's last row is padding
					a[i] = 0
				}
				d += float64(a[i]-b[i]) * float64(a[i]-b[i])
				s += float64(a[i]) * float64(a[i])
			}
			if len(a) != len(b) || math.Sqrt(d/s) > encoderTolerance {
				t.Errorf("%s: %s is off by %.2g", what, name, math.Sqrt(d/s))
			}
		}
	}
}

// TestAttentionKept: an attention that the operator would compute differently, or
// whose parts others read, stays, and the others do not.
func TestAttentionKept(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	bias := func(g *graph.Graph, add *graph.Node) string {
		if g.Init(add.In(0)) != nil {
			return add.In(0)
		}
		return add.In(1)
	}
	for name, edit := range map[string]func(g *graph.Graph, att *graph.Node, ix *graph.Index){
		"causal": func(_ *graph.Graph, n *graph.Node, _ *graph.Index) {
			n.Attrs = append(n.Attrs, graph.AttrInt("unidirectional", 1))
		},
		"a present output":  func(_ *graph.Graph, n *graph.Node, _ *graph.Index) { n.Outputs = append(n.Outputs, "present") },
		"a bias of its own": func(_ *graph.Graph, n *graph.Node, ix *graph.Index) { n.Inputs[3] = ix.Producer(n.In(0)).In(1) },
		"values are an output": func(g *graph.Graph, n *graph.Node, _ *graph.Index) {
			g.Outputs = append(g.Outputs, &graph.Value{Name: n.In(2)})
		},
		"one product for two": func(_ *graph.Graph, n *graph.Node, _ *graph.Index) { n.Inputs[1] = n.In(0) },
		"heads do not divide": func(_ *graph.Graph, n *graph.Node, _ *graph.Index) { n.Attrs[0] = graph.AttrInt("num_heads", 3) },
		"keys of other rows": func(g *graph.Graph, n *graph.Node, ix *graph.Index) {
			p := ix.Producer(beside(ix.Producer(n.In(1)), bias(g, ix.Producer(n.In(1)))))
			p.Inputs = append([]string{p.In(0), "other", p.In(2)}, p.Inputs[3:]...)
		},
	} {
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		for _, n := range m.Graph.Nodes {
			if n.Op == "MultiHeadAttention" {
				for len(n.Inputs) < 6 {
					n.Inputs = append(n.Inputs, "")
				}
				edit(m.Graph, n, m.Graph.Index())
				break
			}
		}
		l := lowering{m: m, e: e.Engine, threads: 2}
		graph.InferShapes(m)
		l.ix = m.Graph.Index()
		if err := l.attentions(); err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for _, n := range m.Graph.Nodes {
			count[n.Op]++
		}
		if count["MultiHeadAttention"] != 1 || count[opEncoderAttention] != c.Layers-1 {
			t.Errorf("%s: %v", name, count)
		}
	}
}

// TestWithoutKernels: a native model says why it is slow, another has nothing to
// say.
func TestWithoutKernels(t *testing.T) {
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	n := New(e, t.TempDir())
	native, feeds := opstest.Save(t, opstest.Native(t, opstest.TinyBERT.Model(), quant.INT8Dynamic)), opstest.TinyBERT.Feeds(1, 1, 5)
	s, err := n.openBodies(context.Background(), native, engine.Options{}, "a reason")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Run(context.Background(), feeds, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	p, ok := s.(engine.Placed)
	if !ok {
		t.Fatal("no placement")
	}
	if at := p.Placement(); at.Engine != ort.Name || at.CPU != 1 || !strings.HasSuffix(at.Reason, "several times slower: a reason") {
		t.Errorf("%+v", at)
	}
	float, err := n.OpenFile(context.Background(), opstest.Save(t, opstest.TinyBERT.Model()), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer float.Close()
	if _, ok := float.(engine.Placed); ok {
		t.Error("a float model has a placement")
	}
}

// TestOthers: what is no native model opens as it is, errors included.
func TestOthers(t *testing.T) {
	e := newEngine(t)
	path, feeds := opstest.Save(t, opstest.TinyBERT.Model()), opstest.TinyBERT.Feeds(1, 1, 5)
	if got := outputs(t, e, path, feeds); len(got) == 0 {
		t.Error("no outputs")
	}
	_, want := e.Engine.OpenFile(context.Background(), path+".missing", engine.Options{})
	if _, got := e.OpenFile(context.Background(), path+".missing", engine.Options{}); got == nil || got.Error() != want.Error() {
		t.Errorf("%v, want %v", got, want)
	}
}
