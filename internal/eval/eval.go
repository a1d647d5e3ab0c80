// Package eval measures what quantization cost and what it bought.
//
// It answers three questions about a quantized model beside its FP32 original,
// each with the uncertainty of the answer:
//
//   - is it still right? Accuracy on labelled samples with a Wilson interval,
//     and the paired difference of the two models (Compare);
//   - how far is it from FP32? SQNR, cosine, top-1 and nearest-neighbour
//     agreement, for the output and per tensor inside the graph (Error,
//     Tensors);
//   - is it faster? Latency of both, measured interleaved so that what else
//     the machine does hits both alike (Interleave).
//
// Everything streams: memory grows by a few numbers a sample, never with the
// size of the tensors.
package eval

import (
	"context"
	"errors"

	"github.com/fewbit/fewbit/internal/data"
)

var (
	// ErrNoSamples: the data set ended before the first sample.
	ErrNoSamples = errors.New("no samples to evaluate")
	// ErrOutput: the models' outputs cannot be compared (missing, other shape,
	// not numeric).
	ErrOutput = errors.New("outputs cannot be compared")
	// ErrOptions: an option is out of its range.
	ErrOptions = errors.New("bad evaluation option")
	// ErrLength: two sequences that belong together differ in length.
	ErrLength = errors.New("lengths differ")
)

// Sample is one item of a data set: feeds with a leading batch dimension of 1
// and, where known, the class it belongs to.
type Sample = data.Sample

// Samples yields a data set once; data.Dataset is one. Next returns io.EOF
// after the last sample.
type Samples interface {
	Next(ctx context.Context) (Sample, error)
}

var _ Samples = data.Dataset(nil)

// Score is one measured quality with its 95 % interval.
type Score struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Lo and Hi bound the 95 % interval. With N = 0 nothing is known and they
	// are the metric's whole range.
	Lo float64 `json:"lo"`
	Hi float64 `json:"hi"`
	// N counts the samples behind Value.
	N              int  `json:"n"`
	HigherIsBetter bool `json:"higher_is_better"`
}

// Interval is a closed range of plausible values.
type Interval struct {
	Lo float64 `json:"lo"`
	Hi float64 `json:"hi"`
}

// Contains reports whether x lies in the interval, ends included.
func (i Interval) Contains(x float64) bool { return i.Lo <= x && x <= i.Hi }
