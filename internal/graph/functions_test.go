package graph

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func call(name string) *pb.NodeProto {
	return &pb.NodeProto{Domain: proto.String("local"), OpType: proto.String(name), Input: []string{"a"}, Output: []string{"b"}}
}

func function(name string, body ...*pb.NodeProto) *pb.FunctionProto {
	return &pb.FunctionProto{Domain: proto.String("local"), Name: proto.String(name), Input: []string{"a"}, Output: []string{"b"}, Node: body}
}

// withFunctions is x -> local.f -> y.
func withFunctions(fs ...*pb.FunctionProto) *Model {
	m := model(NewNode("local", "f", "call", []string{"x"}, []string{"y"}))
	m.Opsets["local"] = 1
	m.functions = functionsOf(&pb.ModelProto{Functions: fs})
	return m
}

func TestFunctions(t *testing.T) {
	relu := &pb.NodeProto{OpType: proto.String("Relu"), Input: []string{"a"}, Output: []string{"b"}}
	inside := &pb.NodeProto{OpType: proto.String("If"), Attribute: []*pb.AttributeProto{{
		Name: proto.String("then_branch"), G: &pb.GraphProto{Node: []*pb.NodeProto{call("f")}}}}}
	chain := func(n int) []*pb.FunctionProto {
		fs := []*pb.FunctionProto{function("f", call("f1"))}
		for i := 1; i < n; i++ {
			fs = append(fs, function(fmt.Sprint("f", i), call(fmt.Sprint("f", i+1))))
		}
		return append(fs, function(fmt.Sprint("f", n), relu))
	}
	laughs := []*pb.FunctionProto{function("f", call("f0"), call("f0"))}
	for i := range 40 {
		next := fmt.Sprint("f", i+1)
		laughs = append(laughs, function(fmt.Sprint("f", i), call(next), call(next)))
	}
	laughs = append(laughs, function("f40", relu))
	overload := call("f")
	overload.Overload = proto.String("other")
	for _, c := range []struct {
		name, want string
		fs         []*pb.FunctionProto
	}{
		{"plain", "", []*pb.FunctionProto{function("f", relu)}},
		{"nested", "", chain(10)},
		{"itself", "calls itself", []*pb.FunctionProto{function("f", call("f"))}},
		{"in a circle", "calls itself", []*pb.FunctionProto{function("f", call("g")), function("g", relu, call("f"))}},
		{"through a subgraph", "calls itself", []*pb.FunctionProto{function("f", inside)}},
		{"called by nothing", "calls itself", []*pb.FunctionProto{function("f", relu), function("g", call("g"))}},
		{"too deep", "deeper than", chain(100)},
		{"a billion nodes", "inline to more than", laughs},
		{"an overload of the name", "", []*pb.FunctionProto{function("f", overload), {Domain: proto.String("local"), Name: proto.String("f"), Overload: proto.String("other"), Node: []*pb.NodeProto{relu}}}},
	} {
		err := withFunctions(c.fs...).Check()
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestCheckSubgraphs(t *testing.T) {
	b := branch("then_branch", "x")
	b.G.Node[0].Domain = proto.String("acme")
	m := model(NewNode("", "If", "if", []string{"x"}, []string{"y"}, b))
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), `"acme"`) {
		t.Errorf("unknown domain in a subgraph: %v", err)
	}
	m = model(NewNode("", "If", "if", []string{"x"}, []string{"y"}, branch("then_branch", "nowhere")))
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a subgraph reads what nothing makes: %v", err)
	}
}

// TestUnknownFieldsSurvive: what a newer ONNX added to model, graph or node is
// still there after the graph has been read and written.
func TestUnknownFieldsSurvive(t *testing.T) {
	p, err := tiny().Proto()
	if err != nil {
		t.Fatal(err)
	}
	mark := protowire.AppendBytes(protowire.AppendTag(nil, 3000, protowire.BytesType), []byte("new"))
	for _, x := range []proto.Message{p, p.Graph, p.Graph.Node[0]} {
		x.ProtoReflect().SetUnknown(mark)
	}
	m, err := FromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(p, again) {
		t.Errorf("lost:\n%v\n%v", p, again)
	}
}
