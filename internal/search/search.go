// Package search chooses what each operator of a model becomes, by trying it: it
// decides what is tried next from what the trials so far have measured. Making
// and measuring a model is the business of a Lab.
//
// The order is fixed and every decision follows from the trials, so that a search
// that was killed goes on where it was when its trials are given again.
package search

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// Candidate is one way to quantize the model.
type Candidate struct {
	Label  string // for people
	Scheme quant.Scheme
	Target quant.Target
	Rules  []quant.Rule
	// Learn names the operators whose blocks are learned from the float model; none
	// is no learning.
	Learn []string
	// Safe marks what loses next to nothing: a first look judges it.
	Safe bool
}

// Key says exactly what is tried.
func (c Candidate) Key() string {
	parts := []string{string(c.Scheme), string(c.Target)}
	for _, r := range c.Rules {
		parts = append(parts, r.String())
	}
	if len(c.Learn) > 0 {
		parts = append(append(parts, string(quant.BRECQ)), c.Learn...)
	}
	return strings.Join(parts, " ")
}

// Unit is what gets a precision together: the operators that read one activation
// through constant weights, or one convolution.
type Unit struct {
	Names []string `json:"names"`
	// Loss ranks the units: larger is more sensitive.
	Loss report.Num `json:"loss"`
	// MACs and Elements count multiply-accumulates and weights.
	MACs     int64 `json:"macs"`
	Elements int64 `json:"elements"`
	// Linear units are matrix products, which have dynamic forms.
	Linear bool `json:"linear"`
	// Four units have weights that fit 4-bit blocks: matrix products, and most convolutions.
	Four bool `json:"four"`
}

// Lab makes and measures models.
type Lab interface {
	// Try makes and measures a candidate. What is wrong with the candidate is in
	// the trial; an error ends the search.
	Try(ctx context.Context, number int, c Candidate) (report.Trial, error)
	// Units lists what gets a precision of its own, the most sensitive first.
	Units(ctx context.Context, t quant.Target) ([]Unit, error)
}

// Space says what may be tried.
type Space struct {
	// Targets are the graph forms, the preferred first.
	Targets []quant.Target
	// Static schemes are possible: there is calibration data.
	Static bool
	// Linear, Conv and Tables say what the model has: matrix products with constant
	// weights, convolutions, embedding tables that fit 4-bit blocks.
	Linear, Conv, Tables bool
	// Learns says that blocks can be learned and that it may pay.
	Learns bool
	// Rules are the user's: they hold in every candidate.
	Rules []quant.Rule
}

const (
	// learnWithin is how many times the allowed loss INT8 may lose for learning to be tried:
	// it takes longer than all other trials, and halves a loss rather than removing it.
	learnWithin = 3
	// learnShare of what the units lose together is in the blocks that are learned.
	learnShare = 0.9
)

// maxTrials bounds a search that has no other end.
const maxTrials = 200

// Search is the state of one.
type Search struct {
	Goal  report.Goal
	Space Space
	Lab   Lab
	// Tried are the trials of an earlier start, by key.
	Tried map[string]report.Trial
	// OnTrial is told each trial, known ones too.
	OnTrial func(t report.Trial, known bool) error

	Trials []report.Trial
	units  map[quant.Target][]Unit
	seen   map[string]bool
}

// Better reports whether a is to be preferred to b, both accepted: what misses
// the goal least, then what is faster beyond doubt, then what is smaller by more
// than a per cent, then what loses less.
func Better(g report.Goal, a, b report.Trial) bool {
	if x, y := g.Excess(a), g.Excess(b); x != y {
		return x < y
	}
	switch {
	case a.SpeedLo > b.SpeedHi:
		return true
	case b.SpeedLo > a.SpeedHi:
		return false
	}
	if r := float64(a.Bytes) / float64(max(b.Bytes, 1)); math.Abs(r-1) > 0.01 {
		return r < 1
	}
	return a.Loss < b.Loss
}

