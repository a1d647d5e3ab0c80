package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

const (
	// gramBudget bounds the Hessians collected at a time, in bytes: the samples
	// run once for each group of inputs that fits.
	gramBudget = 512 << 20
	// solveBudget bounds, in bytes, what solving for several inputs at a time takes:
	// past it there is one.
	solveBudget = 160 << 20
	// solveGC is the heap's growth, in percent, after which it is collected while
	// weights are solved for: what that leaves are few large slices, quickly found.
	solveGC = 40
	// gramLeast is the least number of rows to solve by, as a share of the input
	// channels. A classifier's last layer sees one row a sample; with 64 rows of
	// 1,280 channels solving is no worse than rounding to nearest over five draws
	// (EfficientNet-lite0).
	gramLeast = 0.04
)

// ErrFewSamples: the calibration data are too few for the method.
var ErrFewSamples = errors.New("too few calibration samples")

// weightsPass quantizes weights by the Hessian of their inputs: GPTQ, or AdaRound,
// which begins there (quant.Config.Solves). It changes solved only, not the graph. What the data do not suffice for is left to
// rounding.
type weightsPass struct {
	lab      *Lab
	plan     *quant.Plan
	choices  quant.Choices
	samples  func() (data.Dataset, error)
	progress Progress
	solved   *quant.Solved
	keeping  *keeping // nil: nothing is on disk
	// strict fails where the data do not suffice for most weights; otherwise that
	// is a warning.
	strict bool
	warn   func(string)
}

var _ quant.Pass = (*weightsPass)(nil)

func (w *weightsPass) Name() string { return string(w.plan.Solves()) }

// source is one input with the operators that read it.
type source struct {
	tensor string
	ops    []*quant.Op
	gram   *quant.Gram
	wants  []want // of ops, where weights are kept
}

func (w *weightsPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	all, err := w.sources(m)
	if err != nil {
		return quant.Stats{}, err
	}
	var gain tally
	all, err = w.recall(m, all, &gain)
	if err != nil {
		return quant.Stats{}, err
	}
	var why error // of the first operator that is left to rounding
	done, left := gain.ops, 0
	for from := 0; from < len(all); {
		to, bytes, taps := from, int64(0), int64(0)
		for to < len(all) && (to == from || bytes+all[to].gram.Bytes() <= w.lab.gramBytes() && taps+w.lab.tapBytes(all[to].tensor) <= w.lab.tapLimit()) {
			bytes += all[to].gram.Bytes()
			taps += w.lab.tapBytes(all[to].tensor)
			to++
		}
		begin, ops := time.Now(), 0
		if err := w.collect(ctx, m, all[from:to], func(f float64) {
			w.progress.say("weights", (float64(from)+f*float64(to-from)/2)/float64(len(all)))
		}); err != nil {
			return quant.Stats{}, err
		}
		for _, s := range all[from:to] {
			ops += len(s.ops)
		}
		share := time.Since(begin).Seconds() / float64(ops) // of an operator in what was observed
		solved := w.solve(ctx, m, all[from:to], share, func(n int) {
			w.progress.say("weights", (float64(from)+(float64(n)+float64(to-from))/2)/float64(len(all)))
		})
		for i, x := range solved {
			s := all[from+i]
			switch {
			case x.err == nil:
				gain.add(x.gains)
				done += len(s.ops)
			case !errors.Is(x.err, quant.ErrSingular) && !errors.Is(x.err, ErrFewSamples):
				return quant.Stats{}, fmt.Errorf("input %q: %w", s.tensor, x.err)
			default:
				left += len(s.ops)
				if why == nil {
					why = fmt.Errorf("input %q: %w", s.tensor, x.err)
				}
			}
		}
		from = to
		w.progress.say("weights", float64(to)/float64(len(all)))
	}
	rounds := string(w.plan.Rounds())
	note := fmt.Sprintf("%d weights by their inputs' Hessian%s", done, gain.words("of "+rounds))
	note += gain.spared()
	if left > 0 {
		// A pooled head sees one row a sample and is often alone in this.
		note += fmt.Sprintf("; %d have seen too little and are left to %s", left, rounds)
	}
	if left > done {
		if w.strict {
			return quant.Stats{}, why
		}
		w.warn(fmt.Sprintf("%d of %d weights are left to %s: %v", left, left+done, rounds, why))
	}
	return quant.Stats{Changed: done, Note: note}, nil
}

// solution is what solving for one source gave.
type solution struct {
	gains []quant.Gain
	err   error
}

