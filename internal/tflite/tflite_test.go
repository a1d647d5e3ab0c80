package tflite

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	flatbuffers "github.com/google/flatbuffers/go"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

var update = flag.Bool("update", false, "write testdata")

// builder makes a model value by value.
type builder struct {
	m *graph.Model
	t *testing.T
	n int
}

func newBuilder(t *testing.T, dims ...int64) *builder {
	t.Helper()
	m, err := graph.FromProto(&pb.ModelProto{IrVersion: ptr(int64(8)), OpsetImport: []*pb.OperatorSetIdProto{{Version: ptr(int64(17))}}, Graph: &pb.GraphProto{}})
	if err != nil {
		t.Fatal(err)
	}
	v := &graph.Value{Name: "x", Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "batch"}}}
	for _, d := range dims {
		v.Dims = append(v.Dims, graph.Dim{N: d})
	}
	m.Graph.Inputs = []*graph.Value{v}
	return &builder{m: m, t: t}
}

func ptr[T any](v T) *T { return &v }

func (b *builder) op(kind string, in []string, attrs ...*pb.AttributeProto) string {
	b.n++
	out := fmt.Sprintf("%s%d", strings.ToLower(kind[:1]), b.n)
	b.m.Graph.Nodes = append(b.m.Graph.Nodes, graph.NewNode(graph.DomainONNX, kind, fmt.Sprint(kind, b.n), in, []string{out}, attrs...))
	return out
}

func (b *builder) init(t *tensor.Tensor) string {
	b.n++
	name := fmt.Sprint("c", b.n)
	b.m.Graph.SetInit(name, t)
	return name
}

// codes puts a value through QuantizeLinear and DequantizeLinear with uint8 codes.
func (b *builder) codes(x string, scale float32, zero uint8) string {
	s, z := b.init(tensor.From([]float32{scale})), b.init(tensor.From([]uint8{zero}))
	return b.op("DequantizeLinear", []string{b.op("QuantizeLinear", []string{x, s, z}), s, z})
}

func (b *builder) weight(codes []int8, scale []float32, dims ...int64) string {
	return b.op("DequantizeLinear", []string{b.init(tensor.From(codes, dims...)), b.init(tensor.From(scale, int64(len(scale))))}, graph.AttrInt("axis", 0))
}

func (b *builder) output(names ...string) *graph.Model {
	for _, n := range names {
		b.m.Graph.Outputs = append(b.m.Graph.Outputs, &graph.Value{Name: n, Type: tensor.Float32})
	}
	if err := b.m.Check(); err != nil {
		b.t.Fatal(err)
	}
	return b.m
}

// classifier is a small quantized one: convolution with ReLU6, a depthwise one with
// a border that SAME is not, pool, product.
func classifier(t *testing.T) *graph.Model {
	b := newBuilder(t, 2, 5, 5)
	x := b.codes("x", 0.02, 120)
	bias := b.op("DequantizeLinear", []string{b.init(tensor.From([]int32{5, -7, 9}, 3)), b.init(tensor.From([]float32{0.02 * 0.1, 0.02 * 0.2, 0.02 * 0.3}, 3))}, graph.AttrInt("axis", 0))
	w := b.weight([]int8{1, 2, 3, 4, 5, 6}, []float32{0.1, 0.2, 0.3}, 3, 2, 1, 1)
	c := b.op("Clip", []string{b.op("Conv", []string{x, w, bias}), b.init(tensor.From([]float32{0})), b.init(tensor.From([]float32{6}))})
	d := b.codes(c, 6./255, 0)
	taps := make([]int8, 27)
	for i := range taps {
		taps[i] = int8(i)
	}
	e := b.codes(b.op("Conv", []string{d, b.weight(taps, []float32{0.01, 0.02, 0.03}, 3, 1, 3, 3)}, graph.AttrInt("group", 3), graph.AttrInts("pads", 1, 1, 1, 1), graph.AttrInts("strides", 2, 2)), 0.05, 128)
	p := b.codes(b.op("GlobalAveragePool", []string{e}), 0.04, 100)
	f := b.codes(b.op("Flatten", []string{p}), 0.04, 100)
	g := b.op("Gemm", []string{f, b.weight([]int8{1, 2, 3, 4, 5, 6}, []float32{0.1, 0.2}, 2, 3)}, graph.AttrInt("transB", 1))
	return b.output(g)
}

