package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/report"
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
// maps them private, and dropMapped spares a mapping with a page of its own). When
// what cannot be given back passes the ceiling, the run ends.
type governor struct {
	ceiling int64
	drop    func()
	stop    context.CancelCauseFunc
	phase   *atomic.Value // what the run is doing
	ended   chan struct{}
	before  int64 // memory limit of Go
	anon    int64 // the largest seen
}

// govern starts the governor of r; the context ends when the ceiling is passed.
// Without a ceiling it does nothing.
func (r *run) govern(ctx context.Context, phase *atomic.Value) (context.Context, *governor) {
	if r.req.MaxMemory == 0 {
		return ctx, nil
	}
	r.lab.release = r.unmap
	return govern(ctx, r.req.MaxMemory, r.unmap, phase)
}

// unmap lets go of what r has mapped.
func (r *run) unmap() {
	r.source.Unload()
	dropMapped(r.lab.dir.path)
}

// govern keeps the process below ceiling until end is called; drop lets go of what is
// mapped, from several goroutines.
func govern(ctx context.Context, ceiling int64, drop func(), phase *atomic.Value) (context.Context, *governor) {
	ctx, stop := context.WithCancelCause(ctx)
	g := &governor{ceiling: ceiling, drop: drop, stop: stop, phase: phase, ended: make(chan struct{}), before: debug.SetMemoryLimit(-1)}
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
		g.anon = max(g.anon, m.Anon)
		if m.RSS > g.ceiling-slack(g.ceiling) {
			g.drop()
			if m, err = engine.ReadMemory(); err == nil && m.RSS > g.ceiling-slack(g.ceiling)/2 && time.Since(collected) > collectEvery {
				debug.FreeOSMemory()
				collected = time.Now()
			}
			if m, err = engine.ReadMemory(); err == nil && m.Anon+libraryBytes > g.ceiling {
				g.stop(fmt.Errorf("%w: the run took %s in phase %q, more than was predicted, and %s are allowed: give more", ErrCeiling, report.Bytes(m.Anon+libraryBytes), g.phase.Load(), report.Bytes(g.ceiling)))
				return
			}
		}
	}
}

// end stops the governor and returns the largest resident size by the system's
// count, the largest that was seen of what no file backs, and err or what the run
// ended with.
func (g *governor) end(ctx context.Context, err error) (peak, anon int64, _ error) {
	if g == nil {
		return 0, 0, err
	}
	g.stop(nil)
	<-g.ended
	debug.SetMemoryLimit(g.before)
	if cause := context.Cause(ctx); errors.Is(cause, ErrCeiling) {
		err = cause
	}
	m, merr := engine.ReadMemory()
	if merr != nil {
		return 0, 0, err
	}
	return m.Peak, g.anon, err
}
