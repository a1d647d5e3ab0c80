package native

import (
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

func needInt4(t *testing.T, e *Engine) {
	t.Helper()
	if !e.Kernels().Int4 {
		t.Skip("needs kernels that take weights in 4 bits, of AVX-512 VNNI")
	}
}

func fourBits(t *testing.T, c opstest.BERT) *graph.Model {
	t.Helper()
	return opstest.NativeFor(t, c.Model(), quant.INT4, quant.CPU)
}

// expanded is m with its weights in 8 bits.
func expanded(t *testing.T, m *graph.Model) *graph.Model {
	t.Helper()
	m = m.Clone()
	if err := ops.ExpandWeights(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestFourBits: an encoder with weights in 4 bits is one operator, and gives what it
// gives with the same weights in 8, bit for bit.
func TestFourBits(t *testing.T) {
	e := newEngine(t)
	if want := os.Getenv(envLevel); want != "" && want != e.Kernels().Name {
		t.Fatal(noLevel)
	}
	c := opstest.TinyBERT
	m := fourBits(t, c)
	got := operators(t, e, m)
	if got[opEncoderLayers] != 1 || got[opLinearRows]+got[ops.OpExpandBlocks]+got[ops.OpMatMulQuantized] != 0 {
		t.Errorf("%v, want one EncoderLayers", got)
	}
	four, eight := opstest.Save(t, m), opstest.Save(t, expanded(t, m))
	for _, shape := range [][2]int{{1, 1}, {2, 17}, {3, 50}} {
		feeds := c.Feeds(3, shape[0], shape[1])
		for name, w := range outputs(t, e, eight, feeds) {
			a, b := tensor.View[float32](w), tensor.View[float32](outputs(t, e, four, feeds)[name])
			if len(a) != len(b) {
				t.Fatalf("%s: %d values, want %d", name, len(b), len(a))
			}
			for i := range a {
				if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
					t.Fatalf("%v: %s[%d] is %v, in 8 bits %v", shape, name, i, b[i], a[i])
				}
			}
		}
	}
	st4, err := os.Stat(four)
	if err != nil {
		t.Fatal(err)
	}
	st8, err := os.Stat(eight)
	if err != nil {
		t.Fatal(err)
	}
	if st4.Size() >= st8.Size() {
		t.Errorf("%d bytes, in 8 bits %d", st4.Size(), st8.Size())
	}
}

// TestFourBitsLevels: so it is at each lower level of x86 that this processor has.
func TestFourBitsLevels(t *testing.T) {
	e := newEngine(t)
	for _, level := range []string{"avx512-vnni", "avx2-vnni", "avx2"} {
		if level == e.Kernels().Name {
			continue
		}
		c := exec.Command(os.Args[0], "-test.run=^TestFourBits$", "-test.v")
		c.Env = append(os.Environ(), "FEWBIT_CPU_LEVEL="+level, envLevel+"="+level)
		out, err := c.CombinedOutput()
		if strings.Contains(string(out), noLevel) {
			t.Logf("this processor has no %s", level)
			continue
		}
		if err != nil || strings.Count(string(out), "--- PASS: ") != 1 {
			t.Errorf("%s: %v:\n%s", level, err, out)
		}
	}
}

// TestFourBitsMixed: projections of 4 and of 8 bits stand in one layer; queries, keys
// and values of both do not become one product.
func TestFourBitsMixed(t *testing.T) {
	e := newEngine(t)
	needInt4(t, e)
	c := opstest.TinyBERT
	expand := func(m *graph.Model, which func(w string) bool) {
		var out []*graph.Node
		for _, n := range m.Graph.Nodes {
			if n.Op != ops.OpExpandBlocks || !which(n.Name) {
				out = append(out, n)
				continue
			}
			b, err := ops.BlocksOf(m.Graph, n)
			if err != nil {
				t.Fatal(err)
			}
			w, err := ops.ExpandBlocks(b.Codes, b.Steps, b.K, b.N)
			if err != nil {
				t.Fatal(err)
			}
			m.Graph.SetInit(n.Outputs[0], tensor.From(w, int64(b.K), int64(b.N)))
		}
		if len(out) == len(m.Graph.Nodes) {
			t.Fatal("nothing to expand")
		}
		m.Graph.Nodes = out
	}
	m := fourBits(t, c)
	expand(m, func(w string) bool { return strings.Contains(w, "ffn") })
	if got := operators(t, e, m); got[opEncoderLayers] != 1 || got[opLinearRows] != 0 {
		t.Errorf("8 bits in the feed-forward network: %v", got)
	}
	m = fourBits(t, c)
	expand(m, func(w string) bool { return strings.Contains(w, "layer.0") && strings.Contains(w, "query") })
	if got := operators(t, e, m); got[opCrossAttention] != 1 || got["MultiHeadAttention"] != 0 || got[opLinearRows] != 5 || got[opEncoderLayers] != 1 {
		t.Errorf("8 bits in one query: %v", got)
	}
}

// TestFourBitsKept: a weight in 4 bits that is not as docs/ops.md says stays with
// its product.
func TestFourBitsKept(t *testing.T) {
	e := newEngine(t)
	needInt4(t, e)
	for name, edit := range map[string]func(g *graph.Graph, product, expand *graph.Node){
		"sums that do not add up": func(g *graph.Graph, product, _ *graph.Node) {
			g.SetInit("zeros", tensor.From(make([]int32, g.Init(product.In(5)).Len()), g.Init(product.In(5)).Len()))
			product.Inputs[5] = "zeros"
		},
		"a step out of range": func(g *graph.Graph, _, expand *graph.Node) {
			s := tensor.View[int8](g.Init(expand.In(1)))
			s[0] = ops.MaxStep + 1
		},
		"steps of another shape": func(g *graph.Graph, _, expand *graph.Node) {
			s := g.Init(expand.In(1))
			g.SetInit(expand.In(1), tensor.From(tensor.View[int8](s), s.Dims[0], s.Dims[2], 1))
		},
	} {
		m := fourBits(t, opstest.TinyBERT)
		for _, n := range m.Graph.Nodes {
			if n.Op == ops.OpMatMulQuantized && strings.Contains(n.Name, "ffn") {
				edit(m.Graph, n, m.Graph.Index().Producer(n.In(3)))
				break
			}
		}
		if got := operators(t, e, m); got[ops.OpMatMulQuantized] != 1 || got[ops.OpExpandBlocks] != 1 {
			t.Errorf("%s: %v", name, got)
		}
	}
}
