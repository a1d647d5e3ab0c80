package app

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/tensor"
)

// endless is a valid model that adds x to itself 2^62 times.
func endless(t *testing.T) []byte {
	t.Helper()
	g := &graph.Graph{Name: "endless",
		Inputs:  []*graph.Value{value("x", tensor.Float32, 1, 4)},
		Outputs: []*graph.Value{value("y", tensor.Float32, 1, 4)},
	}
	g.SetInit("trip", tensor.From([]int64{1 << 62}))
	g.SetInit("go", &tensor.Tensor{Type: tensor.Bool, Dims: []int64{}, Data: []byte{1}})
	info := func(name string, typ tensor.DType) *pb.ValueInfoProto {
		v := &pb.TypeProto_Tensor{ElemType: proto.Int32(int32(typ))}
		if typ != tensor.Float32 {
			v.Shape = &pb.TensorShapeProto{}
		}
		return &pb.ValueInfoProto{Name: proto.String(name), Type: &pb.TypeProto{Value: &pb.TypeProto_TensorType{TensorType: v}}}
	}
	body := &pb.GraphProto{
		Name:   proto.String("body"),
		Input:  []*pb.ValueInfoProto{info("i", tensor.Int64), info("c", tensor.Bool), info("a", tensor.Float32)},
		Output: []*pb.ValueInfoProto{info("c2", tensor.Bool), info("a2", tensor.Float32)},
		Node: []*pb.NodeProto{
			{OpType: proto.String("Identity"), Input: []string{"c"}, Output: []string{"c2"}},
			{OpType: proto.String("Add"), Input: []string{"a", "a"}, Output: []string{"a2"}},
		},
	}
	g.Nodes = append(g.Nodes, graph.NewNode("", "Loop", "loop", []string{"trip", "go", "x"}, []string{"y"},
		&pb.AttributeProto{Name: proto.String("body"), Type: pb.AttributeProto_GRAPH.Enum(), G: body}))
	return onnxBytes(t, model(g))
}

// TestEndlessModel: a model that computes for ever does not hold up the server:
// its first run is given up.
func TestEndlessModel(t *testing.T) {
	t.Parallel()
	e := needEngine(t)
	r, err := registry.Open(t.Context(), t.TempDir(), registry.Options{ValidateModel: func(dir string) error { return validateModel(e, dir) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Upload(t.Context(), "m", strings.NewReader(string(endless(t))), -1, registry.About{}); err != nil {
		t.Fatal(err)
	}
	l := registry.NewLoaded(r, registry.LoadedOptions{Engine: e, WarmTimeout: 200 * time.Millisecond})
	begin := time.Now()
	if err := l.LoadAll(t.Context()); err == nil || !strings.Contains(err.Error(), "did not end within 200ms") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("giving up took %v", took)
	}
	// Nor does one that is served all the same: a request ends with its deadline.
	served := registry.NewLoaded(r, registry.LoadedOptions{Engine: e, Warm: func(context.Context, engine.Session) error { return nil }})
	le, err := served.Acquire(t.Context(), "m", "1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin = time.Now()
	if _, _, err := le.Run(ctx, engine.Feeds{"x": tensor.From(make([]float32, 4), 1, 4)}, nil); err == nil {
		t.Error("it ended")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the deadline took %v", took)
	}
	le.Release()
	for _, x := range []*registry.Loaded{l, served} {
		if err := x.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
