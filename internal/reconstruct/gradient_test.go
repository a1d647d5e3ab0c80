package reconstruct

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// stepSize of central differences: what is cut off is of its square, and float32
	// sums are off by about 1e-6 of the loss, divided by it.
	stepSize = 1e-2
	// slack between derivative and difference, as a share of the largest derivative.
	slack = 2e-2
)

// lab opens models in a temporary folder.
type lab struct {
	t testing.TB
	e engine.Engine
}

func newLab(t testing.TB) *lab {
	e, err := ort.New(ort.Config{})
	if errors.Is(err, engine.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, e: e}
}

func (l *lab) Open(ctx context.Context, m *graph.Model, _ []string, o engine.Options) (engine.Session, error) {
	path := filepath.Join(l.t.TempDir(), "m.onnx")
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		return nil, err
	}
	o.Threads = 1
	return l.e.OpenFile(ctx, path, o)
}

// input describes a value of a test's graph: a differentiable input, or a constant.
type input struct {
	name  string
	dims  []int64
	fixed bool
	scale float32 // of its normal distribution; 0 is 1
	shift float32
}

type attr = *pb.AttributeProto

func TestDerivativesEqualDifferences(t *testing.T) {
	x := func(dims ...int64) input { return input{name: "x", dims: dims} }
	w := func(dims ...int64) input { return input{name: "w", dims: dims} }
	two := []string{"x", "w"}
	node := func(op string, in []string, attrs ...attr) []*graph.Node {
		return []*graph.Node{graph.NewNode("", op, op, in, []string{"y"}, attrs...)}
	}
	ms := func(op string, in []string, attrs ...attr) []*graph.Node {
		return []*graph.Node{graph.NewNode(graph.DomainMS, op, op, in, []string{"y"}, attrs...)}
	}
	i, is, f := graph.AttrInt, graph.AttrInts, graph.AttrFloat
	for name, c := range map[string]struct {
		nodes []*graph.Node
		in    []input
	}{
		"conv":                    {node("Conv", []string{"x", "w", "b"}, is("pads", 1, 0, 2, 1)), []input{x(2, 3, 6, 5), w(4, 3, 3, 2), {name: "b", dims: []int64{4}}}},
		"conv stride":             {node("Conv", two, is("pads", 1, 1, 1, 1), is("strides", 2, 3)), []input{x(1, 2, 7, 9), w(3, 2, 3, 3)}},
		"conv stride cut off":     {node("Conv", two, is("strides", 3, 2)), []input{x(1, 2, 8, 8), w(3, 2, 3, 3)}},
		"conv pointwise":          {node("Conv", two), []input{x(2, 5, 3, 4), w(6, 5, 1, 1)}},
		"conv pointwise stride":   {node("Conv", two, is("strides", 2, 2)), []input{x(1, 4, 5, 6), w(3, 4, 1, 1)}},
		"conv depthwise":          {node("Conv", two, i("group", 4), is("pads", 1, 1, 1, 1)), []input{x(2, 4, 5, 6), w(4, 1, 3, 3)}},
		"conv depthwise stride":   {node("Conv", two, i("group", 4), is("pads", 0, 0, 1, 1), is("strides", 2, 2)), []input{x(1, 4, 6, 6), w(4, 1, 3, 3)}},
		"conv groups":             {node("Conv", two, i("group", 2), is("pads", 2, 2, 2, 2), is("dilations", 2, 2)), []input{x(1, 4, 5, 5), w(6, 2, 3, 3)}},
		"conv 1d":                 {node("Conv", two, is("pads", 1, 1)), []input{x(2, 3, 7), w(4, 3, 3)}},
		"matmul":                  {node("MatMul", two), []input{x(2, 3, 4), w(4, 5)}},
		"matmul batch":            {node("MatMul", two), []input{x(2, 3, 4, 5), w(2, 3, 5, 2)}},
		"matmul broadcast":        {node("MatMul", two), []input{x(3, 4, 5), w(1, 5, 2)}},
		"gemm":                    {node("Gemm", []string{"x", "w", "b"}), []input{x(3, 4), w(4, 5), {name: "b", dims: []int64{5}}}},
		"gemm transposed":         {node("Gemm", []string{"x", "w"}, i("transB", 1)), []input{x(3, 4), w(5, 4)}},
		"add":                     {node("Add", two), []input{x(2, 3, 4), w(3, 1)}},
		"add to itself":           {node("Add", []string{"x", "x"}), []input{x(2, 3)}},
		"sub":                     {node("Sub", two), []input{x(2, 3, 4), w(4)}},
		"mul":                     {node("Mul", two), []input{x(2, 3, 4, 4), w(2, 3, 1, 1)}},
		"div":                     {node("Div", two), []input{x(2, 3, 4), {name: "w", dims: []int64{2, 3, 1}, scale: 0.2, shift: 2}}},
		"relu":                    {node("Relu", []string{"x"}), []input{x(40)}},
		"leaky relu":              {node("LeakyRelu", []string{"x"}, f("alpha", 0.2)), []input{x(40)}},
		"clip":                    {node("Clip", []string{"x", "lo", "hi"}), []input{x(40), {name: "lo", fixed: true, shift: -0.5, scale: 1e-9}, {name: "hi", fixed: true, shift: 0.7, scale: 1e-9}}},
		"sigmoid":                 {node("Sigmoid", []string{"x"}), []input{x(20)}},
		"tanh":                    {node("Tanh", []string{"x"}), []input{x(20)}},
		"hard swish":              {node("HardSwish", []string{"x"}), []input{{name: "x", dims: []int64{40}, scale: 3}}},
		"hard sigmoid":            {node("HardSigmoid", []string{"x"}), []input{{name: "x", dims: []int64{40}, scale: 3}}},
		"erf":                     {node("Erf", []string{"x"}), []input{x(20)}},
		"gelu":                    {ms("Gelu", []string{"x"}), []input{x(20)}},
		"sqrt":                    {node("Sqrt", []string{"x"}), []input{{name: "x", dims: []int64{20}, scale: 0.3, shift: 3}}},
		"pow":                     {node("Pow", []string{"x", "p"}), []input{x(20), {name: "p", fixed: true, shift: 2, scale: 1e-9}}},
		"softmax":                 {node("Softmax", []string{"x"}), []input{x(3, 5)}},
		"softmax axis":            {node("Softmax", []string{"x"}, i("axis", 1)), []input{x(2, 3, 4)}},
		"layer normalization":     {node("LayerNormalization", []string{"x", "s", "b"}), []input{x(3, 8), {name: "s", dims: []int64{8}, fixed: true, shift: 1}, {name: "b", dims: []int64{8}, fixed: true}}},
		"pool":                    {node("GlobalAveragePool", []string{"x"}), []input{x(2, 3, 4, 5)}},
		"transpose":               {node("Transpose", []string{"x"}, is("perm", 2, 0, 1)), []input{x(2, 3, 4)}},
		"flatten":                 {node("Flatten", []string{"x"}), []input{x(2, 3, 4)}},
		"attention":               {ms("MultiHeadAttention", []string{"x", "k", "v", "", "", "mask"}, i("num_heads", 2)), []input{x(1, 3, 8), {name: "k", dims: []int64{1, 3, 8}}, {name: "v", dims: []int64{1, 3, 8}}, {name: "mask", dims: []int64{1, 1, 3, 3}, fixed: true}}},
		"two readers and a chain": {append(node("Add", []string{"a", "x"}), graph.NewNode("", "Relu", "", []string{"c"}, []string{"a"}), graph.NewNode("", "MatMul", "", two, []string{"c"})), []input{x(4, 4), w(4, 4)}},
	} {
		t.Run(name, func(t *testing.T) { checkDerivatives(t, 17, c.nodes, c.in) })
	}
	// From opset 18 on the axes of a mean are an input.
	for name, c := range map[string]struct {
		opset int64
		in    []string
		attrs []attr
		dims  []int64
	}{
		"mean, opset 17":                  {17, []string{"x"}, []attr{is("axes", -1)}, []int64{3, 8}},
		"mean without the axis, opset 17": {17, []string{"x"}, []attr{is("axes", 1), i("keepdims", 0)}, []int64{3, 4, 2}},
		"mean, opset 18":                  {18, []string{"x", "axes"}, nil, []int64{3, 8}},
		"mean without the axis, opset 18": {18, []string{"x", "axes"}, []attr{i("keepdims", 0)}, []int64{3, 4, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			checkDerivatives(t, c.opset, node("ReduceMean", c.in, c.attrs...), []input{x(c.dims...)})
		})
	}
	t.Run("layer normalization, opset 18", func(t *testing.T) {
		checkDerivatives(t, 18, node("LayerNormalization", []string{"x", "s", "b"}), []input{x(3, 8), {name: "s", dims: []int64{8}, fixed: true, shift: 1}, {name: "b", dims: []int64{8}, fixed: true}})
	})
}