// Best returns the best accepted trial, nil when there is none.
func Best(g report.Goal, all []report.Trial) *report.Trial {
	var best *report.Trial
	for i := range all {
		if all[i].Accepted && (best == nil || Better(g, all[i], *best)) {
			best = &all[i]
		}
	}
	return best
}

// Front returns the numbers of the measured trials that no other beats: at least
// as good in loss, speed and size, and better in one.
func Front(all []report.Trial) []int {
	front := []int{}
	for i, a := range all {
		if !a.Measured() {
			continue
		}
		beaten := slices.ContainsFunc(all, func(b report.Trial) bool {
			return b.Measured() && b.Loss <= a.Loss && b.Speed >= a.Speed && b.Bytes <= a.Bytes && (b.Loss < a.Loss || b.Speed > a.Speed || b.Bytes < a.Bytes)
		})
		if !beaten {
			front = append(front, all[i].Number)
		}
	}
	return front
}

// Run tries until nothing promises more, or ctx ends. Its error is the lab's.
func (s *Search) Run(ctx context.Context) error {
	s.units, s.seen = map[quant.Target][]Unit{}, map[string]bool{}
	targets := s.Space.Targets
	// Rules ask for no less than they say: only FP32 forbids half precision.
	if !slices.ContainsFunc(s.Space.Rules, func(r quant.Rule) bool { return r.Precision == quant.PrecisionFP32 }) {
		if _, err := s.try(ctx, Candidate{Label: "FP16 weights", Scheme: quant.FP16, Target: targets[0], Safe: true}); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := s.eight(ctx, t); err != nil {
			return err
		}
	}
	return s.shrink(ctx)
}

// eight looks for 8 bits in one form: the whole model, then without the most
// sensitive operators.
func (s *Search) eight(ctx context.Context, t quant.Target) error {
	var static, dynamic report.Trial
	var err error
	if s.Space.Static {
		if static, err = s.try(ctx, Candidate{Label: "INT8" + in(t), Scheme: quant.INT8, Target: t}); err != nil {
			return err
		}
	}
	// Rows by row are dynamic already in the native form.
	if s.Space.Linear && t == quant.ORTCPU {
		if dynamic, err = s.try(ctx, Candidate{Label: "INT8, dynamic" + in(t), Scheme: quant.INT8Dynamic, Target: t}); err != nil {
			return err
		}
	}
	if !s.Space.Static || lossMet(static, s.Goal) {
		return nil
	}
	if met, err := s.learn(ctx, t, static); met || err != nil {
		return err
	}
	kept := quant.PrecisionFP16
	if s.Space.Linear && !s.Space.Conv && lossMet(dynamic, s.Goal) {
		kept = quant.PrecisionDynamic
	}
	return s.raise(ctx, t, kept)
}

// learn has the blocks learned that lose most in static INT8, where these may bring its
// loss within what is allowed, and reports whether they did.
func (s *Search) learn(ctx context.Context, t quant.Target, static report.Trial) (met bool, err error) {
	if !s.Space.Learns || static.Bytes == 0 || !(float64(static.Loss) <= learnWithin*s.Goal.MaxLoss) {
		return false, nil
	}
	units, err := s.unitsOf(ctx, t)
	if err != nil || len(units) == 0 {
		return false, err
	}
	var sum, have float64
	for _, u := range units {
		sum += float64(u.Loss)
	}
	var names []string
	for _, u := range units {
		if len(names) > 0 && have >= learnShare*sum {
			break
		}
		have += float64(u.Loss)
		names = append(names, u.Names...)
	}
	r, err := s.try(ctx, Candidate{Label: "INT8" + in(t) + ", blocks learned", Scheme: quant.INT8, Target: t, Learn: names})
	return lossMet(r, s.Goal), err
}

// in names a form that is not the default.
func in(t quant.Target) string {
	if t == quant.ORTCPU {
		return ""
	}
	return ", form " + string(t)
}

// lossMet reports whether the trial's whole interval is within the loss.
func lossMet(t report.Trial, g report.Goal) bool {
	return t.LossHi.Finite() && t.Bytes > 0 && float64(t.LossHi) <= g.MaxLoss
}

