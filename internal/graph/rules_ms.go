package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Operators of com.microsoft (ONNX Runtime's docs/ContribOperators.md) and the
// quantized operators of the standard domain.
func init() {
	rules(DomainMS, (*inferrer).same, "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasSoftmax", "RotaryEmbedding", "BiasDropout",
		"GroupNorm", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "GroupQueryAttention", "Inverse")
	rules(DomainMS, (*inferrer).skipNorm, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
	rules(DomainMS, (*inferrer).embedNorm, "EmbedLayerNormalization")
	rules(DomainMS, (*inferrer).fusedMatMulShape, "FusedMatMul", "TransposeMatMul")
	rules(DomainMS, (*inferrer).gemmShape, "FusedGemm")
	rules(DomainMS, (*inferrer).convShape, "FusedConv")
	rules(DomainMS, (*inferrer).multiHeadShape, "MultiHeadAttention")
	rules(DomainMS, (*inferrer).fusedAttentionShape, "Attention", "QAttention")
	rules(DomainMS, (*inferrer).matMulNBitsShape, "MatMulNBits")
	rules(DomainMS, (*inferrer).gatherBlocksShape, "GatherBlockQuantized")
	rules(DomainMS, (*inferrer).matmulToFloat, "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
	rules(DomainMS, (*inferrer).qGemmShape, "QGemm")
	rules(DomainMS, func(f *inferrer, n *Node) {
		f.set(n.out(0), f.in(n, 0).Type, broadcastDims(f.in(n, 0).Dims, f.in(n, 3).Dims))
	}, "QLinearAdd", "QLinearMul")
	rules(DomainMS, (*inferrer).qLinearPool, "QLinearGlobalAveragePool")
	for _, d := range []string{DomainONNX, DomainMS} {
		rules(d, (*inferrer).quantizeShape, "QuantizeLinear")
		rules(d, (*inferrer).dequantizeShape, "DequantizeLinear")
	}
	rules(DomainONNX, func(f *inferrer, n *Node) {
		f.set(n.out(0), tensor.Uint8, f.in(n, 0).Dims)
		f.set(n.out(1), tensor.Float32, []Dim{})
		f.set(n.out(2), tensor.Uint8, []Dim{})
	}, "DynamicQuantizeLinear")
	rules(DomainONNX, func(f *inferrer, n *Node) {
		f.set(n.out(0), tensor.Int32, matmulDims(f.in(n, 0).Dims, f.in(n, 1).Dims))
	}, "MatMulInteger")
	rules(DomainONNX, func(f *inferrer, n *Node) {
		f.set(n.out(0), f.in(n, 7).Type, matmulDims(f.in(n, 0).Dims, f.in(n, 3).Dims))
	}, "QLinearMatMul")
}

// gatherBlocksShape is that of Gather, with the type of the scales. UINT8 data of less than 8
// bits is packed along the last axis.
func (f *inferrer) gatherBlocksShape(n *Node) {
	x, at := f.in(n, 0), f.in(n, 1)
	a, ok := axis(n.Int("gather_axis", 0), len(x.Dims))
	bits := n.Int("bits", 4)
	if !ok || at.Dims == nil || bits < 1 || bits > 8 {
		f.set(n.out(0), f.in(n, 2).Type, nil)
		return
	}
	dims := slices.Clone(x.Dims)
	if x.Type == tensor.Uint8 {
		dims[len(dims)-1] = times(dims[len(dims)-1], Dim{N: 8 / bits})
	}
	f.set(n.out(0), f.in(n, 2).Type, joined(dims[:a], at.Dims, dims[a+1:]))
}

// skipNorm: the last optional output is the sum before normalization.
func (f *inferrer) skipNorm(n *Node) {
	f.same(n)
	f.set(n.out(3), f.in(n, 0).Type, f.in(n, 0).Dims)
}

// embedNorm: ids [batch, length] and a word table [vocabulary, hidden].
func (f *inferrer) embedNorm(n *Node) {
	ids, words := f.in(n, 0), f.in(n, 2)
	if len(ids.Dims) != 2 || len(words.Dims) != 2 {
		return
	}
	dims := []Dim{ids.Dims[0], ids.Dims[1], words.Dims[1]}
	f.set(n.out(0), words.Type, dims)
	f.set(n.out(1), tensor.Int32, ids.Dims[:1])
	f.set(n.out(2), words.Type, dims)
}

// fusedMatMulOperands returns A and B of FusedMatMul as MatMul sees them.
func (f *inferrer) fusedMatMulOperands(n *Node) (a, b []Dim) {
	turn := func(dims []Dim, trans, batch string) []Dim {
		dims = slices.Clone(dims)
		r := len(dims)
		if n.Int(batch, 0) != 0 { // [m, batch..., k] means [batch..., m, k]
			if r < 3 {
				return nil
			}
			dims = slices.Concat(dims[1:r-1], dims[:1], dims[r-1:])
		}
		if n.Int(trans, 0) != 0 && r >= 2 {
			dims[r-1], dims[r-2] = dims[r-2], dims[r-1]
		}
		return dims
	}
	return turn(f.in(n, 0).Dims, "transA", "transBatchA"), turn(f.in(n, 1).Dims, "transB", "transBatchB")
}

func (f *inferrer) fusedMatMulShape(n *Node) {
	f.set(n.out(0), f.in(n, 0).Type, matmulDims(f.fusedMatMulOperands(n)))
}

// attentionSizes are the facts of one attention: product sizes in elements.
type attentionSizes struct {
	batch, queries, keys Dim
	qWidth, vWidth       Dim // heads * head size
}

// multiHead reads com.microsoft.MultiHeadAttention: query [B,S,D], or packed
// [B,S,N,3,H]; key [B,L,D], packed with value [B,L,N,2,H], or [B,N,L,H].
func (f *inferrer) multiHead(n *Node) (attentionSizes, bool) {
	q, k, v := f.in(n, 0).Dims, f.in(n, 1).Dims, f.in(n, 2).Dims
	var s attentionSizes
	switch len(q) {
	case 3:
		s.batch, s.queries, s.qWidth = q[0], q[1], q[2]
	case 5:
		w := times(q[2], q[4])
		return attentionSizes{q[0], q[1], q[1], w, w}, true
	default:
		return s, false
	}
	s.keys, s.vWidth = s.queries, s.qWidth
	switch len(k) {
	case 3:
		s.keys = k[1]
	case 4:
		s.keys = k[2]
	case 5:
		s.keys = k[1]
	}
	switch len(v) {
	case 3:
		s.vWidth = v[2]
	case 4:
		s.vWidth = times(v[1], v[3])
	default:
		if n.In(2) != "" {
			s.vWidth = unknownDim
		}
	}
	if past := f.in(n, 6).Dims; len(past) == 4 && len(k) == 3 {
		s.keys = plus(s.keys, past[2])
	} else if n.In(6) != "" {
		s.keys = unknownDim
	}
	return s, true
}

func (f *inferrer) multiHeadShape(n *Node) {
	t := f.in(n, 0).Type
	s, ok := f.multiHead(n)
	if !ok {
		f.set(n.out(0), t, nil)
		return
	}
	f.set(n.out(0), t, []Dim{s.batch, s.queries, s.vWidth})
	if heads := n.Int("num_heads", 0); heads > 0 {
		h := Dim{N: heads}
		f.set(n.out(1), t, []Dim{s.batch, h, s.keys, quotient([]Dim{s.qWidth}, []Dim{h})})
		f.set(n.out(2), t, []Dim{s.batch, h, s.keys, quotient([]Dim{s.vWidth}, []Dim{h})})
	}
}

// fusedAttention reads com.microsoft.Attention and QAttention: input [B,S,C],
// weights [C, Dq+Dk+Dv].
func (f *inferrer) fusedAttention(n *Node) (attentionSizes, bool) {
	x, w := f.in(n, 0).Dims, f.in(n, 1).Dims
	if len(x) != 3 {
		return attentionSizes{}, false
	}
	s := attentionSizes{batch: x[0], queries: x[1], keys: x[1], qWidth: unknownDim, vWidth: unknownDim}
	if sizes := n.Ints("qkv_hidden_sizes"); len(sizes) == 3 {
		s.qWidth, s.vWidth = Dim{N: sizes[0]}, Dim{N: sizes[2]}
	} else if len(w) == 2 {
		s.qWidth = quotient(w[1:], []Dim{{N: 3}})
		s.vWidth = s.qWidth
	}
	past := 4
	if n.Op == "QAttention" {
		past = 8
	}
	if p := f.in(n, past).Dims; len(p) == 5 {
		s.keys = plus(s.keys, p[3])
	} else if n.In(past) != "" {
		s.keys = unknownDim
	}
	return s, true
}

func (f *inferrer) fusedAttentionShape(n *Node) {
	t := f.in(n, 0).Type
	if n.Op == "QAttention" {
		t = f.in(n, 3).Type // of the input's scale
	}
	s, ok := f.fusedAttention(n)
	if !ok {
		f.set(n.out(0), t, nil)
		return
	}
	f.set(n.out(0), t, []Dim{s.batch, s.queries, s.vWidth})
}

func (f *inferrer) matMulNBitsShape(n *Node) {
	x := f.in(n, 0)
	dims := slices.Clone(x.Dims)
	if len(dims) > 0 {
		dims[len(dims)-1] = Dim{N: n.Int("N", -1)}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) matmulToFloat(n *Node) {
	f.set(n.out(0), tensor.Float32, matmulDims(f.in(n, 0).Dims, f.in(n, 1).Dims))
}

// qGemmShape: A, a_scale, a_zero_point, B, b_scale, b_zero_point, C, y_scale, y_zero_point.
func (f *inferrer) qGemmShape(n *Node) {
	a, b := f.in(n, 0), f.in(n, 3)
	dims := unknowns(2)
	if len(a.Dims) == 2 {
		dims[0] = a.Dims[n.Int("transA", 0)&1]
	}
	if len(b.Dims) == 2 {
		dims[1] = b.Dims[1-n.Int("transB", 0)&1]
	}
	t := tensor.Float32
	if n.In(8) != "" {
		t = f.in(n, 8).Type
	}
	f.set(n.out(0), t, dims)
}

func (f *inferrer) qLinearPool(n *Node) {
	if n.Int("channels_last", 0) == 0 {
		f.globalPoolShape(n)
	}
}

// quantizeShape: the type is the zero point's, else output_dtype's, else uint8.
func (f *inferrer) quantizeShape(n *Node) {
	t := tensor.DType(n.Int("output_dtype", int64(tensor.Uint8)))
	if n.In(2) != "" {
		t = f.in(n, 2).Type
	}
	f.set(n.out(0), t, f.in(n, 0).Dims)
}

// dequantizeShape: the type is the scale's.
func (f *inferrer) dequantizeShape(n *Node) {
	f.set(n.out(0), f.in(n, 1).Type, f.in(n, 0).Dims)
}
