package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
)

// DefaultTimeLimit of a search.
const DefaultTimeLimit = 10 * time.Minute

// ErrGoal: the search ended without a model that meets what was asked for.
var ErrGoal = errors.New("nothing that was tried meets what was asked for")

// SearchRequest asks for the fastest model within a loss.
type SearchRequest struct {
	// Model is the float model, Out where the best so far lies, Journal the file of
	// what was tried: a second start with the same model, data and options goes on.
	Model, Out, Journal string
	Calib, Eval         string // Eval "": the samples of Calib that do not calibrate
	// Config holds what is the same in each trial: method, granularity, exclusions
	// and rules, which win over those of the search. Its scheme and target do not count.
	Config quant.Config
	// Targets are the forms to choose from; none is ORTCPU.
	Targets []quant.Target
	// MaxLoss is the budget as a share of FP32's accuracy, or of the cosine without
	// labels; 0 is DefaultMaxLoss. SLO and MaxBytes ask for nothing when 0.
	MaxLoss  float64
	SLO      time.Duration
	MaxBytes int64
	// Samples calibrate; EvalSamples judge, 0 is as many as the time allows.
	Samples, EvalSamples, MaxTokens int
	Precision                       Precision
	// MaxMemory is the ceiling in bytes on the resident memory of this process while
	// the search goes on; 0 is none. FP32 and a trial must fit as they are served.
	MaxMemory int64
	// TimeLimit of this start; 0 is DefaultTimeLimit.
	TimeLimit time.Duration
	// Restart forgets what the journal holds.
	Restart bool
	// OnTrial is told the state after each trial that was made; may be nil.
	OnTrial func(report.Search) error
	Command []string
	Words   Words
}

// Search tries ways to quantize the model, the safest first, measures each one's
// loss and speed, and keeps the best that is accepted at Out from the first on.
// The report is there whenever anything was tried, with ErrGoal and with ctx's
// error too.
func (p *Pipeline) Search(ctx context.Context, req SearchRequest, progress Progress) (*report.Search, error) {
	if len(req.Targets) == 0 {
		req.Targets = []quant.Target{quant.ORTCPU}
	}
	if req.MaxLoss == 0 {
		req.MaxLoss = DefaultMaxLoss
	}
	if req.TimeLimit == 0 {
		req.TimeLimit = DefaultTimeLimit
	}
	var err error
	for i, t := range req.Targets {
		c := req.Config
		c.Scheme, c.Target = quant.INT8, t
		if c, err = c.WithDefaults(); err != nil {
			return nil, err
		}
		req.Targets[i], req.Config = c.Target, c
	}
	if req.Calib == "" {
		return nil, fmt.Errorf("%w: give %s", ErrNeedsCalibration, req.Words.calib())
	}
	if _, ok, err := OpenTable(req.Calib); ok || err != nil {
		return nil, fmt.Errorf("%w: a calibration table holds no samples to judge on: give the data", quant.ErrConfig)
	}
	s := &searching{Pipeline: p, req: req, progress: progress, begin: time.Now(), bases: map[quant.Target]*run{},
		goal: report.Goal{MaxLoss: req.MaxLoss, SLOMS: float64(req.SLO) / float64(time.Millisecond), MaxBytes: req.MaxBytes}}
	defer s.close()
	var gov *governor
	governed := ctx
	if req.MaxMemory > 0 {
		if req.MaxMemory < MinCeiling {
			return nil, fmt.Errorf("%w: %s is %s: give 0 for none, or at least %s", quant.ErrConfig, req.Words.maxMemory(), report.Bytes(req.MaxMemory), report.Bytes(MinCeiling))
		}
		s.progress = func(phase string, f float64) {
			s.phase.Store(phase)
			progress.say(phase, f)
		}
		governed, gov = govern(ctx, req.MaxMemory, s.unmap, &s.phase)
		defer func() { _, _, _ = gov.end(governed, nil) }()
	}
	limited, cancel := context.WithTimeout(governed, req.TimeLimit)
	defer cancel()
	if err := s.open(limited); err != nil {
		if cause := context.Cause(governed); errors.Is(cause, ErrCeiling) {
			err = cause
		}
		return nil, s.ended(ctx, err)
	}
	err = s.search.Run(limited)
	if gov != nil {
		s.out.Memory = &report.Memory{Ceiling: req.MaxMemory}
		if s.out.Memory.RunPeak, s.out.Memory.RunAnonymous, err = gov.end(governed, err); s.out.Memory.RunPeak > req.MaxMemory {
			s.warn(fmt.Sprintf("the search took %s for a moment, between two looks at its memory: more than %s", report.Bytes(s.out.Memory.RunPeak), req.Words.maxMemory()))
		}
	}
	switch {
	case err == nil:
		if err := s.kept.remove(); err != nil { // nothing is left to solve for
			s.warn(err.Error())
		}
	case ctx.Err() != nil:
		s.out.Stopped = "interrupted"
	case errors.Is(err, ErrCeiling):
		s.out.Stopped = "memory ceiling"
	case limited.Err() != nil && errors.Is(err, limited.Err()):
		s.out.Stopped, err = "time limit", nil
	}
	s.describe()
	if err == nil {
		err = s.verdict()
	}
	return &s.out, err
}

