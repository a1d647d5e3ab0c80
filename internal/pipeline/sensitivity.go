package pipeline

import (
	"context"
	"fmt"
	"math"
	"sort"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/report"
)

const (
	// DefaultSensitivitySamples judge each operator.
	DefaultSensitivitySamples = 32
	// DefaultSensitivityTop operators, the worst by the proxy, are measured.
	DefaultSensitivityTop = 20
	// replayBytes bounds the float model's outputs that are kept.
	replayBytes = 256 << 20
)

// SensitivityRequest asks what each operator's quantization costs.
type SensitivityRequest struct {
	Model, Calib, Eval string // Eval "": the samples of Calib that do not calibrate
	Config             quant.Config
	// Samples calibrate, EvalSamples judge; 0 are the defaults.
	Samples, EvalSamples int
	MaxTokens            int
	// Precision of the float model's products while it calibrates; "" is AutoPrecision.
	Precision Precision
	// Top operators are measured by themselves; 0 is DefaultSensitivityTop,
	// a negative number all.
	Top     int
	Command []string
	Words   Words
}

// Sensitivity ranks the operators of a model by what quantizing them costs: a
// forward-only proxy for all, then for the worst the loss at the model's output
// with only this operator quantized, and with all but this one.
func (p *Pipeline) Sensitivity(ctx context.Context, req SensitivityRequest, progress Progress) (*report.Sensitivity, error) {
	cfg := req.Config
	cfg.NoBiasCorrection, cfg.NoEmbeddings = true, true // they belong to the whole, not to one operator
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	switch {
	case cfg.Scheme.HalfWeights():
		return nil, fmt.Errorf("%w: scheme %s has no operators to tell apart; use %s, %s or %s", quant.ErrConfig, cfg.Scheme, quant.INT8, quant.INT8Dynamic, quant.INT4)
	case req.Calib == "":
		return nil, fmt.Errorf("%w: give %s", ErrNeedsCalibration, req.Words.calib())
	}
	learns := cfg.Weights == quant.BRECQ
	if learns { // in whole blocks, and here single operators are compared
		cfg.Weights, cfg.Learn = quant.GPTQ, nil
	}
	if req.EvalSamples == 0 {
		req.EvalSamples = DefaultSensitivitySamples
	}
	if req.Top == 0 {
		req.Top = DefaultSensitivityTop
	}
	r, err := p.start(ctx, Request{Model: req.Model, Config: cfg, Calib: req.Calib, Eval: req.Eval, Samples: req.Samples, EvalSamples: req.EvalSamples, Precision: req.Precision, MaxTokens: req.MaxTokens, Words: req.Words}, progress)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	if err := r.choose(ctx); err != nil {
		return nil, err
	}
	if learns {
		r.rep.Warnings = append(r.rep.Warnings, fmt.Sprintf("weights %s are learned in whole blocks: operators are compared with the weights of %s, with which that begins", quant.BRECQ, quant.GPTQ))
	}
	s := &sensitivity{run: r, top: req.Top}
	s.out = &report.Sensitivity{Created: time.Now().UTC(), Command: req.Command, Model: r.rep.Model, Machine: r.rep.Machine, Recipe: r.rep.Recipe, Equalized: cfg.Equalize, Learns: r.m.Opset() >= reconstruct.MinOpset && cfg.Scheme == quant.INT8 && !learns, Warnings: r.rep.Warnings}
	if err := s.measure(ctx); err != nil {
		return nil, err
	}
	return s.out, nil
}

// sensitivity is the state of one such run.
type sensitivity struct {
	*run
	top int
	out *report.Sensitivity
	ops []*quant.Op // in the order of out.Operators until these are ranked
	ref *replay
	// data opens the samples that judge; nil is the run's evaluation data.
	data func() (data.Dataset, error)
}

