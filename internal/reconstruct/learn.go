package reconstruct

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// How a block is learned.
const (
	// learnSteps of the optimizer, each by the derivatives of learnBatch samples. The papers
	// take 10,000 to 20,000; here the start is solved already, and so near to an optimum.
	learnSteps = 200
	learnBatch = 4
	// warmUp is the share of the steps before the regularizer begins; its beta falls
	// from betaFirst to betaLast over the others, along a cosine (BRECQ's schedule is
	// AdaRound's).
	warmUp    = 0.2
	betaFirst = 20
	betaLast  = 2
	// regularize is the regularizer's weight as a share of the mean magnitude of the
	// error's derivative during the warm-up: the papers' 0.01 belongs to their losses.
	regularize = 1
	// rateRounding, rateBias and rateScale are the optimizer's steps: of the relaxation,
	// of a bias as a share of the root mean square of its tensor, of a scale as a share of it.
	rateRounding = 2e-2
	rateBias     = 1e-3
	rateScale    = 1e-3
	// HoldBack is one in how many samples that nothing is learned from.
	HoldBack = 4
	// MinSamples is the least number of samples of a block.
	MinSamples = 8
	seed       = 20
)

// ErrFewSamples: there are fewer than MinSamples.
var ErrFewSamples = errors.New("too few samples to learn a block from")

// Opener opens models that exist only in memory.
type Opener interface {
	Open(ctx context.Context, m *graph.Model, taps []string, o engine.Options) (engine.Session, error)
}

// Number is a value of the block that is learned as it is: a bias, or one scale.
type Number struct {
	// Name of the block's input that takes it.
	Name   string
	Dims   []int64
	Values []float32
	// Scale: it stays positive, and moves in proportion to itself.
	Scale bool
	// Most is what a scale does not pass; 0 is nothing.
	Most float32
}

// Block is a part of a quantized model that computes one value.
type Block struct {
	// Model computes Out from values of the model, and from weights and numbers, which
	// are inputs too.
	Model   *graph.Model
	Out     string
	Weights []*Weight
	Numbers []*Number
}

// Sample is what a block reads in the quantized model, and what it is to give.
type Sample struct {
	In   engine.Feeds
	Want *tensor.Tensor
}

// Result is the block's squared error as a share of the wanted values' square, on the
// samples that were held back.
type Result struct {
	Before, After float64
	// Kept: what was learned is in the block; otherwise the block is as it was.
	Kept bool
}

// Learn lowers the error of the block on the samples by choosing for each code one of
// two neighbours (block reconstruction: BRECQ, Li et al. 2021, arXiv:2102.05426, with
// the relaxation of AdaRound), and by its numbers. Each HoldBack-th sample only judges:
// unless the error on these falls, everything stays as it was. The result depends on
// nothing but the arguments and the engine's arithmetic.
func Learn(ctx context.Context, open Opener, b *Block, samples []Sample, progress func(float64)) (Result, error) {
	if len(samples) < MinSamples {
		return Result{}, fmt.Errorf("%w: %d, at least %d are needed", ErrFewSamples, len(samples), MinSamples)
	}
	l, err := newLearner(ctx, open, b, samples[0].Want)
	if err != nil {
		return Result{}, err
	}
	defer l.close()
	var learn, judge []Sample
	for i, s := range samples {
		if i%HoldBack == HoldBack-1 {
			judge = append(judge, s)
		} else {
			learn = append(learn, s)
		}
	}
	start := l.keep()
	res := Result{}
	if res.Before, err = l.error(ctx, judge); err != nil {
		return Result{}, err
	}
	if err := l.learn(ctx, learn, progress); err != nil {
		return Result{}, err
	}
	if res.After, err = l.error(ctx, judge); err != nil {
		return Result{}, err
	}
	if res.Kept = res.After < res.Before; !res.Kept {
		l.restore(start)
	}
	return res, nil
}

// learner is the state of one block.
type learner struct {
	*Block
	sess    engine.Session
	grad    *Gradient
	rounds  []*rounding
	numbers []*moving
	feeds   engine.Feeds // weights and numbers
	target  string
}

// moving is a number that is being learned.
type moving struct {
	*Number
	grad  []float32
	adam  *adam
	rate  float32
	first float32 // where a scale begins
}

func newLearner(ctx context.Context, open Opener, b *Block, want *tensor.Tensor) (*learner, error) {
	l := &learner{Block: b, feeds: engine.Feeds{}}
	var wrt []string
	for _, w := range b.Weights {
		r := relax(w)
		l.rounds = append(l.rounds, r)
		l.feeds[w.Name] = tensor.From(r.soft, w.Dims...)
		wrt = append(wrt, w.Name)
	}
	for _, n := range b.Numbers {
		m := &moving{Number: n, grad: make([]float32, len(n.Values)), adam: newAdam(len(n.Values))}
		var sum float64
		for _, v := range n.Values {
			sum += float64(v) * float64(v)
		}
		if m.rate = float32(rateBias * math.Sqrt(sum/float64(max(len(n.Values), 1)))); n.Scale {
			m.first, m.rate = n.Values[0], rateScale*n.Values[0]
		}
		l.numbers = append(l.numbers, m)
		l.feeds[n.Name] = tensor.From(n.Values, n.Dims...)
		wrt = append(wrt, n.Name)
	}
	m := b.Model.Clone()
	g := m.Graph
	const target = "wanted"
	name := g.Namer().Name(target)
	dims := make([]graph.Dim, len(want.Dims))
	for i := range dims {
		dims[i].N = -1 // texts differ in length
	}
	g.Inputs = append(g.Inputs, &graph.Value{Name: name, Type: tensor.Float32, Dims: dims})
	var err error
	if l.grad, err = Derive(g, b.Out, name, wrt); err != nil {
		return nil, err
	}
	m.Require(graph.DomainMS, 1)
	g.Outputs = []*graph.Value{{Name: l.grad.Loss, Type: tensor.Float32}}
	for _, v := range wrt {
		g.Outputs = append(g.Outputs, &graph.Value{Name: l.grad.By[v], Type: tensor.Float32})
	}
	l.target = name
	if err := m.Check(); err != nil {
		return nil, err
	}
	// As it is written: an optimizer would make integer operators of what imitates them.
	l.sess, err = open.Open(ctx, m, nil, engine.Options{DisableOptimization: true})
	return l, err
}