// ended words the end of the time before anything was tried.
func (s *searching) ended(ctx context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: the time limit of %v ended before the first trial; give more time", ErrGoal, s.req.TimeLimit)
	}
	return err
}

// searching is the state of one search.
type searching struct {
	*Pipeline
	req      SearchRequest
	progress Progress
	begin    time.Time
	goal     report.Goal
	journal  *search.Journal
	search   *search.Search
	mapped   sync.Mutex            // of bases, which the governor looks at
	bases    map[quant.Target]*run // prepared
	kept     *kept                 // solved weights, beside the journal
	judge    *judge
	best     *report.Trial // whose file lies at req.Out
	phase    atomic.Value  // for who passes the ceiling
	out      report.Search
}

var _ search.Lab = (*searching)(nil)

func (s *searching) close() {
	if s.judge != nil {
		s.judge.close()
	}
	s.mapped.Lock()
	for _, r := range s.bases {
		r.close()
	}
	clear(s.bases)
	s.mapped.Unlock()
	if s.journal != nil {
		s.journal.Close()
	}
}

// open reads the journal and finds out what can be tried.
func (s *searching) open(ctx context.Context) error {
	base, err := s.base(ctx, s.req.Targets[0])
	if err != nil {
		return err
	}
	if _, err := base.named.assign(base.m, s.req.Config.Rules); err != nil {
		return err
	}
	key, err := s.key(ctx, base.rep.Model.SHA256)
	if err != nil {
		return err
	}
	if s.journal, err = search.OpenJournal(s.req.Journal, key, s.req.Restart); err != nil {
		return err
	}
	if err := s.openKept(ctx, base); err != nil {
		return err
	}
	s.out = report.Search{Created: time.Now().UTC(), Command: s.req.Command, Machine: base.rep.Machine, Model: base.rep.Model, Goal: s.goal, Limit: s.req.TimeLimit.Seconds()}
	space := search.Space{Targets: s.req.Targets, Static: true, Tables: quant.HasTables(base.m, s.req.Config), Rules: s.req.Config.Rules}
	plan, err := quant.NewPlan(base.m, base.req.Config)
	switch {
	case errors.Is(err, quant.ErrNothing):
		space.Static = false
	case err != nil:
		return err
	}
	for _, op := range plan.Ops {
		space.Linear = space.Linear || op.Kind == quant.Linear
		space.Conv = space.Conv || op.Kind == quant.Conv
	}
	// On encoders learning has gained nothing over GPTQ (docs/numerics.md): who asks for it gets it.
	w := s.req.Config.Weights
	space.Learns = w == quant.BRECQ || space.Conv && (w == quant.AutoWeights || w == quant.GPTQ) && base.m.Opset() >= reconstruct.MinOpset && base.samples() >= reconstruct.MinSamples
	// What should lie at Out and does not must be made again: a process may die
	// between publishing and its line.
	if s.best, err = s.published(ctx); err != nil {
		return err
	}
	tried := maps.Clone(s.journal.Trials)
	maps.DeleteFunc(tried, func(_ string, t report.Trial) bool {
		return t.Accepted && (s.best == nil || search.Better(s.goal, t, *s.best))
	})
	s.search = &search.Search{Goal: s.goal, Space: space, Lab: s, Tried: tried, OnTrial: s.onTrial}
	return nil
}

