package graph

import (
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"google.golang.org/protobuf/proto"
)

// maxCallDepth bounds how deep a model's own functions call each other.
const maxCallDepth = 64

// callee names a function of the model. Overload tells apart functions of one
// name (IR 10).
type callee struct{ domain, name, overload string }

// functionsOf indexes the functions that the model defines itself.
func functionsOf(p *pb.ModelProto) map[callee]*pb.FunctionProto {
	if len(p.GetFunctions()) == 0 {
		return nil
	}
	r := make(map[callee]*pb.FunctionProto, len(p.Functions))
	for _, f := range p.Functions {
		r[callee{domain(f.GetDomain()), f.GetName(), f.GetOverload()}] = f
	}
	return r
}

// Function returns the function of the given name that the model defines
// itself (without overload), or nil.
func (m *Model) Function(domain, name string) *pb.FunctionProto {
	return m.functions[callee{domain, name, ""}]
}

// Functions returns the functions that the model defines itself, in file order.
// They are shared: replace them, never write in place.
func (m *Model) Functions() []*pb.FunctionProto {
	return slices.Clone(m.shell.GetFunctions())
}

// AddFunction defines f in the model, in place of one of the same name. Clones
// made before do not get it.
func (m *Model) AddFunction(f *pb.FunctionProto) {
	p := &pb.ModelProto{}
	if m.shell != nil {
		p = cloneShell(m.shell)
	}
	key := callee{domain(f.GetDomain()), f.GetName(), f.GetOverload()}
	p.Functions = slices.DeleteFunc(slices.Clone(p.Functions), func(have *pb.FunctionProto) bool {
		return callee{domain(have.GetDomain()), have.GetName(), have.GetOverload()} == key
	})
	p.Functions = append(p.Functions, f)
	m.shell, m.functions = p, functionsOf(p)
}

// isLocal reports whether n calls a function that the model defines itself:
// its name then says nothing about what it computes.
func (m *Model) isLocal(n *Node) bool {
	if len(m.functions) == 0 {
		return false
	}
	_, ok := m.functions[callee{n.Domain, n.Op, n.shell.GetOverload()}]
	return ok
}

// checkFunctions refuses functions that call each other in a circle, too deep,
// or so often that the inlined graph, which runtimes build, passes the limit
// on nodes.
func (m *Model) checkFunctions() error {
	if len(m.functions) == 0 {
		return nil
	}
	c := &callCheck{functions: m.functions, size: map[callee]int{}, open: map[callee]bool{}}
	total := 0
	for _, n := range m.Graph.Nodes {
		size, err := c.node(&pb.NodeProto{OpType: &n.Op, Domain: &n.Domain, Overload: proto.String(n.shell.GetOverload()), Attribute: n.Attrs}, 0)
		if err != nil {
			return err
		}
		if total += size; total > onnx.MaxNodes {
			return fmt.Errorf("%w: its functions inline to more than %d nodes", ErrInvalid, onnx.MaxNodes)
		}
	}
	for f := range m.functions { // those that nothing calls too: runtimes look at all
		if _, err := c.function(f, 0); err != nil {
			return err
		}
	}
	return nil
}

type callCheck struct {
	functions map[callee]*pb.FunctionProto
	size      map[callee]int // inlined, saturating at the limit
	open      map[callee]bool
}

func (c *callCheck) function(f callee, depth int) (int, error) {
	if size, ok := c.size[f]; ok {
		return size, nil
	}
	if c.open[f] {
		return 0, fmt.Errorf("%w: function %q of domain %q calls itself", ErrInvalid, f.name, f.domain)
	}
	if depth > maxCallDepth {
		return 0, fmt.Errorf("%w: functions call each other deeper than %d", ErrInvalid, maxCallDepth)
	}
	c.open[f] = true
	size, err := c.nodes(c.functions[f].GetNode(), depth+1)
	if err != nil {
		return 0, err
	}
	delete(c.open, f)
	c.size[f] = size
	return size, nil
}

func (c *callCheck) nodes(nodes []*pb.NodeProto, depth int) (int, error) {
	total := 0
	for _, n := range nodes {
		size, err := c.node(n, depth)
		if err != nil {
			return 0, err
		}
		total = min(total+size, onnx.MaxNodes+1)
	}
	return total, nil
}

// node returns how many nodes n becomes.
func (c *callCheck) node(n *pb.NodeProto, depth int) (int, error) {
	total := 1
	var err error
	for _, a := range n.Attribute {
		walkGraphs(a, func(g *pb.GraphProto) {
			size, e := c.nodes(g.GetNode(), depth)
			if e != nil && err == nil {
				err = e
			}
			total = min(total+size, onnx.MaxNodes+1)
		})
	}
	if err != nil {
		return 0, err
	}
	f := callee{domain(n.GetDomain()), n.GetOpType(), n.GetOverload()}
	if c.functions[f] != nil {
		size, err := c.function(f, depth)
		if err != nil {
			return 0, err
		}
		total = min(total+size, onnx.MaxNodes+1)
	}
	return total, nil
}