// reader walks a FlatBuffer without knowing the writer.
type reader struct{ flatbuffers.Table }

func (r reader) field(slot int) int { return int(r.Offset(flatbuffers.VOffsetT(4 + 2*slot))) }

func (r reader) table(slot int) (reader, bool) {
	o := r.field(slot)
	if o == 0 {
		return reader{}, false
	}
	return reader{flatbuffers.Table{Bytes: r.Bytes, Pos: r.Indirect(r.Pos + flatbuffers.UOffsetT(o))}}, true
}

func (r reader) tables(slot int) []reader {
	o := r.field(slot)
	if o == 0 {
		return nil
	}
	var v []reader
	at := r.Vector(flatbuffers.UOffsetT(o))
	for i := range r.VectorLen(flatbuffers.UOffsetT(o)) {
		v = append(v, reader{flatbuffers.Table{Bytes: r.Bytes, Pos: r.Indirect(at + flatbuffers.UOffsetT(4*i))}})
	}
	return v
}

func values[T any](r reader, slot, size int, get func(flatbuffers.UOffsetT) T) []T {
	o := r.field(slot)
	if o == 0 {
		return nil
	}
	var v []T
	at := r.Vector(flatbuffers.UOffsetT(o))
	for i := range r.VectorLen(flatbuffers.UOffsetT(o)) {
		v = append(v, get(at+flatbuffers.UOffsetT(size*i)))
	}
	return v
}

func (r reader) text(slot int) string {
	if o := r.field(slot); o != 0 {
		return r.String(r.Pos + flatbuffers.UOffsetT(o))
	}
	return ""
}

// dump writes what a file holds as text.
func dump(file []byte) string {
	var b strings.Builder
	root := reader{flatbuffers.Table{Bytes: file, Pos: flatbuffers.GetUOffsetT(file)}}
	fmt.Fprintf(&b, "%s, schema %d, %s\n", file[4:8], root.GetUint32Slot(4, 0), root.text(3))
	codes, buffers := root.tables(1), root.tables(4)
	main := root.tables(2)[0]
	tensors := main.tables(0)
	show := func(i int32) string {
		if i < 0 {
			return "-"
		}
		t := tensors[i]
		s := fmt.Sprintf("%s %s%v", t.text(3), map[int8]string{0: "float32", 1: "float16", 2: "int32", 4: "int64", 7: "int16", 9: "int8"}[t.GetInt8Slot(6, 0)], values(t, 0, 4, t.GetInt32))
		if v := values(t, 7, 4, t.GetInt32); v != nil {
			s += fmt.Sprintf(" as %v", v)
		}
		if q, ok := t.table(4); ok {
			s += fmt.Sprintf(" scale %v zero %v axis %d", values(q, 2, 4, q.GetFloat32), values(q, 3, 8, q.GetInt64), q.GetInt32Slot(16, 0))
		}
		if n := t.GetUint32Slot(8, 0); n != 0 {
			data := values(buffers[n], 0, 1, buffers[n].GetByte)
			switch t.GetInt8Slot(6, 0) {
			case 9:
				s += fmt.Sprint(" = ", tensor.View[int8](&tensor.Tensor{Data: data}))
			case 1:
				s += fmt.Sprint(" = ", tensor.View[uint16](&tensor.Tensor{Data: data}))
			case 4:
				s += fmt.Sprint(" = ", tensor.View[int64](&tensor.Tensor{Data: data}))
			case 7:
				s += fmt.Sprint(" = ", tensor.View[int16](&tensor.Tensor{Data: data}))
			case 2:
				s += fmt.Sprint(" = ", tensor.View[int32](&tensor.Tensor{Data: data}))
			default:
				s += fmt.Sprint(" = ", tensor.View[float32](&tensor.Tensor{Data: data}))
			}
		}
		return s
	}
	for _, o := range main.tables(3) {
		code := codes[o.GetUint32Slot(4, 0)]
		fmt.Fprintf(&b, "%v version %d\n", opcode(code.GetInt32Slot(10, 0)), code.GetInt32Slot(8, 1))
		for _, i := range values(o, 1, 4, o.GetInt32) {
			fmt.Fprintf(&b, "  <- %s\n", show(i))
		}
		for _, i := range values(o, 2, 4, o.GetInt32) {
			fmt.Fprintf(&b, "  -> %s\n", show(i))
		}
	}
	return b.String()
}

