package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
)

// operand is one of the three operands of an attention, as far back as its projection.
type operand struct {
	value    string // of the projection
	part     int64  // of three in it; -1: all of it
	cos, sin string // by which it is turned, or ""
	heads    int64
}

// operand follows value, which an attention of rotary positions takes, back as
// quant.FuseAttention writes it:
//
//	projection -> Reshape [batch, length, heads, size] -> Transpose 0213 -> [rotation] -> Transpose 0213 -> Reshape
//	projection -> Reshape [batch, length, 3, heads, size] -> Split or Gather -> Transpose ...
//	projection -> Reshape [batch, length, 3, heads, size] -> Gather -> Reshape
//
// It is value itself where nothing like that stands before it.
func (l *lowering) operand(value string) operand {
	g := l.m.Graph
	whole := operand{value: value, part: -1}
	if n := l.ix.Producer(value); n != nil && n.Is("Reshape") && l.ix.OnlyBesideShapes(value) && l.ix.Only(n.In(0)) == n {
		d := g.Dims(n.In(0))
		if p, i := l.third(n.In(0)); i >= 0 && l.joins(p, "", 3*d[2].N*d[3].N, d[0], d[1]) && l.joins(value, n.In(0), d[2].N*d[3].N, d[0], d[1]) {
			return operand{value: p, part: i, heads: d[2].N}
		}
	}
	x := l.transposed(value, "Reshape")
	if x == "" {
		return whole
	}
	o := operand{part: -1}
	d := g.Dims(x)
	if len(d) != 4 || d[1].N < 1 || d[3].N < 1 {
		return whole
	}
	o.heads = d[1].N
	if r, ok := graph.RotaryOf(g, l.ix, x); ok {
		x, o.cos, o.sin = r.X, l.positions(r.Cos), l.positions(r.Sin)
	}
	t := l.ix.Producer(x)
	if t == nil || !t.Is("Transpose") || !slices.Equal(t.Ints("perm"), []int64{0, 2, 1, 3}) {
		return whole
	}
	rows := t.In(0)
	if n := l.ix.Producer(rows); n != nil && n.Is("Reshape") && l.joins(n.In(0), rows, d[1].N*d[3].N, d[0], d[2]) {
		o.value = n.In(0)
		return o
	}
	if o.value, o.part = l.third(rows); o.part >= 0 && l.joins(o.value, "", 3*d[1].N*d[3].N, d[0], d[2]) {
		return o
	}
	return whole
}

// transposed returns x of value = op(Transpose 0213(x)), or "".
func (l *lowering) transposed(value, op string) string {
	n := l.ix.Producer(value)
	if n == nil || !n.Is(op) || l.ix.Only(value) == nil {
		return ""
	}
	t := l.ix.Producer(n.In(0))
	if t == nil || !t.Is("Transpose") || !slices.Equal(t.Ints("perm"), []int64{0, 2, 1, 3}) || !l.ix.OnlyBesideShapes(n.In(0)) {
		return ""
	}
	return t.In(0)
}

// joins reports whether value is [batch, length, columns], and rows, if there are any,
// [batch, length, heads, size] of as many columns.
func (l *lowering) joins(value, rows string, columns int64, batch, length graph.Dim) bool {
	known := func(a, b graph.Dim) bool { return a == b && (a.N >= 0 || a.Name != "") }
	d := l.m.Graph.Dims(value)
	if len(d) != 3 || d[2].N != columns || !known(d[0], batch) || !known(d[1], length) {
		return false
	}
	if rows == "" {
		return true
	}
	r := l.m.Graph.Dims(rows)
	return len(r) == 4 && known(r[0], batch) && known(r[1], length) && r[2].N*r[3].N == columns
}

// third returns the projection [batch, length, 3 heads size] of which rows is one of three
// parts, and which.
func (l *lowering) third(rows string) (string, int64) {
	g := l.m.Graph
	n := l.ix.Producer(rows)
	if n == nil {
		return "", -1
	}
	whole, part := "", int64(-1)
	switch {
	case n.Is("Squeeze"):
		s := l.ix.Producer(n.In(0))
		if axes := n.Ints("axes"); s == nil || !isThird(axes...) && !l.m.Graph.Holds(n.In(1), 2) && !l.m.Graph.Holds(n.In(1), -3) {
			return "", -1
		}
		switch {
		case s.Is("Split") && len(s.Outputs) == 3 && isThird(s.Int("axis", 0)) && (s.In(1) == "" || l.m.Graph.Holds(s.In(1), 1, 1, 1)):
			whole, part = s.In(0), int64(slices.Index(s.Outputs, n.In(0)))
		case s.Is("Slice") && (l.m.Graph.Holds(s.In(3), 2) || l.m.Graph.Holds(s.In(3), -3)) && (s.In(4) == "" || l.m.Graph.Holds(s.In(4), 1)):
			for i := range int64(3) {
				if l.m.Graph.Holds(s.In(1), i) && l.m.Graph.Holds(s.In(2), i+1) {
					whole, part = s.In(0), i
				}
			}
		}
	case n.Is("Gather"):
		if !isThird(n.Int("axis", 0)) {
			return "", -1
		}
		for i := range int64(3) {
			if t := g.Init(n.In(1)); t != nil && len(t.Dims) == 0 && l.m.Graph.Holds(n.In(1), i) {
				whole, part = n.In(0), i
			}
		}
	}
	r := l.ix.Producer(whole)
	d := g.Dims(whole)
	if r == nil || !r.Is("Reshape") || len(d) != 5 || d[2].N != 3 || d[3].N < 1 || d[4].N < 1 || !slices.Equal(g.Dims(rows), []graph.Dim{d[0], d[1], d[3], d[4]}) {
		return "", -1
	}
	return r.In(0), part
}

// isThird reports whether this is the third of five axes.
func isThird(axis ...int64) bool { return len(axis) == 1 && (axis[0] == 2 || axis[0] == -3) }

// positions returns [batch or 1, length, size] of value [batch or 1, 1, length, size]: layers
// share it.
func (l *lowering) positions(value string) string {
	u := l.ix.Producer(value)
	if u == nil || !u.Is("Unsqueeze") || len(l.m.Graph.Dims(u.In(0))) != 3 {
		return value
	}
	if axes := u.Ints("axes"); l.m.Graph.Holds(u.In(1), 1) || l.m.Graph.Holds(u.In(1), -3) || slices.Equal(axes, []int64{1}) || slices.Equal(axes, []int64{-3}) {
		return u.In(0)
	}
	return value
}