// keptName is what the folder of solved weights adds to the journal's name.
const keptName = ".weights"

// openKept opens the folder of solved weights, under the journal's lock.
func (s *searching) openKept(ctx context.Context, base *run) error {
	data, err := dataDigest(ctx, s.req.Calib)
	if err != nil {
		return err
	}
	m := base.rep.Machine
	b, err := json.Marshal(struct {
		Version, Model, Data, CPU, Engine string
		Threads, Samples, Tokens          int
		Precision                         Precision
		Device                            bool
	}{s.Version, base.rep.Model.SHA256, data, m.CPU, m.Engine, m.Threads, base.samples(), s.req.MaxTokens, s.req.Precision, s.Device != nil})
	if err != nil {
		return fmt.Errorf("digest of the options: %w", err)
	}
	sum := sha256.Sum256(b)
	if s.kept, err = openKept(s.req.Journal+keptName, hex.EncodeToString(sum[:]), s.req.Restart, s.warn); err != nil {
		return err
	}
	s.keep(base)
	return nil
}

// keep has r's solved weights kept.
func (s *searching) keep(r *run) {
	if s.kept != nil {
		r.reuse.keeping = &keeping{s.kept, newDigests(r.float, r.rep.Model.SHA256)}
	}
}

// published returns the trial whose model lies at Out.
func (s *searching) published(ctx context.Context) (*report.Trial, error) {
	if len(s.journal.Trials) == 0 {
		return nil, nil
	}
	if _, err := os.Stat(s.req.Out); err != nil {
		return nil, nil //nolint:nilerr // what is not there was not published
	}
	sum, err := fileSHA256(ctx, s.req.Out)
	if err != nil {
		return nil, err
	}
	for _, t := range s.journal.Trials {
		if t.SHA256 == sum && t.Accepted {
			return &t, nil
		}
	}
	return nil, nil
}

