// Package jobs runs quantization jobs durably on NATS JetStream, embedded in
// the process by default.
package jobs

import (
	"encoding/json"
	"errors"
	"time"
)

// Errors of the queue.
var (
	ErrNotFound = errors.New("job not found")
	ErrFinished = errors.New("job has already finished")
	ErrClosed   = errors.New("job queue is closed")
	ErrBusy     = errors.New("job queue is full")
)

// State of a job. A job moves queued -> running -> one of the three final ones.
type State string

// The states a client can see.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether the state can no longer change.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Spec is the body of POST /quantize: what to quantize and how to judge it.
// The JSON names are a public contract.
type Spec struct {
	Model   string `json:"model"`             // registry name of the FP32 model
	Version string `json:"version,omitempty"` // "" is the default version
	Name    string `json:"name,omitempty"`    // name of the result; "" is a new version of Model
	// Scheme is int8, int8-dynamic, int4, fp16, bf16, a16w8, mixed, or search, which chooses.
	Scheme string `json:"scheme"`
	// Method is minmax, entropy, percentile, mse or auto ("": auto).
	Method string `json:"method,omitempty"`
	// Weights is auto, rtn, mse, gptq, adaround, hqq, awq or brecq ("": auto).
	Weights     string   `json:"weights,omitempty"`
	Granularity string   `json:"granularity,omitempty"` // per-channel (default) or per-tensor
	Symmetric   bool     `json:"symmetric,omitempty"`
	Target      string   `json:"target,omitempty"` // ort-cpu (default), cpu, cuda, qdq or qoperator
	Exclude     []string `json:"exclude,omitempty"`
	// Equalize scales the channels between convolutions by the calibration data, in each trial of a search too.
	Equalize bool `json:"equalize,omitempty"`
	// Operators are rules MATCH=PRECISION for single operators, later ones win (quant.ParseRule).
	Operators []string `json:"operators,omitempty"`
	// Recipe is a built-in one, nlp, cv or multimodal: rules that come before Operators, and cv's least SQNR.
	Recipe      string       `json:"recipe,omitempty"`
	Samples     int          `json:"samples,omitempty"` // calibration samples; 0 is the default of the command line
	Calibration *Calibration `json:"calibration,omitempty"`
	Evaluation  *Evaluation  `json:"evaluation,omitempty"`
	MaxLoss     float64      `json:"max_loss,omitempty"`     // accuracy budget as a share of FP32's accuracy: 0.01 keeps 99 % of it
	SLOms       float64      `json:"slo_ms,omitempty"`       // latency target; 0 is 50 ms
	MaxSizeMB   float64      `json:"max_size_mb,omitempty"`  // of a search: largest file, in 10^6 bytes
	TimeLimitS  float64      `json:"time_limit_s,omitempty"` // of a search; 0 is 600 s
	// MaxMemoryMB is a ceiling on the resident memory of the server's process while the job runs, with the models that it serves; 0 is none.
	MaxMemoryMB float64 `json:"max_memory_mb,omitempty"`
	Promote     bool    `json:"promote,omitempty"`
	Force       bool    `json:"force,omitempty"`
	// Key makes the submission idempotent: the same key returns the same job.
	Key string `json:"key,omitempty"`
}

// Calibration names the inputs that calibrate: a data set, or what was captured.
type Calibration struct {
	Dataset  string    `json:"dataset,omitempty"`
	Captured *Captured `json:"captured,omitempty"`
}

// Captured names inputs that a served model was asked with.
type Captured struct {
	Model string `json:"model,omitempty"` // "" is the job's
}

// Evaluation names the data that judge the result.
type Evaluation struct {
	Dataset string `json:"dataset,omitempty"`
}

// Inputs say what a job reads, by contents: what its request named when it was
// submitted, whatever is deleted or replaced under these names later.
type Inputs struct {
	Model       Pin  `json:"model"`
	Calibration *Pin `json:"calibration,omitempty"`
	Evaluation  *Pin `json:"evaluation,omitempty"`
}

// Pin is one model version or data set.
type Pin struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of a model
	SHA256  string `json:"sha256"`            // of model.onnx, or of the data set as uploaded
	// Files is a digest of all files of a model version.
	Files string `json:"files_sha256,omitempty"`
	Kind  string `json:"kind,omitempty"`  // of a data set
	Bytes int64  `json:"bytes,omitempty"` // of a data set
	// About says what a report calls it; "" is its file's name.
	About string `json:"about,omitempty"`
}

// Status is what GET /quantize/{id} returns.
type Status struct {
	ID         string          `json:"id"`
	Status     State           `json:"status"`
	Phase      string          `json:"phase,omitempty"` // what the job is doing, for people
	Progress   float64         `json:"progress"`        // 0..1, never less than before, after a restart too
	ETASeconds *float64        `json:"eta_seconds,omitempty"`
	Result     json.RawMessage `json:"result,omitempty"`
	Error      string          `json:"error,omitempty"`
	Spec       Spec            `json:"request"`
	Inputs     *Inputs         `json:"inputs,omitempty"`
	Submitted  time.Time       `json:"submitted"`
	Started    *time.Time      `json:"started,omitempty"`
	Finished   *time.Time      `json:"finished,omitempty"`
	Attempts   int             `json:"attempts,omitempty"` // deliveries; above 1 after a restart
}
