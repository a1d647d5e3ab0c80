package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// noMemory is a system that does not tell: charges are the estimates.
func noMemory() (engine.Memory, error) { return engine.Memory{}, engine.ErrUnavailable }

// roomFor is a budget in which n of the tests' models, whose files are tiny, may
// be open and one more be opened.
func roomFor(n int64) int64 { return n*heldBase + peakBase + 4096 }

func states(l *Loaded) (s string) {
	for _, i := range l.List() {
		s += string(i.State[0])
	}
	return s
}

// uploads publishes a, b, c, ...
func uploads(t *testing.T, r *Registry, n int) (names []string) {
	t.Helper()
	for i := range n {
		name := string(rune('a' + i))
		upload(t, r, name, "graph "+name)
		names = append(names, name)
	}
	return names
}

// eventually waits for what happens beside the test.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}

func TestLeastRecentlyUsedMakesRoom(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{Budget: roomFor(2), Pinned: []string{"c"}, readMemory: noMemory})
	uploads(t, r, 4)
	if err := l.LoadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The pinned one first, then by name as far as the budget goes; each is
	// open before the next, so a third fits only beside two.
	if got := states(l); got != "RRRU" {
		t.Fatalf("after the start: %s", got)
	}
	if i := l.List()[3]; !i.Lazy || !strings.Contains(i.Reason, "first request loads it") {
		t.Errorf("%+v", i)
	}
	acquire(t, l, "b", "").Release()
	acquire(t, l, "a", "").Release()
	acquire(t, l, "d", "").Release() // b was used least recently, c is pinned
	if got := states(l); got != "RURR" {
		t.Errorf("after d: %s", got)
	}
	if i := l.List()[1]; !i.Lazy || !strings.Contains(i.Reason, "to make room") {
		t.Errorf("%+v", i)
	}
	// What is in use goes last, and its requests finish.
	le := acquire(t, l, "a", "")
	acquire(t, l, "b", "").Release()
	if got := states(l); got != "RRRU" {
		t.Errorf("after b: %s", got)
	}
	if _, _, err := le.Run(t.Context(), feeds, nil); err != nil {
		t.Error(err)
	}
	le.Release()
	if m := l.Memory(); m.Evicted != 2 || m.Loads != 5 || m.Budget != roomFor(2) {
		t.Errorf("%+v", m)
	}
	eventually(t, "three are charged", func() bool { return l.Memory().Used == 3*share(heldBase, heldShare, 7) })
	if e.opened.Load() != 5 {
		t.Errorf("%d opened", e.opened.Load())
	}
}

func TestModelThatDoesNotFitIsRefusedWithNumbers(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{Budget: peakBase - 1<<20, readMemory: noMemory})
	upload(t, r, "m", "one")
	for range 2 { // at once, each time
		_, err := l.Acquire(t.Context(), "m", "")
		if !errors.Is(err, ErrMemory) || errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "takes about 33 MiB") || !strings.Contains(err.Error(), "may take 31 MiB") {
			t.Errorf("%v", err)
		}
	}
	if i := l.List()[0]; i.State != StateUnavailable || i.Lazy || !strings.Contains(i.Reason, "31 MiB") {
		t.Errorf("%+v", i)
	}
	if e.opened.Load() != 0 {
		t.Error("it was opened")
	}
}

// A switch needs both versions at once; when that is too much it says so, and
// the old version goes on.
func TestSwitchThatDoesNotFit(t *testing.T) {
	r, l, _ := newLoaded(t, LoadedOptions{Budget: roomFor(0), readMemory: noMemory})
	upload(t, r, "m", "one")
	upload(t, r, "m", "two")
	acquire(t, l, "m", "").Release()
	if err := l.Promote(t.Context(), "m", "2"); !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), "version 1, which answers") {
		t.Errorf("%v", err)
	}
	le := acquire(t, l, "m", "")
	defer le.Release()
	if le.Version() != "1" {
		t.Errorf("version %s answers", le.Version())
	}
}

// Memory that sessions have grown into counts: idle models go, those in use and
// what cannot be helped stay.
func TestGrownMemoryMakesIdleModelsGo(t *testing.T) {
	var anon atomic.Int64
	r, l, _ := newLoaded(t, LoadedOptions{Budget: roomFor(4), readMemory: func() (engine.Memory, error) {
		return engine.Memory{Anon: anon.Load()}, nil
	}})
	anon.Store(1 << 30) // of the process without models... which came later
	uploads(t, r, 3)
	l.base = 1 << 30
	acquire(t, l, "a", "").Release()
	busy := acquire(t, l, "b", "")
	anon.Store(1<<30 + roomFor(4))
	acquire(t, l, "c", "").Release()
	if got := states(l); got != "URR" {
		t.Errorf("%s", got)
	}
	busy.Release()
}

