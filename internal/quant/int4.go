package quant

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// Int4Block is the number of weights that share a scale, along the input
	// channels.
	Int4Block = 32
	// int4AccuracyLevel 4 lets ONNX Runtime quantize the activations to INT8 by
	// block and multiply integers; the gate judges what that costs.
	int4AccuracyLevel = 4
	// The clip search tries clipSteps scales from clipLeast to 1 of the block's
	// largest weight.
	clipLeast = 0.6
	clipSteps = 21
	// maxImportance leaves room for the squared error that is multiplied by it.
	maxImportance = 1e20
)

// BlockWeight is a weight [K,N] in 4 bits: for each column and block of
// Int4Block rows 16 bytes of codes, low bits first, and one scale. A code c
// stands for (c - 8) * scale. Scales are signed, so that the value of largest
// magnitude gets the code 0, which reaches one step further than 15 (the
// convention of MatMulNBits and ggml's Q4_0).
type BlockWeight struct {
	K, N   int
	Codes  []byte    // [N, blocks, Int4Block/2]
	Scales []float32 // [N, blocks]
}

// Blocks returns the number of blocks in a column.
func (q *BlockWeight) Blocks() int { return (q.K + Int4Block - 1) / Int4Block }

// QuantizeInt4 rounds w [K,N] to 4 bits. The scale of each block is searched
// for the least squared error, each row weighted by importance (mean x^2 of its
// input channel; nil weighs all alike).
func QuantizeInt4(w []float32, k, n int, importance []float32) (*BlockWeight, error) {
	return quantizeInt4(w, k, n, importance, bestScale, nil)
}

// nearestInt4 takes the scale of each block's value of largest magnitude.
func nearestInt4(w []float32, k, n int, units []float32) (*BlockWeight, error) {
	return quantizeInt4(w, k, n, nil, func(x, _ []float32) float32 { return extremeScale(x) }, units)
}

// quantizeInt4 rounds w with the scale that a block's values and their importance
// give. With units, one a column, it is a step of that unit.
func quantizeInt4(w []float32, k, n int, importance []float32, scale func(x, importance []float32) float32, units []float32) (*BlockWeight, error) {
	if k <= 0 || n <= 0 || len(w) != k*n || (importance != nil && len(importance) != k) {
		return nil, fmt.Errorf("%w: %d weights for [%d,%d]", tensor.ErrShape, len(w), k, n)
	}
	if err := checkFinite(w); err != nil {
		return nil, err
	}
	q := &BlockWeight{K: k, N: n}
	blocks := q.Blocks()
	q.Codes = make([]byte, n*blocks*Int4Block/2)
	q.Scales = make([]float32, n*blocks)
	parallel(n, k*clipSteps, func(from, to int) {
		var x, imp [Int4Block]float32
		for col := from; col < to; col++ {
			for b := range blocks {
				rows := min(Int4Block, k-b*Int4Block)
				for i := range rows {
					x[i], imp[i] = w[(b*Int4Block+i)*n+col], 1
					if importance != nil {
						imp[i] = importance[b*Int4Block+i]
					}
				}
				s := scale(x[:rows], imp[:rows])
				if units != nil {
					s = stepScale(x[:rows], imp[:rows], s, units[col])
				}
				at := col*blocks + b
				q.Scales[at] = s
				codes := q.Codes[at*Int4Block/2 : (at+1)*Int4Block/2]
				for i := range Int4Block {
					c := byte(8) // padding stands for 0
					if i < rows {
						c = code4(x[i], s)
					}
					codes[i/2] |= c << (4 * (i % 2))
				}
			}
		}
	})
	return q, nil
}

// extremeScale gives the value of largest magnitude the code -8.
func extremeScale(x []float32) float32 {
	var extreme float32
	for _, v := range x {
		if max(v, -v) > max(extreme, -extreme) {
			extreme = v
		}
	}
	if extreme == 0 {
		return minWeightScale
	}
	return extreme / -8
}

// bestScale returns the scale of least weighted squared error.
func bestScale(x, imp []float32) float32 {
	full := extremeScale(x)
	if full == minWeightScale {
		return full
	}
	best, least := full, math.Inf(1) // the plain one where no error is a number
	for step := range clipSteps {
		// From 1 downwards, so that the plain scale wins ties.
		s := full * float32(1-(1-clipLeast)*float64(step)/(clipSteps-1))
		if e := blockError(x, imp, s); e < least {
			best, least = s, e
		}
	}
	return best
}

// blockError is the weighted squared error of x with scale s.
func blockError(x, imp []float32, s float32) (e float64) {
	for i, v := range x {
		d := v - nearest(v, s, -8, 7)*s
		e += float64(d * d * imp[i])
	}
	return e
}

func code4(v, s float32) byte { return byte(nearest(v, s, -8, 7) + 8) }

