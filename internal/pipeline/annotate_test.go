package pipeline

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestAnnotate: the copy computes what the model does, and its nodes say what the
// report says of them, again when it is annotated once more.
func TestAnnotate(t *testing.T) {
	p := testPipeline(t)
	src, data := save(t, twoLSTMs()), npySteps(t)
	q, out := filepath.Join(t.TempDir(), "q.onnx"), filepath.Join(t.TempDir(), "seen.onnx")
	if _, err := p.Quantize(t.Context(), Request{Model: src, Out: q, Config: quant.Config{Scheme: quant.INT8Dynamic}, NoLatency: true, Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	rep, err := p.Compare(t.Context(), CompareRequest{Float: src, Quant: q, Data: data, Output: "y", NoLatency: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.onnx")
	for _, step := range [][2]string{{q, out}, {out, again}} {
		if err := Annotate(step[0], step[1], rep); err != nil {
			t.Fatal(err)
		}
	}
	x := tensor.From(gauss(rand.New(rand.NewPCG(4, 0)), 2*lstmSteps*lstmIn, 1), 2, lstmSteps, lstmIn)
	if !slices.Equal(outputOf(t, p, q, x), outputOf(t, p, again, x)) {
		t.Error("the copy computes something else")
	}
	f, err := onnx.Open(again)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := 0
	for _, n := range f.Proto.GetGraph().GetNode() {
		if n.GetOpType() != "DynamicQuantizeLSTM" {
			continue
		}
		said := map[string]string{}
		for _, e := range n.GetMetadataProps() {
			if said[e.GetKey()] != "" {
				t.Errorf("%s stands there twice", e.GetKey())
			}
			said[e.GetKey()] = e.GetValue()
		}
		if said["fewbit.precision"] == "int8" && said["fewbit.sqnr_db"] != "" && said["fewbit.cosine"] != "" {
			seen++
		}
	}
	if seen != 2 {
		t.Errorf("%d of 2 LSTMs say their figures", seen)
	}
}
