package graph

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// gate is y = If(c) { r = Relu(x*w) } else { Identity(x) } with an outer value called s.
func gate(then ...*pb.NodeProto) *Model {
	if then == nil {
		then = []*pb.NodeProto{
			{OpType: proto.String("MatMul"), Input: []string{"x", "w"}, Output: []string{"m"}},
			{OpType: proto.String("Relu"), Input: []string{"m"}, Output: []string{"r"}},
		}
	}
	body := func(name string, nodes ...*pb.NodeProto) *pb.AttributeProto {
		last := nodes[len(nodes)-1]
		return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: &pb.GraphProto{Name: proto.String(name), Node: nodes,
			Output: []*pb.ValueInfoProto{{Name: proto.String(last.Output[0]), Type: &pb.TypeProto{Value: &pb.TypeProto_TensorType{TensorType: &pb.TypeProto_Tensor{ElemType: proto.Int32(1)}}}}}}}
	}
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: 2}, {N: 2}}}, {Name: "c", Type: tensor.Bool, Dims: []Dim{}}},
		Outputs: []*Value{{Name: "y", Type: tensor.Float32}},
		Nodes: []*Node{NewNode("", "Abs", "", []string{"x"}, []string{"s"}), NewNode("", "If", "gate", []string{"c"}, []string{"y"},
			body("then_branch", then...), body("else_branch", &pb.NodeProto{OpType: proto.String("Identity"), Input: []string{"x"}, Output: []string{"m"}}))},
	}}
	m.Graph.SetInit("w", tensor.From([]float32{1, 2, 3, 4}, 2, 2))
	return m
}

// TestBody: a body is a model that can be edited without touching the one around
// it, and put back; constants from outside stay outside, and nothing new in it hides
// a value of the model.
func TestBody(t *testing.T) {
	m := gate()
	n := m.Graph.Nodes[1]
	b, err := m.Body(n, "then_branch")
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Graph.Inputs) != 1 || b.Graph.Inputs[0].Name != "x" || b.Graph.Init("w") == nil {
		t.Fatalf("inputs %v, constants %v", b.Graph.Inputs, b.Graph.Inits())
	}
	// x -> s (as outside) -> m -> r, with a constant of its own.
	b.Graph.Nodes = append([]*Node{NewNode("", "Mul", "", []string{"x", "twice"}, []string{"s"})}, b.Graph.Nodes...)
	b.Graph.Nodes[1].Inputs[0] = "s"
	b.Graph.SetInit("twice", tensor.From([]float32{2}))
	b.Require(DomainMS, 1)
	before := n.Attr("then_branch").G
	if len(before.Node) != 2 || before.Node[0].Input[0] != "x" {
		t.Error("editing the body has changed the model")
	}
	clone := m.Clone()
	if err := m.SetBody(n, "then_branch", b); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	g := n.Attr("then_branch").G
	if len(g.Node) != 3 || g.Node[0].Output[0] == "s" || g.Node[1].Input[0] != g.Node[0].Output[0] {
		t.Errorf("the value that hides another was not renamed: %v", g.Node)
	}
	if len(g.Initializer) != 1 || g.Initializer[0].GetName() != "twice" || len(g.Input) != 0 {
		t.Errorf("constants %v, inputs %v", g.Initializer, g.Input)
	}
	if m.Opsets[DomainMS] != 1 {
		t.Errorf("domains %v", m.Opsets)
	}
	if clone.Graph.Nodes[1].Attr("then_branch").G != before {
		t.Error("a clone of the model has changed")
	}
}

