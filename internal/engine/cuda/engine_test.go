//go:build cuda

// Tests of the executor, on a GPU or emulated.
package cuda_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// newEngine opens the device until the test ends, or skips the test.
func newEngine(t *testing.T, c cuda.Config) *cuda.Engine {
	t.Helper()
	e := cuda.New(c)
	if _, err := e.Probe(context.Background()); err != nil {
		if driver.Emulated {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func open(t *testing.T, e engine.Engine, path string) engine.Session {
	t.Helper()
	s, err := e.OpenFile(context.Background(), path, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func run(t *testing.T, s engine.Session, feeds engine.Feeds) engine.Feeds {
	t.Helper()
	r, err := s.Run(context.Background(), feeds, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := engine.Feeds{}
	for name, x := range r.Tensors() {
		out[name] = x.Clone()
	}
	return out
}

// difference is the largest |a - b| relative to the largest |b|.
func difference(a, b *tensor.Tensor) float64 {
	if a == nil || len(a.Data) != len(b.Data) || fmt.Sprint(a.Dims) != fmt.Sprint(b.Dims) {
		return math.Inf(1)
	}
	x, y := tensor.View[float32](a), tensor.View[float32](b)
	var worst, size float64
	for i := range x {
		d := math.Abs(float64(x[i]) - float64(y[i]))
		if !(d <= math.MaxFloat64) {
			return math.Inf(1)
		}
		worst, size = max(worst, d), max(size, math.Abs(float64(y[i])))
	}
	return worst / max(size, 1e-30)
}

// Tolerances against ONNX Runtime, as in package plan.
const (
	floatTolerance = 2e-5
	codeTolerance  = 5e-3
	blockTolerance = 5e-2
	imageTolerance = 2e-2
)

// TestModels: whole models on the device agree with ONNX Runtime on the same
// file, for several shapes, launched and recorded, with equal answers each time.
func TestModels(t *testing.T) {
	cpu := opstest.Engine(t)
	bert := opstest.BERT{Vocab: 1100, Head: opstest.MeanPool}
	tiny := opstest.TinyBERT
	cnn := opstest.TinyCNN
	pool := opstest.CNN{MaxPool: true}
	old := opstest.BERT{Decomposed: true, Head: opstest.Classifier}
	for _, c := range []struct {
		name  string
		m     *graph.Model
		feeds []engine.Feeds
		tol   float64
	}{
		{"bert-float", tiny.Model(), []engine.Feeds{tiny.Feeds(1, 2, 5)}, floatTolerance},
		{"bert-decomposed", old.Model(), []engine.Feeds{old.Feeds(1, 1, 6)}, floatTolerance},
		{"bert-int8", opstest.Native(t, bert.Model(), quant.INT8Dynamic), []engine.Feeds{bert.Feeds(1, 3, 13), bert.Feeds(2, 1, 4)}, codeTolerance},
		{"bert-int4", opstest.Native(t, tiny.Model(), quant.INT4), []engine.Feeds{tiny.Feeds(1, 2, 9)}, blockTolerance},
		{"cnn-float", cnn.Model(), []engine.Feeds{cnn.Feeds(1, 2)}, floatTolerance},
		{"cnn-int8", opstest.Native(t, cnn.Model(), quant.INT8), []engine.Feeds{cnn.Feeds(1, 2), cnn.Feeds(2, 1)}, imageTolerance},
		{"cnn-pool-int8", opstest.Native(t, pool.Model(), quant.INT8), []engine.Feeds{pool.Feeds(1, 1)}, imageTolerance},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEngine(t, cuda.Config{Streams: 1})
			path := opstest.Save(t, c.m)
			s := open(t, e, path)
			for _, feeds := range c.feeds {
				want := opstest.Run(t, cpu, path, feeds)
				var first engine.Feeds
				for i := range 4 { // launched, then recorded, then as recorded
					got := run(t, s, feeds)
					for name, w := range want {
						if d := difference(got[name], w); d > c.tol {
							t.Fatalf("run %d: %s differs by %.2g", i, name, d)
						} else if i == 0 {
							t.Logf("%s: difference %.2g", name, d)
						}
						if i > 0 && string(got[name].Data) != string(first[name].Data) {
							t.Errorf("run %d gives another answer", i)
						}
					}
					if i == 0 {
						first = got
					}
				}
			}
		})
	}
}

// TestInt4Embeddings: a file that the pipeline wrote with INT4 embeddings (of words
// and positions; types stay float) or INT8 ones, on the device as in ONNX Runtime.
func TestInt4Embeddings(t *testing.T) {
	cpu := opstest.Engine(t)
	bert := opstest.BERT{Vocab: 1100, Positions: 1030, Head: opstest.MeanPool}
	var samples []map[string]*tensor.Tensor
	for i := range 2 {
		samples = append(samples, bert.Feeds(uint64(i), 1, 8))
	}
	size := map[quant.Precision]int64{}
	for _, as := range []quant.Precision{quant.PrecisionINT4, quant.PrecisionINT8} {
		path := opstest.Calibrated(t, bert.Model(), quant.Config{Scheme: quant.INT8Dynamic, Target: quant.CUDA,
			Rules: []quant.Rule{{Match: "words", Precision: as}, {Match: "places", Precision: as}}}, samples)
		file, err := os.Stat(path)
		check(t, err)
		size[as] = file.Size()
		s := open(t, newEngine(t, cuda.Config{Streams: 1}), path)
		for _, feeds := range []engine.Feeds{bert.Feeds(3, 3, 13), bert.Feeds(4, 1, 4)} {
			got := run(t, s, feeds)
			for name, w := range opstest.Run(t, cpu, path, feeds) {
				if d := difference(got[name], w); d > codeTolerance {
					t.Errorf("%s: %s differs by %.2g", as, name, d)
				}
			}
		}
		far := engine.Feeds(bert.Feeds(1, 1, 3))
		far["input_ids"] = tensor.From([]int64{0, 1100, 1}, 1, 3)
		if _, err := s.Run(context.Background(), far, nil); !errors.Is(err, engine.ErrInput) {
			t.Errorf("%s: a token outside the table: %v", as, err)
		}
	}
	// Half a byte for each of their values, less the scales of 32.
	if saved, tables := size[quant.PrecisionINT8]-size[quant.PrecisionINT4], int64(1100+1030)*64; saved < tables/4 {
		t.Errorf("%v: INT4 saves %d bytes of tables of %d values", size, saved, tables)
	}
}

// TestSession: names, shapes and ends are as the interface says.
func TestSession(t *testing.T) {
	e := newEngine(t, cuda.Config{})
	bert := opstest.BERT{Layers: 1}
	path := opstest.Save(t, bert.Model())
	s := open(t, e, path)
	spec := s.Spec()
	if len(spec.Inputs) != 3 || spec.Inputs[0].Name != "input_ids" || fmt.Sprint(spec.Inputs[0].Dims, spec.Inputs[0].DimNames) != "[-1 -1] [batch length]" ||
		len(spec.Outputs) != 1 || spec.Outputs[0].Name != "last_hidden_state" {
		t.Errorf("%+v", spec)
	}
	ctx := context.Background()
	feeds := engine.Feeds(bert.Feeds(1, 1, 3))
	if _, err := s.Run(ctx, engine.Feeds{}, nil); !errors.Is(err, engine.ErrInput) {
		t.Errorf("no feeds: %v", err)
	}
	if _, err := s.Run(ctx, feeds, []string{"other"}); !errors.Is(err, engine.ErrInput) {
		t.Errorf("no such output: %v", err)
	}
	far := engine.Feeds(bert.Feeds(1, 1, 3))
	far["input_ids"] = tensor.From([]int64{0, 1 << 40, 1}, 1, 3)
	if _, err := s.Run(ctx, far, nil); !errors.Is(err, engine.ErrInput) {
		t.Errorf("a token outside the table: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Run(gone, feeds, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	r, err := s.Run(ctx, feeds, []string{"last_hidden_state"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if x := r.Tensors()["last_hidden_state"]; x == nil || fmt.Sprint(x.Dims) != "[1 3 64]" || x.Check() != nil {
		t.Errorf("after the session's end: %v", x)
	}
	r.Close()
	r.Close()
	if r.Tensors() != nil {
		t.Error("tensors after Close")
	}
	if _, err := s.Run(ctx, feeds, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := e.OpenFile(ctx, path+"x", engine.Options{}); !errors.Is(err, engine.ErrModel) {
		t.Errorf("no file: %v", err)
	}
}

// TestTogether: many requests of several shapes at once, more shapes than are
// kept, each answered as alone.
func TestTogether(t *testing.T) {
	e := newEngine(t, cuda.Config{Streams: 3, Shapes: 2})
	bert := opstest.BERT{Layers: 1, Hidden: 16, Heads: 2, FFN: 16, Vocab: 40}
	s := open(t, e, opstest.Save(t, opstest.Native(t, bert.Model(), quant.INT8Dynamic)))
	var feeds, want []engine.Feeds
	for i := range 4 {
		feeds = append(feeds, bert.Feeds(uint64(i), 1+i%2, 2+i))
		want = append(want, run(t, s, feeds[i]))
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 6 {
				k := (g + i) % len(feeds)
				r, err := s.Run(context.Background(), feeds[k], nil)
				if err != nil {
					t.Error(err)
					return
				}
				for name, w := range want[k] {
					if x := r.Tensors()[name]; string(x.Data) != string(w.Data) {
						t.Errorf("request %d of %d: %s differs", i, g, name)
					}
				}
				r.Close()
			}
		}()
	}
	wg.Wait()
}

// TestGraphs: recorded and launched runs give the same bytes.
func TestGraphs(t *testing.T) {
	bert := opstest.BERT{Layers: 1, Hidden: 16, Heads: 2, FFN: 16, Vocab: 40}
	path := opstest.Save(t, opstest.Native(t, bert.Model(), quant.INT8Dynamic))
	feeds := bert.Feeds(3, 2, 5)
	e := newEngine(t, cuda.Config{NoGraphs: true})
	want := run(t, open(t, e, path), feeds)
	s := open(t, newEngine(t, cuda.Config{Streams: 1}), path)
	for range 3 {
		for name, x := range run(t, s, feeds) {
			if string(x.Data) != string(want[name].Data) {
				t.Errorf("%s differs", name)
			}
		}
	}
	if i, ok := e.Info(); !ok || i.Emulated != driver.Emulated {
		t.Errorf("%+v %v", i, ok)
	}
	if _, err := e.OpenFile(context.Background(), path, engine.Options{}); errors.Is(err, device.ErrNoDevice) {
		t.Error(err)
	}
}
