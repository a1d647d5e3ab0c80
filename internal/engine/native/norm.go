package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// norm is a normalization over the last axis, with gain and offset.
type norm struct {
	y, gamma, beta string
	epsilon        float32
	nodes          []*graph.Node
	readers        int // how many of them take the value itself
}

// norm returns the normalization of value, [batch, length, n], when nothing
// else reads it: the operator, or
//
//	d = value - ReduceMean(value)
//	d / Sqrt(ReduceMean(d^2) + epsilon) * gamma + beta
func (l *lowering) norm(value string, n int64) (o norm, ok bool) {
	if l.ix.IsOutput(value) || l.ix.Captured(value) {
		return o, false
	}
	o, ok = l.normTo(value, "", n)
	return o, ok && len(l.ix.Uses(value)) == o.readers
}

// normTo returns a normalization of value, whose result is y unless that is "".
// Others may read value.
func (l *lowering) normTo(value, y string, n int64) (o norm, ok bool) {
	for _, u := range l.ix.Uses(value) {
		switch f := u.Node; {
		case u.Input == 0 && f.Is("LayerNormalization"):
			o, ok = l.normOperator(f, n)
		case u.Input == 0 && f.Is("Sub"):
			o, ok = l.normSteps(f, n)
		}
		if ok && (y == "" || o.y == y) {
			return o, true
		}
	}
	return norm{}, false
}

func (l *lowering) normOperator(f *graph.Node, n int64) (o norm, ok bool) {
	axis := f.Int("axis", -1)
	if len(f.Outputs) != 1 || axis != -1 && axis != 2 {
		return o, false
	}
	o = norm{y: f.Outputs[0], gamma: f.In(1), beta: f.In(2), epsilon: f.Float("epsilon", 1e-5), readers: 1, nodes: []*graph.Node{f}}
	return o, l.vector(o.gamma, n) && l.vector(o.beta, n)
}

// normSteps takes the Sub of the decomposed form.
func (l *lowering) normSteps(sub *graph.Node, n int64) (o norm, ok bool) {
	mean := l.ix.Producer(sub.In(1))
	if mean == nil || !mean.Is("ReduceMean") || !l.overLast(mean) || mean.In(0) != sub.In(0) || l.ix.Only(mean.Outputs[0]) != sub {
		return o, false
	}
	d := sub.Outputs[0]
	pow, div := l.two(d, "Pow", "Div")
	if pow == nil || pow.In(0) != d || div.In(0) != d {
		return o, false
	}
	if two, ok := l.m.Graph.Number(pow.In(1)); !ok || two != 2 {
		return o, false
	}
	variance := l.only(pow.Outputs[0], "ReduceMean")
	if variance == nil || !l.overLast(variance) {
		return o, false
	}
	add := l.only(variance.Outputs[0], "Add")
	if add == nil {
		return o, false
	}
	if o.epsilon, ok = l.m.Graph.Number(beside(add, variance.Outputs[0])); !ok {
		return o, false
	}
	root := l.only(add.Outputs[0], "Sqrt")
	if root == nil || l.ix.Only(root.Outputs[0]) != div || div.In(1) != root.Outputs[0] {
		return o, false
	}
	mul := l.only(div.Outputs[0], "Mul")
	if mul == nil {
		return o, false
	}
	end := l.only(mul.Outputs[0], "Add")
	if end == nil {
		return o, false
	}
	o.readers = 2
	o.gamma, o.beta, o.y = beside(mul, div.Outputs[0]), beside(end, mul.Outputs[0]), end.Outputs[0]
	o.nodes = []*graph.Node{mean, sub, pow, variance, add, root, div, mul, end}
	return o, l.vector(o.gamma, n) && l.vector(o.beta, n)
}

// two returns the only two readers of value, of these operators, or nil.
func (l *lowering) two(value, a, b string) (x, y *graph.Node) {
	u := l.ix.Uses(value)
	if len(u) != 2 || l.ix.IsOutput(value) || l.ix.Captured(value) {
		return nil, nil
	}
	for i := range u {
		if x, y := u[i].Node, u[1-i].Node; x.Is(a) && y.Is(b) {
			return x, y
		}
	}
	return nil, nil
}

// only returns the single reader of value if it is this operator.
func (l *lowering) only(value, op string) *graph.Node {
	if n := l.ix.Only(value); n != nil && n.Is(op) {
		return n
	}
	return nil
}

// overLast reports whether n reduces the last of three axes and keeps it.
func (l *lowering) overLast(n *graph.Node) bool { return l.overAxis(n, 2) }

// overAxis reports whether n reduces the last axis, which is this one, and keeps it.
func (l *lowering) overAxis(n *graph.Node, last int64) bool {
	axes := n.Ints("axes")
	if t := l.m.Graph.Init(n.In(1)); t != nil && t.Type == tensor.Int64 {
		axes = tensor.View[int64](t)
	}
	return n.Int("keepdims", 1) == 1 && (slices.Equal(axes, []int64{-1}) || slices.Equal(axes, []int64{last}))
}
