// Package report holds the facts of one quantization run as a versioned,
// documented structure, and renders them: JSON for programs, a table for the
// terminal (Text), one self-contained page for people (HTML).
//
// Names in a report come from model files and are hostile: every renderer
// escapes them, removes control characters and shortens them.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/fewbit/fewbit/internal/eval"
)

// Schema names this version of the JSON form. Fields are only ever added
// within a version; a reader ignores those it does not know.
const Schema = "fewbit.report/1"

// MaxJSON bounds the size in bytes of a report that ReadJSON accepts.
const MaxJSON = 256 << 20

// ErrFormat: the input is no report that this version reads.
var ErrFormat = errors.New("not a fewbit report")

// Num is a float64 whose JSON form is null when it is NaN or infinite (JSON
// has neither); null reads back as NaN.
type Num float64

// MarshalJSON implements json.Marshaler.
func (n Num) MarshalJSON() ([]byte, error) {
	if !n.Finite() {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Num) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = Num(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(n))
}

// Finite reports whether n is an ordinary number.
func (n Num) Finite() bool { return !math.IsNaN(float64(n)) && !math.IsInf(float64(n), 0) }

// Report is everything known about one quantization (or comparison). Parts
// that a run did not produce are nil or empty, and are left out when rendered.
type Report struct {
	Schema  string    `json:"schema"` // always Schema
	Created time.Time `json:"created"`
	// Command is the command line or request that reproduces the run.
	Command []string `json:"command,omitempty"`
	Recipe  Recipe   `json:"recipe"`
	Machine Machine  `json:"machine"`

	// Model is the FP32 original, Quantized the result.
	Model     Model `json:"model"`
	Quantized Model `json:"quantized"`

	Calibration *Calibration `json:"calibration,omitempty"`
	// Tensors are the quantized activations and weights, one choice each.
	Tensors []TensorChoice `json:"tensors,omitempty"`
	// Operators are those with multiply-accumulates or a measured error.
	Operators []Operator `json:"operators,omitempty"`
	Integer   Integer    `json:"integer"`
	// Sparsity is there when the model was pruned.
	Sparsity *Sparsity `json:"sparsity,omitempty"`

	// Evaluation holds accuracy, fidelity and interleaved latency.
	Evaluation *eval.Result `json:"evaluation,omitempty"`
	Memory     Memory       `json:"memory"`
	Passes     []Pass       `json:"passes,omitempty"`

	Gate     eval.Gate `json:"gate"`
	Verdict  Verdict   `json:"verdict"`
	Warnings []string  `json:"warnings,omitempty"`
}

// Recipe is what was asked for.
type Recipe struct {
	Scheme      string `json:"scheme,omitempty"`      // int8, int8-dynamic, int4, fp16, mixed
	Target      string `json:"target,omitempty"`      // ort-cpu, qdq, ...
	Method      string `json:"method,omitempty"`      // minmax, entropy, percentile, mse, auto
	Granularity string `json:"granularity,omitempty"` // per-channel, per-tensor
	// Text is the whole recipe as YAML.
	Text string `json:"text,omitempty"`
}

// Model describes one model file.
type Model struct {
	Name       string `json:"name"` // a file or model name, never a server path
	SHA256     string `json:"sha256,omitempty"`
	Opset      int64  `json:"opset,omitempty"`
	Producer   string `json:"producer,omitempty"`
	Nodes      int    `json:"nodes,omitempty"`
	Parameters int64  `json:"parameters,omitempty"`
	// Bytes counts the file and its external data.
	Bytes int64 `json:"bytes,omitempty"`
}

// Machine is where the run took place.
type Machine struct {
	CPU     string `json:"cpu,omitempty"`
	Cores   int    `json:"cores,omitempty"`
	Threads int    `json:"threads,omitempty"` // of the sessions measured
	// Flags are the instruction sets that matter: avx2, avx512f, avx512_vnni,
	// amx_int8, ...
	Flags  []string `json:"flags,omitempty"`
	OS     string   `json:"os,omitempty"`
	Engine string   `json:"engine,omitempty"` // "ONNX Runtime 1.32.0"
	Fewbit string   `json:"fewbit,omitempty"` // version of this program
}

