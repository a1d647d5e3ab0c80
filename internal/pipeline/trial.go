package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
)

const (
	// searchFirst samples give a first look at a trial: what is past the loss
	// already there goes no further.
	searchFirst = 32
	// searchTiming samples say how long FP32 takes.
	searchTiming = 16
	// searchJudgeShare is the part of the time limit that FP32 itself may take on the
	// samples that judge.
	searchJudgeShare = 0.15
	// searchRankShare is the part of the time limit that ranking the operators may take.
	searchRankShare = 0.15
	// searchRankSamples measure one unit, searchRankUnits units at most are measured.
	searchRankSamples = 16
	searchRankUnits   = 24
	// searchLearnShare is the part of the time limit that learning blocks may take.
	searchLearnShare = 0.3
	// searchFeeds are the samples that latency is measured on.
	searchFeeds = 16
)

// How long latency is measured: of a trial that may be kept, and of another, for
// the picture.
var (
	searchLatency = eval.InterleaveOptions{Warmup: 2, MinTime: time.Second, MaxTime: 12 * time.Second}
	searchGlance  = eval.InterleaveOptions{Warmup: 1, Rounds: 12, MaxTime: 5 * time.Second}
)

// wrongCandidate are errors that speak against one candidate, not against the search.
var wrongCandidate = []error{quant.ErrConfig, quant.ErrNothing, quant.ErrSingular, ErrFewSamples, ErrCeiling}

// Try implements search.Lab.
func (s *searching) Try(ctx context.Context, number int, c search.Candidate) (report.Trial, error) {
	begin := time.Now()
	t := report.NewTrial()
	t.Number, t.Key, t.Label, t.Scheme, t.Target = number, c.Key(), c.Label, string(c.Scheme), string(c.Target)
	if err := s.reference(ctx); err != nil {
		return t, err
	}
	r, err := s.build(ctx, c)
	for _, w := range wrongCandidate {
		if errors.Is(err, w) && ctx.Err() == nil {
			t.Why, t.Seconds = err.Error(), time.Since(begin).Seconds()
			return t, nil
		}
	}
	if err != nil {
		return t, err
	}
	st, err := newStage(s.req.Out, r.lab.dir.path)
	if err != nil {
		return t, err
	}
	defer st.discard()
	s.progress.say("save", 0)
	if err := r.m.Save(st.path, onnx.SaveOptions{}); err != nil {
		return t, err
	}
	if err := r.describeResult(ctx, st.path); err != nil {
		return t, err
	}
	t.Learned = r.learnt
	t.Bytes, t.SHA256 = r.rep.Quantized.Bytes, r.rep.Quantized.SHA256
	if share, ok := r.rep.Integer.Share(); ok {
		t.Integer = report.Num(share)
	}
	if need := s.served(r, t.Bytes); need > 0 {
		t.Why, t.Seconds = fmt.Sprintf("it and FP32 as they are served take about %s: more than %s", report.Bytes(need), s.req.Words.maxMemory()), time.Since(begin).Seconds()
		return t, nil
	}
	if err := s.judge.measure(ctx, &t, st.path, c.Safe); err != nil {
		return t, err
	}
	t.Seconds = time.Since(begin).Seconds()
	if t.Accepted && (s.best == nil || s.best.Key == t.Key || search.Better(s.goal, t, *s.best)) {
		if err := s.publish(st); err != nil {
			return t, err
		}
		s.best = &t
	}
	return t, nil
}

// served returns 0 when a model of so many bytes can be opened as it is served
// beside what is resident now, and else what that would take.
func (s *searching) served(r *run, bytes int64) int64 {
	ceiling := s.req.MaxMemory
	if ceiling == 0 {
		return 0
	}
	if need := r.settle() + judgedCopies*bytes + slack(ceiling); need > ceiling {
		return need
	}
	return 0
}

// publish puts a result where the best lies. Weights of the one before that had a
// file of their own go with it.
func (s *searching) publish(st *stage) error {
	_, err := os.Stat(st.path + ".data")
	alone := os.IsNotExist(err)
	if err := st.publish(); err != nil {
		return err
	}
	if alone && s.best != nil {
		_ = os.Remove(s.req.Out + ".data") // mostly it is not there
	}
	return nil
}

