package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/tools/drive"
)

// outcome is all that a run found; it is kept as the facts of the result.
type outcome struct {
	TargetMS float64   `json:"target_ms"`
	Cores    int       `json:"cores"`
	Labels   int       `json:"labels"`
	Float    string    `json:"fp32_version"`
	Captured captured  `json:"captured"`
	Job      drive.Job `json:"job"`
	Accuracy accuracy  `json:"accuracy"`
	Latency  grid      `json:"latency"`
	Load     loads     `json:"load"`
}

// text is what a run prints at its end and what the walk-through shows.
func (o *outcome) text() string {
	var b strings.Builder
	r := &o.Job.Report
	fmt.Fprintf(&b, "%s version %s -> version %s, promoted (%d classes; job: %.0f s)\n", modelName, o.Float, o.Job.Version, o.Labels, o.Job.Seconds)
	fmt.Fprintf(&b, "  calibrated on    captured traffic: %d of %d samples, of %d requests\n", calibrated(o), o.Captured.Samples, o.Captured.Seen)
	fmt.Fprintf(&b, "  size             %.0f MB -> %.0f MB, %.2fx smaller\n", mb(r.Model.Bytes), mb(r.Quantized.Bytes), float64(r.Model.Bytes)/float64(max(r.Quantized.Bytes, 1)))
	if r.Integer.Total > 0 {
		fmt.Fprintf(&b, "  integer MACs     %.2f %%\n", 100*float64(r.Integer.MACs)/float64(r.Integer.Total))
	}
	f, q, d := o.Accuracy.Paired.Ref(), o.Accuracy.Paired.Quant(), o.Accuracy.Paired.Difference()
	fmt.Fprintf(&b, "\naccuracy on %d held-out texts (intervals: 95 %%)\n", o.Accuracy.N)
	fmt.Fprintf(&b, "  FP32             %s\n", share(f))
	fmt.Fprintf(&b, "  INT8             %s\n", share(q))
	fmt.Fprintf(&b, "  difference       %+.2f points (%+.2f to %+.2f, matched pairs)\n", 100*d.Value, 100*d.Lo, 100*d.Hi)
	fmt.Fprintf(&b, "  same answer      %s\n", share(eval.Proportion("", o.Accuracy.Agree, o.Accuracy.N)))

	fmt.Fprintf(&b, "\nlatency of one client over loopback, in turn, p50 / p99 in ms\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "  batch\ttokens\tFP32\tINT8\tratio (95 %)\tn\n")
	for _, c := range o.Latency.Cells {
		fmt.Fprintf(w, "  %d\t%d\t%.1f / %.1f\t%.1f / %.1f\t%.2fx (%.2f to %.2f)\t%d\n", c.Batch, c.Len, c.FP32.P50, c.FP32.P99, c.INT8.P50, c.INT8.P99, c.Ratio.Median, c.Ratio.Lo, c.Ratio.Hi, c.INT8.N)
	}
	w.Flush()

	fmt.Fprintf(&b, "\ntexts at Poisson arrivals, p50 / p99 in ms; the target is p99 < %.0f ms\n", o.TargetMS)
	fmt.Fprint(w, "  a second\tFP32\tINT8\tn\trefused\tINT8 within the target\n")
	for i, l := range o.Load.INT8 {
		float := "-"
		if i < len(o.Load.FP32) {
			float = fmt.Sprintf("%.1f / %.1f", o.Load.FP32[i].Ms.P50MS, o.Load.FP32[i].Ms.P99MS)
		}
		fmt.Fprintf(w, "  %g\t%s\t%.1f / %.1f\t%d\t%d\t%s\n", l.Rate, float, l.Ms.P50MS, l.Ms.P99MS, l.Ms.Answered, l.Ms.Refused, yes(o.holds(l)))
	}
	w.Flush()
	fmt.Fprintf(&b, "  a request that does nothing: %.2f / %.2f (n = %d)\n", o.Load.Null.P50MS, o.Load.Null.P99MS, o.Load.Null.Answered)
	best, at := o.highest()
	switch {
	case best != nil:
		fmt.Fprintf(&b, "  highest rate measured within the target: %g a second, p99 %.1f ms (n = %d)\n", best.Rate, best.Ms.P99MS, best.Ms.Answered)
	default:
		fmt.Fprintf(&b, "  no rate was within the target\n")
	}
	if at != nil {
		fmt.Fprintf(&b, "  the first past it: %g a second, p99 %.1f ms\n", at.Rate, at.Ms.P99MS)
	}
	if n := o.noise(); n > float64(o.Cores) {
		fmt.Fprintf(&b, "\nOther programs kept the CPUs busy (load %.1f on %d cores): read ratios, not latencies.\n", n, o.Cores)
	}
	return b.String()
}

// holds reports whether the target is met: nothing refused, p99 below it.
func (o *outcome) holds(l loaded) bool {
	return l.Ms.Refused+l.Ms.Failed == 0 && l.Ms.Answered > 0 && l.Ms.P99MS < o.TargetMS
}

// highest returns the last rate before the first that misses the target, and
// that one; nil where there is none.
func (o *outcome) highest() (best, missed *loaded) {
	for i := range o.Load.INT8 {
		if !o.holds(o.Load.INT8[i]) {
			return best, &o.Load.INT8[i]
		}
		best = &o.Load.INT8[i]
	}
	return best, nil
}

// noise is the largest load average at the beginning of a measurement: at the
// end it holds the measurement itself.
func (o *outcome) noise() float64 {
	most := 0.0
	for _, n := range [][]float64{o.Latency.Noise, o.Load.Noise} {
		if len(n) > 0 {
			most = max(most, n[0])
		}
	}
	return most
}

func calibrated(o *outcome) int64 {
	if c := o.Job.Report.Calibration; c != nil {
		return c.Samples
	}
	return 0
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

func share(s eval.Score) string {
	return fmt.Sprintf("%.2f %% (%.2f to %.2f; n = %d)", 100*s.Value, 100*s.Lo, 100*s.Hi, s.N)
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

const how = `The scenario examples/text-classification: BERT-base (real weights) with a linear head on movie review snippets, served by one process on this machine, the client over loopback on the same cores. ` +
	`INT8 per channel with the logits in FP16, calibrated on inputs that the server captured. Accuracy: one text a request, both versions, held-out texts. ` +
	`Latency: made-up ids in binary tensors, both versions in turn. Load: texts as JSON at Poisson arrivals, latency from the instant that a request was due.`

// command is what makes the result anew, with full or quick counts.
func command() string {
	if harness.Full() {
		return "make example-text FULL=1"
	}
	return "make example-text ARGS='-result benchmarks/results/example_text.json -page examples/text-classification/README.md'"
}

// barRate is what issue and README promise: this many texts a second within the
// target.
const barRate = 30

// write keeps the outcome as a result of the benchmarks.
func (o *outcome) write(path string) error {
	engine := drive.EngineVersion(o.Job.Report)
	res := harness.NewResult("example_text", "BERT-base text classification on a CPU-only server", how, engine)
	res.Command, res.Facts, res.LoadBefore = command(), o, o.noise()
	f, q, d := o.Accuracy.Paired.Ref(), o.Accuracy.Paired.Quant(), o.Accuracy.Paired.Difference()
	within := d.Value >= -0.01*f.Value
	res.Add(harness.Row{What: fmt.Sprintf("example text: accuracy on %d held-out texts", o.Accuracy.N), Ours: share(q), Peer: "FP32: " + share(f), Bar: "at most 1 % lost", Holds: &within,
		Details: map[string]any{"difference": d, "paired": o.Accuracy.Paired, "p_mcnemar": o.Accuracy.Paired.McNemar()}})
	for _, c := range o.Latency.Cells {
		if c.Batch != 1 && c.Len != o.Latency.Cells[len(o.Latency.Cells)-1].Len {
			continue // the facts have all
		}
		ratio := c.Ratio.Median
		res.Add(harness.Row{What: fmt.Sprintf("example text: latency over HTTP, batch %d, %d tokens", c.Batch, c.Len), Ours: fmt.Sprintf("p50 %.1f, p99 %.1f ms (n = %d)", c.INT8.P50, c.INT8.P99, c.INT8.N),
			Peer: fmt.Sprintf("FP32: p50 %.1f, p99 %.1f ms", c.FP32.P50, c.FP32.P99), Ratio: &ratio, Details: c})
	}
	for _, l := range o.Load.INT8 {
		row := harness.Row{What: fmt.Sprintf("example text: p99 at %g texts a second, Poisson", l.Rate), Ours: fmt.Sprintf("p50 %.1f, p99 %.1f ms (n = %d)", l.Ms.P50MS, l.Ms.P99MS, l.Ms.Answered), Details: l}
		for _, f := range o.Load.FP32 {
			if f.Rate == l.Rate {
				row.Peer = fmt.Sprintf("FP32: p50 %.1f, p99 %.1f ms", f.Ms.P50MS, f.Ms.P99MS)
			}
		}
		if l.Rate <= barRate {
			holds := o.holds(l)
			row.Bar, row.Holds = fmt.Sprintf("< %.0f ms", o.TargetMS), &holds
		}
		res.Add(row)
	}
	return res.Write(path)
}

// readOutcome returns the facts of a result that write has made.
func readOutcome(path string) (*outcome, error) {
	o := &outcome{}
	if err := harness.ReadFacts(path, o); err != nil {
		return nil, err
	}
	if len(o.Load.INT8) == 0 {
		return nil, fmt.Errorf("%s holds no run of this example", path)
	}
	return o, nil
}
