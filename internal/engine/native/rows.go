package native

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
)

// maxSteps bounds how far hasRowsOf follows values back; a layer has some 30.
const maxSteps = 64

// hasRowsOf reports whether value has all dimensions but the last of r, because
// every operator between them keeps those: exporters lose the name of a
// dimension in a Reshape.
func (l *lowering) hasRowsOf(value, r string) bool {
	return l.rowsFrom(value, map[string]bool{r: true}, maxSteps)
}

// rowsFrom looks at each value once: known has what was found.
func (l *lowering) rowsFrom(value string, known map[string]bool, steps int) bool {
	has, seen := known[value]
	if n := l.ix.Producer(value); !seen && n != nil && steps > 0 {
		has = l.keepsRows(n, value, func(i int) bool { return l.rowsFrom(n.In(i), known, steps-1) })
		known[value] = has
	}
	return has
}

// keepsRows reports whether value, an output of n, has the rows that from finds in
// the inputs of n.
func (l *lowering) keepsRows(n *graph.Node, value string, from func(input int) bool) bool {
	if _, ok := graph.PlainAttention(n); ok {
		return from(0)
	}
	if n.Domain == ops.Domain {
		return n.Op == ops.OpQuantizeRows && n.Outputs[0] == value && from(0) ||
			(n.Op == ops.OpMatMulQuantized || n.Op == opLinearRows || n.Op == opEncoderAttention || n.Op == opCrossAttention) && from(0)
	}
	switch {
	case n.Is("LayerNormalization"), n.Is("Sigmoid"), n.Is("Sqrt"), n.Is("Erf"), n.Is("Tanh"), n.Is("Relu"), n.Op == "Gelu", n.Op == "FastGelu", n.Op == "QuickGelu", n.Is("ReduceMean") && l.overLast(n):
		return from(0)
	case n.Is("Add"), n.Is("Sub"), n.Is("Mul"), n.Is("Div"), n.Is("Pow"), n.Is("Sum") && len(n.Inputs) == 2:
		// Beside a constant of one dimension, or another value of these rows.
		small := func(i int) bool { t := l.m.Graph.Init(n.In(i)); return t != nil && len(t.Dims) <= 1 }
		return small(1) && from(0) || small(0) && from(1) || from(0) && from(1)
	}
	return false
}
