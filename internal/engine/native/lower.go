package native

import (
	"context"
	"fmt"
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
//	x -> [Div s] -> QuantizeRows -> MatMulQuantized -> [Add b] -> [Gelu] -> [Sum r]
//
// becomes LinearRows(x, W, s, b, r). What lies between is taken in only where
// nobody else reads it.
type lowering struct {
	m       *graph.Model
	e       *ort.Engine
	threads int

	ix     *graph.Index
	gone   map[*graph.Node]bool
	packed map[string]string
	maps   [][]byte
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
	graph.InferShapes(l.m)
	g := l.m.Graph
	l.ix, l.gone, l.packed = g.Index(), map[*graph.Node]bool{}, map[string]string{}
	if l.e.Kernels().BF16 { // else ONNX Runtime's is faster than the plain kernel
		if err := l.attentions(); err != nil {
			return 0, err
		}
	}
	count := 0
	for _, n := range g.Nodes {
		if n.Domain != ops.Domain || n.Op != ops.OpMatMulQuantized {
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		done, err := l.projection(n)
		if err != nil {
			return 0, err
		}
		if done {
			count++
		}
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return l.gone[n] })
	if err := g.Sort(); err != nil {
		return 0, err
	}
	g.Prune()
	return count, nil
}

func (l *lowering) projection(n *graph.Node) (bool, error) {
	q := l.ix.Producer(n.In(0))
	if q == nil || q.Domain != ops.Domain || q.Op != ops.OpQuantizeRows || len(n.Inputs) != 6 || len(q.Outputs) != 3 || !slices.Equal(n.Inputs[:3], q.Outputs) {
		return false, nil
	}
	packed, k, cols, err := l.pack(n)
	if err != nil || packed == "" {
		return false, err
	}
	in := []string{q.In(0), packed, "", "", ""}
	if d := l.ix.Producer(q.In(0)); d != nil && d.Is("Div") && l.vector(d.In(1), k) {
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
	if y, nodes := graph.GeluOf(l.m.Graph, l.ix, out); y != "" {
		for _, x := range nodes {
			l.gone[x] = true
		}
		out, attrs = y, append(attrs, graph.AttrString("activation", "gelu"))
	}
	if sum := l.ix.Only(out); sum != nil && (sum.Is("Sum") || sum.Is("Add")) && len(sum.Inputs) == 2 {
		if r := beside(sum, out); r != out && l.m.Graph.Init(r) == nil && l.sameShape(r, out) {
			in[inResidual], out = r, sum.Outputs[0]
			l.gone[sum] = true
		}
	}
	for len(in) > 0 && in[len(in)-1] == "" {
		in = in[:len(in)-1]
	}
	n.Op, n.Attrs, n.Inputs, n.Outputs = opLinearRows, attrs, in, []string{out}
	return true, nil
}

// pack returns the initializer with the packed weight of n and its dimensions;
// "" when it is not as docs/ops.md says.
func (l *lowering) pack(n *graph.Node) (name string, k, cols int64, err error) {
	g := l.m.Graph
	w, scale, sum := g.Init(n.In(3)), g.Init(n.In(4)), g.Init(n.In(5))
	if w == nil || w.Type != tensor.Int8 || len(w.Dims) != 2 || scale == nil || sum == nil || sum.Type != tensor.Int32 {
		return "", 0, 0, nil
	}
	k, cols = w.Dims[0], w.Dims[1]
	if !l.vector(n.In(4), cols) || sum.Len() != cols || len(sum.Dims) != 1 {
		return "", 0, 0, nil
	}
	key := fmt.Sprintf("%q %q", n.In(3), n.In(4))
	if p, ok := l.packed[key]; ok {
		return p, k, cols, nil
	}
	size := l.e.Int8Size(int(k), int(cols))
	if size == 0 {
		return "", 0, 0, nil
	}
	codes := tensor.View[int8](w)
	want, err := ops.ColumnSums(codes, int(k), int(cols))
	if err != nil || !slices.Equal(want, tensor.View[int32](sum)) {
		return "", 0, 0, nil //nolint:nilerr // what the formula says is not what the kernel computes: it stays as it is
	}
	scales, err := scale.F32()
	if err != nil {
		return "", 0, 0, nil //nolint:nilerr // scales of another type stay as they are
	}
	b, err := alloc(size)
	if err != nil {
		return "", 0, 0, err
	}
	l.maps = append(l.maps, b)
	if err := l.e.PackInt8(codes, scales, int(k), int(cols), b, l.threads); err != nil {
		return "", 0, 0, err
	}
	name = n.In(3) + "_packed_" + n.In(4)
	l.packed[key] = name
	g.SetInit(name, &tensor.Tensor{Type: tensor.Uint8, Dims: []int64{int64(size)}, Data: b})
	return name, k, cols, nil
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
