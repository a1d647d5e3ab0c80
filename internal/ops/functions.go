package ops

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The least versions that the stock bodies need: Clip with its bounds as inputs
// and Round exist since opset 11, functions since IR 8.
const (
	MinOpset = 11
	minIR    = 8
	// axesInputOpset is the first in which ReduceMax and ReduceMin take their
	// axes as an input.
	axesInputOpset = 18
)

// Errors of the file form.
var (
	// ErrOpset: the model's standard operators are too old for the bodies.
	ErrOpset = errors.New("standard operator set is too old")
	// ErrBody: the model defines a function of the domain that is not the one
	// of docs/ops.md.
	ErrBody = errors.New("not the function that docs/ops.md specifies")
)

// Install gives the model the functions of the domain, with bodies of standard
// operators, so that a runtime without kernels for them computes the same.
// Of OpExpandBlocks it does only when more names it.
func Install(m *graph.Model, more ...string) error {
	fs, err := functions(m.Opset())
	if err != nil {
		return err
	}
	for _, f := range fs {
		if f.GetName() == OpExpandBlocks && !slices.Contains(more, OpExpandBlocks) {
			continue
		}
		if have := m.Function(Domain, f.GetName()); have != nil {
			if !proto.Equal(have, f) {
				return fmt.Errorf("%w: %s.%s", ErrBody, Domain, f.GetName())
			}
			continue
		}
		m.AddFunction(f)
	}
	m.Require(Domain, Version)
	m.IR = max(m.IR, minIR)
	return nil
}

// Verify checks that the functions of the domain which the model carries are
// the specified ones, so that running kernels in their place gives what the
// file says. A model without any passes.
func Verify(m *graph.Model) error {
	for _, have := range m.Functions() {
		if have.GetDomain() != Domain {
			continue
		}
		var opset int64
		for _, o := range have.OpsetImport {
			if o.GetDomain() == graph.DomainONNX {
				opset = o.GetVersion()
			}
		}
		fs, err := functions(opset)
		if err != nil {
			return fmt.Errorf("%w: %s.%s: %w", ErrBody, Domain, have.GetName(), err)
		}
		same := false
		for _, f := range fs {
			same = same || proto.Equal(have, f)
		}
		if !same {
			return fmt.Errorf("%w: %s.%s", ErrBody, Domain, have.GetName())
		}
	}
	return nil
}

// functions returns all operators with bodies for the given opset.
func functions(opset int64) ([]*pb.FunctionProto, error) {
	if opset < MinOpset {
		return nil, fmt.Errorf("%w: opset %d; the %s operators need %d or above", ErrOpset, opset, Domain, MinOpset)
	}
	return []*pb.FunctionProto{quantizeRows(opset), matMulQuantized(opset), expandBlocks(opset)}, nil
}

// body collects the nodes of a function.
type body struct {
	f *pb.FunctionProto
}

func newBody(name, doc string, opset int64, in, out []string) *body {
	return &body{&pb.FunctionProto{
		Name: proto.String(name), Domain: proto.String(Domain), DocString: proto.String(doc), Input: in, Output: out,
		OpsetImport: []*pb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(opset)}},
	}}
}

func (b *body) op(op, out string, in []string, attrs ...*pb.AttributeProto) string {
	b.f.Node = append(b.f.Node, &pb.NodeProto{OpType: proto.String(op), Name: proto.String(out), Input: in, Output: []string{out}, Attribute: attrs})
	return out
}

func (b *body) constant(name string, t *tensor.Tensor) string {
	v := &pb.TensorProto{DataType: proto.Int32(int32(t.Type)), Dims: t.Dims, RawData: t.Data}
	return b.op("Constant", name, nil, &pb.AttributeProto{Name: proto.String("value"), Type: pb.AttributeProto_TENSOR.Enum(), T: v})
}

// reduce is op over the last axis, which stays with size 1.
func (b *body) reduce(opset int64, op, out, x string) string {
	keep := graph.AttrInt("keepdims", 1)
	if opset < axesInputOpset {
		return b.op(op, out, []string{x}, graph.AttrInts("axes", -1), keep)
	}
	return b.op(op, out, []string{x, "axes"}, keep)
}

func cast(t tensor.DType) *pb.AttributeProto { return graph.AttrInt("to", int64(t)) }

func quantizeRows(opset int64) *pb.FunctionProto {
	b := newBody(OpQuantizeRows, "Quantizes each row (last axis) of X to UINT8 with a scale and a zero point of its own.", opset,
		[]string{"X"}, []string{"Q", "Scale", "Zero"})
	scalar := func(name string, v float32) string { return b.constant(name, tensor.From([]float32{v})) }
	zero, one, top := scalar("zero", 0), scalar("one", 1), scalar("top", maxCode)
	if opset >= axesInputOpset {
		b.constant("axes", tensor.From([]int64{-1}, 1))
	}
	hi := b.op("Max", "hi", []string{b.reduce(opset, "ReduceMax", "largest", "X"), zero})
	lo := b.op("Min", "lo", []string{b.reduce(opset, "ReduceMin", "least", "X"), zero})
	step := b.op("Div", "step", []string{b.op("Sub", "width", []string{hi, lo}), top})
	scale := b.op("Where", "Scale", []string{b.op("Equal", "constant", []string{step, zero}), one, step})
	shift := b.op("Div", "shift", []string{b.op("Neg", "below", []string{lo}), scale})
	zp := b.op("Clip", "zero_point", []string{b.op("Round", "shift_code", []string{shift}), zero, top})
	code := b.op("Round", "rounded", []string{b.op("Div", "scaled", []string{"X", scale})})
	q := b.op("Clip", "code", []string{b.op("Add", "shifted", []string{code, zp}), zero, top})
	b.op("Cast", "Q", []string{q}, cast(tensor.Uint8))
	b.op("Cast", "Zero", []string{zp}, cast(tensor.Uint8))
	return b.f
}

func matMulQuantized(opset int64) *pb.FunctionProto {
	b := newBody(OpMatMulQuantized, "Multiplies rows of QuantizeRows by INT8 weights with a scale a column; W_sum holds the column sums of W.", opset,
		[]string{"Q", "Scale", "Zero", "W", "W_scale", "W_sum"}, []string{"Y"})
	products := b.op("MatMulInteger", "products", []string{"Q", "W"})
	zero := b.op("Cast", "zero_point", []string{"Zero"}, cast(tensor.Int32))
	acc := b.op("Sub", "accumulator", []string{products, b.op("Mul", "correction", []string{zero, "W_sum"})})
	scale := b.op("Mul", "product_scale", []string{"Scale", "W_scale"})
	b.op("Mul", "Y", []string{b.op("Cast", "accumulated", []string{acc}, cast(tensor.Float32)), scale})
	return b.f
}
