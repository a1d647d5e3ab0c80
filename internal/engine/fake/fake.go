// Package fake is an engine made of Go functions, for tests of what stands
// above an engine: queues, deadlines, error mapping, shutdown. It keeps the
// rules of engine.Session: checked feeds, cancellation, ErrClosed, a Close that
// waits.
package fake

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// Model is what a session of the fake engine does.
type Model struct {
	Spec engine.IOSpec
	// Run computes all outputs. It may be called from many goroutines. nil
	// echoes each input under the output of the same position.
	Run func(in engine.Feeds) (engine.Feeds, error)
	// Delay is how long a run takes before it calls Run.
	Delay time.Duration
	// Gate, when not nil, holds every run until it yields a value or is closed.
	Gate <-chan struct{}
	// OpenErr makes OpenFile fail.
	OpenErr error
}

// Engine opens the models that were added to it. The zero value has none.
type Engine struct {
	mu      sync.Mutex
	models  map[string]Model
	opened  []Opened
	running int
	changed chan struct{} // closed when running changes
	runs    int
}

// Opened is one call of OpenFile.
type Opened struct {
	Path    string
	Options engine.Options
}

var (
	_ engine.Engine  = (*Engine)(nil)
	_ engine.Session = (*session)(nil)
	_ engine.Result  = (*result)(nil)
)

// Any is the path of a model that serves every path not added by itself.
const Any = ""

// Add makes OpenFile serve m for path: a full path, a base name, or Any.
func (e *Engine) Add(path string, m Model) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.models == nil {
		e.models = make(map[string]Model)
	}
	e.models[path] = m
}

// Name returns "fake".
func (e *Engine) Name() string { return "fake" }

// Probe always finds a device.
func (e *Engine) Probe(ctx context.Context) (engine.Device, error) {
	return engine.Device{Name: "fake", Version: "0"}, ctx.Err()
}

// OpenFile returns a session of the model added for path, its base name or Any,
// in this order, and ErrModel when there is none. The file is not read.
func (e *Engine) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range []string{path, filepath.Base(path), Any} {
		m, ok := e.models[key]
		if !ok {
			continue
		}
		if m.OpenErr != nil {
			return nil, m.OpenErr
		}
		e.opened = append(e.opened, Opened{path, o})
		return &session{engine: e, m: m}, nil
	}
	return nil, fmt.Errorf("%w: %s was not added to the fake engine", engine.ErrModel, filepath.Base(path))
}

// Opens returns the sessions opened so far.
func (e *Engine) Opens() []Opened {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.opened)
}

// Runs returns how many runs have begun, and how many of them are in progress.
func (e *Engine) Runs() (begun, running int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs, e.running
}

// WaitRunning returns once exactly n runs are in progress, or ctx is done.
func (e *Engine) WaitRunning(ctx context.Context, n int) error {
	for {
		e.mu.Lock()
		if e.running == n {
			e.mu.Unlock()
			return nil
		}
		if e.changed == nil {
			e.changed = make(chan struct{})
		}
		c := e.changed
		e.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Engine) count(d int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running += d
	e.runs += max(d, 0)
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

type session struct {
	engine *Engine
	m      Model

	mu     sync.Mutex
	closed bool
	runs   sync.WaitGroup
}

func (s *session) Spec() engine.IOSpec { return s.m.Spec }

func (s *session) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return engine.ErrClosed
	}
	s.runs.Add(1)
	return nil
}

func (s *session) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.runs.Done()
	if err := engine.CheckFeeds(s.m.Spec, in); err != nil {
		return nil, err
	}
	for _, o := range outs {
		if !slices.ContainsFunc(s.m.Spec.Outputs, func(io engine.IO) bool { return io.Name == o }) {
			return nil, fmt.Errorf("%w: the model has no output %q", engine.ErrInput, o)
		}
	}
	s.engine.count(1)
	defer s.engine.count(-1)
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	run := s.m.Run
	if run == nil {
		run = s.echo
	}
	all, err := run(in)
	if err != nil {
		return nil, err
	}
	r := &result{tensors: make(engine.Feeds)}
	for name, t := range all {
		if len(outs) == 0 || slices.Contains(outs, name) {
			r.tensors[name] = t
		}
	}
	return r, nil
}

func (s *session) wait(ctx context.Context) error {
	if s.m.Gate != nil {
		select {
		case <-s.m.Gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.m.Delay > 0 {
		timer := time.NewTimer(s.m.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *session) echo(in engine.Feeds) (engine.Feeds, error) {
	out := make(engine.Feeds)
	for i, o := range s.m.Spec.Outputs {
		if i < len(s.m.Spec.Inputs) {
			out[o.Name] = in[s.m.Spec.Inputs[i].Name].Clone()
		}
	}
	return out, nil
}

func (s *session) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.runs.Wait()
	return nil
}

type result struct {
	mu      sync.Mutex
	tensors engine.Feeds
}

func (r *result) Tensors() engine.Feeds {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tensors
}

func (r *result) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tensors = nil
}
