package graph

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// evalCall is one evaluation of a node on constant inputs.
type evalCall struct {
	node     *Node
	opset    int64
	in       []*tensor.Tensor // nil where an optional input is omitted
	maxElems int64
	maxBytes int64
	made     int64 // bytes allocated
}

// evaluators maps a standard operator to its evaluation. Each returns nil when
// the inputs are not what it knows: the node then stays.
//
// Operators that only move elements are in this file, arithmetic in evalmath.go.
var evaluators map[string]func(*evalCall) *tensor.Tensor

func init() { // a literal would refer to itself through (*evalCall).binary
	evaluators = map[string]func(*evalCall) *tensor.Tensor{
		"Identity": (*evalCall).identity, "Reshape": (*evalCall).reshape, "Flatten": (*evalCall).flatten,
		"Squeeze": (*evalCall).squeeze, "Unsqueeze": (*evalCall).unsqueeze, "Transpose": (*evalCall).transpose,
		"Concat": (*evalCall).concat, "Gather": (*evalCall).gather, "Slice": (*evalCall).slice,
		"ConstantOfShape": (*evalCall).constantOfShape, "Expand": (*evalCall).expand, "Range": (*evalCall).rangeOf,
		"Cast": (*evalCall).cast, "Where": (*evalCall).where,
		"Add": (*evalCall).binary, "Sub": (*evalCall).binary, "Mul": (*evalCall).binary, "Div": (*evalCall).binary,
		"Pow": (*evalCall).binary, "Min": (*evalCall).variadic, "Max": (*evalCall).variadic,
		"Equal": (*evalCall).compare, "Greater": (*evalCall).compare, "Less": (*evalCall).compare,
		"GreaterOrEqual": (*evalCall).compare, "LessOrEqual": (*evalCall).compare,
		"And": (*evalCall).logical, "Or": (*evalCall).logical, "Xor": (*evalCall).logical, "Not": (*evalCall).not,
		"Neg": (*evalCall).unary, "Abs": (*evalCall).unary, "Sqrt": (*evalCall).unary, "Reciprocal": (*evalCall).unary,
		"Floor": (*evalCall).unary, "Ceil": (*evalCall).unary,
	}
}

// arg returns input i, or nil.
func (c *evalCall) arg(i int) *tensor.Tensor {
	if i < len(c.in) {
		return c.in[i]
	}
	return nil
}

// alloc returns a zeroed tensor within the limits, or nil.
func (c *evalCall) alloc(d tensor.DType, dims []int64) *tensor.Tensor {
	n, err := tensor.Elems(dims)
	if err != nil || n > c.maxElems || d.Bits() == 0 || d.Bytes(n) > c.maxBytes-c.made {
		return nil
	}
	t, err := tensor.New(d, slices.Clone(dims)...)
	if err != nil {
		return nil
	}
	c.made += int64(len(t.Data))
	return t
}

// ints reads an integer tensor of rank 0 or 1 with few elements.
func ints(t *tensor.Tensor) ([]int64, bool) {
	if t == nil || len(t.Dims) > 1 || t.Len() > foldElems {
		return nil, false
	}
	switch t.Type {
	case tensor.Int64:
		return tensor.View[int64](t), true
	case tensor.Int32:
		v := tensor.View[int32](t)
		r := make([]int64, len(v))
		for i, x := range v {
			r[i] = int64(x)
		}
		return r, true
	}
	return nil, false
}

// axis normalises a to 0..rank-1.
func axis(a int64, rank int) (int, bool) {
	if a < 0 {
		a += int64(rank)
	}
	return int(a), a >= 0 && a < int64(rank)
}

// shaped is t under other dimensions, sharing its bytes; nil when the element
// counts differ.
func shaped(t *tensor.Tensor, dims []int64) *tensor.Tensor {
	n, err := tensor.Elems(dims)
	if err != nil || n != t.Len() {
		return nil
	}
	return &tensor.Tensor{Type: t.Type, Dims: dims, Data: t.Data}
}

func (c *evalCall) identity() *tensor.Tensor {
	t := c.arg(0)
	if t == nil {
		return nil
	}
	return shaped(t, slices.Clone(t.Dims))
}

