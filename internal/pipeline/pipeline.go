package pipeline

import (
	"cmp"
	"context"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/rollout/capture"
)

// Defaults of a run.
const (
	// DefaultSamples calibrate when the request names no number. Threshold
	// statistics of encoders settle well below it; see docs/numerics.md.
	DefaultSamples = 64
	// DefaultMaxLoss is the accuracy budget, as a share of FP32's accuracy.
	DefaultMaxLoss = 0.01
	// DefaultSLO is the latency target.
	DefaultSLO = 50 * time.Millisecond
)

// Pipeline holds what every run shares.
type Pipeline struct {
	Engine engine.Engine
	// Threads is the intra-op thread count of the sessions that are measured
	// and calibrated with; 0 shares the engine's pool.
	Threads int
	// Device calibrates, where there is one; nil leaves it to Engine.
	Device Device
	// Version of fewbit, for reports.
	Version string
	// PeakMemory measures a model's peak resident size in a process of its own;
	// nil leaves it out of reports.
	PeakMemory func(ctx context.Context, path string) (int64, error)
	// Scratch is the folder below which temporary models are written; "" is
	// the system's.
	Scratch string
	// CaptureKey opens captured inputs; nil: they are not read.
	CaptureKey *capture.Key
}

// Request asks for one quantization.
type Request struct {
	// Model is the path of the float ONNX model; tokenizer.json,
	// preprocessor_config.json and labels.txt are looked for beside it.
	Model string
	// Name stands for the model in the report; "" is the file's name.
	Name string
	// Out is where the quantized model goes. It is written only when the gate
	// accepts it or Force is set.
	Out    string
	Config quant.Config
	// Calib and Eval are paths of data sets (or, for Calib, of a calibration
	// table); "" is none.
	Calib, Eval string
	// CalibName says in the report where Calib comes from; "" is the file's name.
	CalibName string
	// Samples calibrate; 0 is DefaultSamples.
	Samples int
	// EvalSamples judge; 0 is all.
	EvalSamples int
	// Precision of the float model's products while it calibrates; "" is
	// AutoPrecision.
	Precision Precision
	// MaxTokens cuts texts; 0 is the default of the data package.
	MaxTokens int
	// MaxLoss is the accuracy budget as a fraction (0.01); 0 is DefaultMaxLoss.
	MaxLoss float64
	// MinSQNR keeps the operators in FP32 that harm the output most, as few as bring
	// its SQNR on the calibration samples to this many dB; 0 keeps none.
	MinSQNR float64
	// SLO is the latency target; 0 is DefaultSLO.
	SLO time.Duration
	// MaxMemory is the ceiling in bytes on the resident memory of this process
	// while the run goes on; 0 is none.
	MaxMemory int64
	// Force keeps a result that the gate refused.
	Force bool
	// NoLatency skips the latency measurement (and its part of the gate).
	NoLatency bool
	// Dump writes the graph's text form after a pass.
	Dump quant.Dump
	// Command is recorded in the report.
	Command []string
	// Words are how the one who asks gives what a warning or an error advises.
	Words Words
}

// Words name settings as one gives them: "--eval DATA" on the command line,
// a field of JSON to the server. Empty ones become plain words.
type Words struct {
	Calib, Eval, Force, MaxMemory string
}

func (w Words) calib() string     { return cmp.Or(w.Calib, "calibration data") }
func (w Words) eval() string      { return cmp.Or(w.Eval, "evaluation data") }
func (w Words) maxMemory() string { return cmp.Or(w.MaxMemory, "the ceiling") }
func (w Words) force() string     { return cmp.Or(w.Force, "forcing") }