func (s *sensitivity) measure(ctx context.Context) error {
	if err := s.proxies(); err != nil {
		return err
	}
	ref, err := s.lab.Open(ctx, s.m, nil, engine.Options{})
	if err != nil {
		return err
	}
	defer ref.Close()
	s.ref = &replay{Session: ref, kept: map[calib.SampleID]engine.Feeds{}}
	whole, err := s.loss(ctx, func(*quant.Op) bool { return true })
	if err != nil {
		return fmt.Errorf("all operators: %w", err)
	}
	s.out.Samples, s.out.Whole = whole.Samples, lossOf(whole)
	worst := make([]int, len(s.ops))
	for i := range worst {
		worst[i] = i
	}
	rank := s.out.Operators
	sort.SliceStable(worst, func(a, b int) bool { return rank[worst[a]].Proxy > rank[worst[b]].Proxy })
	if s.top > 0 {
		worst = worst[:min(s.top, len(worst))]
	}
	for n, i := range worst {
		op := s.ops[i]
		only, err := s.loss(ctx, func(o *quant.Op) bool { return o == op })
		if err != nil {
			return fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		but, err := s.loss(ctx, func(o *quant.Op) bool { return o != op })
		if err != nil {
			return fmt.Errorf("all but operator %q: %w", op.Node.Name, err)
		}
		a, b := lossOf(only), lossOf(but)
		rank[i].Only, rank[i].AllBut = &a, &b
		s.progress.say("measure operators", float64(n+1)/float64(len(worst)))
	}
	s.out.Rank()
	return nil
}

// choose calibrates the prepared model and makes all choices, and writes none.
func (r *run) choose(ctx context.Context) error {
	if err := r.planned(); err != nil {
		return err
	}
	if err := r.calibrate(ctx); err != nil {
		return err
	}
	if r.tabled {
		return fmt.Errorf("%w: a calibration table holds no samples to measure operators on: give the data", quant.ErrConfig)
	}
	return r.decide(ctx)
}

// proxies lists the operators with what needs no run: the error of their weight,
// and of their output where the choice of the range has measured it.
func (s *sensitivity) proxies() error {
	macs := map[string]int64{}
	for _, c := range s.plan.Cover(s.m, s.shapes()) {
		macs[c.Node.Outputs[0]] = c.MACs
	}
	recurrent := 0
	for _, op := range s.plan.Ops {
		if op.Kind == quant.Recurrent {
			recurrent++
		}
		if op.Kind != quant.Linear && op.Kind != quant.Conv {
			continue
		}
		w, err := quant.WeightFacts(s.m.Graph, s.plan, op, s.choices, s.solved, s.evidence)
		if err != nil {
			return fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		o := report.OperatorLoss{Name: op.Node.Name, Op: op.Node.Op, Precision: string(op.Precision), MACs: macs[op.Node.Outputs[0]],
			Weight: report.WeightFacts{Method: string(w.Method), Elements: w.Elements, Std: report.Num(w.Std), Max: report.Num(w.Max), AfterStd: report.Num(w.AfterStd), SQNR: report.Num(w.SQNR)}}
		proxy := math.Pow(10, -w.SQNR/10)
		if c := s.choices[s.plan.Source(op.X[0])]; c != nil && (op.Precision != quant.PrecisionINT4 || s.plan.Config.Target == quant.CPU) {
			o.Range, o.Smoothed = c.Method, c.Smooth != nil
			key := c.Method
			if c.Smooth != nil {
				key = fmt.Sprintf("smooth %.1f, %s", c.Alpha, c.Method)
			}
			if e, ok := c.Errors[key]; ok {
				proxy = max(proxy, e)
			}
		}
		if ch := s.evidence.ChannelMax(op.X[0]); ch != nil {
			o.Outlier = report.Num(outlier(ch))
		}
		o.Proxy = report.Num(proxy)
		s.out.Operators = append(s.out.Operators, o)
		s.ops = append(s.ops, op)
	}
	if recurrent > 0 {
		s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("%d LSTM are part of the whole and not measured by themselves: keep one in float with --operators NAME=fp32 to see what it costs", recurrent))
	}
	if inside := s.plan.Unobserved(); inside > 0 {
		s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("%d operators in the bodies of If, Loop and Scan are not in these figures, though quantize quantizes them: compare says what the whole loses", inside))
	}
	return nil
}

// outlier is how far the largest channel stands above the median one.
func outlier(channels []float32) float64 {
	v := append([]float32(nil), channels...)
	sort.Slice(v, func(a, b int) bool { return v[a] < v[b] })
	mid := v[len(v)/2]
	if mid <= 0 {
		return nan
	}
	return float64(v[len(v)-1] / mid)
}

// loss compares the model in which the kept operators are quantized with FP32.
func (s *sensitivity) loss(ctx context.Context, keep func(*quant.Op) bool) (*eval.Result, error) {
	m := s.m.Clone()
	var table []quant.Pass
	for _, p := range byScheme(s.plans, quant.INT4, quant.INT8Dynamic, quant.INT8) {
		part := p.Filter(keep)
		if len(part.Ops) == 0 {
			continue
		}
		if part = part.On(m); p.Config.Scheme == quant.INT4 {
			table = append(table, &quant.BlockWeights{Plan: part, Stats: s.evidence, Solved: s.solved, Choices: s.choices})
		} else {
			table = append(table, &quant.Insert{Plan: part, Choices: s.choices, Solved: s.solved})
		}
	}
	if _, err := quant.Run(ctx, m, table, quant.Dump{}); err != nil {
		return nil, err
	}
	q, err := s.lab.Open(ctx, m, nil, engine.Options{})
	if err != nil {
		return nil, err
	}
	defer q.Close()
	open := s.openEval
	if s.data != nil {
		open = s.data
	}
	ds, err := open()
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	defer ds.Close()
	return eval.Compare(ctx, s.ref, q, ds, eval.Options{MaxSamples: s.req.EvalSamples})
}

func lossOf(r *eval.Result) report.Loss {
	l := report.Loss{Cosine: report.Num(1 - r.Cosine.Mean), SQNR: report.Num(r.SQNR), Accuracy: report.Num(nan), Disagreement: report.Num(nan)}
	if r.Difference != nil {
		l.Accuracy = report.Num(-r.Difference.Value)
	}
	if r.Agreement != nil {
		l.Disagreement = report.Num(1 - r.Agreement.Value)
	}
	return l
}

// replay remembers the outputs of a session by sample: the float model runs once.
type replay struct {
	engine.Session
	kept  map[calib.SampleID]engine.Feeds
	bytes int64
}

// Run implements engine.Session.
func (r *replay) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	id := calib.SampleHash(in)
	if t, ok := r.kept[id]; ok {
		return remembered(t), nil
	}
	res, err := r.Session.Run(ctx, in, outs)
	if err != nil {
		return nil, err
	}
	copies, size := engine.Feeds{}, int64(0)
	for name, t := range res.Tensors() {
		c := *t
		c.Data = append([]byte(nil), t.Data...)
		copies[name] = &c
		size += int64(len(c.Data))
	}
	if r.bytes+size > replayBytes {
		return res, nil
	}
	res.Close()
	r.kept[id] = copies
	r.bytes += size
	return remembered(copies), nil
}

type remembered engine.Feeds

func (r remembered) Tensors() engine.Feeds { return engine.Feeds(r) }
func (remembered) Close()                  {}