func TestBodyRefuses(t *testing.T) {
	n := func(op, in, out string) *pb.NodeProto {
		return &pb.NodeProto{OpType: proto.String(op), Input: strings.Fields(in), Output: strings.Fields(out)}
	}
	for name, c := range map[string]struct {
		then []*pb.NodeProto
		want string
	}{
		"a type that is not known": {[]*pb.NodeProto{n("Relu", "s", "r")}, `the type of "s"`},
		"a cycle":                  {[]*pb.NodeProto{n("Add", "x b", "a"), n("Relu", "a", "b")}, "is not known"},
		"a name made twice":        {[]*pb.NodeProto{n("Relu", "x", "a"), n("Abs", "x", "a")}, "made twice"},
	} {
		m := gate(c.then...)
		if _, err := m.Body(m.Graph.Nodes[1], "then_branch"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := gate()
	m.Graph.Nodes[1].Attr("then_branch").G.Output[0].Name = proto.String("x")
	if _, err := m.Body(m.Graph.Nodes[1], "then_branch"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `gives back "x"`) {
		t.Errorf("what was made outside: %v", err)
	}
	if _, err := m.Body(m.Graph.Nodes[0], "then_branch"); !errors.Is(err, ErrInvalid) {
		t.Errorf("no body: %v", err)
	}
}

// TestSetBodyInside: a name that a body in the body makes, and that hides a value
// outside, is new; what it reads of a renamed value it reads by the new name, and
// what it makes under that name stays its own.
func TestSetBodyInside(t *testing.T) {
	n := func(op, in, out string, attrs ...*pb.AttributeProto) *pb.NodeProto {
		return &pb.NodeProto{OpType: proto.String(op), Input: strings.Fields(in), Output: strings.Fields(out), Attribute: attrs}
	}
	inner := func(name string, nodes ...*pb.NodeProto) *pb.AttributeProto {
		last := nodes[len(nodes)-1]
		return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: &pb.GraphProto{Name: proto.String(name), Node: nodes,
			Output: []*pb.ValueInfoProto{{Name: proto.String(last.Output[0])}}}}
	}
	m := gate(n("Neg", "x", "a"), n("If", "c", "r",
		inner("then_branch", n("Neg", "a", "b"), n("Relu", "b", "o")), inner("else_branch", n("Neg", "x", "a2"), n("Abs", "a2", "o2"))))
	node := m.Graph.Nodes[1]
	b, err := m.Body(node, "then_branch")
	if err != nil {
		t.Fatal(err)
	}
	before := proto.Clone(node.Attr("then_branch").G)
	// Outside, "a" and "b" are made since.
	m.Graph.Nodes = append([]*Node{NewNode("", "Abs", "", []string{"x"}, []string{"a"}), NewNode("", "Abs", "", []string{"x"}, []string{"b"})}, m.Graph.Nodes...)
	if err := m.SetBody(node, "then_branch", b); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	g := node.Attr("then_branch").G
	fresh := g.Node[0].Output[0]
	in := g.Node[1].Attribute[0].G
	switch {
	case fresh == "a" || in.Node[0].Input[0] != fresh:
		t.Errorf("the body makes %q, the body in it reads %q", fresh, in.Node[0].Input[0])
	case in.Node[0].Output[0] == "b" || in.Node[1].Input[0] != in.Node[0].Output[0]:
		t.Errorf("the body in it makes %q and reads %q", in.Node[0].Output[0], in.Node[1].Input[0])
	case g.Node[1].Attribute[1].G.Node[0].Output[0] != "a2":
		t.Error("a name that hides nothing was changed")
	}
	if !proto.Equal(before, b.shell.Graph) {
		t.Error("the body that others may share was changed")
	}
}

// TestBodyOfLoop: the inputs that a body has come first, with types from outside where
// it gives none, and stay those of the body that takes its place.
func TestBodyOfLoop(t *testing.T) {
	m := gate()
	body := &pb.GraphProto{Name: proto.String("body"), Node: []*pb.NodeProto{
		{OpType: proto.String("MatMul"), Input: []string{"h", "w"}, Output: []string{"p"}},
		{OpType: proto.String("Add"), Input: []string{"p", "x"}, Output: []string{"next"}},
		{OpType: proto.String("Identity"), Input: []string{"on"}, Output: []string{"on_out"}}}}
	for _, name := range []string{"i", "on", "h"} {
		body.Input = append(body.Input, &pb.ValueInfoProto{Name: proto.String(name)})
	}
	for _, name := range []string{"on_out", "next"} {
		body.Output = append(body.Output, &pb.ValueInfoProto{Name: proto.String(name)})
	}
	n := NewNode("", "Loop", "loop", []string{"", "c", "x"}, []string{"y"}, &pb.AttributeProto{Name: proto.String("body"), Type: pb.AttributeProto_GRAPH.Enum(), G: body})
	m.Graph.Nodes[1] = n
	b, err := m.Body(n, "body")
	if err != nil {
		t.Fatal(err)
	}
	want := []tensor.DType{tensor.Int64, tensor.Bool, tensor.Float32, tensor.Float32}
	for i, name := range []string{"i", "on", "h", "x"} {
		if v := b.Graph.Inputs[i]; v.Name != name || v.Type != want[i] {
			t.Errorf("input %d: %q %v, want %q %v", i, v.Name, v.Type, name, want[i])
		}
	}
	if err := m.SetBody(n, "body", b); err != nil {
		t.Fatal(err)
	}
	if g := n.Attr("body").G; len(g.Input) != 3 || len(g.Initializer) != 0 {
		t.Errorf("inputs %v, constants %v", g.Input, g.Initializer)
	}
	n.Inputs = n.Inputs[:2]
	if _, err := m.Body(n, "body"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "has 3 and needs 2") {
		t.Errorf("a Loop that gives too little: %v", err)
	}
	n.Inputs = []string{"", "", "unknown"}
	if _, err := m.Body(n, "body"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `the type of its input "h"`) {
		t.Errorf("no type: %v", err)
	}
}
