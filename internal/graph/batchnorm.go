package graph

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FoldBatchNorm folds each inference-form BatchNormalization into the Conv,
// ConvTranspose, Gemm or rank-2 MatMul (with or without a bias Add) that feeds
// it, and returns how many it folded:
//
//	f = scale / sqrt(var + epsilon);  W' = W*f per output channel;  b' = (b - mean)*f + bias
//
// in float64, rounded once. It needs constant parameters and a producer that
// only the normalization reads. A weight or bias that anything else reads is
// cloned under a new name; otherwise it keeps its name. A normalization whose
// factors are not finite stays.
func FoldBatchNorm(m *Model) int {
	g := m.Graph
	f := &bnFolder{m: m, ix: g.Index(), names: g.Namer()}
	gone := map[*Node]bool{}
	var read []string
	for _, n := range g.Nodes {
		bn := f.read(n)
		if bn == nil {
			continue
		}
		p := f.ix.producer[n.Inputs[0]]
		if p == nil || p.Domain != DomainONNX || m.isLocal(p) || f.ix.Only(n.Inputs[0]) != n {
			continue
		}
		old := slices.Clone(p.Inputs)
		ok := false
		switch p.Op {
		case "Conv", "ConvTranspose":
			ok = f.conv(p, bn)
		case "Gemm":
			ok = f.gemm(p, bn)
		case "MatMul":
			ok = f.matmul(p, n, bn)
			if ok { // the normalization became the bias Add
				read = append(append(read, old...), bn.params...)
				continue
			}
		case "Add":
			ok = f.add(p, bn)
		}
		if !ok {
			continue
		}
		x, y := n.Inputs[0], n.Outputs[0]
		p.Outputs[slices.Index(p.Outputs, x)] = y
		f.ix.producer[y] = p
		delete(g.Info, x)
		gone[n] = true
		read = append(append(read, old...), bn.params...)
	}
	g.dropNodes(gone)
	g.dropUnread(append(read, f.stale...))
	return len(gone) + f.replaced
}

type bnFolder struct {
	m        *Model
	ix       *Index
	names    Namer
	shapes   *inferrer // taken when first needed
	replaced int
	stale    []string // weights of producers' producers that may now be unread
}

// batchNorm is y = x*factor + shift, per channel.
type batchNorm struct {
	factor, mean, bias []float64
	params             []string
}

// apply maps a bias that precedes the normalization to the one that replaces both.
func (b *batchNorm) apply(v float64, channel int) float64 {
	return (v-b.mean[channel])*b.factor[channel] + b.bias[channel]
}

