package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// What a version costs before it has been measured, from the bytes of its
// files. Measured with ONNX Runtime 1.32.0: BERT-base (438 MB in one file) held
// 0.97 of its size once open and 1.19 at its peak, all-MiniLM-L6-v2 (91 MB) 0.92
// and 1.55; what lies in a file of external data stays mapped, and costs less.
const (
	heldBase, heldShare = 8 << 20, 1.0
	peakBase, peakShare = 32 << 20, 1.6
	// maxHeldShare bounds what a measurement is believed: other requests'
	// memory is in it.
	maxHeldShare = 4.0
)

func share(base int64, times float64, size int64) int64 { return base + int64(times*float64(size)) }

// Memory is what the loaded models occupy of their budget, in bytes.
type Memory struct {
	Budget  int64 // 0: unbounded
	Used    int64 // by versions that are open, being opened or being closed
	Loads   int64 // versions opened so far
	Evicted int64 // versions unloaded to make room
}

// Memory returns how the budget is used.
func (l *Loaded) Memory() Memory {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Memory{Budget: l.o.Budget, Used: l.used, Loads: l.loads, Evicted: l.evicted}
}

// errNoRoom: a version that must not displace others does not fit beside them.
var errNoRoom = errors.New("no room beside the models that are loaded")

// errHeld passes by itself.
var errHeld = errors.New("requests still use the models that would have to make room")

// room says what may be done to make room for a version.
type room struct {
	keep  *instance // stays: the version that answers until the new one does
	evict bool      // others may be unloaded
}

// reserve charges what opening v takes at its peak to the budget, and returns
// it; settle or free end the charge. What has not been used for longest is
// unloaded first. m, whose busy slot is held, is the model that v belongs to.
// Errors: ErrMemory (it cannot fit), ErrNotReady (not now), errNoRoom, ctx's.
func (l *Loaded) reserve(ctx context.Context, m *model, v Version, with room) (int64, error) {
	n := share(peakBase, peakShare, v.Size())
	var late <-chan time.Time
	for {
		l.mu.Lock()
		if l.o.Budget <= 0 || l.fits(n) && (!with.evict || !l.evictFor(m, with, l.excess(n), true)) {
			l.used += n
			l.mu.Unlock()
			return n, nil
		}
		if err := l.never(m, v, n, with); err != nil {
			l.mu.Unlock()
			return 0, err
		}
		if l.used-l.closing+n > l.o.Budget { // what is being closed does not suffice
			if !with.evict {
				l.mu.Unlock()
				return 0, errNoRoom
			}
			if l.evictFor(m, with, l.used-l.closing+n-l.o.Budget, false) {
				l.mu.Unlock()
				continue
			}
		}
		freed := l.freed
		l.mu.Unlock()
		if late == nil {
			t := time.NewTimer(memoryWait)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-freed:
		case <-time.After(lookAgain): // a model that was being changed is no longer
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-late:
			return 0, fmt.Errorf("%w: it takes about %s; retry", errHeld, mib(n))
		}
	}
}

// memoryWait bounds how long a load waits for the memory of models whose
// requests have not ended.
const memoryWait = 10 * time.Second

// lookAgain is how often a load that waits looks for models that may make room.
const lookAgain = 20 * time.Millisecond

// fits reports whether n more bytes are within the budget. l.mu is held.
func (l *Loaded) fits(n int64) bool { return l.used+n <= l.o.Budget }

// excess is by how much n more bytes would pass the budget when all memory of
// the process since NewLoaded counts: the sessions' working memory grows with
// their requests. It makes models go that nobody uses, but refuses nothing: a
// job or a large request may be what holds it. l.mu is held.
func (l *Loaded) excess(n int64) int64 {
	if now := l.anonymous(); now > 0 && now-l.base > l.used {
		return now - l.base + n - l.o.Budget - l.closing
	}
	return 0
}

func (l *Loaded) anonymous() int64 {
	m, err := l.o.readMemory()
	if err != nil {
		return 0
	}
	return m.Anon
}

