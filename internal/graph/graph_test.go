package graph

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

func tiny() *Model {
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{"k": "v"}, Graph: &Graph{
		Name:    "g",
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "batch"}, {N: 2}}}},
		Outputs: []*Value{{Name: "y", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "batch"}, {N: 2}}}},
		Nodes: []*Node{
			NewNode("", "MatMul", "fc", []string{"x", "w"}, []string{"h"}),
			NewNode("", "Add", "bias", []string{"h", "b"}, []string{"y"}),
		},
		Info: map[string]*Value{"h": {Name: "h", Type: tensor.Float32}},
	}}
	m.Graph.SetInit("w", tensor.From([]float32{1, 2, 3, 4}, 2, 2))
	m.Graph.SetInit("b", tensor.From([]float32{.5, -.5}, 2))
	return m
}

const tinyText = `ir 8
opset ai.onnx 17
meta k "v"
input x FP32[batch,2]
init w FP32[2,2] [1 2 3 4]
init b FP32[2] [0.5 -0.5]
node MatMul "fc" (x, w) -> (h)
node Add "bias" (h, b) -> (y)
output y FP32[batch,2]
`

func TestTextAndRoundTrip(t *testing.T) {
	m := tiny()
	if got := m.Text(); got != tinyText {
		t.Errorf("text:\n%s", got)
	}
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.Text() != tinyText {
		t.Errorf("read back:\n%s", got.Text())
	}
}

// TestNamelessNodes: operators without a name, which ONNX allows, have that of their
// first output, and no two have the same.
func TestNamelessNodes(t *testing.T) {
	m := tiny()
	m.Graph.Nodes[0].Name, m.Graph.Nodes[1].Name = "", "h"
	p, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := got.Graph.Nodes[0].Name, got.Graph.Nodes[1].Name; a != "h_1" || b != "h" {
		t.Errorf("names %q and %q, want h_1 and h", a, b)
	}
	got.Graph.Nodes[1].Name = ""
	if p, err = got.Proto(); err != nil {
		t.Fatal(err)
	}
	if got, err = FromProto(p); err != nil {
		t.Fatal(err)
	}
	if a, b := got.Graph.Nodes[0].Name, got.Graph.Nodes[1].Name; a != "h_1" || b != "y" {
		t.Errorf("names %q and %q, want h_1 and y", a, b)
	}
	// In bodies the names are the same, however they are reached.
	inner := &pb.GraphProto{Node: []*pb.NodeProto{{OpType: proto.String("Relu"), Input: []string{"h"}, Output: []string{"r"}}}, Output: []*pb.ValueInfoProto{{Name: proto.String("r")}}}
	gate := NewNode("", "If", "gate", []string{"c"}, []string{"z"}, &pb.AttributeProto{Name: proto.String("then_branch"), Type: pb.AttributeProto_GRAPH.Enum(), G: inner})
	gate.Bodies(func(n *Node, _ map[string]bool) {
		if n.Name != "r" {
			t.Errorf("name %q in the body, want r", n.Name)
		}
	})
}

