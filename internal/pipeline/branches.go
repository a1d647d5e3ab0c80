package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// branchNames are the bodies of an If and the condition under which they run.
var branchNames = []struct {
	attr string
	when bool
}{{"then_branch", true}, {"else_branch", false}}

// branches quantizes the bodies of the model's Ifs, each as a model of its own whose
// inputs are what it reads from outside. Its samples are these values, as the float
// model computes them for the samples that take the branch, so that all that is
// done outside is done inside by the same passes. A body that cannot be stays in
// float, and the report says why. It returns how many operators it changed.
func (r *run) branches(ctx context.Context) (int, error) {
	changed := 0
	for _, n := range r.float.Graph.Nodes {
		if !n.Is("If") || len(n.Outputs) == 0 || !quant.Multiplies(n) {
			continue
		}
		at := slices.IndexFunc(r.m.Graph.Nodes, func(o *graph.Node) bool { return len(o.Outputs) > 0 && o.Outputs[0] == n.Outputs[0] })
		if at < 0 {
			continue
		}
		for _, b := range branchNames {
			sub, err := r.branch(ctx, n, b.attr, b.when)
			if err == nil {
				err = sub.inside(ctx)
			}
			switch {
			case err == nil:
				if err = r.m.SetBody(r.m.Graph.Nodes[at], b.attr, sub.m); err == nil && sub.m.Function(ops.Domain, ops.OpMatMulQuantized) != nil {
					err = ops.Install(r.m)
				}
				if err == nil {
					err = r.m.Check()
				}
				if err != nil {
					return changed, fmt.Errorf("%s of %q: %w", b.attr, n.Name, err)
				}
				changed += r.took(sub)
			case ctx.Err() != nil:
				return changed, err
			case errors.Is(err, quant.ErrNothing), errors.Is(err, graph.ErrInvalid), errors.Is(err, ErrCalibration), errors.Is(err, ErrFewSamples):
				r.left(n, b.attr, err)
			default:
				return changed, fmt.Errorf("%s of %q: %w", b.attr, n.Name, err)
			}
		}
	}
	if changed > 0 {
		r.m.Graph.Prune() // weights that only bodies read
		r.rep.Integer = report.CountMACs(r.rep.Operators)
	}
	return changed, nil
}

// branch is the run of one body.
func (r *run) branch(ctx context.Context, n *graph.Node, attr string, when bool) (*run, error) {
	m, err := r.float.Body(n, attr)
	if err != nil {
		return nil, err
	}
	req := r.req
	req.Eval, req.MaxMemory = "", 0
	sub := &run{Pipeline: r.Pipeline, req: req, lab: r.lab, m: m, source: r.source, tabled: r.tabled, progress: r.progress,
		choices: quant.Choices{}, solved: quant.NewSolved(), rep: &report.Report{}}
	sub.samplesOf = func() (data.Dataset, error) { return r.taken(ctx, n, m, when) }
	return sub, nil
}

// inside prepares and quantizes a body.
func (r *run) inside(ctx context.Context) error {
	if r.req.Calib != "" {
		if _, table, err := OpenTable(r.req.Calib); err != nil {
			return err
		} else if table {
			return fmt.Errorf("%w: a table holds nothing of what is inside it", ErrCalibration)
		}
	}
	r.named = operatorsOf(r.m)
	if err := r.passes(ctx, quant.Prepare(r.req.Config)...); err != nil {
		return err
	}
	// Names and rules were checked against the whole model: of those, some are here.
	cfg := &r.req.Config
	has := func(match func(string) bool) bool {
		return slices.ContainsFunc(r.m.Graph.Nodes, func(n *graph.Node) bool { return match(n.Name) || match(n.Op) })
	}
	cfg.Exclude = slices.DeleteFunc(slices.Clone(cfg.Exclude), func(e string) bool { return !has(func(s string) bool { return s == e }) })
	cfg.Rules = slices.DeleteFunc(slices.Clone(cfg.Rules), func(u quant.Rule) bool { return !quant.IsClass(u.Match) && !has(u.Matches) })
	r.spec = SpecOf(r.m)
	r.float = r.m.Clone()
	return r.rewrite(ctx)
}

// took enters into the report what became of a body, and returns how many of its
// operators are quantized.
func (r *run) took(sub *run) (quantized int) {
	for i, out := range sub.covered {
		op := sub.rep.Operators[i]
		at := slices.IndexFunc(r.rep.Operators, func(o report.Operator) bool { return o.Name == op.Name && op.Name != "" && o.Rule != "" })
		if at < 0 {
			at = slices.Index(r.covered, out)
		}
		if at >= 0 {
			r.rep.Operators[at], r.covered[at] = op, out
		}
		if op.Precision != string(quant.PrecisionFP32) {
			quantized++
		}
	}
	r.rep.Warnings = append(r.rep.Warnings, sub.rep.Warnings...)
	return quantized
}

