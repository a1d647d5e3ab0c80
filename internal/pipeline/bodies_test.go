package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestBodies: what stands outside the bodies of an If is quantized, and what stands
// in the body that samples take; the other stays in float and says why.
func TestBodies(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	branch := func(name, op, inner, weight string) *pb.AttributeProto {
		return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: &pb.GraphProto{Name: proto.String(name),
			Node:   []*pb.NodeProto{{OpType: proto.String(op), Name: proto.String(inner), Input: []string{"a", weight}, Output: []string{"out_" + name}}},
			Output: []*pb.ValueInfoProto{{Name: proto.String("out_" + name), Type: &pb.TypeProto{Value: &pb.TypeProto_TensorType{TensorType: &pb.TypeProto_Tensor{ElemType: proto.Int32(1)}}}}}}}
	}
	m := mlp()
	m.Graph.Nodes = append(m.Graph.Nodes[:3:3],
		node("ReduceMax", "most", "a", "most", &pb.AttributeProto{Name: proto.String("keepdims"), Type: pb.AttributeProto_INT.Enum(), I: proto.Int64(0)}),
		node("Greater", "compare", "most limit", "large"),
		node("If", "gate", "large", "logits", branch("then_branch", "MatMul", "inner", "w2"), branch("else_branch", "MatMul", "other", "w2")))
	m.Graph.SetInit("limit", tensor.From([]float32{1}))
	src, calib := save(t, m), npy(t, 3, 96, 9, 64)
	out := filepath.Join(t.TempDir(), "q.onnx")
	rep, err := p.Quantize(ctx, Request{Model: src, Out: out, Calib: calib, Samples: 60, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, o := range rep.Operators {
		seen[o.Name] = o.Precision + " " + o.Rule
	}
	if seen["up"] != "int8 " {
		t.Errorf("outside the bodies: %q", seen["up"])
	}
	if seen["inner"] != "int8 " {
		t.Errorf("inside the body that runs: %q", seen["inner"])
	}
	if !strings.HasPrefix(seen["other"], `fp32 it is in the else_branch of If "gate": `) || !strings.Contains(seen["other"], "none of 60 samples runs it") {
		t.Errorf("inside the other: %q", seen["other"])
	}
	if rep.Evaluation.SQNR < 20 {
		t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
	}
	worst, err := p.Sensitivity(ctx, SensitivityRequest{Model: src, Calib: calib, Samples: 60}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(worst.Warnings, "\n"), "2 operators in the bodies of If, Loop and Scan are not in these figures") {
		t.Errorf("sensitivity leaves bodies out and does not say so: %q", worst.Warnings)
	}
	// With nothing outside, what is inside suffices; with nothing there either, the
	// refusal says what was left and why.
	rep, err = p.Quantize(ctx, Request{Model: src, Out: out, Calib: calib, Samples: 60, Config: quant.Config{Exclude: []string{"up"}}, NoLatency: true, Force: true}, nil)
	if err != nil || rep.Integer.MACs == 0 {
		t.Errorf("nothing but the body: %v", err)
	}
	_, err = p.Quantize(ctx, Request{Model: src, Out: out, Calib: calib, Samples: 60, Config: quant.Config{Exclude: []string{"MatMul"}}, NoLatency: true}, nil)
	if !errors.Is(err, quant.ErrNothing) {
		t.Errorf("nothing at all: %v", err)
	}
}