// key is a digest of all that the trials depend on.
func (s *searching) key(ctx context.Context, model string) (string, error) {
	var data []string
	for _, path := range []string{s.req.Calib, s.req.Eval} {
		d := ""
		if path != "" {
			var err error
			if d, err = dataDigest(ctx, path); err != nil {
				return "", err
			}
		}
		data = append(data, d)
	}
	c := s.req.Config
	c.Target, c.Rules = "", slices.Clone(c.Rules)
	for i := range c.Rules {
		c.Rules[i].Where = "" // the line says nothing
	}
	b, err := json.Marshal(struct {
		Version, Model              string
		Data                        []string
		Config                      quant.Config
		Targets                     []quant.Target
		Goal                        report.Goal
		Samples, Eval, Tokens, Lots int
		Precision                   Precision
		Memory                      int64 `json:",omitempty"` // which refuses some trials
	}{s.Version, model, data, c, s.req.Targets, s.goal, s.req.Samples, s.req.EvalSamples, s.req.MaxTokens, s.Threads, s.req.Precision, s.req.MaxMemory})
	if err != nil {
		return "", fmt.Errorf("digest of the options: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// dataDigest is that of a file, or of the names and sizes in a folder. Links are what
// they lead to, as for who reads the data.
func dataDigest(ctx context.Context, path string) (string, error) {
	if st, err := os.Stat(path); err != nil || !st.IsDir() {
		return fileSHA256(ctx, path)
	}
	h, files := sha256.New(), os.DirFS(path)
	err := fs.WalkDir(files, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := fs.Stat(files, p)
		if errors.Is(err, fs.ErrNotExist) { // a link to nothing
			return nil
		}
		if err == nil {
			_, err = fmt.Fprintf(h, "%q %d\n", p, info.Size())
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// base returns the model prepared for a form.
func (s *searching) base(ctx context.Context, t quant.Target) (*run, error) {
	if r := s.bases[t]; r != nil {
		return r, nil
	}
	cfg := s.req.Config
	cfg.Scheme, cfg.Target, cfg.Rules = quant.INT8, t, nil
	if cfg.Weights == quant.BRECQ { // where blocks are learned says the candidate
		cfg.Weights, cfg.Learn = quant.GPTQ, nil
	}
	r, err := s.start(ctx, Request{Model: s.req.Model, Config: cfg, Calib: s.req.Calib, Eval: s.req.Eval, Samples: s.req.Samples,
		EvalSamples: s.req.EvalSamples, Precision: s.req.Precision, MaxTokens: s.req.MaxTokens, MaxLoss: s.req.MaxLoss, MaxMemory: s.req.MaxMemory, Words: s.req.Words}, s.progress)
	if err != nil {
		return nil, err
	}
	if s.req.MaxMemory > 0 {
		r.lab.release = s.unmap
	}
	if err = r.prepare(ctx); err == nil {
		err = r.spill()
	}
	if err != nil {
		r.close()
		return nil, err
	}
	r.reuse = newReuse()
	s.keep(r)
	s.mapped.Lock()
	defer s.mapped.Unlock()
	s.bases[t] = r
	return r, nil
}

// unmap lets go of what the prepared models have mapped.
func (s *searching) unmap() {
	s.mapped.Lock()
	defer s.mapped.Unlock()
	for _, r := range s.bases {
		r.unmap()
	}
}

// fork returns a run of the prepared model with settings of its own. It shares the
// lab, and what other runs have observed and decided.
func (r *run) fork(cfg quant.Config) *run {
	f := *r
	f.req.Config = cfg
	f.m = r.m.Clone()
	f.choices, f.solved = quant.Choices{}, quant.NewSolved()
	f.rep = &report.Report{Created: r.rep.Created, Model: r.rep.Model, Recipe: r.rep.Recipe, Machine: r.rep.Machine}
	f.rules, f.plans, f.plan, f.qdq, f.evidence, f.insert, f.covered, f.entered, f.learnt = nil, nil, nil, nil, nil, nil, nil, nil, nil
	return &f
}

// onTrial records a trial and shows it.
func (s *searching) onTrial(t report.Trial, known bool) error {
	if known {
		s.out.Resumed++
		return nil
	}
	if err := s.journal.Add(t); err != nil {
		return err
	}
	s.describe()
	if s.req.OnTrial == nil {
		return nil
	}
	return s.req.OnTrial(s.out)
}

// describe brings the report up to date.
func (s *searching) describe() {
	o := &s.out
	o.Trials = slices.Clone(s.search.Trials)
	o.Front = search.Front(o.Trials)
	o.Best = 0
	if s.best != nil {
		for _, t := range o.Trials {
			if t.Key == s.best.Key {
				o.Best = t.Number
			}
		}
	}
	o.Seconds = time.Since(s.begin).Seconds()
	if s.kept != nil {
		o.Kept, o.Saved = s.kept.Hits, s.kept.Saved
	}
	o.Samples = s.journal.Head.Samples
	if j := s.judge; j != nil {
		o.Metric, o.RefAccuracy, o.Available = j.metric, j.accuracy, j.available
	}
	if o.Metric == "" {
		o.Metric = s.journal.Head.Metric
	}
	o.Available = max(o.Available, o.Samples)
}

// verdict says whether the best meets what was asked for.
func (s *searching) verdict() error {
	v := report.Verdict{Status: report.Accepted}
	best := s.out.BestTrial()
	miss := func(f string, a ...any) { v.Reasons = append(v.Reasons, fmt.Sprintf(f, a...)) }
	switch {
	case best == nil:
		miss("no trial is proven to lose at most %.3g %% of the %s and not to be slower than FP32", 100*s.goal.MaxLoss, s.out.Metric)
	default:
		if s.goal.SLOMS > 0 && float64(best.P99MS) > s.goal.SLOMS {
			miss("the best has a 99th percentile of %.1f ms, past the target of %v ms", float64(best.P99MS), s.goal.SLOMS)
		}
		if s.goal.MaxBytes > 0 && best.Bytes > s.goal.MaxBytes {
			miss("the best has %s where %s are asked for", report.Bytes(best.Bytes), report.Bytes(s.goal.MaxBytes))
		}
	}
	if len(v.Reasons) > 0 {
		v.Status = report.Refused
	}
	s.out.Verdict = v
	if v.Status == report.Accepted {
		return nil
	}
	more := ""
	if s.out.Stopped != "" {
		more = "; the time limit ended the search, a second start goes on"
	}
	return fmt.Errorf("%w: %s%s", ErrGoal, v.Reasons[0], more)
}
