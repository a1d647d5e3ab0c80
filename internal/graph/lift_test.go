package graph

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// model returns a model of float input x and output y around the nodes.
func model(nodes ...*Node) *Model {
	return &Model{IR: 8, Opsets: map[string]int64{"": 17, DomainMS: 1}, Graph: &Graph{
		Inputs:  []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "n"}, {N: 4}}}},
		Outputs: []*Value{{Name: "y"}},
		Info:    map[string]*Value{},
		Nodes:   nodes,
	}}
}

func constant(out string, attrs ...*pb.AttributeProto) *Node {
	return NewNode("", "Constant", "c_"+out, nil, []string{out}, attrs...)
}

func attrTensor(name string, t *tensor.Tensor) *pb.AttributeProto {
	p, err := tensorProto("", t)
	if err != nil {
		panic(err)
	}
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_TENSOR.Enum(), T: p}
}

// branch is a graph attribute whose only node reads the outer value in.
func branch(name, in string) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: &pb.GraphProto{
		Name:   proto.String(name),
		Node:   []*pb.NodeProto{{OpType: proto.String("Relu"), Input: []string{in}, Output: []string{name + "_out"}}},
		Output: []*pb.ValueInfoProto{{Name: proto.String(name + "_out")}},
	}}
}

func TestLiftConstants(t *testing.T) {
	f := func(name string) *pb.AttributeProto { return &pb.AttributeProto{Name: proto.String(name)} }
	floats, strs, str, float := f("value_floats"), f("value_strings"), f("value_string"), f("value_float")
	floats.Floats, strs.Strings, str.S, float.F = []float32{1, 2}, [][]byte{[]byte("a"), nil}, []byte("s"), proto.Float32(.5)
	bad := attrTensor("value", tensor.From([]float32{1}, 1))
	bad.T.RawData = bad.T.RawData[:2]
	sparse := f("sparse_value")
	sparse.SparseTensor = &pb.SparseTensorProto{}
	for _, c := range []struct {
		attr *pb.AttributeProto
		want string // "" means that the node stays
	}{
		{attrTensor("value", tensor.From([]int64{3, 4}, 2)), "INT64[2] [3 4]"},
		{AttrInt("value_int", -7), "INT64[] [-7]"},
		{AttrInts("value_ints", 1, 2, 3), "INT64[3] [1 2 3]"},
		{AttrInts("value_ints"), "INT64[0] []"},
		{float, "FP32[] [0.5]"},
		{floats, "FP32[2] [1 2]"},
		{str, "BYTES[] sha256:"},
		{strs, "BYTES[2] sha256:"},
		{sparse, ""},
		{bad, ""},
		{AttrInt("value", 1), ""},
		{AttrInt("other", 1), ""},
	} {
		m := model(constant("k", c.attr), NewNode("", "Shape", "s", []string{"k"}, []string{"y"}))
		n := LiftConstants(m)
		if (n == 1) != (c.want != "") {
			t.Errorf("%v: lifted %d", c.attr, n)
			continue
		}
		if err := m.Check(); err != nil {
			t.Errorf("%v: %v", c.attr, err)
		}
		if c.want != "" && !strings.HasPrefix(tensorText(m.Graph.Init("k")), c.want) {
			t.Errorf("%v: %s, want %s", c.attr, tensorText(m.Graph.Init("k")), c.want)
		}
	}
}