// build makes the candidate's model.
func (s *searching) build(ctx context.Context, c search.Candidate) (*run, error) {
	base, err := s.base(ctx, c.Target)
	if err != nil {
		return nil, err
	}
	cfg := base.req.Config
	cfg.Scheme, cfg.Target, cfg.Rules = c.Scheme, c.Target, c.Rules
	if len(c.Learn) > 0 {
		cfg.Weights, cfg.Learn = quant.BRECQ, c.Learn
	}
	if cfg, err = cfg.WithDefaults(); err != nil {
		return nil, err
	}
	r := base.fork(cfg)
	if len(c.Learn) > 0 {
		r.learnUntil = time.Now().Add(time.Duration(searchLearnShare * float64(s.req.TimeLimit)))
	}
	return r, r.rewrite(ctx)
}

// Units implements search.Lab: by the loss with only this unit quantized, as far
// as the time allows, then by the proxy.
func (s *searching) Units(ctx context.Context, t quant.Target) ([]search.Unit, error) {
	if u, ok := s.journal.Units[string(t)]; ok {
		return u, nil
	}
	if err := s.reference(ctx); err != nil {
		return nil, err
	}
	base, err := s.base(ctx, t)
	if err != nil {
		return nil, err
	}
	cfg := base.req.Config
	cfg.NoBiasCorrection = true // it belongs to the whole, and would hide what a unit loses
	r := base.fork(cfg)
	r.req.EvalSamples = min(searchRankSamples, s.journal.Head.First)
	if err := r.choose(ctx); err != nil {
		return nil, err
	}
	z := &sensitivity{run: r, out: &report.Sensitivity{}, ref: s.judge.replay}
	if err := z.proxies(); err != nil {
		return nil, err
	}
	units, ops := z.units()
	measured, begin := 0, time.Now()
	for ; measured < min(len(units), searchRankUnits); measured++ {
		if time.Since(begin).Seconds() > searchRankShare*s.req.TimeLimit.Seconds() {
			break
		}
		res, err := z.loss(ctx, func(o *quant.Op) bool { return ops[measured][o] })
		if err != nil {
			return nil, fmt.Errorf("operator %q: %w", units[measured].Names[0], err)
		}
		units[measured].Loss = report.Num(max(0, 1-res.Cosine.Mean))
		s.progress.say("rank operators", float64(measured+1)/float64(min(len(units), searchRankUnits)))
	}
	known, rest := units[:measured], units[measured:]
	sort.SliceStable(known, func(a, b int) bool { return known[a].Loss > known[b].Loss })
	if len(known) > 0 && len(rest) > 0 { // the proxies of the others continue the scale
		f := known[len(known)-1].Loss / max(rest[0].Loss, math.SmallestNonzeroFloat32)
		for i := range rest {
			rest[i].Loss *= f
		}
	}
	return units, s.journal.AddUnits(string(t), units)
}

// units groups the operators by the activation that they read, the largest proxy
// first. What has no name cannot be given a rule.
func (s *sensitivity) units() (units []search.Unit, ops []map[*quant.Op]bool) {
	at := map[string]int{}
	for i, op := range s.ops {
		o := s.out.Operators[i]
		if o.Name == "" {
			continue
		}
		key := "op " + op.Node.Outputs[0]
		if op.Kind == quant.Linear {
			key = "x " + op.X[0]
		}
		n, ok := at[key]
		if !ok {
			n = len(units)
			at[key] = n
			units = append(units, search.Unit{Linear: op.Kind == quant.Linear, Four: s.plan.Four(s.m, op)})
			ops = append(ops, map[*quant.Op]bool{})
		}
		u := &units[n]
		u.Names = append(u.Names, o.Name)
		u.Loss = max(u.Loss, o.Proxy)
		u.MACs += o.MACs
		u.Elements += int64(o.Weight.Elements)
		ops[n][op] = true
	}
	order := make([]int, len(units))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return units[order[a]].Loss > units[order[b]].Loss })
	sorted, sets := make([]search.Unit, len(units)), make([]map[*quant.Op]bool, len(units))
	for i, n := range order {
		sorted[i], sets[i] = units[n], ops[n]
	}
	return sorted, sets
}

// judge measures models against FP32.
type judge struct {
	s         *searching
	ref       engine.Session
	replay    *replay // ref, whose outputs are kept
	open      func(samples int) (data.Dataset, error)
	feeds     []engine.Feeds
	output    string
	metric    string
	accuracy  *eval.Score
	available int
}

func (j *judge) close() { j.ref.Close() }

// The metrics that a loss is a share of.
const (
	metricAccuracy = "accuracy"
	metricCosine   = "cosine"
	// metricDetected is eval.Detected's agreement, which stands where a cosine does.
	metricDetected = "agreement of detections"
	// metricAnswers is the accuracy that FP32's own probabilities expect: of few
	// classes without labels.
	metricAnswers = "expected accuracy"
)

