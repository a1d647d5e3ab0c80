package quant

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// gatedBlock is what MobileNetV3 and detectors have between convolutions, and a gate between matrix products.
func gatedBlock() *graph.Model {
	m := model([]*graph.Value{value("x", -1, 4, 6, 6)}, []*graph.Value{value("y", -1, 16)},
		node("Conv", "c1", "x k1 b1", "a"),
		node("HardSwish", "swish", "a", "h"),
		node("ReduceMean", "squeeze", "h", "s", graph.AttrInts("axes", 2, 3)),
		node("Conv", "c2", "s k2 b2", "e"),
		node("HardSigmoid", "gate", "e", "g", graph.AttrFloat("alpha", 1./6)),
		node("Mul", "excite", "h g", "m"),
		node("Mul", "scale", "m half", "n"),
		node("Split", "split", "n", "p q", graph.AttrInt("axis", 1)),
		node("Sub", "diff", "p q", "d"),
		node("Pad", "pad", "d pads", "w"),
		node("Conv", "c3", "w k3 b3", "u"),
		node("ReduceMean", "pool", "u", "v", graph.AttrInts("axes", 2, 3), graph.AttrInt("keepdims", 0)),
		node("Gemm", "fc1", "v w1", "f1"),
		node("HardSwish", "swish2", "f1", "f2"),
		node("Gemm", "fc2", "f2 w2", "y"))
	weight(m, "k1", 1, 8, 4, 1, 1)
	weight(m, "b1", 2, 8)
	weight(m, "k2", 3, 8, 8, 1, 1)
	weight(m, "b2", 4, 8)
	weight(m, "k3", 5, 8, 4, 3, 3)
	weight(m, "b3", 6, 8)
	weight(m, "w1", 7, 8, 32)
	weight(m, "w2", 8, 32, 16)
	m.Graph.SetInit("half", tensor.From([]float32{0.5}))
	m.Graph.SetInit("pads", tensor.From([]int64{0, 0, 1, 1, 0, 0, 1, 1}, 8))
	return m
}

// between lists the operators that do not stand between DequantizeLinear and QuantizeLinear.
func between(m *graph.Model) (float []string) {
	ix := m.Graph.Index()
	for _, n := range m.Graph.Nodes {
		if n.Op == "QuantizeLinear" || n.Op == "DequantizeLinear" {
			continue
		}
		after := ix.Only(n.Outputs[0])
		from := ix.Producer(n.In(0))
		if after == nil || after.Op != "QuantizeLinear" || from == nil || from.Op != "DequantizeLinear" {
			float = append(float, n.Name)
		}
	}
	return float
}

// Target qdq leaves nothing in float between convolutions, and what stays for accuracy's
// sake is the product that gives the answer; the form for CPUs leaves what gains nothing.
func TestOnCodes(t *testing.T) {
	m, p := rewrite(t, gatedBlock(), Config{Target: QDQ}, "")
	if got := between(m); !slices.Equal(got, []string{"fc2"}) {
		t.Errorf("in float: %v, expected fc2 alone", got)
	}
	if r, ok := p.Fixed("g"); !ok || r.Lo != 0 || r.Hi != 1 {
		t.Errorf("the gate's range is %v, %v, expected 0 to 1", r, ok)
	}
	for _, moved := range []string{"p", "q", "w"} {
		if p.Source(moved) == moved {
			t.Errorf("%q has parameters of its own, expected those of its source", moved)
		}
	}
	if c := m.Graph.Init("half_quantized"); c == nil || c.Data[0] != 255 {
		t.Errorf("the constant operand is %v, expected the code 255", c)
	}
	_, p = rewrite(t, gatedBlock(), Config{Target: ORTCPU}, "")
	for _, op := range p.Ops {
		if codesChain[op.Node.Op] || codesThrough[op.Node.Op] || op.Node.Op == "Split" {
			t.Errorf("target %s quantizes %s", ORTCPU, op.Node.Op)
		}
	}
}

