package report

import (
	"cmp"
	"slices"
)

// bySQNR returns the operators with a measured SQNR, the lowest first.
func bySQNR(ops []Operator) []Operator {
	var s []Operator
	for _, o := range ops {
		if o.SQNR.Finite() {
			s = append(s, o)
		}
	}
	slices.SortStableFunc(s, func(a, b Operator) int {
		return cmp.Or(cmp.Compare(a.SQNR, b.SQNR), cmp.Compare(a.Name, b.Name))
	})
	return s
}

// byFloatMACs returns the operators that could have run in integers and do
// not, the heaviest first.
func byFloatMACs(ops []Operator) []Operator {
	var s []Operator
	for _, o := range ops {
		if !o.Integer && (o.MACs > 0 || o.Rule != "") {
			s = append(s, o)
		}
	}
	slices.SortStableFunc(s, func(a, b Operator) int {
		return cmp.Or(cmp.Compare(b.MACs, a.MACs), cmp.Compare(a.Name, b.Name))
	})
	return s
}

// ruleGroup is all float operators of one type that broke the same rule.
type ruleGroup struct {
	op, rule, first string
	count           int
	macs            int64
}

// byRule groups byFloatMACs, the group with the most MACs first.
func byRule(ops []Operator) []ruleGroup {
	at := make(map[[2]string]int)
	var s []ruleGroup
	for _, o := range byFloatMACs(ops) {
		k := [2]string{o.Op, o.Rule}
		i, ok := at[k]
		if !ok {
			i = len(s)
			at[k] = i
			s = append(s, ruleGroup{op: o.Op, rule: o.Rule, first: o.Name})
		}
		s[i].count++
		s[i].macs += o.MACs
	}
	slices.SortStableFunc(s, func(a, b ruleGroup) int { return cmp.Compare(b.macs, a.macs) })
	return s
}

// byError returns the tensors with the largest error first; those without a
// measured error follow in their order.
func byError(ts []TensorChoice) []TensorChoice {
	s := slices.Clone(ts)
	slices.SortStableFunc(s, func(a, b TensorChoice) int {
		af, bf := a.Error.Finite(), b.Error.Finite()
		switch {
		case af && bf:
			return cmp.Compare(b.Error, a.Error)
		case af:
			return -1
		case bf:
			return 1
		}
		return 0
	})
	return s
}

// allWarnings joins the warnings of every part, each once.
func (r Report) allWarnings() []string {
	all := slices.Clone(r.Warnings)
	if r.Calibration != nil {
		all = append(all, r.Calibration.Warnings...)
	}
	if r.Evaluation != nil {
		all = append(all, r.Evaluation.Warnings...)
	}
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(s string) bool {
		dup := seen[s]
		seen[s] = true
		return dup
	})
}