// reference opens FP32, and finds out how long it takes and how many samples judge.
func (s *searching) reference(ctx context.Context) error {
	if s.judge != nil {
		return nil
	}
	base := s.bases[s.req.Targets[0]]
	if need := s.served(base, weightBytes(base.m)); need > 0 {
		return fmt.Errorf("%w: a search measures FP32 as it is served, which takes about %s, and %s is %s: give more", ErrCeiling, report.Bytes(need), s.req.Words.maxMemory(), report.Bytes(s.req.MaxMemory))
	}
	ref, err := s.Engine.OpenFile(ctx, s.req.Model, engine.Options{Threads: s.Threads})
	if err != nil {
		return fmt.Errorf("open the float model: %w", err)
	}
	j := &judge{s: s, ref: ref, replay: &replay{Session: ref, kept: map[calib.SampleID]engine.Feeds{}}}
	j.open = func(n int) (data.Dataset, error) {
		r := *base
		r.req.EvalSamples, r.rep = n, &report.Report{}
		ds, err := r.openEval()
		if err != nil {
			return nil, fmt.Errorf("evaluation data: %w", err)
		}
		for _, w := range r.rep.Warnings {
			s.warn(w)
		}
		return ds, nil
	}
	if err := s.plan(ctx, j); err != nil {
		ref.Close()
		return err
	}
	s.judge = j
	return nil
}

// warn keeps a warning, once.
func (s *searching) warn(text string) {
	if !slices.Contains(s.out.Warnings, text) {
		s.out.Warnings = append(s.out.Warnings, text)
	}
}

// plan decides how many samples judge, or takes it from the journal, and keeps
// the samples for latency.
func (s *searching) plan(ctx context.Context, j *judge) error {
	all, err := j.open(s.req.EvalSamples)
	if err != nil {
		return err
	}
	j.available = all.Len()
	all.Close()
	begin := time.Now()
	res, err := j.compare(ctx, j.replay, searchTiming)
	if err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	each := time.Since(begin).Seconds() / float64(res.Samples)
	j.metric, j.output = metricCosine, res.Output
	need := 0
	switch a := res.Answers; {
	case res.Detected != nil:
		j.metric = metricDetected
		if res.EmptySamples == res.Samples {
			return fmt.Errorf("%w: FP32 finds nothing in any of %d samples: look at the data and the model", eval.ErrOutput, res.Samples)
		}
	case res.RefAccuracy != nil:
		j.metric = metricAccuracy
		if res.RefAccuracy.Hi == 0 {
			return fmt.Errorf("%w: FP32 itself gets none of %d samples right: look at the labels", eval.ErrOutput, res.Labelled)
		}
		least := eval.LeastPaired(s.goal.MaxLoss * res.RefAccuracy.Hi)
		if j.available < least {
			return fmt.Errorf("%w: %d labelled samples cannot prove a loss of at most %.3g %%: even two equal models need %d; give more, or allow a larger loss", ErrFewSamples, j.available, 100*s.goal.MaxLoss, least)
		}
		need = eval.LeastPaired(s.goal.MaxLoss * max(res.RefAccuracy.Value/2, res.RefAccuracy.Lo))
	case a != nil:
		j.metric = metricAnswers
		need = eval.LeastPaired(s.goal.MaxLoss * a.Expected)
		if least := eval.LeastPaired(s.goal.MaxLoss); j.available < least {
			return fmt.Errorf("%w: %d samples of %d classes without labels cannot prove a loss of at most %.3g %%: even two equal models need %d; give more, or allow a larger loss", ErrFewSamples, j.available, a.Classes, 100*s.goal.MaxLoss, least)
		}
	}
	if !s.journal.Started() {
		n := s.req.EvalSamples
		if n == 0 {
			n = max(int(searchJudgeShare*s.req.TimeLimit.Seconds()/each), 2*need, searchFirst)
		}
		n = min(n, j.available)
		s.journal.Head.Metric = j.metric
		if err := s.journal.Start(min(max(searchFirst, need), n), n); err != nil {
			return err
		}
	}
	ds, err := j.open(s.journal.Head.First)
	if err != nil {
		return err
	}
	defer ds.Close()
	for bytes := 0; len(j.feeds) < searchFeeds && bytes < replayBytes; {
		x, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, t := range x.Feeds {
			bytes += len(t.Data)
		}
		j.feeds = append(j.feeds, x.Feeds)
	}
	return nil
}

// compare judges q on n samples.
func (j *judge) compare(ctx context.Context, q engine.Session, n int) (*eval.Result, error) {
	ds, err := j.open(n)
	if err != nil {
		return nil, err
	}
	defer ds.Close()
	total := ds.Len()
	return eval.Compare(ctx, j.replay, q, ds, eval.Options{Progress: func(done int) { j.s.progress.say("evaluate", float64(done)/float64(max(total, done))) }})
}

