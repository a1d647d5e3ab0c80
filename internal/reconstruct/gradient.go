package reconstruct

import (
	"errors"
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrNoGradient: an operator, or a form of it, whose derivative is not known here.
var ErrNoGradient = errors.New("no gradient is known")

// MinOpset is the first standard opset in whose operators gradients are written.
const MinOpset = 13

// Gradient is a graph that computes an error and its derivatives.
type Gradient struct {
	// Loss is the sum of squares of what the output and the target differ by.
	Loss string
	// By gives the derivative of Loss with respect to a value.
	By map[string]string
}

// Derive adds to g, whose value out is to become the value target (an input of g), the
// nodes that compute the squared error and its derivatives with respect to the values
// wrt, by reverse accumulation. g needs operators of MinOpset and com.microsoft's.
// Nothing is added to the graph's outputs. ErrNoGradient names the operator that
// stands against it; g must then be dropped.
func Derive(g *graph.Graph, out, target string, wrt []string) (*Gradient, error) {
	b := &builder{g: g, names: g.Namer(), adjoint: map[string][]string{}, live: map[string]bool{}}
	for _, v := range wrt {
		b.live[v] = true
	}
	nodes := append([]*graph.Node(nil), g.Nodes...)
	for _, n := range nodes {
		for _, in := range n.Inputs {
			if b.live[in] && !integral[n.Op] {
				for _, o := range n.Outputs {
					b.live[o] = true
				}
			}
		}
	}
	if !b.live[out] {
		return nil, fmt.Errorf("%w: %q does not depend on what is learned", ErrNoGradient, out)
	}
	diff := b.op("Sub", out, target)
	grad := &Gradient{Loss: b.with("ReduceSum", []string{b.op("Mul", diff, diff)}, graph.AttrInt("keepdims", 0)), By: map[string]string{}}
	b.adjoint[out] = []string{b.op("Add", diff, diff)}
	for i := len(nodes) - 1; i >= 0; i-- {
		n := nodes[i]
		if len(n.Outputs) == 0 || !b.live[n.Outputs[0]] || integral[n.Op] {
			continue
		}
		dy := b.total(n.Outputs[0])
		if dy == "" {
			continue // nothing that matters reads it
		}
		for _, o := range n.Outputs[1:] {
			if len(b.adjoint[o]) > 0 {
				return nil, fmt.Errorf("%w: %s %q gives more than one value", ErrNoGradient, n.Op, n.Name)
			}
		}
		f := rules[n.Domain+":"+n.Op]
		if f == nil {
			return nil, fmt.Errorf("%w: of %s %q", ErrNoGradient, n.Op, n.Name)
		}
		dx, err := f(b, n, dy)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", n.Op, n.Name, err)
		}
		for at, d := range dx {
			if in := n.In(at); d != "" && b.live[in] {
				b.adjoint[in] = append(b.adjoint[in], d)
			}
		}
	}
	for _, v := range wrt {
		if grad.By[v] = b.total(v); grad.By[v] == "" {
			return nil, fmt.Errorf("%w: nothing leads from %q to %q", ErrNoGradient, v, out)
		}
	}
	return grad, nil
}

// integral are operators whose result does not change with their input's values.
var integral = map[string]bool{"Shape": true, "Size": true}

// rule returns the derivatives with respect to n's inputs, given that with respect to
// its output; "" where there is none. Those that nobody asks for may be left out.
type rule func(b *builder, n *graph.Node, dy string) ([]string, error)

// builder appends nodes to a graph.
type builder struct {
	g       *graph.Graph
	names   graph.Namer
	adjoint map[string][]string // value -> parts of its derivative
	live    map[string]bool     // depends on what is learned
}

// total is the derivative of a value, the sum of its parts; "" is none.
func (b *builder) total(value string) string {
	parts := b.adjoint[value]
	if len(parts) == 0 {
		return ""
	}
	sum := parts[0]
	for _, p := range parts[1:] {
		sum = b.op("Add", sum, p)
	}
	b.adjoint[value] = []string{sum}
	return sum
}

// op adds a standard operator without attributes and returns the name of its result.
func (b *builder) op(op string, in ...string) string { return b.with(op, in) }

