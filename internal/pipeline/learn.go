package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/report"
)

// toLearn is resolve for the operators whose blocks are learned.
func (ops operators) toLearn(m *graph.Model, names []string) ([]string, error) {
	found, err := ops.resolve(m, names)
	var unknown *UnknownOperator
	if errors.As(err, &unknown) {
		unknown.Rule = fmt.Sprintf("learn %q", unknown.Name)
	}
	return found, err
}

// learnBlocks learns the blocks of the model where its settings ask for that. The
// samples of a body may be few, and it has blocks seldom.
func (r *run) learnBlocks(ctx context.Context) error {
	if r.req.Config.Weights != quant.BRECQ || r.samplesOf != nil || r.tabled {
		return nil
	}
	b := r.blocks()
	err := r.passes(ctx, b)
	r.learnt = b.learnt
	return err
}

// blocks is the pass that learns them, with what is known before any sample has run.
func (r *run) blocks() *blocksPass {
	b := &blocksPass{lab: r.lab, teacher: r.float, plans: r.plans, choices: r.choices, solved: r.solved, samples: r.openCalib, progress: r.progress, budget: blocksBytes, only: r.req.Config.Learn, until: r.learnUntil,
		warn: func(s string) { r.rep.Warnings = append(r.rep.Warnings, s) }}
	if r.evidence != nil {
		b.stats = r.evidence
	}
	if ceiling := r.req.MaxMemory; ceiling > 0 {
		b.ceiling = func() (int64, int64) { return ceiling - slack(ceiling) - r.settle(), ceiling }
	}
	return b
}

// canLearn refuses before anything is calibrated what learning blocks would refuse after it.
func (r *run) canLearn() error {
	if r.req.Config.Weights != quant.BRECQ || r.samplesOf != nil {
		return nil
	}
	if r.m.Opset() < reconstruct.MinOpset {
		return fmt.Errorf("%w: weights %s need a model of opset %d or above, this one has %d; export it anew, or use weights %s", quant.ErrConfig, quant.BRECQ, reconstruct.MinOpset, r.m.Opset(), quant.GPTQ)
	}
	b := r.blocks()
	ops, segments := b.index(r.m)
	_, err := b.chosen(ops, segments)
	return err
}

// index finds the operators of the plans, and cuts m into blocks.
func (b *blocksPass) index(m *graph.Model) (map[*graph.Node]planned, []*reconstruct.Segment) {
	ops := map[*graph.Node]planned{}
	inner := map[string]bool{}
	for _, p := range b.plans {
		for _, op := range p.Ops {
			ops[op.Node] = planned{op, p}
			if op.Out != op.Node.Outputs[0] {
				inner[op.Node.Outputs[0]] = true
			}
			if op.Add != nil && op.Act != nil {
				inner[op.Add.Outputs[0]] = true
			}
		}
	}
	weighted := func(n *graph.Node) bool { k, ok := ops[n]; return ok && hasWeight(k.Op) }
	return ops, reconstruct.Segments(m.Graph, weighted, func(v string) bool { return inner[v] })
}

// chosen reports for each segment whether it is to be learned, and ErrConfig when an
// operator that is named has no block.
func (b *blocksPass) chosen(ops map[*graph.Node]planned, segments []*reconstruct.Segment) ([]bool, error) {
	all := make([]bool, len(segments))
	met := map[string]bool{}
	for i, seg := range segments {
		all[i] = len(b.only) == 0
		for _, n := range seg.Nodes {
			if op, ok := ops[n]; !ok || !hasWeight(op.Op) {
				continue
			}
			for _, name := range []string{n.Name, n.Op} {
				if slices.Contains(b.only, name) {
					all[i], met[name] = true, true
				}
			}
		}
	}
	for _, name := range b.only {
		if !met[name] {
			return nil, fmt.Errorf("%w: learn %q: it has no weight that is quantized, and so no block; name another operator, or none for all blocks", quant.ErrConfig, name)
		}
	}
	return all, nil
}

// ended reports whether the block that would come next has no time.
func (b *blocksPass) ended(longest time.Duration) bool {
	return !b.until.IsZero() && time.Now().Add(longest).After(b.until)
}

// What learning a block takes beside the samples between blocks, in bytes.
const (
	// learnedBytes of each weight: values, steps, codes, the relaxation with its moments,
	// derivatives summed and as the engine gives them, and both forms of the block.
	learnedBytes = 56
	// learnedValues is how often the values of one sample inside the block are there: forward,
	// their derivatives, and what the engine holds between the two.
	learnedValues = 3
	// learnResidue is what calibrating and solving leave in the process, of Go's heap and of
	// the allocators', beyond what is counted for them.
	learnResidue = 112 << 20
)

// learner is what learning seg takes beside the samples, and sample what one sample
// holds between two blocks and as it is learned from.
func (b *blocksPass) sizes(m *graph.Model, ops map[*graph.Node]planned, seg *reconstruct.Segment, size func(string) int64) (learner, sample int64) {
	var inside, widest int64
	for _, n := range seg.Nodes {
		for _, o := range n.Outputs {
			inside += size(o)
			widest = max(widest, size(o))
		}
		if op, ok := ops[n]; ok && hasWeight(op.Op) {
			learner += learnedBytes * m.Graph.Init(op.W).Len()
		}
	}
	for _, v := range seg.In {
		sample += 2 * size(v)
	}
	for _, v := range append(slices.Clone(seg.Outs), seg.Carry...) {
		sample += 3 * size(v)
	}
	return learner + learnedValues*inside, sample + 2*widest // operator by operator: inputs and targets
}

// needs predicts the largest of both, of all blocks that are learned or passed.
func (b *blocksPass) needs(m *graph.Model, size func(string) int64) (learner, sample int64) {
	ops, segments := b.index(m)
	var inputs int64
	for _, v := range m.Graph.Inputs {
		inputs += size(v.Name)
	}
	for _, seg := range segments {
		l, s := b.sizes(m, ops, seg, size)
		learner, sample = max(learner, l), max(sample, s+inputs)
	}
	return learner, sample
}

// room lowers what samples may hold to what a ceiling leaves.
func (b *blocksPass) room(m *graph.Model) error {
	if b.ceiling == nil {
		return nil
	}
	size := func(string) int64 { return 0 }
	if b.lab.limits != nil {
		size = b.lab.limits.size
	}
	learner, sample := b.needs(m, size)
	left, ceiling := b.ceiling()
	if b.budget = min(b.budget, left-learner); b.budget < reconstruct.MinSamples*sample {
		return fmt.Errorf("%w: learning a block takes about %s and %d samples between two blocks %s, and %s of %s are left: give more, or use weights %s", ErrCeiling,
			report.Bytes(learner), reconstruct.MinSamples, report.Bytes(reconstruct.MinSamples*sample), report.Bytes(max(left, 0)), report.Bytes(ceiling), quant.GPTQ)
	}
	return nil
}
