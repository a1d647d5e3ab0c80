package graph

import (
	"testing"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// TestFewbitOperators: shapes and work of the native operators are known,
// although the model carries them as functions of its own.
func TestFewbitOperators(t *testing.T) {
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17, DomainFewbit: 1}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "batch"}, {N: 7}, {N: 64}}}},
		Outputs: []*Value{{Name: "y"}},
		Nodes: []*Node{
			NewNode(DomainFewbit, "QuantizeRows", "", []string{"x"}, []string{"q", "s", "z"}),
			NewNode(DomainFewbit, "MatMulQuantized", "", []string{"q", "s", "z", "w", "ws", "sum"}, []string{"y"}),
		},
	}}
	m.Graph.SetInit("w", tensor.From(make([]int8, 64*32), 64, 32))
	m.Graph.SetInit("ws", tensor.From(make([]float32, 32), 32))
	m.Graph.SetInit("sum", tensor.From(make([]int32, 32), 32))
	if err := m.Check(); err == nil {
		t.Error("the functions are missing and nothing is said")
	}
	for _, name := range []string{"QuantizeRows", "MatMulQuantized"} {
		m.AddFunction(&pb.FunctionProto{Domain: proto.String(DomainFewbit), Name: proto.String(name)})
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if op := m.Quantized(); op != "QuantizeRows" {
		t.Errorf("quantized: %q", op)
	}
	InferShapes(m)
	for name, want := range map[string]string{"q": "q UINT8[batch,7,64]", "s": "s FP32[batch,7,1]", "z": "z UINT8[batch,7,1]"} {
		if got := m.Graph.Info[name].String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := m.Graph.Outputs[0].String(); got != "y FP32[batch,7,32]" {
		t.Errorf("output %s", got)
	}
	if macs := MACs(m, map[string]int64{"batch": 3}); macs[m.Graph.Nodes[1]] != 3*7*64*32 {
		t.Errorf("work: %v", macs)
	}
}

func TestAddFunction(t *testing.T) {
	f := func(doc string) *pb.FunctionProto {
		return &pb.FunctionProto{Domain: proto.String("local"), Name: proto.String("f"), DocString: proto.String(doc)}
	}
	m := &Model{Graph: &Graph{}}
	if len(m.Functions()) != 0 || m.Function("local", "f") != nil {
		t.Error("a function from nowhere")
	}
	m.AddFunction(f("first"))
	clone := m.Clone()
	m.AddFunction(f("second"))
	if got := m.Functions(); len(got) != 1 || got[0].GetDocString() != "second" || m.Function("local", "f") != got[0] {
		t.Errorf("functions %v", got)
	}
	if got := clone.Function("local", "f").GetDocString(); got != "first" {
		t.Errorf("the clone has the %s one", got)
	}
	p, err := m.Proto()
	if err != nil || len(p.Functions) != 1 {
		t.Errorf("in the file: %v, %v", p.GetFunctions(), err)
	}
}
