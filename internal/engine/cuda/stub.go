//go:build !cuda

package cuda

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
)

// Engine is the executor. This build has none.
type Engine struct{}

var _ engine.Engine = (*Engine)(nil)

// New returns an engine that is unavailable: this binary was built without CUDA.
func New(Config) *Engine { return &Engine{} }

// Name returns "cuda".
func (*Engine) Name() string { return "cuda" }

// Probe returns ErrUnavailable and says what to do.
func (*Engine) Probe(context.Context) (engine.Device, error) {
	_, err := device.Open(0)
	return engine.Device{}, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
}

// OpenFile returns ErrUnavailable, as Probe does.
func (e *Engine) OpenFile(ctx context.Context, _ string, _ engine.Options) (engine.Session, error) {
	_, err := e.Probe(ctx)
	return nil, err
}

// Close does nothing.
func (*Engine) Close() error { return nil }

// Watch observes nothing in this build.
type Watch struct{}

// Watch returns ErrUnavailable, as Probe does.
func (e *Engine) Watch(ctx context.Context, _ string, _ WatchConfig) (*Watch, error) {
	_, err := e.Probe(ctx)
	return nil, err
}

// Run does nothing: there is no Watch in this build.
func (*Watch) Run(context.Context, engine.Feeds, calib.SampleID) error { return engine.ErrUnavailable }

// Entropy finds nothing.
func (*Watch) Entropy(calib.Scheme) (map[string]calib.Range, error) {
	return nil, engine.ErrUnavailable
}

// Collect reads nothing.
func (*Watch) Collect(*calib.Collector) error { return engine.ErrUnavailable }

// Close does nothing.
func (*Watch) Close() error { return nil }
