package quant

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Activation-aware weight quantization (AWQ, Lin et al. 2024, arXiv:2306.00978):
// the weights of input channel j are multiplied by s_j = mean|X_j|^r before they are
// rounded, and the input divided by it, so that the channels that count are rounded
// finer. r is the best of a grid by the error of the outputs; then each block's
// range is searched as for MSEWeights.
const (
	// awqSteps is the number of exponents, 0, 1/20 ... 19/20 as published.
	awqSteps = 20
	// AWQRows is the least number of rows of an input to choose by.
	AWQRows = 16
)

// SolveAWQ quantizes the weights of the operators ops, which share an input of which
// rows are a sample, to 4 bits and puts them into s, with the divisors of the input
// where they gain more than their multiplication costs. The gain is against no
// divisors.
func (s *Solved) SolveAWQ(ctx context.Context, gemm GEMM, c Config, g *graph.Graph, ops []*Op, rows *Rows) (Gain, error) {
	t := &trial{cfg: c, gemm: gemm, x: rows.Values(), m: rows.Len(), k: rows.K}
	if err := t.weights(g, ops, 0); err != nil {
		return Gain{}, err
	}
	if err := checkFinite(t.w); err != nil {
		return Gain{}, fmt.Errorf("weight %q: %w", ops[0].W, err)
	}
	mean, power := make([]float64, t.k), make([]float32, t.k)
	for i, v := range t.x {
		a := math.Abs(float64(v))
		if math.IsNaN(a) || math.IsInf(a, 0) {
			return Gain{}, fmt.Errorf("%w: its inputs hold NaN or infinity", ErrSingular)
		}
		mean[i%t.k] += a / float64(t.m)
		power[i%t.k] += float32(a * a / float64(t.m))
	}
	if err := t.reference(ctx); err != nil {
		return Gain{}, err
	}
	var best []float32
	least := math.Inf(1)
	for step := range awqSteps {
		d := awqDivisors(mean, float64(step)/awqSteps)
		v := multiplied(t.w, d, t.n)
		q, err := nearestInt4(v, t.k, t.n, t.cfg.units(v, t.k, t.n))
		if err != nil {
			return Gain{}, err
		}
		e, err := t.blockError(ctx, q, d)
		if err != nil {
			return Gain{}, err
		}
		if e < least {
			best, least = d, e
		}
	}
	plain, before, err := t.clipped(ctx, nil, power)
	if err != nil {
		return Gain{}, err
	}
	q, after, err := t.clipped(ctx, best, power)
	if err != nil {
		return Gain{}, err
	}
	if after < before*smoothGain {
		s.Divisors[ops[0].X[0]] = best
	} else {
		q, after = plain, before
	}
	blocks, col := q.Blocks(), 0
	for _, op := range ops {
		n := int(g.Init(op.W).Dims[op.OutAxis])
		half := blocks * Int4Block / 2
		s.Int4[op.Node.Outputs[0]] = &BlockWeight{K: t.k, N: n, Codes: q.Codes[col*half : (col+n)*half], Scales: q.Scales[col*blocks : (col+n)*blocks]}
		col += n
	}
	return Gain{Solved: after, Nearest: before}, nil
}

// awqDivisors are mean^r, scaled so that the largest and the smallest are one
// another's inverse.
func awqDivisors(mean []float64, r float64) []float32 {
	out := make([]float32, len(mean))
	lo, hi := math.Inf(1), 0.0
	for _, a := range mean {
		v := math.Max(math.Pow(a, r), 1e-4)
		lo, hi = math.Min(lo, v), math.Max(hi, v)
	}
	for j, a := range mean {
		out[j] = float32(math.Max(math.Pow(a, r), 1e-4) / math.Sqrt(lo*hi))
	}
	return out
}

// multiplied is w [k,n] with row j multiplied by d_j; w itself without d.
func multiplied(w, d []float32, n int) []float32 {
	if d == nil {
		return w
	}
	return scaleInputs(w, []int64{int64(len(d)), int64(n)}, 0, d)
}

// clipped rounds the weights, multiplied by d, with searched ranges.
func (t *trial) clipped(ctx context.Context, d, power []float32) (*BlockWeight, float64, error) {
	imp := make([]float32, t.k)
	for j := range imp {
		imp[j] = power[j]
		if d != nil {
			imp[j] /= d[j] * d[j]
		}
		imp[j] = max(imp[j], 1e-12) // a channel that was never active still rounds to its nearest code
	}
	v := multiplied(t.w, d, t.n)
	q, err := quantizeInt4(v, t.k, t.n, imp, bestScale, t.cfg.units(v, t.k, t.n))
	if err != nil {
		return nil, 0, err
	}
	e, err := t.blockError(ctx, q, d)
	return q, e, err
}

// blockError is ||(X/d) Q(dW) - XW||^2 / ||XW||^2.
func (t *trial) blockError(ctx context.Context, q *BlockWeight, d []float32) (float64, error) {
	w := q.Dequantize()
	if d != nil {
		for i := range w {
			w[i] /= d[i/t.n]
		}
	}
	y, err := t.gemm.MatMul(ctx, t.x, t.m, t.k, w, t.n)
	if err != nil {
		return 0, err
	}
	var sum float64
	for i, v := range y {
		e := float64(v) - float64(t.ref[i])
		sum += e * e
	}
	return sum / t.power, nil
}

// divided returns the name of x divided by its divisors, which it inserts once, or x.
func (p *BlockWeights) divided(g *graph.Graph, x string, have map[string]string, names graph.Namer) (string, *graph.Node) {
	if p.Solved == nil || p.Solved.Divisors[x] == nil {
		return x, nil
	}
	if name, ok := have[x]; ok {
		return name, nil
	}
	d := p.Solved.Divisors[x]
	inv := make([]float32, len(d))
	for i, v := range d {
		inv[i] = 1 / v
	}
	by, out := names.Name(x+"_awq"), names.Name(x+"_divided")
	g.SetInit(by, tensor.From(inv, int64(len(inv))))
	have[x] = out
	return out, graph.NewNode(graph.DomainONNX, "Mul", x+"_AWQ", []string{x, by}, []string{out})
}
