package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// How many lines of each list the terminal gets.
const (
	textWorst    = 5
	textFloat    = 8
	textWarnings = 10
)

// row is one line of the comparison: a measure on both sides and what changed.
type row struct{ name, fp32, quant, change string }

// Text writes the comparison as a table for a terminal, FP32 beside the
// quantized model, then the verdict and what deserves attention.
func Text(w io.Writer, r Report) error {
	b := bufio.NewWriter(w)
	title := clean(r.Model.Name)
	if r.Quantized.Name != "" {
		title += " -> " + clean(r.Quantized.Name)
	}
	how := strings.Join(nonEmpty(r.Recipe.Scheme, r.Recipe.Target, r.Recipe.Method, r.Recipe.Granularity), ", ")
	if how != "" {
		title += "  (" + clean(how) + ")"
	}
	fmt.Fprintln(b, strings.TrimSpace(title))

	table(b, append([]row{{"", "FP32", r.quantName(), ""}}, r.rows()...))
	worst(b, r.Operators)
	floats(b, r)
	list(b, "warning", r.allWarnings(), textWarnings)
	verdict(b, r.Verdict)
	return b.Flush()
}

// rows builds the comparison; measures that the run did not take are left out.
func (r Report) rows() (rows []row) {
	add := func(name, fp32, quant, change string) { rows = append(rows, row{name, fp32, quant, change}) }
	if e := r.Evaluation; e != nil {
		if e.RefAccuracy != nil && e.QuantAccuracy != nil {
			d := ""
			if e.Difference != nil {
				d = fmt.Sprintf("%s points (95 %%: %s to %s; n = %d)", points(e.Difference.Value), points(e.Difference.Lo), points(e.Difference.Hi), e.Difference.N)
			}
			add("accuracy", percent(e.RefAccuracy.Value), percent(e.QuantAccuracy.Value), d)
		}
		if a := e.Agreement; a != nil {
			add("top-1 agreement", "", percent(a.Value), fmt.Sprintf("(95 %%: %s to %s; n = %d)", percent(a.Lo), percent(a.Hi), a.N))
		}
		if a := e.Tokens; a != nil {
			add("same class of token", "", percent(a.Value), fmt.Sprintf("mean over samples (95 %%: %s to %s; n = %d)", percent(a.Lo), percent(a.Hi), a.N))
		}
		if a := e.Answers; a != nil {
			add("probabilities moved", "", fmt.Sprintf("%.4f", a.Distance.Value), fmt.Sprintf("mean distance, 0 to 1; changed answers cost %s points by FP32's probabilities (95 %%: %s to %s)", points(a.Loss.Value), points(a.Loss.Lo), points(a.Loss.Hi)))
		}
		if a := e.Neighbours; a != nil {
			add("nearest neighbour", "", percent(a.Value), fmt.Sprintf("same as FP32 (95 %%: %s to %s; n = %d)", percent(a.Lo), percent(a.Hi), a.N))
		}
		if d := e.Detected; d != nil {
			add("same detections", "", percent(d.Agreement.Value), fmt.Sprintf("by score (95 %%: %s to %s; n = %d); %d boxes of FP32's %d and %d found by both", percent(d.Agreement.Lo), percent(d.Agreement.Hi), d.Agreement.N, d.Matched, d.Ref, d.Quant))
			add("their overlap", "", percent(d.Overlap), fmt.Sprintf("SQNR of their coordinates %.1f dB", e.SQNR))
		} else if e.Cosine.N > 0 {
			add("cosine to FP32", "", cosineText(e.Cosine.Mean), fmt.Sprintf("minimum %s, 5th percentile %s; n = %d", cosineText(e.Cosine.Min), cosineText(e.Cosine.P5), e.Cosine.N))
			add("SQNR", "", fmt.Sprintf("%.1f dB", e.SQNR), "")
		}
		if l := e.Latency; l != nil && len(l.Candidates) > 1 && len(l.Ratios) > 1 {
			a, q, rt := l.Candidates[0], l.Candidates[1], l.Ratios[1]
			add("latency p50", msText(a.P50MS), msText(q.P50MS), fmt.Sprintf("%s the speed (95 %%: %s to %s; n = %d, interleaved)", times(rt.Median), times(rt.Lo), times(rt.Hi), rt.N))
			add("latency p90", msText(a.P90MS), msText(q.P90MS), "")
			p99 := ""
			if t := r.Gate.SLOMS; t > 0 {
				p99 = fmt.Sprintf("target %s: %s", msText(t), map[bool]string{true: "met", false: "missed"}[q.P99MS <= t])
			}
			add("latency p99", msText(a.P99MS), msText(q.P99MS), p99)
		}
	}
	if a, q := r.Model.Bytes, r.Quantized.Bytes; a > 0 && q > 0 {
		add("size", Bytes(a), Bytes(q), change(float64(a), float64(q), "smaller", "larger"))
	}
	if s := r.Sparsity; s != nil && s.Elements > 0 && s.All > 0 {
		add("zeros", "", percent(float64(s.Zeros)/float64(s.Elements)), fmt.Sprintf("of %d weights; %s of those of all products", s.Weights, percent(float64(s.AllZeros)/float64(s.All))))
		add("compressed", Bytes(s.CompressedBefore), Bytes(s.CompressedAfter), change(float64(s.CompressedBefore), float64(s.CompressedAfter), "smaller", "larger")+" (zstd)")
	}
	if a, q := r.Memory.FP32Peak, r.Memory.QuantPeak; a > 0 && q > 0 {
		add("peak memory", Bytes(a), Bytes(q), change(float64(a), float64(q), "less", "more"))
	}
	if m := r.Memory; m.Ceiling > 0 && m.RunPeak > 0 {
		add("memory of this run", "", Bytes(m.RunPeak), fmt.Sprintf("ceiling %s, predicted %s", Bytes(m.Ceiling), Bytes(m.Predicted)))
	}
	if s, ok := r.Integer.Share(); ok {
		add("integer MACs", "", percent(s), fmt.Sprintf("%s of %s", countText(r.Integer.MACs), countText(r.Integer.Total)))
	}
	return rows
}

