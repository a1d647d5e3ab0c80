package report

import (
	"bufio"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"
)

// SensitivitySchema names the JSON form of Sensitivity.
const SensitivitySchema = "fewbit.sensitivity/1"

// Sensitivity says what quantizing each operator costs the model's output.
type Sensitivity struct {
	Schema  string    `json:"schema"` // always SensitivitySchema
	Created time.Time `json:"created"`
	Command []string  `json:"command,omitempty"`
	Recipe  Recipe    `json:"recipe"`
	Machine Machine   `json:"machine"`
	Model   Model     `json:"model"`
	// Samples judged each loss.
	Samples int `json:"samples"`
	// Equalized: the channels between convolutions were scaled.
	Equalized bool `json:"equalized,omitempty"`
	// Learns: blocks can be learned from the float model, and are not yet.
	Learns bool `json:"learns,omitempty"`
	// Whole is the loss with all operators quantized.
	Whole Loss `json:"whole"`
	// Operators are ranked, the worst first: those measured by Only, then the
	// others by Proxy.
	Operators []OperatorLoss `json:"operators"`
	Warnings  []string       `json:"warnings,omitempty"`
}

// Loss is what a model lost against FP32 at its output. What does not apply is NaN (null).
type Loss struct {
	Cosine       Num `json:"cosine"`       // 1 - mean cosine
	SQNR         Num `json:"sqnr_db"`      // of the output
	Accuracy     Num `json:"accuracy"`     // share of samples
	Disagreement Num `json:"disagreement"` // share of samples with another top class
}

// OperatorLoss is one operator's part.
type OperatorLoss struct {
	Name      string `json:"name"`
	Op        string `json:"op"`
	Precision string `json:"precision"`
	MACs      int64  `json:"macs,omitempty"`
	// Proxy needs no run of the model: the larger of the relative squared errors
	// of the weight and, where known, of the operator's output.
	Proxy  Num         `json:"proxy"`
	Weight WeightFacts `json:"weight"`
	// Range is the method that set the input's range, Smoothed whether the input
	// is smoothed, Outlier its largest channel maximum over the median one.
	Range    string `json:"range,omitempty"`
	Smoothed bool   `json:"smoothed,omitempty"`
	Outlier  Num    `json:"outlier"`
	// Only is the loss with only this operator quantized, AllBut with all others;
	// nil where it was not measured.
	Only   *Loss `json:"only,omitempty"`
	AllBut *Loss `json:"all_but,omitempty"`
	// Remedy says what to try, for the operators that matter.
	Remedy string `json:"remedy,omitempty"`
}

// WeightFacts is the distribution of a weight before and after.
type WeightFacts struct {
	// Method is how its codes were found, a word of --weights.
	Method   string `json:"method"`
	Elements int    `json:"elements"`
	Std      Num    `json:"std"`
	Max      Num    `json:"max"`
	AfterStd Num    `json:"after_std"`
	SQNR     Num    `json:"sqnr_db"`
}

const (
	remedyShare   = 0.05 // operators with less of the summed loss get no remedy
	floatShare    = 0.25 // from here on it is worth a float operator
	lowWeightSQNR = 30.0 // dB, below which the weight is suspected
	highOutlier   = 10.0 // channel maximum over the median one
)

// Rank sorts the operators and words the remedies.
func (s *Sensitivity) Rank() {
	loss := func(o OperatorLoss) float64 {
		if o.Only == nil {
			return -1
		}
		return float64(o.Only.Cosine)
	}
	slices.SortStableFunc(s.Operators, func(a, b OperatorLoss) int {
		return cmp.Or(cmp.Compare(loss(b), loss(a)), cmp.Compare(b.Proxy, a.Proxy))
	})
	var sum, macs float64
	for _, o := range s.Operators {
		sum += max(loss(o), 0)
		macs += float64(o.MACs)
	}
	for i := range s.Operators {
		o := &s.Operators[i]
		if share := loss(*o) / sum; sum > 0 && share >= remedyShare {
			o.Remedy = o.remedy(share, float64(o.MACs)/max(macs, 1), s.Equalized, s.Learns)
		}
	}
}

