package graph

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// quickGelu is the factor of x sigmoid(1.702 x), as CLIP has it.
const quickGelu = 1.702

// activations are the functions that ActivationOf knows, by the names that
// operators of the native form give them.
var activations = []struct {
	name string
	f    func(x float64) float64
}{
	{"gelu", func(x float64) float64 { return x / 2 * math.Erfc(-x/math.Sqrt2) }}, // Hendrycks and Gimpel 2016 (arXiv:1606.08415)
	{"gelu_tanh", geluTanh},
	{"quick_gelu", func(x float64) float64 { return x * sigmoid(quickGelu*x) }},
	{"silu", func(x float64) float64 { return x * sigmoid(x) }},
	{"relu", func(x float64) float64 { return max(x, 0) }},
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// geluTanh is the approximation of the same paper.
func geluTanh(x float64) float64 {
	return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

const (
	// activationNodes bounds what one activation is made of; exporters write up to nine operators.
	activationNodes = 12
	// activationTolerance: exporters round constants to FP32, and the graph's own
	// arithmetic loses as much. The closest two of the functions differ by 5e-4.
	activationTolerance = 1e-5
)

// activationPoints are where a function must agree with one that is known: every
// eighth around 0, and far outside.
var activationPoints = func() []float64 {
	p := []float64{-1000, -100, -20, 20, 100, 1000}
	for i := -12 * 8; i <= 12*8; i++ {
		p = append(p, float64(i)/8)
	}
	return p
}()

// ActivationOf returns the value that is an activation of x, its name ("gelu",
// "gelu_tanh", "quick_gelu", "silu" or "relu") and the nodes that compute it, when
// these are all that read x. They are one operator, or arithmetic of x and
// constants that gives the function's values, in whatever order it is written.
func ActivationOf(g *Graph, ix *Index, x string) (y, name string, nodes []*Node) {
	at := map[string][]float64{x: activationPoints}
	inside := func(v string) bool { return !ix.IsOutput(v) && !ix.Captured(v) && len(ix.Uses(v)) > 0 }
	if !inside(x) {
		return "", "", nil
	}
	open := len(ix.Uses(x)) // readers of the values in at that are not among the nodes
	ready := []string{x}
	for len(ready) > 0 && len(nodes) < activationNodes {
		v := ready[0]
		ready = ready[1:]
		for _, u := range ix.Uses(v) {
			n := u.Node
			if slices.Contains(nodes, n) || len(n.Outputs) != 1 {
				continue
			}
			values := pointwise(g, n, at)
			if values == nil {
				continue
			}
			nodes = append(nodes, n)
			for _, in := range n.Inputs {
				if at[in] != nil {
					open--
				}
			}
			out := n.Outputs[0]
			if open == 0 {
				if name := activationName(values); name != "" {
					return out, name, nodes
				}
			}
			if !inside(out) {
				return "", "", nil
			}
			at[out] = values
			open += len(ix.Uses(out))
			ready = append(ready, out) // and with it those whose other operand this is
		}
	}
	return "", "", nil
}

func activationName(values []float64) string {
	for _, a := range activations {
		same := true
		for i, x := range activationPoints {
			want := a.f(x)
			same = same && math.Abs(values[i]-want) <= activationTolerance*max(1, math.Abs(want))
		}
		if same {
			return a.name
		}
	}
	return ""
}

// pointwise returns the values of n's output where those of its operands are
// known: an operator by element, of them and of constants that are one number.
// nil for anything else.
func pointwise(g *Graph, n *Node, at map[string][]float64) []float64 {
	operand := func(i int) func(point int) float64 {
		in := n.In(i)
		if v := at[in]; v != nil {
			return func(p int) float64 { return v[p] }
		}
		t := g.Init(in)
		if t == nil || t.Type != tensor.Float32 || t.Len() != 1 || len(t.Dims) > 1 {
			return nil
		}
		f, err := t.F32()
		if err != nil {
			return nil
		}
		return func(int) float64 { return float64(f[0]) }
	}
	var f func(a, b float64) float64
	operands := 2
	switch {
	case n.Is("Add"):
		f = func(a, b float64) float64 { return a + b }
	case n.Is("Sub"):
		f = func(a, b float64) float64 { return a - b }
	case n.Is("Mul"):
		f = func(a, b float64) float64 { return a * b }
	case n.Is("Div"):
		f = func(a, b float64) float64 { return a / b }
	case n.Is("Pow"):
		f = math.Pow
	default:
		one := unaryActivation(n)
		if one == nil {
			return nil
		}
		operands, f = 1, func(a, _ float64) float64 { return one(a) }
	}
	if len(n.Inputs) != operands {
		return nil
	}
	a, b := operand(0), func(int) float64 { return 0 }
	if operands == 2 {
		b = operand(1)
	}
	if a == nil || b == nil {
		return nil
	}
	out := make([]float64, len(activationPoints))
	for p := range out {
		out[p] = f(a(p), b(p))
	}
	return out
}

// unaryActivation returns the function of an operator of one operand, or nil.
func unaryActivation(n *Node) func(float64) float64 {
	switch {
	case n.Is("Relu"):
		return func(x float64) float64 { return max(x, 0) }
	case n.Is("Tanh"):
		return math.Tanh
	case n.Is("Erf"):
		return math.Erf
	case n.Is("Sigmoid"):
		return sigmoid
	case n.Is("Neg"):
		return func(x float64) float64 { return -x }
	case n.Op == "Gelu" && (n.Domain == DomainMS || n.Domain == DomainONNX && n.Str("approximate", "none") == "none"):
		return activations[0].f
	case n.Is("Gelu") && n.Str("approximate", "none") == "tanh", n.Op == "FastGelu" && n.Domain == DomainMS:
		return geluTanh
	case n.Op == "QuickGelu" && n.Domain == DomainMS:
		alpha := float64(n.Float("alpha", quickGelu))
		return func(x float64) float64 { return x * sigmoid(alpha*x) }
	case n.Is("Swish"):
		alpha := float64(n.Float("alpha", 1))
		return func(x float64) float64 { return x * sigmoid(alpha*x) }
	}
	return nil
}
