package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// bodyNames are the attributes that hold the bodies of an operator.
var bodyNames = map[string][]string{"If": {"then_branch", "else_branch"}, "Loop": {"body"}, "Scan": {"body"}}

// bodyNamesOf returns those of n that may be quantized.
func bodyNamesOf(n *graph.Node) []string {
	if n.Domain != graph.DomainONNX || len(n.Outputs) == 0 || !quant.Multiplies(n) {
		return nil
	}
	return bodyNames[n.Op]
}

// bodies quantizes the bodies of the model's Ifs, Loops and Scans, each as a model
// of its own whose inputs are those that it has and what it reads from outside. Its
// samples are these values each time that the float model runs it, so that all that
// is done outside is done inside by the same passes, and in bodies inside it by the
// same recursion. A body that cannot be stays in float, and the report says why. It
// returns how many operators it changed.
func (r *run) bodies(ctx context.Context) (int, error) {
	changed := 0
	for _, n := range r.float.Graph.Nodes {
		names := bodyNamesOf(n)
		at := slices.IndexFunc(r.m.Graph.Nodes, func(o *graph.Node) bool {
			return len(names) > 0 && o.HasSubgraph() && slices.Equal(o.Outputs, n.Outputs)
		})
		if at < 0 {
			continue
		}
		for _, attr := range names {
			sub, err := r.body(ctx, n, attr)
			if err == nil {
				err = sub.inside(ctx)
			}
			switch {
			case err == nil:
				if err = r.m.SetBody(r.m.Graph.Nodes[at], attr, sub.m); err == nil && sub.m.Function(ops.Domain, ops.OpMatMulQuantized) != nil {
					var more []string
					if sub.m.Function(ops.Domain, ops.OpExpandBlocks) != nil {
						more = append(more, ops.OpExpandBlocks)
					}
					err = ops.Install(r.m, more...)
				}
				if err == nil {
					err = r.m.Check()
				}
				if err != nil {
					return changed, fmt.Errorf("%s of %q: %w", attr, n.Name, err)
				}
				changed += r.took(sub)
			case ctx.Err() != nil:
				return changed, err
			case errors.Is(err, quant.ErrNothing), errors.Is(err, graph.ErrInvalid), errors.Is(err, ErrCalibration), errors.Is(err, ErrFewSamples),
				errors.Is(err, engine.ErrInput), errors.Is(err, engine.ErrModel):
				if sub != nil {
					r.took(sub) // the reasons of what is inside
				}
				r.left(n, attr, err)
			default:
				return changed, fmt.Errorf("%s of %q: %w", attr, n.Name, err)
			}
		}
	}
	if changed > 0 {
		r.m.Graph.Prune() // weights that only bodies read
		r.rep.Integer = report.CountMACs(r.rep.Operators)
	}
	return changed, nil
}

// body is the run of one body.
func (r *run) body(ctx context.Context, n *graph.Node, attr string) (*run, error) {
	m, err := r.float.Body(n, attr)
	if err != nil {
		return nil, err
	}
	req := r.req
	req.Eval, req.MaxMemory = "", 0
	sub := &run{Pipeline: r.Pipeline, req: req, lab: r.lab, m: m, source: r.source, tabled: r.tabled, progress: r.progress,
		choices: quant.Choices{}, solved: quant.NewSolved(), rep: &report.Report{}}
	body := m.Clone() // as it runs; m is edited
	sub.samplesOf = func() (data.Dataset, error) { return r.around(ctx, n, attr, body) }
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
		if at := r.entry(op.Name, out); at >= 0 {
			r.rep.Operators[at] = op
			r.entered[at] = true
		}
		if op.Precision != string(quant.PrecisionFP32) {
			quantized++
		}
	}
	r.rep.Warnings = append(r.rep.Warnings, sub.rep.Warnings...)
	return quantized
}

// entry returns where the report has an operator in a body that was not entered yet,
// or -1. Operators of several bodies may have one name.
func (r *run) entry(name, out string) int {
	if r.entered == nil {
		r.entered = map[int]bool{}
	}
	for i, op := range r.rep.Operators {
		if op.Name == name && r.covered[i] == out && op.Rule != "" && !r.entered[i] {
			return i
		}
	}
	for i, op := range r.rep.Operators { // a pass may have given the output another name
		if op.Name == name && name != "" && op.Rule != "" && !r.entered[i] {
			return i
		}
	}
	return -1
}

// left says in the report why the operators of a body stay in float.
func (r *run) left(n *graph.Node, attr string, why error) {
	body := graph.Node{Attrs: []*pb.AttributeProto{n.Attr(attr)}}
	body.Bodies(func(inner *graph.Node, _ map[string]bool) {
		if len(inner.Outputs) == 0 {
			return
		}
		at := r.entry(inner.Name, inner.Outputs[0])
		if at < 0 {
			return
		}
		r.entered[at] = true
		if strings.HasSuffix(r.rep.Operators[at].Rule, quant.Unobserved) {
			reason := strings.TrimPrefix(why.Error(), "calibration: ") // the step, which the error says too
			r.rep.Operators[at].Rule = fmt.Sprintf("it is in the %s of %s %q: %s", attr, n.Op, n.Name, reason)
		}
	})
}
