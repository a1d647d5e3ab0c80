package quant

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func model(inputs, outputs []*graph.Value, nodes ...*graph.Node) *graph.Model {
	return &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "g", Inputs: inputs, Outputs: outputs, Nodes: nodes, Info: map[string]*graph.Value{},
	}}
}

func value(name string, dims ...int64) *graph.Value {
	v := &graph.Value{Name: name, Type: tensor.Float32}
	for _, d := range dims {
		v.Dims = append(v.Dims, graph.Dim{N: d})
	}
	return v
}

func node(op, name, in, out string, attrs ...*pb.AttributeProto) *graph.Node {
	return graph.NewNode("", op, name, strings.Fields(in), strings.Fields(out), attrs...)
}

func weight(m *graph.Model, name string, seed int64, dims ...int64) {
	n, _ := tensor.Elems(dims)
	m.Graph.SetInit(name, tensor.From(randoms(seed, int(n)), dims...))
}

// mlp: x -> MatMul, Add -> Relu -> Gemm(transB) -> y, with tied weights: the
// second MatMul reads w1 too.
func mlp() *graph.Model {
	m := model([]*graph.Value{value("x", -1, 32)}, []*graph.Value{value("y", -1, 16), value("z", -1, 32)},
		node("MatMul", "fc1", "x w1", "h"),
		node("Add", "fc1/bias", "h b1", "hb"),
		node("Relu", "act", "hb", "a"),
		node("Gemm", "fc2", "a w2 b2", "y", graph.AttrInt("transB", 1)),
		node("MatMul", "tied", "a w1", "z"))
	weight(m, "w1", 1, 32, 32)
	weight(m, "b1", 2, 32)
	weight(m, "w2", 3, 16, 32)
	weight(m, "b2", 4, 16)
	return m
}

// cnn: Conv+BatchNorm+Relu -> MaxPool -> two Convs added -> GlobalAveragePool
// -> Flatten -> Gemm. The two Convs share a bias.
func cnn() *graph.Model {
	m := model([]*graph.Value{value("x", -1, 3, 16, 16)}, []*graph.Value{value("y", -1, 16)},
		node("Conv", "c1", "x k1 cb1", "c1o", graph.AttrInts("pads", 1, 1, 1, 1)),
		node("BatchNormalization", "bn", "c1o g be mu va", "bno"),
		node("Relu", "relu", "bno", "r1"),
		node("MaxPool", "pool", "r1", "p1", graph.AttrInts("kernel_shape", 2, 2), graph.AttrInts("strides", 2, 2)),
		node("Conv", "c2", "p1 k2 shared", "c2o"),
		node("Conv", "c3", "p1 k3 shared", "c3o"),
		node("Add", "add", "c2o c3o", "s"),
		node("Clip", "clip", "s zero six", "cl"),
		node("GlobalAveragePool", "gap", "cl", "gp"),
		node("Flatten", "flat", "gp", "f"),
		node("Gemm", "fc", "f w b", "y", graph.AttrInt("transB", 1)))
	weight(m, "k1", 1, 8, 3, 3, 3)
	weight(m, "cb1", 2, 8)
	weight(m, "g", 3, 8)
	weight(m, "be", 4, 8)
	weight(m, "mu", 5, 8)
	m.Graph.SetInit("va", tensor.From([]float32{1, 2, 3, 4, 5, 6, 7, 8}, 8))
	weight(m, "k2", 6, 8, 8, 1, 1)
	weight(m, "k3", 7, 8, 8, 1, 1)
	weight(m, "shared", 8, 8)
	m.Graph.SetInit("zero", tensor.From([]float32{0}))
	m.Graph.SetInit("six", tensor.From([]float32{6}))
	weight(m, "w", 9, 16, 8)
	weight(m, "b", 10, 16)
	return m
}

// fixed gives every tensor of the plan the same range; "a" is smoothed.
func fixed(p *Plan, smooth string) Choices {
	c := Choices{}
	tensors := p.Tensors
	if smooth != "" && !slices.Contains(tensors, smooth) {
		tensors = append(slices.Clone(tensors), smooth)
	}
	for _, t := range tensors {
		ch := &Choice{Tensor: t, Method: "minmax"}
		r := calib.Range{Lo: -2, Hi: 6}
		if t == "r1" || t == "cl" || t == "gp" {
			r.Lo = 0
		}
		ch.set("minmax", r, p.Config.actScheme())
		if t == smooth {
			ch.Smooth = make([]float32, 32)
			for i := range ch.Smooth {
				ch.Smooth[i] = 1 + float32(i)/32
			}
		}
		c[t] = ch
	}
	return c
}

