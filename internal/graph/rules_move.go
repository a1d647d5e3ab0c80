package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Operators that move elements.

func (f *inferrer) transposeShape(n *Node) {
	x := f.in(n, 0)
	if x.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	perm, ok := permutation(n, len(x.Dims))
	if !ok {
		return
	}
	dims := make([]Dim, len(perm))
	for i, p := range perm {
		dims[i] = x.Dims[p]
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) flattenShape(n *Node) {
	x := f.in(n, 0)
	dims := unknowns(2)
	if x.Dims != nil {
		a := n.Int("axis", 1)
		if a < 0 {
			a += int64(len(x.Dims))
		}
		if a < 0 || a > int64(len(x.Dims)) {
			return
		}
		dims[0], dims[1] = product(x.Dims[:a]), product(x.Dims[a:])
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) concatShape(n *Node) {
	first := f.in(n, 0)
	var dims []Dim
	for i := range n.Inputs {
		v := f.in(n, i)
		if v.Dims == nil {
			f.set(n.out(0), first.Type, nil)
			return
		}
		a, ok := axis(n.Int("axis", 0), len(v.Dims))
		if !ok || (dims != nil && len(dims) != len(v.Dims)) {
			return
		}
		if dims == nil {
			dims = slices.Clone(v.Dims)
			continue
		}
		for k, d := range v.Dims {
			if k == a {
				dims[k] = plus(dims[k], d)
			} else if dims[k].N < 0 && d.N >= 0 {
				dims[k] = d
			}
		}
	}
	f.set(n.out(0), first.Type, dims)
}

func (f *inferrer) splitShape(n *Node) {
	x := f.in(n, 0)
	a, ok := axis(n.Int("axis", 0), len(x.Dims))
	if !ok {
		for _, o := range n.Outputs {
			f.set(o, x.Type, nil)
		}
		return
	}
	sizes := n.Ints("split")
	if n.In(1) != "" {
		sizes, _ = f.known(n.In(1))
	}
	parts := int64(len(n.Outputs))
	for i, o := range n.Outputs {
		dims := slices.Clone(x.Dims)
		switch d := x.Dims[a].N; {
		case len(sizes) == len(n.Outputs):
			dims[a] = Dim{N: sizes[i]}
		case n.In(1) != "" || n.Attr("split") != nil || d < 0:
			dims[a] = unknownDim
		default: // equal parts, the last one smaller (Split-18)
			each := (d + parts - 1) / parts
			dims[a] = Dim{N: max(0, min(each, d-each*int64(i)))}
		}
		f.set(o, x.Type, dims)
	}
}

func (f *inferrer) gatherShape(n *Node) {
	x, at := f.in(n, 0), f.in(n, 1)
	a, ok := axis(n.Int("axis", 0), len(x.Dims))
	if !ok || at.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	f.set(n.out(0), x.Type, joined(x.Dims[:a], at.Dims, x.Dims[a+1:]))
}

// joined concatenates; the result of nothing is a scalar's dimensions, not nil.
func joined(parts ...[]Dim) []Dim {
	return append([]Dim{}, slices.Concat(parts...)...)
}

func (f *inferrer) gatherNDShape(n *Node) {
	x, at := f.in(n, 0), f.in(n, 1)
	var dims []Dim
	if k := len(at.Dims); k > 0 && at.Dims[k-1].N >= 0 {
		skip := at.Dims[k-1].N + n.Int("batch_dims", 0)
		if skip >= 0 && skip <= int64(len(x.Dims)) {
			dims = joined(at.Dims[:k-1], x.Dims[skip:])
		}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) sliceShape(n *Node) {
	x := f.in(n, 0)
	if x.Dims == nil {
		f.set(n.out(0), x.Type, nil)
		return
	}
	dims := slices.Clone(x.Dims)
	if cuts, ok := f.cuts(n, len(dims)); ok {
		for _, s := range cuts {
			switch d := dims[s.axis]; {
			case d.N >= 0:
				_, d.N = s.of(d.N)
				dims[s.axis] = d
			case s.start == 0 && s.step == 1 && s.end >= 1<<31-1: // all of it
			default:
				dims[s.axis] = unknownDim
			}
		}
	} else { // the axes may be known where the ends are not
		axes, ok := f.known(n.In(3))
		for i := range dims {
			touched := !ok
			for _, a := range axes {
				k, _ := axis(a, len(dims))
				touched = touched || k == i
			}
			if touched {
				dims[i] = unknownDim
			}
		}
		f.sliceBySymbol(n, x.Dims, dims)
	}
	f.set(n.out(0), x.Type, dims)
}

// sliceBySymbol recognises x[0:d] of one axis where d is a symbolic dimension:
// position tables cut to the sequence length.
func (f *inferrer) sliceBySymbol(n *Node, from, dims []Dim) {
	start, ok := f.number(n.In(1))
	end, ok2 := f.content(n.In(2))
	axes, ok3 := f.known(n.In(3))
	step := int64(1)
	if n.In(4) != "" {
		step, _ = f.number(n.In(4))
	}
	if !ok || !ok2 || !ok3 || start != 0 || step != 1 || len(end) != 1 || len(axes) != 1 || end[0].name == "" {
		return
	}
	if a, ok := axis(axes[0], len(dims)); ok && from[a].N > 1 { // the table is long enough, or the model fails when run
		dims[a] = Dim{N: -1, Name: end[0].name}
	}
}

// axesOf reads axes from the attribute or, from opset `since` on, an input.
func (f *inferrer) axesOf(n *Node, since int64) (axes []int64, given, ok bool) {
	if f.m.Opset() < since {
		a := n.Attr("axes")
		return a.GetInts(), a != nil, true
	}
	if n.In(1) == "" {
		return nil, false, true
	}
	axes, ok = f.known(n.In(1))
	return axes, true, ok
}

func (f *inferrer) squeezeShape(n *Node) {
	x := f.in(n, 0)
	axes, given, ok := f.axesOf(n, 13)
	if x.Dims == nil || !ok {
		f.set(n.out(0), x.Type, nil)
		return
	}
	drop := make([]bool, len(x.Dims))
	if !given {
		for i, d := range x.Dims {
			if d.N < 0 { // it may be 1 or not: the rank is unknown
				f.set(n.out(0), x.Type, nil)
				return
			}
			drop[i] = d.N == 1
		}
	}
	for _, v := range axes {
		a, ok := axis(v, len(drop))
		if !ok {
			return
		}
		drop[a] = true
	}
	dims := []Dim{}
	for i, d := range x.Dims {
		if !drop[i] {
			dims = append(dims, d)
		}
	}
	f.set(n.out(0), x.Type, dims)
}

func (f *inferrer) unsqueezeShape(n *Node) {
	x := f.in(n, 0)
	axes, given, ok := f.axesOf(n, 13)
	if x.Dims == nil || !given || !ok || len(axes) > tensor.MaxRank {
		f.set(n.out(0), x.Type, nil)
		return
	}
	if dims, ok := unsqueezed(x.Dims, axes, Dim{N: 1}); ok {
		f.set(n.out(0), x.Type, dims)
	}
}
