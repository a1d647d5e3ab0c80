package app

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestRowsDepend: an operator that measures one scale for a whole batch is found wherever
// it stands.
func TestRowsDepend(t *testing.T) {
	measure := func() *pb.NodeProto {
		return &pb.NodeProto{OpType: proto.String("DynamicQuantizeLinear"), Input: []string{"x"}, Output: []string{"q", "s", "z"}}
	}
	body := func(n ...*pb.NodeProto) *pb.AttributeProto {
		last := &pb.NodeProto{OpType: proto.String("Identity"), Input: []string{"x"}, Output: []string{"b"}}
		return &pb.AttributeProto{Name: proto.String("then_branch"), Type: pb.AttributeProto_GRAPH.Enum(),
			G: &pb.GraphProto{Name: proto.String("body"), Node: append(n, last), Output: []*pb.ValueInfoProto{{Name: proto.String("b")}}}}
	}
	branch := func(a *pb.AttributeProto) *graph.Node {
		other := body()
		other.Name = proto.String("else_branch")
		return graph.NewNode("", "If", "if", []string{"c"}, []string{"y"}, a, other)
	}
	call := func(n ...*pb.NodeProto) *graph.Model {
		m := model(&graph.Graph{Nodes: []*graph.Node{graph.NewNode("local", "f", "call", []string{"x"}, []string{"y"})}})
		m.Opsets["local"] = 1
		last := &pb.NodeProto{OpType: proto.String("Identity"), Input: []string{"x"}, Output: []string{"r"}}
		m.AddFunction(&pb.FunctionProto{Domain: proto.String("local"), Name: proto.String("f"), Input: []string{"x"}, Output: []string{"r"}, Node: append(n, last),
			OpsetImport: []*pb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(21)}}})
		return m
	}
	inBody := &pb.NodeProto{OpType: proto.String("If"), Input: []string{"x"}, Output: []string{"i"}, Attribute: []*pb.AttributeProto{body(measure())}}
	for name, c := range map[string]struct {
		m    *graph.Model
		want bool
	}{
		"nowhere":              {model(&graph.Graph{Nodes: []*graph.Node{branch(body())}}), false},
		"in the graph":         {model(&graph.Graph{Nodes: []*graph.Node{graph.NewNode("", "DynamicQuantizeLinear", "q", []string{"x"}, []string{"y", "s", "z"})}}), true},
		"in a body":            {model(&graph.Graph{Nodes: []*graph.Node{branch(body(measure()))}}), true},
		"in a function":        {call(measure()), true},
		"in a function's body": {call(inBody), true},
	} {
		t.Run(name, func(t *testing.T) {
			c.m.Graph.Name = "test"
			c.m.Graph.Inputs = []*graph.Value{value("x", tensor.Float32, "batch"), value("c", tensor.Bool)}
			c.m.Graph.Outputs = []*graph.Value{value("y", tensor.Undefined)}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, registry.ModelFile), onnxBytes(t, c.m), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := rowsDepend(dir); err != nil || got != c.want {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}
