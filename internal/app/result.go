package app

import (
	"math"

	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/report"
)

// result is Status.Result of a job. Model and what belongs to it are absent
// when the result was refused.
type result struct {
	Model    string  `json:"model,omitempty"`
	Version  string  `json:"version,omitempty"`
	Source   string  `json:"source,omitempty"` // NAME/VERSION it was made from
	SHA256   string  `json:"sha256,omitempty"` // of model.onnx
	Promoted bool    `json:"promoted"`         // it is the default version now
	Report   summary `json:"report"`
}

// summary holds the numbers of a report that decide. What was not measured is
// absent. The whole report is at GET /quantize/{id}/report.
type summary struct {
	Verdict  report.Status `json:"verdict,omitempty"`
	Reasons  []string      `json:"reasons,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
	Samples  int           `json:"samples,omitempty"` // that judged

	Accuracy  *accuracyPair `json:"accuracy,omitempty"`
	Agreement *eval.Score   `json:"agreement,omitempty"` // share with the same top class
	// Tokens is the mean share of a sample's tokens with the same top class.
	Tokens *eval.Score `json:"tokens,omitempty"`
	// Detections is the share, by score, of a detector's boxes that are FP32's.
	Detections *eval.Score  `json:"detections,omitempty"`
	Cosine     *cosine      `json:"cosine,omitempty"` // of outputs to FP32's
	LatencyMS  *latencyPair `json:"latency_ms,omitempty"`
	SizeBytes  *bytesPair   `json:"size_bytes,omitempty"`
	PeakBytes  *bytesPair   `json:"peak_memory_bytes,omitempty"`
	// IntegerShare of the multiply-accumulates, 0..1.
	IntegerShare *float64 `json:"integer_share,omitempty"`
}

type accuracyPair struct {
	FP32       eval.Score  `json:"fp32"`
	Quantized  eval.Score  `json:"quantized"`
	Difference *eval.Score `json:"difference,omitempty"` // with its 95 % interval
}

type cosine struct {
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
	N    int     `json:"n"`
}

type latencyPair struct {
	FP32      percentiles `json:"fp32"`
	Quantized percentiles `json:"quantized"`
	Ratio     eval.Ratio  `json:"ratio"` // above 1: faster than FP32
	Target    float64     `json:"target,omitempty"`
}

type percentiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

type bytesPair struct {
	FP32      int64 `json:"fp32"`
	Quantized int64 `json:"quantized"`
}

func summarize(r *report.Report) summary {
	s := summary{Verdict: r.Verdict.Status, Reasons: r.Verdict.Reasons, Warnings: r.Warnings}
	if share, ok := r.Integer.Share(); ok {
		s.IntegerShare = &share
	}
	if r.Model.Bytes > 0 && r.Quantized.Bytes > 0 {
		s.SizeBytes = &bytesPair{r.Model.Bytes, r.Quantized.Bytes}
	}
	if m := r.Memory; m.FP32Peak > 0 && m.QuantPeak > 0 {
		s.PeakBytes = &bytesPair{m.FP32Peak, m.QuantPeak}
	}
	e := r.Evaluation
	if e == nil {
		return s
	}
	s.Samples, s.Agreement, s.Tokens = e.Samples, e.Agreement, e.Tokens
	if e.RefAccuracy != nil && e.QuantAccuracy != nil {
		s.Accuracy = &accuracyPair{*e.RefAccuracy, *e.QuantAccuracy, e.Difference}
	}
	if d := e.Detected; d != nil {
		s.Detections = &d.Agreement
	} else if c := e.Cosine; c.N > 0 && !math.IsNaN(c.Mean) && !math.IsInf(c.Mean, 0) {
		s.Cosine = &cosine{c.Mean, c.Min, c.N}
	}
	if l := e.Latency; l != nil && len(l.Candidates) > 1 && len(l.Ratios) > 1 {
		of := func(c eval.LatencyStats) percentiles { return percentiles{c.P50MS, c.P99MS} }
		s.LatencyMS = &latencyPair{of(l.Candidates[0]), of(l.Candidates[1]), l.Ratios[1], r.Gate.SLOMS}
	}
	return s
}
