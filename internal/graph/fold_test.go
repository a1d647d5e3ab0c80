package graph

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// goldenTensor is [type, dims, hex bytes] of testdata/*.json.
type goldenTensor struct{ *tensor.Tensor }

func (g *goldenTensor) UnmarshalJSON(b []byte) error {
	var v struct {
		t    tensor.DType
		dims []int64
		hex  string
	}
	if err := json.Unmarshal(b, &[]any{&v.t, &v.dims, &v.hex}); err != nil {
		return err
	}
	t, err := tensor.New(v.t, v.dims...)
	if err != nil {
		return err
	}
	g.Tensor = t
	_, err = hex.Decode(t.Data, []byte(v.hex))
	return err
}

// goldenAttr is [name, kind, value].
type goldenAttr struct{ *pb.AttributeProto }

func (g *goldenAttr) UnmarshalJSON(b []byte) error {
	var name, kind string
	var raw json.RawMessage
	if err := json.Unmarshal(b, &[]any{&name, &kind, &raw}); err != nil {
		return err
	}
	var err error
	switch kind {
	case "int":
		var v int64
		err = json.Unmarshal(raw, &v)
		g.AttributeProto = AttrInt(name, v)
	case "ints":
		var v []int64
		err = json.Unmarshal(raw, &v)
		g.AttributeProto = AttrInts(name, v...)
	case "float":
		var v float32
		err = json.Unmarshal(raw, &v)
		g.AttributeProto = AttrFloat(name, v)
	case "string":
		var v string
		err = json.Unmarshal(raw, &v)
		g.AttributeProto = AttrString(name, v)
	case "tensor":
		var v goldenTensor
		err = json.Unmarshal(raw, &v)
		if err == nil {
			var p *pb.TensorProto
			p, err = tensorProto("", v.Tensor)
			g.AttributeProto = &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_TENSOR.Enum(), T: p}
		}
	default:
		err = fmt.Errorf("attribute kind %q", kind)
	}
	return err
}

func goldenFile(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// powTolerance is in units of the last place: glibc's powf and Go's Pow round
// differently in rare cases.
const powTolerance = 1

// TestFoldAgainstORT: each evaluator gives ONNX Runtime's bytes
// (testdata/gen_fold.py made them).
func TestFoldAgainstORT(t *testing.T) {
	var cases []struct {
		Op    string
		Opset int64
		Attrs []goldenAttr
		In    []*goldenTensor
		Out   goldenTensor
	}
	goldenFile(t, "fold.json", &cases)
	seen := map[string]bool{"Shape": true, "Size": true}
	for i, c := range cases {
		m := &Model{IR: 8, Opsets: map[string]int64{"": c.Opset}, Graph: &Graph{
			Outputs: []*Value{{Name: "out"}},
			Info:    map[string]*Value{},
		}}
		n := NewNode("", c.Op, "n", nil, []string{"y"})
		for _, a := range c.Attrs {
			n.Attrs = append(n.Attrs, a.AttributeProto)
		}
		for k, in := range c.In {
			name := ""
			if in != nil {
				name = fmt.Sprint("i", k)
				m.Graph.SetInit(name, in.Tensor)
			}
			n.Inputs = append(n.Inputs, name)
		}
		// The reader keeps y from being an output, which is never folded.
		m.Graph.Nodes = []*Node{n, NewNode("", "Relu", "r", []string{"y"}, []string{"out"})}
		label := fmt.Sprintf("case %d: %s", i, n)
		seen[c.Op] = true
		if FoldConstants(m) != 1 {
			t.Errorf("%s: not folded", label)
			continue
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", label, err)
		}
		if got := len(m.Graph.Inits()); got != 1 {
			t.Errorf("%s: %d initializers left", label, got)
		}
		got, want := m.Graph.Init(m.Graph.Nodes[0].Inputs[0]), c.Out.Tensor
		if got.Type != want.Type || fmt.Sprint(got.Dims) != fmt.Sprint(want.Dims) && len(got.Dims)+len(want.Dims) > 0 {
			t.Errorf("%s: %v%v, want %v%v", label, got.Type, got.Dims, want.Type, want.Dims)
		} else if string(got.Data) != string(want.Data) && (c.Op != "Pow" || !nearly(got, want)) && !sameNaNs(got, want) {
			t.Errorf("%s: %x, want %x", label, got.Data, want.Data)
		}
	}
	for op := range evaluators {
		if !seen[op] {
			t.Errorf("no golden case for %s", op)
		}
	}
}

func nearly(a, b *tensor.Tensor) bool {
	x, y := tensor.View[int32](a), tensor.View[int32](b)
	for i := range x {
		if abs(int64(x[i])-int64(y[i])) > powTolerance {
			return false
		}
	}
	return a.Type == tensor.Float32
}

// sameNaNs reports equality except for the bits inside a NaN.
func sameNaNs(a, b *tensor.Tensor) bool {
	x, err := a.F32()
	y, err2 := b.F32()
	if err != nil || err2 != nil {
		return false
	}
	for i := range x {
		if math.Float32bits(x[i]) != math.Float32bits(y[i]) && !(math.IsNaN(float64(x[i])) && math.IsNaN(float64(y[i]))) {
			return false
		}
	}
	return true
}