func checkDerivatives(t *testing.T, opset int64, nodes []*graph.Node, ins []input) {
	rng := rand.New(rand.NewPCG(7, 7))
	g := &graph.Graph{Name: "g", Nodes: nodes, Info: map[string]*graph.Value{}}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": opset, graph.DomainMS: 1}, Graph: g}
	g.SetInit("axes", tensor.From([]int64{1}, 1)) // which some read
	feeds := engine.Feeds{}
	var wrt []string
	for _, in := range ins {
		n, _ := tensor.Elems(in.dims)
		v := make([]float32, n)
		for i := range v {
			s := in.scale
			if s == 0 {
				s = 1
			}
			v[i] = float32(rng.NormFloat64())*s + in.shift
			for _, kink := range []float32{0, -0.5, 0.7, 2.5, -2.5, 3, -3} { // where a difference would see both sides
				if !in.fixed && len(ins) > 0 && abs32(v[i]-kink) < 2*stepSize {
					v[i] = kink + 3*stepSize
				}
			}
		}
		x := tensor.From(v, in.dims...)
		if in.fixed {
			g.SetInit(in.name, x)
			continue
		}
		feeds[in.name] = x
		g.Inputs = append(g.Inputs, value(in.name, in.dims))
		wrt = append(wrt, in.name)
	}
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	// The output's shape, for the target.
	l, ctx := newLab(t), context.Background()
	forward := m.Clone()
	forward.Graph.Outputs = []*graph.Value{{Name: "y", Type: tensor.Float32}}
	y := run(t, l, forward, feeds)["y"]
	target := make([]float32, y.Len())
	for i := range target {
		target[i] = float32(rng.NormFloat64())
	}
	feeds["target"] = tensor.From(target, y.Dims...)
	g.Inputs = append(g.Inputs, value("target", y.Dims))
	d, err := Derive(g, "y", "target", wrt)
	if err != nil {
		t.Fatal(err)
	}
	g.Outputs = []*graph.Value{{Name: d.Loss, Type: tensor.Float32}}
	for _, v := range wrt {
		g.Outputs = append(g.Outputs, &graph.Value{Name: d.By[v], Type: tensor.Float32})
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	s, err := l.Open(ctx, m, nil, engine.Options{DisableOptimization: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := runIn(t, s, feeds)
	for _, name := range wrt {
		dx := got[d.By[name]]
		x := tensor.View[float32](feeds[name])
		if int(dx.Len()) != len(x) {
			t.Fatalf("derivative by %s has shape %v", name, dx.Dims)
		}
		by := tensor.View[float32](dx)
		var most float64
		for _, v := range by {
			most = math.Max(most, math.Abs(float64(v)))
		}
		for i := range x {
			was := x[i]
			x[i] = was + stepSize
			up := tensor.View[float32](runIn(t, s, feeds)[d.Loss])[0]
			x[i] = was - stepSize
			down := tensor.View[float32](runIn(t, s, feeds)[d.Loss])[0]
			x[i] = was
			if want := (float64(up) - float64(down)) / (2 * stepSize); math.Abs(want-float64(by[i])) > slack*most {
				t.Errorf("by %s[%d]: %g, difference %g", name, i, by[i], want)
			}
		}
	}
}

// What the straight-through estimator passes and what LSQ gives for the scale, by their
// definitions.
func TestQuantizersPassWhatLiesInTheRange(t *testing.T) {
	const scale, zero = float32(0.1), 10
	x := []float32{-3, -1.02, -0.5, 0.333, 7.07, 24.4, 30}
	target := make([]float32, len(x))
	g := &graph.Graph{Name: "g", Info: map[string]*graph.Value{}, Inputs: []*graph.Value{value("x", []int64{7}), value("s", nil), value("target", []int64{7})},
		Nodes: []*graph.Node{graph.NewNode("", "QuantizeLinear", "", []string{"x", "s", "z"}, []string{"q"}), graph.NewNode("", "DequantizeLinear", "", []string{"q", "s", "z"}, []string{"y"})}}
	g.SetInit("z", tensor.From([]uint8{zero}))
	d, err := Derive(g, "y", "target", []string{"x", "s"})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"y", d.By["x"], d.By["s"]} {
		g.Outputs = append(g.Outputs, &graph.Value{Name: v, Type: tensor.Float32})
	}
	got := run(t, newLab(t), &graph.Model{IR: 8, Opsets: map[string]int64{"": 13, graph.DomainMS: 1}, Graph: g},
		engine.Feeds{"x": tensor.From(x, 7), "s": tensor.From([]float32{scale}), "target": tensor.From(target, 7)})
	var ds float64
	for i, v := range x {
		code := math.Min(math.Max(math.RoundToEven(float64(v/scale))+zero, 0), 255) - zero
		y := code * float64(scale)
		dy, dx := 2*y, 2*y
		slope := code
		if v < -zero*scale || v > (255-zero)*scale {
			dx = 0
		} else {
			slope -= float64(v / scale)
		}
		ds += dy * slope
		if b := float64(tensor.View[float32](got[d.By["x"]])[i]); math.Abs(b-dx) > 1e-4 {
			t.Errorf("by x[%d] = %g: %g, want %g", i, v, b, dx)
		}
	}
	if b := float64(tensor.View[float32](got[d.By["s"]])[0]); math.Abs(b-ds) > 1e-3*math.Abs(ds) {
		t.Errorf("by the scale: %g, want %g", b, ds)
	}
}

func TestUnknownOperatorsAreNamed(t *testing.T) {
	for _, n := range []*graph.Node{
		graph.NewNode("", "Cos", "turn", []string{"x"}, []string{"y"}),
		graph.NewNode("", "Conv", "turn", []string{"c", "x"}, []string{"y"}, graph.AttrString("auto_pad", "SAME_UPPER")),
		graph.NewNode("", "Gemm", "turn", []string{"c", "x"}, []string{"y"}, graph.AttrFloat("alpha", 2)),
		graph.NewNode("", "Relu", "turn", []string{"c"}, []string{"y"}),
	} {
		g := &graph.Graph{Inputs: []*graph.Value{value("x", []int64{1, 1, 1, 1}), value("c", []int64{1, 1, 1, 1})}, Nodes: []*graph.Node{n}}
		if _, err := Derive(g, "y", "target", []string{"x"}); !errors.Is(err, ErrNoGradient) {
			t.Errorf("%s: %v", n.Op, err)
		}
	}
}

func run(t *testing.T, l *lab, m *graph.Model, feeds engine.Feeds) engine.Feeds {
	t.Helper()
	s, err := l.Open(context.Background(), m, nil, engine.Options{DisableOptimization: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return runIn(t, s, feeds)
}

func runIn(t *testing.T, s engine.Session, feeds engine.Feeds) engine.Feeds {
	t.Helper()
	r, err := s.Run(context.Background(), feeds, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := engine.Feeds{}
	for k, v := range r.Tensors() {
		out[k] = v.Clone()
	}
	return out
}

func abs32(v float32) float32 { return max(v, -v) }
