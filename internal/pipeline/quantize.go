package pipeline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// Errors of a run.
var (
	// ErrNeedsCalibration: the scheme is static and there is no calibration data.
	ErrNeedsCalibration = errors.New("static quantization needs calibration data")
	// ErrRefused: the gate refused the result; nothing was written.
	ErrRefused = errors.New("the result was refused")
)

// Quantize runs the whole job. The report is complete whenever there is one,
// with ErrRefused too; nothing is written to Out unless the gate accepts the
// result or Force is set.
func (p *Pipeline) Quantize(ctx context.Context, req Request, progress Progress) (*report.Report, error) {
	cfg, err := req.Config.WithDefaults()
	if err != nil {
		return nil, err
	}
	req.Config = cfg
	if err := CheckData(req); err != nil {
		return nil, err
	}
	if err := req.CheckMinSQNR(); err != nil {
		return nil, err
	}
	var phase atomic.Value // for who passes the ceiling
	r, err := p.start(ctx, req, func(name string, f float64) {
		phase.Store(name)
		progress.say(name, f)
	})
	if err != nil {
		return nil, err
	}
	defer r.close()
	ctx, gov := r.govern(ctx, &phase)
	err = r.quantize(ctx)
	made := err == nil
	if made {
		err = r.finish(ctx)
	}
	r.rep.Memory.Ceiling = req.MaxMemory
	if r.rep.Memory.RunPeak, r.rep.Memory.RunAnonymous, err = gov.end(ctx, err); r.rep.Memory.RunPeak > req.MaxMemory {
		r.rep.Warnings = append(r.rep.Warnings, fmt.Sprintf("the run took %s for a moment, between two looks at its memory: more than %s", report.Bytes(r.rep.Memory.RunPeak), req.Words.maxMemory()))
	}
	if !made || errors.Is(err, ErrCeiling) {
		return nil, err
	}
	return r.rep, err
}

// CheckData refuses settings that look at calibration data where req names none. The
// configuration has its defaults.
func CheckData(req Request) error {
	cfg := req.Config
	switch {
	case req.Calib != "":
		return nil
	case cfg.NeedsCalibration():
		return fmt.Errorf("%w: give %s, or use scheme %s, which measures ranges as it runs", ErrNeedsCalibration, req.Words.calib(), quant.INT8Dynamic)
	case cfg.Weights.NeedsData():
		return fmt.Errorf("%w: weights %s are solved for by calibration data: give %s, or use weights %s", quant.ErrConfig, cfg.Weights, req.Words.calib(), quant.MSEWeights)
	case cfg.Equalize:
		return fmt.Errorf("%w: equalization looks at the channels' ranges: give %s", quant.ErrConfig, req.Words.calib())
	}
	return nil
}

// start opens the model and the lab of a run, and describes both.
func (p *Pipeline) start(ctx context.Context, req Request, progress Progress) (*run, error) {
	progress.say("open", 0)
	m, err := graph.Open(req.Model)
	if err != nil {
		return nil, err
	}
	lab, err := NewLab(p.Engine, p.Threads, p.Scratch)
	if err != nil {
		m.Close()
		return nil, err
	}
	lab.Device, lab.Precision = p.Device, req.Precision
	r := &run{Pipeline: p, req: req, lab: lab, m: m, source: m, progress: progress, choices: quant.Choices{}, solved: quant.NewSolved(), rep: &report.Report{Created: time.Now().UTC(), Command: req.Command}}
	r.hashing = beginHash(ctx, req.Model) // prepare waits for it
	r.describe(ctx)
	return r, nil
}

// close ends what start opened.
func (r *run) close() {
	r.fp32Peak.end()
	r.hashing.end()
	r.lab.Close()
	r.source.Close()
	if r.spilled != nil {
		r.spilled.Close()
	}
}

// run is the state of one job.
type run struct {
	*Pipeline
	req     Request
	lab     *Lab
	source  *graph.Model    // holds the mapped file
	hashing *beside[string] // of the model's file; nil of a body
	spilled *graph.Model    // what preparing made, in a scratch file; nil is in memory
	// Under a ceiling: single operators of the quantized model can be observed.
	observable bool
	roomy      bool         // under a ceiling: both models fit beside each other as they are served
	m          *graph.Model // becomes the quantized model
	float      *graph.Model // the prepared float model
	qdq        *graph.Model // the form whose inner tensors compare with float's
	named      operators    // of the model's file
	rules      assignment
	plans      []*quant.Plan // one a precision
	plan       *quant.Plan   // of all of them
	spec       engine.IOSpec
	evidence   *Evidence
	reuse      *reuse // of the runs of a search; nil is none
	tabled     bool   // the evidence comes from a calibration table: there are no samples
	choices    quant.Choices
	solved     *quant.Solved
	insert     *quant.Insert
	covered    []string     // first output of each of rep.Operators, which may have no names
	entered    map[int]bool // of these, what stands in a body and was entered for it
	progress   Progress
	rep        *report.Report
	// learnUntil is when blocks are no longer begun; zero is never. learnt names the
	// first operators of those that were.
	learnUntil time.Time
	learnt     []string
	fp32Peak   *beside[int64] // of the model's file
	// samplesOf opens the samples of a body; nil: the model is no body.
	samplesOf func() (data.Dataset, error)
	nothing   error // outside of bodies there is nothing to quantize
}

