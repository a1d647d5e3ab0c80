package graph

import (
	"strconv"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// LiftConstants turns the outputs of Constant nodes into initializers of the
// same name, so that passes find every weight in one place, and returns how
// many it turned. The bytes are not copied. A Constant that is a graph output
// or holds a sparse tensor stays; those inside subgraphs stay too. A subgraph
// that captures the value finds the initializer by the same name.
func LiftConstants(m *Model) int {
	g := m.Graph
	outputs := map[string]bool{}
	for _, o := range g.Outputs {
		outputs[o.Name] = true
	}
	kept := make([]*Node, 0, len(g.Nodes))
	for _, n := range g.Nodes {
		if n.Is("Constant") && len(n.Outputs) == 1 && n.Outputs[0] != "" && !outputs[n.Outputs[0]] && !m.isLocal(n) && g.inits[n.Outputs[0]] == nil {
			if t := constantValue(n); t != nil {
				g.SetInit(n.Outputs[0], t)
				delete(g.Info, n.Outputs[0])
				continue
			}
		}
		kept = append(kept, n)
	}
	lifted := len(g.Nodes) - len(kept)
	g.Nodes = kept
	return lifted
}

// constantValue returns the value of a Constant node, nil when it has not
// exactly one of the attributes of the specification (Constant-13) or one that
// is not a dense tensor.
func constantValue(n *Node) *tensor.Tensor {
	if len(n.Attrs) != 1 || len(n.Inputs) != 0 {
		return nil
	}
	a := n.Attrs[0]
	count := func(k int) []int64 { return []int64{int64(k)} }
	switch a.GetName() {
	case "value":
		if a.T == nil {
			return nil
		}
		t, err := TensorFromProto(a.T)
		if err != nil {
			return nil
		}
		return t
	case "value_float":
		return tensor.From([]float32{a.GetF()})
	case "value_floats":
		return tensor.From(a.Floats, count(len(a.Floats))...)
	case "value_int":
		return tensor.From([]int64{a.GetI()})
	case "value_ints":
		return tensor.From(a.Ints, count(len(a.Ints))...)
	case "value_string":
		return &tensor.Tensor{Type: tensor.String, Strings: [][]byte{a.S}}
	case "value_strings":
		return &tensor.Tensor{Type: tensor.String, Dims: count(len(a.Strings)), Strings: a.Strings}
	}
	return nil
}

// DropIdentities removes nodes that pass their input through: Identity, and
// Dropout in its inference form. It returns how many went. A node stays when a
// subgraph reads its output by name, or when it connects a graph output
// directly to a graph input or an initializer.
func DropIdentities(m *Model) int {
	g := m.Graph
	ix := g.Index()
	// Outputs nobody outside the main graph names: their readers move to the input.
	forward := map[string]string{}
	var read []string // by the removed nodes only, perhaps
	kept := make([]*Node, 0, len(g.Nodes))
	for _, n := range g.Nodes {
		for i, in := range n.Inputs {
			if to, ok := forward[in]; ok {
				n.Inputs[i] = to
			}
		}
		if y := n.out(0); m.passesThrough(n, ix) && !ix.outputs[y] && !ix.captured[y] {
			forward[y] = n.Inputs[0]
			read = append(read, n.Inputs...)
			delete(g.Info, y)
			continue
		}
		kept = append(kept, n)
	}
	removed := len(g.Nodes) - len(kept)
	g.Nodes = kept
	// Graph outputs: the maker of the input takes the output's name instead.
	ix = g.Index()
	gone := map[*Node]bool{}
	for _, n := range g.Nodes {
		if !m.passesThrough(n, ix) {
			continue
		}
		x, y := n.Inputs[0], n.Outputs[0]
		p := ix.producer[x]
		if p == nil || ix.outputs[x] || ix.captured[x] || ix.captured[y] {
			continue
		}
		for i, o := range p.Outputs {
			if o == x {
				p.Outputs[i] = y
			}
		}
		for _, u := range ix.uses[x] {
			u.Node.Inputs[u.Input] = y
		}
		ix.producer[y] = p
		ix.uses[y] = append(ix.uses[y], ix.uses[x]...)
		delete(ix.uses, x)
		delete(g.Info, x)
		read = append(read, n.Inputs...)
		gone[n] = true
	}
	g.dropNodes(gone)
	g.dropUnread(read)
	return removed + len(gone)
}

// passesThrough reports whether n's first output always equals its first input
// and nothing reads another output.
func (m *Model) passesThrough(n *Node, ix *Index) bool {
	if n.Domain != DomainONNX || n.In(0) == "" || n.out(0) == "" || m.isLocal(n) {
		return false
	}
	for _, o := range n.Outputs[1:] {
		if o != "" && (len(ix.uses[o]) > 0 || ix.outputs[o] || ix.captured[o]) {
			return false
		}
	}
	switch n.Op {
	case "Identity":
		return true
	case "Dropout":
		if v := m.Opset(); v < 7 { // is_test decides, and defaults to training
			return n.Int("is_test", 0) != 0
		}
		if n.In(2) == "" {
			return true
		}
		t := m.Graph.inits[n.In(2)]
		return t != nil && t.Type == tensor.Bool && len(t.Data) == 1 && t.Data[0] == 0
	}
	return false
}

// out returns output i, or "" when it is absent or omitted.
func (n *Node) out(i int) string {
	if i < len(n.Outputs) {
		return n.Outputs[i]
	}
	return ""
}

// dropNodes removes the nodes of the set.
func (g *Graph) dropNodes(gone map[*Node]bool) {
	if len(gone) == 0 {
		return
	}
	kept := make([]*Node, 0, len(g.Nodes)-len(gone))
	for _, n := range g.Nodes {
		if !gone[n] {
			kept = append(kept, n)
		}
	}
	g.Nodes = kept
}

// dropUnread removes those of the named initializers that nothing reads.
func (g *Graph) dropUnread(names []string) {
	ix := g.Index()
	var unread []string
	for _, name := range names {
		if len(ix.uses[name]) == 0 && !ix.outputs[name] && !ix.captured[name] {
			unread = append(unread, name)
		}
	}
	g.dropInits(unread)
}

// dropInits removes many initializers at once.
func (g *Graph) dropInits(names []string) {
	if len(names) == 0 {
		return
	}
	for _, name := range names {
		delete(g.inits, name)
	}
	order := make([]string, 0, len(g.inits))
	for _, name := range g.order {
		if g.inits[name] != nil {
			order = append(order, name)
		}
	}
	g.order = order
}

// Namer hands out value names that nothing in the model uses, subgraphs
// included (an inner name must not shadow an outer one). It has, of each name that is
// used, the number to try next behind it: of many that ask for one, none counts anew.
type Namer map[string]int

// firstNumber is behind the second value of a name.
const firstNumber = 2

// Namer returns a namer for the graph as it stands.
func (g *Graph) Namer() Namer {
	used := Namer{}
	for _, v := range g.Inputs {
		used[v.Name] = firstNumber
	}
	for _, name := range g.order {
		used[name] = firstNumber
	}
	var walk func(*pb.GraphProto)
	walk = func(s *pb.GraphProto) {
		for _, v := range s.GetInput() {
			used[v.GetName()] = firstNumber
		}
		for _, t := range s.GetInitializer() {
			used[t.GetName()] = firstNumber
		}
		for _, n := range s.GetNode() {
			for _, o := range n.Output {
				used[o] = firstNumber
			}
			for _, a := range n.Attribute {
				walkGraphs(a, walk)
			}
		}
	}
	for _, n := range g.Nodes {
		for _, o := range n.Outputs {
			used[o] = firstNumber
		}
		for _, a := range n.Attrs {
			walkGraphs(a, walk)
		}
	}
	return used
}

// NodeNamer returns a namer of nodes: names that no node of the graph has.
func (g *Graph) NodeNamer() Namer {
	used := Namer{}
	for _, n := range g.Nodes {
		used[n.Name] = firstNumber
	}
	return used
}

// After returns a free name for a node that is made beside n: its name, or that
// of its first output where it has none, and the suffix.
func (used Namer) After(n *Node, suffix string) string {
	base := n.Name
	if base == "" && len(n.Outputs) > 0 {
		base = n.Outputs[0]
	}
	return used.Name(base + suffix)
}

func walkGraphs(a *pb.AttributeProto, f func(*pb.GraphProto)) {
	if a.G != nil {
		f(a.G)
	}
	for _, s := range a.Graphs {
		f(s)
	}
}

// Name returns base, or base_2, base_3 ... when it is taken, and takes it.
func (used Namer) Name(base string) string {
	name := base
	for used[name] != 0 {
		name = base + "_" + strconv.Itoa(used[base])
		used[base]++
	}
	used[name] = firstNumber
	return name
}
