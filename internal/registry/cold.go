package registry

import (
	"context"
	"fmt"
	"time"
)

// flight is a load that requests wait for. It goes on when they leave: a client
// that gives up sooner than the model loads would otherwise never be answered.
type flight struct {
	done chan struct{} // closed when in or err is set

	// guarded by Loaded.mu
	waiting int // requests that get a reference to in each
	in      *instance
	err     error
}

// cold returns a lease on v, which was not loaded a moment ago, once it is.
func (l *Loaded) cold(ctx context.Context, v Version, isDefault bool) (Lease, error) {
	f, err := l.board(v, isDefault)
	if err != nil {
		return nil, err
	}
	late := time.NewTimer(l.o.coldWait)
	defer late.Stop()
	select {
	case <-f.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-late.C:
		err = fmt.Errorf("model %s: %w: being loaded, which takes more than %v", v.Model, ErrNotReady, l.o.coldWait)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil && f.err == nil:
		return &lease{l: l, in: f.in}, nil
	case err == nil:
		return nil, f.err
	case f.in != nil: // it came all the same
		f.in.refs--
		l.reap(f.in)
	default:
		f.waiting--
	}
	return nil, err
}

// board returns the flight that loads v, a new one if need be, or why it is not
// loaded.
func (l *Loaded) board(v Version, isDefault bool) (*flight, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.entry(v.Model)
	switch recent := time.Since(m.failed) < l.o.retryLoad; {
	case l.closed:
		return nil, fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	case m.off:
		return nil, fmt.Errorf("model %s: %w: %s, load it first", v.Model, ErrNotReady, m.reason)
	case m.failedOf == v.Number && recent:
		return nil, fmt.Errorf("model %s: %w: %s", v.Model, ErrNotReady, m.reason)
	}
	f := m.flights[v.Number]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		if m.flights == nil {
			m.flights = map[int]*flight{}
		}
		m.flights[v.Number] = f
		l.sessions.Add(1)
		go func() {
			defer l.sessions.Done()
			l.fly(f, v, isDefault)
		}()
	}
	f.waiting++
	return f, nil
}

// fly loads v for those who wait for f.
func (l *Loaded) fly(f *flight, v Version, isDefault bool) {
	m, err := l.lockModel(l.ctx, v.Model)
	if err == nil {
		defer m.unlock()
		err = l.openCold(f, m, v, isDefault)
	} else {
		err = fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	}
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.land(f, v, nil, err)
	}
}

// land ends a flight: everybody who waits has a reference to in, or err. l.mu is
// held.
func (l *Loaded) land(f *flight, v Version, in *instance, err error) {
	if in != nil {
		in.refs += f.waiting
		in.used = time.Now()
	}
	f.in, f.err = in, err
	delete(l.models[v.Model].flights, v.Number)
	close(f.done)
}

// openCold makes v an instance of its model, whose busy slot is held, and ends
// the flight unless it returns an error.
func (l *Loaded) openCold(f *flight, m *model, v Version, isDefault bool) error {
	l.mu.Lock()
	if in := l.find(m, v); in != nil { // somebody else was faster
		l.land(f, v, in, nil)
		l.mu.Unlock()
		return nil
	}
	off := m.off
	l.mu.Unlock()
	if off {
		return fmt.Errorf("model %s: %w: unloaded on request, load it first", v.Model, ErrNotReady)
	}
	in, err := l.open(l.ctx, m, v, room{evict: true})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.retire(in)
		return fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	}
	l.land(f, v, in, nil)
	if isDefault && m.def == nil {
		m.def = in
		m.reason, m.evicted, m.failed, m.failedOf = "", false, time.Time{}, 0
		return nil
	}
	if old := m.extra[v.Number]; old != nil { // deleted and made again under its number
		l.retire(old)
	}
	m.extra[v.Number] = in
	l.evict(m)
	return nil
}

// find returns the open instance of v, or nil. l.mu is held.
func (l *Loaded) find(m *model, v Version) *instance {
	if m.def != nil && same(m.def.v, v) {
		return m.def
	}
	if in := m.extra[v.Number]; in != nil && same(in.v, v) {
		return in
	}
	return nil
}
