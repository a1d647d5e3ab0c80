package graph

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// textValues is the element count up to which the text form shows a tensor's
// values; larger ones show the first bytes of their SHA-256.
const textValues = 8

// WriteText writes the model's stable text form: the same model gives the same
// text, one line a fact, for golden files, --dump-pass and people.
//
//	ir 8
//	opset ai.onnx 17
//	input x FP32[batch,3]
//	init w FP32[3,4] sha256:0123456789ab
//	node MatMul "fc" (x, w) -> (y) {alpha=1}
//	output y FP32[batch,4]
func (m *Model) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "ir %d\n", m.IR)
	for _, d := range sortedKeys(m.Opsets) {
		name := d
		if name == "" {
			name = "ai.onnx"
		}
		fmt.Fprintf(b, "opset %s %d\n", name, m.Opsets[d])
	}
	for _, k := range sortedKeys(m.Metadata) {
		fmt.Fprintf(b, "meta %s %q\n", k, m.Metadata[k])
	}
	g := m.Graph
	for _, v := range g.Inputs {
		fmt.Fprintf(b, "input %s\n", v)
	}
	for _, name := range g.order {
		fmt.Fprintf(b, "init %s %s\n", name, tensorText(g.inits[name]))
	}
	for _, n := range g.Nodes {
		fmt.Fprintf(b, "node %s\n", n)
	}
	for _, v := range g.Outputs {
		fmt.Fprintf(b, "output %s\n", v)
	}
	return b.Flush()
}

// Text returns the stable text form as a string.
func (m *Model) Text() string {
	var b strings.Builder
	_ = m.WriteText(&b) // a strings.Builder does not fail
	return b.String()
}

// String returns "name TYPE[dims]".
func (v *Value) String() string {
	if v.proto != nil {
		return v.Name + " (not a tensor)"
	}
	if v.Type == tensor.Undefined {
		return v.Name + " ?"
	}
	if v.Dims == nil {
		return fmt.Sprintf("%s %v[...]", v.Name, v.Type)
	}
	d := make([]string, len(v.Dims))
	for i, x := range v.Dims {
		switch {
		case x.N >= 0:
			d[i] = strconv.FormatInt(x.N, 10)
		case x.Name != "":
			d[i] = x.Name
		default:
			d[i] = "?"
		}
	}
	return fmt.Sprintf("%s %v[%s]", v.Name, v.Type, strings.Join(d, ","))
}

// String returns the node's line of the text form.
func (n *Node) String() string {
	op := n.Op
	if n.Domain != "" {
		op = n.Domain + "." + op
	}
	s := fmt.Sprintf("%s %q (%s) -> (%s)", op, n.Name, strings.Join(n.Inputs, ", "), strings.Join(n.Outputs, ", "))
	if len(n.Attrs) == 0 {
		return s
	}
	a := make([]string, len(n.Attrs))
	for i, x := range n.Attrs {
		a[i] = attrText(x)
	}
	sort.Strings(a)
	return s + " {" + strings.Join(a, ", ") + "}"
}

func attrText(a *pb.AttributeProto) string {
	var v string
	switch a.GetType() {
	case pb.AttributeProto_FLOAT:
		v = strconv.FormatFloat(float64(a.GetF()), 'g', -1, 32)
	case pb.AttributeProto_INT:
		v = strconv.FormatInt(a.GetI(), 10)
	case pb.AttributeProto_STRING:
		v = strconv.Quote(string(a.GetS()))
	case pb.AttributeProto_INTS:
		v = strings.ReplaceAll(fmt.Sprint(a.GetInts()), " ", ",")
	case pb.AttributeProto_FLOATS:
		v = strings.ReplaceAll(fmt.Sprint(a.GetFloats()), " ", ",")
	case pb.AttributeProto_TENSOR:
		if t, err := TensorFromProto(a.GetT()); err == nil {
			v = tensorText(t)
		} else {
			v = "bad tensor"
		}
	case pb.AttributeProto_GRAPH:
		v = fmt.Sprintf("graph(%d nodes)", len(a.GetG().GetNode()))
	default:
		v = a.GetType().String()
	}
	return a.GetName() + "=" + v
}

func tensorText(t *tensor.Tensor) string {
	head := fmt.Sprintf("%v%s", t.Type, strings.ReplaceAll(fmt.Sprint(t.Dims), " ", ","))
	if t.Len() <= textValues {
		switch t.Type {
		case tensor.Float32:
			return head + " " + fmt.Sprint(tensor.View[float32](t))
		case tensor.Int64:
			return head + " " + fmt.Sprint(tensor.View[int64](t))
		case tensor.Int32:
			return head + " " + fmt.Sprint(tensor.View[int32](t))
		case tensor.Int8:
			return head + " " + fmt.Sprint(tensor.View[int8](t))
		case tensor.Uint8, tensor.Bool:
			return fmt.Sprintf("%s %d", head, t.Data)
		}
	}
	h := sha256.New()
	h.Write(t.Data)
	for _, s := range t.Strings {
		fmt.Fprintf(h, "%d:", len(s))
		h.Write(s)
	}
	return fmt.Sprintf("%s sha256:%x", head, h.Sum(nil)[:6])
}
