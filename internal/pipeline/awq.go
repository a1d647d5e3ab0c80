package pipeline

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// awqPass quantizes the 4-bit weights of a plan with divisors for their inputs
// (quant.SolveAWQ). It changes solved only, not the graph.
type awqPass struct {
	lab      *Lab
	plan     *quant.Plan
	evidence *Evidence
	solved   *quant.Solved
	progress Progress
}

var _ quant.Pass = (*awqPass)(nil)

func (*awqPass) Name() string { return string(quant.AWQ) }

func (a *awqPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	groups := a.plan.Linears()
	var gain tally
	done := 0
	for i, ops := range groups {
		if err := ctx.Err(); err != nil {
			return quant.Stats{}, err
		}
		rows := a.evidence.Rows(ops[0].X[0])
		seen := 0
		if rows != nil {
			seen = rows.Len()
		}
		if seen < quant.AWQRows {
			return quant.Stats{}, fmt.Errorf("input %q: %w: awq saw %d rows and needs %d; give more samples, or use weights %s", ops[0].X[0], ErrFewSamples, seen, quant.AWQRows, quant.HQQ)
		}
		g, err := a.solved.SolveAWQ(ctx, a.lab, a.plan.Config, m.Graph, ops, rows)
		if err != nil {
			return quant.Stats{}, fmt.Errorf("input %q: %w", ops[0].X[0], err)
		}
		gain.add([]quant.Gain{g})
		done += len(ops)
		a.progress.say("weights", float64(i+1)/float64(len(groups)))
	}
	note := fmt.Sprintf("%d weights, %d of %d inputs divided%s", done, len(a.solved.Divisors), len(groups), gain.words("without"))
	return quant.Stats{Changed: done, Note: note}, nil
}