// The whole file of a small classifier, read back by the format's own accessors.
func TestClassifier(t *testing.T) {
	res, err := Convert(classifier(t), Options{Description: "test"})
	if err != nil {
		t.Fatal(err)
	}
	got := dump(res.File)
	const golden = "testdata/classifier.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the file changed (go test ./internal/tflite -update writes it):\n%s", got)
	}
	if res.Integer != 3 || res.Float != 1 {
		t.Errorf("%d operators on int8 and %d on float, expected 3 and 1", res.Integer, res.Float)
	}
	if p := res.Inputs[0]; !slices.Equal(p.Shape, []int32{-1, 5, 5, 2}) {
		t.Errorf("input %v, expected channels last", p.Shape)
	}
}

// Reordering is its own inverse under the inverse order, and element by element what
// indices say.
func TestPermute(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		dims := make([]int32, 1+rng.IntN(5))
		n := 1
		for i := range dims {
			dims[i] = int32(1 + rng.IntN(4))
			n *= int(dims[i])
		}
		perm := rng.Perm(len(dims))
		size := []int{1, 4}[rng.IntN(2)]
		data := make([]byte, n*size)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		got := permute(data, dims, perm, size)
		to := reorder(dims, perm)
		for o := range n {
			at, rest := make([]int, len(dims)), o
			for i := len(to) - 1; i >= 0; i-- {
				at[perm[i]] = rest % int(to[i])
				rest /= int(to[i])
			}
			from := 0
			for i, a := range at {
				from = from*int(dims[i]) + a
			}
			if !slices.Equal(got[o*size:(o+1)*size], data[from*size:(from+1)*size]) {
				t.Fatalf("dims %v, order %v: element %d", dims, perm, o)
			}
		}
	}
}

