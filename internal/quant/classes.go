package quant

import (
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Classes name operators by what they are for, so that one recipe fits many
// models. A rule matches a class as it matches a name; a model may have none.
const (
	// Embeddings are the lookups in large float tables.
	EmbeddingsClass = "@embeddings"
	// AttentionClass are the matrix products that make queries, keys and values.
	AttentionClass = "@attention"
	// HeadClass are the matrix products that give the model's outputs, but for a bias, an
	// activation or a change of shape.
	HeadClass = "@head"
	// ConvolutionsClass are the convolutions with constant weights.
	ConvolutionsClass = "@convolutions"
	// MatMulsClass are the matrix products with constant weights.
	MatMulsClass = "@matmuls"
)

// classes lists them, and what each takes of a prepared model.
var classes = map[string]func(c classifier, n *graph.Node, p Precision) bool{
	EmbeddingsClass: func(c classifier, n *graph.Node, p Precision) bool {
		return Embeddings{}.table(c.g, c.ix, n) && (p != PrecisionINT4 || c.g.Init(n.In(0)).Dims[1]%Int4Block == 0)
	},
	AttentionClass:    func(c classifier, n *graph.Node, _ Precision) bool { return c.product(n) && c.feedsAttention(n) },
	HeadClass:         func(c classifier, n *graph.Node, _ Precision) bool { return c.product(n) && c.givesOutput(n) },
	ConvolutionsClass: func(c classifier, n *graph.Node, _ Precision) bool { return n.Is("Conv") && c.g.Init(n.In(1)) != nil },
	MatMulsClass:      func(c classifier, n *graph.Node, _ Precision) bool { return c.product(n) },
}

// ClassNames lists the classes.
func ClassNames() []string {
	names := make([]string, 0, len(classes))
	for n := range classes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// IsClass reports whether a rule's pattern has the form of a class.
func IsClass(match string) bool { return strings.HasPrefix(match, "@") }

// ClassOf returns the operators of a class in a prepared model, those that can
// have the precision; ok is false when there is no such class.
func ClassOf(m *graph.Model, class string, p Precision) (nodes []*graph.Node, ok bool) {
	in, ok := classes[class]
	if !ok {
		return nil, false
	}
	c := classifier{m.Graph, m.Graph.Index()}
	for _, n := range m.Graph.Nodes {
		if len(n.Outputs) > 0 && in(c, n, p) {
			nodes = append(nodes, n)
		}
	}
	return nodes, true
}

type classifier struct {
	g  *graph.Graph
	ix *graph.Index
}

// product reports whether n multiplies an activation by a constant matrix.
func (c classifier) product(n *graph.Node) bool {
	t := c.g.Init(n.In(1))
	return (n.Is("MatMul") || n.Is("Gemm")) && t != nil && t.Type == tensor.Float32 && c.g.Init(n.In(0)) == nil
}

// maxWalk bounds how many operators lie between a product and what it is for.
const maxWalk = 12

// along are operators that carry values without mixing them with others; a second
// input is a constant.
var along = map[string]bool{
	"Add": true, "Sub": true, "Mul": true, "Div": true, "Reshape": true, "Transpose": true, "Squeeze": true, "Unsqueeze": true, "Identity": true, "Cast": true, "Flatten": true,
	"Split": true, "Slice": true, "Gather": true,
}

// outward carry a head's values to an output besides.
var outward = map[string]bool{"Softmax": true, "LogSoftmax": true, "Sigmoid": true, "Tanh": true, "Relu": true, "Clip": true, "ArgMax": true}

// reaches walks from n along such operators until found accepts a reader, or
// with nil a value that is an output.
func (c classifier) reaches(n *graph.Node, more map[string]bool, found func(*graph.Node) bool) bool {
	values := slices.Clone(n.Outputs)
	seen := map[string]bool{}
	for step := 0; step < maxWalk && len(values) > 0; step++ {
		var next []string
		for _, v := range values {
			if v == "" || seen[v] {
				continue
			}
			seen[v] = true
			if found == nil && c.ix.IsOutput(v) {
				return true
			}
			for _, u := range c.ix.Uses(v) {
				if found != nil && found(u.Node) {
					return true
				}
				if (along[u.Node.Op] || more[u.Node.Op]) && c.alone(u.Node, v) {
					next = append(next, u.Node.Outputs...)
				}
			}
		}
		values = next
	}
	return false
}

// alone reports whether v is the only float activation that n reads: what else it
// reads is constant, or says where values go.
func (c classifier) alone(n *graph.Node, v string) bool {
	switch n.Op {
	case "Add", "Sub", "Mul", "Div":
		for _, in := range n.Inputs {
			if in != v && in != "" && c.g.Init(in) == nil {
				return false
			}
		}
		return true
	}
	return n.In(0) == v
}

func (c classifier) feedsAttention(n *graph.Node) bool {
	return c.reaches(n, nil, func(u *graph.Node) bool {
		switch {
		case u.Op == "MultiHeadAttention" || u.Op == "Attention":
			return true
		case !u.Is("MatMul"):
			return false
		}
		return c.g.Init(u.In(0)) == nil && c.g.Init(u.In(1)) == nil
	})
}

func (c classifier) givesOutput(n *graph.Node) bool { return c.reaches(n, outward, nil) }
