package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// DomainFewbit holds the operators of docs/ops.md. Models carry them as
// functions of their own with bodies of standard operators; their names are
// reserved, so their shapes are known all the same.
const DomainFewbit = "fewbit"

func init() {
	shapeRules[DomainFewbit] = map[string]shapeRule{
		"QuantizeRows":    (*inferrer).quantizeRows,
		"MatMulQuantized": (*inferrer).matMulQuantized,
		"ExpandBlocks":    (*inferrer).expandBlocks,
	}
}

// quantizeRows: codes like X, and a scale and a zero point for each row.
func (f *inferrer) quantizeRows(n *Node) {
	x := f.in(n, 0)
	f.set(n.out(0), tensor.Uint8, x.Dims)
	rows := slices.Clone(x.Dims)
	if len(rows) > 0 {
		rows[len(rows)-1] = Dim{N: 1}
	}
	f.set(n.out(1), tensor.Float32, rows)
	f.set(n.out(2), tensor.Uint8, rows)
}

func (f *inferrer) matMulQuantized(n *Node) {
	f.set(n.out(0), tensor.Float32, matmulDims(f.in(n, 0).Dims, f.in(n, 3).Dims))
}

// expandBlocks: an INT8 weight of two rows for each byte of codes [blocks,16,n].
func (f *inferrer) expandBlocks(n *Node) {
	if c := f.in(n, 0).Dims; len(c) == 3 && c[0].N >= 0 && c[1].N >= 0 {
		f.set(n.out(0), tensor.Int8, []Dim{{N: c[0].N * c[1].N * 2}, c[2]})
	}
}
