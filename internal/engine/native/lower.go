package native

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// opLinearRows is the operator of libfewbit_cpu (cpu/linear_rows.cpp).
const opLinearRows = "LinearRows"

// Inputs of LinearRows.
const (
	inX = iota
	inWeight
	inDivisor
	inBias
	inResidual
)

// lowering rewrites the projections of m:
//
//	x -> [Div s] -> QuantizeRows -> MatMulQuantized -> [Add b] -> [an activation] -> [Sum r]
//
// becomes LinearRows(x, W, s, b, r). What lies between is taken in only where
// nobody else reads it.
type lowering struct {
	m       *graph.Model
	e       *ort.Engine
	threads int

	ix      *graph.Index
	gone    map[*graph.Node]bool
	weights map[*graph.Node]weight // of the LinearRows that are not packed yet
	packed  map[string]string      // what was made of a weight, or beside a normalization's scale
	maps    [][]byte
}

// weight is a weight [k,n] as docs/ops.md has it.
type weight struct {
	name   string // of weight and scales
	codes  []int8
	scales []float32
	k, n   int64
	four   *ops.Blocks // of the weight in 4 bits; codes is nil then
}

func (l *lowering) free() {
	for _, b := range l.maps {
		_ = unix.Munmap(b) // our own mapping
	}
	l.maps = nil
}

// run returns the number of projections rewritten. A projection that is not as
// docs/ops.md says keeps its form, in which ONNX Runtime computes what it says.
func (l *lowering) run(ctx context.Context) (int, error) {
	if !l.e.Kernels().Int4 { // whose kernels take weights in 4 bits
		if ops.ExpandWeights(l.m) != nil {
			return 0, nil //nolint:nilerr // what is not as docs/ops.md says runs as it stands
		}
	}
	graph.InferShapes(l.m)
	g := l.m.Graph
	dropCasts(g)
	l.ix, l.gone, l.weights, l.packed = g.Index(), map[*graph.Node]bool{}, map[*graph.Node]weight{}, map[string]string{}
	if err := l.patches(ctx); err != nil {
		return 0, err
	}
	if err := l.attentions(); err != nil {
		return 0, err
	}
	count := 0
	for _, n := range g.Nodes {
		if n.Domain != ops.Domain || n.Op != ops.OpMatMulQuantized {
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if l.projection(n) {
			count++
		}
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return l.gone[n] })
	if err := g.Sort(); err != nil {
		return 0, err
	}
	g.Prune()
	if err := l.encoders(); err != nil {
		return 0, err
	}
	for _, n := range g.Nodes {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if w, ok := l.weights[n]; ok {
			packed, err := l.pack(w)
			if err != nil {
				return 0, err
			}
			n.Inputs[inWeight] = packed
		}
	}
	g.Prune()
	return count, nil
}

// dropCasts takes out Casts of FP32 to itself, which exporters write around normalizations
// and positions.
func dropCasts(g *graph.Graph) {
	ix := g.Index()
	same := map[string]string{}
	for _, n := range g.Nodes { // in order, so that a chain of them ends at its first
		for i, in := range n.Inputs {
			if x, ok := same[in]; ok {
				n.Inputs[i] = x
			}
		}
		if !n.Is("Cast") || n.Int("to", 0) != int64(tensor.Float32) || ix.IsOutput(n.Outputs[0]) || ix.Captured(n.Outputs[0]) {
			continue
		}
		if v := g.Info[n.In(0)]; v != nil && v.Type == tensor.Float32 {
			same[n.Outputs[0]] = n.In(0)
		}
	}
	g.Prune()
}

func (l *lowering) projection(n *graph.Node) bool {
	q := l.ix.Producer(n.In(0))
	if q == nil || q.Domain != ops.Domain || q.Op != ops.OpQuantizeRows || len(n.Inputs) != 6 || len(q.Outputs) != 3 || !slices.Equal(n.Inputs[:3], q.Outputs) {
		return false
	}
	w, ok := l.weight(n)
	if !ok {
		return false
	}
	cols := w.n
	in := []string{q.In(0), n.In(3), "", "", ""} // the packed weight takes the place of n.In(3)
	if d := l.ix.Producer(q.In(0)); d != nil && d.Is("Div") && l.vector(d.In(1), w.k) {
		in[inX], in[inDivisor] = d.In(0), d.In(1)
	}
	attrs := n.Attrs[:0:0]
	attrs = append(attrs, graph.AttrInt("N", cols))
	out := n.Outputs[0]
	if add := l.ix.Only(out); add != nil && add.Is("Add") {
		if b := beside(add, out); l.vector(b, cols) {
			in[inBias], out = b, add.Outputs[0]
			l.gone[add] = true
		}
	}
	if y, act, nodes := graph.ActivationOf(l.m.Graph, l.ix, out); y != "" {
		for _, x := range nodes {
			l.gone[x] = true
		}
		out, attrs = y, append(attrs, graph.AttrString("activation", act))
	}
	// Of two projections that are added the first takes the sum.
	if sum := l.ix.Only(out); sum != nil && !l.gone[sum] && (sum.Is("Sum") || sum.Is("Add")) && len(sum.Inputs) == 2 {
		if r := beside(sum, out); r != out && l.m.Graph.Init(r) == nil && (l.sameShape(r, out) || l.sameLast(r, cols) && l.hasRowsOf(out, r)) {
			in[inResidual], out = r, sum.Outputs[0]
			l.gone[sum] = true
		}
	}
	for len(in) > 0 && in[len(in)-1] == "" {
		in = in[:len(in)-1]
	}
	n.Op, n.Attrs, n.Inputs, n.Outputs = opLinearRows, attrs, in, []string{out}
	l.weights[n] = w
	return true
}

