package pipeline

import (
	"context"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// PruneRequest asks for a float model with zeros among its weights.
type PruneRequest struct {
	// Model is the path of the float model, Out where the sparse one goes.
	Model, Out string
	// Sparsity of each operator that is pruned.
	Sparsity quant.Sparsity
	// Method; "" is SparseGPT with calibration data and Magnitude without.
	Method quant.PruneMethod
	// Exclude lists operator names and types that stay as they are.
	Exclude []string
	// Calib and Eval are paths of data sets; "" is none. Eval "" with Calib: the
	// samples that do not calibrate.
	Calib, Eval                     string
	Samples, EvalSamples, MaxTokens int
	// MaxLoss is the accuracy budget past which nothing is written; 0 is none.
	MaxLoss float64
	Command []string
	Words   Words
}

// Prune makes some weights zero, measures what that lost and writes the model. The
// report is there with ErrRefused too.
func (p *Pipeline) Prune(ctx context.Context, req PruneRequest, progress Progress) (*report.Report, error) {
	if err := req.Sparsity.Check(); err != nil {
		return nil, err
	}
	if req.Method == "" {
		req.Method = quant.Magnitude
		if req.Calib != "" {
			req.Method = quant.SparseGPT
		}
	}
	if req.Method.NeedsData() && req.Calib == "" {
		return nil, fmt.Errorf("%w: method %s looks at the operators' inputs: give %s, or use method %s", quant.ErrConfig, req.Method, req.Words.calib(), quant.Magnitude)
	}
	if req.Calib != "" {
		if _, ok, err := OpenTable(req.Calib); ok || err != nil {
			return nil, fmt.Errorf("%w: a calibration table holds no samples: give the data", quant.ErrConfig)
		}
	}
	cfg, err := quant.Config{Target: quant.QDQ, Exclude: req.Exclude}.WithDefaults()
	if err != nil {
		return nil, err
	}
	loss := req.MaxLoss
	if loss == 0 {
		loss = 1 // any loss is within it; numbers that are none are refused all the same
	}
	quiet := *p
	quiet.PeakMemory = nil // zeros are stored and multiplied like other numbers
	r, err := quiet.start(ctx, Request{Model: req.Model, Out: req.Out, Config: cfg, Calib: req.Calib, Eval: req.Eval, Samples: req.Samples,
		EvalSamples: req.EvalSamples, Precision: FP32, MaxTokens: req.MaxTokens, MaxLoss: loss, NoLatency: true, Command: req.Command, Words: req.Words}, progress)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	ops, left := quant.Prunable(r.m, req.Sparsity, r.req.Config.Exclude)
	if len(ops) == 0 {
		why := "the model has no MatMul, Gemm or Conv with a constant weight"
		if len(left) > 0 {
			why = fmt.Sprintf("operator %q: %s", left[0].Node.Name, left[0].Rule)
		}
		return nil, fmt.Errorf("%w: nothing to prune: %s", quant.ErrNothing, why)
	}
	r.rep.Recipe = report.Recipe{Scheme: "sparse", Method: string(req.Method), Granularity: req.Sparsity.String()}
	r.plan, r.qdq = &quant.Plan{Config: cfg, Ops: ops}, r.m
	pass := &prunePass{run: r, method: req.Method, sparsity: req.Sparsity, ops: ops}
	if err := r.passes(ctx, pass); err != nil {
		return nil, err
	}
	for k, v := range map[string]string{"fewbit.version": r.Version, "fewbit.sparsity": req.Sparsity.String(), "fewbit.pruning": string(req.Method), "fewbit.source_sha256": r.rep.Model.SHA256} {
		if v != "" {
			r.m.Metadata[k] = v
		}
	}
	if err := pass.describe(ctx, left); err != nil {
		return nil, err
	}
	err = r.finish(ctx)
	if req.MaxLoss == 0 && r.rep.Verdict.Status == report.Accepted { // nobody has asked for a verdict
		r.rep.Gate, r.rep.Verdict = eval.Gate{}, report.Verdict{}
	}
	return r.rep, err
}

// prunePass zeroes weights of the model.
type prunePass struct {
	*run
	method   quant.PruneMethod
	sparsity quant.Sparsity
	ops      []*quant.Op
}

var _ quant.Pass = (*prunePass)(nil)

func (*prunePass) Name() string { return "prune" }

func (p *prunePass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	var elements, zeros int64
	done := 0
	for from := 0; from < len(p.ops); {
		group, next, err := p.observed(ctx, m, from)
		if err != nil {
			return quant.Stats{}, err
		}
		for _, s := range group {
			op := s.ops[0]
			t := m.Graph.Init(op.W)
			w, err := t.F32()
			if err == nil {
				w, err = quant.Prune(ctx, p.lab, op, t.Dims, w, s.gram, p.method, p.sparsity)
			}
			if err != nil {
				return quant.Stats{}, fmt.Errorf("operator %q: %w", op.Node.Name, err)
			}
			m.Graph.SetInit(op.W, tensor.From(w, t.Dims...))
			elements += int64(len(w))
			zeros += quant.Zeros(w)
			s.gram = nil
			done++
			p.progress.say("prune", float64(done)/float64(len(p.ops)))
		}
		from = next
	}
	return quant.Stats{Changed: done, Note: fmt.Sprintf("%d weights, %.1f %% of their %d numbers are zero", done, 100*float64(zeros)/float64(max(elements, 1)), elements)}, nil
}

// observed returns the next operators with the sums of their inputs, as many as
// fit into memory at a time.
func (p *prunePass) observed(ctx context.Context, m *graph.Model, from int) (group []*source, next int, err error) {
	if !p.method.NeedsData() {
		return []*source{{ops: p.ops[from : from+1]}}, from + 1, nil
	}
	shared := map[string]*quant.Gram{} // matrix products that read one tensor have one
	var observe []*source
	bytes := int64(0)
	for next = from; next < len(p.ops); next++ {
		op := p.ops[next]
		s := &source{tensor: op.X[0], ops: p.ops[next : next+1]}
		if op.Kind == quant.Linear {
			s.gram = shared[op.X[0]]
		}
		if s.gram == nil {
			if s.gram, err = quant.GramOf(op, m.Graph.Init(op.W).Dims); err != nil {
				return nil, 0, fmt.Errorf("operator %q: %w: exclude it, or use method %s", op.Node.Name, err, quant.Magnitude)
			}
			if bytes += s.gram.Bytes(); len(group) > 0 && bytes > gramBudget {
				break
			}
			if op.Kind == quant.Linear {
				shared[op.X[0]] = s.gram
			}
			observe = append(observe, s)
		}
		group = append(group, s)
	}
	// The float model gives the inputs: pruning an operator moves those behind it,
	// and the next group would be observed with that.
	w := &weightsPass{lab: p.lab, samples: p.openCalib}
	if err := w.collect(ctx, p.float, observe, func(f float64) { p.progress.say("observe inputs", f) }); err != nil {
		return nil, 0, err
	}
	for _, s := range observe {
		if least := int64(math.Ceil(gramLeast * float64(s.gram.K))); s.gram.Rows < least {
			return nil, 0, fmt.Errorf("%w: operator %q saw %d rows of %d channels and needs %d: give more samples, exclude it, or use method %s",
				ErrFewSamples, s.ops[0].Node.Name, s.gram.Rows, s.gram.K, least, quant.Magnitude)
		}
	}
	return group, next, nil
}

// describe puts what was done into the report.
func (p *prunePass) describe(ctx context.Context, left []quant.Float) (err error) {
	s := &report.Sparsity{Pattern: p.sparsity.String(), Method: string(p.method), Weights: len(p.ops)}
	add := func(n *graph.Node, rule string) {
		op := report.Operator{Name: n.Name, Op: n.Op, Precision: "fp32", Rule: rule, SQNR: report.Num(nan), Cosine: report.Num(nan)}
		if v, err := p.m.Graph.Init(n.In(1)).F32(); err == nil { // a weight that is left may be of another type
			zeros := quant.Zeros(v)
			op.Zeros = float64(zeros) / float64(max(len(v), 1))
			s.All += int64(len(v))
			s.AllZeros += zeros
			if rule == "" {
				s.Elements += int64(len(v))
				s.Zeros += zeros
			}
		}
		p.rep.Operators = append(p.rep.Operators, op)
		p.covered = append(p.covered, n.Outputs[0])
	}
	for _, op := range p.ops {
		add(op.Node, "")
	}
	for _, f := range left {
		add(f.Node, f.Rule)
	}
	p.progress.say("compress", 0)
	if s.CompressedBefore, err = compressed(ctx, p.float); err == nil {
		s.CompressedAfter, err = compressed(ctx, p.m)
	}
	p.rep.Sparsity = s
	return err
}

// compressed is the size that Zstandard's fastest level makes of the weights.
func compressed(ctx context.Context, m *graph.Model) (int64, error) {
	var n counting
	z, err := zstd.NewWriter(&n, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return 0, fmt.Errorf("compress the weights: %w", err)
	}
	for _, name := range m.Graph.Inits() {
		if err = ctx.Err(); err == nil {
			_, err = z.Write(m.Graph.Init(name).Data)
		}
		if err != nil {
			z.Close()
			return 0, fmt.Errorf("compress the weights: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return 0, fmt.Errorf("compress the weights: %w", err)
	}
	return int64(n), nil
}

// counting counts what is written to it.
type counting int64

func (c *counting) Write(b []byte) (int, error) {
	*c += counting(len(b))
	return len(b), nil
}
