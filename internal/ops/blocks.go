package ops

import (
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// OpExpandBlocks gives the INT8 weight of a MatMulQuantized that is stored in 4 bits.
const OpExpandBlocks = "ExpandBlocks"

const (
	// BlockRows is the number of rows of a column that share a step.
	BlockRows = 32
	// MaxStep is the largest magnitude of a step: -8 * 15 and 8 * 15 fit into INT8.
	MaxStep = 15
	// zeroCode is the code of 0.
	zeroCode = 8
)

// ExpandBlocks is fewbit.ExpandBlocks: w [k,n] from codes [k/32,16,n], two in a
// byte, and steps [k/32,n].
func ExpandBlocks(codes []uint8, steps []int8, k, n int) ([]int8, error) {
	if k < 1 || k > MaxK || k%BlockRows != 0 {
		return nil, fmt.Errorf("%w: %d rows, expected a multiple of %d, at most %d", ErrShape, k, BlockRows, MaxK)
	}
	if err := matrix("Codes", len(codes), k/2, n); err != nil {
		return nil, err
	}
	if err := matrix("Steps", len(steps), k/BlockRows, n); err != nil {
		return nil, err
	}
	const half = BlockRows / 2
	w := make([]int8, k*n)
	for b := range k / BlockRows {
		step := steps[b*n : (b+1)*n]
		for c, s := range step {
			if s < -MaxStep || s > MaxStep {
				return nil, fmt.Errorf("%w: step %d of block %d, column %d: at most %d", ErrValue, s, b, c, MaxStep)
			}
		}
		for i := range half {
			low := w[(b*BlockRows+i)*n:][:n]
			high := w[(b*BlockRows+half+i)*n:][:n]
			for c, pair := range codes[(b*half+i)*n:][:n] {
				low[c], high[c] = (int8(pair&15)-zeroCode)*step[c], (int8(pair>>4)-zeroCode)*step[c]
			}
		}
	}
	return w, nil
}

// PackBlocks is the inverse of ExpandBlocks for the codes: from q [k,n], each -8..7,
// those of a file.
func PackBlocks(q []int8, k, n int) ([]uint8, error) {
	if k < 1 || k%BlockRows != 0 {
		return nil, fmt.Errorf("%w: %d rows, expected a multiple of %d", ErrShape, k, BlockRows)
	}
	if err := matrix("Q", len(q), k, n); err != nil {
		return nil, err
	}
	const half = BlockRows / 2
	codes := make([]uint8, k/2*n)
	for i, v := range q {
		if v < -zeroCode || v >= zeroCode {
			return nil, fmt.Errorf("%w: code %d, expected -8 to 7", ErrValue, v)
		}
		row, c := i/n, i%n
		in := row % BlockRows
		codes[(row/BlockRows*half+in%half)*n+c] |= uint8(v+zeroCode) << (4 * (in / half))
	}
	return codes, nil
}

// Blocks is the operand of an ExpandBlocks node.
type Blocks struct {
	K, N  int
	Codes []uint8 // [K/32,16,N]
	Steps []int8  // [K/32,1,N]
}

// BlocksOf returns the constants of n, an ExpandBlocks of g. Whether all steps are
// in range ExpandBlocks says.
func BlocksOf(g *graph.Graph, n *graph.Node) (b Blocks, err error) {
	if len(n.Inputs) != 2 || len(n.Outputs) != 1 {
		return b, fmt.Errorf("%w: %s %q has %d inputs and %d outputs", ErrShape, n.Op, n.Name, len(n.Inputs), len(n.Outputs))
	}
	codes, steps := g.Init(n.In(0)), g.Init(n.In(1))
	if codes == nil || codes.Type != tensor.Uint8 || steps == nil || steps.Type != tensor.Int8 || len(codes.Dims) != 3 || codes.Dims[1] != BlockRows/2 ||
		!slices.Equal(steps.Dims, []int64{codes.Dims[0], 1, codes.Dims[2]}) || codes.Dims[0] < 1 || codes.Dims[0] > MaxK/BlockRows || codes.Dims[2] < 1 {
		return b, fmt.Errorf("%w: the operands of %s %q must be constants [blocks,%d,n] and [blocks,1,n]", ErrShape, n.Op, n.Name, BlockRows/2)
	}
	return Blocks{int(codes.Dims[0]) * BlockRows, int(codes.Dims[2]), codes.Data, tensor.View[int8](steps)}, nil
}

// ExpandWeights replaces every ExpandBlocks of m by its result, for kernels of INT8
// weights only.
func ExpandWeights(m *graph.Model) error {
	g := m.Graph
	kept := make([]*graph.Node, 0, len(g.Nodes))
	for _, n := range g.Nodes {
		if n.Domain != Domain || n.Op != OpExpandBlocks {
			kept = append(kept, n)
			continue
		}
		b, err := BlocksOf(g, n)
		if err != nil {
			return err
		}
		w, err := ExpandBlocks(b.Codes, b.Steps, b.K, b.N)
		if err != nil {
			return fmt.Errorf("%s %q: %w", n.Op, n.Name, err)
		}
		g.SetInit(n.Outputs[0], tensor.From(w, int64(b.K), int64(b.N)))
	}
	if len(kept) < len(g.Nodes) {
		g.Nodes = kept
		g.Prune()
	}
	return nil
}

func expandBlocks(opset int64) *pb.FunctionProto {
	b := newBody(OpExpandBlocks, "The INT8 weight of two codes of 4 bits in a byte and one step for each column and 32 rows: (code - 8) * step.", opset,
		[]string{"Codes", "Steps"}, []string{"W"})
	scalar := func(name string, v int32) string { return b.constant(name, tensor.From([]int32{v})) }
	sixteen, zero := scalar("sixteen", 16), scalar("zero", zeroCode)
	pair := b.op("Cast", "pair", []string{"Codes"}, cast(tensor.Int32))
	high := b.op("Div", "high", []string{pair, sixteen})
	low := b.op("Sub", "low", []string{pair, b.op("Mul", "shifted", []string{high, sixteen})})
	code := b.op("Concat", "code", []string{low, high}, graph.AttrInt("axis", 1))
	step := b.op("Cast", "step", []string{"Steps"}, cast(tensor.Int32))
	w := b.op("Mul", "weight", []string{b.op("Sub", "signed", []string{code, zero}), step})
	b.op("Flatten", "W", []string{b.op("Cast", "eight", []string{w}, cast(tensor.Int8))}, graph.AttrInt("axis", 2))
	return b.f
}
