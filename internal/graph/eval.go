package graph

import (
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

// evaluator computes one operator. run returns nil when the inputs are not what
// it knows: the node then stays.
type evaluator struct {
	run    func(*evalCall) *tensor.Tensor
	inputs int // at most; 0 for any number
}

// evaluators maps a standard operator to its evaluation. Operators that copy
// elements about are in evalmove.go, arithmetic in evalmath.go.
var evaluators = map[string]evaluator{
	"Identity": {(*evalCall).identity, 1}, "Reshape": {(*evalCall).reshape, 2}, "Flatten": {(*evalCall).flatten, 1},
	"Squeeze": {(*evalCall).squeeze, 2}, "Unsqueeze": {(*evalCall).unsqueeze, 2}, "Transpose": {(*evalCall).transpose, 1},
	"Concat": {(*evalCall).concat, 0}, "Gather": {(*evalCall).gather, 2}, "Slice": {(*evalCall).slice, 5},
	"ConstantOfShape": {(*evalCall).constantOfShape, 1}, "Expand": {(*evalCall).expand, 2}, "Range": {(*evalCall).rangeOf, 3},
	"Cast": {(*evalCall).cast, 1}, "Where": {(*evalCall).where, 3},
	"Add": {(*evalCall).binary, 2}, "Sub": {(*evalCall).binary, 2}, "Mul": {(*evalCall).binary, 2}, "Div": {(*evalCall).binary, 2}, "Mod": {(*evalCall).binary, 2},
	"Pow": {(*evalCall).binary, 2}, "Min": {(*evalCall).variadic, 0}, "Max": {(*evalCall).variadic, 0},
	"Equal": {(*evalCall).compare, 2}, "Greater": {(*evalCall).compare, 2}, "Less": {(*evalCall).compare, 2},
	"GreaterOrEqual": {(*evalCall).compare, 2}, "LessOrEqual": {(*evalCall).compare, 2},
	"And": {(*evalCall).logical, 2}, "Or": {(*evalCall).logical, 2}, "Xor": {(*evalCall).logical, 2}, "Not": {(*evalCall).not, 1},
	"Neg": {(*evalCall).unary, 1}, "Abs": {(*evalCall).unary, 1}, "Sqrt": {(*evalCall).unary, 1}, "Reciprocal": {(*evalCall).unary, 1},
	"Floor": {(*evalCall).unary, 1}, "Ceil": {(*evalCall).unary, 1},
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
	return t.Ints()
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
