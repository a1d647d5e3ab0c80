package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

// What issue and README promise.
const (
	maxLoss = 0.01 // of FP32's accuracy
	maxSize = 0.35 // of FP32's bytes
)

// outcome is all that a run found; it is kept as the facts of the result.
type outcome struct {
	Cores       int         `json:"cores"`
	Model       receipt     `json:"model"`
	Float       string      `json:"fp32_version"`
	Captured    captured    `json:"captured"`
	Sensitivity sensitivity `json:"sensitivity"`
	Job         job         `json:"job"`
	Accuracy    accuracy    `json:"accuracy"`
	Latency     latency     `json:"latency"`
	Patrol      patrol      `json:"patrol"`
	Big         *bigModel   `json:"full_size,omitempty"`
}

// count sorts the operators by precision, and picks out the cross-attention.
func (j *job) count(r *report.Report) {
	for _, o := range r.Operators {
		j.Precisions[o.Op+" "+o.Precision]++
		if strings.Contains(o.Name, ".cross.") {
			j.Cross[o.Name] = o.Precision
		}
	}
}

// text is what a run prints at its end and what the walk-through shows.
func (o *outcome) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	r := &o.Job.Report
	fmt.Fprintf(&b, "%s version %s -> version %s, promoted (job: %.0f s)\n", modelName, o.Float, o.Job.Version, o.Job.Seconds)
	fmt.Fprintf(&b, "  calibrated on    frames of the device's own camera: %d of %d captured, of %d seen\n", o.calibrated(), o.Captured.Samples, o.Captured.Seen)
	fmt.Fprintf(&b, "  size             %.1f MB -> %.1f MB, %.1f %% of FP32\n", mb(r.Model.Bytes), mb(r.Quantized.Bytes), 100*o.size())
	for _, p := range slices.Sorted(maps.Keys(o.Job.Precisions)) {
		fmt.Fprintf(&b, "  %-15s  %d\n", p, o.Job.Precisions[p])
	}
	fmt.Fprintf(&b, "  cross-attention ")
	for _, name := range slices.Sorted(maps.Keys(o.Job.Cross)) {
		fmt.Fprintf(&b, " %s %s,", name[strings.LastIndexByte(name, '.')+1:], o.Job.Cross[name])
	}
	fmt.Fprintf(&b, " scores and softmax float\n")
	if r.Integer.Total > 0 {
		fmt.Fprintf(&b, "  integer MACs     %.1f %%\n", 100*float64(r.Integer.MACs)/float64(r.Integer.Total))
	}

	fmt.Fprintf(&b, "\nwhat INT8 costs each block: 1 - cosine of the logits with one operator quantized, in millionths (n = %d)\n", o.Sensitivity.Samples)
	fmt.Fprint(w, "  block\toperators\tsum\tworst\n")
	for _, x := range o.Sensitivity.Blocks {
		fmt.Fprintf(w, "  %s\t%d\t%.1f\t%s %.1f\n", x.Name, x.Operators, 1e6*float64(x.Loss), x.Worst, 1e6*float64(x.WorstLoss))
	}
	w.Flush()
	fmt.Fprintf(&b, "  all at once: %.1f\n", 1e6*float64(o.Sensitivity.Whole.Cosine))

	a := o.Accuracy
	f, q, d := a.Paired.Ref(), a.Paired.Quant(), a.Paired.Difference()
	fmt.Fprintf(&b, "\naccuracy on %d test images that nothing was trained, calibrated or chosen on (intervals: 95 %%)\n", a.N)
	fmt.Fprintf(&b, "  FP32             %s\n", share(f))
	fmt.Fprintf(&b, "  quantized        %s\n", share(q))
	fmt.Fprintf(&b, "  difference       %+.2f points (%+.2f to %+.2f, matched pairs)\n", 100*d.Value, 100*d.Lo, 100*d.Hi)
	fmt.Fprintf(&b, "  same answer      %s\n", share(eval.Proportion("", a.Agree, a.N)))
	fmt.Fprintf(&b, "  cosine           image embeddings %.5f (lowest %.4f), logits %.5f (lowest %.4f)\n", a.Cosine, a.Lowest, a.Logits, a.LowestL)

	l := o.Latency
	fmt.Fprintf(&b, "\nlatency of one frame with ten captions over HTTP, in turn, p50 / p99 in ms\n")
	fmt.Fprintf(&b, "  FP32 %.2f / %.2f, quantized %.2f / %.2f: %.2fx (%.2f to %.2f; n = %d)\n", l.FP32.P50, l.FP32.P99, l.INT8.P50, l.INT8.P99, l.Ratio.Median, l.Ratio.Lo, l.Ratio.Hi, l.INT8.N)

	p := o.Patrol
	fmt.Fprintf(&b, "\nflight under a budget: p50 %.1f ms, %.1f W, %.0f degrees\n", p.Budget.LatencyMS, p.Budget.Watts, p.Budget.Celsius)
	fmt.Fprintf(&b, "  power: %s\n  temperature: %s\n", p.Power, p.Temperature)
	fmt.Fprint(w, "  second\tsetting\tframes/s\tp50, ms\tW\tdegrees\t\n")
	for i, t := range p.Ticks {
		if t.Action != "" || i%20 == 0 || i == len(p.Ticks)-1 {
			fmt.Fprintf(w, "  %.1f\t%s\t%.0f\t%.1f\t%.1f\t%.1f\t%s\n", t.Seconds, t.Setting.Name, float64(t.Frames)/p.tick(), t.LatencyMS, t.Watts, t.Celsius, t.Action)
		}
	}
	w.Flush()
	fmt.Fprintf(&b, "  %d frames, %.1f %% right, %d of %d moments past the budget, %d changes\n", p.Frames, 100*float64(p.Agree)/float64(max(p.Frames, 1)), p.over(), len(p.Ticks), p.changes())

	if g := o.Big; g != nil {
		fmt.Fprintf(&b, "\nCLIP ViT-B/32 at full size with RANDOM weights: nothing here is about accuracy\n")
		fmt.Fprintf(&b, "  size             %.0f MB -> %.0f MB, %.1f %% of FP32\n", mb(g.Bytes), mb(g.Quantized), 100*float64(g.Quantized)/float64(max(g.Bytes, 1)))
		fmt.Fprintf(&b, "  memory of a run  %.0f MB -> %.0f MB\n", mb(g.Memory.FP32Peak), mb(g.Memory.QuantPeak))
		fmt.Fprintf(&b, "  one image, ten captions of 77 tokens, p50 / p99 in ms: FP32 %.0f / %.0f, quantized %.0f / %.0f: %.2fx (%.2f to %.2f; n = %d)\n",
			g.FP32.P50, g.FP32.P99, g.INT8.P50, g.INT8.P99, g.Ratio.Median, g.Ratio.Lo, g.Ratio.Hi, g.INT8.N)
	}
	if n := o.noise(); n > float64(o.Cores) {
		fmt.Fprintf(&b, "\nOther programs kept the CPUs busy (load %.1f on %d cores): read ratios, not latencies.\n", n, o.Cores)
	}
	return b.String()
}

