package graph_test

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

// bnTolerance bounds |folded - original| / max|original|: folding a
// BatchNormalization reorders float32 sums, 49 layers deep in EfficientNet-lite0.
const bnTolerance = 1e-5

// TestPassesInORT: a model answers the same before and after the passes, in
// the real runtime, its own optimizations off.
func TestPassesInORT(t *testing.T) {
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skip(err)
	}
	models := "../../.deps/models/"
	for _, c := range []struct {
		path  string
		tol   float64
		feeds []engine.Feeds
	}{
		{"testdata/branches11.onnx", 0, branchFeeds()},
		{"testdata/branches24.onnx", 0, branchFeeds()},
		{models + "minilm-fused/model.onnx", 0, textFeeds("input_ids", "attention_mask", "token_type_ids")},
		{models + "minilm/model.onnx", 0, textFeeds("input_ids", "attention_mask", "token_type_ids")},
		{models + "efficientnet-lite0/model.onnx", bnTolerance, nil},
	} {
		t.Run(filepath.Base(filepath.Dir(c.path))+"/"+filepath.Base(c.path), func(t *testing.T) {
			if _, err := os.Stat(c.path); err != nil {
				t.Skipf("needs %s (make deps)", c.path)
			}
			m, err := graph.Open(c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			n := graph.LiftConstants(m) + graph.DropIdentities(m) + graph.FoldConstants(m) + graph.FoldBatchNorm(m)
			graph.InferShapes(m)
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				t.Error("the passes found nothing to do")
			}
			folded := filepath.Join(t.TempDir(), "m.onnx")
			if err := m.Save(folded, onnx.SaveOptions{External: true}); err != nil {
				t.Fatal(err)
			}
			if c.feeds == nil {
				c.feeds = imageFeeds(m)
			}
			a, b := run(t, e, c.path, c.feeds), run(t, e, folded, c.feeds)
			for i := range a {
				for name, want := range a[i] {
					if d := difference(t, want, b[i][name]); !(d <= c.tol) {
						t.Errorf("feed %d, output %s: relative difference %g, want at most %g", i, name, d, c.tol)
					}
				}
			}
		})
	}
}

func branchFeeds() []engine.Feeds {
	x := make([]float32, 12)
	for i := range x {
		x[i] = float32(i) / 10
	}
	var f []engine.Feeds
	for _, cond := range []bool{true, false} {
		f = append(f, engine.Feeds{"x": tensor.From(x, 3, 4), "cond": tensor.From([]bool{cond})})
	}
	return f
}

func textFeeds(ids, mask, types string) []engine.Feeds {
	r := rand.New(rand.NewPCG(1, 2))
	var f []engine.Feeds
	for _, n := range []int64{1, 5, 16} {
		id, one, zero := make([]int64, 2*n), make([]int64, 2*n), make([]int64, 2*n)
		for i := range id {
			id[i], one[i] = 1000+r.Int64N(20000), 1
		}
		f = append(f, engine.Feeds{ids: tensor.From(id, 2, n), mask: tensor.From(one, 2, n), types: tensor.From(zero, 2, n)})
	}
	return f
}

func imageFeeds(m *graph.Model) []engine.Feeds {
	r := rand.New(rand.NewPCG(3, 4))
	x := make([]float32, 3*224*224)
	for i := range x {
		x[i] = r.Float32()*2 - 1
	}
	return []engine.Feeds{{m.Graph.Inputs[0].Name: tensor.From(x, 1, 3, 224, 224)}}
}

func run(t *testing.T, e engine.Engine, path string, feeds []engine.Feeds) []engine.Feeds {
	t.Helper()
	s, err := e.OpenFile(context.Background(), path, engine.Options{DisableOptimization: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []engine.Feeds
	for _, in := range feeds {
		r, err := s.Run(context.Background(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		out := engine.Feeds{}
		for name, v := range r.Tensors() {
			out[name] = v.Clone()
		}
		r.Close()
		all = append(all, out)
	}
	return all
}

// difference returns max|a-b| / max|a|, infinite where shapes differ.
func difference(t *testing.T, a, b *tensor.Tensor) float64 {
	t.Helper()
	if b == nil || a.Len() != b.Len() || len(a.Dims) != len(b.Dims) {
		return math.Inf(1)
	}
	x, err := a.F32()
	y, err2 := b.F32()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	d, top := 0.0, 0.0
	for i := range x {
		d = math.Max(d, math.Abs(float64(x[i])-float64(y[i])))
		top = math.Max(top, math.Abs(float64(x[i])))
	}
	if d == 0 {
		return 0
	}
	return d / top
}
