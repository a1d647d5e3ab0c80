package eval

import (
	"fmt"
	"strconv"
)

// Gate is the bar that a quantized model must pass before it is promoted.
// The zero value asks only that it is not broken and not slower than FP32.
type Gate struct {
	// MaxLoss is how much of FP32's accuracy may be lost, as a share of it
	// (0.01: MLPerf's 99 %). It applies where there are labels.
	MaxLoss *float64 `json:"max_loss,omitempty"`
	// MinCosine bounds the mean cosine to FP32 where there are none.
	MinCosine *float64 `json:"min_cosine,omitempty"`
	// MaxChanged is MaxLoss for the answers of few classes (Result.Answers) where
	// there are no labels; MinCosine does not apply to them then.
	MaxChanged *float64 `json:"max_changed,omitempty"`
	// AllowSlower accepts a model slower than FP32, for the sake of its size.
	AllowSlower bool `json:"allow_slower,omitempty"`
	// SLOMS is the latency target in milliseconds at the 99th percentile; 0 is
	// none.
	SLOMS float64 `json:"slo_ms,omitempty"`
}

const (
	// answersSlack: without labels so many times the budget may change answers, of texts or of their tokens. A
	// changed answer costs accuracy only where FP32 was right, and of those that
	// are unsure about as many are won.
	answersSlack = 2
	// distanceSlack: so many times the budget the probabilities may move on
	// average. 0.05 is what turns 0.55 into 0.5.
	distanceSlack = 5
	// detectionSlack: so many times the budget the detections may differ. Boxes of
	// low scores come and go without a label behind them; ten of a hundred that
	// move by a budget of one are a convention, as no detector with labels was at
	// hand to measure it.
	detectionSlack = 10
)

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
	if r.EmptySamples > 0 && r.EmptySamples == r.Samples {
		refuse("output %q is empty for all %d samples, in both models: nothing could be judged; give data in which the model finds something", r.Output, r.Samples)
		return refusals, warnings
	}
	switch {
	case r.Detected != nil && (g.MaxChanged != nil || g.MaxLoss != nil):
		budget := g.MaxChanged
		if budget == nil {
			budget = g.MaxLoss
		}
		shared(r.Detected.Agreement, 1-detectionSlack**budget, refuse, warn, "%.1f %% of the detections, weighed by score, are FP32's (95 %% interval %.1f to %.1f; n = %d images) where %.1f %% are asked for")
	case g.MaxLoss != nil && r.Difference != nil && r.RefAccuracy != nil && r.QuantAccuracy != nil:
		budget := *g.MaxLoss * r.RefAccuracy.Value
		if -r.Difference.Value > budget {
			refuse("accuracy fell from %.2f %% to %.2f %%, by %.2f points where %.2f are allowed", 100*r.RefAccuracy.Value, 100*r.QuantAccuracy.Value, -100*r.Difference.Value, 100*budget)
		} else if -r.Difference.Lo > budget {
			warn("%d labelled samples do not prove the accuracy budget: the loss may be up to %.2f points where %.2f are allowed", r.Labelled, -100*r.Difference.Lo, 100*budget)
		}
	case g.MaxChanged != nil && r.Answers != nil && r.Agreement != nil:
		g.answers(r, refuse, warn)
	case g.MinCosine != nil && r.Kind == Other && r.Fidelity.Count == int64(r.Samples):
		// One number a sample has the cosine 1 or -1: all samples are one vector.
		if cos := r.Fidelity.Cosine(); cos < *g.MinCosine {
			refuse("cosine to FP32 over all samples is %s where %s is asked for", apart(cos, *g.MinCosine)...)
		}
	case g.MinCosine != nil && r.Cosine.Mean < *g.MinCosine:
		refuse("mean cosine to FP32 is %s where %s is asked for", apart(r.Cosine.Mean, *g.MinCosine)...)
	}
	if t := r.Tokens; t != nil && g.MaxChanged != nil {
		shared(*t, 1-answersSlack**g.MaxChanged, refuse, warn, "%.2f %% of the tokens get FP32's class (95 %% interval %.2f to %.2f; n = %d samples) where %.2f %% are asked for")
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
		warn("the 99th percentile is %.1f ms, past the target of %v ms", lat.P99MS, g.SLOMS)
	}
	return refusals, warnings
}

// answers judges the answers of few classes without labels: what the changed
// ones cost by FP32's probabilities, how many they are, and how far the
// probabilities moved. The last two refuse only with their whole interval.
func (g Gate) answers(r *Result, refuse, warn func(string, ...any)) {
	a, agree := r.Answers, r.Agreement
	budget := *g.MaxChanged * a.Expected
	least, most := 1-answersSlack**g.MaxChanged, distanceSlack**g.MaxChanged
	before := fmt.Sprintf("%.2f %% of the answers are FP32's (95 %% interval %.2f to %.2f; n = %d)", 100*agree.Value, 100*agree.Lo, 100*agree.Hi, agree.N)
	switch {
	case a.Loss.Value > budget:
		refuse("%s; by FP32's probabilities the others cost %.2f points of accuracy where %.2f are allowed", before, 100*a.Loss.Value, 100*budget)
	case agree.Hi < least:
		refuse("%s where %.2f %% are asked for", before, 100*least)
	case a.Distance.Lo > most:
		refuse("the probabilities moved by %.3f on average (95 %% interval %.3f to %.3f) where %.3f are allowed", a.Distance.Value, a.Distance.Lo, a.Distance.Hi, most)
	case a.Loss.Hi > budget:
		warn("%d samples without labels do not prove the accuracy budget: %s, and the loss may be up to %.2f points where %.2f are allowed", a.Loss.N, before, 100*a.Loss.Hi, 100*budget)
	}
}

// shared judges a share that is FP32's by its whole interval: below least it refuses, with
// a part below it warns. said takes value, interval, number of samples and least, in per cent.
func shared(a Score, least float64, refuse, warn func(string, ...any), said string) {
	switch {
	case a.Hi < least:
		refuse(said, 100*a.Value, 100*a.Lo, 100*a.Hi, a.N, 100*least)
	case a.Lo < least:
		warn("%d samples do not prove it: "+said, a.N, 100*a.Value, 100*a.Lo, 100*a.Hi, a.N, 100*least)
	}
}

// apart writes two numbers with four decimals, or as many as it takes to tell them apart
// and a bar below 1 from 1.
func apart(got, bar float64) []any {
	for digits := 4; ; digits++ {
		a, b := strconv.FormatFloat(got, 'f', digits, 64), strconv.FormatFloat(bar, 'f', digits, 64)
		if digits == 9 || a != b && (bar >= 1 || b[0] != '1') {
			return []any{a, b}
		}
	}
}
