package cuda

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
)

// Pauses before the GPU is tried again after it failed. Each failure doubles the
// pause; a success takes it back to the first.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// FallbackConfig says what a Fallback is made of.
type FallbackConfig struct {
	// GPU executes models on the device. One that also has Reset() error is reset
	// before models are opened again on a device that was lost.
	GPU engine.Engine
	// CPU answers when the GPU cannot.
	CPU engine.Engine
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Changed, when not nil, is told of each change of the device's state, one at
	// a time. It must not call back into the Fallback.
	Changed func(engine.Placement)
}

// Fallback is an engine that answers each request on the GPU where it can and on
// the CPU otherwise: without a device or driver, for operators and shapes that
// the executor lacks, while memory is short, and after the device was lost,
// which is then tried again with growing pauses. A request that fails on the GPU
// in any such way is answered on the CPU; the caller does not notice.
type Fallback struct {
	c FallbackConfig

	// unproven: no request has succeeded since the device was opened anew.
	unproven atomic.Bool
	// opened counts how often it was: a loss that is reported late may be that of
	// the device before.
	opened atomic.Int64
	uuid   atomic.Pointer[string] // of the device
	work   sync.WaitGroup         // attempts in the background

	mu       sync.Mutex // may be taken while a Session's is held, not the other way round
	sessions map[*Session]struct{}
	status   engine.Placement // of the device
	pause    time.Duration
	trying   bool
	closed   bool
}

// resetter is an engine that can give up its device and open it anew.
type resetter interface{ Reset() error }

var (
	_ engine.Engine  = (*Fallback)(nil)
	_ engine.Session = (*Session)(nil)
	_ engine.Placed  = (*Session)(nil)
)

// NewFallback looks for a device. A missing one is not an error; see Status.
func NewFallback(ctx context.Context, c FallbackConfig) *Fallback {
	if c.Now == nil {
		c.Now = time.Now
	}
	f := &Fallback{c: c, sessions: map[*Session]struct{}{}, pause: firstPause}
	f.status = engine.Placement{Engine: c.CPU.Name(), Since: c.Now()}
	if d, err := c.GPU.Probe(ctx); err != nil {
		f.status.Reason = err.Error()
	} else {
		f.status.Engine, f.status.Device = c.GPU.Name(), d.Name
		f.uuid.Store(&d.UUID)
	}
	return f
}

// Name returns the name of the GPU's engine.
func (f *Fallback) Name() string { return f.c.GPU.Name() }

// Probe describes the device that answers now.
func (f *Fallback) Probe(ctx context.Context) (engine.Device, error) {
	if d, err := f.c.GPU.Probe(ctx); err == nil && f.Status().Reason == "" {
		return d, nil
	}
	return f.c.CPU.Probe(ctx)
}

// Status returns the device's state.
func (f *Fallback) Status() engine.Placement {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// set changes the device's state. f.mu is held.
func (f *Fallback) set(s engine.Placement) {
	s.Since = f.c.Now()
	f.status = s
	if f.c.Changed != nil {
		f.c.Changed(s)
	}
}

// OpenFile opens the model on the CPU, and on the GPU where that is possible. It
// fails only when the CPU refuses the model. Options that ask for ONNX Runtime's
// own work (profiles, its optimized graph, the graph as written) keep the model
// on the CPU.
func (f *Fallback) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	cpu, err := f.c.CPU.OpenFile(ctx, path, o)
	if err != nil {
		return nil, err
	}
	s := &Session{f: f, cpu: cpu, path: path, options: o, pause: firstPause}
	s.status = engine.Placement{Engine: f.c.CPU.Name(), Since: f.c.Now()}
	if o.Profile != "" || o.OptimizedModelPath != "" || o.DisableOptimization {
		s.status.Reason = "the options need ONNX Runtime"
		return s, nil
	}
	s.wanted = true
	f.mu.Lock()
	f.sessions[s] = struct{}{}
	reason := f.status.Reason
	f.mu.Unlock()
	if reason != "" {
		s.mark(reason)
		return s, nil
	}
	if err := s.open(ctx); err != nil && ctx.Err() != nil {
		_ = s.Close()
		return nil, ctx.Err()
	}
	return s, nil
}

// Close waits for attempts in the background and makes no more.
func (f *Fallback) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.work.Wait()
}

// background runs an attempt, unless the Fallback is closed.
func (f *Fallback) background(attempt func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		attempt()
	}()
	return true
}

// lost takes the device, the opened-th one, out of use until Retry. Many requests
// may report the same loss.
func (f *Fallback) lost(err error, opened int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status.Reason != "" || opened != f.opened.Load() {
		return
	}
	f.later(err)
}

// later plans the next attempt. f.mu is held.
func (f *Fallback) later(err error) {
	f.set(engine.Placement{Engine: f.c.CPU.Name(), Reason: err.Error(), Retry: f.c.Now().Add(f.pause)})
	f.pause = min(2*f.pause, lastPause)
}

