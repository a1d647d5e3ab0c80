package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// fileEngine opens files whose text it keeps; "bad" is refused, "endless" runs
// until its context ends. Running a
// closed session is what these tests look for.
type fileEngine struct {
	opened, closed atomic.Int32
	gate           chan struct{} // OpenFile waits for it when not nil
}

type fileSession struct {
	e    *fileEngine
	text string
	gone atomic.Bool
}

type noResult struct{}

func (noResult) Tensors() engine.Feeds { return nil }
func (noResult) Close()                {}

func (e *fileEngine) Name() string                                 { return "file" }
func (e *fileEngine) Probe(context.Context) (engine.Device, error) { return engine.Device{}, nil }
func (s *fileSession) Close() error                                { s.gone.Store(true); s.e.closed.Add(1); return nil }
func (e *fileEngine) OpenFile(ctx context.Context, path string, _ engine.Options) (engine.Session, error) {
	if e.gate != nil {
		select {
		case <-e.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(b), "bad") {
		return nil, fmt.Errorf("%w: %s: no kernel for Foo", engine.ErrModel, path)
	}
	e.opened.Add(1)
	return &fileSession{e: e, text: string(b)}, nil
}

func (s *fileSession) Spec() engine.IOSpec {
	io := engine.IO{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 4}}
	if strings.HasPrefix(s.text, "fixed") {
		io.Dims[0] = 1
	}
	return engine.IOSpec{Inputs: []engine.IO{io}}
}

func (s *fileSession) Run(ctx context.Context, in engine.Feeds, _ []string) (engine.Result, error) {
	if s.gone.Load() {
		return nil, engine.ErrClosed
	}
	if err := engine.CheckFeeds(s.Spec(), in); err != nil {
		return nil, err
	}
	if strings.HasPrefix(s.text, "endless") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if strings.Contains(s.text, "fails") {
		return nil, errors.New("it fails")
	}
	return noResult{}, nil
}

var feeds = engine.Feeds{"x": tensor.From(make([]float32, 4), 1, 4)}

func newLoaded(t *testing.T, o LoadedOptions) (*Registry, *Loaded, *fileEngine) {
	t.Helper()
	r := open(t, "", Options{})
	e := &fileEngine{}
	o.Engine = e
	l := NewLoaded(r, o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
		if e.opened.Load() != e.closed.Load() {
			t.Errorf("%d sessions opened, %d closed", e.opened.Load(), e.closed.Load())
		}
		if _, err := l.Acquire(ctx, "m", ""); err == nil {
			t.Error("a closed server gives leases")
		}
	})
	return r, l, e
}

func acquire(t *testing.T, l *Loaded, name, version string) Lease {
	t.Helper()
	le, err := l.Acquire(t.Context(), name, version)
	if err != nil {
		t.Fatal(err)
	}
	return le
}