// tick is the length of one entry in seconds.
func (p patrol) tick() float64 {
	if len(p.Ticks) < 2 {
		return 1
	}
	return p.Ticks[1].Seconds - p.Ticks[0].Seconds
}

func (p patrol) over() (n int) {
	for _, t := range p.Ticks {
		if p.Budget.over(t.reading) != "" {
			n++
		}
	}
	return n
}

func (p patrol) changes() (n int) {
	for _, t := range p.Ticks {
		if t.Action != "" {
			n++
		}
	}
	return n
}

// size is the quantized file's share of FP32's bytes.
func (o *outcome) size() float64 {
	return float64(o.Job.Report.Quantized.Bytes) / float64(max(o.Job.Report.Model.Bytes, 1))
}

func (o *outcome) calibrated() int64 {
	if c := o.Job.Report.Calibration; c != nil {
		return c.Samples
	}
	return 0
}

// noise is the largest load average at the beginning of a measurement: at the
// end it holds the measurement itself.
func (o *outcome) noise() float64 {
	n := max(o.Latency.Load, o.Patrol.Load)
	if o.Big != nil {
		n = max(n, o.Big.Load)
	}
	return n
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

func share(s eval.Score) string {
	return fmt.Sprintf("%.2f %% (%.2f to %.2f; n = %d)", 100*s.Value, 100*s.Lo, 100*s.Hi, s.N)
}

const how = `The scenario examples/vision-language: a small CLIP model (5.6 M parameters, 4.7 M of them CLIP's 49,408 token embeddings, of which the captions use few) trained here on 55,000 training images of Fashion-MNIST with captions. ` +
	`INT8 with INT4 embeddings and FP16 queries, keys, values and output projections, calibrated on frames that the server captured. Accuracy: ten captions an image, the 10,000 test images, which nothing was trained or chosen on. ` +
	`Latency: one client over loopback on the same cores, both versions in turn. Power and temperature of the flight are simulated where this machine has no sensor (facts.patrol says which). CLIP ViT-B/32 has random weights: size, memory and speed only.`

// command is what makes the result anew, with full or quick counts.
func command() string {
	if harness.Full() {
		return "make example-drone FULL=1"
	}
	return "make example-drone ARGS='-result benchmarks/results/example_drone.json -page examples/vision-language/README.md'"
}

// write keeps the outcome as a result of the benchmarks.
func (o *outcome) write(path string) error {
	res := harness.NewResult("example_drone", "A CLIP model on a drone", how, drive.EngineVersion(o.Job.Report))
	res.Command, res.Facts, res.LoadBefore = command(), o, o.noise()
	a := o.Accuracy
	f, q, d := a.Paired.Ref(), a.Paired.Quant(), a.Paired.Difference()
	// The whole interval must be within, not the point alone.
	within := d.Lo >= -maxLoss*f.Value
	res.Add(harness.Row{What: fmt.Sprintf("example drone: accuracy on %d test images", a.N), Ours: share(q), Peer: "FP32: " + share(f), Bar: "at most 1 % lost, by the interval", Holds: &within,
		Details: map[string]any{"n": a.N, "difference": d, "paired": a.Paired, "p_mcnemar": a.Paired.McNemar(), "cosine_mean": a.Cosine, "cosine_min": a.Lowest}})
	res.Add(harness.Row{What: "example drone: same class as FP32", Ours: share(eval.Proportion("", a.Agree, a.N)), Details: map[string]any{"n": a.N}})
	ratio, small := 1/o.size(), o.size() <= maxSize
	res.Add(harness.Row{What: "example drone: size, mixed precision", Ours: fmt.Sprintf("%.1f MB (%.1f %%)", mb(o.Job.Report.Quantized.Bytes), 100*o.size()), Peer: fmt.Sprintf("FP32: %.1f MB", mb(o.Job.Report.Model.Bytes)),
		Ratio: &ratio, Bar: "at most 35 % of FP32", Holds: &small, Details: map[string]any{"precisions": o.Job.Precisions}})
	l := o.Latency
	res.Add(harness.Row{What: "example drone: latency over HTTP, one frame, ten captions", Ours: fmt.Sprintf("p50 %.2f, p99 %.2f ms", l.INT8.P50, l.INT8.P99), Peer: fmt.Sprintf("FP32: p50 %.2f, p99 %.2f ms", l.FP32.P50, l.FP32.P99),
		Ratio: &l.Ratio.Median, Details: map[string]any{"n": l.INT8.N, "ratio": l.Ratio}})
	if g := o.Big; g != nil {
		size := float64(g.Bytes) / float64(max(g.Quantized, 1))
		res.Add(harness.Row{What: "example drone: CLIP ViT-B/32 with random weights, size", Ours: fmt.Sprintf("%.0f MB", mb(g.Quantized)), Peer: fmt.Sprintf("FP32: %.0f MB", mb(g.Bytes)), Ratio: &size, Details: g})
		res.Add(harness.Row{What: "example drone: CLIP ViT-B/32 with random weights, latency", Ours: fmt.Sprintf("p50 %.0f, p99 %.0f ms", g.INT8.P50, g.INT8.P99), Peer: fmt.Sprintf("FP32: p50 %.0f, p99 %.0f ms", g.FP32.P50, g.FP32.P99),
			Ratio: &g.Ratio.Median, Details: map[string]any{"n": g.INT8.N, "ratio": g.Ratio}})
	}
	return res.Write(path)
}

// readOutcome returns the facts of a result that write has made.
func readOutcome(path string) (*outcome, error) {
	o := &outcome{}
	if err := harness.ReadFacts(path, o); err != nil {
		return nil, err
	}
	if o.Accuracy.N == 0 {
		return nil, fmt.Errorf("%s holds no run of this example", path)
	}
	return o, nil
}
