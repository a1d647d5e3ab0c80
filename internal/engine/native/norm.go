package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// norm is a normalization over the last axis, with gain and, perhaps, offset.
type norm struct {
	y, gamma, beta string
	rms            bool // by the root of the mean square alone
	epsilon        float32
	nodes          []*graph.Node
	readers        int // how many of them take the value itself
}

// norm returns the normalization of value, [batch, length, n], when nothing
// else reads it: the operator, or
//
//	d = value - ReduceMean(value)
//	d / Sqrt(ReduceMean(d^2) + epsilon) * gamma [+ beta]
//
// or, RMS,
//
//	value / Sqrt(ReduceMean(value^2) + epsilon) * gamma
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
		case u.Input == 0 && f.Is("Pow"):
			o, ok = l.rmsSteps(f, n)
		case u.Input == 0 && (f.Is("RMSNormalization") || f.Is("SimplifiedLayerNormalization")):
			if o, ok = l.normOperator(f, n); ok {
				ok = o.beta == ""
			}
			o.rms = true
		default:
			continue
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
	return o, l.vector(o.gamma, n) && (o.beta == "" || l.vector(o.beta, n))
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
	o.readers = 2
	o.gamma, o.y = beside(mul, div.Outputs[0]), mul.Outputs[0]
	o.nodes = []*graph.Node{mean, sub, pow, variance, add, root, div, mul}
	if end := l.only(o.y, "Add"); end != nil && l.vector(beside(end, o.y), n) {
		o.beta, o.y = beside(end, o.y), end.Outputs[0]
		o.nodes = append(o.nodes, end)
	}
	return o, l.vector(o.gamma, n)
}

// rmsSteps takes the Pow of the decomposed form, in which the root divides, or its
// inverse is multiplied.
func (l *lowering) rmsSteps(pow *graph.Node, n int64) (o norm, ok bool) {
	x := pow.In(0)
	if two, ok := l.m.Graph.Number(pow.In(1)); !ok || two != 2 {
		return o, false
	}
	mean := l.only(pow.Outputs[0], "ReduceMean")
	if mean == nil || !l.overLast(mean) {
		return o, false
	}
	add := l.only(mean.Outputs[0], "Add")
	if add == nil {
		return o, false
	}
	if o.epsilon, ok = l.m.Graph.Number(beside(add, mean.Outputs[0])); !ok {
		return o, false
	}
	root := l.only(add.Outputs[0], "Sqrt")
	if root == nil {
		return o, false
	}
	o.nodes = []*graph.Node{pow, mean, add, root}
	by := l.ix.Only(root.Outputs[0])
	if by == nil {
		return o, false
	}
	scaled := by
	switch one, isOne := l.m.Graph.Number(by.In(0)); {
	case by.Is("Div") && by.In(0) == x && by.In(1) == root.Outputs[0]:
	case by.Is("Reciprocal"), by.Is("Div") && isOne && one == 1 && by.In(1) == root.Outputs[0]:
		o.nodes = append(o.nodes, by)
		if scaled = l.only(by.Outputs[0], "Mul"); scaled == nil || beside(scaled, by.Outputs[0]) != x {
			return o, false
		}
	default:
		return o, false
	}
	mul := l.only(scaled.Outputs[0], "Mul")
	if mul == nil {
		return o, false
	}
	o.rms, o.readers, o.gamma, o.y = true, 2, beside(mul, scaled.Outputs[0]), mul.Outputs[0]
	o.nodes = append(o.nodes, scaled, mul)
	return o, l.vector(o.gamma, n)
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
