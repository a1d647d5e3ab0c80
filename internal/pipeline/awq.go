package pipeline

import (
	"context"
	"fmt"
	"time"

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
	keeping  *keeping // nil: nothing is on disk
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
		if err := a.group(ctx, m.Graph, ops, &gain); err != nil {
			return quant.Stats{}, fmt.Errorf("input %q: %w", ops[0].X[0], err)
		}
		done += len(ops)
		a.progress.say("weights", float64(i+1)/float64(len(groups)))
	}
	note := fmt.Sprintf("%d weights, %d of %d inputs divided%s%s", done, len(a.solved.Divisors), len(groups), gain.words("without"), gain.spared())
	return quant.Stats{Changed: done, Note: note}, nil
}

// group solves for the weights that read one input, or takes them from disk.
func (a *awqPass) group(ctx context.Context, g *graph.Graph, ops []*quant.Op, gain *tally) error {
	x := ops[0].X[0]
	rows := a.evidence.Rows(x)
	seen := 0
	if rows != nil {
		seen = rows.Len()
	}
	if seen < quant.AWQRows {
		return fmt.Errorf("%w: awq saw %d rows and needs %d; give more samples, or use weights %s", ErrFewSamples, seen, quant.AWQRows, quant.HQQ)
	}
	wants, known, err := a.recall(g, ops)
	if err != nil {
		return err
	}
	if known != nil {
		for i, e := range known {
			a.solved.Int4[ops[i].Node.Outputs[0]] = e.four
			gain.ops++
			gain.seconds += e.seconds
		}
		if d := known[0].divisors; d != nil {
			a.solved.Divisors[x] = d
		}
		gain.add([]quant.Gain{known[0].gain})
		return nil
	}
	begin := time.Now()
	solved, err := a.solved.SolveAWQ(ctx, a.lab, a.plan.Config, g, ops, rows)
	if err != nil {
		return err
	}
	gain.add([]quant.Gain{solved})
	share := time.Since(begin).Seconds() / float64(len(ops))
	for i, w := range wants {
		a.keeping.put(w, entry{four: a.solved.Int4[ops[i].Node.Outputs[0]], divisors: a.solved.Divisors[x], gain: solved, seconds: share})
	}
	return nil
}

// recall returns what ops want of the disk, and what lies there when it is all there.
func (a *awqPass) recall(g *graph.Graph, ops []*quant.Op) (wants []want, known []entry, err error) {
	if a.keeping == nil {
		return nil, nil, nil
	}
	for _, op := range ops {
		w, err := a.keeping.want(g, a.plan, op, nil, ops...)
		if err != nil {
			return nil, nil, fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		wants = append(wants, w)
	}
	for _, w := range wants { // divisors hold for all of them, or for none
		e, ok := a.keeping.get(w)
		if !ok {
			return wants, nil, nil
		}
		known = append(known, e)
	}
	return wants, known, nil
}