// A model that is just being changed makes room once it is not.
func TestRoomIsLookedForAgain(t *testing.T) {
	r, l, _ := newLoaded(t, LoadedOptions{Budget: roomFor(0), readMemory: noMemory})
	uploads(t, r, 2)
	acquire(t, l, "a", "").Release()
	m, err := l.lockModel(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, m.unlock)
	begin := time.Now()
	acquire(t, l, "b", "").Release()
	if took := time.Since(begin); took > memoryWait/2 {
		t.Errorf("it took %v", took)
	}
}

// A request that gives up does not stop the load that others wait for.
func TestColdLoadGoesOn(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{})
	upload(t, r, "m", "one")
	e.gate = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c := t.Context()
			if i%2 == 0 {
				c = ctx
			}
			le, err := l.Acquire(c, "m", "")
			if i%2 == 0 {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			le.Release()
		})
	}
	eventually(t, "all wait", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.models["m"] != nil && l.models["m"].flights[1] != nil && l.models["m"].flights[1].waiting == 20
	})
	if i := l.List()[0]; i.State != StateLoading || !i.Lazy {
		t.Errorf("%+v", i)
	}
	leave()
	eventually(t, "half of them left", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.models["m"].flights[1].waiting == 10
	})
	close(e.gate)
	wg.Wait()
	l.mu.Lock()
	refs := l.models["m"].def.refs
	l.mu.Unlock()
	if refs != 0 || e.opened.Load() != 1 {
		t.Errorf("%d references left, %d opened", refs, e.opened.Load())
	}
}

func TestColdLoadIsWaitedForSoLong(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{coldWait: 10 * time.Millisecond})
	upload(t, r, "m", "one")
	e.gate = make(chan struct{})
	if _, err := l.Acquire(t.Context(), "m", ""); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "more than 10ms") {
		t.Error(err)
	}
	close(e.gate)
	eventually(t, "it is loaded all the same", func() bool { return states(l) == "R" })
}

// A model that cannot be loaded is left alone for a while.
func TestFailedLoadIsNotRepeatedAtOnce(t *testing.T) {
	r, l, _ := newLoaded(t, LoadedOptions{retryLoad: 300 * time.Millisecond})
	upload(t, r, "m", "fixed fails")
	tries := 0
	l.o.Warm = func(context.Context, engine.Session) error { tries++; return errors.New("it fails") }
	for range 10 {
		if _, err := l.Acquire(t.Context(), "m", ""); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "it fails") {
			t.Fatal(err)
		}
	}
	if tries != 1 {
		t.Errorf("%d loads", tries)
	}
	l.o.Warm = func(context.Context, engine.Session) error { return nil }
	time.Sleep(310 * time.Millisecond)
	acquire(t, l, "m", "").Release()
}

// TestBudgetUnderTraffic: whatever requests, switches and unloads do, charges
// never pass the budget and no request fails.
func TestBudgetUnderTraffic(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{Budget: roomFor(3), Pinned: []string{"a"}, readMemory: noMemory})
	names := uploads(t, r, 8)
	upload(t, r, "a", "second a")
	upload(t, r, "b", "second b")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var requests, most atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				name, version := names[rnd.IntN(len(names))], ""
				if name < "c" && rnd.IntN(2) == 0 {
					version = fmt.Sprint(1 + rnd.IntN(2))
				}
				le, err := l.Acquire(t.Context(), name, version)
				if err != nil {
					t.Errorf("%s %s: %v", name, version, err)
					return
				}
				if _, _, err := le.Run(t.Context(), feeds, nil); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				most.Store(max(most.Load(), l.Memory().Used))
				le.Release()
				requests.Add(1)
			}
		})
	}
	for i := range 40 {
		if err := l.Promote(t.Context(), names[i%2], fmt.Sprint(1+i/2%2)); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if most.Load() > roomFor(3) {
		t.Errorf("%d bytes were charged, the budget is %d", most.Load(), roomFor(3))
	}
	if requests.Load() < 40 || l.Memory().Evicted == 0 {
		t.Errorf("%d requests, %+v", requests.Load(), l.Memory())
	}
	t.Logf("%d requests, %d loads, %d evicted", requests.Load(), e.opened.Load(), l.Memory().Evicted)
}

// Of sessions that close within a second the last one's memory is given back too.
func TestLateCollection(t *testing.T) {
	l := &Loaded{}
	state := func() (bool, time.Time) { l.mu.Lock(); defer l.mu.Unlock(); return l.trimming, l.trimmed }
	l.giveBack()
	_, first := state()
	l.giveBack()
	l.giveBack()
	if waits, at := state(); !waits || at != first {
		t.Fatalf("waits %v, collected at %v and %v", waits, first, at)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if waits, at := state(); !waits && at.Sub(first) >= trimEvery*9/10 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it was not collected again")
		}
	}
}
