package ort

// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/fewbit/fewbit/internal/engine"
)

// Session is one model in ONNX Runtime. Run may be called from many goroutines.
type Session struct {
	c      *C.OrtSession
	path   string // only to take it out of errors
	spec   engine.IOSpec
	outIDs map[string]int
	names  []*C.char // of inputs, then outputs; an array in C memory
	shrink bool
	lean   bool         // there is no arena to shrink
	meter  engine.Meter // nil for none
	frames frames
	// Requests far larger than usual run with the arena shrunk afterwards, so
	// that one of them does not keep its memory for ever.
	large frames
	usual atomic.Int64 // moving average of the elements of a request
	took  atomic.Int64 // and of how long a run takes, in nanoseconds

	closed atomic.Bool
	mu     sync.RWMutex // read-held by Runs, write-held by Close and EndProfile

	profiling   bool   // EndProfile has not been called yet
	profileFile string // set by EndProfile
}

var _ engine.Session = (*Session)(nil)

// newSession takes c over, unless it returns an error.
func newSession(c *C.OrtSession, path string, o engine.Options) (*Session, error) {
	s := &Session{c: c, path: path, shrink: o.ShrinkMemory && !o.Lean, lean: o.Lean, meter: o.Meter, profiling: o.Profile != ""}
	var err error
	if s.spec.Inputs, s.spec.Outputs, err = sessionIO(s.c); err != nil {
		return nil, modelError(path, err)
	}
	if s.spec.Metadata, err = metadata(c); err != nil {
		return nil, modelError(path, err)
	}
	s.outIDs = make(map[string]int, len(s.spec.Outputs))
	for i, o := range s.spec.Outputs {
		s.outIDs[o.Name] = i
	}
	n := len(s.spec.Inputs) + len(s.spec.Outputs)
	a := (**C.char)(C.calloc(C.size_t(n+1), C.size_t(unsafe.Sizeof((*C.char)(nil)))))
	if a == nil {
		return nil, errNoMemory
	}
	s.names = unsafe.Slice(a, n+1)
	for i, io := range append(append([]engine.IO(nil), s.spec.Inputs...), s.spec.Outputs...) {
		s.names[i] = C.CString(io.Name)
	}
	return s, nil
}

// Spec implements engine.Session. The caller must not change it.
func (s *Session) Spec() engine.IOSpec { return s.spec }

// Run implements engine.Session. Elements of fixed-size types are not copied,
// in or out; strings are. A run that fails returns ErrInput, ErrMemory or
// ErrModel by whose fault it was.
func (s *Session) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() { // without waiting for a Close that waits for others
		return nil, engine.ErrClosed
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed.Load() {
		return nil, engine.ErrClosed
	}
	if err := engine.CheckFeeds(s.spec, in); err != nil {
		return nil, err
	}
	pool, shrink := &s.frames, s.shrink
	if s.unusual(in) {
		pool, shrink = &s.large, !s.lean
	}
	f := pool.get()
	if f == nil {
		var err error
		if f, err = newFrame(len(s.spec.Inputs), len(s.spec.Outputs), shrink); err != nil {
			return nil, s.runError(err)
		}
	}
	r, err := s.run(ctx, f, in, outs)
	f.clear()
	pool.put(f)
	if err != nil {
		return nil, err
	}
	return r, nil
}

const (
	// unusualTimes is how many times the usual size makes a request large, and
	// unusualLeast the number of elements below which none is.
	unusualTimes = 8
	unusualLeast = 4096
	// usualWeight is the inverse weight of the newest request in the averages.
	usualWeight = 16
	// longRun is from how long on runs get a thread of their own.
	longRun = time.Millisecond
)

// unusual reports whether the request is far larger than the usual one, and
// counts it towards what is usual. Lost updates under concurrency do no harm.
func (s *Session) unusual(in engine.Feeds) bool {
	var n int64
	for _, t := range in {
		n += t.Len()
	}
	usual := s.usual.Load()
	if usual == 0 {
		s.usual.Store(min(n, unusualLeast))
		return n > unusualTimes*unusualLeast
	}
	s.usual.Store(usual + (min(n, unusualTimes*usual)-usual)/usualWeight)
	return n >= unusualLeast && n > unusualTimes*usual
}

func (s *Session) run(ctx context.Context, f *frame, in engine.Feeds, outs []string) (*result, error) {
	if err := s.choose(f, outs); err != nil {
		return nil, err
	}
	for i := range s.spec.Inputs {
		name := s.spec.Inputs[i].Name
		if err := f.setInput(i, in[name]); err != nil {
			return nil, fmt.Errorf("%w: input %q: %w", engine.ErrInput, name, err)
		}
	}
	took, begun := s.took.Load(), time.Now()
	err := s.metered(ctx, func() error { return f.run(ctx, s.c, &s.names[0], took >= int64(longRun)) })
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, s.runError(err)
	}
	s.took.Store(took + (int64(time.Since(begun))-took)/usualWeight)
	r, err := f.take(s.spec.Outputs)
	if err != nil {
		return nil, s.runError(err)
	}
	return r, nil
}

// metered tells the meter of a run.
func (s *Session) metered(ctx context.Context, run func() error) (err error) {
	if s.meter != nil {
		end := s.meter("", engine.Requests(ctx))
		defer func() { end(err == nil) }()
	}
	return run()
}

// choose sets the outputs of this run: outs without repetitions, or all.
func (s *Session) choose(f *frame, outs []string) error {
	add := func(id int) {
		if !f.seen[id] {
			f.seen[id] = true
			f.outN[len(f.ids)] = s.names[len(s.spec.Inputs)+id]
			f.ids = append(f.ids, id)
		}
	}
	if len(outs) == 0 {
		for id := range s.spec.Outputs {
			add(id)
		}
		return nil
	}
	for _, name := range outs {
		id, ok := s.outIDs[name]
		if !ok {
			return fmt.Errorf("%w: the model has no output %q, it has %s", engine.ErrInput, name, outputNames(s.spec.Outputs))
		}
		add(id)
	}
	return nil
}

// maxNamed is how many outputs an error lists: a model under calibration has
// hundreds.
const maxNamed = 8

func outputNames(outs []engine.IO) string {
	var names []string
	for i, o := range outs {
		if i == maxNamed {
			return fmt.Sprintf("%q and %d more", names, len(outs)-i)
		}
		names = append(names, o.Name)
	}
	return fmt.Sprintf("%q", names)
}

func (s *Session) runError(err error) error { return runError(s.path, err) }

// EndProfile stops the profiler that Options.Profile started and returns the
// path of the file it wrote (the prefix, the time, ".json"), for ParseProfile.
// Called again, or after Close, it returns the same path; without a profile "".
func (s *Session) EndProfile() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endProfile()
}

func (s *Session) endProfile() (string, error) {
	if !s.profiling {
		return s.profileFile, nil
	}
	s.profiling = false
	p, err := endProfiling(s.c)
	if err != nil {
		return "", fmt.Errorf("profile of %s: %w", fileName(s.path), clean(s.path, err))
	}
	s.profileFile = p
	return p, nil
}

// Close implements engine.Session: it waits for running Runs, ends the profile
// and frees the model. Calling it again does nothing.
func (s *Session) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.endProfile()
	err = errors.Join(err, s.frames.close(), s.large.close())
	releaseSession(s.c)
	s.c = nil
	for _, n := range s.names {
		C.free(unsafe.Pointer(n))
	}
	C.free(unsafe.Pointer(unsafe.SliceData(s.names)))
	s.names = nil
	return err
}
