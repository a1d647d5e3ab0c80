package graph

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// goldenDim is a number, a name, or "?".
type goldenDim struct{ Dim }

func (d *goldenDim) UnmarshalJSON(b []byte) error {
	d.N = -1
	if b[0] != '"' {
		return json.Unmarshal(b, &d.N)
	}
	return json.Unmarshal(b, &d.Name)
}

func plain(g []goldenDim) []Dim {
	if g == nil {
		return nil
	}
	d := make([]Dim, len(g))
	for i, x := range g {
		d[i] = x.Dim
	}
	return d
}

// goldenValue is [type, dims or null].
type goldenValue struct {
	Type tensor.DType
	Dims []goldenDim
}

func (v *goldenValue) UnmarshalJSON(b []byte) error {
	return json.Unmarshal(b, &[]any{&v.Type, &v.Dims})
}

// TestShapesAgainstONNX: inference knows at least what onnx.shape_inference
// knows (com.microsoft: the shapes that ONNX Runtime produced), and never
// something else (testdata/gen_shapes.py).
func TestShapesAgainstONNX(t *testing.T) {
	var cases []struct {
		Op, Domain string
		Opset      int64
		Attrs      []goldenAttr
		In         []*struct {
			Type  tensor.DType
			Dims  []goldenDim
			Const *goldenTensor
		}
		Out []goldenValue
	}
	goldenFile(t, "shapes.json", &cases)
	for i, c := range cases {
		m := &Model{IR: 10, Opsets: map[string]int64{"": c.Opset, DomainMS: 1}, Graph: &Graph{}}
		n := NewNode(c.Domain, c.Op, "n", nil, nil)
		for _, a := range c.Attrs {
			n.Attrs = append(n.Attrs, a.AttributeProto)
		}
		for k, in := range c.In {
			name := fmt.Sprint("i", k)
			switch {
			case in == nil:
				name = ""
			case in.Const != nil:
				m.Graph.SetInit(name, in.Const.Tensor)
			default:
				m.Graph.Inputs = append(m.Graph.Inputs, &Value{Name: name, Type: in.Type, Dims: plain(in.Dims)})
			}
			n.Inputs = append(n.Inputs, name)
		}
		for k := range c.Out {
			n.Outputs = append(n.Outputs, fmt.Sprint("o", k))
		}
		m.Graph.Nodes = []*Node{n}
		InferShapes(m)
		label := fmt.Sprintf("case %d: %s", i, n)
		for k, want := range c.Out {
			got := m.Graph.Info[n.Outputs[k]]
			if got == nil {
				t.Errorf("%s: output %d is unknown", label, k)
				continue
			}
			if got.Type != want.Type {
				t.Errorf("%s: output %d is %v, want %v", label, k, got, want.Type)
			}
			if want.Dims == nil {
				continue
			}
			if got.Dims == nil || len(got.Dims) != len(want.Dims) {
				t.Errorf("%s: output %d is %v, want %v", label, k, got, want.Dims)
				continue
			}
			for j, w := range want.Dims {
				g := got.Dims[j]
				switch {
				case w.N >= 0 && g.N != w.N, w.N < 0 && w.Name != "?" && g != w.Dim:
					t.Errorf("%s: output %d is %v, want %v", label, k, got, want.Dims)
				}
			}
		}
	}
}