// rewrite runs the whole table on m without calibration data.
func rewrite(t *testing.T, m *graph.Model, c Config, smooth string) (*graph.Model, *Plan) {
	t.Helper()
	c, err := c.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, err := Run(ctx, m, Prepare(c), Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	table := []Pass{Embeddings{Config: c}, &Insert{Plan: p, Choices: fixed(p, smooth)}}
	if c.Lowered() {
		table = append(table, Lower{})
	}
	if _, err := Run(ctx, m, table, Dump{}); err != nil {
		t.Fatal(err)
	}
	return m, p
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name   string
		m      *graph.Model
		c      Config
		smooth string
	}{
		{"mlp-qdq", mlp(), Config{Target: QDQ}, ""},
		{"mlp-ort-cpu", mlp(), Config{Target: ORTCPU}, ""},
		{"mlp-ort-cpu-smooth", mlp(), Config{Target: ORTCPU}, "a"},
		{"mlp-dynamic", mlp(), Config{Scheme: INT8Dynamic}, ""},
		{"mlp-qoperator", mlp(), Config{Target: QOperator}, ""},
		{"mlp-per-tensor-symmetric", mlp(), Config{Target: QDQ, Granularity: PerTensor, Symmetric: true}, ""},
		{"cnn-qdq", cnn(), Config{Target: QDQ}, ""},
		{"cnn-ort-cpu", cnn(), Config{Target: ORTCPU}, ""},
		{"cnn-qoperator", cnn(), Config{Target: QOperator}, ""},
		{"mlp-cuda", mlp(), Config{Target: CUDA}, "a"},
		{"mlp-cuda-dynamic", mlp(), Config{Target: CUDA, Scheme: INT8Dynamic, Granularity: PerTensor}, ""},
		{"cnn-cuda", cnn(), Config{Target: CUDA}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, p := rewrite(t, c.m, c.c, c.smooth)
			var b strings.Builder
			for _, f := range p.Float {
				fmt.Fprintf(&b, "# float %s %q: %s\n", f.Node.Op, f.Node.Name, f.Rule)
			}
			b.WriteString(m.Text())
			path := filepath.Join("testdata", c.name+".txt")
			if *update {
				os.MkdirAll("testdata", 0o755)
				if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("differs from %s (-update rewrites it):\n%s", path, b.String())
			}
		})
	}
}

// TestNoFloatWeightStays: what was quantized is gone from the file in float,
// the weight that another operator still reads excepted.
func TestNoFloatWeightStays(t *testing.T) {
	m, _ := rewrite(t, mlp(), Config{}, "")
	for _, name := range []string{"w1", "w2"} {
		if m.Graph.Init(name) != nil {
			t.Errorf("%s is still there", name)
		}
	}
	m, _ = rewrite(t, mlp(), Config{Exclude: []string{"tied"}}, "")
	if m.Graph.Init("w1") == nil || m.Graph.Init("w1_quantized") == nil {
		t.Error("the tied weight must stay for the excluded reader and be quantized for the other")
	}
}

// TestTiedWeightSmoothedOnce: readers with and without smoothing get copies of
// their own; readers alike share one.
func TestTiedWeightSmoothedOnce(t *testing.T) {
	count := func(smooth string) (n int) {
		m, _ := rewrite(t, mlp(), Config{}, smooth)
		for _, name := range m.Graph.Inits() {
			if strings.HasPrefix(name, "w1") && strings.HasSuffix(name, "_quantized") {
				n++
			}
		}
		return n
	}
	if n := count(""); n != 1 {
		t.Errorf("%d copies without smoothing, want 1", n)
	}
	if n := count("a"); n != 2 {
		t.Errorf("%d copies with one reader smoothed, want 2", n)
	}
}

func TestSharedBiasHasTwoScales(t *testing.T) {
	m, _ := rewrite(t, cnn(), Config{}, "")
	biases := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		if n.Op == "QLinearConv" {
			biases[n.In(8)] = true
		}
	}
	if len(biases) != 3 {
		t.Errorf("biases %v, want three different ones", biases)
	}
}