// remedy names the first thing to try.
func (o OperatorLoss) remedy(share, work float64, equalized, learns bool) string {
	float := fmt.Sprintf("keep it in float: operators: {%s: fp32} (%.1f %% of the work), or as few as suffice: --min-sqnr", o.Name, 100*work)
	block := ""
	if learns && o.Op == "Conv" {
		block = fmt.Sprintf("learn its block from the float model: --weights brecq (of this one alone: --learn %s); then ", o.Name)
	}
	switch {
	case o.Precision == "int4" && o.Op == "Conv":
		return fmt.Sprintf("8 bits for it: operators: {%s: int8}", o.Name)
	case o.Precision == "int4":
		return fmt.Sprintf("8 bits for it: operators: {%s: int8-dynamic}", o.Name)
	case float64(o.Weight.SQNR) < lowWeightSQNR && share < floatShare:
		return o.Weight.remedy(block != "")
	case float64(o.Outlier) >= highOutlier && !o.Smoothed && o.Op != "Conv":
		return fmt.Sprintf("outlier channels in its input: leave smoothing on, or measure the range at run time: operators: {%s: int8-dynamic}", o.Name)
	case share >= floatShare:
		return block + float
	case o.Op == "Conv" && !equalized:
		return "channels of unlike ranges: --equalize; then " + block + float
	case o.Op == "Conv":
		return "another range for its input: --method mse, or minmax; then " + block + float
	}
	return fmt.Sprintf("measure its range at run time: operators: {%s: int8-dynamic}; then %s", o.Name, float)
}

// remedy is for a weight that loses more than its operator's input does.
func (w WeightFacts) remedy(learns bool) string {
	switch w.Method {
	case "gptq", "adaround", "awq", "brecq":
		more := fmt.Sprintf("its weight loses most: more calibration samples for %s", w.Method)
		if learns {
			more += ", or learn its block from the float model: --weights brecq"
		}
		return more
	}
	return fmt.Sprintf("its weight loses most by %s: solve for it by the calibration samples: --weights gptq", w.Method)
}

// WriteSensitivityJSON writes s, indented, with Schema set.
func WriteSensitivityJSON(w io.Writer, s Sensitivity) error {
	s.Schema = SensitivitySchema
	return writeJSON(w, s)
}

const sensitivityLines = 20 // operators that the text form shows

// SensitivityText writes the worst operators as a table.
func SensitivityText(w io.Writer, s Sensitivity) error {
	_, err := fmt.Fprintf(w, "%s: all operators quantized lose %s of the cosine, SQNR %s dB, on %d samples\n%-10s %-10s %-10s %-9s %-8s operator\n",
		clean(s.Model.Name), sig(float64(s.Whole.Cosine), 3), sig(float64(s.Whole.SQNR), 3), s.Samples, "only this", "all but", "proxy", "weight dB", "by")
	for i, o := range s.Operators {
		if err != nil {
			return err
		}
		if i == sensitivityLines {
			_, err = fmt.Fprintf(w, "and %d more (the JSON and HTML reports have all)\n", len(s.Operators)-i)
			break
		}
		only, but := "-", "-"
		if o.Only != nil {
			only, but = sig(float64(o.Only.Cosine), 3), sig(float64(o.AllBut.Cosine), 3)
		}
		_, err = fmt.Fprintf(w, "%-10s %-10s %-10s %-9s %-8s %s %s\n", only, but, sig(float64(o.Proxy), 3), sig(float64(o.Weight.SQNR), 3), shorten(clean(o.Weight.Method), 8), clean(o.Op), shorten(clean(o.Name), 100))
		if err == nil && o.Remedy != "" {
			_, err = fmt.Fprintf(w, "%51s-> %s\n", "", shorten(clean(o.Remedy), 200))
		}
	}
	if err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	list(b, "warning", s.Warnings, textWarnings)
	return b.Flush()
}

//go:embed sensitivity.html.tmpl
var sensitivityText string

var sensitivityPage = template.Must(template.New("sensitivity").Funcs(template.FuncMap{
	"clean": clean,
	"short": func(n int, s string) string { return shorten(clean(s), n) },
	"num":   func(n Num) string { return sig(float64(n), 3) },
	"count": countText,
}).Parse(sensitivityText))

// SensitivityHTML writes s as one self-contained page.
func SensitivityHTML(w io.Writer, s Sensitivity) error {
	type row struct {
		OperatorLoss
		Width float64 // of the bar, per cent
	}
	var most float64
	for _, o := range s.Operators {
		if o.Only != nil {
			most = max(most, float64(o.Only.Cosine))
		}
	}
	var rows []row
	for _, o := range s.Operators[:min(len(s.Operators), htmlRows)] {
		r := row{OperatorLoss: o}
		if o.Only != nil && most > 0 {
			r.Width = max(0, 100*float64(o.Only.Cosine)/most)
		}
		rows = append(rows, r)
	}
	err := sensitivityPage.Execute(w, map[string]any{"CSS": template.CSS(pageCSS), "S": s, "Rows": rows, "Left": len(s.Operators) - len(rows)}) //nolint:gosec // our own style sheet
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
