package graph

import (
	"fmt"
	"maps"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Formal returns how many inputs the body of n has of its own: of a Loop the number
// of the iteration, its condition and each value that is carried on, of a Scan what is
// carried on and an element of each input that is scanned, of an If none.
func (n *Node) Formal() int {
	switch {
	case n.Is("Loop"):
		return max(len(n.Inputs), 2)
	case n.Is("Scan"):
		return len(n.Inputs)
	}
	return 0
}

// Body returns the graph in attribute attr of n as a model of its own: its inputs
// are those that it has (see Formal), then the values that it reads from outside;
// constants that it reads from outside are initializers. It shares tensors with m.
// It returns ErrInvalid when the type of such a value is not known, or when the
// body gives back what it did not make.
func (m *Model) Body(n *Node, attr string) (*Model, error) {
	a := n.Attr(attr)
	if a == nil || a.G == nil {
		return nil, fmt.Errorf("%w: %s has no %s", ErrInvalid, n.Op, attr)
	}
	p := &pb.ModelProto{IrVersion: proto.Int64(m.IR), Graph: a.G}
	if m.shell != nil {
		p.Functions = m.shell.Functions
	}
	b, err := FromProto(p)
	if err != nil {
		return nil, err
	}
	b = b.Clone() // whose nodes are not those of the attribute
	for d, v := range m.Opsets {
		b.Opsets[d] = v
	}
	if want := n.Formal(); len(b.Graph.Inputs) != want {
		return nil, fmt.Errorf("%w: the %s of a %s with %d inputs has %d and needs %d", ErrInvalid, attr, n.Op, len(n.Inputs), len(b.Graph.Inputs), want)
	}
	outside := map[string]*Value{}
	for _, v := range m.Graph.Inputs {
		outside[v.Name] = v
	}
	for name, v := range m.Graph.Info {
		if outside[name] == nil {
			outside[name] = v
		}
	}
	for i, v := range b.Graph.Inputs { // whose type may stand outside only
		if v.proto == nil && v.Type == tensor.Undefined {
			v.Type = m.formalType(n, i, outside)
		}
		if v.proto != nil || v.Type == tensor.Undefined {
			return nil, fmt.Errorf("%w: the type of its input %q is not known, or is no tensor", ErrInvalid, v.Name)
		}
	}
	found := map[string]bool{}
	capture(a.G, nil, found)
	for _, name := range sortedKeys(found) {
		if t := m.Graph.Init(name); t != nil {
			b.Graph.SetInit(name, t)
			continue
		}
		v := outside[name]
		if v == nil || v.proto != nil || v.Type == tensor.Undefined {
			return nil, fmt.Errorf("%w: the type of %q, which it reads from outside, is not known", ErrInvalid, name)
		}
		c := *v
		b.Graph.Inputs = append(b.Graph.Inputs, &c)
	}
	for _, o := range b.Graph.Outputs {
		if found[o.Name] {
			return nil, fmt.Errorf("%w: it gives back %q, which is made outside", ErrInvalid, o.Name)
		}
	}
	return b, b.Check()
}

// formalType is the element type that input i of the body of n gets.
func (m *Model) formalType(n *Node, i int, outside map[string]*Value) tensor.DType {
	switch {
	case n.Is("Loop") && i == 0:
		return tensor.Int64
	case n.Is("Loop") && i == 1:
		return tensor.Bool
	}
	if t := m.Graph.Init(n.In(i)); t != nil {
		return t.Type
	}
	if v := outside[n.In(i)]; v != nil {
		return v.Type
	}
	return tensor.Undefined
}

// SetBody puts b, made of a body by Body and edited since, in place of the body in
// attribute attr of n. Its inputs stay values of m, and so do constants that m holds
// under the same name; what would hide another value of m is renamed.
func (m *Model) SetBody(n *Node, attr string, b *Model) error {
	old := n.Attr(attr)
	if old == nil || old.G == nil {
		return fmt.Errorf("%w: %s has no %s", ErrInvalid, n.Op, attr)
	}
	c := b.Clone()
	c.shell = nil
	for _, name := range c.Graph.Inits() {
		if same(m.Graph.Init(name), c.Graph.Init(name)) {
			c.Graph.DropInit(name)
		}
	}
	if err := m.unhide(n, attr, c.Graph); err != nil {
		return err
	}
	p, err := c.Proto()
	if err != nil {
		return err
	}
	p.Graph.Input = old.G.Input
	if old.G.Name != nil {
		p.Graph.Name = old.G.Name
	}
	for i, a := range n.Attrs { // attributes may be shared with clones of m
		if a == old {
			n.Attrs = append([]*pb.AttributeProto(nil), n.Attrs...)
			n.Attrs[i] = &pb.AttributeProto{Name: a.Name, DocString: a.DocString, Type: a.Type, G: p.Graph}
		}
	}
	for d, v := range b.Opsets {
		m.Require(d, v)
	}
	m.IR = max(m.IR, b.IR)
	return nil
}

// same reports whether two tensors are one.
func same(a, b *tensor.Tensor) bool {
	return a != nil && b != nil && (a == b || a.Type == b.Type && len(a.Data) == len(b.Data) && len(a.Data) > 0 && &a.Data[0] == &b.Data[0])
}

// unhide renames what g, to become the body of n, and bodies in it make and m uses
// elsewhere.
func (m *Model) unhide(n *Node, attr string, g *Graph) error {
	rest := *m.Graph
	rest.Nodes = nil
	for _, other := range m.Graph.Nodes {
		x := *other
		if other == n {
			x.Attrs = nil
		}
		rest.Nodes = append(rest.Nodes, &x)
	}
	outside := rest.Namer()
	used := g.Namer()
	for name := range outside {
		used[name] = firstNumber
	}
	_, err := g.rename(map[string]string{}, func(name string) string {
		if outside[name] == 0 {
			return name
		}
		return used.Name(name + "_" + attr)
	})
	return err
}

// rename gives what g makes, and what bodies in it make, the names that fresh
// returns; to holds the new names of values that are made outside. Inputs keep
// theirs. It reports whether anything has changed.
func (g *Graph) rename(to map[string]string, fresh func(string) string) (bool, error) {
	to = maps.Clone(to)
	inputs := map[string]bool{}
	for _, v := range g.Inputs {
		inputs[v.Name] = true
		delete(to, v.Name)
	}
	made := func(name string) {
		if name == "" || inputs[name] {
			return
		}
		delete(to, name)
		if r := fresh(name); r != name {
			to[name] = r
		}
	}
	for _, name := range g.Inits() {
		made(name)
	}
	for _, p := range g.Nodes {
		for _, o := range p.Outputs {
			made(o)
		}
	}
	changed := false
	at := func(name string) string {
		if r, ok := to[name]; ok {
			changed = true
			return r
		}
		return name
	}
	for _, name := range g.Inits() {
		if r := at(name); r != name {
			t := g.Init(name)
			g.DropInit(name)
			g.SetInit(r, t)
		}
	}
	for _, p := range g.Nodes {
		for i, in := range p.Inputs {
			p.Inputs[i] = at(in)
		}
		for i, o := range p.Outputs {
			p.Outputs[i] = at(o)
		}
		for i, a := range p.Attrs {
			if a.G == nil {
				continue
			}
			b, err := renamed(a, to, fresh)
			if err != nil {
				return changed, err
			}
			if b != a { // attributes may be shared with clones
				p.Attrs[i], changed = b, true
			}
		}
	}
	for name, r := range to {
		if v := g.Info[name]; v != nil {
			c := *v
			c.Name = r
			g.Info[r] = &c
			delete(g.Info, name)
		}
	}
	for _, o := range g.Outputs {
		o.Name = at(o.Name)
	}
	return changed, nil
}

// renamed is a, which holds a body, or a copy with new names (see rename).
func renamed(a *pb.AttributeProto, to map[string]string, fresh func(string) string) (*pb.AttributeProto, error) {
	m, err := FromProto(&pb.ModelProto{Graph: a.G})
	if err != nil {
		return nil, err
	}
	m = m.Clone() // whose nodes are not those of the attribute
	if changed, err := m.Graph.rename(to, fresh); err != nil || !changed {
		return a, err
	}
	p, err := m.Proto()
	if err != nil {
		return nil, err
	}
	return &pb.AttributeProto{Name: a.Name, DocString: a.DocString, Type: a.Type, G: p.Graph}, nil
}
