package opstest

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Native returns m in the native form of the given scheme (int8, int8-dynamic
// or int4) without running anything: every range is [0, 6] behind Relu and Clip
// and [-6, 6] elsewhere. The result is the same on every machine.
func Native(t testing.TB, m *graph.Model, scheme quant.Scheme) *graph.Model {
	t.Helper()
	return NativeFor(t, m, scheme, quant.CUDA)
}

// NativeFor is Native for one of the two native targets, which differ in int4.
func NativeFor(t testing.TB, m *graph.Model, scheme quant.Scheme, target quant.Target) *graph.Model {
	t.Helper()
	c, err := quant.Config{Scheme: scheme, Target: target}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	m = m.Clone()
	if _, err := quant.Run(ctx, m, quant.Prepare(c), quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := quant.NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	table := []quant.Pass{quant.Embeddings{Config: c}, quant.Residuals{}}
	if scheme == quant.INT4 {
		table = append(table, &quant.BlockWeights{Plan: p})
	} else {
		table = append(table, &quant.Insert{Plan: p, Choices: ranges(m, p)})
	}
	if _, err := quant.Run(ctx, m, table, quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	return m
}

func ranges(m *graph.Model, p *quant.Plan) quant.Choices {
	const top = 6
	ix := m.Graph.Index()
	c := quant.Choices{}
	for _, name := range p.Tensors {
		r := calib.Range{Lo: -top, Hi: top}
		if n := ix.Producer(name); n != nil && (n.Is("Relu") || n.Is("Clip")) {
			r.Lo = 0
		}
		c[name] = &quant.Choice{Tensor: name, Method: "fixed", Range: r, Params: calib.ParamsFor(r, calib.U8), Scheme: calib.U8}
	}
	return c
}

// Engine returns ONNX Runtime, or skips the test where it is missing.
func Engine(t testing.TB) engine.Engine {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	return e
}

// Calibrated quantizes m through the whole pipeline, calibrated and judged on
// samples, and returns the path of the written file. All samples need equal
// shapes, with a batch of one.
func Calibrated(t testing.TB, m *graph.Model, c quant.Config, samples []map[string]*tensor.Tensor) string {
	t.Helper()
	dir := t.TempDir()
	src, data, out := Save(t, m), filepath.Join(dir, "samples.npz"), filepath.Join(dir, "native.onnx")
	if err := os.WriteFile(data, npz(t, samples), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pipeline.Pipeline{Engine: Engine(t), Threads: 1, Version: "test", Scratch: dir}
	if _, err := p.Quantize(context.Background(), pipeline.Request{
		Model: src, Out: out, Config: c, Calib: data, Samples: len(samples), NoLatency: true, Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	return out
}

// Save writes m into a folder of the test.
func Save(t testing.TB, m *graph.Model) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// Run executes the model at path in ONNX Runtime on one thread and returns
// copies of its outputs.
func Run(t testing.TB, e engine.Engine, path string, feeds map[string]*tensor.Tensor) map[string]*tensor.Tensor {
	t.Helper()
	s, err := e.OpenFile(context.Background(), path, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	res, err := s.Run(context.Background(), feeds, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	out := map[string]*tensor.Tensor{}
	for name, x := range res.Tensors() {
		out[name] = &tensor.Tensor{Type: x.Type, Dims: slices.Clone(x.Dims), Data: bytes.Clone(x.Data)}
	}
	return out
}

// npz packs the samples into one array for each input, first axis: samples.
func npz(t testing.TB, samples []map[string]*tensor.Tensor) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, first := range samples[0] {
		descr := map[tensor.DType]string{tensor.Float32: "<f4", tensor.Int64: "<i8"}[first.Type]
		if descr == "" || len(first.Dims) == 0 || first.Dims[0] != 1 {
			t.Fatalf("sample input %q is %v%v: expected FP32 or INT64 with a batch of 1", name, first.Type, first.Dims)
		}
		shape := fmt.Sprint(len(samples)) + ","
		for _, d := range first.Dims[1:] {
			shape += fmt.Sprintf(" %d,", d)
		}
		head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, shape)
		head += strings.Repeat(" ", 63-(10+len(head))%64) + "\n"
		w, err := z.Create(name + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		data := append([]byte("\x93NUMPY\x01\x00"), byte(len(head)), byte(len(head)>>8))
		data = append(data, head...)
		for _, s := range samples {
			data = append(data, s[name].Data...)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