// A bias whose scale is not the product of the other two is computed anew.
func TestBiasAnew(t *testing.T) {
	b := newBuilder(t, 1, 2, 2)
	x := b.codes("x", 0.5, 128)
	bias := b.op("DequantizeLinear", []string{b.init(tensor.From([]int32{10}, 1)), b.init(tensor.From([]float32{0.3}, 1))}, graph.AttrInt("axis", 0))
	y := b.codes(b.op("Conv", []string{x, b.weight([]int8{3}, []float32{0.25}, 1, 1, 1, 1), bias}), 1, 128)
	res, err := Convert(b.output(y), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := dump(res.File); !strings.Contains(d, "int32[1] scale [0.125] zero [0] axis 0 = [24]") { // 10*0.3/(0.5*0.25)
		t.Errorf("the bias was not computed anew:\n%s", d)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		build func(b *builder) string
		err   error
		says  string
	}{
		"operators without a form": {func(b *builder) string { return b.op("Erf", []string{b.op("Sin", []string{"x"})}) }, ErrUnsupported, "Erf, Sin; it is there for Add,"},
		"products of two values": {func(b *builder) string {
			y := b.op("Flatten", []string{"x"})
			return b.op("MatMul", []string{y, b.op("Transpose", []string{y})})
		}, ErrUnsupported, "products of two computed values"},
		"groups that do not divide": {func(b *builder) string {
			return b.op("Conv", []string{"x", b.init(tensor.From(make([]float32, 3), 3, 1, 1, 1))}, graph.AttrInt("group", 7))
		}, ErrUnsupported, "7 groups"},
		"a scale of zero": {func(b *builder) string { return b.codes("x", 0, 1) }, ErrUnsupported, "not one positive constant"},
		"a border of ones": {func(b *builder) string {
			return b.op("Pad", []string{"x", b.init(tensor.From([]int64{0, 0, 1, 1, 0, 0, 1, 1}, 8)), b.init(tensor.From([]float32{1}))})
		}, ErrUnsupported, "a border of 1"},
		"another scale than the codes'": {func(b *builder) string {
			s, z := b.init(tensor.From([]float32{1})), b.init(tensor.From([]uint8{3}))
			return b.op("DequantizeLinear", []string{b.op("QuantizeLinear", []string{"x", s, z}), b.init(tensor.From([]float32{2})), z})
		}, ErrUnsupported, "another scale"},
		"channels last beside more dimensions": {func(b *builder) string {
			return b.op("Add", []string{b.op("Unsqueeze", []string{"x", b.init(tensor.From([]int64{0}, 1))}), b.op("Relu", []string{"x"})})
		}, ErrUnsupported, "of rank 4 is broadcast to rank 5"},
		"a resize between neighbours of its own": {func(b *builder) string {
			return b.op("Resize", []string{"x", "", b.init(tensor.From([]float32{1, 1, 2, 2}, 4))}, graph.AttrString("mode", "cubic"))
		}, ErrUnsupported, "cubic with half_pixel"},
		"a resize of channels": {func(b *builder) string {
			return b.op("Resize", []string{"x", "", b.init(tensor.From([]float32{1, 2, 2, 2}, 4))})
		}, ErrUnsupported, "from [1 2 4 4] to [1 4 8 8]"},
		"a resize to more than is taken": {func(b *builder) string {
			return b.op("Resize", []string{"x", "", b.init(tensor.From([]float32{1, 1, 1, 1e6}, 4))})
		}, ErrUnsupported, "height and width of up to"},
		"a product with a factor": {func(b *builder) string {
			return b.op("Gemm", []string{b.op("Flatten", []string{"x"}), b.init(tensor.From(make([]float32, 96), 32, 3))}, graph.AttrFloat("alpha", 0.5))
		}, ErrUnsupported, "alpha 0.5, beta 1, transA 0"},
		"neighbours that no kernel takes": {func(b *builder) string {
			return b.op("Resize", []string{"x", "", b.init(tensor.From([]float32{1, 1, 1.5, 1.5}, 4))}, graph.AttrString("nearest_mode", "ceil"))
		}, ErrUnsupported, "nearest with half_pixel"},
	} {
		b := newBuilder(t, 2, 4, 4)
		_, err := Convert(b.output(c.build(b)), Options{})
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, expected %q", name, err, c.says)
		}
	}
}

