package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/search"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestPieces(t *testing.T) {
	size := func(n int) int64 { return int64(n) }
	for _, c := range []struct {
		items []int
		limit int64
		want  [][]int
	}{
		{nil, 10, [][]int{nil}},
		{[]int{3, 3, 3}, 6, [][]int{{3, 3}, {3}}},
		{[]int{30, 1, 1}, 6, [][]int{{30}, {1, 1}}},
		{[]int{1, 30}, 6, [][]int{{1}, {30}}},
	} {
		got := pieces(c.items, c.limit, size)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v in %d: %v, want %v", c.items, c.limit, got, c.want)
		}
	}
}

// TestFit: steps are as large as the room allows, and no step is smaller than one
// value or one Hessian.
func TestFit(t *testing.T) {
	n := needs{base: 100, result: 50, live: 10, taps: 400, tapLeast: 20, gram: 1000, gramLeast: 200, solve: 100}
	if taps, gram := n.fit(1 << 40); taps != 400 || gram != 1000 {
		t.Errorf("in any room: %d and %d", taps, gram)
	}
	for _, room := range []int64{n.least(), n.least() + 100, n.least() + 500} {
		taps, gram := n.fit(room)
		if taps < n.tapLeast || gram < n.gramLeast || n.peak(taps, gram) > room {
			t.Errorf("in %d: %d and %d take %d", room, taps, gram, n.peak(taps, gram))
		}
	}
}

func TestLive(t *testing.T) {
	m := mlp() // x -> h -> hb -> a -> logits
	l := &limits{sizes: map[string]int64{"h": 5, "hb": 7, "a": 11}, unknown: 13}
	if got := l.live(m.Graph); got != 24 { // a and logits
		t.Errorf("%d bytes live at once, want 24", got)
	}
}