func (r *run) passes(ctx context.Context, table ...quant.Pass) error {
	ran, err := quant.Run(ctx, r.m, table, r.req.Dump)
	for _, s := range ran {
		r.rep.Passes = append(r.rep.Passes, report.Pass{Name: s.Name, Seconds: s.Seconds, Changed: s.Changed, Gain: s.Note})
	}
	return err
}

func (r *run) quantize(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if err := r.spill(); err != nil {
		return err
	}
	if r.req.Calib != "" || r.req.Eval != "" { // while the model is opened to calibrate, one core has time
		r.fp32Peak = r.beginPeak(ctx, r.req.Model)
	}
	if r.req.MinSQNR > 0 {
		return r.keepFloat(ctx)
	}
	return r.rewrite(ctx)
}

// rewrite plans, calibrates and chooses, and makes the prepared model the quantized one.
func (r *run) rewrite(ctx context.Context) error {
	cfg := r.req.Config
	if cfg.Scheme.HalfWeights() {
		r.plan = &quant.Plan{Config: cfg}
		if err := r.fitCeiling(ctx); err != nil {
			return err
		}
		half := quant.Half{Config: cfg, BF16: cfg.Scheme == quant.BF16}
		if !half.BF16 { // which has FP32's range
			var err error
			if half.Only, err = r.fits(ctx, nil); err != nil {
				return err
			}
		}
		if err := r.passes(ctx, half); err != nil {
			return err
		}
		return r.finishRewrite(ctx)
	}
	if err := r.planned(); err != nil {
		return err
	}
	if err := r.fitCeiling(ctx); err != nil {
		return err
	}
	if r.req.Calib != "" {
		if err := r.calibrate(ctx); err != nil {
			return err
		}
		if err := r.decide(ctx); err != nil {
			return err
		}
	}
	half, err := r.halves(ctx)
	if err != nil {
		return err
	}
	r.progress.say("rewrite", 0)
	r.cover()
	if err := r.passes(ctx, r.rewriting(half)...); err != nil {
		return err
	}
	return r.finishRewrite(ctx)
}

// finishRewrite quantizes what stands in bodies.
func (r *run) finishRewrite(ctx context.Context) error {
	changed, err := r.bodies(ctx)
	if err != nil {
		return err
	}
	if r.nothing != nil && changed == 0 {
		return r.nothing
	}
	if r.qdq == nil {
		r.qdq = r.m
	}
	r.stamp()
	return nil
}

// decide runs the passes that choose; what an earlier run of a search has decided
// on the same grounds is taken from there.
func (r *run) decide(ctx context.Context) error {
	known := r.reuse.recall(r)
	if err := r.passes(ctx, r.choosing(known)...); err != nil {
		return err
	}
	r.reuse.keep(r)
	return r.learnBlocks(ctx) // what a block learns is of this run alone
}

