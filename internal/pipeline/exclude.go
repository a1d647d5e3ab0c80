package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// UnknownOperator reports a name in an exclusion that is that of no operator and
// of no operator type. It is a quant.ErrConfig.
type UnknownOperator struct {
	Name string
	Near []string // what may have been meant, best first
	Gone bool     // it is in the model's file, and not left when that is prepared
	Rule string   // of a recipe that names it; "" is an exclusion
}

func (e *UnknownOperator) Error() string {
	subject := e.Rule
	if subject == "" {
		subject = fmt.Sprintf("exclude %q", e.Name)
	}
	text := fmt.Sprintf("%v: %s names no operator and no operator type of the model", quant.ErrConfig, subject)
	if e.Gone {
		text = fmt.Sprintf("%v: %s: preparing the model folds or drops it, nothing of it is left to quantize", quant.ErrConfig, subject)
	}
	if len(e.Near) > 0 {
		text += `; did you mean "` + strings.Join(e.Near, `" or "`) + `"?`
	}
	return text
}

// Is makes it a quant.ErrConfig.
func (e *UnknownOperator) Is(target error) bool { return target == quant.ErrConfig }

// Public says that the text holds nothing of this machine: a name with slashes
// in it is an operator's.
func (e *UnknownOperator) Public() string { return e.Error() }

// CheckExclude prepares m as a quantization would, and returns an
// *UnknownOperator when c excludes, or has a rule for, what m does not have.
func CheckExclude(ctx context.Context, m *graph.Model, c quant.Config) error {
	if len(c.Exclude)+len(c.Rules) == 0 {
		return nil
	}
	ops := operatorsOf(m)
	if _, err := quant.Run(ctx, m, quant.Prepare(c), quant.Dump{}); err != nil {
		return err
	}
	if _, err := ops.resolve(m, c.Exclude); err != nil {
		return err
	}
	_, err := ops.assign(m, c.Rules)
	return err
}

// operators are those of a model before it is prepared: names by type.
type operators map[string][]string

func operatorsOf(m *graph.Model) operators {
	ops := operators{}
	for _, n := range m.Graph.Nodes {
		ops[n.Op] = append(ops[n.Op], n.Name)
	}
	return ops
}

// resolve returns exclude as the prepared model understands it: a type of which
// preparing has made another one (Gemm becomes MatMul) stands for its operators, and
// so does the other one where it had some before.
func (ops operators) resolve(m *graph.Model, exclude []string) ([]string, error) {
	left := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		left[n.Op], left[n.Name] = true, true
	}
	delete(left, "")
	var out []string
	for _, e := range exclude {
		if own := ops.own(m, e); own != nil {
			out = append(out, own...)
			continue
		}
		if left[e] {
			out = append(out, e)
			continue
		}
		names := slices.DeleteFunc(slices.Clone(ops[e]), func(n string) bool { return !left[n] })
		if len(names) == 0 {
			gone := ops[e] != nil
			for _, of := range ops {
				gone = gone || e != "" && slices.Contains(of, e)
			}
			return nil, &UnknownOperator{Name: e, Near: near(e, left), Gone: gone}
		}
		out = append(out, names...)
	}
	return out, nil
}

// own returns the names of the operators of m that are of type op and were of no other
// before; nil where that goes for all, or for none.
func (ops operators) own(m *graph.Model, op string) (names []string) {
	others := map[string]bool{}
	for of, all := range ops {
		for _, n := range all {
			others[n] = others[n] || of != op
		}
	}
	mixed := false
	for _, n := range m.Graph.Nodes {
		switch {
		case n.Op == op && others[n.Name]:
			mixed = true
		case n.Op == op:
			names = append(names, n.Name)
		}
	}
	if !mixed {
		return nil
	}
	return names
}

const (
	maxNear      = 3
	maxNearBytes = 256 // longer names are not offered
	// A name is near when so many of its letters, at most a third, are others.
	maxEdits = 6
)

// plain removes what frameworks and exporters write differently:
// encoder.layer.0.query and /encoder/layer.0/query are near.
var plain = strings.NewReplacer("/", ".", "_", ".", ":", ".")

// near returns up to maxNear of names that may have been meant by name, the
// nearest first: equal but for case, within the other, or a few edits away.
func near(name string, names map[string]bool) []string {
	type match struct {
		name string
		far  int
	}
	var found []match
	low := plain.Replace(strings.ToLower(name))
	for n := range names {
		if len(n) > maxNearBytes {
			continue
		}
		other := plain.Replace(strings.ToLower(n))
		switch limit := min(maxEdits, len(low)/3); {
		case other == low:
			found = append(found, match{n, 0})
		case low != "" && strings.Contains(other, low):
			found = append(found, match{n, 1 + len(other) - len(low)})
		default:
			if d := edits(low, other, limit); d <= limit {
				found = append(found, match{n, d})
			}
		}
	}
	slices.SortFunc(found, func(a, b match) int { return cmp.Or(a.far-b.far, strings.Compare(a.name, b.name)) })
	var out []string
	for _, f := range found[:min(len(found), maxNear)] {
		out = append(out, f.name)
	}
	return out
}

// edits returns the Levenshtein distance of a and b, in bytes; above limit, some
// number above limit. Its time is that of limit * len(a).
func edits(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		lo, hi := max(1, i-limit), min(len(b), i+limit)
		diagonal := row[lo-1]
		if row[lo-1] = limit + 1; lo == 1 {
			row[0] = i
		}
		if hi == i+limit {
			row[hi] = limit + 1 // outside the band until now
		}
		for j := lo; j <= hi; j++ {
			step := diagonal
			if a[i-1] != b[j-1] {
				step = 1 + min(diagonal, row[j], row[j-1])
			}
			diagonal, row[j] = row[j], step
		}
	}
	return row[len(b)]
}
