package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

const (
	// governEvery is how often the governor looks.
	governEvery = 5 * time.Millisecond
	// collectEvery is how often Go's heap is collected for the system at most.
	collectEvery = time.Second
	// libraryBytes of what is mapped from files are code.
	libraryBytes = 64 << 20
)

// governor keeps the process below a ceiling while a run goes on. What is mapped
// from files is given back whenever the process comes near it: the kernel fetches
// from the page cache what is read again, and nobody writes to weights (the engine
// maps them private, and dropMapped spares a mapping with a page of its own). What
// still passes the ceiling ends the run.
type governor struct {
	ceiling int64
	drop    func()
	stop    context.CancelCauseFunc
	ended   chan struct{}
	before  int64 // memory limit of Go
}

// govern starts the governor of r; the context ends when the ceiling is passed.
// Without a ceiling it does nothing.
func (r *run) govern(ctx context.Context) (context.Context, *governor) {
	if r.req.MaxMemory == 0 {
		return ctx, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	g := &governor{ceiling: r.req.MaxMemory, stop: stop, ended: make(chan struct{}), before: debug.SetMemoryLimit(-1)}
	g.drop = func() {
		r.source.Unload()
		dropMapped(r.lab.dir.path)
	}
	r.lab.release = g.drop
	// Before there is a prediction, Go collects as if half were its own.
	debug.SetMemoryLimit(min(g.before, g.ceiling/2))
	_ = engine.ResetPeakMemory() // else the peak may be of an earlier time
	go g.watch(ctx)
	return ctx, g
}

func (g *governor) watch(ctx context.Context) {
	defer close(g.ended)
	var collected time.Time
	t := time.NewTicker(governEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m, err := engine.ReadMemory()
		if err != nil {
			g.stop(fmt.Errorf("%w: %w", ErrCeiling, err))
			return
		}
		if m.RSS-m.Anon > libraryBytes+mappedMost/2 || m.RSS > g.ceiling-slack(g.ceiling) {
			g.drop()
			if m, err = engine.ReadMemory(); err == nil && m.RSS > g.ceiling-slack(g.ceiling)/2 && time.Since(collected) > collectEvery {
				debug.FreeOSMemory()
				collected = time.Now()
			}
			if m, err = engine.ReadMemory(); err == nil && m.RSS > g.ceiling {
				g.stop(fmt.Errorf("%w: the run took %s, more than was predicted, and %s are allowed: give more", ErrCeiling, sizeText(m.RSS), sizeText(g.ceiling)))
				return
			}
		}
	}
}

// end stops the governor and returns the largest resident size by the system's
// count, and err or what the run ended with.
func (g *governor) end(ctx context.Context, err error) (int64, error) {
	if g == nil {
		return 0, err
	}
	g.stop(nil)
	<-g.ended
	debug.SetMemoryLimit(g.before)
	if cause := context.Cause(ctx); errors.Is(cause, ErrCeiling) {
		err = cause
	}
	m, merr := engine.ReadMemory()
	if merr != nil {
		return 0, err
	}
	return m.Peak, err
}