// choosing returns the passes that decide from calibration data.
func (r *run) choosing(known map[*quant.Plan]quant.Choices) []quant.Pass {
	cfg := r.req.Config
	var table, late []quant.Pass
	// The static plan comes last: where operators of two precisions read one
	// tensor, its choice is the one that has a range.
	for _, p := range byScheme(r.plans, quant.INT4, quant.INT8Dynamic, quant.INT8) {
		if p.Config.Scheme == quant.INT4 && (!p.Config.Steps() || p.Solves() == quant.AWQ) {
			continue // inputs as they are, or with divisors
		}
		table = append(table, &quant.Ranges{Plan: p, Stats: r.evidence, GEMM: r.lab, Choices: r.choices, Known: known[p], AtOnce: r.lab.atOnce(),
			Progress: func(f float64) { r.progress.say("choose ranges", f) }})
	}
	for _, p := range r.plans {
		static := p.Config.Scheme.Static() && !r.tabled
		if static && cfg.Method == quant.Auto {
			table = append(table, &autoPass{lab: r.lab, plan: p, choices: r.choices, samples: r.openCalib, progress: r.progress})
		}
		switch by := p.Solves(); {
		case by == quant.AWQ:
			late = append(late, &awqPass{r.lab, p, r.evidence, r.solved, r.progress, r.reuse.onDisk()})
		case by != "" && !r.tabled:
			late = append(late, &weightsPass{lab: r.lab, plan: p, choices: r.choices, samples: r.openCalib, progress: r.progress, solved: r.solved, keeping: r.reuse.onDisk(),
				strict: cfg.Weights == by, warn: func(s string) { r.rep.Warnings = append(r.rep.Warnings, s) }})
		}
	}
	table = append(table, late...)
	for _, p := range byScheme(r.plans, quant.INT8) {
		if !cfg.NoBiasCorrection && !r.tabled {
			table = append(table, &biasPass{r.lab, p, r.choices, r.solved, r.openCalib, r.progress, r.lab.frontierBytes()})
		}
	}
	return table
}

// byScheme returns the plans of the schemes, in the order of these.
func byScheme(all []*quant.Plan, schemes ...quant.Scheme) (out []*quant.Plan) {
	for _, s := range schemes {
		for _, p := range all {
			if p.Config.Scheme == s {
				out = append(out, p)
			}
		}
	}
	return out
}

// rewriting returns the passes that write the plan into the graph.
func (r *run) rewriting(half map[*graph.Node]bool) []quant.Pass {
	cfg := r.req.Config
	var table []quant.Pass
	if !cfg.NoEmbeddings {
		table = append(table, r.embeds())
	}
	if cfg.Target.Encoder() {
		table = append(table, quant.Residuals{})
	}
	if len(half) > 0 {
		table = append(table, quant.Half{Config: cfg, Only: half})
	}
	if only := r.rules.with(quant.PrecisionBF16); len(only) > 0 {
		table = append(table, quant.Half{Config: cfg, BF16: true, Only: only})
	}
	for _, plan := range byScheme(r.plans, quant.INT4) {
		p := &quant.BlockWeights{Plan: plan, Solved: r.solved, Choices: r.choices}
		if r.evidence != nil {
			p.Stats = r.evidence
		}
		table = append(table, p)
		if cfg.Weights == quant.AWQ {
			table = append(table, quant.FoldDivisors{})
		}
	}
	for _, plan := range byScheme(r.plans, quant.INT8Dynamic, quant.INT8) {
		r.insert = &quant.Insert{Plan: plan, Choices: r.choices, Solved: r.solved}
		table = append(table, r.insert)
		if plan.Config.Lowered() {
			table = append(table, snapshot{&r.qdq}, quant.Lower{})
		}
	}
	if cfg.Target == quant.ORTCPU && len(byScheme(r.plans, quant.INT8Dynamic, quant.INT8)) > 0 {
		if len(byScheme(r.plans, quant.INT8)) == 0 {
			table = append(table, snapshot{&r.qdq})
		}
		table = append(table, quant.FoldDivisors{}, quant.MergeAttention{})
	}
	return table
}

// snapshot is a pass that keeps a copy of the model as it stands.
type snapshot struct{ to **graph.Model }

func (snapshot) Name() string { return "snapshot" }

func (s snapshot) Run(_ context.Context, m *graph.Model) (quant.Stats, error) {
	*s.to = m.Clone()
	quant.KeepBiases(*s.to) // a portable form, which Insert leaves to Lower
	return quant.Stats{Note: "kept to compare operators with the float model"}, nil
}

// nativeNeeds says in a native file what it is made for.
const nativeNeeds = "fewbit's kernels: libfewbit_cpu on a CPU with AVX2 or, faster, AVX-512 VNNI and BF16, or fewbit on a CUDA device; " +
	"without them ONNX Runtime computes the functions in this file: the same numbers, several times slower"

// stamp writes into the file what made it and what it needs.
func (r *run) stamp() {
	needs := ""
	if r.m.Function(ops.Domain, ops.OpMatMulQuantized) != nil {
		needs = nativeNeeds
	}
	for k, v := range map[string]string{
		"fewbit.version": r.Version, "fewbit.scheme": r.req.Config.Name(), "fewbit.target": r.req.Config.Target.Form(),
		"fewbit.source_sha256": r.rep.Model.SHA256, "fewbit.needs": needs,
	} {
		if v != "" {
			r.m.Metadata[k] = v
		}
	}
}

