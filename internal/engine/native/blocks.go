package native

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// blocks returns the operand of the ExpandBlocks that makes value, nil where there
// is none.
func (l *lowering) blocks(value string) *ops.Blocks {
	n := l.ix.Producer(value)
	if n == nil || n.Domain != ops.Domain || n.Op != ops.OpExpandBlocks {
		return nil
	}
	b, err := ops.BlocksOf(l.m.Graph, n)
	if err != nil {
		return nil
	}
	return &b
}

// weight4 is weight for one in 4 bits.
func (l *lowering) weight4(n *graph.Node, b *ops.Blocks) (v weight, ok bool) {
	scale, sum := l.m.Graph.Init(n.In(4)), l.m.Graph.Init(n.In(5))
	v.k, v.n, v.four = int64(b.K), int64(b.N), b
	if !l.vector(n.In(4), v.n) || sum == nil || sum.Type != tensor.Int32 || len(sum.Dims) != 1 || sum.Len() != v.n || l.e.Int4Size(b.K, b.N) == 0 {
		return v, false
	}
	v.name, v.scales = n.In(3)+"_packed_"+n.In(4), tensor.View[float32](scale)
	w, err := ops.ExpandBlocks(b.Codes, b.Steps, b.K, b.N)
	if err != nil {
		return v, false
	}
	want, err := ops.ColumnSums(w, b.K, b.N)
	return v, err == nil && slices.Equal(want, tensor.View[int32](sum))
}

// joinBlocks puts the weights of projections side by side and returns the node that
// expands them to out.
func joinBlocks(g *graph.Graph, parts []branch, out string, fresh func(suffix string) string) *graph.Node {
	codes, steps := make([][]uint8, len(parts)), make([][]int8, len(parts))
	for i, p := range parts {
		codes[i], steps[i] = p.four.Codes, p.four.Steps
	}
	n, blocks, width := int64(len(parts)), parts[0].rows/ops.BlockRows, parts[0].width
	in := []string{fresh("_codes"), fresh("_steps")}
	g.SetInit(in[0], tensor.From(graph.JoinColumns(codes, blocks*ops.BlockRows/2, width), blocks, ops.BlockRows/2, n*width))
	g.SetInit(in[1], tensor.From(graph.JoinColumns(steps, blocks, width), blocks, 1, n*width))
	return graph.NewNode(ops.Domain, ops.OpExpandBlocks, out+"_ExpandBlocks", in, []string{out})
}

// blocksByHead is byHead for a weight in 4 bits: what is added has a step of 0.
func blocksByHead(b *ops.Blocks, heads, size, padded int64) *ops.Blocks {
	return &ops.Blocks{K: b.K, N: int(3 * heads * padded),
		Codes: byHead(b.Codes, int64(b.K/2), heads, size, padded), Steps: byHead(b.Steps, int64(b.K/ops.BlockRows), heads, size, padded)}
}
