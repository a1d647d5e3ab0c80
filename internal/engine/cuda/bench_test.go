//go:build cuda

package cuda_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// bertBase is an encoder of BERT-base's size with random weights, which take the
// same time; a small one on emulation.
func bertBase() (c opstest.BERT, length int) {
	if driver.Emulated {
		return opstest.BERT{Layers: 1, Hidden: 32, Heads: 2, FFN: 48, Vocab: 60}, 8
	}
	return opstest.BERT{Layers: 12, Hidden: 768, Heads: 12, FFN: 3072, Vocab: 30522, Positions: 512}, 128
}

func benchEngine(b *testing.B, c cuda.Config) *cuda.Engine {
	b.Helper()
	e := cuda.New(c)
	if _, err := e.Probe(context.Background()); err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { check(b, e.Close()) })
	return e
}

// BenchmarkBERT is one request of BERT-base in INT8 and INT4 from inputs in host
// memory to outputs there, one at a time, as a recorded graph.
func BenchmarkBERT(b *testing.B) {
	c, length := bertBase()
	batches := []int{1, 8, 32, 128}
	if driver.Emulated {
		batches = []int{1}
	}
	float := c.Model()
	for _, scheme := range []quant.Scheme{quant.INT8Dynamic, quant.INT4} {
		path := opstest.Save(b, opstest.Native(b, float, scheme))
		for _, scores := range []plan.Type{plan.F32, plan.F16, plan.S8} {
			e := benchEngine(b, cuda.Config{Streams: 1, Scores: scores})
			s, err := e.OpenFile(context.Background(), path, engine.Options{})
			check(b, err)
			for _, batch := range batches {
				feeds := c.Feeds(1, 1, length)
				for name, x := range feeds { // all of full length
					feeds[name] = &tensor.Tensor{Type: x.Type, Dims: []int64{int64(batch), int64(length)}}
					for range batch {
						feeds[name].Data = append(feeds[name].Data, x.Data...)
					}
				}
				b.Run(fmt.Sprintf("%s/scores=%v/%dx%d", scheme, scores, batch, length), func(b *testing.B) {
					ask := func() {
						r, err := s.Run(context.Background(), feeds, nil)
						check(b, err)
						r.Close()
					}
					for range 3 { // planned, uploaded, recorded
						ask()
					}
					b.ResetTimer()
					for range b.N {
						ask()
					}
					b.ReportMetric(float64(batch)*float64(b.N)/b.Elapsed().Seconds(), "texts/s")
				})
			}
			check(b, s.Close())
		}
	}
}

// modelsEnv names a folder for the float model, which make gpu-check gives ONNX
// Runtime's own calibrator to compare with.
const modelsEnv = "FEWBIT_GPU_CHECK_MODELS"

// BenchmarkCalibration is one entropy calibration of BERT-base, from the first
// sample to the thresholds: 512 samples of 128 tokens, all inputs of matrix
// products.
func BenchmarkCalibration(b *testing.B) {
	c, length := bertBase()
	samples := 512
	if driver.Emulated {
		samples = 2
	}
	m := c.Model()
	if dir := os.Getenv(modelsEnv); dir != "" {
		check(b, m.Save(filepath.Join(dir, "bert-base.onnx"), onnx.SaveOptions{}))
	}
	config, err := quant.Config{}.WithDefaults()
	check(b, err)
	_, err = quant.Run(context.Background(), m, quant.Prepare(config), quant.Dump{})
	check(b, err)
	p, err := quant.NewPlan(m, config)
	check(b, err)
	specs := map[string]calib.Spec{}
	var outs []string
	for _, t := range p.Tensors {
		specs[t] = calib.Spec{ChannelMax: true, Axis: -1}
		outs = append(outs, t)
	}
	m.Graph.Outputs = nil
	for _, t := range outs {
		m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: t, Type: tensor.Float32})
	}
	m.Graph.Prune()
	path := opstest.Save(b, m)
	feeds := make([]engine.Feeds, samples)
	for i := range feeds {
		feeds[i] = c.Feeds(uint64(i), 1, length)
	}
	for _, a := range []struct {
		name string
		as   plan.Arithmetic
	}{{"fp32", plan.FP32}, {"tf32", plan.TF32}, {"fp16", plan.FP16}} {
		e := benchEngine(b, cuda.Config{Products: a.as})
		w, err := e.Watch(context.Background(), path, cuda.WatchConfig{Specs: specs})
		check(b, err)
		b.Run(fmt.Sprintf("entropy/%s/%d", a.name, samples), func(b *testing.B) {
			for range b.N {
				for _, f := range feeds {
					check(b, w.Run(context.Background(), f, calib.SampleHash(f)))
				}
				_, err := w.Entropy(calib.U8)
				check(b, err)
				check(b, w.Collect(calib.NewCollector(1, specs)))
			}
			b.ReportMetric(float64(samples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
			b.ReportMetric(float64(len(specs)), "tensors")
		})
		check(b, w.Close())
	}
}
