package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// batchFirst turns what torch.nn.MultiheadAttention computes with the length as the first axis,
// as torchvision's ViT, OpenCLIP and torch.nn.TransformerEncoder export it, so that the batch is
// first, and returns how many values it turned:
//
//	Transpose 102 -> MatMul -> Add -> Reshape [length, batch, 3, width] -> Unsqueeze 0 -> Transpose 31204 -> Squeeze 3
//	  -> Gather i -> Reshape [length, batch*heads, size] -> Transpose 102 -> Reshape [batch, heads, length, size]
//
// becomes MatMul -> Add -> Reshape [batch, length, 3, heads, size] -> Transpose 20314 -> Gather i, and
//
//	Transpose 2013 -> Reshape [length*batch, width] -> MatMul [-> Add] -> Reshape [length, batch, width] -> Transpose 102
//
// Transpose 0213 -> Reshape [batch, length, width] -> MatMul [-> Add]. Values move; the products
// are the same. What nobody reads any more is pruned.
func batchFirst(m *graph.Model) (int, error) {
	t := &batchTurner{g: m.Graph, ix: m.Graph.Index(), names: m.Graph.Namer(), parts: map[string]string{}}
	gone := map[*graph.Node]bool{}
	for _, n := range m.Graph.Nodes {
		if n.Is("Reshape") && t.heads(n) || n.Is("Transpose") && t.out(n) {
			gone[n] = true
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	m.Graph.Nodes = append(without(m.Graph.Nodes, gone), t.added...)
	if err := m.Graph.Sort(); err != nil {
		return 0, err
	}
	m.Graph.Prune()
	graph.InferShapes(m)
	return len(gone), nil
}

type batchTurner struct {
	g     *graph.Graph
	ix    *graph.Index
	names graph.Namer
	added []*graph.Node
	parts map[string]string // projection -> its parts [3, batch, heads, length, size]
}

// back returns the producer of value if it is this operator, with this permutation of a Transpose.
func (t *batchTurner) back(value, op string, perm ...int64) *graph.Node {
	n := t.ix.Producer(value)
	if n == nil || !n.Is(op) || perm != nil && !slices.Equal(n.Ints("perm"), perm) {
		return nil
	}
	return n
}

// add adds a node and returns its result.
func (t *batchTurner) add(op, name, like string, in []string, attrs ...*pb.AttributeProto) string {
	y := t.names.Name(like)
	if name == "" {
		name = y
	}
	t.added = append(t.added, graph.NewNode("", op, name, in, []string{y}, attrs...))
	return y
}

func (t *batchTurner) sizes(like string, v ...int64) string {
	name := t.names.Name(like)
	t.g.SetInit(name, tensor.From(v, int64(len(v))))
	return name
}

// linear returns the product that ends in value, [.., .., columns], and its constant weight and
// bias, which may be "".
func (t *batchTurner) linear(value string) (product *graph.Node, bias string) {
	n := t.ix.Producer(value)
	if n != nil && n.Is("Add") && len(n.Inputs) == 2 {
		i := 0
		if t.g.Init(n.In(0)) == nil {
			i = 1
		}
		if bias = n.In(i); len(t.g.Dims(bias)) != 1 || t.g.Init(bias) == nil {
			return nil, ""
		}
		n = t.ix.Producer(n.In(1 - i))
	}
	if n == nil || !n.Is("MatMul") || t.g.Init(n.In(1)) == nil || len(t.g.Dims(n.In(1))) != 2 {
		return nil, ""
	}
	return n, bias
}

// again adds the product p of x, with its bias.
func (t *batchTurner) again(p *graph.Node, bias, x string) string {
	y := t.add("MatMul", p.Name, p.Outputs[0]+"_by_batch", []string{x, p.In(1)})
	if bias != "" {
		y = t.add("Add", "", y+"_sum", []string{y, bias})
	}
	return y
}

// heads replaces r, which gives queries, keys or values [batch, heads, length, size].
func (t *batchTurner) heads(r *graph.Node) bool {
	g := t.g
	y := g.Dims(r.Outputs[0])
	turn := t.back(r.In(0), "Transpose", 1, 0, 2)
	if turn == nil || len(y) != 4 || y[1].N < 1 || y[3].N < 1 {
		return false
	}
	batch, length, width := y[0], y[2], y[1].N*y[3].N
	split := t.back(turn.In(0), "Reshape")
	if split == nil || !isDims(g.Dims(turn.In(0)), length, graph.Dim{N: -2}, y[3]) || !isDims(g.Dims(split.In(0)), length, batch, graph.Dim{N: width}) {
		return false
	}
	part := t.back(split.In(0), "Gather")
	if part == nil || part.Int("axis", 0) != 0 {
		return false
	}
	index := g.Init(part.In(1))
	squeeze := t.back(part.In(0), "Squeeze")
	if index == nil || index.Type != tensor.Int64 || len(index.Dims) != 0 || squeeze == nil {
		return false
	}
	apart := t.back(squeeze.In(0), "Transpose", 3, 1, 2, 0, 4)
	if apart == nil || !isDims(g.Dims(squeeze.In(0)), graph.Dim{N: 3}, length, batch, graph.Dim{N: 1}, graph.Dim{N: width}) ||
		!isDims(g.Dims(part.In(0)), graph.Dim{N: 3}, length, batch, graph.Dim{N: width}) {
		return false
	}
	unsqueeze := t.back(apart.In(0), "Unsqueeze")
	if unsqueeze == nil || !isDims(g.Dims(unsqueeze.In(0)), length, batch, graph.Dim{N: 3}, graph.Dim{N: width}) {
		return false
	}
	whole := t.back(unsqueeze.In(0), "Reshape")
	if whole == nil || !isDims(g.Dims(whole.In(0)), length, batch, graph.Dim{N: 3 * width}) {
		return false
	}
	p, bias := t.linear(whole.In(0))
	if p == nil {
		return false
	}
	first := t.back(p.In(0), "Transpose", 1, 0, 2)
	if first == nil {
		return false
	}
	name := whole.In(0)
	if t.parts[name] == "" {
		x := t.again(p, bias, first.In(0))
		x = t.add("Reshape", "", x+"_heads", []string{x, t.sizes(x+"_sizes", 0, 0, 3, y[1].N, y[3].N)})
		t.parts[name] = t.add("Transpose", "", x+"_apart", []string{x}, graph.AttrInts("perm", 2, 0, 3, 1, 4))
	}
	t.added = append(t.added, graph.NewNode("", "Gather", r.Name, []string{t.parts[name], part.In(1)}, r.Outputs, graph.AttrInt("axis", 0)))
	return true
}

// out replaces n, which gives the projection [batch, length, columns] of an attention's result.
func (t *batchTurner) out(n *graph.Node) bool {
	g := t.g
	y := g.Dims(n.Outputs[0])
	r := t.back(n.In(0), "Reshape")
	if !slices.Equal(n.Ints("perm"), []int64{1, 0, 2}) || r == nil || len(y) != 3 || y[2].N < 1 {
		return false
	}
	batch, length := y[0], y[1]
	p, bias := t.linear(r.In(0))
	if p == nil || !isDims(g.Dims(n.In(0)), length, batch, y[2]) || !isDims(g.Dims(r.In(0)), graph.Dim{N: -2}, y[2]) {
		return false
	}
	flat := t.back(p.In(0), "Reshape")
	if flat == nil {
		return false
	}
	width := g.Dims(p.In(1))[0].N
	turn := t.back(flat.In(0), "Transpose", 2, 0, 1, 3)
	if turn == nil || !isDims(g.Dims(p.In(0)), graph.Dim{N: -2}, graph.Dim{N: width}) {
		return false
	}
	x := g.Dims(turn.In(0))
	if len(x) != 4 || !isDims(x[:1], batch) || !isDims(x[2:3], length) || x[1].N < 1 || x[1].N*x[3].N != width {
		return false
	}
	v := t.add("Transpose", "", turn.Outputs[0]+"_by_batch", []string{turn.In(0)}, graph.AttrInts("perm", 0, 2, 1, 3))
	v = t.add("Reshape", "", v+"_joined", []string{v, t.sizes(v+"_sizes", 0, 0, width)})
	t.again(p, bias, v)
	t.added[len(t.added)-1].Outputs = []string{n.Outputs[0]}
	return true
}

// isDims reports whether d is known to be these; -2 is any.
func isDims(d []graph.Dim, want ...graph.Dim) bool {
	return slices.EqualFunc(d, want, func(a, b graph.Dim) bool { return b.N == -2 || equal(a, b) })
}
