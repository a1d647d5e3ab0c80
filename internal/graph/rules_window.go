package graph

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Convolutions, pooling, resizing, recurrent operators and attention.
func init() {
	rules(DomainONNX, (*inferrer).convShape, "Conv", "ConvInteger", "QLinearConv")
	rules(DomainONNX, (*inferrer).convTransposeShape, "ConvTranspose")
	rules(DomainONNX, (*inferrer).poolShape, "MaxPool", "AveragePool", "LpPool")
	rules(DomainONNX, (*inferrer).globalPoolShape, "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
	rules(DomainONNX, (*inferrer).resizeShape, "Resize", "Upsample")
	rules(DomainONNX, (*inferrer).depthShape, "DepthToSpace", "SpaceToDepth")
	rules(DomainONNX, (*inferrer).recurrentShape, "LSTM", "GRU", "RNN")
	rules(DomainONNX, (*inferrer).attentionShape, "Attention")
}

// window is the geometry of a convolution or pooling over r spatial axes.
type window struct{ kernel, stride, dilation, before, after []int64 }

// windowOf reads the attributes; kernel may come from the weight.
func windowOf(n *Node, kernel []int64, r int) (window, bool) {
	fill := func(name string, def int64, want int) []int64 {
		v := n.Ints(name)
		if v == nil {
			return slices.Repeat([]int64{def}, want)
		}
		return v
	}
	pads := fill("pads", 0, 2*r)
	w := window{kernel: kernel, stride: fill("strides", 1, r), dilation: fill("dilations", 1, r)}
	if len(kernel) != r || len(w.stride) != r || len(w.dilation) != r || len(pads) != 2*r {
		return w, false
	}
	w.before, w.after = pads[:r], pads[r:]
	for _, list := range [][]int64{w.kernel, w.stride, w.dilation} {
		for _, v := range list {
			if v < 1 || v > math.MaxInt32 {
				return w, false
			}
		}
	}
	for _, v := range pads {
		if abs(v) > math.MaxInt32 {
			return w, false
		}
	}
	return w, true
}

// size returns the output size on spatial axis i of an input of d.
func (w window) size(n *Node, i int, d Dim) Dim {
	if d.N < 0 || d.N > tensor.MaxElems {
		// A stride-1 window with just enough padding keeps a symbolic size.
		span := (w.kernel[i] - 1) * w.dilation[i]
		same := n.Str("auto_pad", "NOTSET")
		if w.stride[i] == 1 && (same == "SAME_UPPER" || same == "SAME_LOWER" || (same == "NOTSET" && w.before[i]+w.after[i] == span)) {
			return d
		}
		return unknownDim
	}
	switch n.Str("auto_pad", "NOTSET") {
	case "SAME_UPPER", "SAME_LOWER":
		return Dim{N: (d.N + w.stride[i] - 1) / w.stride[i]}
	case "VALID":
		w.before, w.after = make([]int64, len(w.kernel)), make([]int64, len(w.kernel))
	}
	free := d.N + w.before[i] + w.after[i] - (w.kernel[i]-1)*w.dilation[i] - 1
	if free < 0 {
		return unknownDim
	}
	out := free/w.stride[i] + 1
	if n.Int("ceil_mode", 0) != 0 && free%w.stride[i] != 0 && out*w.stride[i] < d.N+w.before[i] {
		out++ // the extra window must start inside the input or its left padding
	}
	return Dim{N: out}
}

// kernelOf returns the spatial kernel of a weight of shape [a, b, kernel...].
func kernelOf(n *Node, w Value) []int64 {
	if k := n.Ints("kernel_shape"); k != nil {
		return k
	}
	if len(w.Dims) < 3 {
		return nil
	}
	k := make([]int64, len(w.Dims)-2)
	for i, d := range w.Dims[2:] {
		k[i] = d.N
	}
	return k
}

func (f *inferrer) convShape(n *Node) {
	weight, t := 1, f.in(n, 0).Type
	switch n.Op {
	case "QLinearConv":
		weight, t = 3, f.in(n, 7).Type
	case "ConvInteger":
		t = tensor.Int32
	}
	x, w := f.in(n, 0), f.in(n, weight)
	r := max(len(x.Dims), len(w.Dims)) - 2
	if r < 1 || (x.Dims != nil && len(x.Dims) != r+2) || (w.Dims != nil && len(w.Dims) != r+2) {
		f.set(n.out(0), t, nil)
		return
	}
	dims := unknowns(r + 2)
	if x.Dims != nil {
		dims[0] = x.Dims[0]
	}
	if w.Dims != nil {
		dims[1] = w.Dims[0]
	}
	if win, ok := windowOf(n, kernelOf(n, w), r); ok && x.Dims != nil {
		for i := range r {
			dims[2+i] = win.size(n, i, x.Dims[2+i])
		}
	}
	f.set(n.out(0), t, dims)
}

func (f *inferrer) convTransposeShape(n *Node) {
	x, w := f.in(n, 0), f.in(n, 1)
	r := len(x.Dims) - 2
	if r < 1 || len(w.Dims) != r+2 {
		f.set(n.out(0), x.Type, nil)
		return
	}
	dims := unknowns(r + 2)
	dims[0] = x.Dims[0]
	if group := n.Int("group", 1); group >= 1 {
		dims[1] = times(w.Dims[1], Dim{N: group})
	}
	extra := n.Ints("output_padding")
	win, ok := windowOf(n, kernelOf(n, w), r)
	for i := 0; i < r && ok; i++ {
		if out := n.Ints("output_shape"); len(out) == r {
			dims[2+i] = Dim{N: out[i]}
			continue
		}
		d := x.Dims[2+i].N
		if d < 1 || d > math.MaxInt32 {
			continue
		}
		switch n.Str("auto_pad", "NOTSET") {
		case "SAME_UPPER", "SAME_LOWER":
			dims[2+i] = Dim{N: d * win.stride[i]}
			continue
		case "VALID":
			win.before, win.after = make([]int64, r), make([]int64, r)
		}
		out := win.stride[i]*(d-1) + (win.kernel[i]-1)*win.dilation[i] + 1 - win.before[i] - win.after[i]
		if len(extra) == r && abs(extra[i]) <= math.MaxInt32 {
			out += extra[i]
		}
		if out >= 0 {
			dims[2+i] = Dim{N: out}
		}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) poolShape(n *Node) {
	x := f.in(n, 0)
	r := len(x.Dims) - 2
	if r < 1 {
		f.set(n.out(0), x.Type, nil)
		return
	}
	dims := slices.Clone(x.Dims)
	win, ok := windowOf(n, n.Ints("kernel_shape"), r)
	for i := range r {
		dims[2+i] = unknownDim
		if ok {
			dims[2+i] = win.size(n, i, x.Dims[2+i])
		}
	}
	f.set(n.out(0), x.Type, dims)
	f.set(n.out(1), tensor.Int64, dims)
}

func (f *inferrer) globalPoolShape(n *Node) {
	x := f.in(n, 0)
	dims := slices.Clone(x.Dims)
	for i := 2; i < len(dims); i++ {
		dims[i] = Dim{N: 1}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) resizeShape(n *Node) {
	x := f.in(n, 0)
	if x.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	dims := unknowns(len(x.Dims))
	scales, sizes := n.In(1), ""
	if n.Op == "Resize" && f.m.Opset() >= 11 {
		scales, sizes = n.In(2), n.In(3)
	}
	if t := f.m.Graph.inits[scales]; sizes == "" && t != nil && t.Type == tensor.Float32 && t.Len() == int64(len(dims)) && n.Attr("axes") == nil {
		for i, s := range tensor.View[float32](t) {
			switch d := x.Dims[i]; {
			case s == 1:
				dims[i] = d
			case d.N >= 0 && s > 0 && float64(d.N)*float64(s) < tensor.MaxElems:
				dims[i] = Dim{N: int64(math.Floor(float64(d.N) * float64(s)))}
			}
		}
	}
	if to := f.target(sizes); len(to) == len(dims) && n.Attr("axes") == nil && n.Str("keep_aspect_ratio_policy", "stretch") == "stretch" {
		dims = to
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) depthShape(n *Node) {
	x := f.in(n, 0)
	b := Dim{N: n.Int("blocksize", 1)}
	if len(x.Dims) != 4 || b.N < 1 || b.N > math.MaxInt16 {
		f.set(n.out(0), x.Type, nil)
		return
	}
	dims := slices.Clone(x.Dims)
	bb := times(b, b)
	if n.Op == "DepthToSpace" {
		dims[1] = quotient(x.Dims[1:2], []Dim{bb})
		dims[2], dims[3] = times(dims[2], b), times(dims[3], b)
	} else {
		dims[1] = times(dims[1], bb)
		dims[2], dims[3] = quotient(x.Dims[2:3], []Dim{b}), quotient(x.Dims[3:4], []Dim{b})
	}
	f.set(n.out(0), x.Type, dims)
}

// recurrentShape: Y is [steps, directions, batch, hidden] (layout 0).
func (f *inferrer) recurrentShape(n *Node) {
	x, w := f.in(n, 0), f.in(n, 2)
	if len(x.Dims) != 3 || len(w.Dims) != 3 || n.Int("layout", 0) != 0 {
		return
	}
	steps, batch, dirs, hidden := x.Dims[0], x.Dims[1], w.Dims[0], w.Dims[2]
	f.set(n.out(0), x.Type, []Dim{steps, dirs, batch, hidden})
	f.set(n.out(1), x.Type, []Dim{dirs, batch, hidden})
	f.set(n.out(2), x.Type, []Dim{dirs, batch, hidden})
}

// attentionShape is Attention-23 of the standard domain: Q, K, V of rank 3
// [batch, length, heads*size] or rank 4 [batch, heads, length, size].
func (f *inferrer) attentionShape(n *Node) {
	q, v := f.in(n, 0), f.in(n, 2)
	var dims []Dim
	switch {
	case len(q.Dims) == 4 && len(v.Dims) == 4:
		dims = []Dim{q.Dims[0], q.Dims[1], q.Dims[2], v.Dims[3]}
	case len(q.Dims) == 3 && len(v.Dims) == 3:
		heads, kv := n.Int("q_num_heads", 0), n.Int("kv_num_heads", 0)
		last := unknownDim
		if heads > 0 && heads == kv {
			last = v.Dims[2]
		} else if kv > 0 && v.Dims[2].N >= 0 {
			last = times(Dim{N: v.Dims[2].N / kv}, Dim{N: heads})
		}
		dims = []Dim{q.Dims[0], q.Dims[1], last}
	}
	f.set(n.out(0), q.Type, dims)
}