// TestInferShapesTrust: what the file says of an inner value fills gaps, and
// loses where it contradicts the operators.
func TestInferShapesTrust(t *testing.T) {
	m := model(
		NewNode("", "Relu", "", []string{"x"}, []string{"a"}),
		NewNode(DomainMS, "Mystery", "", []string{"a"}, []string{"b"}),
		NewNode("", "Relu", "", []string{"b"}, []string{"c"}),
		NewNode("", "NonZero", "", []string{"c"}, []string{"y"}),
	)
	m.Graph.Info["a"] = &Value{Name: "a", Type: tensor.Int8, Dims: fixed([]int64{9, 9, 9})}
	m.Graph.Info["b"] = &Value{Name: "b", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "k"}, {N: 7}}}
	m.Graph.Outputs[0].Dims = []Dim{{N: -1, Name: "declared"}, {N: -1}}
	InferShapes(m)
	for name, want := range map[string]string{"a": "a FP32[n,4]", "b": "b FP32[k,7]", "c": "c FP32[k,7]", "y": "y INT64[2,?]"} {
		if got := m.Graph.Info[name].String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := m.Graph.Outputs[0].String(); got != "y INT64[declared,?]" {
		t.Errorf("output %s", got)
	}
	// Folding believes the operators only.
	lie := model(NewNode("", "Relu", "", []string{"any"}, []string{"a"}), NewNode("", "Shape", "", []string{"a"}, []string{"s"}), NewNode("", "Relu", "", []string{"s"}, []string{"y"}))
	lie.Graph.Inputs = append(lie.Graph.Inputs, &Value{Name: "any", Type: tensor.Float32})
	lie.Graph.Info["a"] = &Value{Name: "a", Type: tensor.Float32, Dims: fixed([]int64{1, 2})}
	if FoldConstants(lie) != 0 {
		t.Error("a shape was folded from what the file says of an inner value")
	}
}

// TestGatherBlocksShape: packed codes count twice along the last axis; what is gathered has the type of the scales.
func TestGatherBlocksShape(t *testing.T) {
	for _, c := range []struct {
		data tensor.DType
		node *Node
		want string
	}{
		{tensor.Uint8, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil), "y FP16[n,3,64]"},
		{tensor.Uint8, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil, AttrInt("bits", 8)), "y FP16[n,3,32]"},
		{tensor.Int4, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil), "y FP16[n,3,32]"},
		{tensor.Uint8, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil, AttrInt("gather_axis", 1)), "y FP16[7,n,3]"},
		{tensor.Uint8, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil, AttrInt("gather_axis", 2)), "y FP16[...]"},
		{tensor.Uint8, NewNode(DomainMS, "GatherBlockQuantized", "", nil, nil, AttrInt("bits", 0)), "y FP16[...]"},
	} {
		c.node.Inputs, c.node.Outputs = []string{"data", "ids", "scales"}, []string{"y"}
		m := &Model{Opsets: map[string]int64{"": 17, DomainMS: 1}, Graph: &Graph{Nodes: []*Node{c.node}, Inputs: []*Value{
			{Name: "data", Type: c.data, Dims: fixed([]int64{7, 32})},
			{Name: "ids", Type: tensor.Int64, Dims: []Dim{{N: -1, Name: "n"}, {N: 3}}},
			{Name: "scales", Type: tensor.Float16, Dims: fixed([]int64{7, 2})},
		}}}
		InferShapes(m)
		if got := m.Graph.Info["y"].String(); got != c.want {
			t.Errorf("%v %v: %s, want %s", c.data, c.node.Attrs, got, c.want)
		}
	}
}

// bertMACs is the textbook count for a transformer encoder without its pooler.
func bertMACs(layers, hidden, inner, seq int64) int64 {
	return layers * (seq*(4*hidden*hidden+2*hidden*inner) + 2*seq*seq*hidden)
}

func TestMACs(t *testing.T) {
	bind := map[string]int64{"batch": 1, "batch_size": 1, "sequence": 128, "sequence_length": 128, "total_sequence_length": 128}
	apart := map[string]int64{"batch": 1} // one name for two dimensions
	for _, in := range []string{"input_ids", "attention_mask", "token_type_ids"} {
		apart[in+"[1]"] = 128
	}
	pooler := func(hidden int64) int64 { return hidden * hidden }
	for _, c := range []struct {
		model string
		bind  map[string]int64
		want  int64
	}{
		{"minilm-fused", bind, bertMACs(6, 384, 1536, 128)},
		{"minilm", apart, bertMACs(6, 384, 1536, 128) + pooler(384)},
		{"bert-base", bind, bertMACs(12, 768, 3072, 128) + pooler(768)},
	} {
		path := "../../.deps/models/" + c.model + "/model.onnx"
		if _, err := os.Stat(path); err != nil {
			t.Logf("skipped: needs .deps/models/%s (make deps)", c.model)
			continue
		}
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, v := range MACs(m, c.bind) {
			sum += v
		}
		if sum != c.want {
			t.Errorf("%s: %d, want %d", c.model, sum, c.want)
		}
		// Without sizes the activations' products are unknown, and left out.
		for n := range MACs(m, nil) {
			if !strings.Contains(n.Op, "Gemm") {
				t.Errorf("%s: %s counted without a batch size", c.model, n)
			}
		}
		m.Close()
	}
}

