//go:build !cuda

package cuda

import (
	"context"
	"fmt"

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
