// Package graph is fewbit's view of an ONNX model: nodes in topological order,
// values by name, weights as tensors that alias the file they came from.
//
// Passes edit the exported fields directly and call Check afterwards. What
// fewbit does not interpret (subgraphs, local functions, training information,
// non-tensor types) is carried through unchanged.
package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// Operator-set domains. The standard domain is the empty string.
const (
	DomainONNX = ""
	DomainML   = "ai.onnx.ml"
	DomainMS   = "com.microsoft"
)

// Model is a graph with the facts of its file.
type Model struct {
	Graph *Graph
	// Opsets maps a domain ("" is ai.onnx) to its version.
	Opsets map[string]int64
	// IR is the ONNX IR version.
	IR int64
	// Metadata is metadata_props.
	Metadata map[string]string

	// shell holds the fields of the file that fewbit does not interpret.
	shell *pb.ModelProto
	// functions indexes those that the model defines itself.
	functions map[callee]*pb.FunctionProto
	// close releases the file that the tensors alias.
	close func() error
	// unload lets go of its pages.
	unload func()
	// Bytes is the size of the file with its external data, 0 when not from a file.
	Bytes int64
}

// Graph is a model's main graph.
type Graph struct {
	Name            string
	Inputs, Outputs []*Value
	// Nodes are in topological order.
	Nodes []*Node
	// Info holds the types of inner values as far as they are known.
	Info map[string]*Value

	inits map[string]*tensor.Tensor
	order []string // of inits, as in the file
	shell *pb.GraphProto
}

// Value names a graph input, output or inner value and says what is known of
// its type. Type is tensor.Undefined and Dims nil where nothing is known.
type Value struct {
	Name string
	Type tensor.DType
	// Dims is nil for an unknown rank; an empty slice is a scalar.
	Dims []Dim
	// proto is the original type when it is not a plain tensor.
	proto *pb.TypeProto
}

// Dim is one dimension: a size, or a symbolic name, or neither.
type Dim struct {
	N    int64 // -1 when unknown
	Name string
}

// Node is one operator application.
type Node struct {
	Name, Op, Domain string
	// Inputs and Outputs are value names; "" is an omitted optional one.
	Inputs, Outputs []string
	Attrs           []*pb.AttributeProto

	shell *pb.NodeProto // doc string, overload, metadata
}

// Close releases the mapped file. The tensors become invalid.
func (m *Model) Close() error {
	if m.close == nil {
		return nil
	}
	c := m.close
	m.close, m.unload = nil, nil
	return c()
}

// Unload lets go of the memory of weights that lie in the mapped file (see
// onnx.File); they stay valid. It is for the time when an engine holds a copy.
func (m *Model) Unload() {
	if m.unload != nil {
		m.unload()
	}
}

// Opset returns the version of the standard operator set.
func (m *Model) Opset() int64 { return m.Opsets[DomainONNX] }

// Require makes sure that the model imports domain at version or above.
func (m *Model) Require(domain string, version int64) {
	if m.Opsets[domain] < version {
		m.Opsets[domain] = version
	}
}

// Init returns the initializer called name, or nil.
func (g *Graph) Init(name string) *tensor.Tensor { return g.inits[name] }

// Number returns the only value of a float32 constant.
func (g *Graph) Number(name string) (float32, bool) {
	t := g.Init(name)
	if t == nil || t.Type != tensor.Float32 || t.Len() != 1 {
		return 0, false
	}
	return tensor.View[float32](t)[0], true
}

// Holds reports whether the INT64 constant called name holds these numbers.
func (g *Graph) Holds(name string, want ...int64) bool {
	t := g.Init(name)
	return t != nil && t.Type == tensor.Int64 && slices.Equal(tensor.View[int64](t), want)
}

// Dims is what is known of a value's shape (see InferShapes), nil when nothing is.
func (g *Graph) Dims(value string) []Dim {
	if t := g.Init(value); t != nil {
		d := make([]Dim, len(t.Dims))
		for i, n := range t.Dims {
			d[i].N = n
		}
		return d
	}
	for _, v := range g.Inputs {
		if v.Name == value {
			return v.Dims
		}
	}
	if v := g.Info[value]; v != nil {
		return v.Dims
	}
	return nil
}

// SetInit adds or replaces the initializer called name.
func (g *Graph) SetInit(name string, t *tensor.Tensor) {
	if g.inits == nil {
		g.inits = map[string]*tensor.Tensor{}
	}
	if _, ok := g.inits[name]; !ok {
		g.order = append(g.order, name)
	}
	g.inits[name] = t
}

// DropInit removes the initializer called name, if there is one.
func (g *Graph) DropInit(name string) {
	if _, ok := g.inits[name]; !ok {
		return
	}
	delete(g.inits, name)
	for i, n := range g.order {
		if n == name {
			g.order = append(g.order[:i], g.order[i+1:]...)
			return
		}
	}
}

// Inits returns the initializer names in file order. The slice is a copy.
func (g *Graph) Inits() []string { return append([]string(nil), g.order...) }

// Attr returns the attribute called name, or nil.
func (n *Node) Attr(name string) *pb.AttributeProto {
	for _, a := range n.Attrs {
		if a.GetName() == name {
			return a
		}
	}
	return nil
}

// Int returns an integer attribute, or def where it is absent.
func (n *Node) Int(name string, def int64) int64 {
	if a := n.Attr(name); a != nil && a.I != nil {
		return a.GetI()
	}
	return def
}