// shapeOf is Shape or Size of a value of these dimensions.
func (c *evalCall) shapeOf(dims []Dim) *tensor.Tensor {
	if c.node.Op == "Size" {
		n := int64(1)
		for _, d := range dims {
			if d.N < 0 || (d.N > 0 && n > tensor.MaxElems/d.N) {
				return nil
			}
			n *= d.N
		}
		return tensor.From([]int64{n})
	}
	dims = shapeRange(c.node, dims)
	v := make([]int64, len(dims))
	for i, d := range dims {
		if d.N < 0 {
			return nil
		}
		v[i] = d.N
	}
	return tensor.From(v, int64(len(v)))
}

// shapeRange applies Shape-15's start and end attributes.
func shapeRange(n *Node, dims []Dim) []Dim {
	rank := int64(len(dims))
	clamp := func(v int64) int64 {
		if v < 0 {
			v += rank
		}
		return min(max(v, 0), rank)
	}
	start, end := clamp(n.Int("start", 0)), clamp(n.Int("end", rank))
	return dims[start:max(start, end)]
}

func (c *evalCall) reshape() *tensor.Tensor {
	t := c.arg(0)
	to, ok := ints(c.arg(1))
	if t == nil || !ok || len(c.arg(1).Dims) != 1 || len(to) > tensor.MaxRank {
		return nil
	}
	dims, ok := reshaped(t.Dims, to, c.node.Int("allowzero", 0) != 0)
	if !ok {
		return nil
	}
	return shaped(t, dims)
}

// reshaped applies a Reshape target: 0 copies the dimension (unless allowZero),
// one -1 takes what is left.
func reshaped(from, to []int64, allowZero bool) ([]int64, bool) {
	dims := slices.Clone(to)
	open, known := -1, int64(1)
	for i, d := range dims {
		switch {
		case d == -1 && open < 0:
			open = i
			continue
		case d < 0:
			return nil, false
		case d == 0 && !allowZero:
			if i >= len(from) {
				return nil, false
			}
			d = from[i]
			dims[i] = d
		}
		if d > 0 && known > tensor.MaxElems/d {
			return nil, false
		}
		known *= d
	}
	total, err := tensor.Elems(from)
	if err != nil {
		return nil, false
	}
	if open >= 0 {
		if known == 0 || total%known != 0 {
			return nil, false
		}
		dims[open] = total / known
		known *= dims[open]
	}
	return dims, known == total
}

func (c *evalCall) flatten() *tensor.Tensor {
	t := c.arg(0)
	if t == nil {
		return nil
	}
	rank := int64(len(t.Dims))
	a := c.node.Int("axis", 1)
	if a < 0 {
		a += rank
	}
	if a < 0 || a > rank {
		return nil
	}
	rows, err := tensor.Elems(t.Dims[:a])
	cols, err2 := tensor.Elems(t.Dims[a:])
	if err != nil || err2 != nil {
		return nil
	}
	return shaped(t, []int64{rows, cols})
}

// axesArg reads axes from the attribute (before opset 13) or from input 1.
// given is false when neither is there.
func (c *evalCall) axesArg() (axes []int64, given, ok bool) {
	if c.opset < 13 {
		a := c.node.Attr("axes")
		return a.GetInts(), a != nil, true
	}
	if c.arg(1) == nil {
		return nil, false, true
	}
	axes, ok = ints(c.arg(1))
	return axes, true, ok
}

func (c *evalCall) squeeze() *tensor.Tensor {
	t := c.arg(0)
	axes, given, ok := c.axesArg()
	if t == nil || !ok {
		return nil
	}
	drop := make([]bool, len(t.Dims))
	for i, d := range t.Dims {
		drop[i] = !given && d == 1
	}
	for _, v := range axes {
		a, ok := axis(v, len(t.Dims))
		if !ok || t.Dims[a] != 1 {
			return nil
		}
		drop[a] = true
	}
	dims := []int64{}
	for i, d := range t.Dims {
		if !drop[i] {
			dims = append(dims, d)
		}
	}
	return shaped(t, dims)
}

func (c *evalCall) unsqueeze() *tensor.Tensor {
	t := c.arg(0)
	axes, given, ok := c.axesArg()
	if t == nil || !given || !ok || len(t.Dims)+len(axes) > tensor.MaxRank {
		return nil
	}
	dims, ok := unsqueezed(t.Dims, axes, 1)
	if !ok {
		return nil
	}
	return shaped(t, dims)
}

