package report

import (
	"bufio"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/eval"
)

// SearchSchema names the JSON form of Search.
const SearchSchema = "fewbit.search/1"

// Search is what a search for the fastest model within a budget has tried and found.
type Search struct {
	Schema  string    `json:"schema"` // always SearchSchema
	Created time.Time `json:"created"`
	Command []string  `json:"command,omitempty"`
	Machine Machine   `json:"machine"`
	Model   Model     `json:"model"`
	Goal    Goal      `json:"goal"`
	// Metric is what Loss is a share of: accuracy, or cosine to FP32 without labels.
	Metric string `json:"metric"`
	// RefAccuracy is FP32's own; nil without labels.
	RefAccuracy *eval.Score `json:"ref_accuracy,omitempty"`
	// Samples judge a trial; Available are in the data.
	Samples   int `json:"samples"`
	Available int `json:"available"`
	// Seconds is the time of this start, Limit what it may take; Resumed counts the
	// trials that an earlier start had made.
	Seconds float64 `json:"seconds"`
	Limit   float64 `json:"limit_seconds"`
	Resumed int     `json:"resumed,omitempty"`
	// Kept counts the solved weights that were read from disk, of an earlier start or
	// another form, and Saved the seconds that solving for them took.
	Kept  int     `json:"kept_weights,omitempty"`
	Saved float64 `json:"saved_seconds,omitempty"`
	// Memory is what the search itself took, under a ceiling.
	Memory *Memory `json:"memory,omitempty"`
	// Stopped says what ended the search early: "time limit", "memory ceiling", "interrupted".
	Stopped string  `json:"stopped,omitempty"`
	Trials  []Trial `json:"trials"`
	// Front holds the numbers of the trials that no other beats in loss, speed and
	// size at once; Best is the number of the one that was kept, 0 for none.
	Front []int `json:"front"`
	Best  int   `json:"best"`
	// Recipe makes the best again with quantize.
	Recipe   string   `json:"recipe,omitempty"`
	Verdict  Verdict  `json:"verdict"`
	Warnings []string `json:"warnings,omitempty"`
}

// Goal is what a search was asked for; zero values ask for nothing.
type Goal struct {
	// MaxLoss is a share of the metric.
	MaxLoss  float64 `json:"max_loss"`
	SLOMS    float64 `json:"slo_ms,omitempty"`    // of the 99th percentile
	MaxBytes int64   `json:"max_bytes,omitempty"` // of the file and its external data
}

// Excess is by how much t misses the goal's latency and size, as a share of
// them; 0 is met.
func (g Goal) Excess(t Trial) float64 {
	var x float64
	if g.SLOMS > 0 {
		x += max(0, float64(t.P99MS)/g.SLOMS-1)
	}
	if g.MaxBytes > 0 {
		x += max(0, float64(t.Bytes)/float64(g.MaxBytes)-1)
	}
	return x
}

// Trial is one model that was made and measured. What was not measured is NaN (null).
type Trial struct {
	Number int    `json:"number"` // from 1
	Key    string `json:"key"`    // what was tried, exactly
	Label  string `json:"label"`  // the same for people
	Scheme string `json:"scheme"`
	Target string `json:"target"`
	// Operators are the rules of single operators, MATCH=PRECISION.
	Operators []string `json:"operators,omitempty"`
	// Learned names the first operator of each block that was learned from the float
	// model (weights brecq, learn).
	Learned []string `json:"learned,omitempty"`
	// Accepted: within the loss by its whole interval, and not slower than FP32.
	Accepted bool   `json:"accepted"`
	Why      string `json:"why,omitempty"` // it was not

	// Loss is a share of FP32's metric, LossLo and LossHi bound its paired 95 % interval.
	Loss    Num `json:"loss"`
	LossLo  Num `json:"loss_lo"`
	LossHi  Num `json:"loss_hi"`
	Samples int `json:"samples"`
	// Cosine is the mean to FP32, Agreement the share of the same top class.
	Cosine    Num `json:"cosine"`
	Agreement Num `json:"agreement"`
	SQNR      Num `json:"sqnr_db"`

	// Speed is the median of FP32's latency over this one's, measured in turn.
	Speed     Num   `json:"speed"`
	SpeedLo   Num   `json:"speed_lo"`
	SpeedHi   Num   `json:"speed_hi"`
	Rounds    int   `json:"rounds"`
	FP32P50MS Num   `json:"fp32_p50_ms"`
	P50MS     Num   `json:"p50_ms"`
	P99MS     Num   `json:"p99_ms"`
	Bytes     int64 `json:"bytes"`
	// Integer is the share of multiply-accumulates in integers.
	Integer Num     `json:"integer_share"`
	SHA256  string  `json:"sha256,omitempty"`
	Seconds float64 `json:"seconds"`
}