// Calibration is the receipt for the calibration data.
type Calibration struct {
	Source string `json:"source,omitempty"`
	// Precision of the float model's products while it was observed: fp32, bf16.
	Precision  string  `json:"precision,omitempty"`
	Samples    int64   `json:"samples"`
	Duplicates int64   `json:"duplicates"`
	NaN        int64   `json:"nan"` // elements, over all tensors
	Inf        int64   `json:"inf"`
	Tensors    int     `json:"tensors"` // tensors observed
	Constant   int     `json:"constant"`
	Seconds    float64 `json:"seconds"`
	// Engine ran the model; EngineReason says why it was not the GPU that was
	// asked for.
	Engine       string `json:"engine,omitempty"`
	EngineReason string `json:"engine_reason,omitempty"`
	// Clipped is the share 0..1 of observed values outside the chosen ranges.
	Clipped Num `json:"clipped"`
	// ConstantNames and LargeNames hold the first of the tensors that never
	// change, and of those with a range past 1e6.
	ConstantNames []string `json:"constant_names,omitempty"`
	LargeNames    []string `json:"large_names,omitempty"`
	Warnings      []string `json:"warnings,omitempty"`
}

// TensorChoice says how one tensor is quantized and why.
type TensorChoice struct {
	Name     string `json:"name"`
	Operator string `json:"operator,omitempty"` // the operator that reads it
	Method   string `json:"method"`             // the method chosen
	Type     string `json:"type,omitempty"`     // UINT8, INT8, INT4 ...
	// Granularity: per-tensor, per-channel, per-row (dynamic), block.
	Granularity string `json:"granularity,omitempty"`
	// Lo and Hi bound the quantized range, ObservedLo and ObservedHi what
	// calibration saw.
	Lo         Num `json:"lo"`
	Hi         Num `json:"hi"`
	ObservedLo Num `json:"observed_lo"`
	ObservedHi Num `json:"observed_hi"`
	Scale      Num `json:"scale"`
	ZeroPoint  int `json:"zero_point"`
	// Error is the relative squared error of the operator's output with this
	// choice alone; NaN (null) where it was not measured.
	Error      Num         `json:"error"`
	Candidates []Candidate `json:"candidates,omitempty"`
	Why        string      `json:"why,omitempty"`
	Histogram  *Histogram  `json:"histogram,omitempty"`
}

// Candidate is one range that was considered.
type Candidate struct {
	Method string `json:"method"`
	Lo     Num    `json:"lo"`
	Hi     Num    `json:"hi"`
	Error  Num    `json:"error"` // as TensorChoice.Error
}

// Histogram holds counts in bins of equal width from Lo to Hi.
type Histogram struct {
	Lo     Num     `json:"lo"`
	Hi     Num     `json:"hi"`
	Counts []int64 `json:"counts"`
}

// Operator is one operator of the quantized model.
type Operator struct {
	Name string `json:"name"`
	Op   string `json:"op"` // MatMul, Conv, ...
	// Precision it runs in: int8, int4, fp16, fp32.
	Precision string `json:"precision,omitempty"`
	Integer   bool   `json:"integer"` // multiplies integers
	// Rule says why it does not, when it does not.
	Rule string `json:"rule,omitempty"`
	MACs int64  `json:"macs,omitempty"` // multiply-accumulates a sample, 0 unknown
	// SQNR of its output against FP32 in dB; NaN (null) where not measured.
	SQNR   Num `json:"sqnr_db"`
	Cosine Num `json:"cosine"`
	// Zeros is the share 0..1 of its weight that is zero, in reports of pruning.
	Zeros float64 `json:"zeros,omitempty"`
}

