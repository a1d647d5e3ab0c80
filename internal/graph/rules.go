package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// shapeRule records what an operator's outputs are. It may read any input
// through f.in, which answers for absent ones too.
type shapeRule func(f *inferrer, n *Node)

// shapeRules maps a domain and an operator to its rule.
var shapeRules = map[string]map[string]shapeRule{DomainONNX: {}, DomainMS: {}}

func rules(domain string, r shapeRule, ops ...string) {
	for _, op := range ops {
		shapeRules[domain][op] = r
	}
}

func init() { // rules refer to the table through the operators that contain others
	rules(DomainONNX, (*inferrer).same,
		"Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "Bernoulli", "BitwiseNot", "Ceil", "Celu",
		"Clip", "Cos", "Cosh", "CumSum", "Elu", "Erf", "Exp", "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish",
		"Hardmax", "Identity", "InstanceNormalization", "LRN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization",
		"MeanVarianceNormalization", "Mish", "Neg", "Not", "PRelu", "RMSNormalization", "Reciprocal", "Relu", "ReverseSequence",
		"Round", "RotaryEmbedding", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax",
		"Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Trilu")
	rules(DomainONNX, (*inferrer).elementwise, "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean",
		"BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift")
	rules(DomainONNX, (*inferrer).predicate, "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor")
	rules(DomainONNX, func(f *inferrer, n *Node) { f.set(n.out(0), tensor.Bool, f.in(n, 0).Dims) }, "IsNaN", "IsInf")
	rules(DomainONNX, (*inferrer).dropoutShape, "Dropout")
	rules(DomainONNX, (*inferrer).layerNorm, "LayerNormalization", "SimplifiedLayerNormalization")
	rules(DomainONNX, (*inferrer).castShape, "Cast", "CastLike")
	rules(DomainONNX, (*inferrer).whereShape, "Where")
	rules(DomainONNX, (*inferrer).matmulShape, "MatMul")
	rules(DomainONNX, (*inferrer).gemmShape, "Gemm")
	rules(DomainONNX, (*inferrer).constantShape, "Constant")
	rules(DomainONNX, (*inferrer).reshapeShape, "Reshape")
	rules(DomainONNX, (*inferrer).transposeShape, "Transpose")
	rules(DomainONNX, (*inferrer).flattenShape, "Flatten")
	rules(DomainONNX, (*inferrer).concatShape, "Concat")
	rules(DomainONNX, (*inferrer).splitShape, "Split")
	rules(DomainONNX, (*inferrer).gatherShape, "Gather")
	rules(DomainONNX, func(f *inferrer, n *Node) { f.set(n.out(0), f.in(n, 0).Type, f.in(n, 1).Dims) }, "GatherElements")
	rules(DomainONNX, (*inferrer).gatherNDShape, "GatherND")
	rules(DomainONNX, (*inferrer).sliceShape, "Slice")
	rules(DomainONNX, (*inferrer).squeezeShape, "Squeeze")
	rules(DomainONNX, (*inferrer).unsqueezeShape, "Unsqueeze")
	rules(DomainONNX, (*inferrer).expandShape, "Expand")
	rules(DomainONNX, (*inferrer).tileShape, "Tile")
	rules(DomainONNX, (*inferrer).padShape, "Pad")
	rules(DomainONNX, (*inferrer).shapeShape, "Shape", "Size")
	rules(DomainONNX, (*inferrer).filledShape, "ConstantOfShape", "RandomNormal", "RandomUniform")
	rules(DomainONNX, (*inferrer).likeShape, "EyeLike", "RandomNormalLike", "RandomUniformLike")
	rules(DomainONNX, (*inferrer).rangeShape, "Range")
	rules(DomainONNX, (*inferrer).reduceShape, "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
		"ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
	rules(DomainONNX, (*inferrer).argShape, "ArgMax", "ArgMin")
	rules(DomainONNX, (*inferrer).topKShape, "TopK")
	rules(DomainONNX, (*inferrer).oneHotShape, "OneHot")
	rules(DomainONNX, func(f *inferrer, n *Node) {
		f.set(n.out(0), tensor.Int64, []Dim{rankDim(len(f.in(n, 0).Dims), f.in(n, 0).Dims != nil), unknownDim})
	}, "NonZero")
}

// rankDim is a dimension of size n if that is known.
func rankDim(n int, ok bool) Dim {
	if !ok {
		return unknownDim
	}
	return Dim{N: int64(n)}
}

// same: the first output is like the first input.
func (f *inferrer) same(n *Node) { f.set(n.out(0), f.in(n, 0).Type, f.in(n, 0).Dims) }

// elementwise: all inputs broadcast; the first one's type.
func (f *inferrer) elementwise(n *Node) {
	t := f.in(n, 0).Type
	if t == tensor.Undefined && n.Op != "Pow" && n.Op != "BitShift" {
		t = f.in(n, 1).Type
	}
	f.set(n.out(0), t, f.broadcastInputs(n))
}

func (f *inferrer) predicate(n *Node) { f.set(n.out(0), tensor.Bool, f.broadcastInputs(n)) }

func (f *inferrer) broadcastInputs(n *Node) []Dim {
	dims := f.in(n, 0).Dims
	for i := 1; i < len(n.Inputs); i++ {
		dims = broadcastDims(dims, f.in(n, i).Dims)
	}
	return dims
}

func (f *inferrer) dropoutShape(n *Node) {
	f.same(n)
	f.set(n.out(1), tensor.Bool, f.in(n, 0).Dims)
}

// layerNorm: the statistics have 1 from the axis on.
func (f *inferrer) layerNorm(n *Node) {
	x := f.in(n, 0)
	f.set(n.out(0), x.Type, x.Dims)
	stats := slices.Clone(x.Dims)
	if a, ok := axis(n.Int("axis", -1), len(x.Dims)); ok {
		for i := a; i < len(stats); i++ {
			stats[i] = Dim{N: 1}
		}
	} else {
		stats = nil
	}
	for i := 1; i < len(n.Outputs); i++ {
		f.set(n.Outputs[i], tensor.Float32, stats)
	}
}

func (f *inferrer) castShape(n *Node) {
	to := tensor.DType(n.Int("to", 0))
	if n.Op == "CastLike" {
		to = f.in(n, 1).Type
	}
	f.set(n.out(0), to, f.in(n, 0).Dims)
}

func (f *inferrer) whereShape(n *Node) {
	t := f.in(n, 1).Type
	if t == tensor.Undefined {
		t = f.in(n, 2).Type
	}
	f.set(n.out(0), t, f.broadcastInputs(n))
}

// matmulDims is numpy.matmul's result; nil when a rank is unknown or wrong.
func matmulDims(a, b []Dim) []Dim {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	row, col := len(a) == 1, len(b) == 1
	if row {
		a = []Dim{{N: 1}, a[0]}
	}
	if col {
		b = []Dim{b[0], {N: 1}}
	}
	r := broadcastDims(a[:len(a)-2], b[:len(b)-2])
	if !row {
		r = append(r, a[len(a)-2])
	}
	if !col {
		r = append(r, b[len(b)-1])
	}
	return r
}

func (f *inferrer) matmulShape(n *Node) {
	f.set(n.out(0), f.in(n, 0).Type, matmulDims(f.in(n, 0).Dims, f.in(n, 1).Dims))
}

func (f *inferrer) gemmShape(n *Node) {
	a, b := f.in(n, 0), f.in(n, 1)
	dims := unknowns(2)
	if len(a.Dims) == 2 {
		dims[0] = a.Dims[n.Int("transA", 0)&1]
	}
	if len(b.Dims) == 2 {
		dims[1] = b.Dims[1-n.Int("transB", 0)&1]
	}
	f.set(n.out(0), a.Type, dims)
}

func (f *inferrer) constantShape(n *Node) {
	if t := constantValue(n); t != nil {
		f.set(n.out(0), t.Type, fixed(t.Dims))
	}
}

func (f *inferrer) reshapeShape(n *Node) {
	x := f.in(n, 0)
	to, ok := f.content(n.In(1))
	if n.In(1) == "" {
		ok = false
	}
	if !ok {
		// The length of the target is the rank of the result.
		if s := f.in(n, 1).Dims; len(s) == 1 && s[0].N >= 0 && s[0].N <= tensor.MaxRank {
			f.set(n.out(0), x.Type, unknowns(int(s[0].N)))
		} else {
			f.set(n.out(0), x.Type, nil)
		}
		return
	}
	dims := make([]Dim, len(to))
	open := -1
	for i, c := range to {
		switch {
		case c.known && c.v == 0 && n.Int("allowzero", 0) == 0:
			dims[i] = unknownDim
			if i < len(x.Dims) {
				dims[i] = x.Dims[i]
			}
		case c.known && c.v >= 0:
			dims[i] = Dim{N: c.v}
		case c.known && open < 0:
			open = i
			dims[i] = Dim{N: 1}
		default:
			dims[i] = Dim{N: -1, Name: c.name}
		}
	}
	if open >= 0 {
		dims[open] = quotient(x.Dims, dims)
	}
	f.set(n.out(0), x.Type, dims)
}

// quotient divides the product of a by that of b: symbols that are in both
// cancel; unknown when something is left that does not divide.
func quotient(a, b []Dim) Dim {
	if a == nil {
		return unknownDim
	}
	num, den, left := int64(1), int64(1), []string{}
	for _, d := range a {
		if d.N < 0 && d.Name == "" {
			return unknownDim
		}
		n, s := d.factors()
		if n > 0 && num > maxSize/n {
			return unknownDim
		}
		num, left = num*n, append(left, s...)
	}
	for _, d := range b {
		if d.N < 0 && d.Name == "" {
			return unknownDim
		}
		n, s := d.factors()
		if n > 0 && den > maxSize/n {
			return unknownDim
		}
		den *= n
		for _, name := range s {
			i := slices.Index(left, name)
			if i < 0 {
				return unknownDim
			}
			left = slices.Delete(left, i, i+1)
		}
	}
	if den <= 0 || num%den != 0 {
		return unknownDim
	}
	r := Dim{N: num / den}
	for _, name := range left {
		r = times(r, Dim{N: -1, Name: name})
	}
	return r
}
