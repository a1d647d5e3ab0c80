package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
)

// Rounded is the weight of an operator as it is rounded now, in the layout in which the
// operator reads it, for who learns other codes.
type Rounded struct {
	Dims []int64
	// Values are the float weights, with what smoothing multiplies them by.
	Values []float32
	// Steps is the scale of each value.
	Steps  []float32
	Codes  []int8
	Lo, Hi int8
	eight  *Weight
	four   *BlockWeight
}

// Rounded returns the weight of op, an operator of p in g, as the passes that write p
// would make it. stats may be nil.
func (p *Plan) Rounded(g *graph.Graph, op *Op, choices Choices, s *Solved, stats Statistics) (*Rounded, error) {
	t := g.Init(op.W)
	if t == nil || op.Kind != Linear && op.Kind != Conv {
		return nil, fmt.Errorf("%w: %s has no weight", ErrConfig, op.Node.Op)
	}
	v, err := t.F32()
	if err != nil {
		return nil, err
	}
	r := &Rounded{Dims: t.Dims}
	if smooth := p.Smoothing(op, choices); smooth != nil {
		v = scaleInputs(v, t.Dims, op.InAxis, smooth)
	}
	if op.Precision != PrecisionINT4 {
		if r.eight, _, err = p.Config.weight8(s, op, v, t.Dims); err != nil {
			return nil, err
		}
		_, top := p.Config.weightScheme().Codes()
		r.Values, r.Codes, r.Lo, r.Hi = v, r.eight.Codes, int8(-top), int8(top)
		r.Steps = make([]float32, len(v))
		r.eight.each(func(i, c int) { r.Steps[i] = r.eight.Scales[c] })
		return r, nil
	}
	k, n := op.Matrix(t.Dims)
	columns := v
	if op.InAxis == 1 {
		columns = transpose2D(v, n, k)
	}
	if r.four, _, err = p.Config.weight4(s, stats, op, columns, k, n); err != nil {
		return nil, err
	}
	r.Values, r.Lo, r.Hi = v, -8, 7
	r.Codes, r.Steps = r.four.unpack()
	if op.InAxis == 1 {
		r.Codes, r.Steps = transpose2D(r.Codes, k, n), transpose2D(r.Steps, k, n)
	}
	return r, nil
}

// Learned puts the codes of r, which came from Rounded and may have been changed, into s.
func (s *Solved) Learned(op *Op, r *Rounded) {
	out := op.Node.Outputs[0]
	if s.Learnt == nil {
		s.Learnt = map[string]bool{}
	}
	s.Learnt[out] = true
	if r.eight != nil {
		r.eight.Codes = r.Codes
		s.Int8[out] = r.eight
		return
	}
	codes := r.Codes
	if op.InAxis == 1 {
		codes = transpose2D(codes, r.four.N, r.four.K)
	}
	scales := make([]float32, len(r.four.Scales)) // [blocks, n]
	blocks := r.four.Blocks()
	for i, v := range r.four.Scales {
		scales[i%blocks*r.four.N+i/blocks] = v
	}
	s.Int4[out] = packInt4(codes, scales, r.four.K, r.four.N)
}

// unpack returns the codes -8..7 and the scale of each weight, [K,N].
func (q *BlockWeight) unpack() (codes []int8, steps []float32) {
	codes, steps = make([]int8, q.K*q.N), make([]float32, q.K*q.N)
	blocks := q.Blocks()
	for col := range q.N {
		for row := range q.K {
			at := col*blocks + row/Int4Block
			i := row % Int4Block
			codes[row*q.N+col] = int8(q.Codes[at*Int4Block/2+i/2]>>(4*(i%2))&15) - 8
			steps[row*q.N+col] = q.Scales[at]
		}
	}
	return codes, steps
}

// MostScale is the largest scale that activation t may get: where a Clip ends the
// operator that makes t, the range stands for it, and must not pass its bound. 0 is none.
func (p *Plan) MostScale(g *graph.Graph, t string, c *Choice) float32 {
	for _, op := range p.Ops {
		if op.Out != t || op.Act == nil {
			continue
		}
		if _, hi, ok := clipBounds(g, op.Act); ok {
			_, top := c.Scheme.Codes()
			return hi / float32(top-c.Params.Zero)
		}
	}
	return 0
}
