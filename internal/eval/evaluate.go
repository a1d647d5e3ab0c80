package eval

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
)

// Evaluation is what one model alone achieves on labelled data.
type Evaluation struct {
	Samples  int    `json:"samples"`
	Labelled int    `json:"labelled"`
	Output   string `json:"output"`
	Kind     Kind   `json:"kind"`
	Classes  int    `json:"classes"`
	Accuracy Score  `json:"accuracy"`
	// ByClass holds the share of each class's samples that were right.
	ByClass  []Score  `json:"by_class,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// maxClassScores bounds ByClass.
const maxClassScores = 1000

// Evaluate measures one classifier's accuracy. ErrOutput when its output holds
// no classes, data.ErrNoLabels when no sample has a
// label: without either there is nothing to score, only to compare.
func Evaluate(ctx context.Context, sess engine.Session, samples Samples, o Options) (*Evaluation, error) {
	outs := sess.Spec().Outputs
	if o.Output == "" && len(outs) > 0 {
		o.Output = outs[0].Name
	}
	e := &Evaluation{Output: o.Output, Kind: o.Kind}
	hits, odd := 0, 0 // odd: samples with scores that are not numbers
	var seen, right []int
	for o.MaxSamples == 0 || e.Samples < o.MaxSamples {
		s, err := samples.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		var x []float32
		if err == nil {
			x, err = e.logits(ctx, sess, s)
		}
		if err == nil && s.HasLabel {
			err = checkLabel(s.Label, len(x))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where(s, e.Samples), err)
		}
		e.Samples++
		if slices.ContainsFunc(x, func(v float32) bool { return v != v }) {
			odd++
		}
		if s.HasLabel {
			if seen == nil {
				e.Classes = len(x)
				seen, right = make([]int, len(x)), make([]int, len(x))
			}
			e.Labelled++
			if s.Label < len(seen) {
				seen[s.Label]++
			}
			if ArgMax(x) == s.Label {
				hits++
				if s.Label < len(right) {
					right[s.Label]++
				}
			}
		}
		if o.Progress != nil {
			o.Progress(e.Samples)
		}
	}
	switch {
	case e.Samples == 0:
		return nil, fmt.Errorf("%w: the data set is empty", ErrNoSamples)
	case e.Labelled == 0:
		return nil, fmt.Errorf("%w: none of the %d samples has one, so there is no accuracy; give a label with each sample, or compare two models", data.ErrNoLabels, e.Samples)
	}
	e.Accuracy = Proportion("accuracy", hits, e.Labelled)
	if e.Classes <= maxClassScores {
		for i := range seen {
			e.ByClass = append(e.ByClass, Proportion(fmt.Sprintf("class %d", i), right[i], seen[i]))
		}
	}
	if odd > 0 {
		e.Warnings = append(e.Warnings, fmt.Sprintf("%d of %d samples have scores that are NaN, of which none is the largest", odd, e.Samples))
	}
	if e.Labelled < e.Samples {
		e.Warnings = append(e.Warnings, fmt.Sprintf("%d of %d samples have no label and do not count", e.Samples-e.Labelled, e.Samples))
	}
	return e, nil
}

// logits runs one sample and returns a copy of its class scores.
func (e *Evaluation) logits(ctx context.Context, sess engine.Session, s Sample) ([]float32, error) {
	r, err := sess.Run(ctx, s.Feeds, []string{e.Output})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	t := r.Tensors()[e.Output]
	x, err := floats(e.Output, t)
	if err != nil {
		return nil, err
	}
	if e.Kind == Auto {
		e.Kind = KindOf(e.Output, t.Dims)
	}
	if e.Kind != Classifier {
		return nil, fmt.Errorf("%w: output %q has shape %v, expected class scores [1, classes]", ErrOutput, e.Output, t.Dims)
	}
	return append([]float32(nil), x...), nil
}