// A constant of rank 4 beside a value of more dimensions stays in ONNX's order, as the value does.
func TestConstantBesideMoreDimensions(t *testing.T) {
	b := newBuilder(t, 2, 1, 3)
	five := b.op("Unsqueeze", []string{"x", b.init(tensor.From([]int64{0}, 1))})
	res, err := Convert(b.output(b.op("Add", []string{five, b.init(tensor.From([]float32{0, 1, 2, 3, 4, 5}, 1, 2, 1, 3))})), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := dump(res.File); !strings.Contains(got, "float32[1 1 2 1 3] = [0 1 2 3 4 5]") {
		t.Errorf("the constant is not as it was:\n%s", got)
	}
}

// Before opset 11 a Resize begins at the corner, and has its scales elsewhere.
func TestOldResize(t *testing.T) {
	for _, c := range []struct {
		opset int64
		mode  string
		scale float32
		half  bool
	}{{10, "linear", 2, false}, {10, "nearest", 2, false}, {10, "nearest", 1. / 3, false}, {11, "linear", 2, true}} {
		b := newBuilder(t, 2, 6, 6)
		b.m.Opsets[graph.DomainONNX] = c.opset
		in := []string{"x", b.init(tensor.From([]float32{1, 1, c.scale, c.scale}, 4))}
		if c.opset >= 11 {
			in = []string{"x", "", in[1]}
		}
		res, err := Convert(b.output(b.op("Resize", in, graph.AttrString("mode", c.mode))), Options{})
		if err != nil {
			t.Errorf("opset %d, %s by %g: %v", c.opset, c.mode, c.scale, err)
			continue
		}
		root := reader{flatbuffers.Table{Bytes: res.File, Pos: flatbuffers.GetUOffsetT(res.File)}}
		o, _ := root.tables(2)[0].tables(3)[0].table(4)
		slot := flatbuffers.VOffsetT(4 + 2*3)
		if c.mode == "nearest" {
			slot = 4 + 2*1
		}
		if half := o.GetBoolSlot(slot, false); half != c.half {
			t.Errorf("opset %d, %s by %g: half pixels %v, expected %v", c.opset, c.mode, c.scale, half, c.half)
		}
	}
}

func TestShapes(t *testing.T) {
	build := func() *graph.Model {
		b := newBuilder(t, 3, 4, 4)
		b.m.Graph.Inputs[0].Dims[2] = graph.Dim{N: -1, Name: "height"}
		return b.output(b.op("Relu", []string{"x"}))
	}
	if _, err := Convert(build(), Options{}); !errors.Is(err, ErrShapes) || !strings.Contains(err.Error(), "as x=1,3,224,4") {
		t.Errorf("%v, expected an example of a shape", err)
	}
	for _, s := range []map[string][]int64{{"y": {1}}, {"x": {1, 3, 4}}, {"x": {1, 5, 4, 4}}} {
		if _, err := Convert(build(), Options{Shapes: s}); !errors.Is(err, ErrShapes) {
			t.Errorf("%v: %v, expected %v", s, err, ErrShapes)
		}
	}
	res, err := Convert(build(), Options{Shapes: map[string][]int64{"x": {2, 3, 6, 4}}})
	if err != nil || !slices.Equal(res.Inputs[0].Shape, []int32{-1, 6, 4, 3}) {
		t.Errorf("%v, %v", err, res)
	}
}

// mobile holds the operators that classifier does not, as float and as codes.
func mobile(t *testing.T) *graph.Model {
	b := newBuilder(t, 4, 6, 5)
	x := b.codes("x", 0.02, 120)
	w := b.weight([]int8{1, 2, 3, 4, 5, 6, 7, 8}, []float32{0.1, 0.2}, 2, 4, 1, 1)
	y := b.codes(b.op("Conv", []string{x, w}), 0.05, 128)
	h := b.codes(b.op("HardSwish", []string{y}), 0.05, 10)
	s := b.codes(b.op("Sigmoid", []string{y}), 1./200, 0)
	m := b.codes(b.op("Mul", []string{h, s}), 0.03, 10)
	c := b.codes(b.op("Concat", []string{m, h, y}, graph.AttrInt("axis", 1)), 0.06, 100)
	p := b.codes(b.op("MaxPool", []string{c}, graph.AttrInts("kernel_shape", 3, 3), graph.AttrInts("pads", 1, 1, 1, 1), graph.AttrInts("strides", 2, 2)), 0.06, 100)
	f := b.op("HardSigmoid", []string{p})
	r := b.op("Reshape", []string{f, b.init(tensor.From([]int64{0, 3, 2, 9}, 4))})
	q := b.op("Transpose", []string{r}, graph.AttrInts("perm", 0, 2, 3, 1))
	a := b.op("AveragePool", []string{q}, graph.AttrInts("kernel_shape", 1, 3), graph.AttrInt("ceil_mode", 1))
	k := b.op("ReduceMean", []string{a}, graph.AttrInts("axes", 3), graph.AttrInt("keepdims", 0))
	z := b.op("Softmax", []string{b.op("Tanh", []string{k})})
	return b.output(z, b.op("Pad", []string{q, b.init(tensor.From([]int64{0, 0, 1, 1, 0, 0, 1, 1}, 8))}))
}

// gates holds what MobileNetV3 and detectors have between convolutions.
func gates(t *testing.T) *graph.Model {
	b := newBuilder(t, 4, 6, 5)
	x := b.codes("x", 0.02, 120)
	g := b.codes(b.op("HardSigmoid", []string{x}, graph.AttrFloat("alpha", 1./6)), 1./255, 0)
	m := b.codes(b.op("Mul", []string{x, g}), 0.02, 120)
	l := b.codes(b.op("LeakyRelu", []string{m}, graph.AttrFloat("alpha", 0.1)), 0.015, 20)
	u := b.codes(b.op("Resize", []string{l, "", b.init(tensor.From([]float32{1, 1, 2, 2}, 4))}, graph.AttrString("coordinate_transformation_mode", "asymmetric"), graph.AttrString("nearest_mode", "floor")), 0.015, 20)
	v := b.codes(b.op("Resize", []string{u, "", b.init(tensor.From([]float32{1, 1, 0.5, 0.5}, 4))}, graph.AttrString("mode", "linear")), 0.015, 20)
	lo := b.op("Split", []string{v}, graph.AttrInt("axis", 1))
	n := b.m.Graph.Nodes[len(b.m.Graph.Nodes)-1]
	n.Outputs = append(n.Outputs, lo+"_high")
	return b.output(b.op("Concat", []string{b.codes(lo+"_high", 0.015, 20), b.codes(lo, 0.015, 20)}, graph.AttrInt("axis", 1)))
}

// Nothing but what makes the output is on float, and a HardSigmoid on codes is a sum and a
// product whose codes end where it does.
func TestGates(t *testing.T) {
	res, err := Convert(gates(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.FloatOps) != 1 || !strings.HasPrefix(res.FloatOps[0], "Concat") {
		t.Errorf("on float: %v, expected the last Concat alone", res.FloatOps)
	}
	d := dump(res.File)
	for _, want := range []string{
		"int8[1] scale [0.023622047] zero [0] axis 0 = [127]",                  // beta/alpha = 3
		"/shifted int8[1 6 5 4] as [-1 6 5 4] scale [0.023529412] zero [-128]", // 6/255
		"RESIZE_NEAREST_NEIGHBOR version 3", "RESIZE_BILINEAR version 3", "LEAKY_RELU version 2", "SLICE version 2",
	} {
		if !strings.Contains(d, want) {
			t.Errorf("%q is missing in\n%s", want, d)
		}
	}
}

// With Ports the file takes and gives codes under the model's own names, and what is in float
// at its ends is refused.
func TestPorts(t *testing.T) {
	build := func(float bool) *graph.Model {
		b := newBuilder(t, 2, 4, 4)
		y := b.codes(b.op("Conv", []string{b.codes("x", 0.02, 120), b.weight([]int8{1, 2, 3, 4, 5, 6}, []float32{0.1, 0.2, 0.3}, 3, 2, 1, 1)}), 0.05, 100)
		if float {
			return b.output(y, b.op("Relu", []string{"x"}))
		}
		return b.output(y)
	}
	m := build(false)
	name := m.Graph.Outputs[0].Name
	res, err := Convert(m, Options{Ports: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []Port{{"x", "int8", []int32{-1, 4, 4, 2}, 0.02, -8}, {name, "int8", []int32{-1, 4, 4, 3}, 0.05, -28}}
	if got := slices.Concat(res.Inputs, res.Outputs); !reflect.DeepEqual(got, want) {
		t.Errorf("ports %v, expected %v", got, want)
	}
	if d := dump(res.File); strings.Contains(d, "QUANTIZE") {
		t.Errorf("something is converted at the ends:\n%s", d)
	}
	for says, m := range map[string]*graph.Model{"is read in float by Relu": build(true), "has no scale": newBuilder(t, 3).output("x")} {
		if _, err := Convert(m, Options{Ports: true}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, expected %q", err, says)
		}
	}
	b := newBuilder(t, 3)
	if _, err := Convert(b.output(b.op("Relu", []string{b.codes("x", 1, 3)})), Options{Ports: true}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "it is not quantized") {
		t.Errorf("%v, expected that an output is not quantized", err)
	}
}

// codes16 puts a value through QuantizeLinear and DequantizeLinear with uint16 codes.
func (b *builder) codes16(x string, scale float32, zero uint16) string {
	s, z := b.init(tensor.From([]float32{scale})), b.init(tensor.From([]uint16{zero}))
	return b.op("DequantizeLinear", []string{b.op("QuantizeLinear", []string{x, s, z}), s, z})
}

// wide holds operators on 16-bit codes: a convolution with and without a bias, a constant
// operand, a sigmoid, a border below every number.
func wide(t *testing.T) *graph.Model {
	b := newBuilder(t, 2, 4, 4)
	x := b.codes16("x", 0.001, 1<<15)
	bias := b.op("DequantizeLinear", []string{b.init(tensor.From([]int32{1 << 30, -7}, 2)), b.init(tensor.From([]float32{0.001 * 0.1, 0.001 * 0.2}, 2))}, graph.AttrInt("axis", 0))
	y := b.codes16(b.op("Conv", []string{x, b.weight([]int8{1, 2, 3, 4}, []float32{0.1, 0.2}, 2, 2, 1, 1), bias}), 0.002, 1<<15)
	s := b.codes16(b.op("Sigmoid", []string{y}), 1./(1<<15), 1<<15)
	m := b.codes16(b.op("Mul", []string{y, s}), 0.002, 1<<15)
	cs, cz := b.init(tensor.From([]float32{0.5})), b.init(tensor.From([]uint16{1 << 15}))
	c := b.op("DequantizeLinear", []string{b.init(tensor.From([]uint16{1<<15 + 3, 1<<15 - 3}, 2, 1, 1)), cs, cz})
	a := b.codes16(b.op("Add", []string{m, c}), 0.004, 1<<15)
	p := b.codes16(b.op("MaxPool", []string{a}, graph.AttrInts("kernel_shape", 3, 3), graph.AttrInts("pads", 1, 1, 1, 1), graph.AttrInts("strides", 2, 2)), 0.004, 1<<15)
	return b.output(b.op("Conv", []string{b.codes16(b.op("HardSwish", []string{p}), 0.004, 1<<15), b.weight([]int8{1, 2}, []float32{0.1}, 1, 2, 1, 1)}))
}

// On 16 bits activations are int16 around zero, biases int64, and what has no kernel is float.
func TestWide(t *testing.T) {
	res, err := Convert(wide(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := dump(res.File)
	for _, want := range []string{
		"CONV_2D version 4", "int64[2] scale [", "axis 0 = [1073741824 -7]", "LOGISTIC version 3", "scale [3.0517578e-05] zero [0]",
		"int16[1 1 1 2] scale [0.5] zero [0] axis 0 = [3 -3]", "/fill int16[1] scale [0.004] zero [0] axis 0 = [-32768]",
	} {
		if !strings.Contains(d, want) {
			t.Errorf("%q is missing in\n%s", want, d)
		}
	}
	if len(res.FloatOps) != 2 || !strings.Contains(res.FloatOps[0], "no kernel on int16") {
		t.Errorf("on float: %q, expected HardSwish and the last product", res.FloatOps)
	}
	for says, build := range map[string]func(b *builder) string{
		"a16w8 --symmetric": func(b *builder) string { return b.codes16("x", 0.1, 5) },
	} {
		b := newBuilder(t, 2, 4, 4)
		if _, err := Convert(b.output(build(b)), Options{}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, expected %q", err, says)
		}
	}
	b := newBuilder(t, 2)
	res, err = Convert(b.output(b.codes(b.op("Add", []string{b.codes("x", 0.1, 5), b.codes16("x", 0.1, 1<<15)}), 0.1, 5)), Options{})
	if err != nil || len(res.FloatOps) != 1 || !strings.Contains(res.FloatOps[0], "8 and 16 bits") {
		t.Errorf("%v, %v: expected a sum of 8 and 16 bits in float", res, err)
	}
}

// half is a product whose weights the model stores as float16.
func half(t *testing.T) *graph.Model {
	b := newBuilder(t, 2)
	w := b.op("Cast", []string{b.init(&tensor.Tensor{Type: tensor.Float16, Dims: []int64{2, 3}, Data: tensor.From([]uint16{0x3c00, 0x4000, 0x4200, 0x3800, 0xbc00, 0}).Data})}, graph.AttrInt("to", int64(tensor.Float32)))
	return b.output(b.op("MatMul", []string{"x", w}))
}

// Weights of float16 stay so in the file, reordered, behind a DEQUANTIZE.
func TestHalf(t *testing.T) {
	res, err := Convert(half(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := dump(res.File)
	for _, want := range []string{"float16[3 2] = [15360 14336 16384 48128 16896 0]", "DEQUANTIZE version 3"} {
		if !strings.Contains(d, want) {
			t.Errorf("%q is missing in\n%s", want, d)
		}
	}
}
