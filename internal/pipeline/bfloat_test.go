package pipeline

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

func bf16Pipeline(t *testing.T) (*Pipeline, bf16Engine) {
	t.Helper()
	p := testPipeline(t)
	b, ok := p.Engine.(bf16Engine)
	if !ok {
		t.Fatal("the engine has no BF16")
	}
	if ok, why := b.BF16(); !ok {
		t.Skipf("needs products in BF16: %s", why)
	}
	return p, b
}

func TestPrecision(t *testing.T) {
	for _, p := range []Precision{"", AutoPrecision, FP32} {
		if got, _, err := p.resolve(&fake.Engine{}); err != nil || got != FP32 {
			t.Errorf("%q on an engine without BF16: %q, %v", p, got, err)
		}
	}
	for p, want := range map[Precision]string{BF16: "has no such products", "fp16": "expected auto, fp32 or bf16"} {
		if _, _, err := p.resolve(&fake.Engine{}); !errors.Is(err, ErrPrecision) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want ErrPrecision: %s", p, err, want)
		}
	}
}

// TestBF16Form: which nodes become one, and that the result is that of FP32.
func TestBF16Form(t *testing.T) {
	p, b := bf16Pipeline(t)
	const k, n = 64, 96
	r := rand.New(rand.NewPCG(1, 2))
	scalar := func(v float32) *tensor.Tensor { return tensor.From([]float32{v}) }
	for name, tc := range map[string]struct {
		nodes []*graph.Node
		left  string // operators of the rewritten graph
		tap   string
	}{
		"product alone": {[]*graph.Node{node("MatMul", "m", "x w", "y")}, "MatMulBF16", ""},
		"bias":          {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "b p", "y")}, "MatMulBF16", ""},
		"gelu, x (1 + erf) half": {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "p b", "v"), node("Div", "d", "v sqrt2", "s"), node("Erf", "e", "s", "f"),
			node("Add", "o", "f one", "g"), node("Mul", "j", "v g", "h"), node("Mul", "l", "h half", "y")}, "MatMulBF16", ""},
		"gelu, half x (1 + erf)": {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "p b", "v"), node("Mul", "d", "invsqrt2 v", "s"), node("Erf", "e", "s", "f"),
			node("Add", "o", "one f", "g"), node("Mul", "l", "half v", "h"), node("Mul", "j", "h g", "y")}, "MatMulBF16", ""},
		"gelu whose input is observed": {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "p b", "v"), node("Div", "d", "v sqrt2", "s"), node("Erf", "e", "s", "f"),
			node("Add", "o", "f one", "g"), node("Mul", "j", "v g", "h"), node("Mul", "l", "h half", "y")}, "MatMulBF16 Div Erf Add Mul Mul", "v"},
		"not a gelu": {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "p b", "v"), node("Div", "d", "v half", "s"), node("Erf", "e", "s", "f"),
			node("Add", "o", "f one", "g"), node("Mul", "j", "v g", "h"), node("Mul", "l", "h half", "y")}, "MatMulBF16 Div Erf Add Mul Mul", ""},
		"bias that two read": {[]*graph.Node{node("MatMul", "m", "x w", "p"), node("Add", "a", "p b", "q"), node("Add", "c", "q p", "y")}, "MatMulBF16 Add Add", ""},
	} {
		m := newModel([]*graph.Value{value("x", -1, k)}, []*graph.Value{value("y")}, tc.nodes...)
		m.Graph.SetInit("w", tensor.From(gauss(r, k*n, 0.1), k, n))
		m.Graph.SetInit("b", tensor.From(gauss(r, n, 1), n))
		for name, v := range map[string]float32{"one": 1, "half": 0.5, "sqrt2": math.Sqrt2, "invsqrt2": math.Sqrt2 / 2} {
			m.Graph.SetInit(name, scalar(v))
		}
		m.Graph.Prune()
		var taps []string
		if tc.tap != "" {
			taps = []string{tc.tap}
		}
		w := bf16Writer{m: Tapped(m.Clone(), taps), e: b, threads: 2}
		if err := w.rewrite(context.Background()); err != nil {
			t.Fatal(err)
		}
		var ops []string
		for _, n := range w.m.Graph.Nodes {
			ops = append(ops, n.Op)
		}
		w.free()
		if got := strings.Join(ops, " "); got != tc.left {
			t.Errorf("%s: %s, want %s", name, got, tc.left)
		}
		lab, err := NewLab(p.Engine, 2, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer lab.Close()
		x := tensor.From(gauss(r, 5*k, 1), 5, k)
		outputs := func(open func() (engine.Session, error)) map[string][]float32 {
			s, err := open()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			defer s.Close()
			res, err := s.Run(context.Background(), engine.Feeds{"x": x}, nil)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			defer res.Close()
			all := map[string][]float32{}
			for name, v := range res.Tensors() {
				all[name] = append([]float32(nil), tensor.View[float32](v)...)
			}
			return all
		}
		want := outputs(func() (engine.Session, error) { return lab.Open(context.Background(), m, taps, engine.Options{}) })
		got := outputs(func() (engine.Session, error) {
			return lab.openBF16(context.Background(), b, m, taps, engine.Options{})
		})
		if len(got) != 1+len(taps) {
			t.Errorf("%s: %d outputs", name, len(got))
		}
		for o, y := range want {
			if e := relativeError(got[o], y); e > 0.01 {
				t.Errorf("%s: output %s is off by %.3g", name, o, e)
			}
		}
	}
}