// read returns n's parameters if it is a constant BatchNormalization in
// inference form, else nil.
func (f *bnFolder) read(n *Node) *batchNorm {
	if !n.Is("BatchNormalization") || len(n.Inputs) != 5 || n.out(0) == "" || f.m.isLocal(n) ||
		n.Int("training_mode", 0) != 0 || n.Int("spatial", 1) != 1 || (f.m.Opset() < 7 && n.Int("is_test", 0) == 0) {
		return nil
	}
	for _, o := range n.Outputs[1:] { // before opset 14 the extra outputs mean training
		if o != "" {
			return nil
		}
	}
	var p [4][]float64 // scale, bias, mean, var
	for i := range p {
		t := f.m.Graph.inits[n.Inputs[i+1]]
		if t == nil || len(t.Dims) != 1 {
			return nil
		}
		if p[i] = float64s(t); p[i] == nil || len(p[i]) != len(p[0]) {
			return nil
		}
	}
	b := &batchNorm{factor: p[0], bias: p[1], mean: p[2], params: n.Inputs[1:]}
	eps := float64(n.Float("epsilon", 1e-5))
	for i, v := range p[3] {
		b.factor[i] /= math.Sqrt(v + eps)
		if !finite(b.factor[i]) || !finite(b.mean[i]) || !finite(b.bias[i]) {
			return nil
		}
	}
	return b
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// float64s returns a copy of a float tensor's elements, nil for other types
// and for no elements.
func float64s(t *tensor.Tensor) []float64 {
	if t.Type == tensor.Float64 {
		return slices.Clone(tensor.View[float64](t))
	}
	v, err := t.F32()
	if err != nil || len(v) == 0 {
		return nil
	}
	r := make([]float64, len(v))
	for i, x := range v {
		r[i] = float64(x)
	}
	return r
}

// rounded returns v as a tensor of float type d, nil when a finite element
// overflows it.
func rounded(v []float64, d tensor.DType, dims ...int64) *tensor.Tensor {
	c := &evalCall{maxElems: tensor.MaxElems, maxBytes: math.MaxInt64}
	t := c.converted(tensor.From(v, dims...), d)
	if t == nil || d == tensor.Float64 {
		return t
	}
	r, err := t.F32()
	if err != nil {
		return nil
	}
	for i, x := range r {
		if math.IsInf(float64(x), 0) && !math.IsInf(v[i], 0) {
			return nil
		}
	}
	return t
}

// conv folds into Conv (weight [out, in/group, kernel...]) or ConvTranspose
// (weight [in, out/group, kernel...]).
func (f *bnFolder) conv(p *Node, bn *batchNorm) bool {
	w := f.m.Graph.inits[p.In(1)]
	if w == nil || len(w.Dims) < 3 || !w.Type.IsFloat() {
		return false
	}
	out := int64(len(bn.factor))
	inner, _ := tensor.Elems(w.Dims[2:])
	var channel func(row int64) int64 // of each run of inner elements
	var run int64
	if p.Op == "Conv" {
		if w.Dims[0] != out {
			return false
		}
		run = w.Dims[1] * inner
		channel = func(r int64) int64 { return r }
	} else {
		group := p.Int("group", 1)
		if group < 1 || w.Dims[0]%group != 0 || out%group != 0 || w.Dims[1] != out/group {
			return false
		}
		run = inner
		per := w.Dims[0] / group
		channel = func(r int64) int64 { in, o := r/w.Dims[1], r%w.Dims[1]; return in/per*w.Dims[1] + o }
	}
	bias, ok := f.bias(p.In(2), out, w.Type)
	if !ok || run == 0 {
		return false
	}
	v := float64s(w)
	for i := range v {
		v[i] *= bn.factor[channel(int64(i)/run)]
	}
	for i := range bias {
		bias[i] = bn.apply(bias[i], i)
	}
	wt, bt := rounded(v, w.Type, w.Dims...), rounded(bias, w.Type, out)
	if wt == nil || bt == nil {
		return false
	}
	fresh := p.In(1) + "_bias"
	f.set(p, 1, wt, "")
	f.set(p, 2, bt, fresh)
	return true
}

// gemm folds into Y = alpha*A*B + beta*C with a constant B and C.
func (f *bnFolder) gemm(p *Node, bn *batchNorm) bool {
	w := f.m.Graph.inits[p.In(1)]
	out := len(bn.factor)
	channels := 1 // B is [K, N]
	if p.Int("transB", 0) != 0 {
		channels = 0
	}
	if w == nil || len(w.Dims) != 2 || !w.Type.IsFloat() || w.Dims[channels] != int64(out) {
		return false
	}
	bias, ok := f.bias(p.In(2), int64(out), w.Type)
	if !ok {
		return false
	}
	beta := float64(p.Float("beta", 1))
	for i := range bias {
		bias[i] = bn.apply(beta*bias[i], i)
	}
	wt, bt := rounded(scaled(w, channels, bn.factor), w.Type, w.Dims...), rounded(bias, w.Type, int64(out))
	if wt == nil || bt == nil {
		return false
	}
	fresh := p.In(1) + "_bias"
	f.set(p, 1, wt, "")
	f.set(p, 2, bt, fresh)
	p.Attrs = slices.DeleteFunc(slices.Clone(p.Attrs), func(a *pb.AttributeProto) bool { return a.GetName() == "beta" })
	return true
}

// matmul folds into a rank-2 product; the normalization n becomes the Add of
// the bias.
func (f *bnFolder) matmul(p, n *Node, bn *batchNorm) bool {
	w := f.matmulWeight(p, bn)
	if w == nil {
		return false
	}
	bias := make([]float64, len(bn.factor))
	for i := range bias {
		bias[i] = bn.apply(0, i)
	}
	wt, bt := rounded(scaled(w, 1, bn.factor), w.Type, w.Dims...), rounded(bias, w.Type, int64(len(bias)))
	if wt == nil || bt == nil {
		return false
	}
	fresh := p.In(1) + "_bias"
	f.set(p, 1, wt, "")
	n.Op, n.Inputs, n.Outputs, n.Attrs = "Add", []string{n.Inputs[0], ""}, n.Outputs[:1], nil
	f.set(n, 1, bt, fresh)
	f.replaced++
	return true
}

// add folds into the Add of a constant bias to a rank-2 product.
func (f *bnFolder) add(p *Node, bn *batchNorm) bool {
	if len(p.Inputs) != 2 {
		return false
	}
	for side := range 2 {
		product := f.ix.producer[p.Inputs[side]]
		b := f.m.Graph.inits[p.Inputs[1-side]]
		if product == nil || b == nil || !product.Is("MatMul") || f.m.isLocal(product) || f.ix.Only(p.Inputs[side]) != p {
			continue
		}
		w := f.matmulWeight(product, bn)
		if w == nil {
			return false
		}
		bias, ok := f.bias(p.Inputs[1-side], int64(len(bn.factor)), w.Type)
		if !ok {
			return false
		}
		for i := range bias {
			bias[i] = bn.apply(bias[i], i)
		}
		wt, bt := rounded(scaled(w, 1, bn.factor), w.Type, w.Dims...), rounded(bias, w.Type, int64(len(bias)))
		if wt == nil || bt == nil {
			return false
		}
		old := product.Inputs[1]
		f.set(product, 1, wt, "")
		f.set(p, 1-side, bt, "")
		f.stale = append(f.stale, old)
		return true
	}
	return false
}

// matmulWeight returns the constant [K, N] weight of a product whose first
// input is known to have rank 2, so that its columns are the channels.
func (f *bnFolder) matmulWeight(p *Node, bn *batchNorm) *tensor.Tensor {
	w := f.m.Graph.inits[p.In(1)]
	if w == nil || len(w.Dims) != 2 || !w.Type.IsFloat() || w.Dims[1] != int64(len(bn.factor)) {
		return nil
	}
	if f.shapes == nil {
		f.shapes = infer(f.m, nil, false)
	}
	if len(f.shapes.of(p.In(0)).Dims) != 2 {
		return nil
	}
	return w
}

// scaled multiplies a matrix by a factor for each index of the channel axis.
func scaled(w *tensor.Tensor, axis int, factor []float64) []float64 {
	v := float64s(w)
	cols := int(w.Dims[1])
	for i := range v {
		c := i % cols
		if axis == 0 {
			c = i / cols
		}
		v[i] *= factor[c]
	}
	return v
}

// bias returns the constant called name spread over n channels, zeros for "".
func (f *bnFolder) bias(name string, n int64, d tensor.DType) ([]float64, bool) {
	if name == "" {
		return make([]float64, n), true
	}
	t := f.m.Graph.inits[name]
	if t == nil || t.Type != d || len(t.Dims) > 2 {
		return nil, false
	}
	for i, v := range t.Dims { // [N], [1, N], or one value
		if v != 1 && (i != len(t.Dims)-1 || v != n) {
			return nil, false
		}
	}
	v := float64s(t)
	if len(v) == 1 && n > 1 {
		v = slices.Repeat(v, int(n))
	}
	return v, int64(len(v)) == n
}

// set stores t as input i of p: under the present name if p is its only
// reader, else under a new one (fresh where p had no such input).
func (f *bnFolder) set(p *Node, i int, t *tensor.Tensor, fresh string) {
	name := p.In(i)
	switch {
	case name == "":
		name = f.names.Name(fresh)
	case len(f.ix.uses[name]) != 1 || f.ix.outputs[name] || f.ix.captured[name]:
		name = f.names.Name(name + "_folded")
	}
	in := slices.Clone(p.Inputs)
	for len(in) <= i {
		in = append(in, "")
	}
	in[i] = name
	p.Inputs = in
	f.m.Graph.SetInit(name, t)
}
