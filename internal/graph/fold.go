package graph

import (
	"github.com/fewbit/fewbit/internal/tensor"
)

// Limits on what folding may create. A node that would pass one is left to the
// runtime.
const (
	// foldElems: a result may always have this many elements; beyond, at most
	// foldGrowth times the elements of the node's inputs (so Range, Expand and
	// ConstantOfShape cannot make a small file large).
	foldElems  = 64 << 10
	foldGrowth = 2
	// foldTensorBytes bounds one result.
	foldTensorBytes = 2 << 30
	// foldSlackBytes bounds, with twice the model's own size, the bytes that
	// one FoldConstants creates over all nodes.
	foldSlackBytes = 64 << 20
)

// FoldConstants evaluates the nodes whose inputs are all constant and makes
// their results initializers under the same names. What exporters compute from
// Shape is constant too, as far as the dimensions follow from the declared
// inputs (the types of inner values that the file carries are not believed).
// Results are those of ONNX Runtime bit for bit (pow within an ulp). What it
// cannot evaluate, it leaves. It returns the number of nodes folded. Nodes
// inside subgraphs are not touched.
//
// Run LiftConstants first: Constant nodes are not constants to this pass.
func FoldConstants(m *Model) int {
	g := m.Graph
	if m.Opset() < 7 { // other broadcasting rules before
		return 0
	}
	f := &folder{m: m, left: map[string]int{}, budget: foldSlackBytes + foldGrowth*m.weightBytes()}
	ix := g.Index()
	for v, u := range ix.uses {
		f.left[v] = len(u)
	}
	f.inferred = infer(m, nil, false)
	kept := make([]*Node, 0, len(g.Nodes))
	var read []string
	release := func(in string) { // one reader less
		if f.left[in]--; f.left[in] == 0 && !ix.outputs[in] && !ix.captured[in] && g.inits[in] != nil {
			g.inits[in] = nil // its bytes are free at once; the name goes below
			read = append(read, in)
		}
	}
	same := map[string]string{} // outputs of dropped Identity nodes, to the constant they were
	for _, n := range g.Nodes {
		for i, in := range n.Inputs {
			if c, ok := same[in]; ok {
				n.Inputs[i] = c
			}
		}
		if c := n.In(0); n.Is("Identity") && len(n.Inputs) == 1 && len(n.Outputs) == 1 && g.inits[c] != nil && !m.isLocal(n) {
			if y := n.Outputs[0]; y != "" && !ix.outputs[y] && !ix.captured[y] {
				// Its readers share the constant: tied weights stay one tensor.
				same[y] = c
				f.left[c] += f.left[y]
				delete(g.Info, y)
				release(c)
				continue
			}
		}
		t := f.fold(n, ix)
		if t == nil {
			kept = append(kept, n)
			continue
		}
		g.SetInit(n.Outputs[0], t)
		delete(g.Info, n.Outputs[0])
		for _, in := range n.Inputs {
			release(in)
		}
	}
	folded := len(g.Nodes) - len(kept)
	g.Nodes = kept
	g.dropInits(read)
	return folded
}

// weightBytes is what the model's constants occupy, at most the size of its
// file where that is known: initializers may share the bytes of one region.
func (m *Model) weightBytes() int64 {
	var sum int64
	for _, t := range m.Graph.inits {
		sum += int64(len(t.Data))
	}
	if m.Bytes > 0 {
		sum = min(sum, m.Bytes)
	}
	return sum
}

// folder carries the limits over one run.
type folder struct {
	m        *Model
	left     map[string]int // readers not yet folded
	budget   int64          // bytes
	inferred *inferrer      // before folding
}

// fold returns n's value, nil where it is not constant or not to be folded.
func (f *folder) fold(n *Node, ix *Index) *tensor.Tensor {
	if n.Domain != DomainONNX || len(n.Outputs) != 1 || n.Outputs[0] == "" || ix.outputs[n.Outputs[0]] || f.m.isLocal(n) {
		return nil
	}
	c := &evalCall{node: n, opset: f.m.Opset()}
	if t := f.inferred.constant(n.Outputs[0]); t != nil {
		return t
	}
	eval, ok := evaluators[n.Op]
	if !ok || (eval.inputs > 0 && len(n.Inputs) > eval.inputs) {
		return nil
	}
	c.in = make([]*tensor.Tensor, len(n.Inputs))
	var elems int64
	for i, in := range n.Inputs {
		if in == "" {
			continue
		}
		t := f.m.Graph.inits[in]
		if t == nil || t.Type == tensor.String {
			return nil
		}
		c.in[i] = t
		elems += t.Len()
	}
	c.maxElems = max(foldElems, foldGrowth*elems)
	c.maxBytes = min(foldTensorBytes, f.budget)
	t := eval.run(c)
	if t == nil || t.Check() != nil {
		return nil
	}
	f.budget -= c.made
	return t
}

// fixed returns known dimensions.
func fixed(dims []int64) []Dim {
	d := make([]Dim, len(dims))
	for i, n := range dims {
		d[i] = Dim{N: n}
	}
	return d
}