// Dequantize returns the weights that the codes stand for, [K,N].
func (q *BlockWeight) Dequantize() []float32 {
	out := make([]float32, q.K*q.N)
	blocks := q.Blocks()
	for col := range q.N {
		for row := range q.K {
			at := col*blocks + row/Int4Block
			i := row % Int4Block
			c := q.Codes[at*Int4Block/2+i/2] >> (4 * (i % 2)) & 15
			out[row*q.N+col] = float32(int(c)-8) * q.Scales[at]
		}
	}
	return out
}

// BlockWeights is the pass that replaces every planned matrix product by
// com.microsoft's MatMulNBits, and the weight of every planned convolution by its codes
// and what makes floats of them.
type BlockWeights struct {
	Plan *Plan
	// Stats gives the importance of input channels; nil weighs all alike.
	Stats Statistics
	// Solved holds weights that are quantized already; may be nil.
	Solved *Solved
	// Choices smooth the inputs where Config.Steps; may be nil.
	Choices Choices
}

var _ Pass = (*BlockWeights)(nil)

// Name implements Pass.
func (p *BlockWeights) Name() string { return "int4-weights" }

// Run implements Pass.
func (p *BlockWeights) Run(ctx context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	if p.Plan.Config.Steps() {
		return p.native(ctx, m)
	}
	drop := map[*graph.Node]bool{}
	written := map[string][2]string{} // codes and scales of a weight; tied ones share a copy
	var added []*graph.Node
	count, convs, methods := 0, 0, methodCount{}
	names, inputs, floats := g.Namer(), map[string]string{}, map[string]string{}
	for _, op := range p.Plan.Ops {
		if err := ctx.Err(); err != nil {
			return Stats{}, err
		}
		if op.Kind != Linear && op.Kind != Conv {
			continue
		}
		w := g.Init(op.W)
		k, n := op.Matrix(w.Dims)
		if op.Kind == Conv {
			convs++
			if floats[op.W] == "" { // tied ones share the first one's codes, as matrix products do
				made, by, err := p.unpacked(g, op, w, names)
				if err != nil {
					return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
				}
				added, floats[op.W] = append(added, made...), made[len(made)-1].Outputs[0]
				methods[by]++
			}
			op.Node.Inputs[1] = floats[op.W]
			continue
		}
		x, mul := p.divided(g, op.X[0], inputs, names)
		if mul != nil {
			added = append(added, mul)
		}
		divided := x != op.X[0] // a tied weight may be read through other divisors too
		q4, ok := written[op.W]
		if divided || !ok {
			base := op.W + "_int4"
			if divided {
				base += "_awq"
			}
			base = names.Name(base)
			q4 = [2]string{base, names.Name(base + "_scale")}
			if !divided {
				written[op.W] = q4
			}
			v, err := w.F32()
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			if op.InAxis == 1 {
				v = transpose2D(v, n, k)
			}
			q, by, err := p.Plan.Config.weight4(p.Solved, p.Stats, op, v, k, n)
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			methods[by]++
			g.SetInit(q4[0], tensor.From(q.Codes, int64(n), int64(q.Blocks()), Int4Block/2))
			g.SetInit(q4[1], tensor.From(q.Scales, int64(n), int64(q.Blocks())))
		}
		drop[op.Node] = true
		in := []string{x, q4[0], q4[1]}
		if op.Bias != "" {
			if op.Add != nil {
				drop[op.Add] = true
			}
			in = append(in, "", "", op.Bias)
		}
		count++
		added = append(added, graph.NewNode(graph.DomainMS, "MatMulNBits", op.Node.Name, in, []string{op.Out},
			graph.AttrInt("K", int64(k)), graph.AttrInt("N", int64(n)), graph.AttrInt("bits", 4),
			graph.AttrInt("block_size", Int4Block), graph.AttrInt("accuracy_level", int4AccuracyLevel)))
	}
	m.Require(graph.DomainMS, 1)
	g.Nodes = append(without(g.Nodes, drop), added...)
	if err := g.Sort(); err != nil {
		return Stats{}, err
	}
	g.Prune()
	what := fmt.Sprintf("%d matrix products", count)
	if convs > 0 {
		what += fmt.Sprintf(" and %d convolutions", convs)
	}
	return Stats{Changed: count + convs, Note: fmt.Sprintf("%s with weights in blocks of %d%s", what, Int4Block, methods)}, nil
}

// importance is the mean square of each input channel over the rows that stats
// keeps; nil without.
func importance(stats Statistics, op *Op, k int) []float32 {
	if stats == nil {
		return nil
	}
	rows := stats.Rows(op.X[0])
	if rows.empty() || rows.K != k {
		return nil
	}
	sum := make([]float64, k)
	x, m := rows.Finite()
	for i, v := range x {
		sum[i%k] += float64(v) * float64(v)
	}
	imp := make([]float32, k)
	// Squares pass float32 where values pass 1e19; only what channels are beside each
	// other matters.
	unit := math.Max(1, slices.Max(sum)/float64(m)/maxImportance)
	for j, s := range sum {
		// A channel that was never active must still round to its nearest code.
		imp[j] = float32(math.Max(s/float64(m)/unit, 1e-12))
	}
	return imp
}
