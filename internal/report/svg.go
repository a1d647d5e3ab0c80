package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/eval"
)

// The plots are SVG written here: coordinates from numbers, colours from the
// page's CSS classes (so they follow light and dark), text always through
// drawing.text, the one place that escapes.

// plotWidth is the width in pixels of a plot that fills its section.
const plotWidth = 1000.0

type drawing struct{ strings.Builder }

func newDrawing(w, h float64, label string) *drawing {
	d := &drawing{}
	fmt.Fprintf(d, `<svg viewBox="0 0 %s %s" width="%[1]s" height="%[2]s" role="img" aria-label="%s">`, num(w), num(h), html.EscapeString(label))
	return d
}

func (d *drawing) end() template.HTML {
	d.WriteString("</svg>")
	return template.HTML(d.String()) //nolint:gosec // every string inside went through html.EscapeString
}

// num formats a coordinate; what is not finite becomes 0.
func num(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return "0"
	}
	s := fmt.Sprintf("%.2f", x)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(d, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, num(x1), num(y1), num(x2), num(y2))
}

func (d *drawing) rect(class string, x, y, w, h float64, title string) {
	fmt.Fprintf(d, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"`, class, num(x), num(y), num(math.Max(0, w)), num(math.Max(0, h)))
	if title == "" {
		d.WriteString("/>")
		return
	}
	fmt.Fprintf(d, `><title>%s</title></rect>`, html.EscapeString(title))
}

func (d *drawing) circle(class string, x, y, r float64) {
	fmt.Fprintf(d, `<circle class="%s" cx="%s" cy="%s" r="%s"/>`, class, num(x), num(y), num(r))
}

func (d *drawing) path(class string, pts [][2]float64) {
	fmt.Fprintf(d, `<path class="%s" d="`, class)
	for i, p := range pts {
		fmt.Fprintf(d, "%c%s %s", "ML"[min(i, 1)], num(p[0]), num(p[1]))
	}
	d.WriteString(`"/>`)
}

// text writes s; anchor is start, middle or end.
func (d *drawing) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(d, `<text class="%s" text-anchor="%s" x="%s" y="%s">%s</text>`, class, anchor, num(x), num(y), html.EscapeString(s))
}

// label writes s shortened to n characters with the whole of it as its tooltip.
func (d *drawing) label(class, anchor string, x, y float64, s string, n int) {
	fmt.Fprintf(d, `<text class="%s" text-anchor="%s" x="%s" y="%s"><title>%s</title>%s</text>`, class, anchor, num(x), num(y), html.EscapeString(s), html.EscapeString(shorten(s, n)))
}

// axis maps lo..hi onto pixels a..b.
type axis struct{ lo, hi, a, b float64 }

func (x axis) at(v float64) float64 {
	if x.hi <= x.lo {
		return x.a
	}
	return x.a + (v-x.lo)/(x.hi-x.lo)*(x.b-x.a)
}

// clamp keeps v inside the axis.
func (x axis) clamp(v float64) float64 { return math.Min(x.hi, math.Max(x.lo, v)) }