// revive tries the device again when its time has come. It returns at once.
func (f *Fallback) revive() {
	f.mu.Lock()
	due := !f.trying && !f.status.Retry.IsZero() && !f.c.Now().Before(f.status.Retry)
	f.trying = f.trying || due
	f.mu.Unlock()
	if due && !f.background(f.attempt) {
		f.mu.Lock()
		f.trying = false
		f.mu.Unlock()
	}
}

// attempt closes what is open on the lost device, for all holders must let go of
// it, then opens device and models anew.
func (f *Fallback) attempt() {
	f.mu.Lock()
	list := make([]*Session, 0, len(f.sessions))
	for s := range f.sessions {
		list = append(list, s)
	}
	f.mu.Unlock()
	for _, s := range list {
		s.drop()
	}
	ctx := context.Background()
	var err error
	if r, ok := f.c.GPU.(resetter); ok {
		err = r.Reset()
	}
	var d engine.Device
	if err == nil {
		d, err = f.c.GPU.Probe(ctx)
	}
	f.mu.Lock()
	f.trying = false
	if err != nil {
		f.later(err)
		f.mu.Unlock()
		return
	}
	f.set(engine.Placement{Engine: f.c.GPU.Name(), Device: d.Name})
	f.uuid.Store(&d.UUID)
	f.unproven.Store(true)
	f.opened.Add(1)
	list = list[:0]
	for s := range f.sessions { // those opened meanwhile too
		list = append(list, s)
	}
	f.mu.Unlock()
	for _, s := range list {
		if s.open(ctx) != nil && f.Status().Reason != "" {
			return // lost again
		}
	}
}

// Session is one model on GPU and CPU.
type Session struct {
	f       *Fallback
	cpu     engine.Session
	path    string
	options engine.Options
	wanted  bool // on the GPU

	gpu   atomic.Pointer[gpuSession]
	onGPU atomic.Uint64
	onCPU atomic.Uint64
	// waiting: after a failure, until the time of the next attempt. unproven: no
	// request has succeeded since one.
	waiting, unproven atomic.Bool
	// refused says what the executor lacked for the last request that it saw.
	refused atomic.Pointer[string]

	mu      sync.Mutex
	status  engine.Placement
	pause   time.Duration
	opening bool
	closed  bool
}

type gpuSession struct{ engine.Session }

// Spec is the model's, as the CPU engine reads it.
func (s *Session) Spec() engine.IOSpec { return s.cpu.Spec() }

// Placement implements engine.Placed.
func (s *Session) Placement() engine.Placement {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	if d := s.f.Status(); s.wanted && d.Reason != "" {
		st.Engine, st.Device, st.Reason, st.Retry = d.Engine, d.Device, d.Reason, d.Retry
		if d.Since.After(st.Since) {
			st.Since = d.Since
		}
	}
	if why := s.refused.Load(); why != nil && st.Reason == "" {
		st.Engine, st.Device, st.Reason = s.f.c.CPU.Name(), "", *why
	}
	st.GPU, st.CPU = s.onGPU.Load(), s.onCPU.Load()
	return st
}

// set changes the state: reason is "" when the GPU answers. s.mu is held.
func (s *Session) set(reason string, retry time.Time) {
	st := engine.Placement{Engine: s.f.c.CPU.Name(), Reason: reason, Retry: retry, Since: s.f.c.Now()}
	if reason == "" {
		st.Engine, st.Device = s.f.c.GPU.Name(), s.f.Status().Device
	}
	s.status = st
}

// mark notes that this model stays on the CPU.
func (s *Session) mark(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(reason, time.Time{})
}

// later plans the next attempt of this session on the GPU.
func (s *Session) later(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(err.Error(), s.f.c.Now().Add(s.pause))
	s.pause = min(2*s.pause, lastPause)
	s.unproven.Store(true)
	s.waiting.Store(true)
}

// proved notes that the GPU answered after a failure.
func (s *Session) proved() {
	if s.f.unproven.Swap(false) {
		s.f.mu.Lock()
		s.f.pause = firstPause
		s.f.mu.Unlock()
	}
	if !s.unproven.Swap(false) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.Store(false)
	s.pause = firstPause
	s.set("", time.Time{})
}

// open opens the model on the GPU and notes how that went.
func (s *Session) open(ctx context.Context) error {
	opened := s.f.opened.Load()
	g, err := s.f.c.GPU.OpenFile(ctx, s.path, s.options)
	if err != nil {
		switch kindOf(err) {
		case lostDevice:
			s.f.lost(err, opened)
		case noMemory, failure:
			s.later(err)
		default: // operators that the executor lacks, or no device: for good
			s.mark(err.Error())
		}
		return err
	}
	s.mu.Lock()
	keep := !s.closed && s.gpu.Load() == nil
	if keep {
		s.gpu.Store(&gpuSession{g})
		s.waiting.Store(false)
		s.set("", time.Time{})
	}
	s.mu.Unlock()
	if !keep {
		return g.Close()
	}
	return nil
}