// solve solves for the weights of the sources, of some at a time: of one, parts of the
// factorization take one core. A source's Hessian goes, and its weights are kept, when
// it is done. share are the seconds that observing took for one operator. After an
// error that ends the pass the rest is left.
func (w *weightsPass) solve(ctx context.Context, m *graph.Model, group []*source, share float64, progress func(done int)) []solution {
	defer debug.SetGCPercent(debug.SetGCPercent(solveGC))
	all := make([]solution, len(group))
	var mu sync.Mutex
	room := sync.NewCond(&mu)
	next, done, taken := 0, 0, int64(0) // bytes of those that are being solved
	over := false
	var wg sync.WaitGroup
	for range w.lab.atOnce() {
		wg.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for {
				for next < len(group) && !over && taken > 0 && taken+group[next].solving(m) > solveBudget {
					room.Wait()
				}
				if next == len(group) || over {
					return
				}
				i, s := next, group[next]
				size := s.solving(m)
				next, taken = next+1, taken+size
				mu.Unlock()
				own := quant.NewSolved()
				begin := time.Now()
				x := solution{err: s.enough(w.plan.Solves())}
				if x.err == nil {
					x.gains, x.err = own.SolveGPTQ(ctx, w.lab, w.plan, m.Graph, s.ops, s.gram, w.choices)
				}
				seconds := time.Since(begin).Seconds()
				mu.Lock()
				all[i], s.gram, taken, done = x, nil, taken-size, done+1
				maps.Copy(w.solved.Int8, own.Int8)
				maps.Copy(w.solved.Int4, own.Int4)
				if x.err == nil {
					w.keep(s, x.gains, share+seconds/float64(len(s.ops)))
				}
				progress(done)
				over = over || x.err != nil && !errors.Is(x.err, quant.ErrSingular) && !errors.Is(x.err, ErrFewSamples)
				room.Broadcast()
			}
		})
	}
	wg.Wait()
	return all
}

// solving is about how many bytes solving for the source takes beside its Hessian.
func (s *source) solving(m *graph.Model) int64 {
	most := int64(0)
	for _, op := range s.ops {
		most = max(most, m.Graph.Init(op.W).Len())
	}
	return solveBytes*most + factorBytes*int64(s.gram.K)*int64(s.gram.K)
}