// TestManyOfOneName: a file may repeat a name as often as it likes; 8,000 operators
// took 19 seconds.
func TestManyOfOneName(t *testing.T) {
	const n = 100_000
	p := &pb.ModelProto{Graph: &pb.GraphProto{}}
	for range n {
		p.Graph.Node = append(p.Graph.Node, &pb.NodeProto{OpType: proto.String("Relu"), Output: []string{"y"}})
	}
	m, err := FromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Graph.Nodes[n-1].Name; got != "y_99999" {
		t.Errorf("the last is %q, want y_99999", got)
	}
	names, last := m.Graph.Namer(), ""
	for range n {
		last = names.Name("y")
	}
	if last != "y_100001" {
		t.Errorf("the last value is %q, want y_100001", last)
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		edit       func(m *Model)
	}{
		{"cycle", "cycle", func(m *Model) { m.Graph.Nodes[0].Inputs[0] = "y" }},
		{"missing initializer", "nothing makes", func(m *Model) { m.Graph.DropInit("w") }},
		{"unknown domain", "unknown operator domain", func(m *Model) { m.Graph.Nodes[0].Domain = "acme"; m.Opsets["acme"] = 1 }},
		{"domain not imported", "does not import", func(m *Model) { m.Graph.Nodes[0].Domain = DomainMS }},
		{"made twice", "made twice", func(m *Model) { m.Graph.Nodes[1].Outputs[0] = "h" }},
		{"no maker of output", "output", func(m *Model) { m.Graph.Nodes[1].Outputs[0] = "z" }},
		{"short initializer", "needs 16 bytes", func(m *Model) { m.Graph.Init("w").Data = make([]byte, 8) }},
		{"no outputs", "no outputs", func(m *Model) { m.Graph.Outputs = nil }},
	} {
		m := tiny()
		c.edit(m)
		err := m.Check()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
	if err := tiny().Check(); err != nil {
		t.Errorf("good model: %v", err)
	}
}

// TestShortInitializer: raw_data shorter than dims is refused when the file is
// read (the heap over-read of other quantizers, CVE-2026-7482).
func TestShortInitializer(t *testing.T) {
	p, err := tiny().Proto()
	if err != nil {
		t.Fatal(err)
	}
	p.Graph.Initializer[0].RawData = p.Graph.Initializer[0].RawData[:8]
	if _, err := FromProto(p); err == nil || !strings.Contains(err.Error(), "needs 16 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestTypedData(t *testing.T) {
	for _, p := range []*pb.TensorProto{
		{DataType: proto.Int32(1), Dims: []int64{2}, FloatData: []float32{1, 2}},
		{DataType: proto.Int32(7), Dims: []int64{1}, Int64Data: []int64{-5}},
		{DataType: proto.Int32(2), Dims: []int64{3}, Int32Data: []int32{1, 2, 255}},
		{DataType: proto.Int32(11), Dims: nil, DoubleData: []float64{4}},
		{DataType: proto.Int32(22), Dims: []int64{3}, Int32Data: []int32{0x21, 0x3}},
		{DataType: proto.Int32(1), Dims: []int64{0}},
	} {
		if _, err := TensorFromProto(p); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
	if _, err := TensorFromProto(&pb.TensorProto{DataType: proto.Int32(1), Dims: []int64{3}, FloatData: []float32{1}}); err == nil {
		t.Error("short float_data accepted")
	}
}

func TestSortAndPrune(t *testing.T) {
	m := tiny()
	g := m.Graph
	g.Nodes[0], g.Nodes[1] = g.Nodes[1], g.Nodes[0]
	g.Nodes = append(g.Nodes, NewNode("", "Relu", "dead", []string{"h"}, []string{"unused"}))
	g.SetInit("unread", tensor.From([]float32{1}, 1))
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	if n := g.Prune(); n != 1 || g.Init("unread") != nil {
		t.Errorf("pruned %d nodes, unread kept: %v", n, g.Init("unread") != nil)
	}
	if got := m.Text(); got != tinyText {
		t.Errorf("text:\n%s", got)
	}
	g.Nodes[0].Inputs[0] = "y"
	if err := g.Sort(); err == nil {
		t.Error("cycle sorted")
	}
}

// TestMiniLM opens the real encoder with external data, if it is fetched.
func TestMiniLM(t *testing.T) {
	path := "../../.deps/models/minilm-fused/model.onnx"
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs .deps/models/minilm-fused (make deps)")
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if len(m.Graph.Nodes) != 139 {
		t.Errorf("%d nodes", len(m.Graph.Nodes))
	}
	out := filepath.Join(t.TempDir(), "copy.onnx")
	if err := m.Save(out, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Text() != m.Text() {
		t.Error("the copy's text differs")
	}
}
