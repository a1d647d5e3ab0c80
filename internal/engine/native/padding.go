package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// paddingUnread reports whether what value, [batch, length, n], holds in the
// rows that mask hides at the end of a sample can be anything finite: it reaches
// outputs in those rows alone, or nothing, because the rest reads the first row
// or multiplies by the mask. mask is the bias of the attentions.
func (l *lowering) paddingUnread(value, mask string) bool {
	source := l.maskSource(mask)
	return walk(value, func(v string, push func(string)) bool {
		if l.ix.Captured(v) {
			return false
		}
		if y := l.rowsOf(v); y != "" {
			push(y)
			return true
		}
		for _, u := range l.ix.Uses(v) {
			n := u.Node
			switch {
			case n.Is("Shape") || n.Is("Mul") && source != "" && l.view(beside(n, v)) == source:
			case source != "" && l.replaced(n, u.Input, source):
			case l.firstRow(n, u.Input):
			case l.byRow(n, u.Input, mask):
				push(n.Outputs[0])
			default:
				return false
			}
		}
		return true
	})
}

// walk calls visit for each value that it pushes, once, beginning with value, until it
// reports false; walk reports whether it never did.
func walk(value string, visit func(v string, push func(string)) bool) bool {
	seen, next := map[string]bool{value: true}, []string{value}
	push := func(v string) {
		if v != "" && !seen[v] {
			seen[v] = true
			next = append(next, v)
		}
	}
	for len(next) > 0 {
		v := next[len(next)-1]
		next = next[:len(next)-1]
		if !visit(v, push) {
			return false
		}
	}
	return true
}

// ofInputs reports whether what an input holds, not its size alone, can change mask. One
// that no input changes hides keys that are no padding: others may read their rows.
func (l *lowering) ofInputs(mask string) bool {
	return !walk(mask, func(v string, push func(string)) bool {
		if l.input(v) {
			return false
		}
		if n := l.ix.Producer(v); n != nil && !n.Is("Shape") {
			for _, in := range n.Inputs {
				push(in)
			}
		}
		return true
	})
}

// maskSource returns the input of whole numbers that mask was made of, or "".
func (l *lowering) maskSource(mask string) string {
	var source string
	if !walk(mask, func(v string, push func(string)) bool {
		if l.input(v) {
			if source != "" {
				return false
			}
			source = v
		}
		if n := l.ix.Producer(v); n != nil && !n.Is("Shape") { // what follows a Shape is sizes
			for _, in := range n.Inputs {
				push(in)
			}
		}
		return true
	}) {
		return ""
	}
	if v := l.info(source); v == nil || v.Type != tensor.Int64 && v.Type != tensor.Int32 && v.Type != tensor.Bool {
		return ""
	}
	return source
}

func (l *lowering) input(name string) bool {
	return slices.ContainsFunc(l.m.Graph.Inputs, func(v *graph.Value) bool { return v.Name == name })
}

// view returns the input whose elements value repeats, or "".
func (l *lowering) view(value string) string {
	for range maxViews {
		if l.input(value) {
			return value
		}
		n := l.ix.Producer(value)
		if n == nil || !n.Is("Unsqueeze") && !n.Is("Expand") && !n.Is("Cast") && !n.Is("Identity") {
			return ""
		}
		value = n.In(0)
	}
	return ""
}

// maxViews bounds a chain of views; exporters write three.
const maxViews = 16

// replaced reports whether n puts a constant in the place of its input where the mask
// is 0.
func (l *lowering) replaced(n *graph.Node, input int, mask string) bool {
	if !n.Is("Where") {
		return false
	}
	shown := n.In(0)
	if input == 2 {
		not := l.ix.Producer(shown)
		for range maxViews {
			if not == nil || !not.Is("Cast") {
				break
			}
			not = l.ix.Producer(not.In(0))
		}
		if not == nil || !not.Is("Not") {
			return false
		}
		shown = not.In(0)
	}
	return input > 0 && l.m.Graph.Init(n.In(3-input)) != nil && l.view(shown) == mask
}

// rowsOf returns what all that reads value make of its rows, when that is
// normalization or an activation.
func (l *lowering) rowsOf(value string) string {
	if v := l.info(value); v != nil && len(v.Dims) == 3 {
		if o, ok := l.norm(value, v.Dims[2].N); ok && o.epsilon > 0 {
			return o.y
		}
	}
	if l.ix.IsOutput(value) {
		return ""
	}
	y, _, _ := graph.ActivationOf(l.m.Graph, l.ix, value)
	return y
}

// byRow reports whether each row of n's only output depends on no other row of
// its input but through an attention that hides the same ones, and is finite
// where the input's row is.
func (l *lowering) byRow(n *graph.Node, input int, mask string) bool {
	if len(n.Outputs) != 1 {
		return false
	}
	switch {
	case n.Domain == ops.Domain && n.Op == opLinearRows:
		return input == inX || input == inResidual
	case n.Domain == ops.Domain && n.Op == opEncoderAttention:
		return input == 0 && mask != "" && n.In(1) == mask
	case n.Is("MatMul"):
		w := l.m.Graph.Init(n.In(1))
		return input == 0 && w != nil && len(w.Dims) == 2
	case n.Is("LayerNormalization"):
		axis := n.Int("axis", -1)
		return input == 0 && (axis == -1 || axis == 2) && n.Float("epsilon", 1e-5) > 0
	}
	for _, op := range []string{"Identity", "Cast", "Add", "Sum", "Sub", "Mul", "Relu", "Tanh", "Sigmoid"} {
		if n.Is(op) {
			v := l.info(n.Outputs[0])
			return v != nil && len(v.Dims) == 3
		}
	}
	return false
}
