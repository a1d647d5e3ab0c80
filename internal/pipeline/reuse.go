package pipeline

import (
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/quant"
)

// reuse holds what the runs of a search on one prepared model have observed and
// decided. A decision is taken again only on the same grounds, so that a run with
// it makes what it would have made alone. The zero value and nil hold nothing.
type reuse struct {
	evidence *Evidence
	choices  map[string]*quant.Choice // by grounds
	int8     map[string]solvedInt8    // by the operator's first output
	int4     map[string]*quant.BlockWeight
	overflow map[string]float64 // see run.overflow; nil is not known
	keeping  *keeping           // solved weights on disk; nil is none
}

// onDisk is where solved weights are kept; nil is nowhere.
func (u *reuse) onDisk() *keeping {
	if u == nil {
		return nil
	}
	return u.keeping
}

// solvedInt8 is a weight and the smoothing that it carries.
type solvedInt8 struct {
	smooth []float32
	w      *quant.Weight
}

func newReuse() *reuse {
	return &reuse{choices: map[string]*quant.Choice{}, int8: map[string]solvedInt8{}, int4: map[string]*quant.BlockWeight{}}
}

// covers reports whether what was observed suffices for the run's plan.
func (u *reuse) covers(r *run) bool {
	if u == nil || u.evidence == nil {
		return false
	}
	need := newCalibration(r.lab, r.m, r.plan, true)
	for t, spec := range need.specs {
		if s := u.evidence.Stats(t); s == nil || s.Spec() != spec {
			return false
		}
	}
	for t := range need.rows {
		if u.evidence.rows[t] == nil {
			return false
		}
	}
	return true
}

func (u *reuse) observed(e *Evidence) {
	if u != nil {
		u.evidence = e
	}
}

// grounds is all that the choice of a tensor's range depends on besides the data.
func grounds(p *quant.Plan, t string) string {
	parts := []string{string(p.Config.Scheme), p.Config.Method, t}
	if p.InChain(t) {
		parts = append(parts, "chain")
	}
	for _, op := range p.Ops {
		if slices.ContainsFunc(op.X, func(x string) bool { return p.Source(x) == t }) {
			parts = append(parts, op.Node.Op, op.Node.Outputs[0], op.Out)
		}
	}
	return strings.Join(parts, "\x00")
}

// recall gives r the solved weights that are known and returns the known choices
// by plan.
func (u *reuse) recall(r *run) map[*quant.Plan]quant.Choices {
	if u == nil {
		return nil
	}
	known := map[*quant.Plan]quant.Choices{}
	inForce := quant.Choices{}
	for _, p := range byScheme(r.plans, quant.INT8Dynamic, quant.INT8) {
		known[p] = quant.Choices{}
		for _, t := range chosen(p) {
			if c := u.choices[grounds(p, t)]; c != nil {
				own := *c // a pass may pick another candidate
				known[p][t] = &own
				inForce[t] = &own
			} else {
				delete(inForce, t)
			}
		}
	}
	for _, p := range r.plans {
		for _, op := range p.Ops {
			out := op.Node.Outputs[0]
			if p.Config.Scheme == quant.INT4 {
				// Weights with divisors hold only together with these.
				if w := u.int4[out]; w != nil && p.Config.Weights != quant.AWQ && !p.Config.Steps() {
					r.solved.Int4[out] = w
				}
				continue
			}
			s, ok := u.int8[out]
			if !ok {
				continue
			}
			if op.Kind == quant.Linear {
				c := inForce[p.Source(op.X[0])]
				// Without a choice one is made anew, and the weight with it.
				if ok = c != nil && slices.Equal(s.smooth, c.Smooth); !ok {
					continue
				}
			}
			r.solved.Int8[out] = s.w
		}
	}
	return known
}

// chosen lists what a choice is made for.
func chosen(p *quant.Plan) []string {
	all := slices.Clone(p.Tensors)
	for _, g := range p.Linears() {
		if x := p.Source(g[0].X[0]); !slices.Contains(all, x) {
			all = append(all, x)
		}
	}
	return all
}

// keep remembers what r has decided.
func (u *reuse) keep(r *run) {
	if u == nil {
		return
	}
	// What the static plan has decided stands where both read a tensor.
	owner := map[string]*quant.Plan{}
	for _, p := range byScheme(r.plans, quant.INT8Dynamic, quant.INT8) {
		for _, t := range chosen(p) {
			owner[t] = p
		}
	}
	for t, c := range r.choices {
		if p := owner[t]; p != nil {
			own := *c
			u.choices[grounds(p, t)] = &own
		}
	}
	for _, p := range r.plans {
		for _, op := range p.Ops {
			out := op.Node.Outputs[0]
			if w := r.solved.Int4[out]; w != nil && p.Config.Scheme == quant.INT4 && !p.Config.Steps() {
				u.int4[out] = w
			}
			if w := r.solved.Int8[out]; w != nil && p.Config.Scheme != quant.INT4 {
				s := solvedInt8{w: w}
				if c := r.choices[p.Source(op.X[0])]; op.Kind == quant.Linear && c != nil {
					s.smooth = c.Smooth
				}
				u.int8[out] = s
			}
		}
	}
}
