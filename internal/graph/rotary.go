package graph

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Rotary is a value [batch, heads, length, size] that is turned by its positions, the
// halves of its last axis against each other:
//
//	X * Cos + Concat(-X[size/2:], X[:size/2]) * Sin
type Rotary struct {
	X        string
	Cos, Sin string // [batch or 1, 1, length, size]
}

// RotaryOf returns the rotation that makes value; ok is false for anything else, among it
// the form that turns neighbours (interleaved). The graph's shapes must have been inferred.
func RotaryOf(g *Graph, ix *Index, value string) (r Rotary, ok bool) {
	d := g.Dims(value)
	sum := ix.Producer(value)
	if len(d) != 4 || d[3].N < 2 || d[3].N%2 != 0 || sum == nil || !sum.Is("Add") {
		return r, false
	}
	for i := range 2 {
		a, b := ix.Producer(sum.In(i)), ix.Producer(sum.In(1-i))
		if a == nil || b == nil || !a.Is("Mul") || !b.Is("Mul") {
			return r, false
		}
		for j := range 2 {
			x := halvesTurned(g, ix, b.In(j), d[3].N)
			if x == "" {
				continue
			}
			for k := range 2 {
				r = Rotary{X: floatOf(g, ix, a.In(k)), Cos: a.In(1 - k), Sin: b.In(1 - j)}
				if r.X == x && slices.Equal(g.Dims(r.X), d) && isPositions(g, r.Cos, d) && isPositions(g, r.Sin, d) && slices.Equal(g.Dims(r.Cos), g.Dims(r.Sin)) {
					return r, true
				}
			}
		}
	}
	return r, false
}

// isPositions: [batch or 1, 1, length, size] in FP32, of x [batch, heads, length, size].
func isPositions(g *Graph, value string, x []Dim) bool {
	d := g.Dims(value)
	if len(d) != 4 || !isFloat(g, value) || d[1].N != 1 || d[3] != x[3] || d[2] != x[2] || x[2].N < 0 && x[2].Name == "" {
		return false
	}
	return d[0].N == 1 || d[0] == x[0] && (x[0].N >= 0 || x[0].Name != "")
}

func isFloat(g *Graph, value string) bool {
	if t := g.Init(value); t != nil {
		return t.Type == tensor.Float32
	}
	v := g.Info[value]
	return v != nil && v.Type == tensor.Float32
}

// floatOf follows value back through Casts that change nothing.
func floatOf(g *Graph, ix *Index, value string) string {
	for {
		n := ix.Producer(value)
		if n == nil || !n.Is("Cast") || n.Int("to", 0) != int64(tensor.Float32) || !isFloat(g, n.In(0)) {
			return value
		}
		value = n.In(0)
	}
}

// halvesTurned returns x of value = Concat(-x[size/2:], x[:size/2]) by the last of four
// axes, or "".
func halvesTurned(g *Graph, ix *Index, value string, size int64) string {
	c := ix.Producer(floatOf(g, ix, value))
	if c == nil || !c.Is("Concat") || len(c.Inputs) != 2 {
		return ""
	}
	if axis := c.Int("axis", 0); axis != -1 && axis != 3 {
		return ""
	}
	neg := ix.Producer(c.In(0))
	if neg == nil || !neg.Is("Neg") {
		return ""
	}
	hi, first, n := PartOf(g, ix, neg.In(0))
	if hi == "" || first != size/2 || n != size/2 {
		return ""
	}
	lo, first, n := PartOf(g, ix, c.In(1))
	if first != 0 || n != size/2 || floatOf(g, ix, lo) != floatOf(g, ix, hi) {
		return ""
	}
	return floatOf(g, ix, hi)
}

// PartOf returns the value of which value is columns [first, first+n) of the last axis, by
// a Slice or a Split with constant bounds, or "".
func PartOf(g *Graph, ix *Index, value string) (whole string, first, n int64) {
	p := ix.Producer(value)
	if p == nil {
		return "", 0, 0
	}
	d := g.Dims(p.In(0))
	if len(d) == 0 || d[len(d)-1].N < 1 {
		return "", 0, 0
	}
	last, size := int64(len(d)-1), d[len(d)-1].N
	isLast := func(axis int64) bool { return axis == -1 || axis == last }
	number := func(i int) (int64, bool) {
		t := g.Init(p.In(i))
		if t == nil || t.Type != tensor.Int64 || t.Len() != 1 {
			return 0, false
		}
		return tensor.View[int64](t)[0], true
	}
	switch {
	case p.Is("Slice"):
		from, ok1 := number(1)
		to, ok2 := number(2)
		axis, ok3 := number(3)
		if step, ok := number(4); p.In(4) != "" && (!ok || step != 1) || !ok1 || !ok2 || !ok3 || !isLast(axis) {
			return "", 0, 0
		}
		from, to = bound(from, size), bound(to, size)
		if from >= to {
			return "", 0, 0
		}
		return p.In(0), from, to - from
	case p.Is("Split"):
		if !isLast(p.Int("axis", 0)) {
			return "", 0, 0
		}
		sizes := slices.Repeat([]int64{size / int64(len(p.Outputs))}, len(p.Outputs))
		if p.In(1) != "" {
			t := g.Init(p.In(1))
			if t == nil || t.Type != tensor.Int64 || t.Len() != int64(len(p.Outputs)) {
				return "", 0, 0
			}
			sizes = tensor.View[int64](t)
		} else if size%int64(len(p.Outputs)) != 0 {
			return "", 0, 0
		}
		for i, out := range p.Outputs {
			if out == value {
				return p.In(0), first, sizes[i]
			}
			first += sizes[i]
		}
	}
	return "", 0, 0
}

// bound is a bound of a Slice of size elements as the operator takes it.
func bound(i, size int64) int64 {
	if i < 0 && i != math.MinInt64 {
		i += size
	}
	return min(max(i, 0), size)
}