// drop closes the GPU's session. Requests that it runs end first; they fail soon
// on a lost device.
func (s *Session) drop() {
	if g := s.gpu.Swap(nil); g != nil {
		_ = g.Close() // of a lost device: there is nothing to tell
	}
}

// usable returns the GPU's session when this request should try it.
func (s *Session) usable() *gpuSession {
	if !s.wanted {
		return nil
	}
	if !s.f.up() {
		s.f.revive()
		return nil
	}
	g := s.gpu.Load()
	if g != nil && !s.waiting.Load() {
		return g
	}
	s.mu.Lock()
	due := !s.closed && !s.opening && !s.status.Retry.IsZero() && !s.f.c.Now().Before(s.status.Retry)
	reopen := due && g == nil
	s.opening = s.opening || reopen
	if due && !reopen { // one request tries; the others go on waiting
		s.status.Retry = s.f.c.Now().Add(s.pause)
	}
	s.mu.Unlock()
	if reopen {
		done := func() {
			s.mu.Lock()
			s.opening = false
			s.mu.Unlock()
		}
		if !s.f.background(func() {
			defer done()
			_ = s.open(context.Background()) // noted in the status
		}) {
			done()
		}
		return nil
	}
	if due {
		return g
	}
	return nil
}

// up reports whether the device is in use.
func (f *Fallback) up() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status.Reason == ""
}

// Run implements engine.Session. The result tells with Engine which engine made
// it (see RanOn).
func (s *Session) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	why := ""
	opened := s.f.opened.Load()
	if g := s.usable(); g != nil {
		end := s.meter(ctx)
		r, err := g.Run(ctx, in, outs)
		end(err == nil)
		if err == nil {
			s.onGPU.Add(uint64(engine.Requests(ctx)))
			if s.refused.Load() != nil {
				s.refused.Store(nil)
			}
			if s.unproven.Load() || s.f.unproven.Load() {
				s.proved()
			}
			return &result{r, s.f.c.GPU.Name(), ""}, nil
		}
		switch kindOf(err) {
		case callers:
			return nil, err
		case lostDevice:
			s.f.lost(err, opened)
		case noMemory, failure:
			s.later(err)
		}
		if why = err.Error(); kindOf(err) == unsupported {
			s.refused.Store(&why)
		}
	}
	r, err := s.cpu.Run(ctx, in, outs)
	if err != nil {
		return nil, err
	}
	s.onCPU.Add(uint64(engine.Requests(ctx)))
	if why == "" {
		why = s.Placement().Reason
	}
	return &result{r, s.f.c.CPU.Name(), why}, nil
}

// meter begins the measurement of a run on the GPU.
func (s *Session) meter(ctx context.Context) (end func(answered bool)) {
	id := s.f.uuid.Load()
	if s.options.Meter == nil || id == nil || *id == "" {
		return func(bool) {}
	}
	return s.options.Meter(*id, engine.Requests(ctx))
}

// Close implements engine.Session.
func (s *Session) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.f.mu.Lock()
	delete(s.f.sessions, s)
	s.f.mu.Unlock()
	g := s.gpu.Swap(nil)
	err := s.cpu.Close()
	if g != nil {
		err = errors.Join(err, g.Close())
	}
	return err
}

// result remembers who made it.
type result struct {
	engine.Result
	engine, reason string
}

// RanOn returns the name of the engine that made r, and why it was not the GPU;
// both are "" for results that no Fallback made.
func RanOn(r engine.Result) (name, reason string) {
	if x, ok := r.(*result); ok {
		return x.engine, x.reason
	}
	return "", ""
}

// What an error of the GPU's engine means for the request and for the next.
const (
	callers     = iota // the request itself is wrong, or its caller has gone
	unsupported        // this model or shape will never run there
	noMemory           // later perhaps
	lostDevice         // not before the device has been opened anew
	failure            // something else
)

func kindOf(err error) int {
	switch {
	case errors.Is(err, device.ErrLost):
		return lostDevice
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, engine.ErrInput):
		return callers
	case errors.Is(err, device.ErrOutOfMemory), errors.Is(err, engine.ErrMemory):
		return noMemory
	case errors.Is(err, plan.ErrUnsupported), errors.Is(err, plan.ErrLimit), errors.Is(err, device.ErrNoDevice),
		errors.Is(err, engine.ErrUnavailable), errors.Is(err, engine.ErrModel), errors.Is(err, engine.ErrClosed), errors.Is(err, device.ErrClosed):
		return unsupported
	}
	return failure
}
