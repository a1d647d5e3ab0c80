package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// minUnpackOpset is the first standard opset with BitShift, which takes codes apart.
const minUnpackOpset = 11

// Matrix returns the rows and columns of op's weight, whose dimensions are dims, as the
// matrix [k,n] that its input, or patches of it, are multiplied by.
func (op *Op) Matrix(dims []int64) (k, n int) {
	if op.Kind != Conv {
		return int(dims[op.InAxis]), int(dims[op.OutAxis])
	}
	k = 1
	for _, d := range dims[1:] {
		k *= int(d)
	}
	return k, int(dims[0])
}

// conv4 plans a convolution whose weight lies in the file in 4 bits. It computes in
// floats: only the file is smaller.
func (b *planner) conv4(n *graph.Node) (*Op, string) {
	x, w, bias := n.In(0), n.In(1), n.In(2)
	if !b.isActivation(x) {
		return nil, "its input is a constant"
	}
	t, rule := b.floatWeight(w, 3, 5)
	if rule != "" {
		return nil, rule
	}
	op := &Op{Node: n, Kind: Conv, X: []string{x}, W: w, Bias: bias, OutAxis: 0, InAxis: 1, Out: n.Outputs[0]}
	if rule := b.Config.no4(op, t.Dims, b.opset); rule != "" {
		return nil, rule
	}
	return op, ""
}

// no4 is why the weight of a convolution, with dimensions dims, has no form in 4 bits; "" is
// that it has.
func (c Config) no4(op *Op, dims []int64, opset int64) string {
	switch k, _ := op.Matrix(dims); {
	case c.Target != ORTCPU:
		return fmt.Sprintf("convolutions with 4-bit weights are of target %s", ORTCPU)
	case opset < minUnpackOpset:
		return fmt.Sprintf("convolutions with 4-bit weights need opset %d; export the model anew", minUnpackOpset)
	case op.Node.Int("group", 1) != 1:
		return "it has groups, and 4-bit blocks reach over all input channels"
	case k < Int4Block:
		return fmt.Sprintf("%d weights an output: 4-bit blocks have %d", k, Int4Block)
	}
	return ""
}

// Four reports whether the weight of op, an operator of p in m, has a form in 4 bits.
func (p *Plan) Four(m *graph.Model, op *Op) bool {
	return op.Kind == Linear || op.Kind == Conv && p.Config.no4(op, m.Graph.Init(op.W).Dims, m.Opset()) == ""
}

// unpacked puts the weight of op into the graph in 4 bits and returns the nodes that make
// floats of it, the last of which gives the weight. They have constant inputs alone, so that an engine computes them once, when
// it loads the model. A byte holds the codes c of two elements that are half a block apart,
// the first in its low bits:
//
//	[n, blocks, 16] -> c - 8 as float [n, blocks, 32] -> times the scale of the block
//	-> the first k of each row -> the shape of the weight
//
// The types and operators are those of opset 11: INT4 tensors need 21.
func (p *BlockWeights) unpacked(g *graph.Graph, op *Op, w *tensor.Tensor, names graph.Namer) ([]*graph.Node, WeightMethod, error) {
	k, n := op.Matrix(w.Dims)
	v, err := w.F32()
	if err != nil {
		return nil, "", err
	}
	q, by, err := p.Plan.Config.weight4(p.Solved, p.Stats, op, transpose2D(v, n, k), k, n)
	if err != nil {
		return nil, "", err
	}
	var made []*graph.Node
	value := func(name string, t *tensor.Tensor) string {
		name = names.Name(op.W + "_int4" + name)
		g.SetInit(name, t)
		return name
	}
	node := func(kind string, in []string, attrs ...*pb.AttributeProto) string {
		out := names.Name(op.W + "_int4_" + kind)
		made = append(made, graph.NewNode(graph.DomainONNX, kind, out, in, []string{out}, attrs...))
		return out
	}
	blocks := int64(q.Blocks())
	codes := value("", tensor.From(halves(q.Codes), int64(n), blocks, Int4Block/2))
	low := node("Mod", []string{codes, value("_sixteen", tensor.From([]uint8{16}))})
	high := node("BitShift", []string{codes, value("_four", tensor.From([]uint8{4}))}, graph.AttrString("direction", "RIGHT"))
	both := node("Concat", []string{low, high}, graph.AttrInt("axis", 2))
	float := node("Cast", []string{both}, graph.AttrInt("to", int64(tensor.Float32)))
	centred := node("Sub", []string{float, value("_eight", tensor.From([]float32{8}))})
	out := node("Mul", []string{centred, value("_scale", tensor.From(q.Scales, int64(n), blocks, 1))})
	if rows := blocks * Int4Block; rows != int64(k) { // what fills the last block goes
		out = node("Reshape", []string{out, value("_rows", tensor.From([]int64{int64(n), rows}, 2))})
		out = node("Slice", []string{out, value("_from", tensor.From([]int64{0}, 1)), value("_to", tensor.From([]int64{int64(k)}, 1)), value("_axis", tensor.From([]int64{1}, 1))})
	}
	node("Reshape", []string{out, value("_shape", tensor.From(append([]int64(nil), w.Dims...), int64(len(w.Dims))))})
	return made, by, nil
}

// halves orders the codes of each block, neighbours in one byte, so that a byte holds the
// i-th and the i-th of the second half.
func halves(codes []byte) []byte {
	const size = Int4Block / 2
	out := make([]byte, len(codes))
	at := func(block []byte, i int) byte { return block[i/2] >> (4 * (i % 2)) & 15 }
	for b := 0; b+size <= len(codes); b += size {
		for i := range size {
			out[b+i] = at(codes[b:b+size], i) | at(codes[b:b+size], size+i)<<4
		}
	}
	return out
}
