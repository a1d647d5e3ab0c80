package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

func testPipeline(t *testing.T) *Pipeline {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	return &Pipeline{Engine: e, Threads: 2, Version: "test"}
}

func need(t *testing.T, path string) string {
	t.Helper()
	p := filepath.Join("../../.deps", path)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("needs .deps/%s (make deps)", path)
	}
	return p
}

func TestNews(t *testing.T) {
	p := testPipeline(t)
	out := filepath.Join(t.TempDir(), "q.onnx")
	rep, err := p.Quantize(context.Background(), Request{
		Model: need(t, "models/news/model.onnx"), Out: out,
		Config: quant.Config{Scheme: quant.Scheme(os.Getenv("SCHEME"))},
		Calib:  need(t, "data/bbc/calib.jsonl"), Eval: need(t, "data/bbc/test.jsonl"), EvalSamples: 200,
	}, func(phase string, f float64) { t.Logf("%s %.2f", phase, f) })
	if rep != nil {
		report.Text(os.Stdout, *rep)
	}
	if err != nil {
		t.Fatal(err)
	}
}
