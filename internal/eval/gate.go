package eval

import "fmt"

// Gate is the bar that a quantized model must pass before it is promoted.
// The zero value asks only that it is not broken and not slower than FP32.
type Gate struct {
	// MaxLoss is how much of FP32's accuracy may be lost, as a share of it
	// (0.01: MLPerf's 99 %). It applies where there are labels.
	MaxLoss *float64 `json:"max_loss,omitempty"`
	// MinCosine bounds the mean cosine to FP32 where there are none.
	MinCosine *float64 `json:"min_cosine,omitempty"`
	// AllowSlower accepts a model slower than FP32, for the sake of its size.
	AllowSlower bool `json:"allow_slower,omitempty"`
	// SLOMS is the latency target in milliseconds at the 99th percentile; 0 is
	// none.
	SLOMS float64 `json:"slo_ms,omitempty"`
}

// Check returns the reasons to refuse r, and warnings about what r neither
// proves nor disproves. No refusals means accepted.
//
// Accuracy is judged by its measured value: an interval that reaches past the
// budget is a warning, because with few samples it always does. Slower counts
// when the whole interval of the speed ratio lies below 1.
func (g Gate) Check(r *Result) (refusals, warnings []string) {
	refuse := func(f string, a ...any) { refusals = append(refusals, fmt.Sprintf(f, a...)) }
	warn := func(f string, a ...any) { warnings = append(warnings, fmt.Sprintf(f, a...)) }
	if r.BrokenSamples > 0 {
		refuse("%d of %d samples give NaN or infinity where FP32 gives numbers", r.BrokenSamples, r.Samples)
	}
	if r.BlindSamples > 0 {
		refuse("FP32 itself gives no finite number for %d of %d samples: look at the evaluation data and the model", r.BlindSamples, r.Samples)
	}
	switch {
	case g.MaxLoss != nil && r.Difference != nil && r.RefAccuracy != nil && r.QuantAccuracy != nil:
		budget := *g.MaxLoss * r.RefAccuracy.Value
		if -r.Difference.Value > budget {
			refuse("accuracy fell from %.2f %% to %.2f %%, by %.2f points where %.2f are allowed", 100*r.RefAccuracy.Value, 100*r.QuantAccuracy.Value, -100*r.Difference.Value, 100*budget)
		} else if -r.Difference.Lo > budget {
			warn("%d labelled samples do not prove the accuracy budget: the loss may be up to %.2f points where %.2f are allowed", r.Labelled, -100*r.Difference.Lo, 100*budget)
		}
	case g.MinCosine != nil && r.Cosine.Mean < *g.MinCosine:
		refuse("mean cosine to FP32 is %.4f where %.4f is asked for", r.Cosine.Mean, *g.MinCosine)
	}
	if r.Latency == nil || len(r.Latency.Ratios) < 2 || len(r.Latency.Candidates) < 2 {
		return refusals, warnings
	}
	ratio, lat := r.Latency.Ratios[1], r.Latency.Candidates[1]
	switch {
	case ratio.N > 0 && ratio.Hi < 1 && !g.AllowSlower:
		refuse("slower than FP32: %.2f times its speed (95 %% interval %.2f to %.2f)", ratio.Median, ratio.Lo, ratio.Hi)
	case ratio.N > 0 && ratio.Lo < 1:
		warn("not proven faster than FP32: %.2f times its speed (95 %% interval %.2f to %.2f)", ratio.Median, ratio.Lo, ratio.Hi)
	}
	if g.SLOMS > 0 && lat.P99MS > g.SLOMS {
		warn("the 99th percentile is %.1f ms, past the target of %.0f ms", lat.P99MS, g.SLOMS)
	}
	return refusals, warnings
}