func (l *learner) close() { l.sess.Close() }

// kept is what learning changes.
type kept struct {
	codes   [][]int8
	numbers [][]float32
}

func (l *learner) keep() (k kept) {
	for _, w := range l.Weights {
		k.codes = append(k.codes, slices.Clone(w.Codes))
	}
	for _, n := range l.Numbers {
		k.numbers = append(k.numbers, slices.Clone(n.Values))
	}
	return k
}

func (l *learner) restore(k kept) {
	for i, w := range l.Weights {
		copy(w.Codes, k.codes[i])
	}
	for i, n := range l.Numbers {
		copy(n.Values, k.numbers[i])
	}
}

// run computes loss and derivatives on one sample.
func (l *learner) run(ctx context.Context, s Sample, outs []string, use func(engine.Feeds) error) error {
	feeds := engine.Feeds{l.target: s.Want}
	for k, v := range l.feeds {
		feeds[k] = v
	}
	for _, in := range l.sess.Spec().Inputs {
		if v := s.In[in.Name]; v != nil {
			feeds[in.Name] = v
		}
	}
	r, err := l.sess.Run(ctx, feeds, outs)
	if err != nil {
		return err
	}
	defer r.Close()
	return use(r.Tensors())
}

// error is the squared error of the block with its codes as they are.
func (l *learner) error(ctx context.Context, samples []Sample) (float64, error) {
	for _, r := range l.rounds {
		r.dequantize(r.soft)
	}
	var sum, power float64
	for _, s := range samples {
		want, err := s.Want.F32()
		if err != nil {
			return 0, err
		}
		for _, v := range want {
			power += float64(v) * float64(v)
		}
		if err := l.run(ctx, s, []string{l.grad.Loss}, func(out engine.Feeds) error {
			v, err := out[l.grad.Loss].F32()
			if err == nil && len(v) == 1 {
				sum += float64(v[0])
			}
			return err
		}); err != nil {
			return 0, err
		}
	}
	return sum / math.Max(power, math.SmallestNonzeroFloat64), nil
}

func (l *learner) learn(ctx context.Context, samples []Sample, progress func(float64)) error {
	rng := rand.New(rand.NewPCG(seed, seed))
	var order []int
	for step := range learnSteps {
		for _, r := range l.rounds {
			r.write()
			clear(r.grad)
		}
		for _, n := range l.numbers {
			clear(n.grad)
		}
		for range min(learnBatch, len(samples)) {
			if len(order) == 0 {
				order = rng.Perm(len(samples))
			}
			s := samples[order[0]]
			order = order[1:]
			if err := l.run(ctx, s, nil, l.add); err != nil {
				return err
			}
		}
		done := float64(step) / learnSteps
		beta := 0.0
		if done >= warmUp {
			beta = betaLast + (betaFirst-betaLast)*0.5*(1+math.Cos(math.Pi*(done-warmUp)/(1-warmUp)))
		}
		for _, r := range l.rounds {
			if beta == 0 {
				r.measure()
			}
			r.step(rateRounding, beta)
		}
		slower := 0.5 * (1 + math.Cos(math.Pi*done))
		for _, n := range l.numbers {
			n.step(float32(slower))
		}
		progress(float64(step+1) / learnSteps)
	}
	for _, r := range l.rounds {
		r.settle()
	}
	return nil
}

// add adds one sample's derivatives.
func (l *learner) add(out engine.Feeds) error {
	sum := func(name string, into []float32) error {
		d, err := out[l.grad.By[name]].F32()
		if err != nil {
			return err
		}
		if len(d) != len(into) {
			return fmt.Errorf("%w: %d derivatives of %d values %q", tensor.ErrShape, len(d), len(into), name)
		}
		for i, v := range d {
			into[i] += v
		}
		return nil
	}
	for _, r := range l.rounds {
		if err := sum(r.Name, r.grad); err != nil {
			return err
		}
	}
	for _, n := range l.numbers {
		if err := sum(n.Name, n.grad); err != nil {
			return err
		}
	}
	return nil
}

func (m *moving) step(slower float32) {
	m.adam.begin()
	for i, d := range m.grad {
		v := m.Values[i] - m.rate*slower*m.adam.next(i, d)
		if m.Scale {
			if v = max(v, m.Values[i]/2); m.Most > 0 {
				v = min(v, max(m.Most, m.first))
			}
		}
		m.Values[i] = v
	}
}
