package pipeline

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
)

func TestExp(t *testing.T) {
	if os.Getenv("EXP") == "" {
		t.Skip()
	}
	ctx := context.Background()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Fatal(err)
	}
	lab, err := NewLab(e, 2, "")
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	dir := "../../.deps/models/minilm-fused"
	m, err := graph.Open(dir + "/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	graph.LiftConstants(m)
	graph.FoldConstants(m)
	ref, err := e.OpenFile(ctx, dir+"/model.onnx", engine.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := quant.Config{Scheme: quant.Scheme(os.Getenv("SCHEME")), NoSmooth: os.Getenv("NOSMOOTH") != "", Method: os.Getenv("METHOD"), Target: quant.Target(os.Getenv("TARGET"))}.WithDefaults()
	plan, err := quant.NewPlan(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(len(plan.Ops), len(plan.Tensors), plan.Float)
	ds, err := data.Open("../../.deps/data/bbc/calib.jsonl", data.Options{Spec: ref.Spec(), ModelDir: dir, Samples: 64, MaxTokens: 64})
	if err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	ev, err := Calibrate(ctx, lab, m, plan, ds, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("calibrate", time.Since(t0))
	ch := quant.Choices{}
	table := []quant.Pass{&quant.Ranges{Plan: plan, Stats: ev, GEMM: lab, Choices: ch}, &quant.Insert{Plan: plan, Choices: ch}}
	if cfg.Target != quant.QDQ && cfg.Scheme == quant.INT8 {
		table = append(table, quant.Lower{})
	}
	ran, err := quant.Run(ctx, m, table, quant.Dump{})
	for _, r := range ran {
		t.Log(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range ch {
		t.Log(c.Tensor, c.Method, c.Alpha, c.Why)
	}
	out := "/tmp/exp.onnx"
	if err := m.Save(out, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	q, err := e.OpenFile(ctx, out, engine.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	es, err := data.Open("../../.deps/data/bbc/test.jsonl", data.Options{Spec: ref.Spec(), ModelDir: dir, Samples: 200, MaxTokens: 64})
	if err != nil {
		t.Fatal(err)
	}
	lat := &eval.InterleaveOptions{}
	if os.Getenv("LAT") == "" {
		lat = nil
	}
	r, err := eval.Compare(ctx, ref, q, es, eval.Options{Latency: lat})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cos %+v NN %+v tok %+v sqnr %v", r.Cosine, r.Neighbours, r.TokenCosine, r.SQNR)
	if r.Latency != nil {
		t.Logf("%+v", *r.Latency)
	}
}
