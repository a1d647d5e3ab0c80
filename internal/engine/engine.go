// Package engine is the seam between fewbit and whatever executes a model:
// ONNX Runtime on the CPU (engine/ort), which engine/native gives fewbit's kernels,
// NVIDIA GPUs (engine/cuda) and a small in-memory double for tests (engine/fake).
package engine

import (
	"context"
	"errors"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors every engine reports with these identities, so that callers can map
// them to a status without knowing the engine.
var (
	// ErrUnavailable: the engine cannot run here; the text names the remedy.
	ErrUnavailable = errors.New("engine unavailable")
	// ErrModel: the engine refused the model.
	ErrModel = errors.New("model refused by the engine")
	// ErrInput: the feeds do not fit the model's inputs (name, type, shape).
	ErrInput = errors.New("input does not fit the model")
	// ErrMemory: the run or the model needs more memory than there is.
	ErrMemory = errors.New("not enough memory")
	// ErrClosed: the session has been closed.
	ErrClosed = errors.New("session is closed")
)

// Feeds maps tensor names to values: a session's inputs or its outputs.
type Feeds map[string]*tensor.Tensor

// IO describes one input or output of a model. A dimension is -1 where it is
// variable; DimNames then holds its symbolic name, or "". Dims is nil where the
// model does not even say the rank, and empty for a scalar.
type IO struct {
	Name     string
	Type     tensor.DType
	Dims     []int64
	DimNames []string
}

// IOSpec lists a model's inputs and outputs in graph order.
type IOSpec struct {
	Inputs, Outputs []IO
	Metadata        map[string]string // the model's metadata_props
}

// Device says where an engine runs.
type Device struct {
	Name    string // for people: "CPU (ONNX Runtime 1.32.0)"
	Version string // of the engine's library
	UUID    string // of a GPU, "GPU-...", as NVML writes it
}

// Options configure one session.
type Options struct {
	// Threads is the number of intra-op threads; 0 shares the process-wide pool.
	Threads int
	// DisableOptimization keeps the graph as written (needed when tensors in
	// the middle of the graph are observed under their own names).
	DisableOptimization bool
	// Profile writes ONNX Runtime's own profile to this path prefix; "" is off.
	Profile string
	// OptimizedModelPath writes the graph as the engine really runs it, after
	// its own optimizations, to this file, with large weights in a second file
	// of the same name plus ".data" beside it; "" is off.
	OptimizedModelPath string
	// Prepared is a folder in which the engine may keep what it prepares of this
	// model, for sessions and processes to come; "" keeps nothing. Whoever gives
	// it names it after the contents of the model's files: the engine takes what
	// lies there for theirs. It is made when needed, files beside it begin with
	// its name, and all of them may be deleted while no session is opened.
	Prepared string
	// ShrinkMemory gives working memory back to the system after every run,
	// which is then somewhat slower; otherwise a session keeps what its largest
	// run needed until Close.
	ShrinkMemory bool
	// Lean takes as little memory as possible, and time for it: working memory
	// comes from the system piece by piece, and weights are used where they lie
	// instead of a second time in the order that kernels like.
	Lean bool
	// Meter is told of the runs; nil is none.
	Meter Meter
}

// Engine opens models.
type Engine interface {
	Name() string
	Probe(ctx context.Context) (Device, error)
	// OpenFile opens the ONNX model at path (with its external data beside it).
	OpenFile(ctx context.Context, path string, o Options) (Session, error)
}

// Session is one loaded model. Run may be called from many goroutines at once.
type Session interface {
	Spec() IOSpec
	// Run computes outs, or all outputs when none are named. The tensors in the
	// returned Result lie in the engine's memory: they are valid until
	// Result.Close, and reading them copies nothing. Feeds must not be written
	// to before Run returns. Cancelling ctx stops the run, which then returns
	// ctx.Err(). After Close it returns ErrClosed.
	//
	// Naming outputs saves handing the others over, not computing them: ONNX
	// Runtime always executes the whole graph (its issue 3128). To save the
	// work, open a model that has only the outputs wanted.
	Run(ctx context.Context, in Feeds, outs []string) (Result, error)
	// Close waits for running Runs. Results stay valid until their own Close.
	Close() error
}

// Result holds the outputs of one Run.
type Result interface {
	// Tensors returns the outputs by name, without optional outputs that the
	// model left empty. Valid until Close.
	Tensors() Feeds
	// Close may be called more than once.
	Close()
}

// CheckFeeds returns ErrInput, saying what was expected and got, unless in has
// exactly the inputs of spec with their types and fixed dimensions.
// It is the one place that words these errors.
func CheckFeeds(spec IOSpec, in Feeds) error { return checkFeeds(spec, in) }