// weight returns the weight of n if it is as docs/ops.md says.
func (l *lowering) weight(n *graph.Node) (v weight, ok bool) {
	g := l.m.Graph
	w, scale, sum := g.Init(n.In(3)), g.Init(n.In(4)), g.Init(n.In(5))
	if b := l.blocks(n.In(3)); b != nil {
		return l.weight4(n, b)
	}
	if w == nil || w.Type != tensor.Int8 || len(w.Dims) != 2 || scale == nil || sum == nil || sum.Type != tensor.Int32 {
		return v, false
	}
	v.k, v.n = w.Dims[0], w.Dims[1]
	if !l.vector(n.In(4), v.n) || sum.Len() != v.n || len(sum.Dims) != 1 || l.e.Int8Size(int(v.k), int(v.n)) == 0 {
		return v, false
	}
	v.name, v.codes, v.scales = n.In(3)+"_packed_"+n.In(4), tensor.View[int8](w), tensor.View[float32](scale)
	want, err := ops.ColumnSums(v.codes, int(v.k), int(v.n))
	return v, err == nil && slices.Equal(want, tensor.View[int32](sum))
}

// pack returns the initializer with the packed weight.
func (l *lowering) pack(w weight) (string, error) {
	if p, ok := l.packed[w.name]; ok {
		return p, nil
	}
	size := l.e.Int8Size(int(w.k), int(w.n))
	if w.four != nil {
		size = l.e.Int4Size(int(w.k), int(w.n))
	}
	b, err := alloc(size)
	if err != nil {
		return "", err
	}
	l.maps = append(l.maps, b)
	if w.four != nil {
		err = l.e.PackInt4(w.four.Codes, w.four.Steps, w.scales, int(w.k), int(w.n), b, l.threads)
	} else {
		err = l.e.PackInt8(w.codes, w.scales, int(w.k), int(w.n), b, l.threads)
	}
	if err != nil {
		return "", err
	}
	name := l.fresh(w.name)
	l.packed[w.name] = name
	l.m.Graph.SetInit(name, &tensor.Tensor{Type: tensor.Uint8, Dims: []int64{int64(size)}, Data: b})
	return name, nil
}

// fresh returns name, longer where the graph has one like it.
func (l *lowering) fresh(name string) string {
	isInput := func(v *graph.Value) bool { return v.Name == name }
	for l.m.Graph.Init(name) != nil || l.ix.Producer(name) != nil || slices.ContainsFunc(l.m.Graph.Inputs, isInput) {
		name += "_"
	}
	return name
}

// vector reports whether name is an initializer FP32 [n].
func (l *lowering) vector(name string, n int64) bool {
	t := l.m.Graph.Init(name)
	return t != nil && t.Type == tensor.Float32 && len(t.Dims) == 1 && t.Dims[0] == n
}

// sameShape reports whether both values are known to have the same dimensions.
func (l *lowering) sameShape(a, b string) bool {
	x, y := l.info(a), l.info(b)
	if x == nil || y == nil || x.Dims == nil || len(x.Dims) != len(y.Dims) {
		return false
	}
	for i, d := range x.Dims {
		if e := y.Dims[i]; d.N < 0 && (d.Name == "" || d.Name != e.Name) || d.N != e.N {
			return false
		}
	}
	return true
}

// sameLast reports whether the last of three dimensions is n.
func (l *lowering) sameLast(value string, n int64) bool {
	v := l.info(value)
	return v != nil && len(v.Dims) == 3 && v.Dims[2].N == n
}

func (l *lowering) info(name string) *graph.Value {
	for _, v := range l.m.Graph.Inputs {
		if v.Name == name {
			return v
		}
	}
	return l.m.Graph.Info[name]
}

// beside returns the operand of n beside x.
func beside(n *graph.Node, x string) string {
	if n.In(0) == x {
		return n.In(1)
	}
	return n.In(0)
}
