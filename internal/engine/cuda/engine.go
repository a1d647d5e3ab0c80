//go:build cuda

package cuda

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/graph"
)

// Engine executes models on one GPU. The device is opened when it is first
// needed and kept until Reset or Close.
type Engine struct {
	c  Config
	mu sync.Mutex
	d  *device.Device
}

var _ engine.Engine = (*Engine)(nil)

// New returns an engine on a device of its own choice of settings.
func New(c Config) *Engine { return &Engine{c: c.withDefaults()} }

// Name returns "cuda".
func (e *Engine) Name() string { return "cuda" }

// device returns the open device.
func (e *Engine) device() (*device.Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.d == nil {
		d, err := device.Open(e.c.Ordinal)
		if err != nil {
			return nil, err
		}
		e.d = d
	}
	return e.d, e.d.Err()
}

// Probe opens the device and describes it.
func (e *Engine) Probe(ctx context.Context) (engine.Device, error) {
	if err := ctx.Err(); err != nil {
		return engine.Device{}, err
	}
	d, err := e.device()
	if err != nil {
		return engine.Device{}, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	i := d.Info()
	return engine.Device{Name: i.String(), Version: fmt.Sprintf("CUDA %d.%d", i.Driver/1000, i.Driver%1000/10), UUID: i.UUID}, nil
}

// Info describes the device that is open; false while none is.
func (e *Engine) Info() (device.Info, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.d == nil {
		return device.Info{}, false
	}
	return e.d.Info(), true
}

// Reset gives the device up, so that the next OpenFile opens it anew. Sessions
// must have been closed: a lost device comes back only when nobody holds it.
func (e *Engine) Reset() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.d == nil {
		return nil
	}
	err := e.d.Close()
	e.d = nil
	return err
}

// Close is Reset.
func (e *Engine) Close() error { return e.Reset() }

// OpenFile reads and prepares the model. Weights go to the device with the first
// shapes that are planned. ErrUnavailable without a device, ErrModel for a file
// that is no model, plan.ErrUnsupported for one in which the executor lacks
// something whatever the shapes are.
func (e *Engine) OpenFile(ctx context.Context, path string, _ engine.Options) (engine.Session, error) {
	s, err := e.open(ctx, path, e.c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (e *Engine) open(ctx context.Context, path string, c Config) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := e.device()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	m, err := graph.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrModel, err)
	}
	src, err := plan.New(m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	s := &session{d: d, c: c, m: m, src: src, spec: specOf(m), shapes: map[string]*shape{}, weights: map[string]device.Span{},
		slots: make(chan *slot, c.Streams)}
	for range c.Streams {
		s.slots <- &slot{s: s}
	}
	return s, nil
}

// defaults of Config.
const (
	defaultStreams = 2
	defaultShapes  = 64
)

func (c Config) withDefaults() Config {
	if c.Streams <= 0 {
		c.Streams = defaultStreams
	}
	if c.Shapes <= 0 {
		c.Shapes = defaultShapes
	}
	if c.MaxMemory <= 0 {
		c.MaxMemory = plan.MaxArena
	}
	return c
}

// specOf reads inputs and outputs from the graph.
func specOf(m *graph.Model) engine.IOSpec {
	list := func(vs []*graph.Value) []engine.IO {
		var r []engine.IO
		for _, v := range vs {
			io := engine.IO{Name: v.Name, Type: v.Type}
			if v.Dims != nil {
				io.Dims, io.DimNames = make([]int64, len(v.Dims)), make([]string, len(v.Dims))
			}
			for i, d := range v.Dims {
				io.Dims[i] = d.N
				if d.N < 0 {
					io.Dims[i], io.DimNames[i] = -1, d.Name
				}
			}
			r = append(r, io)
		}
		return r
	}
	return engine.IOSpec{Inputs: list(m.Graph.Inputs), Outputs: list(m.Graph.Outputs), Metadata: m.Metadata}
}

// workspace asks the kernels how much scratch memory a step needs. The device's
// context is current.
func workspace(s plan.Step) int64 {
	switch s := s.(type) {
	case *plan.GemmS8:
		return gemmS8(s).Workspace()
	case *plan.GemmW4:
		return gemmW4(s).Workspace()
	case *plan.ConvS8:
		return convS8(s).Workspace()
	}
	return 0
}