// Float returns a float attribute, or def where it is absent.
func (n *Node) Float(name string, def float32) float32 {
	if a := n.Attr(name); a != nil && a.F != nil {
		return a.GetF()
	}
	return def
}

// Str returns a string attribute, or def where it is absent.
func (n *Node) Str(name, def string) string {
	if a := n.Attr(name); a != nil && a.S != nil {
		return string(a.GetS())
	}
	return def
}

// Ints returns an integer-list attribute, nil where it is absent.
func (n *Node) Ints(name string) []int64 {
	if a := n.Attr(name); a != nil {
		return a.GetInts()
	}
	return nil
}

// HasSubgraph reports whether an attribute holds a graph (If, Loop, Scan).
func (n *Node) HasSubgraph() bool {
	for _, a := range n.Attrs {
		if a.G != nil || len(a.Graphs) > 0 {
			return true
		}
	}
	return false
}

// Is reports whether n is op of the standard domain.
func (n *Node) Is(op string) bool { return n.Op == op && n.Domain == DomainONNX }

// In returns input i, or "" when it is absent or omitted.
func (n *Node) In(i int) string {
	if i < len(n.Inputs) {
		return n.Inputs[i]
	}
	return ""
}

// NewNode returns a node of the given domain with attributes made by
// AttrInt and its siblings.
func NewNode(domain, op, name string, in, out []string, attrs ...*pb.AttributeProto) *Node {
	return &Node{Name: name, Op: op, Domain: domain, Inputs: in, Outputs: out, Attrs: attrs}
}

// AttrInt makes an integer attribute.
func AttrInt(name string, v int64) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_INT.Enum(), I: proto.Int64(v)}
}

// AttrFloat makes a float attribute.
func AttrFloat(name string, v float32) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_FLOAT.Enum(), F: proto.Float32(v)}
}

// AttrInts makes an integer-list attribute.
func AttrInts(name string, v ...int64) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_INTS.Enum(), Ints: v}
}

// AttrString makes a string attribute.
func AttrString(name, v string) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_STRING.Enum(), S: []byte(v)}
}

// Use is one place where a value is read.
type Use struct {
	Node  *Node
	Input int
}

// Index answers who makes and who reads a value. It is a snapshot: take a new
// one after editing.
type Index struct {
	producer map[string]*Node
	uses     map[string][]Use
	outputs  map[string]bool
	captured map[string]bool
}

// Index builds the snapshot.
func (g *Graph) Index() *Index {
	ix := &Index{producer: map[string]*Node{}, uses: map[string][]Use{}, outputs: map[string]bool{}, captured: map[string]bool{}}
	for _, n := range g.Nodes {
		for _, o := range n.Outputs {
			if o != "" {
				ix.producer[o] = n
			}
		}
		for i, in := range n.Inputs {
			if in != "" {
				ix.uses[in] = append(ix.uses[in], Use{n, i})
			}
		}
		for _, c := range n.captures() {
			ix.captured[c] = true
		}
	}
	for _, o := range g.Outputs {
		ix.outputs[o.Name] = true
	}
	return ix
}

// Producer returns the node that makes the value; nil for inputs and initializers.
func (ix *Index) Producer(value string) *Node { return ix.producer[value] }

// Uses returns the places that read the value, in node order.
func (ix *Index) Uses(value string) []Use { return ix.uses[value] }

// IsOutput reports whether the value is a graph output.
func (ix *Index) IsOutput(value string) bool { return ix.outputs[value] }

// Captured reports whether a subgraph reads the value from outside.
func (ix *Index) Captured(value string) bool { return ix.captured[value] }

// Only returns the single reader of value, or nil when it has several readers,
// none, or is visible outside (graph output, captured by a subgraph).
func (ix *Index) Only(value string) *Node {
	u := ix.uses[value]
	if len(u) != 1 || ix.outputs[value] || ix.captured[value] {
		return nil
	}
	return u[0].Node
}

// captures returns the outer names that n's subgraphs read, sorted.
func (n *Node) captures() []string {
	if !n.HasSubgraph() {
		return nil
	}
	found := map[string]bool{}
	for _, a := range n.Attrs {
		walkGraphs(a, func(g *pb.GraphProto) { capture(g, nil, found) })
	}
	return sortedKeys(found)
}

// scope is the names made in a subgraph, and in those around it.
type scope struct {
	names map[string]bool
	outer *scope
}

// capture adds to found what g and the graphs inside it read from outside outer.
func capture(g *pb.GraphProto, outer *scope, found map[string]bool) {
	s := &scope{map[string]bool{}, outer}
	for _, v := range g.Input {
		s.names[v.GetName()] = true
	}
	for _, t := range g.Initializer {
		s.names[t.GetName()] = true
	}
	for _, t := range g.SparseInitializer {
		s.names[t.GetValues().GetName()] = true
	}
	read := func(name string) {
		for at := s; at != nil; at = at.outer {
			if at.names[name] {
				return
			}
		}
		if name != "" {
			found[name] = true
		}
	}
	for _, n := range g.Node {
		for _, in := range n.Input {
			read(in)
		}
		for _, a := range n.Attribute {
			walkGraphs(a, func(inner *pb.GraphProto) { capture(inner, s, found) })
		}
		for _, o := range n.Output {
			s.names[o] = true
		}
	}
	for _, o := range g.Output {
		read(o.GetName())
	}
}
