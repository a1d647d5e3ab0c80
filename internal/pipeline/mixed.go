package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// assignment is the precision of each operator that a rule names.
type assignment map[*graph.Node]quant.Precision

// assign applies the rules to the prepared model; later ones win. A rule that
// matches nothing is an *UnknownOperator, unless it is for a class.
func (ops operators) assign(m *graph.Model, rules []quant.Rule) (assignment, error) {
	a := assignment{}
	for _, r := range rules {
		if quant.IsClass(r.Match) {
			nodes, ok := quant.ClassOf(m, r.Match, r.Precision)
			if !ok {
				return nil, fmt.Errorf("%w: %s: no such class of operators; use %s", quant.ErrConfig, r.Prefix(), strings.Join(quant.ClassNames(), ", "))
			}
			for _, n := range nodes {
				a[n] = r.Precision
			}
			continue
		}
		matches := func(n *graph.Node) bool { return r.Matches(n.Name) || r.Matches(n.Op) }
		if !strings.Contains(r.Match, "*") {
			names, err := ops.resolve(m, []string{r.Match})
			var unknown *UnknownOperator
			if errors.As(err, &unknown) {
				unknown.Rule = r.Prefix()
			}
			if err != nil {
				return nil, err
			}
			matches = func(n *graph.Node) bool { return slices.Contains(names, n.Name) || slices.Contains(names, n.Op) }
		}
		found := false
		for _, n := range m.Graph.Nodes {
			if matches(n) {
				a[n], found = r.Precision, true
			}
		}
		if !found {
			return nil, &UnknownOperator{Name: r.Match, Rule: r.Prefix()}
		}
	}
	return a, nil
}

// with lists the nodes of a precision.
func (a assignment) with(p quant.Precision) map[*graph.Node]bool {
	nodes := map[*graph.Node]bool{}
	for n, q := range a {
		if q == p {
			nodes[n] = true
		}
	}
	return nodes
}

// plans makes one plan for the scheme and one for each other precision that the
// assignment uses, the scheme's first; floats is what each left in float. With
// quant.ErrNothing there is one plan, of nothing.
func plans(m *graph.Model, c quant.Config, a assignment) (out []*quant.Plan, floats []quant.Float, err error) {
	var nothing error
	var empty *quant.Plan
	for i, p := range schemesOf(c, a) {
		cfg := c
		cfg.Scheme = quant.Scheme(p)
		if i > 0 {
			cfg.Exclude = nil // checked with the first; what it names gets no precision below
		}
		plan, err := quant.NewPlanOf(m, cfg, func(n *graph.Node) string {
			q, ok := a[n]
			if !ok {
				q = quant.Precision(c.Scheme)
				if slices.Contains(c.Exclude, n.Name) || slices.Contains(c.Exclude, n.Op) {
					q = quant.PrecisionFP32
				}
			}
			if q == p {
				return ""
			}
			return string(q) + byRecipe
		})
		switch {
		case errors.Is(err, quant.ErrNothing):
			nothing = err
			if empty == nil {
				empty = plan
			}
		case err != nil:
			return nil, nil, err
		default:
			out = append(out, plan)
		}
		floats = append(floats, plan.Float...)
	}
	if len(out) == 0 {
		return []*quant.Plan{empty}, floats, nothing
	}
	return out, floats, nil
}

// schemesOf lists the precisions that need a plan.
func schemesOf(c quant.Config, a assignment) []quant.Precision {
	all := []quant.Precision{quant.Precision(c.Scheme)}
	for _, p := range []quant.Precision{quant.PrecisionDynamic, quant.PrecisionINT8, quant.PrecisionINT4} {
		if !slices.Contains(all, p) && len(a.with(p)) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// unmet reports a rule that names one operator which cannot have its precision.
func unmet(m *graph.Model, rules []quant.Rule, a assignment, all []*quant.Plan, floats []quant.Float) error {
	got := map[string]quant.Precision{}
	for _, p := range all {
		for _, op := range p.Ops {
			got[op.Node.Outputs[0]] = op.Precision
		}
	}
	for _, n := range m.Graph.Nodes {
		want := a[n]
		if want == "" || n.Name == "" || len(n.Outputs) == 0 || want == quant.PrecisionFP32 || want == quant.PrecisionFP16 || want == quant.PrecisionBF16 || n.Is("Gather") || got[n.Outputs[0]] == want {
			continue
		}
		i := slices.IndexFunc(rules, func(r quant.Rule) bool { return r.Match == n.Name })
		if i < 0 {
			continue // a pattern or a type takes what it can
		}
		why := fmt.Sprintf("a %s has no such form", n.Op)
		for _, f := range floats {
			if f.Node == n && !strings.HasSuffix(f.Rule, byRecipe) {
				why = f.Rule
			}
		}
		return fmt.Errorf("%w: %s: %s is not possible: %s", quant.ErrConfig, rules[i].Prefix(), want, why)
	}
	return nil
}

// prepare brings the float model into the form that planning expects.
func (r *run) prepare(ctx context.Context) error {
	if op := r.m.Quantized(); op != "" {
		return fmt.Errorf("%w: it contains %s; give the float model it was made from", quant.ErrQuantized, op)
	}
	cfg := r.req.Config
	r.progress.say("prepare", 0)
	r.named = operatorsOf(r.m)
	if err := r.passes(ctx, quant.Prepare(cfg)...); err != nil {
		return err
	}
	var err error
	if cfg.Exclude, err = r.named.resolve(r.m, cfg.Exclude); err != nil {
		return err
	}
	if cfg.Learn, err = r.named.toLearn(r.m, cfg.Learn); err != nil {
		return err
	}
	r.req.Config = cfg
	r.spec = SpecOf(r.m)
	if err := r.checkEval(); err != nil {
		return err
	}
	if err := r.equalize(ctx); err != nil {
		return err
	}
	r.float = r.m.Clone()
	r.rep.Model.SHA256, err = r.hashing.wait()
	return err
}

// byRecipe ends the reason why an operator is none of a plan: a rule gives it another precision.
const byRecipe = " by the recipe"

// planned makes the plans.
func (r *run) planned() (err error) {
	cfg := r.req.Config
	if r.rules, err = r.named.assign(r.m, cfg.Rules); err != nil {
		return err
	}
	made, floats, err := plans(r.m, cfg, r.rules)
	if err != nil && !errors.Is(err, quant.ErrNothing) {
		return err
	}
	if err := unmet(r.m, cfg.Rules, r.rules, made, floats); err != nil {
		return err
	}
	switch {
	case err == nil:
		r.plans, r.plan = made, quant.Union(made)
		if err := r.canLearn(); err != nil {
			return err
		}
		for i, f := range r.plan.Float { // why a pattern or a type has not taken it
			if j := slices.IndexFunc(floats, func(g quant.Float) bool { return g.Node == f.Node && !strings.HasSuffix(g.Rule, byRecipe) }); j >= 0 && strings.HasSuffix(f.Rule, byRecipe) {
				r.plan.Float[i].Rule = floats[j].Rule
			}
		}
	case r.embeds().Any(r.m) && !cfg.NoEmbeddings: // which no plan lists
		r.plans, r.plan = nil, made[0]
	case slices.ContainsFunc(r.m.Graph.Nodes, func(n *graph.Node) bool { return len(bodyNamesOf(n)) > 0 }):
		r.plans, r.plan, r.nothing = nil, made[0], err // bodies may hold something
	default:
		return err
	}
	return nil
}

// embeds is the pass that quantizes the tables of embeddings.
func (r *run) embeds() quant.Embeddings {
	return quant.Embeddings{Config: r.req.Config, Precision: r.rules}
}
