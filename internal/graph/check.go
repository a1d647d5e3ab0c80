package graph

import (
	"fmt"
	"strings"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// knownDomains are those that ONNX Runtime ships operators for.
var knownDomains = map[string]bool{
	DomainONNX: true, DomainML: true, DomainMS: true, "com.microsoft.nchwc": true, "com.ms.internal.nhwc": true,
	"ai.onnx.training": true, "ai.onnx.preview.training": true, "ai.onnx.preview": true, "com.microsoft.experimental": true,
	"org.pytorch.aten": true,
}

// Check verifies what passes rely on: every value has one maker and is made
// before it is read (so there is no cycle), every tensor has the bytes that its
// dimensions need, every operator's domain is imported and known. It sorts
// nothing; see Sort.
func (m *Model) Check() error {
	g := m.Graph
	if len(g.Outputs) == 0 {
		return fmt.Errorf("%w: the graph has no outputs", ErrInvalid)
	}
	local := map[string]bool{}
	for f := range m.functions {
		local[f.domain] = true
	}
	made := make(map[string]bool, len(g.Nodes)*2)
	for _, v := range g.Inputs {
		if v.Name == "" || made[v.Name] {
			return fmt.Errorf("%w: input name %q is empty or used twice", ErrInvalid, v.Name)
		}
		made[v.Name] = true
	}
	for _, name := range g.order {
		if made[name] {
			return fmt.Errorf("%w: %q is both an input and an initializer", ErrInvalid, name)
		}
		if err := g.inits[name].Check(); err != nil {
			return fmt.Errorf("%w: initializer %q: %v", ErrInvalid, name, err)
		}
		made[name] = true
	}
	if g.shell != nil {
		for _, s := range g.shell.SparseInitializer {
			name := s.GetValues().GetName()
			if name == "" || made[name] {
				return fmt.Errorf("%w: sparse initializer name %q is empty or used twice", ErrInvalid, name)
			}
			made[name] = true
		}
	}
	producers := map[string]bool{}
	for _, n := range g.Nodes {
		for _, o := range n.Outputs {
			producers[o] = true
		}
	}
	for i, n := range g.Nodes {
		if n.Op == "" {
			return fmt.Errorf("%w: node %d %q has no operator type", ErrInvalid, i, n.Name)
		}
		if _, ok := m.Opsets[n.Domain]; !ok {
			return fmt.Errorf("%w: node %q uses domain %q, which the model does not import", ErrInvalid, n.label(i), n.Domain)
		}
		if !knownDomains[n.Domain] && !local[n.Domain] {
			return fmt.Errorf("%w: node %q: unknown operator domain %q (%s); fewbit runs standard and com.microsoft operators", ErrInvalid, n.label(i), n.Domain, n.Op)
		}
		if d, op, ok := unknownInside(n.Attrs, local); ok {
			return fmt.Errorf("%w: node %q: its subgraph uses the unknown operator domain %q (%s); fewbit runs standard and com.microsoft operators", ErrInvalid, n.label(i), d, op)
		}
		read := append(append([]string(nil), n.Inputs...), n.captures()...)
		for _, in := range read {
			if in == "" || made[in] {
				continue
			}
			if producers[in] {
				return fmt.Errorf("%w: node %q reads %q before it is made: the graph has a cycle or is not in topological order", ErrInvalid, n.label(i), in)
			}
			return fmt.Errorf("%w: node %q (%s) reads %q, which nothing makes: a missing initializer or input", ErrInvalid, n.label(i), n.Op, in)
		}
		for _, o := range n.Outputs {
			if o == "" {
				continue
			}
			if made[o] {
				return fmt.Errorf("%w: value %q is made twice (node %q)", ErrInvalid, o, n.label(i))
			}
			made[o] = true
		}
	}
	for _, o := range g.Outputs {
		if !made[o.Name] {
			return fmt.Errorf("%w: nothing makes the output %q", ErrInvalid, o.Name)
		}
	}
	return m.checkFunctions()
}

// unknownInside finds an operator of an unknown domain in subgraphs.
func unknownInside(attrs []*pb.AttributeProto, local map[string]bool) (dom, op string, found bool) {
	for _, a := range attrs {
		walkGraphs(a, func(g *pb.GraphProto) {
			for _, n := range g.GetNode() {
				if found {
					return
				}
				if d := domain(n.GetDomain()); !knownDomains[d] && !local[d] {
					dom, op, found = d, n.GetOpType(), true
					return
				}
				dom, op, found = unknownInside(n.Attribute, local)
			}
		})
	}
	return dom, op, found
}

// label names a node in an error: its name, or its operator and position.
func (n *Node) label(i int) string {
	if n.Name != "" {
		return n.Name
	}
	return fmt.Sprintf("%s #%d", n.Op, i)
}

// Quantized reports the first operator that shows the model to be quantized
// already, or "".
func (m *Model) Quantized() string {
	for _, n := range m.Graph.Nodes {
		if n.Domain == DomainFewbit {
			return n.Op
		}
		switch n.Op {
		case "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
			"MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
			"QGemm", "QAttention", "GatherBlockQuantized", "QLinearAdd", "QEmbedLayerNormalization":
			return n.Op
		case "BitShift": // as convolutions have 4-bit weights: two codes a byte, in blocks
			if t := m.Graph.Init(n.In(0)); t != nil && t.Type == tensor.Uint8 && len(t.Dims) == packedRank {
				return n.Op + " of 4-bit weights"
			}
		}
	}
	return ""
}

// packedRank is that of codes in blocks: outputs, blocks, bytes.
const packedRank = 3

// Sort brings the nodes into topological order, keeping the given order where
// it is already one. A cycle is ErrInvalid and names one of its nodes.
func (g *Graph) Sort() error {
	waiting := make([]int, len(g.Nodes))
	readers := map[string][]int{}
	made := map[string]bool{}
	for _, n := range g.Nodes {
		for _, o := range n.Outputs {
			if o != "" {
				made[o] = true
			}
		}
	}
	var ready intHeap
	for i, n := range g.Nodes {
		seen := map[string]bool{}
		for _, in := range append(append([]string(nil), n.Inputs...), n.captures()...) {
			if made[in] && !seen[in] {
				seen[in] = true
				waiting[i]++
				readers[in] = append(readers[in], i)
			}
		}
		if waiting[i] == 0 {
			ready.push(i)
		}
	}
	sorted := make([]*Node, 0, len(g.Nodes))
	for len(ready) > 0 {
		i := ready.pop()
		n := g.Nodes[i]
		sorted = append(sorted, n)
		for _, o := range n.Outputs {
			for _, r := range readers[o] {
				if waiting[r]--; waiting[r] == 0 {
					ready.push(r)
				}
			}
			delete(readers, o)
		}
	}
	if len(sorted) != len(g.Nodes) {
		var stuck []string
		for i, n := range g.Nodes {
			if waiting[i] > 0 && len(stuck) < 3 {
				stuck = append(stuck, n.label(i))
			}
		}
		return fmt.Errorf("%w: the graph has a cycle near %s", ErrInvalid, strings.Join(stuck, ", "))
	}
	g.Nodes = sorted
	return nil
}

// intHeap is a binary min-heap: container/heap without the interface boxing.
type intHeap []int

func (h *intHeap) push(v int) {
	*h = append(*h, v)
	s := *h
	for i := len(s) - 1; i > 0; {
		p := (i - 1) / 2
		if s[p] <= s[i] {
			return
		}
		s[p], s[i] = s[i], s[p]
		i = p
	}
}

func (h *intHeap) pop() int {
	s := *h
	top := s[0]
	last := len(s) - 1
	s[0] = s[last]
	s = s[:last]
	*h = s
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(s) {
			return top
		}
		if c+1 < len(s) && s[c+1] < s[c] {
			c++
		}
		if s[i] <= s[c] {
			return top
		}
		s[i], s[c] = s[c], s[i]
		i = c
	}
}

// Prune removes nodes whose outputs nobody reads, and initializers that nobody
// reads. It returns how many nodes went.
func (g *Graph) Prune() int {
	need := map[string]bool{}
	for _, o := range g.Outputs {
		need[o.Name] = true
	}
	kept := make([]*Node, 0, len(g.Nodes))
	for i := len(g.Nodes) - 1; i >= 0; i-- {
		n := g.Nodes[i]
		live := false
		for _, o := range n.Outputs {
			live = live || need[o]
		}
		if !live {
			continue
		}
		kept = append(kept, n)
		for _, in := range n.Inputs {
			need[in] = true
		}
		for _, c := range n.captures() {
			need[c] = true
		}
	}
	removed := len(g.Nodes) - len(kept)
	for i, j := 0, len(kept)-1; i < j; i, j = i+1, j-1 {
		kept[i], kept[j] = kept[j], kept[i]
	}
	g.Nodes = kept
	if removed >= 0 {
		for _, name := range g.Inits() {
			if !need[name] {
				delete(g.inits, name)
			}
		}
		order := g.order[:0]
		for _, name := range g.order {
			if g.inits[name] != nil {
				order = append(order, name)
			}
		}
		g.order = order
	}
	return removed
}
