package ort

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Small ONNX models, written by hand.

const (
	testOpset = 21
	testIR    = 10
)

// value declares a tensor; a dimension is an int64, a string (symbolic), or nil
// (unknown).
func value(name string, t tensor.DType, dims ...any) *pb.ValueInfoProto {
	shape := &pb.TensorShapeProto{}
	for _, d := range dims {
		x := &pb.TensorShapeProto_Dimension{}
		switch d := d.(type) {
		case int:
			x.Value = &pb.TensorShapeProto_Dimension_DimValue{DimValue: int64(d)}
		case string:
			x.Value = &pb.TensorShapeProto_Dimension_DimParam{DimParam: d}
		}
		shape.Dim = append(shape.Dim, x)
	}
	v := rankless(name, t)
	v.Type.GetTensorType().Shape = shape
	return v
}

// rankless declares a tensor whose rank the model does not say.
func rankless(name string, t tensor.DType) *pb.ValueInfoProto {
	return &pb.ValueInfoProto{Name: proto.String(name), Type: tensorType(t)}
}

func tensorType(t tensor.DType) *pb.TypeProto {
	return &pb.TypeProto{Value: &pb.TypeProto_TensorType{TensorType: &pb.TypeProto_Tensor{ElemType: proto.Int32(int32(t))}}}
}

func node(op string, in, out []string, attrs ...*pb.AttributeProto) *pb.NodeProto {
	return &pb.NodeProto{OpType: proto.String(op), Name: proto.String("/test/" + op + "_" + out[0]), Input: in, Output: out, Attribute: attrs}
}

func attrGraph(name string, g *pb.GraphProto) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: g}
}

func attrType(name string, t *pb.TypeProto) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_TYPE_PROTO.Enum(), Tp: t}
}

func initializer(name string, t *tensor.Tensor) *pb.TensorProto {
	return &pb.TensorProto{Name: proto.String(name), DataType: proto.Int32(int32(t.Type)), Dims: t.Dims, RawData: t.Data}
}

type testModel struct {
	in, out []*pb.ValueInfoProto
	nodes   []*pb.NodeProto
	init    []*pb.TensorProto
	meta    map[string]string
	domains []string
}

func (m testModel) proto() *pb.ModelProto {
	p := &pb.ModelProto{
		IrVersion:   proto.Int64(testIR),
		OpsetImport: []*pb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(testOpset)}},
		Graph:       &pb.GraphProto{Name: proto.String("test"), Input: m.in, Output: m.out, Node: m.nodes, Initializer: m.init},
	}
	for _, d := range m.domains {
		p.OpsetImport = append(p.OpsetImport, &pb.OperatorSetIdProto{Domain: proto.String(d), Version: proto.Int64(1)})
	}
	for k, v := range m.meta {
		p.MetadataProps = append(p.MetadataProps, &pb.StringStringEntryProto{Key: proto.String(k), Value: proto.String(v)})
	}
	return p
}

// file writes the model into the test's own folder.
func (m testModel) file(t testing.TB) string {
	t.Helper()
	b, err := proto.Marshal(m.proto())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func identity(dt tensor.DType, dims ...any) testModel {
	return testModel{
		in: []*pb.ValueInfoProto{value("x", dt, dims...)}, out: []*pb.ValueInfoProto{value("y", dt, dims...)},
		nodes: []*pb.NodeProto{node("Identity", []string{"x"}, []string{"y"})},
	}
}

func add(dims ...any) testModel {
	return testModel{
		in:    []*pb.ValueInfoProto{value("a", tensor.Float32, dims...), value("b", tensor.Float32, dims...)},
		out:   []*pb.ValueInfoProto{value("sum", tensor.Float32, dims...)},
		nodes: []*pb.NodeProto{node("Add", []string{"a", "b"}, []string{"sum"})},
		meta:  map[string]string{"author": "test", "ключ": "значение"},
	}
}

// endless counts to the given trip count in a Loop, one node a turn: about a
// microsecond each, and the place where a run can be stopped.
func endless() testModel {
	body := &pb.GraphProto{
		Name: proto.String("body"),
		Input: []*pb.ValueInfoProto{value("i", tensor.Int64), value("go", tensor.Bool),
			value("acc", tensor.Float32)},
		Output: []*pb.ValueInfoProto{value("go_out", tensor.Bool), value("acc_out", tensor.Float32)},
		Node: []*pb.NodeProto{node("Identity", []string{"go"}, []string{"go_out"}),
			node("Add", []string{"acc", "one"}, []string{"acc_out"})},
	}
	return testModel{
		in:    []*pb.ValueInfoProto{value("n", tensor.Int64)},
		out:   []*pb.ValueInfoProto{value("count", tensor.Float32)},
		init:  []*pb.TensorProto{initializer("zero", tensor.From([]float32{0})), initializer("one", tensor.From([]float32{1}))},
		nodes: []*pb.NodeProto{node("Loop", []string{"n", "", "zero"}, []string{"count"}, attrGraph("body", body))},
	}
}

// newEngine returns the real engine, or skips.
func newEngine(t testing.TB) *Engine {
	t.Helper()
	e, err := New(Config{})
	if err != nil {
		t.Skipf("ONNX Runtime is missing: %v", err)
	}
	return e
}

func open(t testing.TB, m testModel, o engine.Options) *Session {
	t.Helper()
	return openFile(t, m.file(t), o)
}

func openFile(t testing.TB, path string, o engine.Options) *Session {
	t.Helper()
	s, err := newEngine(t).Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func run(t testing.TB, s *Session, in engine.Feeds, outs ...string) engine.Result {
	t.Helper()
	r, err := s.Run(t.Context(), in, outs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

const forever = math.MaxInt64
