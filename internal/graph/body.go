package graph

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Body returns the graph in attribute attr of n as a model of its own: its inputs
// are the values that it reads from outside, constants that it reads from outside
// are initializers. It shares tensors with m. It returns ErrInvalid when the type
// of such a value is not known, or when the body gives back what it did not make.
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
	types := map[string]*Value{}
	for _, v := range m.Graph.Inputs {
		types[v.Name] = v
	}
	found := map[string]bool{}
	capture(a.G, nil, found)
	for _, name := range sortedKeys(found) {
		if t := m.Graph.Init(name); t != nil {
			b.Graph.SetInit(name, t)
			continue
		}
		v := types[name]
		if v == nil {
			v = m.Graph.Info[name]
		}
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
	m.unhide(n, attr, c.Graph)
	p, err := c.Proto()
	if err != nil {
		return err
	}
	p.Graph.Input = nil
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

// unhide renames what g, to become the body of n, makes and m uses elsewhere.
func (m *Model) unhide(n *Node, attr string, g *Graph) {
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
		used[name] = true
	}
	inputs := map[string]bool{}
	for _, v := range g.Inputs {
		inputs[v.Name] = true
	}
	to := map[string]string{}
	rename := func(name string) string {
		if r, ok := to[name]; ok {
			return r
		}
		return name
	}
	hides := func(name string) {
		if name != "" && outside[name] && !inputs[name] {
			to[name] = used.Name(name + "_" + attr)
		}
	}
	for _, name := range g.Inits() {
		hides(name)
	}
	for _, p := range g.Nodes {
		for _, o := range p.Outputs {
			hides(o)
		}
	}
	if len(to) == 0 {
		return
	}
	for _, name := range g.Inits() {
		if r := rename(name); r != name {
			t := g.Init(name)
			g.DropInit(name)
			g.SetInit(r, t)
		}
	}
	for _, p := range g.Nodes {
		for i, in := range p.Inputs {
			p.Inputs[i] = rename(in)
		}
		for i, o := range p.Outputs {
			p.Outputs[i] = rename(o)
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
		o.Name = rename(o.Name)
	}
}
