package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/eval"
)

// outcome is all that a run found; it is kept as the facts of the result.
type outcome struct {
	LimitMB float64  `json:"limit_mb"`
	Samples int      `json:"samples"` // that calibrated
	Cores   int      `json:"cores"`
	Load    float64  `json:"load1"` // before
	Results []result `json:"results"`
	Models  []traced `json:"models"` // of the static form
}

type result struct {
	Model   string   `json:"model"`
	Form    string   `json:"form"`
	Trained bool     `json:"trained"`
	Made    made     `json:"made"`
	Unseen  compared `json:"unseen"`
	Photos  compared `json:"photos"`
	Lite    *lite    `json:"tflite,omitempty"` // of the form that converts
}

type traced struct {
	Name  string  `json:"name"`
	Trace []point `json:"trace"`
}

// text is what a run prints at its end and what the walk-through shows.
func (o *outcome) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fewbit quantize within %.0f MB of resident memory, %d images calibrate; intervals: 95 %%\n\n", o.LimitMB, o.Samples)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "model\tform\tsize, MB\tp50, ms\tFP32\tratio\tn\tintegers\trun, MB\tFP32\tquantize: s\tpeak, MB\n")
	for _, r := range o.Results {
		u := r.Unseen
		fmt.Fprintf(w, "%s\t%s\t%.1f of %.1f\t", r.Model, r.Form, mb(u.Bytes), mb(u.FP32Bytes))
		if l := u.Evaluation.Latency; l != nil && len(l.Candidates) == 2 {
			fmt.Fprintf(w, "%.1f\t%.1f\t%.2fx (%.2f to %.2f)\t%d\t", l.Candidates[1].P50MS, l.Candidates[0].P50MS, l.Ratios[1].Median, l.Ratios[1].Lo, l.Ratios[1].Hi, l.Candidates[1].N)
		} else {
			fmt.Fprint(w, "-\t-\t-\t-\t")
		}
		fmt.Fprintf(w, "%.0f %%\t%.0f\t%.0f\t%.0f\t%.0f\n", 100*float64(u.Integer.MACs)/float64(max(u.Integer.Total, 1)), mb(u.Memory.QuantPeak), mb(u.Memory.FP32Peak), r.Made.Seconds, r.Made.PeakMB)
	}
	w.Flush()
	for _, r := range o.Results {
		if !r.Trained {
			continue
		}
		e, p := r.Unseen.Evaluation, r.Photos.Evaluation
		fmt.Fprintf(&b, "\n%s, %s\n", r.Model, r.Form)
		if p.RefAccuracy != nil && p.QuantAccuracy != nil && p.Difference != nil {
			fmt.Fprintf(&b, "  photos, FP32       %s\n  photos, INT8       %s\n", share(*p.RefAccuracy), share(*p.QuantAccuracy))
			fmt.Fprintf(&b, "  difference         %+.1f points (%+.1f to %+.1f, matched pairs)\n", 100*p.Difference.Value, 100*p.Difference.Lo, 100*p.Difference.Hi)
		}
		if e.Agreement != nil {
			fmt.Fprintf(&b, "  same class as FP32 %s, %.1f dB\n", share(*e.Agreement), float64(e.SQNR))
		}
	}
	fmt.Fprint(&b, "\npeak resident memory by phase of the static form, MB\n")
	for _, r := range o.Results {
		if r.Form != "static" {
			continue
		}
		fmt.Fprintf(&b, "  %s:", r.Model)
		sep := ""
		for _, p := range r.Made.Phases {
			if p.PeakMB == 0 {
				continue // over before its memory was read
			}
			fmt.Fprintf(&b, "%s %s %.0f", sep, p.Name, p.PeakMB)
			sep = ","
		}
		fmt.Fprintln(&b)
	}
	for _, r := range o.Results {
		if l := r.Lite; l != nil {
			fmt.Fprintf(&b, "\n%s for TensorFlow Lite: %.1f MB, %d operators on int8, %d on float\n", r.Model, mb(l.Bytes), l.Integer, l.Float)
		}
	}
	if o.Load > float64(o.Cores) {
		fmt.Fprintf(&b, "\nOther programs kept the CPUs busy (load %.1f on %d cores): read ratios, not latencies.\n", o.Load, o.Cores)
	}
	return b.String()
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