// ticks returns at most about n round values inside the axis.
func (x axis) ticks(n int) []float64 {
	span := x.hi - x.lo
	if !(span > 0) || math.IsInf(span, 0) || n < 1 {
		return []float64{x.lo}
	}
	step := math.Pow(10, math.Floor(math.Log10(span/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if span/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	var t []float64
	for i := math.Ceil(x.lo/step - 1e-9); i*step <= x.hi+step*1e-9 && len(t) < 2*n+2; i++ {
		t = append(t, i*step)
	}
	return t
}

// tickText shows a round value without the noise of its binary form.
func tickText(v float64) string {
	s := strconv.FormatFloat(v, 'g', 6, 64)
	if s == "-0" {
		return "0"
	}
	return s
}

// latencyPlot draws the two cumulative distributions and the target.
func latencyPlot(fp32, quant eval.LatencyStats, quantName string, targetMS float64) template.HTML {
	if len(fp32.CurveMS) < 2 || len(quant.CurveMS) < 2 {
		return ""
	}
	const w, h, left, right, top, bottom = plotWidth, 320.0, 48.0, 24.0, 28.0, 44.0
	d := newDrawing(w, h, "cumulative distribution of latency, FP32 and "+quantName)
	hi := 1.15 * math.Max(fp32.P99MS, quant.P99MS)
	// A target far to the right would squash both curves: it is then said, not drawn.
	drawTarget := targetMS > 0 && targetMS < 3*hi
	if drawTarget {
		hi = math.Max(hi, 1.08*targetMS)
	}
	x, y := axis{0, hi, left, w - right}, axis{0, 1, h - bottom, top}
	for _, t := range x.ticks(8) {
		d.line("grid", x.at(t), top, x.at(t), h-bottom)
		d.text("tick", "middle", x.at(t), h-bottom+16, tickText(t))
	}
	for _, t := range []float64{0, .5, .9, .99} {
		d.line("grid", left, y.at(t), w-right, y.at(t))
		if t != .99 {
			d.text("tick", "end", left-6, y.at(t)+4, fmt.Sprintf("%.0f %%", 100*t))
		}
	}
	d.text("tick", "end", left-6, y.at(.99)-1, "99 %")
	d.text("tick", "end", w-right, h-8, "milliseconds; share of runs at most this long")
	if drawTarget {
		// Beside the line where there is room.
		anchor, dx := "start", 5.0
		if x.at(targetMS) > w-right-120 {
			anchor, dx = "end", -5
		}
		d.line("target", x.at(targetMS), top-10, x.at(targetMS), h-bottom)
		d.text("target-label", anchor, x.at(targetMS)+dx, top-4, "target "+msText(targetMS))
	} else if targetMS > 0 {
		d.text("target-label", "end", w-right, top-12, "target "+msText(targetMS)+", far to the right →")
	}
	for _, c := range []struct {
		class string
		s     eval.LatencyStats
	}{{"fp32", fp32}, {"quant", quant}} {
		n := float64(len(c.s.CurveMS) - 1)
		pts := make([][2]float64, 0, len(c.s.CurveMS))
		for i, v := range c.s.CurveMS {
			if v > x.hi {
				break
			}
			pts = append(pts, [2]float64{x.at(v), y.at(float64(i) / n)})
		}
		d.path("curve "+c.class, pts)
		d.circle("dot "+c.class, x.at(x.clamp(c.s.P50MS)), y.at(.5), 4)
	}
	return d.end()
}

// intervalPlot draws accuracies as dots with their intervals, and the lowest
// accuracy that the gate accepts.
func intervalPlot(fp32, quant eval.Score, quantName string, floor float64) template.HTML {
	const w, h, left, right = plotWidth, 112.0, 110.0, 90.0
	d := newDrawing(w, h, "accuracy of FP32 and "+quantName+" with 95 % intervals")
	lo, hi := math.Min(fp32.Lo, quant.Lo), math.Max(fp32.Hi, quant.Hi)
	if floor > 0 {
		lo = math.Min(lo, floor)
	}
	margin := math.Max(.002, .08*(hi-lo))
	x := axis{math.Max(0, lo-margin), math.Min(1, hi+margin), left, w - right}
	for _, t := range x.ticks(6) {
		d.line("grid", x.at(t), 8, x.at(t), h-28)
		d.text("tick", "middle", x.at(t), h-12, tickText(100*t)+" %")
	}
	if floor > 0 {
		d.line("target", x.at(floor), 4, x.at(floor), h-28)
		d.text("target-label", "start", x.at(floor)+4, 12, "budget")
	}
	for i, s := range []eval.Score{fp32, quant} {
		cy := 28 + 34*float64(i)
		class := []string{"fp32", "quant"}[i]
		d.text("row-label", "end", left-12, cy+4, []string{"FP32", quantName}[i])
		d.line("whisker "+class, x.at(s.Lo), cy, x.at(s.Hi), cy)
		d.line("whisker "+class, x.at(s.Lo), cy-5, x.at(s.Lo), cy+5)
		d.line("whisker "+class, x.at(s.Hi), cy-5, x.at(s.Hi), cy+5)
		d.circle("dot "+class, x.at(s.Value), cy, 6)
		d.text("value", "start", w-right+10, cy+4, percent(s.Value))
	}
	return d.end()
}

// sqnrPlot draws one bar an operator, in the order given.
func sqnrPlot(ops []Operator) template.HTML {
	const w, rowH, left, right, top = plotWidth, 20.0, 330.0, 70.0, 6.0
	h := top + rowH*float64(len(ops)) + 30
	d := newDrawing(w, h, "SQNR in dB by operator, lowest first")
	lo, hi := 0.0, 10.0
	for _, o := range ops {
		if v := float64(o.SQNR); math.Abs(v) < eval.MaxSQNR {
			lo, hi = math.Min(lo, v), math.Max(hi, v)
		}
	}
	x := axis{lo, hi, left, w - right}
	for _, t := range x.ticks(6) {
		d.line("grid", x.at(t), top, x.at(t), h-26)
		d.text("tick", "middle", x.at(t), h-10, tickText(t)+" dB")
	}
	for i, o := range ops {
		y := top + rowH*float64(i)
		v := x.clamp(float64(o.SQNR))
		class := "bar quant"
		if !o.Integer {
			class = "bar fp32"
		}
		name := clean(o.Name)
		a, b := x.at(math.Min(0, v)), x.at(math.Max(0, v))
		d.rect(class, a, y+3, math.Max(1.5, b-a), rowH-6, fmt.Sprintf("%s (%s): %.1f dB", name, clean(o.Op), float64(o.SQNR)))
		d.label("row-label", "end", left-8, y+14, name, 44)
		val := fmt.Sprintf("%.1f", float64(o.SQNR))
		if float64(o.SQNR) >= eval.MaxSQNR {
			val = "exact"
		}
		d.text("value", "start", math.Max(b, x.at(0))+6, y+14, val)
	}
	return d.end()
}

// maxBars is how many bars a histogram is drawn with.
const maxBars = 64

// histogramPlot draws the counts on a logarithmic axis, the chosen range as a
// band and every other candidate as a dashed line.
func histogramPlot(t TensorChoice) template.HTML {
	hg := t.Histogram
	if hg == nil || len(hg.Counts) == 0 || !hg.Lo.Finite() || !hg.Hi.Finite() || hg.Hi <= hg.Lo {
		return ""
	}
	const w, h, left, right, top, bottom = 340.0, 150.0, 8.0, 8.0, 8.0, 22.0
	d := newDrawing(w, h, "histogram of "+clean(t.Name))
	counts := rebin(hg.Counts, maxBars)
	most := int64(1)
	for _, c := range counts {
		most = max(most, c)
	}
	x := axis{float64(hg.Lo), float64(hg.Hi), left, w - right}
	y := axis{0, math.Log1p(float64(most)), h - bottom, top}
	if t.Lo.Finite() && t.Hi.Finite() {
		a, b := x.at(x.clamp(float64(t.Lo))), x.at(x.clamp(float64(t.Hi)))
		d.rect("band", a, top, b-a, h-top-bottom, fmt.Sprintf("%s: %s to %s", clean(t.Method), sig(float64(t.Lo), 4), sig(float64(t.Hi), 4)))
	}
	bw := (w - left - right) / float64(len(counts))
	span := (float64(hg.Hi) - float64(hg.Lo)) / float64(len(counts))
	for i, c := range counts {
		if c <= 0 {
			continue
		}
		mid := float64(hg.Lo) + (float64(i)+.5)*span
		class := "bar hist"
		if t.Lo.Finite() && t.Hi.Finite() && (mid < float64(t.Lo) || mid > float64(t.Hi)) {
			class = "bar clipped"
		}
		top := y.at(math.Log1p(float64(c)))
		d.rect(class, left+bw*float64(i)+.4, top, math.Max(.6, bw-.8), h-bottom-top, fmt.Sprintf("%s to %s: %d", sig(mid-span/2, 3), sig(mid+span/2, 3), c))
	}
	for _, c := range t.Candidates {
		if c.Method == t.Method {
			continue
		}
		for _, v := range []Num{c.Lo, c.Hi} {
			if v.Finite() && float64(v) > x.lo && float64(v) < x.hi {
				d.line("candidate", x.at(float64(v)), top, x.at(float64(v)), h-bottom)
			}
		}
	}
	for _, v := range []Num{t.Lo, t.Hi} {
		if v.Finite() && v >= hg.Lo && v <= hg.Hi {
			d.line("threshold", x.at(float64(v)), top, x.at(float64(v)), h-bottom)
		}
	}
	d.line("base", left, h-bottom, w-right, h-bottom)
	d.text("tick", "start", left, h-6, sig(float64(hg.Lo), 3))
	d.text("tick", "end", w-right, h-6, sig(float64(hg.Hi), 3))
	if z := x.at(0); hg.Lo < 0 && z > left+60 && z < w-right-60 {
		d.text("tick", "middle", z, h-6, "0")
	}
	return d.end()
}

// rebin sums neighbouring bins until at most n are left.
func rebin(c []int64, n int) []int64 {
	per := (len(c) + n - 1) / n
	if per <= 1 {
		return c
	}
	r := make([]int64, (len(c)+per-1)/per)
	for i, v := range c {
		r[i/per] += v
	}
	return r
}

// barPlot draws a share 0..1 as a small bar for a table cell.
func barPlot(share float64, label string) template.HTML {
	const w, h = 120.0, 10.0
	d := newDrawing(w, h, label)
	d.rect("track", 0, 0, w, h, "")
	if share > 0 {
		d.rect("bar quant", 0, 0, math.Max(1, w*math.Min(1, share)), h, "")
	}
	return d.end()
}
