package plan

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// emit adds the steps of a node, or of the group that ends in it.
func (b *builder) emit(n *graph.Node) error {
	switch g := b.groups[n]; {
	case g == nil:
	case g.packed != nil:
		return b.emitPacked(g.packed)
	case g.product != nil:
		return b.emitProduct(g.product)
	case g.conv != nil:
		return b.emitConv(g.conv)
	case g.norm != nil:
		return b.emitNorm(g.norm)
	case g.embed != nil:
		return b.emitEmbed(g.embed)
	case g.pool != nil:
		return b.emitPoolS8(g.pool)
	case g.mean != nil:
		return b.emitMean(g.mean)
	}
	switch n.Domain {
	case graph.DomainONNX:
		if f := standard[n.Op]; f != nil {
			return f(b, n)
		}
	case graph.DomainMS:
		if f := microsoft[n.Op]; f != nil {
			return f(b, n)
		}
	case graph.DomainFewbit:
		if n.Op == "QuantizeRows" {
			return b.emitQuantizeRows(n)
		}
	}
	return unsupported(n, "no kernel computes it")
}

// standard and microsoft are the operators that are emitted on their own.
var standard, microsoft map[string]func(*builder, *graph.Node) error

func init() { // the functions reach the tables through the ones they call
	standard = map[string]func(*builder, *graph.Node) error{
		"Constant": (*builder).emitConstant, "ConstantOfShape": (*builder).emitConstantOfShape,
		"Reshape": (*builder).alias, "Flatten": (*builder).alias, "Squeeze": (*builder).alias, "Unsqueeze": (*builder).alias,
		"Identity": (*builder).alias, "Dropout": (*builder).alias,
		"Transpose": (*builder).emitTranspose, "Slice": (*builder).emitSlice, "Concat": (*builder).emitConcat, "Split": (*builder).emitSplit,
		"Expand": (*builder).emitExpand, "Tile": (*builder).emitTile, "Pad": (*builder).emitPad, "Gather": (*builder).emitGather,
		"Cast": (*builder).emitCast, "Where": (*builder).emitWhere, "Softmax": (*builder).emitSoftmax, "Gemm": (*builder).emitGemm,
		"Not": (*builder).emitCompare, "Xor": (*builder).emitCompare, "LessOrEqual": (*builder).emitCompare, "GreaterOrEqual": (*builder).emitCompare,
		"MaxPool": (*builder).emitPool, "AveragePool": (*builder).emitPool, "GlobalAveragePool": (*builder).emitPool, "GlobalMaxPool": (*builder).emitPool,
		"BatchNormalization": (*builder).emitBatchNorm, "QuantizeLinear": (*builder).emitQuantize, "DequantizeLinear": (*builder).emitDequantize,
		"Relu": (*builder).emitUnary, "Clip": (*builder).emitUnary, "Gelu": (*builder).emitUnary,
	}
	for op := range binaryOps {
		standard[op] = (*builder).emitBinary
	}
	for op := range unaryOps {
		standard[op] = (*builder).emitUnary
	}
	for op := range reduceOps {
		standard[op] = (*builder).emitReduce
	}
	microsoft = map[string]func(*builder, *graph.Node) error{
		"MultiHeadAttention": (*builder).emitAttention, "GatherBlockQuantized": (*builder).refuseBlocks, "Gelu": (*builder).emitUnary, "FastGelu": (*builder).emitUnary, "QuickGelu": (*builder).emitUnary,
		"QuantizeLinear": (*builder).emitQuantize, "DequantizeLinear": (*builder).emitDequantize,
	}
}

// emitConstant is for constants that are graph outputs: others are initializers.
func (b *builder) emitConstant(n *graph.Node) error {
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	a := n.Attr("value")
	if a == nil || a.T == nil {
		return unsupported(n, "its form")
	}
	t, err := graph.TensorFromProto(a.T)
	if err != nil || t.Type != y.dtype || t.Type == tensor.String {
		return unsupported(n, "its form")
	}
	y.host = t
	return nil
}
