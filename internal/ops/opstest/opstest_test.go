package opstest

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

func floatModels() map[string]struct {
	m     *graph.Model
	feeds map[string]*tensor.Tensor
} {
	type model = struct {
		m     *graph.Model
		feeds map[string]*tensor.Tensor
	}
	all := map[string]model{
		"cnn":         {TinyCNN.Model(), TinyCNN.Feeds(1, 3)},
		"cnn-maxpool": {CNN{MaxPool: true, Blocks: 1, Seed: 9}.Model(), CNN{}.Feeds(1, 1)},
	}
	for name, c := range map[string]BERT{
		"bert":            TinyBERT,
		"bert-decomposed": {Decomposed: true, Layers: 1},
		"bert-mean":       {Head: MeanPool},
		"bert-classifier": {Head: Classifier, Hidden: 48, Heads: 3, Decomposed: true},
	} {
		all[name] = model{c.Model(), c.Feeds(1, 3, 11)}
	}
	return all
}

// TestFloatModels: the models are valid, run, give sane numbers, and are the
// same each time.
func TestFloatModels(t *testing.T) {
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	again := floatModels()
	for name, c := range floatModels() {
		t.Run(name, func(t *testing.T) {
			if err := c.m.Check(); err != nil {
				t.Fatal(err)
			}
			if c.m.Text() != again[name].m.Text() {
				t.Error("two models of the same settings differ")
			}
			path := filepath.Join(t.TempDir(), "m.onnx")
			if err := c.m.Save(path, onnx.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			s, err := e.OpenFile(context.Background(), path, engine.Options{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			res, err := s.Run(context.Background(), c.feeds, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Close()
			for name, y := range res.Tensors() {
				v, err := y.F32()
				if err != nil {
					t.Fatal(err)
				}
				var sum float64
				for _, x := range v {
					sum += float64(x) * float64(x)
				}
				if rms := math.Sqrt(sum / float64(len(v))); !(rms > .05 && rms < 20) {
					t.Errorf("output %s%v has root mean square %v", name, y.Dims, rms)
				}
			}
		})
	}
}