// TestCeiling: a run in small steps decides what a run in one step decides, and
// stays below its ceiling; what cannot fit is refused with the figure, and what was
// there before is put back.
func TestCeiling(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if _, err := engine.ReadMemory(); err != nil {
		t.Skip(err)
	}
	p := testPipeline(t)
	ctx := context.Background()
	src, calib := save(t, mlp()), npy(t, 3, 96, 9, 64)
	now, err := engine.ReadMemory()
	if err != nil {
		t.Fatal(err)
	}
	limit := debug.SetMemoryLimit(-1)
	req := Request{Model: src, Calib: calib, Samples: 60, NoLatency: true, Force: true, Precision: FP32}
	plain, err := p.Quantize(ctx, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.MaxMemory = now.RSS + 512<<20
	small, err := p.Quantize(ctx, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Weights in another order give sums that are rounded otherwise.
	const rounding = 1e-3
	for i, c := range plain.Tensors {
		if o := small.Tensors[i]; o.Name != c.Name || o.Method != c.Method || math.Abs(float64(o.Scale-c.Scale)) > rounding*float64(c.Scale) {
			t.Errorf("another choice in small steps:\n%+v\n%+v", c, o)
		}
	}
	if m := small.Memory; m.RunPeak == 0 || m.RunPeak > m.Ceiling || m.Predicted == 0 || m.Predicted > m.Ceiling {
		t.Errorf("memory %+v", m)
	}
	// The models of several trials stay below it, and the report is of the one that is kept.
	least := req
	least.MinSQNR = MaxMinSQNR
	several, err := p.Quantize(ctx, least, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m := several.Memory; m.RunPeak == 0 || m.RunPeak > m.Ceiling || m.Predicted == 0 || m.Predicted > m.Ceiling {
		t.Errorf("with operators kept in float: memory %+v", m)
	}
	req.MaxMemory, req.Out = MinCeiling/2, filepath.Join(t.TempDir(), "q.onnx")
	if _, err := p.Quantize(ctx, req, nil); !errors.Is(err, ErrCeiling) {
		t.Errorf("a ceiling that cannot be: %v", err)
	}
	if _, err := os.Stat(req.Out); err == nil {
		t.Error("a refused run wrote its result")
	}
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("Go's memory limit is %d, was %d", got, limit)
	}
}

// TestSearchCeiling: a search stays below its ceiling and says what it took; what
// does not fit as it is served is refused with the figure, and other ceilings are other
// searches.
func TestSearchCeiling(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	now, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	p := testPipeline(t)
	dir, limit := t.TempDir(), debug.SetMemoryLimit(-1)
	req := SearchRequest{Model: save(t, mlp()), Calib: npy(t, 3, 96, 9, 64), Out: filepath.Join(dir, "q.onnx"), Journal: filepath.Join(dir, "j"), Samples: 32, EvalSamples: 32, MaxLoss: .5,
		MaxMemory: now.RSS + 1<<30}
	s, err := p.Search(t.Context(), req, nil)
	if err != nil && !errors.Is(err, ErrGoal) { // it may be slower than FP32
		t.Fatal(err)
	}
	if m := s.Memory; m == nil || m.RunPeak == 0 || m.RunPeak > m.Ceiling || len(s.Trials) == 0 {
		t.Errorf("memory %+v of %d trials", s.Memory, len(s.Trials))
	}
	for _, trial := range s.Trials {
		if strings.Contains(trial.Why, "as they are served") {
			t.Errorf("%s: %s", trial.Label, trial.Why)
		}
	}
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("Go's memory limit is %d, was %d", got, limit)
	}
	other := req
	other.MaxMemory++
	if _, err := p.Search(t.Context(), other, nil); !errors.Is(err, search.ErrOther) {
		t.Errorf("another ceiling in the same journal: %v", err)
	}
	// What is opened as it is served is counted three times beside what is resident.
	served := &searching{req: SearchRequest{MaxMemory: now.RSS + 4<<30}}
	if need := served.served(&run{lab: &Lab{}}, 1<<20); need != 0 {
		t.Errorf("a small model needs %d bytes of a large ceiling", need)
	}
	if need := served.served(&run{lab: &Lab{}}, 2<<30); need < 6<<30 {
		t.Errorf("a model of 2 GiB needs %d bytes", need)
	}
	req.MaxMemory = 1
	if _, err := p.Search(t.Context(), req, nil); !errors.Is(err, quant.ErrConfig) {
		t.Errorf("no ceiling at all: %v", err)
	}
}

// TestParts: calibrating in parts gives the evidence of calibrating at once.
func TestParts(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	m := mlp()
	cfg, err := quant.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := quant.NewPlan(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	calib := npy(t, 3, 32, 9, 64)
	observe := func(l *limits) string {
		lab, err := NewLab(p.Engine, 2, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer lab.Close()
		lab.limits, lab.Precision = l, FP32
		r := &run{Pipeline: p, req: Request{Model: "m.onnx", Calib: calib, Samples: 32}, lab: lab, m: m, spec: SpecOf(m)}
		ds, err := r.openCalib()
		if err != nil {
			t.Fatal(err)
		}
		defer ds.Close()
		ev, err := Calibrate(ctx, lab, m, plan, ds, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		fmt.Fprintln(&b, ev.Samples(), ev.dims)
		for _, n := range ev.Names() {
			lo, ok := ev.Histogram(n).MinMax()
			fmt.Fprintln(&b, n, lo, ok, ev.Rows(n).Len())
		}
		return b.String()
	}
	whole, parts := observe(nil), observe(&limits{taps: 1, unknown: 8})
	if whole != parts {
		t.Errorf("in parts:\n%s\nat once:\n%s", parts, whole)
	}
}

// TestGovernorEndsTheRun: a process that passes its ceiling ends the run with a
// line that says so.
func TestGovernorEndsTheRun(t *testing.T) {
	if _, err := engine.ReadMemory(); err != nil {
		t.Skip(err)
	}
	lab, err := NewLab(nil, 1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	r := &run{req: Request{MaxMemory: 1 << 20}, lab: lab, source: mlp()}
	var phase atomic.Value
	phase.Store("wait")
	ctx, g := r.govern(context.Background(), &phase)
	<-ctx.Done()
	if _, _, err := g.end(ctx, ctx.Err()); !errors.Is(err, ErrCeiling) || !strings.Contains(err.Error(), "MB are allowed") {
		t.Errorf("ended with %v", err)
	}
}

// TestLargeUnderCeiling: a model of more than 2 GiB is quantized within 2 GB, with
// what is mapped from files. It writes several times its size and takes minutes:
// make test-large.
func TestLargeUnderCeiling(t *testing.T) {
	if os.Getenv("FEWBIT_LARGE") == "" {
		t.Skip("takes minutes and 12 GB of disk: make test-large")
	}
	p := testPipeline(t)
	const width, layers = 4096, 34
	in, out := value("x", -1, width), value("y", -1, width)
	m := newModel([]*graph.Value{in}, []*graph.Value{out})
	w := gauss(rand.New(rand.NewPCG(5, 0)), width*width, 1.4/64) // the same in each layer: the file holds it so often
	at := "x"
	for i := range layers {
		name := fmt.Sprint("w", i)
		m.Graph.SetInit(name, tensor.From(w, width, width))
		sum, next := fmt.Sprint("h", i), fmt.Sprint("a", i)
		m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", "layer"+fmt.Sprint(i), at+" "+name, sum))
		if i == layers-1 {
			m.Graph.Outputs[0].Name = sum
			break
		}
		m.Graph.Nodes = append(m.Graph.Nodes, node("Relu", "relu"+fmt.Sprint(i), sum, next))
		at = next
	}
	src := save(t, m)
	size, err := os.Stat(src + ".data")
	if err != nil || size.Size() < 2<<30 {
		t.Fatalf("the model has %v bytes: %v", size, err)
	}
	req := Request{Model: src, Out: filepath.Join(t.TempDir(), "q.onnx"), Calib: npy(t, 3, 16, width), Samples: 8, NoLatency: true, Force: true,
		Config: quant.Config{Weights: quant.RTN}, MaxMemory: 2e9}
	rep, err := p.Quantize(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("model %d bytes, memory %+v, cosine %.4f", size.Size(), rep.Memory, rep.Evaluation.Cosine.Mean)
	if m := rep.Memory; m.RunAnonymous == 0 || m.RunPeak == 0 || m.RunPeak > req.MaxMemory {
		t.Errorf("the run took more than %d bytes: %+v", req.MaxMemory, m)
	}
	if rep.Evaluation.Cosine.Mean < .95 {
		t.Errorf("cosine %.4f", rep.Evaluation.Cosine.Mean)
	}
	req.Config.Weights = quant.GPTQ
	if _, err := p.Quantize(t.Context(), req, nil); !errors.Is(err, ErrCeiling) {
		t.Errorf("with Hessians: %v", err)
	}
}
