package quant

import (
	"fmt"
	"strings"
)

// Solves is the method by which weights of precision p are solved for by
// calibration samples; "" is none.
func (c Config) Solves(p Precision) WeightMethod {
	four := p == PrecisionINT4
	switch {
	case c.Weights == AdaRound && !four, c.Weights == AWQ && four:
		return c.Weights
	case c.Weights == AutoWeights || c.Weights.NeedsData():
		return GPTQ
	}
	return ""
}

// Rounds is the method for weights of precision p that nothing has solved for,
// and what solving is compared with.
func (c Config) Rounds(p Precision) WeightMethod {
	switch {
	case c.Weights == RTN || c.Weights == MSEWeights || c.Weights == HQQ:
		return c.Weights
	case p == PrecisionINT4:
		return MSEWeights
	}
	return RTN
}

// Solves is Config.Solves for the operators of p, which is of one scheme.
func (p *Plan) Solves() WeightMethod { return p.Config.Solves(Precision(p.Config.Scheme)) }

// Rounds is Config.Rounds for the operators of p, which is of one scheme.
func (p *Plan) Rounds() WeightMethod { return p.Config.Rounds(Precision(p.Config.Scheme)) }

// by is how the weight of op, which is in s, was found.
func (s *Solved) by(c Config, op *Op) WeightMethod {
	if s.Learnt[op.Node.Outputs[0]] {
		return BRECQ
	}
	return c.Solves(op.Precision)
}

// weight8 returns op's weight v as integers, solved before or rounded now, and by
// which method. It is the caller's to change. s may be nil.
func (c Config) weight8(s *Solved, op *Op, v []float32, dims []int64) (*Weight, WeightMethod, error) {
	if s != nil {
		if q := s.Int8[op.Node.Outputs[0]]; q != nil {
			return q.clone(), s.by(c, op), nil
		}
	}
	var q *Weight
	var err error
	by := c.Rounds(op.Precision)
	switch by {
	case MSEWeights:
		q, err = clippedWeight(v, dims, op.OutAxis, c)
	case HQQ:
		q, err = hqqWeight(v, dims, op.OutAxis, c)
	default:
		q, err = QuantizeWeight(v, dims, op.OutAxis, c.Granularity, c.weightScheme())
	}
	return q, by, err
}

// weight4 returns op's weight v [k,n] in blocks, solved before or rounded now, and by
// which method. stats gives the importance of input channels. Both may be nil.
func (c Config) weight4(s *Solved, stats Statistics, op *Op, v []float32, k, n int) (*BlockWeight, WeightMethod, error) {
	if s != nil {
		if q := s.Int4[op.Node.Outputs[0]]; q != nil {
			return q, s.by(c, op), nil
		}
	}
	var q *BlockWeight
	var err error
	by, units := c.Rounds(op.Precision), c.units(v, k, n)
	switch by {
	case RTN:
		q, err = nearestInt4(v, k, n, units)
	case HQQ:
		q, err = quantizeInt4(v, k, n, nil, hqqBlock, units)
	default:
		q, err = quantizeInt4(v, k, n, importance(stats, op, k), bestScale, units)
	}
	return q, by, err
}

// methodCount counts weights by how their codes were found.
type methodCount map[WeightMethod]int

// String lists the methods for people: " (gptq 70, rtn 2)"; "" is no weight.
func (m methodCount) String() string {
	var parts []string
	for _, by := range WeightMethods {
		if m[by] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", by, m[by]))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
