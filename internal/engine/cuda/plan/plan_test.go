package plan_test

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan/reference"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func dimsOf(feeds map[string]*tensor.Tensor) map[string][]int64 {
	d := map[string][]int64{}
	for name, t := range feeds {
		d[name] = t.Dims
	}
	return d
}

// planned plans m for the shapes of feeds.
func planned(t testing.TB, m *graph.Model, feeds map[string]*tensor.Tensor) *plan.Plan {
	t.Helper()
	s, err := plan.New(m)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(dimsOf(feeds), plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	return p
}

// check verifies that no two buffers that are alive at once share memory.
func check(t testing.TB, p *plan.Plan) {
	t.Helper()
	for i, x := range p.Buffers {
		if x.Kind != plan.Arena {
			continue
		}
		if x.Offset%plan.Align != 0 || x.Offset < 0 || x.Offset+x.Bytes > p.Arena || x.Last < x.First {
			t.Errorf("b%d %+v in an arena of %d", i, x, p.Arena)
		}
		for k, y := range p.Buffers[:i] {
			if y.Kind == plan.Arena && x.First <= y.Last && y.First <= x.Last && x.Offset < y.Offset+y.Bytes && y.Offset < x.Offset+x.Bytes {
				t.Errorf("b%d and b%d overlap", k, i)
			}
		}
	}
}

// difference is the largest |a - b| relative to the largest |b|; any NaN gives
// infinity.
func difference(a, b *tensor.Tensor) float64 {
	if a == nil || a.Type != b.Type || len(a.Data) != len(b.Data) {
		return math.Inf(1)
	}
	if a.Type != tensor.Float32 {
		if string(a.Data) != string(b.Data) {
			return math.Inf(1)
		}
		return 0
	}
	x, y := tensor.View[float32](a), tensor.View[float32](b)
	var worst, size float64
	for i := range x {
		d := math.Abs(float64(x[i]) - float64(y[i]))
		if x[i] == y[i] {
			d = 0 // infinities
		}
		if !(d <= math.MaxFloat64) {
			return math.Inf(1)
		}
		worst = max(worst, d)
		size = max(size, math.Abs(float64(y[i])))
	}
	return worst / max(size, 1e-30)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update rewrites it):\n%s", path, firstDifference(string(want), got))
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d\n- %s\n+ %s", i+1, x[i], y[i])
		}
	}
	return "one is longer"
}

// Tolerances against ONNX Runtime, relative to the largest output.
const (
	// floatTolerance: float32 sums in another order.
	floatTolerance = 2e-5
	// codeTolerance: where a float lies between two codes, a difference in its
	// last bit moves a code by one, which is up to half a percent of a row.
	codeTolerance = 5e-3
	// blockTolerance: ONNX Runtime quantizes the activations of INT4 products by
	// block, fewbit by row.
	blockTolerance = 5e-2
	// imageTolerance: the same for static codes, whose scales are made up.
	imageTolerance = 2e-2
)

// TestModels: plans of whole models compute what ONNX Runtime does from the same
// file, and their text is stable.
func TestModels(t *testing.T) {
	e := opstest.Engine(t)
	bert := opstest.TinyBERT
	vocab := opstest.BERT{Vocab: 1100, Head: opstest.MeanPool}
	old := opstest.BERT{Decomposed: true, Head: opstest.Classifier}
	cnn := opstest.TinyCNN
	pool := opstest.CNN{MaxPool: true}
	for _, c := range []struct {
		name  string
		m     *graph.Model
		feeds map[string]*tensor.Tensor
		tol   float64
		steps int // at most
	}{
		{"bert-float", bert.Model(), bert.Feeds(5, 2, 9), floatTolerance, 43},
		{"bert-decomposed", old.Model(), old.Feeds(5, 3, 8), floatTolerance, 43},
		{"bert-int8", opstest.Native(t, vocab.Model(), quant.INT8Dynamic), vocab.Feeds(5, 3, 13), codeTolerance, 25},
		{"bert-int8-old", opstest.Native(t, old.Model(), quant.INT8Dynamic), old.Feeds(5, 2, 8), codeTolerance, 29},
		{"bert-int4", opstest.Native(t, bert.Model(), quant.INT4), bert.Feeds(6, 2, 9), blockTolerance, 27},
		{"cnn-float", cnn.Model(), cnn.Feeds(5, 2), floatTolerance, 14},
		{"cnn-int8", opstest.Native(t, cnn.Model(), quant.INT8), cnn.Feeds(5, 2), imageTolerance, 26},
		{"cnn-pool-int8", opstest.Native(t, pool.Model(), quant.INT8), pool.Feeds(5, 1), imageTolerance, 26},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := planned(t, c.m, c.feeds)
			if len(p.Steps) > c.steps {
				t.Errorf("%d steps, at most %d were expected", len(p.Steps), c.steps)
			}
			golden(t, c.name, p.String())
			if again := planned(t, c.m, c.feeds).String(); again != p.String() {
				t.Error("a second plan differs")
			}
			want := opstest.Run(t, e, opstest.Save(t, c.m), c.feeds)
			got, err := reference.Run(p, c.feeds)
			if err != nil {
				t.Fatal(err)
			}
			for name, w := range want {
				d := difference(got[name], w)
				t.Logf("%s: %d steps, arena %d, difference %.2g", name, len(p.Steps), p.Arena, d)
				if d > c.tol {
					t.Errorf("%s differs by %.2g, at most %.2g", name, d, c.tol)
				}
			}
		})
	}
}

