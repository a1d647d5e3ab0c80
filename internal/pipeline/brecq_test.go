package pipeline

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// Learning blocks of a small network with residuals lowers what the whole loses, twice
// alike, and the report says what each block gained.
func TestBlocksLearnFromTheFloatModel(t *testing.T) {
	p := testPipeline(t)
	src, calib, ev := save(t, cnn()), npy(t, 3, 96, 3, 16, 16), npy(t, 4, 96, 3, 16, 16)
	run := func(w quant.WeightMethod, out string) *report.Report {
		t.Helper()
		rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: quant.Config{Weights: w, ReduceRange: true}, Calib: calib, Eval: ev, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	one, two := t.TempDir()+"/one.onnx", t.TempDir()+"/two.onnx"
	before, after := run(quant.GPTQ, ""), run(quant.BRECQ, one)
	t.Logf("SQNR %.2f dB with gptq, %.2f dB with brecq", before.Evaluation.SQNR, after.Evaluation.SQNR)
	if after.Evaluation.SQNR < before.Evaluation.SQNR-0.3 {
		t.Errorf("SQNR %.2f dB, without learning %.2f dB", after.Evaluation.SQNR, before.Evaluation.SQNR)
	}
	text, _ := json.Marshal(after.Passes)
	if !strings.Contains(string(text), "relative error by block: ") {
		t.Errorf("no line for the blocks: %s", text)
	}
	run(quant.BRECQ, two)
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(two)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Error("two runs give two files")
	}
}
