package native

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// panel is kPanel of cpu/bf16.hpp: the two parts of a gated projection begin at
// multiples of it.
const panel = 48

// gate is what a layer multiplies by the activation of Up.
type gate struct {
	act    string
	up, by *graph.Node // the projections of the activation's operand and of the gate, which may be one
	// columns [first, first+inner) of each
	upFirst, byFirst, inner int64
	nodes                   []*graph.Node // all, but the one that reads the product
}

// gateOf returns the gate that makes value, which only down reads:
//
//	act(LinearRows(n)) * LinearRows(n)
//	w = LinearRows(n), act(one half of w) * the other half
func (l *lowering) gateOf(value string) (o gate, ok bool) {
	mul := l.ix.Producer(value)
	if mul == nil || !mul.Is("Mul") || l.ix.Only(value) == nil {
		return o, false
	}
	for i := range 2 {
		a, b := mul.In(i), mul.In(1-i)
		if l.ix.Only(a) != mul || l.ix.Only(b) != mul {
			return o, false
		}
		if o, ok = l.gateOfTwo(a, b); !ok {
			o, ok = l.gateOfHalves(a, b)
		}
		if ok {
			o.nodes = append(o.nodes, mul)
			return o, true
		}
	}
	return o, false
}

func (l *lowering) gateOfTwo(a, b string) (o gate, ok bool) {
	o.up, o.by = l.ix.Producer(a), l.ix.Producer(b)
	if o.up == nil || o.by == nil || o.up == o.by {
		return o, false
	}
	o.act, o.inner = o.up.Str("activation", ""), l.weights[o.up].n
	o.nodes = []*graph.Node{o.up, o.by}
	return o, o.act != "" && l.linear(o.up, o.inner, o.act, "") && l.linear(o.by, o.inner, "", "") && o.up.In(inX) == o.by.In(inX) && o.up.In(inDivisor) == o.by.In(inDivisor)
}

func (l *lowering) gateOfHalves(a, b string) (o gate, ok bool) {
	g := l.m.Graph
	w, first, n := graph.PartOf(g, l.ix, b)
	o.up = l.ix.Producer(w)
	if o.up == nil || !l.linear(o.up, 2*n, "", "") || first%n != 0 || l.ix.IsOutput(w) || l.ix.Captured(w) {
		return o, false
	}
	o.by, o.inner, o.byFirst, o.upFirst = o.up, n, first, n-first
	o.nodes = []*graph.Node{o.up}
	for _, u := range l.ix.Uses(w) { // a Slice for each half, or one Split
		o.nodes = append(o.nodes, u.Node)
		for _, half := range u.Node.Outputs {
			v, at, m := graph.PartOf(g, l.ix, half)
			if v != w || m != n {
				return o, false
			}
			if half == b {
				continue
			}
			if at != o.upFirst || o.act != "" {
				return o, false
			}
			y, act, nodes := graph.ActivationOf(g, l.ix, half)
			if y == "" || y != a {
				return o, false
			}
			o.act = act
			o.nodes = append(o.nodes, nodes...)
		}
	}
	return o, o.act != ""
}

// gateWeight puts the columns of the two parts side by side, each in whole panels, and
// returns them with their bias.
func (l *lowering) gateWeight(o gate, none string, names graph.Namer) (w weight, bias string) {
	a, b := l.weights[o.up], l.weights[o.by]
	padded := (o.inner + panel - 1) / panel * panel
	w = weight{name: a.name + "_gated", k: a.k, n: 2 * padded}
	if o.by != o.up {
		w.name += "_" + b.name
	}
	w.scales = sideBySide(o, a.scales, b.scales, a.n, b.n, 1, padded)
	if a.four != nil {
		w.four = &ops.Blocks{K: a.four.K, N: int(w.n), Codes: sideBySide(o, a.four.Codes, b.four.Codes, a.n, b.n, a.k/2, padded),
			Steps: sideBySide(o, a.four.Steps, b.four.Steps, a.n, b.n, a.k/ops.BlockRows, padded)}
	} else {
		w.codes = sideBySide(o, a.codes, b.codes, a.n, b.n, a.k, padded)
	}
	of := func(n *graph.Node) []float32 {
		if t := l.m.Graph.Init(n.In(inBias)); t != nil {
			return tensor.View[float32](t)
		}
		return nil
	}
	p, q := of(o.up), of(o.by)
	if p == nil && q == nil {
		return w, none
	}
	bias = names.Name(o.up.Outputs[0] + "_gated_bias")
	l.m.Graph.SetInit(bias, tensor.From(sideBySide(o, p, q, a.n, b.n, 1, padded), w.n))
	return w, bias
}

// sideBySide returns [rows, 2 padded]: columns of a [rows, an], zeros, of b [rows, bn], zeros.
// nil is zeros.
func sideBySide[T any](o gate, a, b []T, an, bn, rows, padded int64) []T {
	out := make([]T, rows*2*padded)
	for r := range rows {
		if a != nil {
			copy(out[r*2*padded:], a[r*an+o.upFirst:][:o.inner])
		}
		if b != nil {
			copy(out[(r*2+1)*padded:], b[r*bn+o.byFirst:][:o.inner])
		}
	}
	return out
}

// sameBits reports whether both weights of the gate are in 8 bits, or both in 4.
func (l *lowering) sameBits(o gate) bool {
	return (l.weights[o.up].four == nil) == (l.weights[o.by].four == nil)
}
