package quant

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
)

// Solved holds the weights that were quantized ahead of the pass that writes
// them, by the first output of the operator's node.
type Solved struct {
	Int8 map[string]*Weight
	Int4 map[string]*BlockWeight
	// Divisors are what an input of 4-bit products is divided by, which their weights
	// are multiplied by.
	Divisors map[string][]float32
	// Learnt are those whose codes block reconstruction chose; the others are what it
	// began with.
	Learnt map[string]bool
}

// NewSolved returns an empty Solved.
func NewSolved() *Solved {
	return &Solved{Int8: map[string]*Weight{}, Int4: map[string]*BlockWeight{}, Divisors: map[string][]float32{}}
}

// Len returns the number of operators whose weight is there.
func (s *Solved) Len() int { return len(s.Int8) + len(s.Int4) }

// Gain is what solving brought to one operator: the squared error of its output
// on the calibration data, with its damping, and that of rounding to nearest with
// the same scheme, both on the same columns.
type Gain struct {
	Solved, Nearest float64
}

// Smoothing is what the weight of op carries: nil for convolutions, and for 4-bit
// weights that read the activation as it is.
func (p *Plan) Smoothing(op *Op, choices Choices) []float32 {
	c := choices[p.Source(op.X[0])]
	if op.Kind != Linear || c == nil || !p.Config.Smooths() {
		return nil
	}
	return c.Smooth
}

// Smooths reports whether activations may be divided by a choice's Smooth: 4-bit
// weights read them as they are, except those that stand for INT8 weights.
func (c Config) Smooths() bool { return c.Scheme != INT4 || c.Steps() }

