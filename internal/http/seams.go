package http

import (
	"context"
	"io"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// Models are the models that can answer requests now.
type Models interface {
	// List returns every version known, in a stable order.
	List() []ModelInfo
	// Acquire pins one version until Release, and loads it before where nobody
	// has unloaded it on request; version "" is the default (promoted) one.
	// Errors: registry.ErrNotFound, registry.ErrNotReady, registry.ErrMemory.
	Acquire(ctx context.Context, name, version string) (Lease, error)
	// Load loads the default version, or loads it again when it has changed.
	Load(ctx context.Context, name string) error
	// Unload stops serving the model; requests in flight finish first.
	Unload(ctx context.Context, name string) error
}

// States of ModelInfo.State (Open Inference Protocol, repository extension).
const (
	StateReady       = "READY"
	StateUnavailable = "UNAVAILABLE"
	StateLoading     = "LOADING"
	StateUnloading   = "UNLOADING"
)

// ModelInfo is one line of the repository index.
type ModelInfo struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	State   string `json:"state" doc:"READY, UNAVAILABLE, LOADING or UNLOADING"`
	Reason  string `json:"reason" doc:"why the state is not READY"`
	Default bool   `json:"default,omitempty" doc:"true for the version that requests without a version reach"`
	Lazy    bool   `json:"lazy,omitempty" doc:"true for a version that is not loaded, and that the next request for it loads"`
	// Texts is true of a version that takes texts, loaded or not.
	Texts bool `json:"-"`
	// Memory is what the version is charged with while it is loaded, in bytes.
	Memory int64 `json:"-"`
	// Engine says which engine answers; nil while it is not loaded, and where
	// there is only one.
	Engine *engine.Placement `json:"-"`
}

// Budget is an optional ability of Models: the memory that they share.
type Budget interface {
	Memory() telemetry.ModelMemory
}

// Lease is one loaded version, pinned until Release.
type Lease interface {
	// Spec lists the model's inputs and outputs.
	Spec() engine.IOSpec
	// Run computes outs when the request's turn comes, perhaps together with
	// others (batch.Queue.Run). Errors: the engine's, batch.ErrOverloaded.
	Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, batch.Timing, error)
	// Refuses says why a request of that size, at least, and that deadline would be
	// refused now (batch.ErrOverloaded), nil when it might not; size 0 is not known.
	Refuses(size float64, deadline time.Time) error
	// Size is the size of a request.
	Size(in engine.Feeds) float64
	// Placement says which engine answers; false when there is only one.
	Placement() (engine.Placement, bool)
	Name() string
	Version() string
	// Target is the latency target of the model; 0 stands for 50 ms.
	Target() time.Duration
	// Preparer turns texts or images into feeds; nil when the model takes tensors
	// only.
	Preparer() Preparer
	Release()
}

// Preparer turns what people send into feeds: TextPreparer, Texts or Images.
type Preparer interface {
	// Labels are the class names in the order of the model's scores; empty
	// when the model is not a classifier.
	Labels() []string
}

// TextPreparer turns raw text into one padded batch of feeds.
type TextPreparer interface {
	Preparer
	Text(texts []string) (engine.Feeds, error)
}

// Store keeps uploaded models and datasets. Implementations stream: they never
// hold a body in memory.
type Store interface {
	// PutModel stores a raw ONNX body or a zip as a new version of name.
	// It reads at most limit bytes and returns registry.ErrTooLarge past it.
	PutModel(ctx context.Context, name string, body io.Reader, size int64) (version string, err error)
	PutDataset(ctx context.Context, name string, body io.Reader, contentType string, size int64) (DatasetInfo, error)
	Datasets() ([]DatasetInfo, error)
	DeleteDataset(ctx context.Context, name string) error
	Versions(ctx context.Context, name string) ([]VersionInfo, error)
	Promote(ctx context.Context, name, version string) error
	// Rollback makes the version that was promoted before the default again
	// and returns it.
	Rollback(ctx context.Context, name string) (version string, err error)
	Delete(ctx context.Context, name, version string) error
}

// DatasetInfo describes one stored dataset.
type DatasetInfo struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind,omitempty" doc:"npz, npy, jsonl or images"`
	Samples int64     `json:"samples,omitempty" doc:"samples, 0 when not counted"`
	Labels  bool      `json:"labels,omitempty" doc:"whether the samples carry labels"`
	Bytes   int64     `json:"bytes"`
	SHA256  string    `json:"sha256,omitempty"`
	Created time.Time `json:"created"`
}

// VersionInfo describes one stored version of a model.
type VersionInfo struct {
	Version string    `json:"version"`
	Default bool      `json:"default" doc:"true for the promoted version"`
	Bytes   int64     `json:"bytes"`
	SHA256  string    `json:"sha256,omitempty"`
	Scheme  string    `json:"scheme,omitempty" doc:"how it was quantized; empty for the model as uploaded"`
	Source  string    `json:"source,omitempty" doc:"the version it was quantized from"`
	Created time.Time `json:"created"`
}

// Jobs is the queue of quantization jobs.
type Jobs interface {
	Submit(ctx context.Context, s jobs.Spec) (id string, err error)
	Get(ctx context.Context, id string) (jobs.Status, error)
	List(ctx context.Context) ([]jobs.Status, error)
	// Events sends the job's status now and at every change, and closes the
	// channel after a final state or when ctx ends.
	Events(ctx context.Context, id string) (<-chan jobs.Status, error)
	Cancel(ctx context.Context, id string) error
}

// Repeats is an optional ability of Jobs: to know a request again by its key when what
// it names is not there any more.
type Repeats interface {
	// Known returns the job of the key, "" when there is none. Errors:
	// jobs.ErrConflict when it was another request's.
	Known(ctx context.Context, s jobs.Spec) (id string, err error)
}

// Capture keeps a sample of the inputs that models are asked with.
type Capture interface {
	// Offer shows it the inputs of an answered request. It does not wait and
	// copies what it keeps.
	Offer(model, version, route string, feeds engine.Feeds, rows int64)
	Start(model string, s capture.Settings) (capture.Status, error)
	Status(model string) (capture.Status, error)
	Stop(model string) (capture.Status, error)
	Delete(model string) error
	// Export reads the samples for an .npz; the caller closes it.
	Export(model string) (*capture.Export, error)
}

// Reports is an optional ability of Jobs: the report of a finished job.
type Reports interface {
	Report(ctx context.Context, id string) (json []byte, html []byte, err error)
}
