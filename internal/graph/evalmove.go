package graph

import (
	"encoding/binary"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

func (c *evalCall) transpose() *tensor.Tensor {
	t := c.arg(0)
	if t == nil {
		return nil
	}
	perm, ok := permutation(c.node, len(t.Dims))
	if !ok {
		return nil
	}
	in := rowMajor(t.Dims)
	dims, strides := make([]int64, len(perm)), make([]int64, len(perm))
	for i, p := range perm {
		dims[i], strides[i] = t.Dims[p], in[p]
	}
	return c.gatherStrided(t, dims, strides, 0)
}

// permutation returns Transpose's perm, reversed axes by default.
func permutation(n *Node, rank int) ([]int, bool) {
	perm := make([]int, rank)
	a := n.Attr("perm")
	if a == nil {
		for i := range perm {
			perm[i] = rank - 1 - i
		}
		return perm, true
	}
	if len(a.Ints) != rank {
		return nil, false
	}
	seen := make([]bool, rank)
	for i, p := range a.Ints {
		if p < 0 || p >= int64(rank) || seen[p] {
			return nil, false
		}
		seen[p], perm[i] = true, int(p)
	}
	return perm, true
}

// rowMajor returns the strides, in elements, of a dense tensor.
func rowMajor(dims []int64) []int64 {
	s := make([]int64, len(dims))
	n := int64(1)
	for i := len(dims) - 1; i >= 0; i-- {
		s[i] = n
		n *= dims[i]
	}
	return s
}

// gatherStrided copies t's elements at offset + sum(i*stride) into a dense
// tensor of the given dimensions. Strides are in elements; 0 repeats.
func (c *evalCall) gatherStrided(t *tensor.Tensor, dims, strides []int64, offset int64) *tensor.Tensor {
	if t.Type.Bits()%8 != 0 {
		return nil
	}
	r := c.alloc(t.Type, dims)
	if r == nil || len(r.Data) == 0 {
		return r
	}
	size := int64(t.Type.Bits() / 8)
	rank := len(dims)
	if rank == 0 {
		copy(r.Data, t.Data[offset*size:(offset+1)*size])
		return r
	}
	cols, step := dims[rank-1], strides[rank-1]
	dst := r.Data
	walk(dims[:rank-1], [][]int64{strides[:rank-1]}, func(at []int64) bool {
		row := dst[:cols*size]
		dst = dst[cols*size:]
		src := (offset + at[0]) * size
		switch {
		case step == 1:
			copy(row, t.Data[src:])
		case size == 4:
			for i := int64(0); i < cols; i++ {
				binary.LittleEndian.PutUint32(row[i*4:], binary.LittleEndian.Uint32(t.Data[src+i*step*4:]))
			}
		default:
			for i := int64(0); i < cols; i++ {
				copy(row[i*size:(i+1)*size], t.Data[src+i*step*size:])
			}
		}
		return true
	})
	return r
}

// walk calls f for each index of dims in row-major order, with the element
// offset under each of the stride sets, until f returns false. at is reused.
func walk(dims []int64, strides [][]int64, f func(at []int64) bool) {
	index := make([]int64, len(dims))
	at := make([]int64, len(strides))
	for f(at) {
		i := len(dims) - 1
		for ; i >= 0; i-- {
			for k, s := range strides {
				at[k] += s[i]
			}
			if index[i]++; index[i] < dims[i] {
				break
			}
			for k, s := range strides {
				at[k] -= s[i] * dims[i]
			}
			index[i] = 0
		}
		if i < 0 {
			return
		}
	}
}

func (c *evalCall) concat() *tensor.Tensor {
	first := c.arg(0)
	if first == nil || first.Type.Bits()%8 != 0 {
		return nil
	}
	a, ok := axis(c.node.Int("axis", 0), len(first.Dims))
	if !ok || c.node.Attr("axis") == nil {
		return nil
	}
	dims := slices.Clone(first.Dims)
	dims[a] = 0
	for _, t := range c.in {
		if t == nil || t.Type != first.Type || len(t.Dims) != len(dims) {
			return nil
		}
		for i, d := range t.Dims {
			if i != a && d != dims[i] {
				return nil
			}
		}
		dims[a] += t.Dims[a]
	}
	r := c.alloc(first.Type, dims)
	if r == nil || len(r.Data) == 0 {
		return r
	}
	outer, _ := tensor.Elems(dims[:a])
	dst := r.Data
	for o := range outer {
		for _, t := range c.in {
			n := int64(len(t.Data)) / outer
			dst = dst[copy(dst, t.Data[o*n:(o+1)*n]):]
		}
	}
	return r
}

func (c *evalCall) gather() *tensor.Tensor {
	t, index := c.arg(0), c.arg(1)
	if t == nil || index == nil || t.Type.Bits()%8 != 0 || index.Len() > c.maxElems {
		return nil
	}
	at, ok := ints(&tensor.Tensor{Type: index.Type, Dims: []int64{index.Len()}, Data: index.Data})
	a, ok2 := axis(c.node.Int("axis", 0), len(t.Dims))
	if !ok || !ok2 {
		return nil
	}
	dims := slices.Concat(t.Dims[:a], index.Dims, t.Dims[a+1:])
	n := t.Dims[a]
	for _, i := range at {
		if i < -n || i >= n {
			return nil
		}
	}
	r := c.alloc(t.Type, dims)
	if r == nil || len(r.Data) == 0 {
		return r
	}
	outer, _ := tensor.Elems(t.Dims[:a])
	block := int64(len(t.Data)) / outer / n
	dst := r.Data
	for o := range outer {
		for _, i := range at {
			if i < 0 {
				i += n
			}
			from := (o*n + i) * block
			dst = dst[copy(dst, t.Data[from:from+block]):]
		}
	}
	return r
}

func (c *evalCall) slice() *tensor.Tensor {
	t := c.arg(0)
	if t == nil {
		return nil
	}
	cuts, ok := c.slices(len(t.Dims))
	if !ok {
		return nil
	}
	dims, strides := slices.Clone(t.Dims), rowMajor(t.Dims)
	offset := int64(0)
	for _, s := range cuts {
		from, n := s.of(t.Dims[s.axis])
		dims[s.axis] = n
		if n > 0 {
			offset += from * strides[s.axis]
		}
		strides[s.axis] *= s.step
	}
	return c.gatherStrided(t, dims, strides, offset)
}

// cut is one axis of a Slice.
type cut struct {
	axis             int
	start, end, step int64
}

// slices reads the cuts from the attributes (before opset 10) or the inputs.
func (c *evalCall) slices(rank int) ([]cut, bool) {
	var starts, ends, axes, steps []int64
	ok, ok2, ok3, ok4 := true, true, true, true
	if c.opset < 10 {
		starts, ends, axes = c.node.Ints("starts"), c.node.Ints("ends"), c.node.Ints("axes")
	} else {
		starts, ok = ints(c.arg(1))
		ends, ok2 = ints(c.arg(2))
		if c.arg(3) != nil {
			axes, ok3 = ints(c.arg(3))
		}
		if c.arg(4) != nil {
			steps, ok4 = ints(c.arg(4))
		}
	}
	if !ok || !ok2 || !ok3 || !ok4 || len(starts) != len(ends) ||
		(axes != nil && len(axes) != len(starts)) || (steps != nil && len(steps) != len(starts)) {
		return nil, false
	}
	r := make([]cut, len(starts))
	seen := make([]bool, rank)
	for i := range starts {
		s := cut{start: starts[i], end: ends[i], step: 1}
		if steps != nil {
			s.step = steps[i]
		}
		a := int64(i)
		if axes != nil {
			a = axes[i]
		}
		var ok bool
		if s.axis, ok = axis(a, rank); !ok || seen[s.axis] || s.step == 0 {
			return nil, false
		}
		seen[s.axis] = true
		r[i] = s
	}
	return r, true
}

// of returns the first index and the count of the cut on a dimension of d
// (Slice-13: negative values count from the end, then both are clamped).
func (s cut) of(d int64) (from, n int64) {
	start, end := s.start, s.end
	if start < 0 {
		start += d
	}
	if end < 0 {
		end += d
	}
	step := max(min(s.step, d+1), -d-1) // one step leaves the dimension either way
	if step > 0 {
		start, end = min(max(start, 0), d), min(max(end, 0), d)
		return start, max(0, (end-start+step-1)/step)
	}
	start, end = min(max(start, 0), d-1), min(max(end, -1), d-1)
	return start, max(0, (start-end-step-1)/-step)
}
