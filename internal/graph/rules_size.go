package graph

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Operators whose output size is computed: from an input, from axes, from both.

func (f *inferrer) expandShape(n *Node) {
	x := f.in(n, 0)
	f.set(n.out(0), x.Type, broadcastDims(x.Dims, f.target(n.In(1))))
}

// target reads a shape tensor: nil when even its length is unknown.
func (f *inferrer) target(name string) []Dim {
	if name == "" {
		return nil
	}
	c, ok := f.content(name)
	if !ok {
		if s := f.of(name).Dims; len(s) == 1 && s[0].N >= 0 && s[0].N <= tensor.MaxRank {
			return unknowns(int(s[0].N))
		}
		return nil
	}
	dims := make([]Dim, len(c))
	for i, x := range c {
		dims[i] = Dim{N: -1, Name: x.name}
		if x.known && x.v >= 0 {
			dims[i] = Dim{N: x.v}
		}
	}
	return dims
}

func (f *inferrer) tileShape(n *Node) {
	x := f.in(n, 0)
	r, ok := f.known(n.In(1))
	dims := unknowns(len(x.Dims))
	if x.Dims == nil {
		dims = nil
	} else if ok && len(r) == len(dims) {
		for i, d := range x.Dims {
			if r[i] >= 0 {
				dims[i] = times(d, Dim{N: r[i]})
			}
		}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) padShape(n *Node) {
	x := f.in(n, 0)
	if x.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	pads := n.Ints("pads")
	ok := f.m.Opset() < 11
	if !ok {
		pads, ok = f.known(n.In(1))
	}
	axes := make([]int64, len(x.Dims))
	for i := range axes {
		axes[i] = int64(i)
	}
	if n.In(3) != "" {
		var known bool
		axes, known = f.known(n.In(3))
		ok = ok && known
	}
	dims := unknowns(len(x.Dims))
	if ok && len(pads) == 2*len(axes) {
		dims = slices.Clone(x.Dims)
		for i, v := range axes {
			a, ok := axis(v, len(dims))
			if !ok {
				return
			}
			before, after := pads[i], pads[i+len(axes)]
			switch {
			case before == 0 && after == 0:
			case dims[a].N >= 0 && dims[a].N <= tensor.MaxElems && abs(before) <= tensor.MaxElems && abs(after) <= tensor.MaxElems:
				dims[a].N = max(0, dims[a].N+before+after)
			default:
				dims[a] = unknownDim
			}
		}
	}
	f.set(n.out(0), x.Type, dims)
}

// abs saturates: the smallest integer has no counterpart.
func abs(v int64) int64 {
	if v == math.MinInt64 {
		return math.MaxInt64
	}
	return max(v, -v)
}

func (f *inferrer) shapeShape(n *Node) {
	if n.Op == "Size" {
		f.set(n.out(0), tensor.Int64, []Dim{})
		return
	}
	dims := []Dim{unknownDim}
	if x := f.in(n, 0); x.Dims != nil {
		dims[0] = Dim{N: int64(len(shapeRange(n, x.Dims)))}
	}
	f.set(n.out(0), tensor.Int64, dims)
}

// filledShape: the shape is given by an input (ConstantOfShape) or attribute.
func (f *inferrer) filledShape(n *Node) {
	if n.Op != "ConstantOfShape" {
		f.set(n.out(0), tensor.DType(n.Int("dtype", int64(tensor.Float32))), fixed(n.Ints("shape")))
		return
	}
	t := tensor.Float32
	if a := n.Attr("value"); a != nil {
		t = tensor.DType(a.GetT().GetDataType())
	}
	f.set(n.out(0), t, f.target(n.In(0)))
}

func (f *inferrer) likeShape(n *Node) {
	x := f.in(n, 0)
	f.set(n.out(0), tensor.DType(n.Int("dtype", int64(x.Type))), x.Dims)
}

func (f *inferrer) rangeShape(n *Node) {
	d := unknownDim
	start, ok := f.content(n.In(0))
	limit, ok2 := f.content(n.In(1))
	delta, ok3 := f.number(n.In(2))
	if ok && ok2 && ok3 && len(start) == 1 && len(limit) == 1 {
		s, l := start[0], limit[0]
		switch {
		case s.known && l.known && delta != 0 && abs(s.v) < tensor.MaxElems && abs(l.v) < tensor.MaxElems:
			d = Dim{N: int64(math.Max(0, math.Ceil(float64(l.v-s.v)/float64(delta))))}
		case s.known && s.v == 0 && delta == 1 && l.name != "":
			d = Dim{N: -1, Name: l.name}
		}
	}
	f.set(n.out(0), f.in(n, 0).Type, []Dim{d})
}

// reduceShape: axes moved from an attribute to an input with opset 18 (13 for
// ReduceSum).
func (f *inferrer) reduceShape(n *Node) {
	x := f.in(n, 0)
	since := int64(18)
	if n.Op == "ReduceSum" {
		since = 13
	}
	axes, given, ok := f.axesOf(n, since)
	if x.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	keep := n.Int("keepdims", 1) != 0
	if !ok { // how many axes, and which, is unknown
		var dims []Dim
		if keep {
			dims = unknowns(len(x.Dims))
		}
		f.set(n.out(0), x.Type, dims)
		return
	}
	if !given || len(axes) == 0 {
		if n.Int("noop_with_empty_axes", 0) != 0 {
			f.same(n)
			return
		}
		axes = nil
		for i := range x.Dims {
			axes = append(axes, int64(i))
		}
	}
	f.set(n.out(0), x.Type, reduced(x.Dims, axes, keep))
}

func reduced(x []Dim, axes []int64, keep bool) []Dim {
	drop := make([]bool, len(x))
	for _, v := range axes {
		a, ok := axis(v, len(x))
		if !ok {
			return nil
		}
		drop[a] = true
	}
	dims := []Dim{}
	for i, d := range x {
		switch {
		case !drop[i]:
			dims = append(dims, d)
		case keep:
			dims = append(dims, Dim{N: 1})
		}
	}
	return dims
}

func (f *inferrer) argShape(n *Node) {
	x := f.in(n, 0)
	var dims []Dim
	if x.Dims != nil {
		dims = reduced(x.Dims, []int64{n.Int("axis", 0)}, n.Int("keepdims", 1) != 0)
	}
	f.set(n.out(0), tensor.Int64, dims)
}

func (f *inferrer) topKShape(n *Node) {
	x := f.in(n, 0)
	dims := slices.Clone(x.Dims)
	if a, ok := axis(n.Int("axis", -1), len(dims)); ok {
		dims[a] = unknownDim
		if k, ok := f.number(n.In(1)); ok && k >= 0 {
			dims[a] = Dim{N: k}
		}
	}
	f.set(n.out(0), x.Type, dims)
	f.set(n.out(1), tensor.Int64, dims)
}

func (f *inferrer) oneHotShape(n *Node) {
	x := f.in(n, 0)
	var dims []Dim
	if a, ok := axis(n.Int("axis", -1), len(x.Dims)+1); ok && x.Dims != nil {
		depth := unknownDim
		if k, ok := f.number(n.In(1)); ok && k >= 0 {
			depth = Dim{N: k}
		}
		dims = slices.Insert(slices.Clone(x.Dims), a, depth)
	}
	f.set(n.out(0), f.in(n, 2).Type, dims)
}