// What its codes would lose, and what a border would move, stays in float.
func TestOnCodesRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(m *graph.Model, at map[string]*graph.Node)
		left string
	}{
		"excluded by its type": {func(m *graph.Model, _ map[string]*graph.Node) {}, "swish"},
		"channels far apart": {func(m *graph.Model, _ map[string]*graph.Node) {
			m.Graph.SetInit("half", tensor.From([]float32{1, 1, 1, 1, 1, 1, 1, 200}, 8, 1, 1))
		}, "scale"},
		"a constant that is no number": {func(m *graph.Model, _ map[string]*graph.Node) {
			m.Graph.SetInit("half", tensor.From([]float32{float32(math.NaN())}))
		}, "scale"},
		"a border of ones": {func(m *graph.Model, at map[string]*graph.Node) {
			m.Graph.SetInit("one", tensor.From([]float32{1}))
			at["pad"].Inputs = append(at["pad"].Inputs, "one")
		}, "pad"},
		"a reflected border": {func(m *graph.Model, at map[string]*graph.Node) {
			at["pad"].Attrs = append(at["pad"].Attrs, graph.AttrString("mode", "reflect"))
		}, "pad"},
	} {
		m := gatedBlock()
		at := map[string]*graph.Node{}
		for _, n := range m.Graph.Nodes {
			at[n.Name] = n
		}
		c.edit(m, at)
		cfg := Config{Target: QDQ}
		if name == "excluded by its type" {
			cfg.Exclude = []string{"HardSwish"}
		}
		m, p := rewrite(t, m, cfg, "")
		if c.left == "pad" { // between codes it stands all the same, but not with one scale
			if p.Source("w") != "w" {
				t.Errorf("%s: it shares the scale of its input", name)
			}
			continue
		}
		if got := between(m); !slices.Contains(got, c.left) {
			t.Errorf("%s: in float: %v, expected %s", name, got, c.left)
		}
	}
}

// The output of a product that no gate reads stays in float.
func TestGatesOnly(t *testing.T) {
	m := gatedBlock()
	for _, n := range m.Graph.Nodes {
		if n.Name == "swish2" {
			n.Op = "Tanh"
		}
	}
	m, _ = rewrite(t, m, Config{Target: QDQ}, "")
	if got := between(m); !slices.Contains(got, "fc1") {
		t.Errorf("in float: %v, expected fc1, whose output no gate reads", got)
	}
}

// With codes at its ends, what makes an output has a range and its dequantized copy is the
// output; a border at the beginning moves codes.
func TestPorts(t *testing.T) {
	build := func() *graph.Model {
		m := model([]*graph.Value{value("x", -1, 4, 6, 6)}, []*graph.Value{value("y", -1, 3), value("c", -1, 8, 1, 1)},
			node("Pad", "pad", "x pads", "w"),
			node("Conv", "c1", "w k1 b1", "a"),
			node("ReduceMean", "pool", "a", "c", graph.AttrInts("axes", 2, 3)),
			node("Flatten", "flat", "c", "f"),
			node("Gemm", "fc", "f w1", "y"))
		weight(m, "k1", 1, 8, 4, 3, 3)
		weight(m, "b1", 2, 8)
		weight(m, "w1", 3, 8, 3)
		m.Graph.SetInit("pads", tensor.From([]int64{0, 0, 1, 1, 0, 0, 1, 1}, 8))
		return m
	}
	m, p := rewrite(t, build(), Config{Target: QDQ, Ports: true}, "")
	ix := m.Graph.Index()
	for _, v := range m.Graph.Outputs {
		if n := ix.Producer(v.Name); n == nil || n.Op != "DequantizeLinear" {
			t.Errorf("output %q is made by %v, expected a DequantizeLinear", v.Name, n)
		}
	}
	if got := between(m); len(got) > 0 {
		t.Errorf("in float: %v", got)
	}
	if p.Source("w") != "x" {
		t.Errorf("the border has the scale of %q, expected x's", p.Source("w"))
	}
	if u := ix.Uses("x"); len(u) != 1 || u[0].Node.Op != "QuantizeLinear" {
		t.Errorf("the input is read by %v, expected its quantizer", u)
	}
	if _, err := (Config{Ports: true}).WithDefaults(); !errors.Is(err, ErrConfig) {
		t.Errorf("%v, expected that another target is refused", err)
	}
}
