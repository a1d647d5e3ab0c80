package eval

import (
	"math"
)

// FewClasses is the largest number of classes whose answers are judged by
// themselves and not by the cosine of the logits: of two logits that sum to 0 the
// cosine is 1 or -1, so that one changed answer among a hundred costs 0.02 and
// the size of an error nothing.
const FewClasses = 16

// Answers says what happened to the answers of a classifier of few classes,
// where FP32's own probabilities stand in for labels.
type Answers struct {
	Classes int `json:"classes"`
	// Expected is FP32's accuracy if its probabilities are right: the mean of the
	// one that it gives to its own answer, 0..1.
	Expected float64 `json:"expected"`
	// Loss is how much of that the changed answers cost, 0..1: the mean of what
	// FP32 gives to its own answer less what it gives to the other model's.
	Loss Score `json:"loss"`
	// Distance is the mean total variation distance of the two models'
	// probabilities, 0..1: half the sum of the absolute differences.
	Distance Score `json:"distance"`
}

// answers gathers an Answers. The zero value is ready.
type answers struct {
	classes  int
	skipped  bool // the samples are not all of few classes
	expected float64
	losses   []float64
	moved    []float64
}

// add observes the outputs of one sample; broken ones count as wholly changed.
func (a *answers) add(ref, quant []float32) {
	if len(ref) < 2 || len(ref) > FewClasses || len(quant) != len(ref) || a.classes != 0 && a.classes != len(ref) {
		a.skipped = true
		return
	}
	a.classes = len(ref)
	p := probabilities(ref)
	if p == nil {
		return // nothing can be said where FP32 says nothing: a blind sample
	}
	own := ArgMax(ref)
	a.expected += p[own]
	q, other := probabilities(quant), ArgMax(quant)
	if q == nil || other < 0 {
		a.losses, a.moved = append(a.losses, p[own]), append(a.moved, 1)
		return
	}
	var d float64
	for i := range p {
		d += math.Abs(p[i]-q[i]) / 2
	}
	a.losses, a.moved = append(a.losses, p[own]-p[other]), append(a.moved, d)
}

// finish returns nil when nothing was observed or there are many classes.
func (a *answers) finish(seed uint64) (*Answers, error) {
	if a.skipped || len(a.losses) == 0 {
		return nil, nil
	}
	d, err := MeanScore("distance of probabilities", a.moved, seed, false)
	if err != nil {
		return nil, err
	}
	return &Answers{Classes: a.classes, Expected: a.expected / float64(len(a.losses)), Loss: expectedLoss(a.losses), Distance: d}, nil
}

// expectedLoss is the mean of x, each in 0..1, with the interval of
// Paired.Difference, of which it is the form where a changed answer weighs by
// its probabilities: one answer that is won and lost by halves is added, so that
// few samples of which none changed do not prove that none will.
func expectedLoss(x []float64) Score {
	s := Score{Name: "expected loss of accuracy", N: len(x)}
	var sum, sq float64
	for _, v := range x {
		sum += v
		sq += v * v
	}
	s.Value = sum / float64(len(x))
	n := float64(len(x)) + 2
	d := sum / n
	half := z95 * math.Sqrt(max(0, (sq+1)/n-d*d)/n)
	s.Lo, s.Hi = max(-1, d-half), min(1, d+half)
	return s
}

// probabilities returns x as they are when they are probabilities already, else
// their softmax; nil when one is no number.
func probabilities(x []float32) []float64 {
	p := make([]float64, len(x))
	top, sum, inside := math.Inf(-1), 0.0, true
	for i, v := range x {
		p[i] = float64(v)
		if math.IsNaN(p[i]) || math.IsInf(p[i], 0) {
			return nil
		}
		top, sum = max(top, p[i]), sum+p[i]
		inside = inside && p[i] >= 0 && p[i] <= 1
	}
	if inside && math.Abs(sum-1) < 1e-3 {
		return p
	}
	sum = 0
	for i := range p {
		p[i] = math.Exp(p[i] - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}