// TestMACsByHand counts single operators.
func TestMACsByHand(t *testing.T) {
	f := tensor.Float32
	for _, c := range []struct {
		node *Node
		in   []string // "2,3,4" each
		want int64
	}{
		{NewNode("", "Conv", "", nil, nil, AttrInts("pads", 1, 1, 1, 1)), []string{"2,3,8,8", "16,3,3,3"}, 2 * 16 * 8 * 8 * 3 * 9},
		{NewNode("", "Conv", "", nil, nil, AttrInt("group", 4)), []string{"1,4,8,8", "4,1,3,3"}, 4 * 6 * 6 * 9},
		{NewNode("", "ConvTranspose", "", nil, nil, AttrInts("strides", 2, 2)), []string{"1,3,4,4", "3,5,2,2"}, 3 * 16 * 5 * 4},
		{NewNode("", "Gemm", "", nil, nil), []string{"2,3", "3,4", "4"}, 2 * 3 * 4},
		{NewNode("", "Gemm", "", nil, nil, AttrInt("transA", 1), AttrInt("transB", 1)), []string{"3,2", "4,3"}, 2 * 3 * 4},
		{NewNode("", "MatMul", "", nil, nil), []string{"2,5,3,4", "5,4,6"}, 2 * 5 * 3 * 4 * 6},
		{NewNode("", "MatMul", "", nil, nil), []string{"7", "7"}, 7},
		{NewNode("", "MatMul", "", nil, nil), []string{"4096,65536", "65536,65536"}, 1 << 44}, // more than any tensor has elements
		{NewNode(DomainMS, "FusedMatMul", "", nil, nil, AttrInt("transA", 1)), []string{"2,4,3", "2,4,6"}, 2 * 3 * 4 * 6},
		{NewNode(DomainMS, "MultiHeadAttention", "", nil, nil, AttrInt("num_heads", 4)), []string{"2,3,8", "2,5,8", "2,5,12"}, 2 * 3 * 5 * (8 + 12)},
		{NewNode(DomainMS, "Attention", "", nil, nil, AttrInt("num_heads", 4)), []string{"2,3,6", "6,24", "24"}, 2*3*6*24 + 2*3*3*16},
		{NewNode("", "Attention", "", nil, nil), []string{"2,4,3,8", "2,4,5,8", "2,4,5,16"}, 2 * 4 * 3 * 5 * (8 + 16)},
		{NewNode("", "LSTM", "", nil, nil), []string{"5,2,10", "1,80,10", "1,80,20"}, 5 * 2 * 80 * 30},
		{NewNode("", "MatMulInteger", "", nil, nil), []string{"2,3", "3,4"}, 24},
		{NewNode(DomainMS, "MatMulNBits", "", nil, nil, AttrInt("N", 5), AttrInt("K", 32)), []string{"2,3,32"}, 2 * 3 * 32 * 5},
		{NewNode("", "Relu", "", nil, nil), []string{"2,3"}, -1},
		{NewNode("", "Add", "", nil, nil), []string{"2,3", "2,3"}, -1},
	} {
		m := &Model{Opsets: map[string]int64{"": 23, DomainMS: 1}, Graph: &Graph{Nodes: []*Node{c.node}}}
		for i, s := range c.in {
			var dims []int64
			if err := json.Unmarshal([]byte("["+s+"]"), &dims); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprint("i", i)
			m.Graph.Inputs = append(m.Graph.Inputs, &Value{Name: name, Type: f, Dims: fixed(dims)})
			c.node.Inputs = append(c.node.Inputs, name)
		}
		c.node.Outputs = []string{"y"}
		got, ok := MACs(m, nil)[c.node]
		if !ok {
			got = -1
		}
		if got != c.want {
			t.Errorf("%s on %v: %d, want %d", c.node.Op, c.in, got, c.want)
		}
	}
}