// Two convolutions with one weight, of which a channel is zero: the bias of each fits into
// INT32, so the weight has scales for each where they must be raised.
func TestSharedWeightBiasesFit(t *testing.T) {
	for _, small := range []string{"none", "both", "first", "second"} {
		m := model([]*graph.Value{value("x", -1, 4, 8, 8)}, []*graph.Value{value("y", -1, 8, 6, 6)},
			node("Conv", "c1", "x k b1", "h1"), node("Conv", "c2", "x k b2", "h2"),
			node("Concat", "cat", "h1 h2", "cat", graph.AttrInt("axis", 1)), node("Relu", "end", "cat", "y"))
		weight(m, "k", 1, 4, 4, 3, 3)
		weight(m, "b1", 2, 4)
		weight(m, "b2", 3, 4)
		clear(tensor.View[float32](m.Graph.Init("k"))[36:72])
		tensor.View[float32](m.Graph.Init("b1"))[1], tensor.View[float32](m.Graph.Init("b2"))[1] = 1, 50
		if small == "both" || small == "first" {
			clear(tensor.View[float32](m.Graph.Init("b1")))
		}
		if small == "both" || small == "second" {
			clear(tensor.View[float32](m.Graph.Init("b2")))
		}
		want := map[string][]float32{"c1": tensor.View[float32](m.Graph.Init("b1")), "c2": tensor.View[float32](m.Graph.Init("b2"))}
		m, _ = rewrite(t, m, Config{NoBiasCorrection: true}, "")
		for _, n := range m.Graph.Nodes {
			if n.Op != "QLinearConv" {
				continue
			}
			codes, x, w := tensor.View[int32](m.Graph.Init(n.In(8))), tensor.View[float32](m.Graph.Init(n.In(1)))[0], tensor.View[float32](m.Graph.Init(n.In(4)))
			for i, b := range want[n.Name] {
				if got := float64(codes[i]) * float64(x) * float64(w[i]); math.Abs(got-float64(b)) > 0.01 {
					t.Errorf("small biases %s, %s: the bias %v has become %v", small, n.Name, b, got)
				}
			}
			delete(want, n.Name)
		}
		if len(want) > 0 {
			t.Errorf("not quantized: %v", want)
		}
	}
}