// SolveGPTQ quantizes the weights of the operators ops, which share an input
// whose rows gram has summed, and puts them into s. choices gives the smoothing
// of that input.
func (s *Solved) SolveGPTQ(ctx context.Context, alg Algebra, p *Plan, g *graph.Graph, ops []*Op, gram *Gram, choices Choices) ([]Gain, error) {
	int4 := p.Config.Scheme == INT4
	smooth := p.Smoothing(ops[0], choices)
	var shared *factor // Linear operators have one group
	gains := make([]Gain, 0, len(ops))
	for _, op := range ops {
		t := g.Init(op.W)
		v, err := t.F32()
		if err != nil {
			return nil, err
		}
		if err := checkFinite(v); err != nil {
			return nil, fmt.Errorf("weight %q: %w", op.W, err)
		}
		if smooth != nil {
			v = scaleInputs(v, t.Dims, op.InAxis, smooth)
		}
		out := op.Node.Outputs[0]
		if op.Kind == Conv && !int4 {
			q, gain, err := solveConv(ctx, alg, p.Config, v, t.Dims, gram)
			if err != nil {
				return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
			s.Int8[out] = q
			gains = append(gains, gain)
			continue
		}
		if shared == nil {
			if shared, err = newFactor(ctx, alg, gram.Sum, gram.K, smooth, !int4); err != nil {
				return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
		}
		k, n := op.Matrix(t.Dims)
		if op.InAxis == 1 {
			v = transpose2D(v, n, k)
		}
		if int4 {
			q, gain, err := solveInt4(ctx, alg, shared, v, n, p.Config.units(v, k, n))
			if err != nil {
				return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
			s.Int4[out] = q
			gains = append(gains, gain)
			continue
		}
		_, top := p.Config.weightScheme().Codes()
		scales := columnScales(loopsOf(alg), v, k, n, top, shared.importance(), p.Config.Granularity)
		r, err := shared.round(ctx, alg, v, n, grid{lo: -float32(top), hi: float32(top), scales: scales})
		if err != nil {
			return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		if p.Config.Weights == AdaRound {
			if err := shared.refine(ctx, alg, v, n, p.Config, gram.Sum, smooth, r); err != nil {
				return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
		}
		gain, err := shared.gain8(ctx, alg, v, n, r, top, p.Config.Granularity)
		if err != nil {
			return nil, err
		}
		gains = append(gains, gain)
		q := &Weight{Codes: r.codes, Dims: t.Dims, Scales: scales, Axis: op.OutAxis}
		if op.InAxis == 1 {
			q.Codes = transpose2D(r.codes, k, n)
		}
		if p.Config.Granularity == PerTensor {
			q.Scales = scales[:1]
		}
		s.Int8[out] = q
	}
	return gains, nil
}

// importance is the diagonal of the Hessian by row.
func (f *factor) importance() []float32 {
	imp := make([]float32, f.k)
	for i, r := range f.order {
		imp[r] = f.diag[i]
	}
	return imp
}

// solveConv rounds the weight of a convolution [out, K], each group with its own
// Hessian.
func solveConv(ctx context.Context, alg Algebra, c Config, v []float32, dims []int64, gram *Gram) (*Weight, Gain, error) {
	outs, k := int(dims[0]), gram.K
	if gram.Groups == 0 || outs%gram.Groups != 0 || outs*k != len(v) {
		return nil, Gain{}, fmt.Errorf("%w: weight %v in %d groups", ErrConfig, dims, gram.Groups)
	}
	n := outs / gram.Groups
	_, top := c.weightScheme().Codes()
	q := &Weight{Codes: make([]int8, len(v)), Dims: dims, Scales: make([]float32, outs)}
	var whole float32
	for _, x := range v {
		whole = max(whole, float32(math.Abs(float64(x))))
	}
	gains := make([]Gain, gram.Groups)
	errs := make([]error, gram.Groups)
	parallel(gram.Groups, n*k*k, func(from, to int) {
		for g := from; g < to && ctx.Err() == nil; g++ {
			w := transpose2D(v[g*n*k:(g+1)*n*k], n, k)
			h := gram.group(g)
			if c.Weights == AdaRound && !c.NoBiasCorrection {
				h = gram.centered(g)
			}
			f, err := newFactor(ctx, alg, h, k, nil, true)
			if err != nil {
				errs[g] = err
				continue
			}
			var scales []float32
			if c.Granularity == PerTensor {
				scales = make([]float32, n)
				for i := range scales {
					scales[i] = weightScale(whole, top)
				}
			} else {
				scales = columnScales(loopsOf(alg), w, k, n, top, f.importance(), PerChannel)
			}
			r, err := f.round(ctx, alg, w, n, grid{lo: -float32(top), hi: float32(top), scales: scales})
			if err != nil {
				errs[g] = err
				continue
			}
			if c.Weights == AdaRound {
				if errs[g] = f.refine(ctx, alg, w, n, c, h, nil, r); errs[g] != nil {
					continue
				}
			}
			copy(q.Codes[g*n*k:], transpose2D(r.codes, k, n))
			copy(q.Scales[g*n:], r.scales)
			gains[g], errs[g] = f.gain(ctx, alg, w, n, r.dequantize(k, n, 0), nearestColumns(w, n, top, c.Granularity))
		}
	})
	var sum Gain
	for g, err := range errs {
		if err != nil {
			return nil, Gain{}, err
		}
		sum.Solved += gains[g].Solved
		sum.Nearest += gains[g].Nearest
	}
	if c.Granularity == PerTensor {
		q.Scales = q.Scales[:1]
	}
	return q, sum, ctx.Err()
}

// solveInt4 rounds w [k,n] in blocks of Int4Block rows, whose scales are fitted
// when they are reached: to steps of units, where there are any.
func solveInt4(ctx context.Context, alg Algebra, f *factor, w []float32, n int, units []float32) (*BlockWeight, Gain, error) {
	r, err := f.round(ctx, alg, w, n, grid{lo: -8, hi: 7, group: Int4Block, units: units, fit: bestScale})
	if err != nil {
		return nil, Gain{}, err
	}
	q := packInt4(r.codes, r.scales, f.k, n)
	near, err := quantizeInt4(w, f.k, n, f.importance(), bestScale, units)
	if err != nil {
		return nil, Gain{}, err
	}
	gain, err := f.gain(ctx, alg, w, n, q.Dequantize(), near.Dequantize())
	return q, gain, err
}

// packInt4 writes codes -8..7 [k,n] and scales [blocks,n] in the layout of BlockWeight.
func packInt4(codes []int8, scales []float32, k, n int) *BlockWeight {
	q := &BlockWeight{K: k, N: n}
	blocks := q.Blocks()
	q.Codes, q.Scales = make([]byte, n*blocks*Int4Block/2), make([]float32, n*blocks)
	for col := range n {
		for b := range blocks {
			at := col*blocks + b
			q.Scales[at] = scales[b*n+col]
			for i := range Int4Block {
				c := byte(8) // padding stands for 0
				if row := b*Int4Block + i; row < k {
					c = byte(codes[row*n+col] + 8)
				}
				q.Codes[at*Int4Block/2+i/2] |= c << (4 * (i % 2))
			}
		}
	}
	return q
}

// dequantize returns codes times scales [k,n]; group 0 has one scale a column.
func (r *rounded) dequantize(k, n, group int) []float32 {
	out := make([]float32, k*n)
	for i := range out {
		s := i % n
		if group > 0 {
			s += i / n / group * n
		}
		out[i] = float32(r.codes[i]) * r.scales[s]
	}
	return out
}

// gain8 is gain of r, which has a scale a column, and of rounding to nearest. Only the
// columns that are measured are made.
func (f *factor) gain8(ctx context.Context, alg Algebra, w []float32, n int, r *rounded, top int32, g Granularity) (Gain, error) {
	cols := min(n, gptqMeasured)
	if g == PerTensor || cols == n { // the scale of nearest is that of all columns
		return f.gain(ctx, alg, w, n, r.dequantize(f.k, n, 0), nearestColumns(w, n, top, g))
	}
	some, part := make([]float32, f.k*cols), &rounded{codes: make([]int8, f.k*cols), scales: make([]float32, cols)}
	for c := range cols {
		part.scales[c] = r.scales[c*n/cols]
	}
	for i := range f.k {
		for c := range cols {
			at := i*n + c*n/cols
			some[i*cols+c], part.codes[i*cols+c] = w[at], r.codes[at]
		}
	}
	return f.gain(ctx, alg, some, cols, part.dequantize(f.k, cols, 0), nearestColumns(some, cols, top, g))
}

// gain measures both roundings of w [k,n] on up to gptqMeasured columns, spread over all.
func (f *factor) gain(ctx context.Context, alg Algebra, w []float32, n int, solved, near []float32) (Gain, error) {
	cols := min(n, gptqMeasured)
	pick := func(q []float32) []float32 {
		d := make([]float32, f.k*cols)
		for i := range f.k {
			for c := range cols {
				at := i*n + c*n/cols
				d[i*cols+c] = w[at] - q[at]
			}
		}
		return d
	}
	var gain Gain
	var err error
	if gain.Solved, err = f.cost(ctx, alg, pick(solved), cols); err != nil {
		return gain, err
	}
	gain.Nearest, err = f.cost(ctx, alg, pick(near), cols)
	return gain, err
}

// nearestColumns returns w [k,n] rounded to nearest with plain scales.
func nearestColumns(w []float32, n int, top int32, g Granularity) []float32 {
	s := calib.S8
	s.ReduceRange = top < 127
	q, err := QuantizeWeight(w, []int64{int64(len(w) / n), int64(n)}, 1, g, s)
	if err != nil {
		return w // checked before: every value is finite
	}
	return q.Dequantize()
}

// columnScales returns a scale for each column of w [k,n]: that of the largest
// magnitude, or a smaller one that clips, whichever has the least squared error
// with each row weighed by importance (nil: alike).
// loops may be nil.
func columnScales(loops Loops, w []float32, k, n int, top int32, importance []float32, g Granularity) []float32 {
	amax := make([]float32, n)
	for i := range k {
		row := w[i*n : (i+1)*n]
		for c := range amax {
			if v := float32(math.Abs(float64(row[c]))); v > amax[c] {
				amax[c] = v
			}
		}
	}
	scales := make([]float32, n)
	if g == PerTensor {
		var whole float32
		for _, a := range amax {
			whole = max(whole, a)
		}
		for c := range scales {
			scales[c] = weightScale(whole, top)
		}
		return scales
	}
	hi := float32(top)
	if importance == nil {
		importance = slices.Repeat([]float32{1}, k)
	}
	var shares [clipSteps]float32
	for step := range shares {
		shares[step] = float32(1 - (1-clipLeast8)*float64(step)/(clipSteps-1))
	}
	for c := range scales {
		scales[c] = weightScale(amax[c], top)
	}
	parallel(n, k*clipSteps, func(from, to int) {
		if loops != nil && loops.ClipScales(w, n, from, to, importance, shares[:], hi, scales) {
			return
		}
		column := make([]float32, k)
		for c := from; c < to; c++ {
			for i := range column {
				column[i] = w[i*n+c]
			}
			full := scales[c]
			best, least := full, math.Inf(1)
			for _, share := range shares {
				s := full * share
				var e float64
				// No part of the sum is below 0: past the least it need not go on.
				for at := 0; at < k && e < least; at += gptqBlock {
					end := min(at+gptqBlock, k)
					e += float64(roundingError(column[at:end], importance[at:end], s, hi))
				}
				if e < least {
					best, least = s, e
				}
			}
			scales[c] = best
		}
	})
	return scales
}

// roundingError is the sum of squared errors of x rounded by scale to codes of at most
// top, each weighed by imp, which is as long.
func roundingError(x, imp []float32, scale, top float32) (e float32) {
	const magic = 12582912 // see nearest
	inv := 1 / scale
	imp = imp[:len(x)]
	for i, v := range x {
		q := float32(v*inv) + magic - magic
		// Few are clipped: a branch costs less than a minimum.
		if q > top {
			q = top
		} else if q < -top {
			q = -top
		}
		d := v - q*scale
		e += d * d * imp[i]
	}
	return e
}

// clipLeast8 is the least share of a column's largest weight that the search for
// 8-bit scales tries.
const clipLeast8 = 0.7