// left says in the report why the operators of a body stay in float.
func (r *run) left(n *graph.Node, attr string, why error) {
	for _, p := range n.Attr(attr).GetG().GetNode() {
		if len(p.GetOutput()) == 0 {
			continue
		}
		at := slices.Index(r.covered, p.GetOutput()[0])
		if at >= 0 && strings.HasSuffix(r.rep.Operators[at].Rule, quant.Unobserved) {
			r.rep.Operators[at].Rule = fmt.Sprintf("it is in the %s of If %q: %v", attr, n.Name, why)
		}
	}
}

// takenSamples are the inputs of a body for the samples of the whole model that run it.
type takenSamples struct {
	data.Dataset
	sess    engine.Session
	taps    []string
	inputs  []string
	cond    string
	when    bool
	skipped int
}

// taken opens the samples of body, which n runs when its condition is as given.
func (r *run) taken(ctx context.Context, n *graph.Node, body *graph.Model, when bool) (data.Dataset, error) {
	t := &takenSamples{cond: n.In(0), when: when}
	if r.float.Graph.Init(t.cond) != nil {
		return nil, fmt.Errorf("%w: its condition is a constant", ErrCalibration)
	}
	given := map[string]bool{}
	for _, v := range r.float.Graph.Inputs {
		given[v.Name] = true
	}
	types := map[string]tensor.DType{t.cond: tensor.Bool}
	for _, v := range body.Graph.Inputs {
		t.inputs = append(t.inputs, v.Name)
		types[v.Name] = v.Type
	}
	for _, name := range sortedKeys(types) {
		if !given[name] {
			t.taps = append(t.taps, name)
		}
	}
	var err error
	if len(t.taps) > 0 {
		part := upTo(r.float, t.taps)
		for _, o := range part.Graph.Outputs {
			o.Type = types[o.Name]
		}
		if t.sess, err = r.lab.Open(ctx, part, nil, engine.Options{ShrinkMemory: true}); err != nil {
			return nil, err
		}
	}
	if t.Dataset, err = r.openCalib(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Next implements data.Dataset.
func (t *takenSamples) Next(ctx context.Context) (data.Sample, error) {
	for {
		s, err := t.Dataset.Next(ctx)
		if errors.Is(err, io.EOF) && t.skipped == t.Dataset.Len() {
			return s, fmt.Errorf("%w: none of %d samples runs it", ErrCalibration, t.skipped)
		}
		if err != nil {
			return s, err
		}
		feeds, err := t.inside(ctx, s.Feeds)
		if err != nil {
			return s, fmt.Errorf("sample %s: %w", s.ID, err)
		}
		if feeds == nil {
			t.skipped++
			continue
		}
		s.Feeds = feeds
		return s, nil
	}
}

// inside returns what the body reads, nil when it does not run.
func (t *takenSamples) inside(ctx context.Context, in engine.Feeds) (engine.Feeds, error) {
	values := engine.Feeds{}
	if t.sess != nil {
		res, err := t.sess.Run(ctx, only(t.sess.Spec(), in), t.taps)
		if err != nil {
			return nil, err
		}
		defer res.Close()
		values = res.Tensors()
	}
	at := func(name string) *tensor.Tensor {
		if v := values[name]; v != nil {
			return v
		}
		return in[name]
	}
	c := at(t.cond)
	if c == nil || len(c.Data) != 1 {
		return nil, fmt.Errorf("%w: its condition is no single value", ErrCalibration)
	}
	if (c.Data[0] != 0) != t.when {
		return nil, nil
	}
	feeds := engine.Feeds{}
	for _, name := range t.inputs {
		v := at(name)
		if v == nil {
			return nil, fmt.Errorf("%w: %q has no value", ErrCalibration, name)
		}
		feeds[name] = &tensor.Tensor{Type: v.Type, Dims: slices.Clone(v.Dims), Data: slices.Clone(v.Data), Strings: slices.Clone(v.Strings)}
	}
	return feeds, nil
}

// Reset implements data.Dataset.
func (t *takenSamples) Reset() error {
	t.skipped = 0
	return t.Dataset.Reset()
}

// Close implements data.Dataset.
func (t *takenSamples) Close() error {
	if t.sess != nil {
		t.sess.Close()
	}
	if t.Dataset == nil {
		return nil
	}
	return t.Dataset.Close()
}