func share(s eval.Score) string {
	return fmt.Sprintf("%.1f %% (%.1f to %.1f; n = %d)", 100*s.Value, 100*s.Lo, 100*s.Hi, s.N)
}

const how = `The scenario examples/image-classification: EfficientNet-lite0 (real weights) and ResNet-50's graph with random weights, 224 x 224. ` +
	`fewbit quantize is killed when its resident memory passes the limit; the peak is the kernel's maximum resident set size. ` +
	`Each result against FP32 by fewbit compare: one image a run, in turn; images that did not calibrate. The photos carry the first of their accepted ImageNet classes as label.`

// command is what makes the result anew, with full or quick counts.
func (o *outcome) command() string {
	if harness.Full() {
		return "make example-image FULL=1"
	}
	return fmt.Sprintf("make example-image ARGS='-samples %d -result benchmarks/results/example_image.json -page examples/image-classification/README.md'", o.Samples)
}

// write keeps the outcome as a result of the benchmarks.
func (o *outcome) write(path string) error {
	res := harness.NewResult("example_image", "Image classification for a device with 2 GB", how, o.Results[0].Unseen.Engine)
	res.Command, res.Facts, res.LoadBefore = o.command(), o, o.Load
	for _, r := range o.Results {
		name := fmt.Sprintf("example image: %s, %s", r.Model, r.Form)
		u := r.Unseen
		size := float64(u.FP32Bytes) / float64(max(u.Bytes, 1))
		res.Add(harness.Row{What: name + ", size", Ours: fmt.Sprintf("%.1f MB", mb(u.Bytes)), Peer: fmt.Sprintf("FP32: %.1f MB", mb(u.FP32Bytes)), Ratio: &size})
		if l := u.Evaluation.Latency; l != nil && len(l.Candidates) == 2 {
			ratio := l.Ratios[1].Median
			res.Add(harness.Row{What: name + ", latency", Ours: fmt.Sprintf("p50 %.1f, p99 %.1f ms", l.Candidates[1].P50MS, l.Candidates[1].P99MS),
				Peer: fmt.Sprintf("FP32: p50 %.1f, p99 %.1f ms", l.Candidates[0].P50MS, l.Candidates[0].P99MS), Ratio: &ratio, Details: map[string]any{"n": l.Candidates[1].N, "ratio": l.Ratios[1]}})
		}
		fits := r.Made.PeakMB < o.LimitMB
		res.Add(harness.Row{What: name + ", peak memory of quantizing", Ours: fmt.Sprintf("%.0f MB", r.Made.PeakMB), Bar: fmt.Sprintf("< %.0f MB", o.LimitMB), Holds: &fits, Details: map[string]any{"phases": r.Made.Phases}})
		if p := r.Photos.Evaluation; r.Trained && p.QuantAccuracy != nil && p.RefAccuracy != nil {
			res.Add(harness.Row{What: name + ", accuracy on photos", Ours: share(*p.QuantAccuracy), Peer: "FP32: " + share(*p.RefAccuracy), Details: map[string]any{"n": p.QuantAccuracy.N, "difference": p.Difference}})
		}
		if e := u.Evaluation; r.Trained && e.Agreement != nil {
			res.Add(harness.Row{What: name + ", same class as FP32", Ours: share(*e.Agreement), Details: map[string]any{"n": e.Agreement.N, "sqnr_db": e.SQNR}})
		}
	}
	return res.Write(path)
}

// readOutcome returns the facts of a result that write has made.
func readOutcome(path string) (*outcome, error) {
	o := &outcome{}
	if err := harness.ReadFacts(path, o); err != nil {
		return nil, err
	}
	if len(o.Results) == 0 {
		return nil, fmt.Errorf("%s holds no run of this example", path)
	}
	return o, nil
}