// measure fills t with what the model at path loses and how fast it is, and
// decides. A first look ends what is past the loss already, and judges what is safe.
func (j *judge) measure(ctx context.Context, t *report.Trial, path string, safe bool) error {
	sess, err := j.s.Engine.OpenFile(ctx, path, engine.Options{Threads: j.s.Threads})
	if err != nil {
		return fmt.Errorf("open the quantized model: %w", err)
	}
	defer sess.Close()
	q := &replay{Session: sess, kept: map[calib.SampleID]engine.Feeds{}}
	head := j.s.journal.Head
	res, err := j.compare(ctx, q, head.First)
	if err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	if err := j.loss(t, res); err != nil {
		return err
	}
	lost := float64(t.LossLo) > j.s.goal.MaxLoss || res.BrokenSamples > 0
	if !lost && !(safe && t.Why == "") && head.Samples > head.First {
		if res, err = j.compare(ctx, q, head.Samples); err != nil {
			return fmt.Errorf("evaluate: %w", err)
		}
		if err := j.loss(t, res); err != nil {
			return err
		}
	}
	o := searchLatency
	if t.Why != "" {
		o = searchGlance
	}
	j.s.progress.say("measure latency", 0)
	lat, err := eval.Interleave(ctx, []func(context.Context) error{eval.Runner(j.ref, j.feeds, []string{j.output}), eval.Runner(sess, j.feeds, []string{j.output})}, o)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	for _, w := range lat.Noise.Warnings() {
		j.s.warn(fmt.Sprintf("trial %d: %s", t.Number, w))
	}
	ratio := lat.Ratios[1]
	t.Speed, t.SpeedLo, t.SpeedHi, t.Rounds = report.Num(ratio.Median), report.Num(ratio.Lo), report.Num(ratio.Hi), ratio.N
	t.FP32P50MS, t.P50MS, t.P99MS = report.Num(lat.Candidates[0].P50MS), report.Num(lat.Candidates[1].P50MS), report.Num(lat.Candidates[1].P99MS)
	if t.Why == "" && ratio.Hi < 1 {
		t.Why = fmt.Sprintf("slower than FP32: %.2f times its speed (95 %% interval %.2f to %.2f)", ratio.Median, ratio.Lo, ratio.Hi)
	}
	t.Accepted = t.Why == ""
	return nil
}

// loss fills t from a comparison, and says why the loss is not proven.
func (j *judge) loss(t *report.Trial, res *eval.Result) error {
	t.Samples, t.Cosine, t.SQNR, t.Why = res.Samples, report.Num(res.Cosine.Mean), report.Num(res.SQNR), ""
	if res.Agreement != nil {
		t.Agreement = report.Num(res.Agreement.Value)
	}
	value, lo, hi := 1-res.CosineMean.Value, 1-res.CosineMean.Hi, 1-res.CosineMean.Lo
	switch j.metric {
	case metricAnswers:
		a := res.Answers
		if a == nil || a.Expected == 0 {
			return fmt.Errorf("%w: the classes are not those of the first samples", eval.ErrOutput)
		}
		value, lo, hi = a.Loss.Value/a.Expected, a.Loss.Lo/a.Expected, a.Loss.Hi/a.Expected
	case metricAccuracy:
		if res.Difference == nil || res.RefAccuracy == nil || res.RefAccuracy.Value == 0 {
			return fmt.Errorf("%w: there are no labels where there were some before", eval.ErrOutput)
		}
		a := res.RefAccuracy.Value
		value, lo, hi = -res.Difference.Value/a, -res.Difference.Hi/a, -res.Difference.Lo/a
		j.accuracy = res.RefAccuracy
	}
	t.Loss, t.LossLo, t.LossHi = report.Num(value), report.Num(lo), report.Num(hi)
	most := j.s.goal.MaxLoss
	switch {
	case res.BrokenSamples > 0:
		t.Why = fmt.Sprintf("%d of %d samples give NaN or infinity where FP32 gives numbers", res.BrokenSamples, res.Samples)
	case res.BlindSamples > 0:
		return fmt.Errorf("%w: FP32 itself gives no finite number for %d of %d samples: look at the evaluation data and the model", eval.ErrOutput, res.BlindSamples, res.Samples)
	case value > most:
		t.Why = fmt.Sprintf("it loses %.3g %% of the %s", 100*value, j.metric)
	case hi > most:
		t.Why = fmt.Sprintf("%d samples do not prove the loss: it may be %.3g %% of the %s", res.Samples, 100*hi, j.metric)
	}
	return nil
}
