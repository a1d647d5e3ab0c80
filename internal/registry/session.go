package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/tensor"
)

// maxWarmBytes bounds one input of the default first run; larger models warm
// up on their first request.
const maxWarmBytes = 256 << 20

// instance is one open session. charge, refs, retired, gone and used are guarded
// by Loaded.mu.
type instance struct {
	v       Version
	session engine.Session
	queue   *batch.Queue
	prep    Preparer
	target  time.Duration
	charge  int64 // of the memory budget, in bytes
	refs    int
	retired bool // closes with the last reference
	gone    bool // closed
	used    time.Time
}

// open opens, prepares and warms a version; m's busy slot is held. What goes
// wrong becomes the model's reason.
func (l *Loaded) open(ctx context.Context, m *model, v Version, with room) (in *instance, err error) {
	l.mu.Lock()
	m.loading = v.Number
	l.mu.Unlock()
	defer func() {
		passes := errors.Is(err, errNoRoom) || errors.Is(err, errHeld)
		costly := !errors.Is(err, ErrMemory) // trying again would be
		if err != nil {
			kind := ErrNotReady
			if errors.Is(err, ErrMemory) {
				kind = ErrMemory
			}
			err = fmt.Errorf("version %d of model %s: %w", v.Number, v.Model, as(err, kind))
		}
		l.mu.Lock()
		m.loading = 0
		if err != nil && ctx.Err() == nil && !passes {
			m.reason, m.failedOf, m.failed = err.Error(), v.Number, time.Time{}
			if costly {
				m.failed = time.Now()
			}
		}
		l.mu.Unlock()
	}()
	peak, err := l.reserve(ctx, m, v, with)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.opening++
	l.began++
	only, began := l.opening == 1, l.began
	l.mu.Unlock()
	before := l.anonymous()
	defer func() {
		if err != nil {
			l.giveBack()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.opening--
		if err != nil {
			l.freeLocked(peak)
			return
		}
		l.loads++
		if !only || l.began != began { // whose memory is whose cannot be told
			before = 0
		}
		l.settle(in, peak, before)
	}()
	dir, err := l.r.view(v.Files)
	if err != nil {
		return nil, err
	}
	o := l.o.EngineOptions
	if l.o.Meter != nil {
		o.Meter = l.o.Meter(v.Model, v.ID())
	}
	// The folder is named after its files' contents, and collected with them.
	o.Prepared = filepath.Join(dir, preparedDir)
	s, err := l.o.Engine.OpenFile(ctx, filepath.Join(dir, ModelFile), o)
	if err != nil {
		return nil, hide(err, dir)
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	in = &instance{v: v, session: s, target: l.target(v)}
	if l.o.PreparerFor != nil {
		if in.prep, err = l.o.PreparerFor(dir, s.Spec()); err != nil {
			return nil, hide(err, dir)
		}
	}
	alone := false
	if l.o.Alone != nil {
		if alone, err = l.o.Alone(dir); err != nil {
			return nil, hide(err, dir)
		}
	}
	if err := l.first(ctx, s); err != nil {
		return nil, fmt.Errorf("first run: %w", hide(err, dir))
	}
	if !alone && l.o.Independent != nil {
		if alone, err = l.dependent(ctx, v, s); err != nil {
			return nil, fmt.Errorf("first run: %w", hide(err, dir))
		}
	}
	in.queue = l.o.Scheduler.Queue(s, batch.QueueOptions{Alone: alone})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the server is stopping")
	}
	l.sessions.Add(1)
	return in, nil
}

// first runs a session for the first time. A model may compute for ever: it must
// keep neither its own name nor those that load after it waiting.
func (l *Loaded) first(ctx context.Context, s engine.Session) error {
	late := fmt.Errorf("it did not end within %v", l.o.WarmTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, l.o.WarmTimeout, late)
	defer cancel()
	err := l.o.Warm(engine.WithRequests(ctx, 0), s)
	if err != nil && errors.Is(context.Cause(ctx), late) {
		return late
	}
	return err
}

// dependent reports whether rows of s depend on each other. A model that cannot be
// tried out in time may be so.
func (l *Loaded) dependent(ctx context.Context, v Version, s engine.Session) (bool, error) {
	within, cancel := context.WithTimeout(ctx, l.o.WarmTimeout)
	defer cancel()
	independent, err := l.o.Independent(engine.WithRequests(within, 0), v.Model+"/"+v.ID(), s)
	if within.Err() != nil && ctx.Err() == nil {
		return true, nil
	}
	return !independent, err
}

// retire lets the instance close with its last lease. l.mu is held.
func (l *Loaded) retire(in *instance) {
	if !in.retired {
		in.retired = true
		l.closing += in.charge
	}
	l.reap(in)
}

// reap closes a retired instance that nobody uses. l.mu is held.
func (l *Loaded) reap(in *instance) {
	if !in.retired || in.gone || in.refs > 0 {
		return
	}
	in.gone = true
	go func() { // freeing a large model takes a while; no request should wait for it
		defer l.sessions.Done()
		_ = in.session.Close()
		l.giveBack()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closing -= in.charge
		l.freeLocked(in.charge)
	}()
}

// as returns err as a kind, unless it is one already.
func as(err, kind error) error {
	if errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

type lease struct {
	l    *Loaded
	in   *instance
	done atomic.Bool
}

var _ Lease = (*lease)(nil)

func (l *lease) Spec() engine.IOSpec { return l.in.queue.Spec() }
func (l *lease) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, batch.Timing, error) {
	return l.in.queue.Run(ctx, in, outs)
}
func (l *lease) Refuses(size float64, deadline time.Time) error {
	return l.in.queue.Refuses(size, deadline)
}
func (l *lease) Size(in engine.Feeds) float64        { return l.in.queue.Size(in) }
func (l *lease) Placement() (engine.Placement, bool) { return l.in.queue.Placement() }
func (l *lease) Name() string                        { return l.in.v.Model }
func (l *lease) Version() string                     { return l.in.v.ID() }
func (l *lease) Target() time.Duration               { return l.in.target }
func (l *lease) Preparer() Preparer                  { return l.in.prep }

func (l *lease) Release() {
	if l.done.Swap(true) {
		return
	}
	l.l.mu.Lock()
	defer l.l.mu.Unlock()
	l.in.refs--
	l.l.reap(l.in)
}

// warm runs s once on zeros. A model with variable dimensions may refuse the
// guess 1, which says nothing about real requests; one without may not.
func warm(ctx context.Context, s engine.Session) error {
	in := engine.Feeds{}
	guessed := false
	for _, io := range s.Spec().Inputs {
		dims := slices.Clone(io.Dims)
		for i, d := range dims {
			if d < 0 {
				dims[i], guessed = 1, true
			}
		}
		if n, err := tensor.Elems(dims); err == nil && io.Type.Bytes(n) > maxWarmBytes {
			return nil
		}
		t, err := tensor.New(io.Type, dims...)
		if err != nil {
			return fmt.Errorf("input %s: %w", io.Name, err)
		}
		in[io.Name] = t
	}
	res, err := s.Run(ctx, in, nil)
	if err != nil {
		if guessed && ctx.Err() == nil {
			return nil
		}
		return cmp.Or(ctx.Err(), err)
	}
	res.Close()
	return nil
}