// never returns why n bytes for v cannot be had by unloading others. l.mu is held.
func (l *Loaded) never(m *model, v Version, n int64, with room) error {
	if n > l.o.Budget {
		return fmt.Errorf("%w: opening it takes about %s, all models together may take %s; quantize it, or raise --memory-budget", ErrMemory, mib(n), mib(l.o.Budget))
	}
	var stay int64
	why := "pinned models"
	for name, o := range l.models {
		if o.def != nil && (l.pinned[name] || o.def == with.keep) {
			stay += o.def.charge
			if o.def == with.keep && !l.pinned[name] {
				why = fmt.Sprintf("version %d, which answers until the switch,", with.keep.v.Number)
			}
		}
	}
	if stay > 0 && n+stay > l.o.Budget {
		return fmt.Errorf("%w: opening it takes about %s beside the %s of %s and all models together may take %s; unload what is not needed, or raise --memory-budget", ErrMemory, mib(n), mib(stay), why, mib(l.o.Budget))
	}
	return nil
}

// evictFor retires the versions used least recently until n bytes are on their
// way back: first those that no request uses, then, unless idle is set, the
// others. It reports whether there was one. l.mu is held.
func (l *Loaded) evictFor(own *model, with room, n int64, idle bool) bool {
	if n <= 0 {
		return false
	}
	type place struct {
		m  *model
		in *instance
	}
	var all []place
	for name, m := range l.models {
		if m != own && len(m.busy) > 0 { // it is being changed, and what it has may be part of that
			continue
		}
		if m.def != nil && m.def != with.keep && !l.pinned[name] {
			all = append(all, place{m, m.def})
		}
		for _, in := range m.extra {
			if in != with.keep {
				all = append(all, place{m, in})
			}
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		if (a.in.refs == 0) != (b.in.refs == 0) {
			if a.in.refs == 0 {
				return -1
			}
			return 1
		}
		return a.in.used.Compare(b.in.used)
	})
	any := false
	for _, p := range all {
		if n <= 0 || idle && p.in.refs > 0 {
			break
		}
		n -= p.in.charge
		any = true
		l.evicted++
		if p.m.def == p.in {
			p.m.def, p.m.evicted = nil, true
		} else {
			delete(p.m.extra, p.in.v.Number)
		}
		l.retire(p.in)
	}
	return any
}

// settle replaces the charge of a load by what the open version holds. before is
// the memory of the process when it began, 0 where a difference says nothing.
// l.mu is held.
func (l *Loaded) settle(in *instance, peak, before int64) {
	held := share(heldBase, heldShare, in.v.Size())
	if now := l.anonymous(); before > 0 && now > 0 {
		held = min(max(held, now-before), share(peakBase, maxHeldShare, in.v.Size()))
	}
	in.charge = held
	l.freeLocked(peak - held)
}

// freeLocked ends a charge of n bytes. l.mu is held.
func (l *Loaded) freeLocked(n int64) {
	l.used -= n
	close(l.freed)
	l.freed = make(chan struct{})
}

// trimEvery is the shortest time between two collections of the Go heap for
// the sake of the system: one takes processor time from requests.
const trimEvery = time.Second

// giveBack returns what a closed session held to the system: freed memory stays
// in the allocators otherwise. Of several within trimEvery the last is not left
// out, only late.
func (l *Loaded) giveBack() {
	if l.o.Trim != nil {
		l.o.Trim()
	}
	l.mu.Lock()
	wait := trimEvery - time.Since(l.trimmed)
	if l.trimming || wait > 0 {
		if !l.trimming {
			l.trimming = true
			time.AfterFunc(wait, l.collect)
		}
		l.mu.Unlock()
		return
	}
	l.trimming = true
	l.mu.Unlock()
	l.collect()
}

func (l *Loaded) collect() {
	l.mu.Lock()
	l.trimming, l.trimmed = false, time.Now()
	l.mu.Unlock()
	debug.FreeOSMemory()
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// readMemory is engine.ReadMemory, or a test's.
type readMemory func() (engine.Memory, error)