// Sparsity is what pruning made zero.
type Sparsity struct {
	Pattern string `json:"pattern"` // "2:4", or the share asked for
	Method  string `json:"method"`  // magnitude, wanda, sparsegpt
	// Weights counts the pruned ones, Elements their numbers and Zeros those that
	// are zero; All and AllZeros count those of every MatMul, Gemm and Conv.
	Weights  int   `json:"weights"`
	Elements int64 `json:"elements"`
	Zeros    int64 `json:"zeros"`
	All      int64 `json:"all_elements"`
	AllZeros int64 `json:"all_zeros"`
	// CompressedBefore and CompressedAfter are the bytes that Zstandard's fastest
	// level makes of all constants.
	CompressedBefore int64 `json:"compressed_before_bytes"`
	CompressedAfter  int64 `json:"compressed_after_bytes"`
}

// Integer is the share of multiply-accumulates that run in integers.
type Integer struct {
	MACs  int64 `json:"integer_macs"`
	Total int64 `json:"total_macs"`
}

// Share returns the share 0..1, and false where nothing is known.
func (i Integer) Share() (float64, bool) {
	if i.Total <= 0 {
		return 0, false
	}
	return float64(i.MACs) / float64(i.Total), true
}

// CountMACs sums the operators.
func CountMACs(ops []Operator) (i Integer) {
	for _, o := range ops {
		i.Total += o.MACs
		if o.Integer {
			i.MACs += o.MACs
		}
	}
	return i
}

// Memory holds peak resident sizes in bytes, those of the models each measured in
// a process of its own; 0 is not measured.
type Memory struct {
	FP32Peak  int64 `json:"fp32_peak_bytes,omitempty"`
	QuantPeak int64 `json:"quant_peak_bytes,omitempty"`
	// Of the run itself, under a ceiling: the ceiling, what was predicted before the
	// first sample, and the most that was resident.
	Ceiling   int64 `json:"ceiling_bytes,omitempty"`
	Predicted int64 `json:"predicted_bytes,omitempty"`
	RunPeak   int64 `json:"run_peak_bytes,omitempty"`
	// RunAnonymous is the most that was seen without a file behind it, which the
	// system cannot take back.
	RunAnonymous int64 `json:"run_anonymous_bytes,omitempty"`
}

// Pass is one step of the run.
type Pass struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Changed int     `json:"changed,omitempty"` // nodes or tensors
	// Gain says what the pass brought, in words: "SQNR 21.3 -> 27.9 dB".
	Gain string `json:"gain,omitempty"`
}

// Status is the outcome of the gate.
type Status string

// The outcomes. Unjudged is a run without a comparison.
const (
	Unjudged Status = ""
	Accepted Status = "accepted"
	Refused  Status = "refused"
	Forced   Status = "forced" // refused, and kept because the user insisted
)

// Verdict is the gate's answer and its reasons.
type Verdict struct {
	Status  Status   `json:"status"`
	Reasons []string `json:"reasons,omitempty"`
}

// Judge applies the report's gate to its evaluation and records the verdict
// and the gate's warnings. force turns a refusal into Forced.
func (r *Report) Judge(force bool) Verdict {
	if r.Evaluation == nil {
		r.Verdict = Verdict{}
		return r.Verdict
	}
	refusals, warnings := r.Gate.Check(r.Evaluation)
	r.Warnings = append(r.Warnings, warnings...)
	r.Verdict = Verdict{Status: Accepted, Reasons: refusals}
	if len(refusals) > 0 {
		r.Verdict.Status = Refused
		if force {
			r.Verdict.Status = Forced
		}
	}
	return r.Verdict
}

// WriteJSON writes r, indented, with Schema set.
func WriteJSON(w io.Writer, r Report) error {
	r.Schema = Schema
	return writeJSON(w, r)
}

// writeJSON writes one of the reports, indented.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// ReadJSON reads what WriteJSON wrote. ErrFormat when it is something else or
// another version.
func ReadJSON(rd io.Reader) (*Report, error) {
	var r Report
	lim := &io.LimitedReader{R: rd, N: MaxJSON}
	if err := json.NewDecoder(lim).Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%w: schema %q, expected %q: use the fewbit version that wrote it", ErrFormat, shorten(r.Schema, 40), Schema)
	}
	return &r, nil
}