func TestLiftConstantsKeeps(t *testing.T) {
	k := AttrInt("value_int", 1)
	out := model(constant("y", k))
	if LiftConstants(out) != 0 {
		t.Error("a graph output was lifted")
	}
	two := model(constant("k", k, AttrInt("value_int", 2)), NewNode("", "Identity", "", []string{"k"}, []string{"y"}))
	if LiftConstants(two) != 0 {
		t.Error("two values accepted")
	}
	local := model(constant("k", k), NewNode("", "Identity", "", []string{"k"}, []string{"y"}))
	local.functions = functionsOf(&pb.ModelProto{Functions: []*pb.FunctionProto{{Name: proto.String("Constant")}}})
	if LiftConstants(local) != 0 {
		t.Error("a local function called Constant was taken for the operator")
	}
	// A subgraph reads the constant by name: the initializer serves it.
	m := model(constant("k", attrTensor("value", tensor.From([]float32{1}, 1))), constant("c", attrTensor("value", tensor.From([]bool{true}))),
		NewNode("", "If", "if", []string{"c"}, []string{"y"}, branch("then_branch", "k"), branch("else_branch", "x")))
	if LiftConstants(m) != 2 || m.Graph.Init("k") == nil {
		t.Error("captured constants stay liftable")
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}

func TestDropIdentities(t *testing.T) {
	id := func(in, out string) *Node { return NewNode("", "Identity", "", []string{in}, []string{out}) }
	relu := func(in, out string) *Node { return NewNode("", "Relu", "", []string{in}, []string{out}) }
	yes := attrTensor("value", tensor.From([]bool{true}))
	for _, c := range []struct {
		name  string
		nodes []*Node
		want  int
		left  string // operators and their values that remain
	}{
		{"chain", []*Node{id("x", "a"), id("a", "b"), relu("b", "y")}, 2, "Relu(x)->y"},
		{"at the output", []*Node{relu("x", "a"), id("a", "y")}, 1, "Relu(x)->y"},
		{"at the output, other readers", []*Node{relu("x", "a"), id("a", "y"), NewNode("", "Abs", "", []string{"a"}, []string{"z"})}, 1, "Relu(x)->y Abs(y)->z"},
		{"input to output", []*Node{id("x", "y")}, 0, "Identity(x)->y"},
		{"input to output through two", []*Node{id("x", "a"), id("a", "y")}, 1, "Identity(x)->y"},
		{"weight", []*Node{id("w", "a"), NewNode("", "MatMul", "", []string{"x", "a"}, []string{"y"})}, 1, "MatMul(x,w)->y"},
		{"weight to output", []*Node{id("w", "y")}, 0, "Identity(w)->y"},
		{"captured output stays", []*Node{id("x", "a"), relu("a", "b"), NewNode("", "If", "", []string{"cond"}, []string{"y"}, branch("then_branch", "a"), branch("else_branch", "b"))},
			0, "Identity(x)->a Relu(a)->b If(cond)->y"},
		{"captured input stays", []*Node{relu("x", "a"), id("a", "y"), NewNode("", "If", "", []string{"cond"}, []string{"z"}, branch("then_branch", "a"), branch("else_branch", "x"))},
			0, "Relu(x)->a Identity(a)->y If(cond)->z"},
		{"dropout", []*Node{NewNode("", "Dropout", "", []string{"x", "ratio"}, []string{"a", "mask"}), relu("a", "y")}, 1, "Relu(x)->y"},
		{"dropout training false", []*Node{NewNode("", "Dropout", "", []string{"x", "ratio", "no"}, []string{"a"}), relu("a", "y")}, 1, "Relu(x)->y"},
		{"dropout training true", []*Node{NewNode("", "Dropout", "", []string{"x", "ratio", "cond"}, []string{"a"}), relu("a", "y")}, 0, "Dropout(x,ratio,cond)->a Relu(a)->y"},
		{"dropout mask read", []*Node{NewNode("", "Dropout", "", []string{"x", "ratio"}, []string{"a", "mask"}), NewNode("", "Where", "", []string{"mask", "a", "x"}, []string{"y"})},
			0, "Dropout(x,ratio)->a,mask Where(mask,a,x)->y"},
		{"another domain", []*Node{NewNode(DomainMS, "Identity", "", []string{"x"}, []string{"a"}), relu("a", "y")}, 0, "Identity(x)->a Relu(a)->y"},
	} {
		m := model(c.nodes...)
		g := m.Graph
		g.SetInit("w", tensor.From([]float32{1, 2, 3, 4}, 4, 1))
		g.SetInit("ratio", tensor.From([]float32{.5}))
		g.SetInit("no", tensor.From([]bool{false}))
		g.SetInit("cond", mustTensor(t, yes))
		if n := DropIdentities(m); n != c.want {
			t.Errorf("%s: dropped %d, want %d", c.name, n, c.want)
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var left []string
		for _, n := range g.Nodes {
			left = append(left, fmt.Sprintf("%s(%s)->%s", n.Op, strings.Join(n.Inputs, ","), strings.Join(n.Outputs, ",")))
		}
		if got := strings.Join(left, " "); got != c.left {
			t.Errorf("%s: left %s, want %s", c.name, got, c.left)
		}
		if c.name == "dropout training false" && slices.Contains(g.Inits(), "no") {
			t.Errorf("%s: its inputs stayed", c.name)
		}
	}
}

func mustTensor(t *testing.T, a *pb.AttributeProto) *tensor.Tensor {
	t.Helper()
	v, err := TensorFromProto(a.T)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