// raise keeps the most sensitive units in a higher precision: their number doubles
// until the loss is met, is halved between, and then what turns out not to be
// needed goes back to 8 bits.
func (s *Search) raise(ctx context.Context, t quant.Target, kept quant.Precision) error {
	units, err := s.unitsOf(ctx, t)
	if err != nil || len(units) == 0 {
		return err
	}
	if kept == quant.PrecisionDynamic {
		units = slices.DeleteFunc(slices.Clone(units), func(u Unit) bool { return !u.Linear })
	}
	with := func(set []Unit) (bool, error) {
		r, err := s.try(ctx, Candidate{Label: fmt.Sprintf("INT8%s, %s for %d of %d", in(t), kept, len(set), len(units)), Scheme: quant.INT8, Target: t, Rules: rules(set, kept)})
		return lossMet(r, s.Goal), err
	}
	low, high := 0, len(units)+1 // low fails, high is not known to pass beyond the last
	for k := 1; k <= len(units); k *= 2 {
		ok, err := with(units[:k])
		if err != nil {
			return err
		}
		if ok {
			high = k
			break
		}
		low = k
	}
	if high > len(units) {
		if low < len(units) {
			ok, err := with(units)
			if err != nil || !ok {
				return err
			}
			high = len(units)
		} else {
			return nil
		}
	}
	for high-low > max(1, high/8) {
		k := (low + high) / 2
		ok, err := with(units[:k])
		if err != nil {
			return err
		}
		if ok {
			high = k
		} else {
			low = k
		}
	}
	return s.giveBack(units[:high], with)
}

// giveBack drops parts of the kept units, halves first, as long as the loss is
// met: the order of sensitivity is a guess about what they cost together.
func (s *Search) giveBack(kept []Unit, with func([]Unit) (bool, error)) error {
	set := slices.Clone(kept)
	for part := (len(set) + 1) / 2; part >= 1 && len(set) > 1; part /= 2 {
		for from := 0; from < len(set) && len(set) > part; {
			less := slices.Delete(slices.Clone(set), from, min(from+part, len(set)))
			ok, err := with(less)
			if err != nil {
				return err
			}
			if ok {
				set = less
			} else {
				from += part
			}
		}
	}
	return nil
}

// int4Saves is what a weight saves that goes from 8 bits to 4-bit blocks with a
// float scale each, in bytes.
const int4Saves = 1 - 0.5 - 4.0/quant.Int4Block

// shrink is for a size that nothing has met: 4-bit embeddings, then 4-bit weights
// for the least sensitive operators, as many as it takes.
func (s *Search) shrink(ctx context.Context) error {
	best := Best(s.Goal, s.Trials)
	if s.Goal.MaxBytes == 0 || best != nil && best.Bytes <= s.Goal.MaxBytes {
		return nil
	}
	from, ok := s.base()
	if !ok {
		return nil
	}
	size := from.trial.Bytes
	if s.Space.Tables {
		c := from.candidate
		c.Rules = append([]quant.Rule{{Match: "Gather", Precision: quant.PrecisionINT4}}, c.Rules...)
		c.Label += ", embeddings int4"
		r, err := s.try(ctx, c)
		if err != nil {
			return err
		}
		if lossMet(r, s.Goal) {
			if r.Bytes <= s.Goal.MaxBytes {
				return nil
			}
			from.candidate, size = c, r.Bytes
		}
	}
	units, err := s.unitsOf(ctx, from.candidate.Target)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, r := range from.candidate.Rules {
		taken[r.Match] = true
	}
	var small []Unit // the least sensitive first, by loss for what it saves
	for _, u := range units {
		if u.Four && !slices.ContainsFunc(u.Names, func(n string) bool { return taken[n] }) {
			small = append(small, u)
		}
	}
	sort.SliceStable(small, func(a, b int) bool {
		return float64(small[a].Loss)*float64(small[b].Elements) < float64(small[b].Loss)*float64(small[a].Elements)
	})
	least, saved := 0, 0.0 // how many it takes at least
	for least < len(small) && float64(size)-saved > float64(s.Goal.MaxBytes) {
		saved += int4Saves * float64(small[least].Elements)
		least++
	}
	with := func(k int) (report.Trial, error) {
		c := from.candidate
		c.Label = fmt.Sprintf("%s, int4 for %d of %d", c.Label, k, len(small))
		c.Rules = append(slices.Clone(c.Rules), rules(small[:k], quant.PrecisionINT4)...)
		return s.try(ctx, c)
	}
	for k := max(least, 1); k <= len(small); k++ {
		r, err := with(k)
		if err != nil {
			return err
		}
		if lossMet(r, s.Goal) {
			if r.Bytes <= s.Goal.MaxBytes {
				return nil
			}
			continue // the size was just missed
		}
		// The size is out of reach this way: come as near to it as the loss allows.
		for low, high := 0, k; high-low > max(1, k/8); {
			mid := (low + high) / 2
			r, err := with(mid)
			if err != nil {
				return err
			}
			if lossMet(r, s.Goal) {
				low = mid
			} else {
				high = mid
			}
		}
		break
	}
	if b := Best(s.Goal, s.Trials); b == nil || b.Bytes > s.Goal.MaxBytes {
		_, err = s.try(ctx, Candidate{Label: "INT4 weights", Scheme: quant.INT4, Target: quant.ORTCPU})
	}
	return err
}