func TestPlanRules(t *testing.T) {
	m := model([]*graph.Value{value("x", 4, 32), value("k", 32, 32)}, []*graph.Value{value("o", 4, 4)},
		node("MatMul", "ok", "x w", "a"),
		node("MatMul", "both", "a k", "b"),
		node("MatMul", "left", "w a2", "c"),
		node("Transpose", "tr", "b", "a2"),
		node("MatMul", "few", "b small", "d"),
		node("MatMul", "half", "b h", "e"),
		node("Gemm", "scaled", "b w", "f", graph.AttrFloat("alpha", 2)),
		node("ConvTranspose", "ct", "x4 kt", "g"),
		node("Concat", "cat", "c d e f g", "o", graph.AttrInt("axis", 0)))
	m.Graph.Inputs = append(m.Graph.Inputs, value("x4", 1, 1, 4, 4))
	m.Graph.Nodes[2], m.Graph.Nodes[3] = m.Graph.Nodes[3], m.Graph.Nodes[2]
	weight(m, "w", 1, 32, 32)
	weight(m, "small", 1, 32, 4)
	weight(m, "kt", 1, 1, 1, 3, 3)
	m.Graph.SetInit("h", &tensor.Tensor{Type: tensor.Float16, Dims: []int64{32, 32}, Data: make([]byte, 2048)})
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	c, _ := Config{Target: QDQ}.WithDefaults()
	p, err := NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Ops) != 1 || p.Ops[0].Node.Name != "ok" {
		t.Errorf("planned %d operators", len(p.Ops))
	}
	want := map[string]string{
		"both": "activations", "left": "constant is on the left", "few": "too few", "half": "FP16",
		"scaled": "alpha", "ct": "no integer kernel",
	}
	for _, f := range p.Float {
		if !strings.Contains(f.Rule, want[f.Node.Name]) || want[f.Node.Name] == "" {
			t.Errorf("%s: rule %q, want %q", f.Node.Name, f.Rule, want[f.Node.Name])
		}
		delete(want, f.Node.Name)
	}
	if len(want) > 0 {
		t.Errorf("no rule given for %v", want)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		c    Config
		want error
	}{
		{"unknown exclude", Config{Exclude: []string{"nobody"}}, ErrConfig},
		{"all excluded", Config{Exclude: []string{"MatMul", "Gemm"}, Target: QDQ}, ErrNothing},
		{"unknown scheme", Config{Scheme: "int7"}, ErrConfig},
		{"unknown target", Config{Target: "tpu"}, ErrConfig},
		{"unknown method", Config{Method: "guess"}, ErrConfig},
		{"unknown granularity", Config{Granularity: "per-galaxy"}, ErrConfig},
		{"dynamic is not portable", Config{Scheme: INT8Dynamic, Target: QDQ}, ErrConfig},
	} {
		cfg, err := c.c.WithDefaults()
		if err == nil {
			_, err = NewPlan(mlp(), cfg)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	q, _ := rewrite(t, mlp(), Config{}, "")
	cfg, _ := Config{}.WithDefaults()
	if _, err := NewPlan(q, cfg); !errors.Is(err, ErrQuantized) {
		t.Errorf("quantized twice: %v", err)
	}
}

func TestUncalibrated(t *testing.T) {
	m := mlp()
	cfg, _ := Config{}.WithDefaults()
	if _, err := Run(context.Background(), m, Prepare(cfg), Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(context.Background(), m, []Pass{&Insert{Plan: p, Choices: Choices{}}}, Dump{})
	if !errors.Is(err, ErrUncalibrated) {
		t.Errorf("got %v", err)
	}
}

// TestEmbeddings: a lookup table becomes codes and scales by row; a table that
// something else reads stays.
func TestEmbeddings(t *testing.T) {
	make := func(tied bool) *graph.Model {
		m := model([]*graph.Value{{Name: "ids", Type: tensor.Int64, Dims: []graph.Dim{{N: -1}}}}, []*graph.Value{value("y", -1, 16)},
			node("Gather", "emb", "table ids", "e"),
			node("MatMul", "fc", "e w", "y"))
		if tied {
			m.Graph.Nodes = append(m.Graph.Nodes, node("Transpose", "t", "table", "tt"))
			m.Graph.Outputs = append(m.Graph.Outputs, value("tt", 16, 2000))
		}
		weight(m, "table", 1, 2000, 16)
		weight(m, "w", 2, 16, 16)
		return m
	}
	m, _ := rewrite(t, make(false), Config{Scheme: INT8Dynamic}, "")
	if m.Graph.Init("table") != nil || m.Graph.Init("table_rows").Type != tensor.Int8 || m.Graph.Init("table_row_scales").Dims[0] != 2000 {
		t.Error("the table is not in INT8 by row")
	}
	tied := make(true)
	if _, err := Run(context.Background(), tied, []Pass{Embeddings{}}, Dump{}); err != nil {
		t.Fatal(err)
	}
	if tied.Graph.Init("table") == nil || tied.Graph.Init("table_rows") != nil {
		t.Error("a tied table must stay in float")
	}
}

// TestNamesAreFree: a model that has values called like those that Insert makes
// is rewritten under other names.
func TestNamesAreFree(t *testing.T) {
	m := mlp()
	m.Graph.Nodes = append(m.Graph.Nodes, node("Relu", "trap", "x", "x_scale"), node("Relu", "trap2", "x", "a_1_quantized"), node("Add", "sum", "x_scale a_1_quantized", "t"))
	m.Graph.Outputs = append(m.Graph.Outputs, value("t", -1, 32))
	m, _ = rewrite(t, m, Config{}, "a")
	if m.Graph.Init("x_2_scale") == nil {
		t.Error("x_scale and a_1_quantized are taken: expected names with _2")
	}
}

// TestPlanOn: a plan for a clone touches only the clone.
func TestPlanOn(t *testing.T) {
	m := cnn()
	cfg, _ := Config{}.WithDefaults()
	ctx := context.Background()
	if _, err := Run(ctx, m, Prepare(cfg), Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	before := m.Text()
	q := m.Clone()
	if _, err := Run(ctx, q, []Pass{&Insert{Plan: p.On(q), Choices: fixed(p, "")}}, Dump{}); err != nil {
		t.Fatal(err)
	}
	if m.Text() != before {
		t.Error("the original changed")
	}
	if q.Text() == before {
		t.Error("the clone did not change")
	}
}

// TestResiduals: only additions of two activations that a layer normalization
// reads become Sum.
func TestResiduals(t *testing.T) {
	m := model([]*graph.Value{value("x", -1, 8), value("r", -1, 8)}, []*graph.Value{value("y", -1, 8), value("z", -1, 8)},
		node("Add", "residual", "x r", "s"),
		node("LayerNormalization", "ln", "s g b", "n"),
		node("Add", "bias", "n b", "nb"),
		node("ReduceMean", "mean", "nb", "mu"),
		node("Add", "other", "n r", "z"),
		node("Sub", "sub", "nb mu", "y"))
	weight(m, "g", 1, 8)
	weight(m, "b", 2, 8)
	if _, err := Run(context.Background(), m, []Pass{Residuals{}}, Dump{}); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, n := range m.Graph.Nodes {
		ops = append(ops, n.Op)
	}
	if got := strings.Join(ops, " "); got != "Sum LayerNormalization Add ReduceMean Add Sub" {
		t.Error(got)
	}
}

func TestDump(t *testing.T) {
	var b strings.Builder
	cfg, _ := Config{}.WithDefaults()
	if _, err := Run(context.Background(), mlp(), Prepare(cfg), Dump{"gemm-to-matmul", &b}); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), "# after gemm-to-matmul: 1 Gemms rewritten\nir 8\n") {
		t.Errorf("dump: %.200s", b.String())
	}
}