// NewTrial returns a trial of which nothing is measured.
func NewTrial() Trial {
	n := Num(math.NaN())
	return Trial{Loss: n, LossLo: n, LossHi: n, Cosine: n, Agreement: n, SQNR: n, Speed: n, SpeedLo: n, SpeedHi: n, FP32P50MS: n, P50MS: n, P99MS: n, Integer: n}
}

// Measured reports whether loss, speed and size of t are known.
func (t Trial) Measured() bool { return t.Loss.Finite() && t.Speed.Finite() && t.Bytes > 0 }

// trial returns the trial of a number, nil when there is none.
func (s *Search) trial(number int) *Trial {
	for i := range s.Trials {
		if s.Trials[i].Number == number {
			return &s.Trials[i]
		}
	}
	return nil
}

// BestTrial returns the trial that was kept, nil for none.
func (s *Search) BestTrial() *Trial { return s.trial(s.Best) }

// WriteSearchJSON writes s, indented, with Schema set.
func WriteSearchJSON(w io.Writer, s Search) error {
	s.Schema = SearchSchema
	return writeJSON(w, s)
}

// searchRow is a trial for people.
type searchRow struct {
	Trial
	Mark            string // best, front or ""
	LossText, Speed string
}

func (s *Search) rows() []searchRow {
	rows := make([]searchRow, len(s.Trials))
	for i, t := range s.Trials {
		r := searchRow{Trial: t, LossText: "–", Speed: "–"}
		switch {
		case t.Number == s.Best:
			r.Mark = "best"
		case slices.Contains(s.Front, t.Number):
			r.Mark = "front"
		}
		if t.Loss.Finite() {
			r.LossText = fmt.Sprintf("%s %% (%s to %s)", lossText(t.Loss), lossText(t.LossLo), lossText(t.LossHi))
		}
		if t.Speed.Finite() {
			r.Speed = fmt.Sprintf("%s (%s to %s)", times(float64(t.Speed)), times(float64(t.SpeedLo)), times(float64(t.SpeedHi)))
		}
		rows[i] = r
	}
	return rows
}

func lossText(n Num) string { return strings.Replace(sig(100*float64(n), 3), "-", "−", 1) }

// Line describes the trial in one line for a terminal.
func (t Trial) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "trial %d: %s", t.Number, shorten(clean(t.Label), 100))
	if t.Loss.Finite() {
		fmt.Fprintf(&b, ", loss %s %% (at most %s)", lossText(t.Loss), lossText(t.LossHi))
	}
	if t.Speed.Finite() {
		fmt.Fprintf(&b, ", %s the speed", times(float64(t.Speed)))
	}
	if t.Bytes > 0 {
		fmt.Fprintf(&b, ", %s", Bytes(t.Bytes))
	}
	if !t.Accepted {
		fmt.Fprintf(&b, ": %s", shorten(clean(t.Why), 200))
	}
	return b.String()
}

// SearchText writes the trials as a table.
func SearchText(w io.Writer, s Search) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s: loss of %s at most %s %%%s; %d samples judge\n", clean(s.Model.Name), s.Metric, sig(100*s.Goal.MaxLoss, 3), s.goals(), s.Samples)
	lines := [][5]string{{"", "loss (95 %)", "speed (95 %)", "p99", "size"}}
	rows := s.rows()
	for _, r := range rows {
		p99 := "–"
		if r.P99MS.Finite() {
			p99 = msText(float64(r.P99MS))
		}
		lines = append(lines, [5]string{fmt.Sprintf("%d %s", r.Number, shorten(clean(r.Label), 60)), r.LossText, r.Speed, p99, Bytes(r.Bytes)})
	}
	var wide [5]int
	for _, l := range lines {
		for i, c := range l {
			wide[i] = max(wide[i], width(c))
		}
	}
	for i, l := range lines {
		fmt.Fprintf(b, "  %s%s", l[0], pad(wide[0]-width(l[0])))
		for j := 1; j < 5; j++ {
			fmt.Fprintf(b, "  %s%s", pad(wide[j]-width(l[j])), l[j])
		}
		switch {
		case i > 0 && rows[i-1].Mark != "":
			fmt.Fprintf(b, "  %s", rows[i-1].Mark)
		case i > 0 && !rows[i-1].Accepted:
			fmt.Fprintf(b, "  %s", shorten(clean(rows[i-1].Why), 100))
		}
		fmt.Fprintln(b)
	}
	list(b, "warning", s.Warnings, textWarnings)
	if s.Kept > 0 {
		fmt.Fprintf(b, "%d solved weights were read from disk, which spared %.1f s\n", s.Kept, s.Saved)
	}
	if s.Stopped != "" {
		fmt.Fprintf(b, "stopped: %s\n", clean(s.Stopped))
	}
	verdict(b, s.Verdict)
	return b.Flush()
}