func (r *run) calibrate(ctx context.Context) error {
	if r.reuse.covers(r) {
		r.evidence = r.reuse.evidence
		return nil
	}
	t, ok, err := OpenTable(r.req.Calib)
	if err != nil {
		return fmt.Errorf("calibration table: %w", err)
	}
	if ok {
		r.tabled = true
		if w := r.req.Config.Weights; w.NeedsData() {
			return fmt.Errorf("%w: weights %s are solved for by samples, and a calibration table holds none: give the data", quant.ErrConfig, w)
		}
		r.rep.Warnings = append(r.rep.Warnings, "calibrated from a table: without samples there is no smoothing, no bias correction and no choice by operators' outputs")
		r.evidence, err = TableEvidence(t, r.rep.Model.SHA256, r.plan)
		return err
	}
	if len(r.plans) == 0 {
		return nil // tables of embeddings alone: there is nothing to observe
	}
	ds, err := r.openCalib()
	if err != nil {
		return fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	r.evidence, err = Calibrate(ctx, r.lab, r.m, r.plan, ds, true, r.progress)
	if err != nil {
		return fmt.Errorf("calibration: %w", err)
	}
	r.reuse.observed(r.evidence)
	return nil
}

func (r *run) samples() int {
	if r.req.Samples > 0 {
		return r.req.Samples
	}
	return DefaultSamples
}

func (r *run) dataOptions() data.Options {
	return data.Options{Spec: r.spec, ModelDir: filepath.Dir(r.req.Model), MaxTokens: r.req.MaxTokens, CaptureKey: r.CaptureKey}
}

func (r *run) openCalib() (data.Dataset, error) {
	if r.samplesOf != nil {
		return r.samplesOf()
	}
	o := r.dataOptions()
	o.Samples = r.samples()
	return data.Open(r.req.Calib, o)
}

// openEval opens the evaluation data: of the same file as calibration, the
// samples that did not calibrate.
func (r *run) openEval() (data.Dataset, error) {
	o := r.dataOptions()
	o.Samples = r.req.EvalSamples
	path := r.req.Eval
	if path == "" {
		path = r.req.Calib
	}
	if path == r.req.Calib {
		o.Skip = r.samples()
		ds, err := data.Open(path, o)
		switch {
		case err == nil || !errors.Is(err, data.ErrEmpty):
			return ds, err
		case r.req.Eval != "":
			return nil, fmt.Errorf("%w: it is the calibration data, of which all samples calibrate (%d at most) and none is left to judge; give other data, or fewer samples", data.ErrEmpty, r.samples())
		}
		// Every sample calibrated and there is no other data: better measured
		// on those than not at all, and said.
		r.rep.Warnings = append(r.rep.Warnings, "judged on the calibration data itself, which flatters; give "+r.req.Words.eval())
		o.Skip = 0
	}
	return data.Open(path, o)
}

// SpecOf describes a model's inputs and outputs without opening a session.
func SpecOf(m *graph.Model) engine.IOSpec {
	list := func(vs []*graph.Value) []engine.IO {
		out := make([]engine.IO, len(vs))
		for i, v := range vs {
			io := engine.IO{Name: v.Name, Type: v.Type}
			for _, d := range v.Dims {
				io.Dims = append(io.Dims, d.N)
				io.DimNames = append(io.DimNames, d.Name)
			}
			out[i] = io
		}
		return out
	}
	return engine.IOSpec{Inputs: list(m.Graph.Inputs), Outputs: list(m.Graph.Outputs), Metadata: m.Metadata}
}

// finish saves the model beside its destination, judges it and publishes it.
func (r *run) finish(ctx context.Context) error {
	st, err := newStage(r.req.Out, r.lab.dir.path)
	if err != nil {
		return err
	}
	defer st.discard()
	r.progress.say("save", 0)
	if err := r.m.Save(st.path, onnx.SaveOptions{Release: r.lab.release}); err != nil {
		return err
	}
	if err := r.describeResult(ctx, st.path); err != nil {
		return err
	}
	r.receipt()
	if r.req.Calib != "" && !r.tabled || r.req.Eval != "" {
		debug.FreeOSMemory() // what solving took, before the sessions take theirs
		if err := r.judge(ctx, st.path); err != nil {
			return err
		}
	} else {
		r.rep.Warnings = append(r.rep.Warnings, "not judged: there is no data; give "+r.req.Words.eval()+" to measure what was lost")
	}
	if v := r.rep.Judge(r.req.Force); v.Status == report.Refused {
		return fmt.Errorf("%w: %s (%s keeps it)", ErrRefused, v.Reasons[0], r.req.Words.force())
	}
	if r.req.Out == "" {
		return nil
	}
	return st.publish()
}
