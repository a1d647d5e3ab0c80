package quant

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Steps reports whether the scales of 4-bit blocks are whole multiples, at most
// ops.MaxStep, of one unit a column: then code times step is an INT8 weight, and
// the sums of a whole column are integers (QServe's two levels, Lin et al. 2024,
// arXiv:2405.04532). The native form of the CPU has such weights.
func (c Config) Steps() bool { return c.Target == CPU && c.Scheme == INT4 }

// units returns the unit of each column of w [k,n]: with it the largest step gives
// the column's value of largest magnitude the code -8. Nil where scales are any.
func (c Config) units(w []float32, k, n int) []float32 {
	if !c.Steps() {
		return nil
	}
	units := make([]float32, n)
	for i, v := range w[:k*n] {
		units[i%n] = max(units[i%n], v, -v)
	}
	for i, v := range units {
		units[i] = max(v/(-blockLeast*ops.MaxStep), minWeightScale)
	}
	return units
}

// blockLeast is the least code of a block.
const blockLeast = -8

// stepScale returns the multiple of unit near scale that has the least weighted
// squared error for x.
func stepScale(x, imp []float32, scale, unit float32) float32 {
	sign := float32(1)
	if scale < 0 {
		sign = -1
	}
	at := math.RoundToEven(float64(scale * sign / unit))
	multiple := func(step float64) float32 { return sign * float32(min(max(step, 1), ops.MaxStep)) * unit }
	best, least := multiple(at), math.Inf(1)
	for _, step := range []float64{at, at - 1, at + 1} {
		s := multiple(step)
		if e := blockError(x, imp, s); e < least {
			best, least = s, e
		}
	}
	return best
}

// expandable is q as the operands of fewbit.ExpandBlocks, and the INT8 weight [K,N]
// that they give, whose columns have the scales units.
func (q *BlockWeight) expandable(units []float32) (b ops.Blocks, w []int8, err error) {
	b = ops.Blocks{K: q.K, N: q.N, Steps: make([]int8, q.Blocks()*q.N)}
	codes := make([]int8, q.K*q.N)
	for col := range q.N {
		for row := range q.K {
			at := col*q.Blocks() + row/Int4Block
			i := row % Int4Block
			codes[row*q.N+col] = int8(q.Codes[at*Int4Block/2+i/2]>>(4*(i%2))&15) - 8
		}
		for block := range q.Blocks() {
			step := math.RoundToEven(float64(q.Scales[col*q.Blocks()+block] / units[col]))
			b.Steps[block*q.N+col] = int8(min(max(step, -ops.MaxStep), ops.MaxStep))
		}
	}
	if b.Codes, err = ops.PackBlocks(codes, q.K, q.N); err != nil {
		return b, nil, err
	}
	w, err = ops.ExpandBlocks(b.Codes, b.Steps, q.K, q.N)
	return b, w, err
}

// native replaces every planned matrix product by that of docs/ops.md with its
// weight in 4 bits:
//
//	x -> [Div s] -> QuantizeRows -> MatMulQuantized(., ., ., ExpandBlocks(codes, steps), unit, sum)
func (p *BlockWeights) native(ctx context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	names, methods := g.Namer(), methodCount{}
	rows := map[string][]string{}
	type written struct{ weight, scale, sum string }
	done := map[string]written{} // by weight and divided input: tied ones share a copy
	var added []*graph.Node
	count := 0
	for _, op := range p.Plan.Ops {
		if err := ctx.Err(); err != nil {
			return Stats{}, err
		}
		if op.Kind != Linear {
			continue
		}
		if !op.Node.Is("MatMul") {
			return Stats{}, fmt.Errorf("%w: a %s has no native form", ErrConfig, op.Node.Op)
		}
		x := op.X[0]
		divisor := p.divisor(x)
		if rows[x] == nil {
			value := x
			if divisor != nil {
				by := names.Name(x + "_smooth")
				g.SetInit(by, tensor.From(divisor, int64(len(divisor))))
				value = names.Name(x + "_smoothed")
				added = append(added, graph.NewNode(graph.DomainONNX, "Div", x+"_Smooth", []string{x, by}, []string{value}))
			}
			rows[x] = []string{names.Name(x + "_rows_quantized"), names.Name(x + "_rows_scale"), names.Name(x + "_rows_zero_point")}
			added = append(added, graph.NewNode(ops.Domain, ops.OpQuantizeRows, x+"_QuantizeRows", []string{value}, rows[x]))
		}
		key := op.W
		if divisor != nil { // a tied weight may be read through other divisors too
			key += "\x00" + x
		}
		w, ok := done[key]
		if !ok {
			t := g.Init(op.W)
			v, err := t.F32()
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			k, n := int(t.Dims[0]), int(t.Dims[1])
			v = multiplied(v, divisor, n)
			q, by, err := p.Plan.Config.weight4(p.Solved, p.Stats, op, v, k, n)
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			units := p.Plan.Config.units(v, k, n)
			b, eight, err := q.expandable(units)
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			sums, err := ops.ColumnSums(eight, k, n)
			if err != nil {
				return Stats{}, fmt.Errorf("weight %q: %w", op.W, err)
			}
			methods[by]++
			base := op.W + "_int4"
			w = written{names.Name(base), names.Name(base + "_unit"), names.Name(base + "_sum")}
			in := []string{names.Name(base + "_codes"), names.Name(base + "_steps")}
			blocks := int64(q.Blocks())
			g.SetInit(in[0], tensor.From(b.Codes, blocks, Int4Block/2, int64(n)))
			g.SetInit(in[1], tensor.From(b.Steps, blocks, 1, int64(n)))
			g.SetInit(w.scale, tensor.From(units, int64(n)))
			g.SetInit(w.sum, tensor.From(sums, int64(n)))
			added = append(added, graph.NewNode(ops.Domain, ops.OpExpandBlocks, op.W+"_ExpandBlocks", in, []string{w.weight}))
			done[key] = w
		}
		n := op.Node
		n.Domain, n.Op, n.Attrs = ops.Domain, ops.OpMatMulQuantized, nil
		n.Inputs = append(append([]string(nil), rows[x]...), w.weight, w.scale, w.sum)
		count++
	}
	if count > 0 {
		if err := ops.Install(m, ops.OpExpandBlocks); err != nil {
			return Stats{}, err
		}
	}
	g.Nodes = append(g.Nodes, added...)
	if err := g.Sort(); err != nil {
		return Stats{}, err
	}
	g.Prune()
	return Stats{Changed: count, Note: fmt.Sprintf("%d matrix products with weights in blocks of %d%s", count, Int4Block, methods)}, nil
}

// divisor is what the input x of products is divided by, and their weights are
// multiplied by; nil is nothing.
func (p *BlockWeights) divisor(x string) []float32 {
	if p.Solved != nil && p.Solved.Divisors[x] != nil {
		return p.Solved.Divisors[x]
	}
	if c := p.Choices[p.Plan.Source(x)]; c != nil {
		return c.Smooth
	}
	return nil
}