// unsqueezed inserts one at each of the axes of the result.
func unsqueezed[T any](dims []T, axes []int64, one T) ([]T, bool) {
	rank := len(dims) + len(axes)
	at := make([]bool, rank)
	for _, v := range axes {
		a, ok := axis(v, rank)
		if !ok || at[a] {
			return nil, false
		}
		at[a] = true
	}
	r := make([]T, 0, rank)
	for i, k := 0, 0; i < rank; i++ {
		if at[i] {
			r = append(r, one)
		} else {
			r = append(r, dims[k])
			k++
		}
	}
	return r, true
}

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

func (c *evalCall) constantOfShape() *tensor.Tensor {
	dims, ok := ints(c.arg(0))
	if !ok || len(dims) > tensor.MaxRank {
		return nil
	}
	a := c.node.Attr("value")
	if a == nil {
		return c.alloc(tensor.Float32, dims)
	}
	if a.T == nil {
		return nil
	}
	v, err := TensorFromProto(a.T)
	if err != nil || v.Len() != 1 || v.Type == tensor.String || v.Type.Bits()%8 != 0 {
		return nil
	}
	return c.gatherStrided(v, dims, make([]int64, len(dims)), 0)
}

func (c *evalCall) expand() *tensor.Tensor {
	t := c.arg(0)
	to, ok := ints(c.arg(1))
	if t == nil || !ok {
		return nil
	}
	dims, ok := broadcast(t.Dims, to)
	if !ok {
		return nil
	}
	return c.gatherStrided(t, dims, broadcastStrides(t.Dims, dims), 0)
}

// broadcast returns the dimensions that a and b broadcast to (numpy's rule).
func broadcast(a, b []int64) ([]int64, bool) {
	r := make([]int64, max(len(a), len(b)))
	if len(r) > tensor.MaxRank {
		return nil, false
	}
	for i := range r {
		x, y := fromEnd(a, len(r)-i), fromEnd(b, len(r)-i)
		switch {
		case x == y || y == 1:
			r[i] = x
		case x == 1:
			r[i] = y
		default:
			return nil, false
		}
	}
	return r, true
}

// fromEnd returns dims[len-k], 1 before the front.
func fromEnd(dims []int64, k int) int64 {
	if k > len(dims) {
		return 1
	}
	return dims[len(dims)-k]
}

// broadcastStrides returns the strides with which a dense tensor of dims from
// is read under the dimensions to.
func broadcastStrides(from, to []int64) []int64 {
	s := make([]int64, len(to))
	dense := rowMajor(from)
	for i := range from {
		if from[i] != 1 {
			s[len(to)-len(from)+i] = dense[i]
		}
	}
	return s
}

// rangeOf evaluates Range. Sums and multiples of a fractional step differ in
// their last bits; where they do, the node stays.
func (c *evalCall) rangeOf() *tensor.Tensor {
	start, limit, delta := c.arg(0), c.arg(1), c.arg(2)
	for _, t := range []*tensor.Tensor{start, limit, delta} {
		if t == nil || t.Type != start.Type || t.Len() != 1 {
			return nil
		}
	}
	switch start.Type {
	case tensor.Int64:
		return rangeIn[int64](c, start, limit, delta)
	case tensor.Int32:
		return rangeIn[int32](c, start, limit, delta)
	case tensor.Float32:
		return rangeIn[float32](c, start, limit, delta)
	case tensor.Float64:
		return rangeIn[float64](c, start, limit, delta)
	}
	return nil
}

func rangeIn[T int32 | int64 | float32 | float64](c *evalCall, ts, tl, td *tensor.Tensor) *tensor.Tensor {
	start, limit, delta := tensor.View[T](ts)[0], tensor.View[T](tl)[0], tensor.View[T](td)[0]
	const exact = 1 << 53
	for _, v := range []T{start, limit, delta} {
		if f := float64(v); !(math.Abs(f) < exact) {
			return nil
		}
	}
	if delta == 0 {
		return nil
	}
	n := math.Max(0, math.Ceil((float64(limit)-float64(start))/float64(delta)))
	if n > float64(c.maxElems) || n != math.Max(0, math.Ceil(float64(limit-start)/float64(delta))) {
		return nil // too long, or the count depends on where the difference is rounded
	}
	r := c.alloc(ts.Type, []int64{int64(n)})
	if r == nil {
		return nil
	}
	v := tensor.View[T](r) // freshly made, so this is the tensor's own memory
	sum := start
	for i := range v {
		if v[i] = start + T(i)*delta; v[i] != sum {
			return nil
		}
		sum += delta
	}
	return r
}