// sources lists what has to be observed, in graph order. What is too wide for a
// Hessian is left to rounding.
func (w *weightsPass) sources(m *graph.Model) ([]*source, error) {
	var all []*source
	add := func(t string, ops []*quant.Op) error {
		ops = slices.DeleteFunc(slices.Clone(ops), w.have)
		if len(ops) == 0 {
			return nil
		}
		g, err := quant.GramOf(ops[0], m.Graph.Init(ops[0].W).Dims)
		if err != nil {
			if w.strict {
				return fmt.Errorf("operator %q: %w", ops[0].Node.Name, err)
			}
			return nil
		}
		all = append(all, &source{tensor: t, ops: ops, gram: g})
		return nil
	}
	for _, g := range w.plan.Linears() {
		if err := add(g[0].X[0], g); err != nil {
			return nil, err
		}
	}
	for _, op := range w.plan.Ops {
		if op.Kind == quant.Conv {
			if err := add(op.X[0], []*quant.Op{op}); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// recall takes the weights that are kept on disk and returns what is left to solve.
func (w *weightsPass) recall(m *graph.Model, all []*source, gain *tally) (left []*source, err error) {
	if w.keeping == nil {
		return all, nil
	}
	for _, s := range all {
		var ops []*quant.Op
		for _, op := range s.ops {
			want, err := w.keeping.want(m.Graph, w.plan, op, w.choices)
			if err != nil {
				return nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
			e, ok := w.keeping.get(want)
			switch out := op.Node.Outputs[0]; {
			case !ok:
				ops, s.wants = append(ops, op), append(s.wants, want)
				continue
			case e.eight != nil:
				w.solved.Int8[out] = e.eight
			default:
				w.solved.Int4[out] = e.four
			}
			gain.add([]quant.Gain{e.gain})
			gain.ops++
			gain.seconds += e.seconds
		}
		if s.ops = ops; len(ops) > 0 {
			left = append(left, s)
		}
	}
	return left, nil
}

// keep keeps what was solved, each of which took so long.
func (w *weightsPass) keep(s *source, gains []quant.Gain, seconds float64) {
	for i := range s.wants {
		out := s.ops[i].Node.Outputs[0]
		w.keeping.put(s.wants[i], entry{eight: w.solved.Int8[out], four: w.solved.Int4[out], gain: gains[i], seconds: seconds})
	}
}

// have reports whether the weight of op is solved for already.
func (w *weightsPass) have(op *quant.Op) bool {
	out := op.Node.Outputs[0]
	if w.plan.Config.Scheme == quant.INT4 {
		return w.solved.Int4[out] != nil
	}
	return w.solved.Int8[out] != nil
}

// enough reports ErrFewSamples when most of the Hessian would be damping.
func (s *source) enough(method quant.WeightMethod) error {
	if least := int64(math.Ceil(gramLeast * float64(s.gram.K))); s.gram.Rows < least {
		return fmt.Errorf("%w: %s saw %d rows of %d channels and needs %d; give more samples, or use weights %s", ErrFewSamples, method, s.gram.Rows, s.gram.K, least, quant.MSEWeights)
	}
	return nil
}

// collect runs the calibration samples once, as calibration does, and sums up the
// inputs in group.
func (w *weightsPass) collect(ctx context.Context, m *graph.Model, group []*source, progress func(float64)) error {
	inputs := map[string]bool{}
	for _, v := range m.Graph.Inputs {
		inputs[v.Name] = true
	}
	var taps []string
	seen := map[string]bool{}
	for _, s := range group {
		if !inputs[s.tensor] && !seen[s.tensor] {
			seen[s.tensor] = true
			taps = append(taps, s.tensor)
		}
	}
	part := m
	if len(taps) > 0 {
		part = upTo(m, taps)
	}
	sess, _, err := w.lab.openObserved(ctx, part, taps)
	if err != nil {
		return err
	}
	defer sess.Close()
	if err := throughSamples(ctx, sess, taps, w.samples, progress, func(feeds, values engine.Feeds) error {
		return w.observe(ctx, m, feeds, values, group)
	}); err != nil {
		return err
	}
	for _, s := range group {
		if err := s.gram.Flush(ctx, w.sums(s)); err != nil {
			return err
		}
	}
	return nil
}

// sums is what the source's Hessian is summed by. Convolutions are observed in FP32, and
// of inputs rounded to BF16 their weights are worse: by 1 dB of EfficientNet-lite0's
// output.
func (w *weightsPass) sums(s *source) quant.Algebra {
	if s.ops[0].Kind == quant.Conv {
		return exact{w.lab}
	}
	return w.lab
}

func (w *weightsPass) observe(ctx context.Context, m *graph.Model, feeds, values engine.Feeds, group []*source) error {
	id := calib.SampleHash(feeds)
	key := binary.LittleEndian.Uint64(id[:8])
	one := func(s *source) error {
		t := values[s.tensor]
		if t == nil {
			t = feeds[s.tensor]
		}
		if t == nil {
			return nil
		}
		x, err := t.F32()
		if err != nil {
			return err
		}
		if op := s.ops[0]; op.Kind == quant.Conv {
			err = s.gram.ObserveConv(ctx, w.sums(s), op, m.Graph.Init(op.W).Dims, x, t.Dims, key)
		} else {
			err = s.gram.Observe(ctx, w.sums(s), x)
		}
		if err != nil {
			return fmt.Errorf("tensor %q: %w", s.tensor, err)
		}
		return nil
	}
	// A convolution's patches are gathered on one core; a matrix is summed on all.
	var convs, rest []*source
	for _, s := range group {
		if s.ops[0].Kind == quant.Conv {
			convs = append(convs, s)
		} else {
			rest = append(rest, s)
		}
	}
	if err := eachOf(len(convs), w.lab.atOnce(), func(i int) error { return one(convs[i]) }); err != nil {
		return err
	}
	return eachOf(len(rest), 1, func(i int) error { return one(rest[i]) })
}

// tally is the mean, on a log scale, of what solving left of each operator's error.
type tally struct {
	logs    float64
	n       int
	ops     int     // of them kept on disk
	seconds float64 // that solving for these took once
}

func (t *tally) add(gains []quant.Gain) {
	for _, g := range gains {
		if g.Solved > 0 && g.Nearest > 0 {
			t.logs += math.Log(g.Solved / g.Nearest)
			t.n++
		}
	}
}

// spared words what was kept on disk.
func (t *tally) spared() string {
	if t.ops == 0 {
		return ""
	}
	return fmt.Sprintf("; %d of them were solved before and kept, which spares %.1f s", t.ops, t.seconds)
}

// words compares with the error of what else could have been done.
func (t *tally) words(than string) string {
	if t.n == 0 {
		return ""
	}
	return fmt.Sprintf("; their outputs' squared error is %.0f %% of that %s (geometric mean)", 100*math.Exp(t.logs/float64(t.n)), than)
}