// TestWorkspace: steps of one entry share scratch memory, as much as the largest
// wants, outside the arena.
func TestWorkspace(t *testing.T) {
	bert := opstest.BERT{Layers: 1}
	src, err := plan.New(opstest.Native(t, bert.Model(), quant.INT8Dynamic))
	if err != nil {
		t.Fatal(err)
	}
	feeds := bert.Feeds(1, 1, 4)
	p, err := src.Plan(dimsOf(feeds), plan.Options{Workspace: func(s plan.Step) int64 {
		if g, ok := s.(*plan.GemmS8); ok && g.K == 64 {
			return 4096 + g.N
		}
		return 0
	}})
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	spaces := 0
	for i, b := range p.Buffers {
		if b.Kind != plan.Workspace {
			continue
		}
		spaces++
		if b.Bytes != 4096+192 || b.Key != "fb_gemm_s8_run" {
			t.Errorf("%+v", b)
		}
		for _, s := range p.Steps {
			if g, ok := s.(*plan.GemmS8); ok && (g.K == 64) != (g.Work.Buf == i && g.WorkBytes == 4096+g.N) {
				t.Errorf("%s", plan.Text(s))
			}
		}
	}
	if spaces != 1 {
		t.Errorf("%d workspaces", spaces)
	}
	if _, err := reference.Run(p, feeds); err != nil {
		t.Error(err)
	}
}

// TestArithmetic: products and convolutions round their operands as asked, except
// depthwise ones, and nothing else changes; inputs that somebody reads at the end
// are still there.
func TestArithmetic(t *testing.T) {
	bert, cnn := opstest.TinyBERT, opstest.TinyCNN
	for _, c := range []struct {
		m        *graph.Model
		feeds    map[string]*tensor.Tensor
		products int // that are rounded
		exact    int // depthwise
	}{{bert.Model(), bert.Feeds(5, 2, 9), 16, 0}, {cnn.Model(), cnn.Feeds(5, 2), 7, 2}} {
		src, err := plan.New(c.m)
		if err != nil {
			t.Fatal(err)
		}
		run := func(a plan.Arithmetic) (map[string]*tensor.Tensor, *plan.Plan) {
			p, err := src.Plan(dimsOf(c.feeds), plan.Options{Products: a, KeepInputs: true})
			if err != nil {
				t.Fatal(err)
			}
			check(t, p)
			for _, in := range p.Inputs {
				if last := p.Buffers[in.Ref.Buf].Last; last != len(p.Steps) {
					t.Errorf("input %s is there until step %d of %d", in.Name, last, len(p.Steps))
				}
			}
			got, err := reference.Run(p, c.feeds)
			if err != nil {
				t.Fatal(err)
			}
			return got, p
		}
		want, _ := run(plan.FP32)
		for _, a := range []plan.Arithmetic{plan.TF32, plan.FP16} {
			got, p := run(a)
			products, exact := 0, 0
			for _, s := range p.Steps {
				switch s := s.(type) {
				case *plan.GemmFloat:
					products++
					half := a == plan.FP16 && s.StrideB == 0 // two computed operands are TF32 then
					if (s.In == plan.F16) != half || s.TF32 == half {
						t.Errorf("%v: %s", a, plan.Text(s))
					}
				case *plan.ConvFloat:
					switch {
					case s.Groups > 1:
						exact++
						if s.Products != plan.FP32 {
							t.Errorf("%v: %s", a, plan.Text(s))
						}
					default:
						products++
						if s.Products != a {
							t.Errorf("%v: %s", a, plan.Text(s))
						}
					}
				}
			}
			if products != c.products || exact != c.exact {
				t.Errorf("%s %v: %d products and %d depthwise convolutions, want %d and %d", c.m.Graph.Name, a, products, exact, c.products, c.exact)
			}
			for name, w := range want {
				// Operands are off by 2^-11 at most, and sums grow like their root.
				if d := difference(got[name], w); d == 0 || d > 1e-2 {
					t.Errorf("%s %v: %s differs by %.2g", c.m.Graph.Name, a, name, d)
				}
			}
		}
	}
}

// A filter that is computed has no copy in FP16, and multiplies in TF32.
func TestComputedFilter(t *testing.T) {
	s := newSmall(17).input("x", f32, 1, 3, 5, 5).input("w", f32, 8, 3, 3, 3).node("Conv", "x w", "y").out("y")
	src, err := plan.New(s.m)
	if err != nil {
		t.Fatal(err)
	}
	p, err := src.Plan(dimsOf(s.feeds), plan.Options{Products: plan.FP16})
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	if c, ok := p.Steps[0].(*plan.ConvFloat); !ok || len(p.Steps) != 1 || c.Products != plan.TF32 {
		t.Errorf("%v", p)
	}
	if _, err := reference.Run(p, s.feeds); err != nil {
		t.Error(err)
	}
}