type based struct {
	candidate Candidate
	trial     report.Trial
}

// base picks what shrinking begins with: the best 8-bit trial, else the one that
// loses least. Learned blocks would have to be learned again for each further trial.
func (s *Search) base() (based, bool) {
	var all []report.Trial
	for _, t := range s.Trials {
		if t.Scheme == string(quant.INT8) && len(t.Learned) == 0 && t.Bytes > 0 && t.Loss.Finite() {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return based{}, false
	}
	b := Best(s.Goal, all)
	if b == nil {
		x := slices.MinFunc(all, func(a, b report.Trial) int { return cmp.Compare(a.Loss, b.Loss) })
		b = &x
	}
	c := Candidate{Label: b.Label, Scheme: quant.Scheme(b.Scheme), Target: quant.Target(b.Target)}
	for _, text := range b.Operators {
		if r, err := quant.ParseRule(text); err == nil && !slices.Contains(s.Space.Rules, r) {
			c.Rules = append(c.Rules, r)
		}
	}
	return based{c, *b}, true
}

// rules gives the operators of units a precision.
func rules(units []Unit, p quant.Precision) (out []quant.Rule) {
	for _, u := range units {
		for _, n := range u.Names {
			out = append(out, quant.Rule{Match: n, Precision: p})
		}
	}
	return out
}

func (s *Search) unitsOf(ctx context.Context, t quant.Target) ([]Unit, error) {
	if u, ok := s.units[t]; ok {
		return u, nil
	}
	u, err := s.Lab.Units(ctx, t)
	if err == nil {
		s.units[t] = u
	}
	return u, err
}

// try makes a trial, or takes it from what is known.
func (s *Search) try(ctx context.Context, c Candidate) (report.Trial, error) {
	if c.Scheme != quant.FP16 {
		c.Rules = append(slices.Clone(c.Rules), s.Space.Rules...)
	}
	key := c.Key()
	if i := slices.IndexFunc(s.Trials, func(t report.Trial) bool { return t.Key == key }); i >= 0 {
		return s.Trials[i], nil
	}
	if len(s.Trials) >= maxTrials {
		return report.Trial{}, nil
	}
	t, known := s.Tried[key]
	if !known {
		var err error
		if t, err = s.Lab.Try(ctx, len(s.Trials)+1, c); err != nil {
			return t, err
		}
	}
	t.Number, t.Key, t.Label, t.Scheme, t.Target = len(s.Trials)+1, key, c.Label, string(c.Scheme), string(c.Target)
	t.Operators = nil
	for _, r := range c.Rules {
		t.Operators = append(t.Operators, r.String())
	}
	s.Trials = append(s.Trials, t)
	if s.OnTrial != nil {
		if err := s.OnTrial(t, known); err != nil {
			return t, err
		}
	}
	return t, nil
}