// goals words what else was asked for.
func (s *Search) goals() string {
	var g string
	if s.Goal.SLOMS > 0 {
		g += ", 99th percentile at most " + msText(s.Goal.SLOMS)
	}
	if s.Goal.MaxBytes > 0 {
		g += ", at most " + Bytes(s.Goal.MaxBytes)
	}
	return g
}

//go:embed search.html.tmpl
var searchText string

var searchPage = template.Must(template.New("search").Funcs(template.FuncMap{
	"clean": clean,
	"short": func(n int, s string) string { return shorten(clean(s), n) },
	"num":   func(n Num) string { return sig(float64(n), 3) },
	"ms": func(n Num) string {
		if !n.Finite() {
			return "–"
		}
		return msText(float64(n))
	},
	"size": Bytes,
	"sec":  secText,
	"pct":  func(x float64) string { return sig(100*x, 3) + " %" },
	"cos": func(n Num) string {
		if !n.Finite() {
			return "–"
		}
		return cosineText(float64(n))
	},
}).Parse(searchText))

// SearchHTML writes s as one self-contained page.
func SearchHTML(w io.Writer, s Search) error {
	class := map[Status]string{Accepted: "accepted", Refused: "refused"}[s.Verdict.Status]
	word := map[Status]string{Accepted: "✓ found", Refused: "✕ not met"}[s.Verdict.Status]
	rows, left := cut(s.rows(), htmlRows)
	warnings, more := cut(s.Warnings, htmlWarnings)
	err := searchPage.Execute(w, map[string]any{"CSS": template.CSS(pageCSS), "S": s, "Rows": rows, "Left": left, "Goals": s.goals(), "Plot": frontPlot(s), //nolint:gosec // our own style sheet
		"Class": class, "Word": word, "Warnings": warnings, "MoreWarn": more, "Command": cleanAll(shorten(strings.Join(quoteArgs(s.Command), " "), htmlText)), "Recipe": cleanLines(shorten(s.Recipe, htmlText))})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// frontPlot draws the measured trials: speed to the right, loss upwards with its
// interval, the area of a dot by the size of the file; the front is joined.
func frontPlot(s Search) template.HTML {
	var all []Trial
	for _, t := range s.Trials {
		if t.Measured() {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return ""
	}
	const w, h, left, right, top, bottom = plotWidth, 420.0, 64.0, 120.0, 24.0, 48.0
	d := newDrawing(w, h, "loss against speed, size as area")
	fast, lo, hi, large := 1.0, 0.0, s.Goal.MaxLoss, float64(s.Model.Bytes)
	for _, t := range all {
		fast = math.Max(fast, float64(t.SpeedHi))
		large = math.Max(large, float64(t.Bytes))
		lo = math.Min(lo, float64(t.LossLo))
		hi = math.Max(hi, float64(t.Loss))
	}
	// A trial that lost everything would press the others onto the axis.
	hi, lo = math.Min(1.1*hi, 5*s.Goal.MaxLoss), math.Max(lo, -2*s.Goal.MaxLoss)
	x, y := axis{0, 1.08 * fast, left, w - right}, axis{lo, hi, h - bottom, top}
	for _, t := range x.ticks(8) {
		d.line("grid", x.at(t), top, x.at(t), h-bottom)
		d.text("tick", "middle", x.at(t), h-bottom+16, tickText(t)+"×")
	}
	for _, t := range y.ticks(6) {
		d.line("grid", left, y.at(t), w-right, y.at(t))
		d.text("tick", "end", left-6, y.at(t)+4, tickText(100*t)+" %")
	}
	d.line("target", left, y.at(s.Goal.MaxLoss), w-right, y.at(s.Goal.MaxLoss))
	d.text("target-label", "start", w-right+6, y.at(s.Goal.MaxLoss)+4, "largest loss")
	d.text("tick", "end", w-right, h-10, "times FP32's speed; area: size of the file; loss upwards with its 95 % interval")
	radius := func(bytes int64) float64 { return math.Max(3, 22*math.Sqrt(float64(bytes)/large)) }
	d.circle("dot fp32", x.at(1), y.at(0), radius(s.Model.Bytes))
	d.text("row-label", "middle", x.at(1), y.at(0)-radius(s.Model.Bytes)-4, "FP32")
	for _, t := range all {
		cx, cy := x.at(float64(t.Speed)), y.at(y.clamp(float64(t.Loss)))
		class := "dot fp32"
		if slices.Contains(s.Front, t.Number) {
			class = "dot quant"
		}
		d.line("whisker quant", cx, y.at(y.clamp(float64(t.LossLo))), cx, y.at(y.clamp(float64(t.LossHi))))
		d.circle(class, cx, cy, radius(t.Bytes))
		label := fmt.Sprintf("%d", t.Number)
		if t.Number == s.Best {
			label += " best"
		}
		d.text("value", "start", cx+radius(t.Bytes)+3, cy+4, label)
	}
	return d.end()
}