func table(w io.Writer, rows []row) {
	if len(rows) < 2 {
		return
	}
	var wn, wf, wq int
	for _, r := range rows {
		wn, wf, wq = max(wn, width(r.name)), max(wf, width(r.fp32)), max(wq, width(r.quant))
	}
	for _, r := range rows {
		line := "  " + r.name + pad(wn-width(r.name)) + "  " + pad(wf-width(r.fp32)) + r.fp32 + "  " + pad(wq-width(r.quant)) + r.quant + "  " + r.change
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func width(s string) int { return utf8.RuneCountInString(s) }

func pad(n int) string { return strings.Repeat(" ", max(0, n)) }

// worst lists the operators with the lowest SQNR.
func worst(w io.Writer, ops []Operator) {
	s := bySQNR(ops)
	if len(s) == 0 {
		return
	}
	fmt.Fprintln(w, "lowest SQNR")
	for _, o := range s[:min(len(s), textWorst)] {
		fmt.Fprintf(w, "  %6.1f dB  %s %s\n", float64(o.SQNR), clean(o.Op), shorten(clean(o.Name), 80))
	}
	more(w, len(s)-textWorst)
}

// unchanged names the list of operators that were left as they are.
func (r Report) unchanged() string {
	if r.Sparsity != nil {
		return "not pruned"
	}
	return "not in integers"
}

// floats lists what does not run in integers, or was not pruned, operators that
// broke the same rule together, the heaviest first.
func floats(w io.Writer, r Report) {
	s, total := byRule(r.Operators), r.Integer
	if len(s) == 0 {
		return
	}
	fmt.Fprintln(w, r.unchanged())
	for _, g := range s[:min(len(s), textFloat)] {
		share := ""
		if total.Total > 0 && g.macs > 0 {
			share = fmt.Sprintf("%.1f %%", 100*float64(g.macs)/float64(total.Total))
		}
		what := clean(g.op) + " " + shorten(clean(g.first), 60)
		if g.count > 1 {
			what = fmt.Sprintf("%d %s (%s, ...)", g.count, clean(g.op), shorten(clean(g.first), 60))
		}
		fmt.Fprintf(w, "  %7s  %s: %s\n", share, what, clean(g.rule))
	}
	more(w, len(s)-textFloat)
}

func list(w io.Writer, what string, items []string, most int) {
	for _, s := range items[:min(len(items), most)] {
		fmt.Fprintf(w, "%s: %s\n", what, clean(s))
	}
	if n := len(items) - most; n > 0 {
		fmt.Fprintf(w, "%s: and %d more\n", what, n)
	}
}

func more(w io.Writer, n int) {
	if n > 0 {
		fmt.Fprintf(w, "  and %d more\n", n)
	}
}

func verdict(w io.Writer, v Verdict) {
	switch v.Status {
	case Accepted:
		fmt.Fprintln(w, "ACCEPTED")
	case Refused, Forced:
		reasons := make([]string, len(v.Reasons))
		for i, s := range v.Reasons {
			reasons[i] = clean(s)
		}
		word := map[Status]string{Refused: "REFUSED", Forced: "FORCED although refused"}[v.Status]
		fmt.Fprintf(w, "%s: %s\n", word, strings.Join(reasons, "; "))
	}
}

func nonEmpty(s ...string) (r []string) {
	for _, x := range s {
		if x != "" {
			r = append(r, x)
		}
	}
	return r
}
