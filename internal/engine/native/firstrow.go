package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// firstRow reports whether n takes the first row of each sample.
func (l *lowering) firstRow(n *graph.Node, input int) bool {
	if input != 0 {
		return false
	}
	switch {
	case n.Is("Gather"):
		t := l.m.Graph.Init(n.In(1))
		return n.Int("axis", 0) == 1 && t != nil && t.Type == tensor.Int64 && !slices.ContainsFunc(tensor.View[int64](t), func(i int64) bool { return i != 0 })
	case n.Is("Slice"):
		return l.m.Graph.Holds(n.In(1), 0) && l.m.Graph.Holds(n.In(2), 1) && l.m.Graph.Holds(n.In(3), 1) && (n.In(4) == "" || l.m.Graph.Holds(n.In(4), 1))
	}
	return false
}

// onlyFirstRow reports whether all that reads value, [batch, length, n], takes the
// first row of each sample, itself or behind operators that give each row by itself,
// and would do so if there were no other row.
func (l *lowering) onlyFirstRow(value string) bool {
	read := false
	return walk(value, func(v string, push func(string)) bool {
		if l.ix.IsOutput(v) || l.ix.Captured(v) {
			return false
		}
		if y := l.rowsOf(v); y != "" {
			push(y)
			return true
		}
		for _, u := range l.ix.Uses(v) {
			switch {
			case l.firstRow(u.Node, u.Input):
				read = true
			case l.byRowAlone(u.Node, u.Input):
				push(u.Node.Outputs[0])
			default:
				return false
			}
		}
		return true
	}) && read
}

// byRowAlone reports whether each row of n's only output, [batch, length, m], is made of
// the same row of its input and constants that all rows share.
func (l *lowering) byRowAlone(n *graph.Node, input int) bool {
	if n.Domain == ops.Domain && n.Op == opLinearRows {
		return input == inX && n.In(inResidual) == ""
	}
	if len(n.Outputs) != 1 {
		return false
	}
	switch {
	case n.Is("Add"), n.Is("Sub"), n.Is("Mul"), n.Is("Div"):
		t := l.m.Graph.Init(n.In(1 - input))
		return t != nil && len(t.Dims) <= 1
	case n.Is("MatMul"), n.Is("LayerNormalization"):
		return l.byRow(n, input, "")
	}
	return slices.ContainsFunc([]string{"Identity", "Cast", "Relu", "Tanh", "Sigmoid"}, n.Is)
}

// dropInfo forgets the dimensions of all that is made of value, which has other ones now.
func (l *lowering) dropInfo(value string) {
	walk(value, func(v string, push func(string)) bool {
		delete(l.m.Graph.Info, v)
		for _, u := range l.ix.Uses(v) {
			for _, y := range u.Node.Outputs {
				push(y)
			}
		}
		return true
	})
}
