package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/eval"
)

// How much of each list the page shows; the JSON form has all of it.
const (
	htmlBars       = 40
	htmlRows       = 200
	htmlHistograms = 12
	htmlNames      = 20
	htmlWarnings   = 50
	htmlText       = 20_000 // characters of the recipe
)

//go:embed report.html.tmpl
var pageText string

//go:embed report.css
var pageCSS string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"clean":  clean,
	"short":  func(n int, s string) string { return shorten(clean(s), n) },
	"num":    func(n Num) string { return sig(float64(n), 4) },
	"err":    func(n Num) string { return sig(float64(n), 3) },
	"ms":     msText,
	"sec":    secText,
	"size":   Bytes,
	"count":  countText,
	"pct":    percent,
	"bar":    barPlot,
	"cos":    cosineText,
	"hist":   histogramPlot,
	"join":   func(s []string) string { return clean(strings.Join(s, ", ")) },
	"sqnr":   sqnrText,
	"points": points,
	"two":    func(x *float64) string { return sig(*x, 2) },
	"names":  nameList,
	"clipped": func(n Num) string {
		if !n.Finite() {
			return "not measured"
		}
		return fmt.Sprintf("%s %% of the values", sig(100*float64(n), 3))
	},
}).Parse(pageText))

// nameList joins the first names of a list.
func nameList(all []string) string {
	some, more := cut(all, htmlNames)
	s := make([]string, len(some))
	for i, n := range some {
		s[i] = shorten(cleanAll(n), 80)
	}
	if more > 0 {
		s = append(s, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(s, ", ")
}

func sqnrText(n Num) string {
	switch {
	case !n.Finite():
		return "–"
	case float64(n) >= eval.MaxSQNR:
		return "exact"
	}
	return strconv.FormatFloat(float64(n), 'f', 1, 64)
}

// tile is one number at the head of the page.
type tile struct {
	Name, Value, Before, Note string
	Class                     string // good, bad or ""
}

// view is what the template sees: lists already ranked and cut.
type view struct {
	R                     Report
	CSS                   template.CSS
	Title                 string
	Quant                 string
	Tiles                 []tile
	Verdict, VerdictClass string
	Warnings              []string
	MoreWarn              int
	Latency               template.HTML
	LatRows               []latRow
	Intervals             template.HTML
	SQNR                  template.HTML
	MoreSQNR              int
	Floats                []Operator
	MoreFloat             int
	Ops                   []Operator
	MoreOps               int
	Tensors               []TensorChoice
	MoreTens              int
	FewTensors            bool // short enough to show unasked
	Hists                 []TensorChoice
	Total                 float64 // seconds over all passes
	Command               string
	RecipeTxt             string
	ShareOf               func(macs int64) string
	PassShare             func(s float64) float64
}

type latRow struct {
	Name  string
	Class string
	S     eval.LatencyStats
}

// HTML writes r as one page that needs nothing else: no script, no fonts, no
// network. It follows the reader's light or dark preference.
func HTML(w io.Writer, r Report) error {
	r.Schema = Schema
	v := newView(r)
	var b bytes.Buffer // nothing half-made reaches w
	if err := page.Execute(&b, v); err != nil {
		return fmt.Errorf("render report: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func newView(r Report) *view {
	v := &view{
		R: r, CSS: template.CSS(pageCSS), Quant: r.quantName(), Tiles: r.tiles(),
		Title:        clean(r.Model.Name),
		Verdict:      map[Status]string{Accepted: "✓ accepted", Refused: "✕ refused", Forced: "! forced although refused"}[r.Verdict.Status],
		VerdictClass: map[Status]string{Accepted: "accepted", Refused: "refused", Forced: "forced"}[r.Verdict.Status],
		Command:      cleanAll(shorten(strings.Join(quoteArgs(r.Command), " "), htmlText)),
	}
	v.RecipeTxt = cleanLines(shorten(r.Recipe.Text, htmlText))
	v.Warnings, v.MoreWarn = cut(r.allWarnings(), htmlWarnings)
	if e := r.Evaluation; e != nil {
		if l := e.Latency; l != nil && len(l.Candidates) > 1 {
			a, q := l.Candidates[0], l.Candidates[1]
			v.Latency = latencyPlot(a, q, v.Quant, r.Gate.SLOMS)
			v.LatRows = []latRow{{"FP32", "fp32", a}, {v.Quant, "quant", q}}
		}
		if e.RefAccuracy != nil && e.QuantAccuracy != nil {
			floor := 0.0
			if r.Gate.MaxLoss != nil {
				floor = e.RefAccuracy.Value * (1 - *r.Gate.MaxLoss)
			}
			v.Intervals = intervalPlot(*e.RefAccuracy, *e.QuantAccuracy, v.Quant, floor)
		}
	}
	var bars []Operator
	if bars, v.MoreSQNR = cut(bySQNR(r.Operators), htmlBars); len(bars) > 0 {
		v.SQNR = sqnrPlot(bars)
	}
	v.Floats, v.MoreFloat = cut(byFloatMACs(r.Operators), htmlRows)
	ops := slices.Clone(r.Operators)
	slices.SortStableFunc(ops, func(a, b Operator) int { return int(sign(b.MACs - a.MACs)) })
	v.Ops, v.MoreOps = cut(ops, htmlRows)
	tensors := byError(r.Tensors)
	v.Tensors, v.MoreTens = cut(tensors, htmlRows)
	v.FewTensors = len(tensors) <= 12
	for _, t := range tensors {
		if len(v.Hists) < htmlHistograms && histogramPlot(t) != "" {
			v.Hists = append(v.Hists, t)
		}
	}
	for _, p := range r.Passes {
		v.Total += p.Seconds
	}
	total := r.Integer.Total
	v.ShareOf = func(macs int64) string {
		if total <= 0 || macs <= 0 {
			return ""
		}
		return fmt.Sprintf("%.1f %%", 100*float64(macs)/float64(total))
	}
	v.PassShare = func(s float64) float64 {
		if v.Total <= 0 {
			return 0
		}
		return s / v.Total
	}
	return v
}

func sign(x int64) int64 {
	switch {
	case x < 0:
		return -1
	case x > 0:
		return 1
	}
	return 0
}

// cut returns the first n of s and how many it left out.
func cut[T any](s []T, n int) ([]T, int) {
	if len(s) <= n {
		return s, 0
	}
	return s[:n], len(s) - n
}

// quoteArgs quotes arguments for a shell where they need it.
func quoteArgs(args []string) []string {
	r := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?<>|&;()[]{}!#~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		r[i] = a
	}
	return r
}

// tiles picks the numbers that decide.
func (r Report) tiles() (t []tile) {
	e := r.Evaluation
	if e == nil {
		e = &eval.Result{}
	}
	switch {
	case e.RefAccuracy != nil && e.QuantAccuracy != nil && e.Difference != nil:
		t = append(t, tile{"Accuracy", percent(e.QuantAccuracy.Value), percent(e.RefAccuracy.Value),
			fmt.Sprintf("%s points (%s to %s); n\u00a0=\u00a0%d", points(e.Difference.Value), points(e.Difference.Lo), points(e.Difference.Hi), e.Difference.N), ""})
	case e.Detected != nil:
		d := e.Detected
		t = append(t, tile{"Same detections", percent(d.Agreement.Value), "", fmt.Sprintf("by score; %s to %s; overlap %s", percent(d.Agreement.Lo), percent(d.Agreement.Hi), percent(d.Overlap)), ""})
	case e.Cosine.N > 0:
		t = append(t, tile{"Cosine to FP32", cosineText(e.Cosine.Mean), "", fmt.Sprintf("minimum %s, n = %d", cosineText(e.Cosine.Min), e.Cosine.N), ""})
	}
	if a := e.Agreement; a != nil {
		t = append(t, tile{"Same answer as FP32", percent(a.Value), "", fmt.Sprintf("%s to %s", percent(a.Lo), percent(a.Hi)), ""})
	} else if a := e.Tokens; a != nil {
		t = append(t, tile{"Same class of token", percent(a.Value), "", fmt.Sprintf("%s to %s", percent(a.Lo), percent(a.Hi)), ""})
	} else if a := e.Neighbours; a != nil {
		t = append(t, tile{"Same nearest neighbour", percent(a.Value), "", fmt.Sprintf("%s to %s", percent(a.Lo), percent(a.Hi)), ""})
	}
	if l := e.Latency; l != nil && len(l.Candidates) > 1 && len(l.Ratios) > 1 {
		a, q, rt := l.Candidates[0], l.Candidates[1], l.Ratios[1]
		class := ""
		if rt.Hi < 1 {
			class = "bad"
		} else if rt.Lo > 1 {
			class = "good"
		}
		t = append(t, tile{"Latency p50", msText(q.P50MS), msText(a.P50MS), fmt.Sprintf("%s the speed (%.2f to %.2f)", times(rt.Median), rt.Lo, rt.Hi), class})
		p99 := tile{Name: "Latency p99", Value: msText(q.P99MS), Before: msText(a.P99MS)}
		if s := r.Gate.SLOMS; s > 0 {
			p99.Note, p99.Class = "target "+msText(s)+" met", "good"
			if q.P99MS > s {
				p99.Note, p99.Class = "target "+msText(s)+" missed", "bad"
			}
		}
		t = append(t, p99)
	}
	if a, q := r.Model.Bytes, r.Quantized.Bytes; a > 0 && q > 0 {
		t = append(t, tile{"File size", Bytes(q), Bytes(a), change(float64(a), float64(q), "smaller", "larger"), ""})
	}
	if s := r.Sparsity; s != nil && s.Elements > 0 {
		t = append(t, tile{"Zeros", percent(float64(s.Zeros) / float64(s.Elements)), "", fmt.Sprintf("of %d weights, by %s", s.Weights, clean(s.Method)), ""},
			tile{"Compressed", Bytes(s.CompressedAfter), Bytes(s.CompressedBefore), change(float64(s.CompressedBefore), float64(s.CompressedAfter), "smaller", "larger"), ""})
	}
	if a, q := r.Memory.FP32Peak, r.Memory.QuantPeak; a > 0 && q > 0 {
		t = append(t, tile{"Peak memory", Bytes(q), Bytes(a), change(float64(a), float64(q), "less", "more"), ""})
	}
	if m := r.Memory; m.Ceiling > 0 && m.RunPeak > 0 {
		t = append(t, tile{"Memory of this run", Bytes(m.RunPeak), "", fmt.Sprintf("ceiling %s, predicted %s", Bytes(m.Ceiling), Bytes(m.Predicted)), ""})
	}
	if s, ok := r.Integer.Share(); ok && !math.IsNaN(s) {
		t = append(t, tile{"Integer multiply-adds", fmt.Sprintf("%.1f %%", 100*s), "", fmt.Sprintf("%s of %s a sample", countText(r.Integer.MACs), countText(r.Integer.Total)), ""})
	}
	return t
}
