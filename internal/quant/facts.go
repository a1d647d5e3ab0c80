package quant

import (
	"math"

	"github.com/fewbit/fewbit/internal/graph"
)

// WeightStats describes a weight before and after it was quantized. Smoothed
// weights are described as smoothing leaves them.
type WeightStats struct {
	// Method is how its codes were found.
	Method   WeightMethod
	Elements int
	// Std and Max are of the float values, AfterStd of those that the codes stand for.
	Std, Max, AfterStd float64
	// SQNR of the codes in dB.
	SQNR float64
}

// maxWeightSQNR stands for a weight without any error.
const maxWeightSQNR = 200

// WeightFacts describes the weight of op, an operator of p, as the passes that write
// p make it. stats may be nil.
func WeightFacts(g *graph.Graph, p *Plan, op *Op, choices Choices, s *Solved, stats Statistics) (WeightStats, error) {
	t := g.Init(op.W)
	v, err := t.F32()
	if err != nil {
		return WeightStats{}, err
	}
	var after []float32
	var by WeightMethod
	if op.Precision == PrecisionINT4 {
		k, n := op.Matrix(t.Dims)
		if op.InAxis == 1 {
			v = transpose2D(v, n, k)
		}
		d := s.Divisors[op.X[0]]
		if d == nil {
			d = p.Smoothing(op, choices)
		}
		if d != nil {
			v = scaleInputs(v, []int64{int64(k), int64(n)}, 0, d)
		}
		var q *BlockWeight
		if q, by, err = p.Config.weight4(s, stats, op, v, k, n); err != nil {
			return WeightStats{}, err
		}
		after = q.Dequantize()
	} else {
		if smooth := p.Smoothing(op, choices); smooth != nil {
			v = scaleInputs(v, t.Dims, op.InAxis, smooth)
		}
		var q *Weight
		if q, by, err = p.Config.weight8(s, op, v, t.Dims); err != nil {
			return WeightStats{}, err
		}
		after = q.Dequantize()
	}
	w := WeightStats{Method: by, Elements: len(v), SQNR: maxWeightSQNR}
	var sum, power, afterSum, afterPower, noise float64
	for i, x := range v {
		a, b := float64(x), float64(after[i])
		sum += a
		power += a * a
		afterSum += b
		afterPower += b * b
		noise += (a - b) * (a - b)
		w.Max = math.Max(w.Max, math.Abs(a))
	}
	n := float64(len(v))
	w.Std = math.Sqrt(math.Max(0, power/n-sum*sum/n/n))
	w.AfterStd = math.Sqrt(math.Max(0, afterPower/n-afterSum*afterSum/n/n))
	if noise > 0 {
		w.SQNR = math.Min(maxWeightSQNR, 10*math.Log10(math.Max(power, math.SmallestNonzeroFloat64)/noise))
	}
	return w, nil
}
