package app

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/tensor"
)

// deepModel is mlp with so many wide layers that learning them takes a second or more.
func deepModel() *graph.Model {
	const width, count = 192, 9
	r := rand.New(rand.NewPCG(5, 6))
	g := &graph.Graph{Name: "deep",
		Inputs:  []*graph.Value{value("x", tensor.Float32, "batch", mlpInputs)},
		Outputs: []*graph.Value{value("logits", tensor.Float32, "batch", mlpClasses)},
	}
	in, x := mlpInputs, "x"
	for i := range count {
		out, y := width, fmt.Sprintf("h%d", i)
		if i == count-1 {
			out, y = mlpClasses, "logits"
		}
		w := fmt.Sprintf("w%d", i)
		g.SetInit(w, random(r, in, out, 0.1, 0))
		if y != "logits" {
			sum := y + "_sum"
			g.Nodes = append(g.Nodes, graph.NewNode("", "MatMul", "/"+y, []string{x, w}, []string{sum}), graph.NewNode("", "Relu", "/"+y+"_relu", []string{sum}, []string{y}))
		} else {
			g.Nodes = append(g.Nodes, graph.NewNode("", "MatMul", "/"+y, []string{x, w}, []string{y}))
		}
		in, x = out, y
	}
	return model(g)
}

// TestLearningJob: a job that learns blocks tells how far that is, in its events too, and
// ends in the middle of it when it is cancelled, with nothing left.
func TestLearningJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	s.do("PUT", "/models/deep", onnxBytes(t, deepModel())).into(t, 201, nil)
	spec := jobs.Spec{Model: "deep", Scheme: "int8", Weights: "brecq", Samples: 32, Force: true, Calibration: &jobs.Calibration{Dataset: "calib"}, Evaluation: &jobs.Evaluation{Dataset: "test"}}
	id := s.submit(spec)
	s.until(id, func(st jobs.Status) bool { return st.Phase == "learn blocks" })
	s.do("DELETE", "/quantize/"+id, nil).into(t, 202, nil)
	if st := s.finished(id); st.Status != jobs.Cancelled || st.Progress > 0.8 {
		t.Errorf("job: %+v", st)
	}
	if vs := s.versions("deep"); len(vs) != 1 {
		t.Errorf("versions: %+v", vs)
	}
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	id = s.submit(spec)
	if st := s.follow(t, id); st.Status != jobs.Succeeded {
		t.Fatalf("job: %+v", st)
	}
	rep := string(s.do("GET", "/quantize/"+id+"/report", nil).body)
	if !strings.Contains(rep, "relative error by block") {
		t.Errorf("the report has no line for blocks: %.2000s", rep)
	}
}