func (b *builder) with(op string, in []string, attrs ...*pb.AttributeProto) string {
	return b.in(graph.DomainONNX, op, in, attrs...)
}

func (b *builder) in(domain, op string, in []string, attrs ...*pb.AttributeProto) string {
	out := b.names.Name("d_" + op)
	b.g.Nodes = append(b.g.Nodes, graph.NewNode(domain, op, out, in, []string{out}, attrs...))
	return out
}

// product is a b with either side transposed in its last two axes.
func (b *builder) product(x, y string, transX, transY bool) string {
	flag := func(name string, on bool) *pb.AttributeProto {
		if on {
			return graph.AttrInt(name, 1)
		}
		return graph.AttrInt(name, 0)
	}
	return b.in(graph.DomainMS, "FusedMatMul", []string{x, y}, flag("transA", transX), flag("transB", transY))
}

func (b *builder) ints(v ...int64) string {
	name := b.names.Name("d_ints")
	b.g.SetInit(name, tensor.From(v, int64(len(v))))
	return name
}

func (b *builder) number(v float32) string {
	name := b.names.Name("d_number")
	b.g.SetInit(name, tensor.From([]float32{v})) // a scalar
	return name
}

func (b *builder) reshape(x string, dims ...int64) string { return b.op("Reshape", x, b.ints(dims...)) }

// like gives x the shape of value.
func (b *builder) like(x, value string) string { return b.op("Reshape", x, b.op("Shape", value)) }

// sum adds up axes; keep leaves them with size 1.
func (b *builder) sum(x string, keep bool, axes ...int64) string {
	k := int64(0)
	if keep {
		k = 1
	}
	return b.with("ReduceSum", []string{x, b.ints(axes...)}, graph.AttrInt("keepdims", k))
}

// unbroadcast sums d, which has the shape of a result, over the axes along which
// value was repeated to give it:
//
//	shape of d          [n, h, a, b]
//	shape of value      [   h, 1, b]   with ones in front [1, h, 1, b]
//	axes where they differ              0, 2
func (b *builder) unbroadcast(d, result, value string) string {
	if b.sameDims(result, value) {
		return d
	}
	shape := b.op("Shape", value)
	all := b.op("Shape", d)
	missing := b.op("Sub", b.op("Shape", all), b.op("Shape", shape))
	ones := b.with("ConstantOfShape", []string{missing}, &pb.AttributeProto{
		Name: ptr("value"), Type: pb.AttributeProto_TENSOR.Enum(),
		T: &pb.TensorProto{DataType: ptr(int32(pb.TensorProto_INT64)), Dims: []int64{1}, Int64Data: []int64{1}},
	})
	padded := b.with("Concat", []string{ones, shape}, graph.AttrInt("axis", 0))
	differ := b.op("Not", b.op("Equal", all, padded))
	axes := b.reshape(b.op("NonZero", differ), -1)
	sum := b.with("ReduceSum", []string{d, axes}, graph.AttrInt("keepdims", 1), graph.AttrInt("noop_with_empty_axes", 1))
	return b.op("Reshape", sum, shape)
}

// sameDims reports whether two values are known to have one shape.
func (b *builder) sameDims(x, y string) bool {
	p, q := b.g.Dims(x), b.g.Dims(y)
	if p == nil || len(p) != len(q) {
		return false
	}
	for i := range p {
		if p[i].N != q[i].N || p[i].N < 0 && (p[i].Name == "" || p[i].Name != q[i].Name) {
			return false
		}
	}
	return true
}

// fixed is the shape of a value all of whose sizes are known.
func (b *builder) fixed(value string) ([]int64, error) {
	d := b.g.Dims(value)
	out := make([]int64, len(d))
	for i := range d {
		if out[i] = d[i].N; out[i] <= 0 {
			return nil, fmt.Errorf("%w: the shape of %q is not known", ErrNoGradient, value)
		}
	}
	if d == nil {
		return nil, fmt.Errorf("%w: the shape of %q is not known", ErrNoGradient, value)
	}
	return out, nil
}

func ptr[T any](v T) *T { return &v }