func TestLoadedLifecycle(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{
		PreparerFor: func(dir string, spec engine.IOSpec) (Preparer, error) { return len(spec.Inputs), nil },
	})
	if _, err := l.Acquire(t.Context(), "m", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown model: %v", err)
	}
	if err := l.Load(t.Context(), "m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown model: %v", err)
	}
	if _, err := l.Acquire(t.Context(), "../m", ""); !errors.Is(err, ErrName) {
		t.Errorf("bad name: %v", err)
	}
	if _, err := r.Upload(t.Context(), "m", strings.NewReader("one"), -1, About{TargetMS: 12.5}); err != nil {
		t.Fatal(err)
	}
	if i := l.List()[0]; i.State != StateUnavailable || !i.Lazy {
		t.Errorf("not loaded: %+v", i)
	}
	if err := l.LoadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	le := acquire(t, l, "m", "")
	if le.Name() != "m" || le.Version() != "1" || le.Target() != 12500*time.Microsecond || le.Preparer() != 1 {
		t.Errorf("%s %s %v %v", le.Name(), le.Version(), le.Target(), le.Preparer())
	}
	i, err := l.Info("m", "")
	if err != nil || i.State != StateReady || !i.Default || i.SHA256 != digest("one") || i.Size != 3 || i.Reason != "" {
		t.Errorf("%+v, %v", i, err)
	}
	if err := l.Unload(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Acquire(t.Context(), "m", ""); !errors.Is(err, ErrNotReady) {
		t.Errorf("unloaded: %v", err)
	}
	if _, err := l.Acquire(t.Context(), "m", "1"); !errors.Is(err, ErrNotReady) {
		t.Errorf("unloaded, by number: %v", err)
	}
	if i := l.List()[0]; i.State != StateUnavailable || i.Reason != "unloaded on request" {
		t.Errorf("%+v", i)
	}
	if _, _, err := le.Run(t.Context(), feeds, nil); err != nil {
		t.Errorf("a request that began before the unload: %v", err)
	}
	le.Release()
	le.Release()
	if err := l.Load(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if err := l.Load(t.Context(), "m"); err != nil { // nothing to do
		t.Fatal(err)
	}
	if n := e.opened.Load(); n != 2 {
		t.Errorf("%d sessions opened, want 2", n)
	}
	if err := l.Delete(t.Context(), "m", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Acquire(t.Context(), "m", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if got := l.List(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestPromoteAndRollback(t *testing.T) {
	r, l, _ := newLoaded(t, LoadedOptions{})
	for _, s := range []string{"one", "two", "bad three", "fixed fails"} {
		upload(t, r, "m", s)
	}
	if err := l.Load(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	serves := func(want string) {
		t.Helper()
		le := acquire(t, l, "m", "")
		defer le.Release()
		v, err := r.Version("m", "")
		if err != nil || le.Version() != want || v.ID() != want {
			t.Errorf("version %s is served, %s is the default, want %s; %v", le.Version(), v.ID(), want, err)
		}
	}
	serves("1")
	if err := l.Promote(t.Context(), "m", "2"); err != nil {
		t.Fatal(err)
	}
	serves("2")
	err := l.Promote(t.Context(), "m", "3")
	if !errors.Is(err, ErrNotReady) || !errors.Is(err, engine.ErrModel) || strings.Contains(err.Error(), r.root) {
		t.Errorf("a version that the engine refuses: %v", err)
	}
	serves("2")
	if i, err := l.Info("m", "2"); err != nil || i.State != StateReady || !strings.Contains(i.Reason, "no kernel") {
		t.Errorf("%+v, %v", i, err)
	}
	if err := l.Promote(t.Context(), "m", "4"); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "first run") {
		t.Errorf("a version that fails its first run: %v", err)
	}
	serves("2")
	if v, err := l.Rollback(t.Context(), "m"); err != nil || v.Number != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	serves("1")
	if _, err := l.Rollback(t.Context(), "m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("roll-back past the beginning: %v", err)
	}
	if err := l.Unload(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if err := l.Promote(t.Context(), "m", "2"); err != nil { // stays unloaded
		t.Fatal(err)
	}
	if i, err := l.Info("m", ""); err != nil || i.Version != "2" || i.State != StateUnavailable {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestOtherVersionsOnFirstUse(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{MaxExtra: 2})
	for i := range 5 {
		upload(t, r, "m", fmt.Sprint("graph ", i))
	}
	if err := l.Load(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			le, err := l.Acquire(t.Context(), "m", "2")
			if err != nil {
				t.Error(err)
				return
			}
			le.Release()
		})
	}
	wg.Wait()
	if n := e.opened.Load(); n != 2 {
		t.Errorf("%d sessions opened, want 2", n)
	}
	for _, v := range []string{"3", "2", "4", "5"} {
		acquire(t, l, "m", v).Release()
	}
	states := ""
	for _, i := range l.List() {
		states += string(i.State[0])
	}
	if states != "RUURR" { // 3 was used least recently, then 2
		t.Errorf("states %s", states)
	}
	if _, err := l.Acquire(t.Context(), "m", "6"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	// A lease outlives the deletion of its version.
	le := acquire(t, l, "m", "5")
	defer le.Release()
	if err := l.Delete(t.Context(), "m", "5"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := le.Run(t.Context(), feeds, nil); err != nil {
		t.Error(err)
	}
	if err := l.Delete(t.Context(), "m", "1"); !errors.Is(err, ErrInUse) {
		t.Errorf("deleting the default: %v", err)
	}
}

// TestPromotedVersionStaysOpen: a version that is loaded beside the default, and is on
// its way to become it, is not the one that goes when others are loaded meanwhile.
func TestPromotedVersionStaysOpen(t *testing.T) {
	meanwhile := func() {}
	r, l, e := newLoaded(t, LoadedOptions{MaxExtra: 1, OnSwitch: func(_, _, _ string) func(time.Time) {
		meanwhile()
		return func(time.Time) {}
	}})
	meanwhile = func() { acquire(t, l, "other", "2").Release() }
	for _, name := range []string{"m", "other"} {
		upload(t, r, name, name+" one")
		upload(t, r, name, name+" two")
		if err := l.Load(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, l, "m", "2").Release()
	if err := l.Promote(t.Context(), "m", "2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the default before is closed", func() bool { return e.closed.Load() > 0 })
	le := acquire(t, l, "m", "")
	defer le.Release()
	if _, _, err := le.Run(t.Context(), feeds, nil); err != nil || le.Version() != "2" {
		t.Errorf("version %s: %v", le.Version(), err)
	}
}

// TestSwitchUnderTraffic: no request fails while versions change under it.
func TestSwitchUnderTraffic(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{})
	for i := range 3 {
		upload(t, r, "m", fmt.Sprint("graph ", i))
	}
	if err := l.Load(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var requests atomic.Int32
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				version := ""
				if w == 3 {
					version = "2"
				}
				le, err := l.Acquire(t.Context(), "m", version)
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				if _, _, err := le.Run(t.Context(), feeds, nil); err != nil {
					t.Errorf("run: %v", err)
				}
				le.Release()
				requests.Add(1)
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	const switches = 60
	for i := range switches {
		if err := l.Promote(t.Context(), "m", fmt.Sprint(1+i%3)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests through %d switches, %d sessions", requests.Load(), switches, e.opened.Load())
}

func TestLoadingIsVisibleAndCanBeAbandoned(t *testing.T) {
	r, l, e := newLoaded(t, LoadedOptions{})
	upload(t, r, "m", "one")
	e.gate = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Load(ctx, "m") }()
	for l.List()[0].State != StateLoading {
		time.Sleep(time.Millisecond)
	}
	impatient, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, err := l.Acquire(impatient, "m", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := l.Unload(impatient, "m"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// The request that left began a load of its own, which goes on without it.
	close(e.gate)
	acquire(t, l, "m", "").Release()
	if n := e.opened.Load(); n != 1 {
		t.Errorf("%d sessions opened", n)
	}
}

func BenchmarkAcquire(b *testing.B) {
	r, err := Open(b.Context(), b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Upload(b.Context(), "m", strings.NewReader("one"), -1, About{}); err != nil {
		b.Fatal(err)
	}
	l := NewLoaded(r, LoadedOptions{Engine: &fileEngine{}})
	if err := l.LoadAll(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		le, err := l.Acquire(b.Context(), "m", "")
		if err != nil {
			b.Fatal(err)
		}
		le.Release()
	}
}

// TestFirstRunThatDoesNotEnd: the model is not served, and says why; the next
// one is loaded all the same.
func TestFirstRunThatDoesNotEnd(t *testing.T) {
	r, l, _ := newLoaded(t, LoadedOptions{WarmTimeout: 20 * time.Millisecond})
	upload(t, r, "endless", "endless")
	upload(t, r, "m", "graph")
	begin := time.Now()
	if err := l.LoadAll(t.Context()); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "first run: it did not end within 20ms") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	acquire(t, l, "m", "").Release()
	if i, err := l.Info("endless", ""); err != nil || i.State != StateUnavailable || !strings.Contains(i.Reason, "did not end") {
		t.Errorf("%+v, %v", i, err)
	}
	// A caller who leaves is no reason that the model has.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Load(ctx, "endless"); err == nil || strings.Contains(err.Error(), "did not end") {
		t.Errorf("%v", err)
	}
}