// relativeError is the root of the squared error over that of the squares.
func relativeError(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var e, s float64
	for i, v := range want {
		e += (float64(got[i]) - float64(v)) * (float64(got[i]) - float64(v))
		s += float64(v) * float64(v)
	}
	return math.Sqrt(e / s)
}

// rangeTolerance is how far BF16 may move the end of a range, relative to its
// width. Of the 25 ranges of MiniLM over 8 texts the largest step was 0.3 %;
// Min-Max depends on single values, the other methods move less.
const rangeTolerance = 0.03

// TestBF16Ranges: a real encoder calibrated both ways has the same ranges.
func TestBF16Ranges(t *testing.T) {
	p, _ := bf16Pipeline(t)
	req := TableRequest{Model: need(t, "models/minilm/model.onnx"), Calib: need(t, "data/bbc/calib.jsonl"), Samples: 8}
	req.Config.Method = calib.MethodMinMax
	var ranges [2]map[string]calib.Range
	for i, precision := range []Precision{FP32, BF16} {
		req.Precision = precision
		res, err := p.CalibrationTable(context.Background(), req, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.Precision != precision {
			t.Errorf("ran in %s, want %s", res.Precision, precision)
		}
		if ranges[i], err = res.Table.Ranges(calib.MethodMinMax, calib.U8, 0); err != nil {
			t.Fatal(err)
		}
	}
	if len(ranges[0]) < 20 || len(ranges[0]) != len(ranges[1]) {
		t.Fatalf("%d and %d ranges", len(ranges[0]), len(ranges[1]))
	}
	worst, at := 0.0, ""
	for name, a := range ranges[0] {
		b := ranges[1][name]
		if d := max(math.Abs(float64(a.Lo-b.Lo)), math.Abs(float64(a.Hi-b.Hi))) / float64(a.Hi-a.Lo); d > worst {
			worst, at = d, name
		}
	}
	t.Logf("%d ranges, at most %.2g of the width apart (%s)", len(ranges[0]), worst, at)
	if worst > rangeTolerance {
		t.Errorf("range of %q moved by %.2g of its width: %v, %v", at, worst, ranges[0][at], ranges[1][at])
	}
}

// plainBF16 packs weights as they are.
type plainBF16 struct{}

func (plainBF16) BF16() (bool, string)                                     { return true, "" }
func (plainBF16) BF16Size(k, n int) int                                    { return 4 * k * n }
func (plainBF16) PackBF16([]float32, int, int, []byte, int) error          { return nil }
func (plainBF16) AddGramBF16(_, _ []float32, _ int, _ []byte, _ int) error { return nil }

// TestPackedNames: a packed weight takes the name of no other constant, which would be lost.
func TestPackedNames(t *testing.T) {
	m := newModel([]*graph.Value{value("x", -1, 64)}, []*graph.Value{value("y", -1, 64)}, node("MatMul", "m", "x w", "h"), node("Add", "a", "h w_bf16", "y"))
	m.Graph.SetInit("w", tensor.From(make([]float32, 64*64), 64, 64))
	other := tensor.From(make([]float32, 64), 64)
	m.Graph.SetInit("w_bf16", other)
	w := bf16Writer{m: m.Clone(), e: plainBF16{}, threads: 1}
	defer w.free()
	if err := w.rewrite(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := w.m.Graph.Init("w_bf16"); got != other {
		t.Errorf("w_bf16 is %v%v, it was %v%v", got.Type, got.Dims, other.Type, other.Dims)
	}
}
