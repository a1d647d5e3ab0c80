package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
)

// State of a version, in the words of the Open Inference Protocol's
// repository index.
type State string

// The states of a version.
const (
	StateReady       State = "READY"
	StateLoading     State = "LOADING"
	StateUnavailable State = "UNAVAILABLE"
)

// ModelInfo is one version as the repository index shows it.
type ModelInfo struct {
	Name    string
	Version string // "1", "2", ...
	State   State
	Reason  string // why it is not READY; or what went wrong since
	Default bool
	Lazy    bool  // it is not loaded, or is being, because no request has needed it: the next one loads it
	Memory  int64 // charged while it is loaded, in bytes
	// Engine says which engine answers; nil while it is not loaded, and where
	// there is only one.
	Engine  *engine.Placement
	Scheme  string // "" is as uploaded
	Source  string // NAME/N it was made from
	SHA256  string // of model.onnx
	Size    int64  // bytes of all files
	Files   []File // of the version; the caller must not change them
	Target  time.Duration
	Created time.Time
}

// Preparer turns texts or images into the model's inputs. The package that
// serves tasks knows its methods; here it is only carried.
type Preparer = any

// Lease is the right to use a loaded version until Release. The session stays
// open meanwhile, whatever happens to the model.
type Lease interface {
	// Spec lists the model's inputs and outputs.
	Spec() engine.IOSpec
	// Run computes outs when the request's turn comes (batch.Queue.Run).
	Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, batch.Timing, error)
	// Refuses says whether a request would be refused now (batch.Queue.Refuses).
	Refuses(size float64, deadline time.Time) error
	// Size is the size of a request (batch.Queue.Size).
	Size(in engine.Feeds) float64
	// Placement says which engine answers; false when there is only one.
	Placement() (engine.Placement, bool)
	Name() string
	Version() string
	Target() time.Duration // latency target of the version
	Preparer() Preparer    // nil when the model takes tensors only
	Release()              // may be called more than once
}

// LoadedOptions configure NewLoaded.
type LoadedOptions struct {
	Engine        engine.Engine
	EngineOptions engine.Options
	// Meter makes the meter of a version's runs; nil is none.
	Meter func(model, version string) engine.Meter
	// Scheduler shares the engine between the models. Default: batch.New's.
	Scheduler *batch.Scheduler
	// Alone reports whether requests of the model in dir must not share a run.
	// Default: none.
	Alone func(dir string) (bool, error)
	// Independent reports whether a session of model NAME/N that has run answers each
	// row as if it had come alone; requests of others do not share a run. Default: all do.
	Independent func(ctx context.Context, model string, s engine.Session) (bool, error)
	// PreparerFor makes the Preparer of a version from its files; nil, or a
	// nil Preparer, when there is none.
	PreparerFor func(dir string, spec engine.IOSpec) (Preparer, error)
	// Warm runs a session before it gets traffic. Default: one run on zeros
	// with every variable dimension 1.
	Warm func(ctx context.Context, s engine.Session) error
	// WarmTimeout bounds that run. Default 30 s.
	WarmTimeout time.Duration
	// Target is the latency target of versions that have none. Default 50 ms.
	Target time.Duration
	// MaxExtra is how many versions that are not the default stay loaded, of
	// all models together; the least recently used goes. Default 4.
	MaxExtra int
	// Budget bounds the memory of all versions together, in bytes; 0 does not.
	Budget int64
	// Pinned are the models whose default is never unloaded to make room.
	Pinned []string
	// Lazy leaves every model that is not pinned to its first request.
	Lazy bool
	// OnSwitch learns that a model begins to change from one version to another
	// under its requests; end is called when they reach the new one, or with the
	// zero time when they never will. May be nil.
	OnSwitch func(model, from, to string) (end func(switched time.Time))
	// Trim gives memory that a closed session has freed back to the system. May
	// be nil.
	Trim func()

	readMemory readMemory
	coldWait   time.Duration
	retryLoad  time.Duration
}

const (
	defaultTarget      = 50 * time.Millisecond
	defaultMaxExtra    = 4
	defaultWarmTimeout = 30 * time.Second
	// defaultColdWait bounds how long a request waits for its model to be
	// loaded; the load goes on without it. Bodies must arrive within 30 s.
	defaultColdWait = 20 * time.Second
	// defaultRetryLoad is how long a model that could not be loaded is left
	// alone: trying takes time and memory from the others.
	defaultRetryLoad = 30 * time.Second
)

// Loaded serves the versions of a Registry: the default of each model that was
// loaded, and others on first use. Together they stay within a budget of memory:
// what has not been used for longest is unloaded, and loaded again by the next
// request for it.
//
// A switch of the default opens and warms the new session first and moves a
// pointer then; requests that run keep the old session through their lease,
// and the last one closes it. Lock order: model.busy, then Loaded.mu.
type Loaded struct {
	r *Registry
	o LoadedOptions

	pinned map[string]bool
	base   int64 // memory of the process without models
	ctx    context.Context
	stop   context.CancelFunc // ends the loads that requests began

	mu       sync.Mutex
	models   map[string]*model
	closed   bool
	sessions sync.WaitGroup // open sessions, and loads that requests began

	// The memory budget, in bytes.
	used           int64         // charges of what is open, being opened and being closed
	closing        int64         // of that, what is being closed
	freed          chan struct{} // closed when used falls
	opening, began int64         // versions being opened, and loads so far
	loads, evicted int64
	trimmed        time.Time // when the Go heap was last collected for the system
	trimming       bool      // that is about to happen
}

// model is what is loaded under one name. busy (capacity 1) is held through a
// change; the fields are guarded by Loaded.mu.
type model struct {
	busy     chan struct{}
	def      *instance
	extra    map[int]*instance // other versions, by number
	flights  map[int]*flight   // loads that requests wait for, by number
	loading  int               // the version being opened, 0: none
	reason   string            // why def is nil, or why a later load failed
	failed   time.Time         // when the last load failed
	failedOf int               // its version
	off      bool              // unloaded on request
	evicted  bool              // unloaded to make room
}

// NewLoaded returns a server of r's models with none loaded; see LoadAll.
func NewLoaded(r *Registry, o LoadedOptions) *Loaded {
	if o.Target <= 0 {
		o.Target = defaultTarget
	}
	if o.MaxExtra <= 0 {
		o.MaxExtra = defaultMaxExtra
	}
	if o.Scheduler == nil {
		o.Scheduler = batch.New(batch.Options{})
	}
	if o.WarmTimeout <= 0 {
		o.WarmTimeout = defaultWarmTimeout
	}
	if o.Warm == nil {
		o.Warm = warm
	}
	if o.readMemory == nil {
		o.readMemory = engine.ReadMemory
	}
	if o.coldWait <= 0 {
		o.coldWait = defaultColdWait
	}
	if o.retryLoad <= 0 {
		o.retryLoad = defaultRetryLoad
	}
	l := &Loaded{r: r, o: o, models: map[string]*model{}, pinned: map[string]bool{}, freed: make(chan struct{})}
	for _, name := range o.Pinned {
		l.pinned[name] = true
	}
	l.base = l.anonymous()
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// LoadAll loads the default versions, one after the other: those of pinned
// models, then the others as far as the budget goes, unless Options.Lazy is set.
// The rest is loaded by its first request. A model that cannot be loaded is
// UNAVAILABLE with the reason; the error joins these.
func (l *Loaded) LoadAll(ctx context.Context) error {
	ms, err := l.r.Models()
	errs := []error{err}
	for _, pinned := range []bool{true, false} {
		for _, m := range ms {
			if m.Default == 0 || l.pinned[m.Name] != pinned || !pinned && l.o.Lazy {
				continue
			}
			if err := l.load(ctx, m.Name, room{evict: pinned}); err != nil && !errors.Is(err, errNoRoom) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Acquire returns a lease on a version; "" is the default. A version that is not
// loaded is, unless its model was unloaded on request; the caller waits for that.
// Errors: ErrName, ErrNotFound, ErrNotReady (it exists but is not loaded),
// ErrMemory (it cannot be).
func (l *Loaded) Acquire(ctx context.Context, name, version string) (Lease, error) {
	n := 0
	if version != "" {
		var err error
		if n, err = parseVersion(version); err != nil {
			return nil, err
		}
	}
	if in := l.take(name, n); in != nil {
		return &lease{l: l, in: in}, nil
	}
	v, err := l.r.Version(name, version) // the errors for what is not there
	if err != nil {
		return nil, err
	}
	return l.cold(ctx, v, n == 0)
}

// take returns a referenced instance, or nil.
func (l *Loaded) take(name string, n int) *instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.models[name]
	if m == nil {
		return nil
	}
	in := m.def
	if n != 0 && (in == nil || in.v.Number != n) {
		in = m.extra[n]
	}
	if in == nil {
		return nil
	}
	in.refs++
	in.used = time.Now()
	return in
}

// evict retires the least recently used extra versions past MaxExtra, but for those of
// models other than own that are being changed: one may be on its way to become the
// default. l.mu is held.
func (l *Loaded) evict(own *model) {
	type place struct {
		m *model
		n int
	}
	var all []place
	total := 0
	for _, m := range l.models {
		total += len(m.extra)
		if m != own && len(m.busy) > 0 {
			continue
		}
		for n := range m.extra {
			all = append(all, place{m, n})
		}
	}
	slices.SortFunc(all, func(a, b place) int { return a.m.extra[a.n].used.Compare(b.m.extra[b.n].used) })
	for _, p := range all[:min(max(total-l.o.MaxExtra, 0), len(all))] {
		l.retire(p.m.extra[p.n])
		delete(p.m.extra, p.n)
	}
}

// Load opens the default version of a model, or the new default when it has
// changed. On failure what was loaded before stays.
func (l *Loaded) Load(ctx context.Context, name string) error {
	return l.load(ctx, name, room{evict: true})
}

func (l *Loaded) load(ctx context.Context, name string, with room) error {
	v, err := l.r.Version(name, "")
	if err != nil {
		return err
	}
	return l.switchTo(ctx, v, true, with, func() error { return nil })
}

// Promote makes a version the default, in the registry and for new requests.
// No request fails through it: the new session is open and warm before.
func (l *Loaded) Promote(ctx context.Context, name, version string) error {
	v, err := l.r.Version(name, version)
	if err != nil {
		return err
	}
	return l.switchTo(ctx, v, false, room{evict: true}, func() error { return l.r.Promote(name, v.ID()) })
}

// Rollback returns to the default before, and names it.
func (l *Loaded) Rollback(ctx context.Context, name string) (Version, error) {
	v, err := l.r.Previous(name)
	if err != nil {
		return Version{}, err
	}
	return v, l.switchTo(ctx, v, false, room{evict: true}, func() error {
		got, err := l.r.Rollback(name)
		if err == nil && got.Number != v.Number {
			err = fmt.Errorf("model %s: %w: its default changed meanwhile, try again", name, ErrInUse)
		}
		return err
	})
}

// switchTo makes v the served default once commit has made it durable. Unless
// load is set, a model that was unloaded on request stays so.
func (l *Loaded) switchTo(ctx context.Context, v Version, load bool, with room, commit func() error) error {
	m, err := l.lockModel(ctx, v.Model)
	if err != nil {
		return err
	}
	defer m.unlock()
	l.mu.Lock()
	off, in, closed := m.off && !load, m.def, l.closed
	old := in // only whoever holds the busy slot takes it away
	if in == nil || !same(in.v, v) {
		if in = m.extra[v.Number]; in != nil && !same(in.v, v) {
			in = nil
		}
	}
	l.mu.Unlock()
	if closed {
		return fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	}
	if off {
		return commit()
	}
	var switched time.Time
	if old != nil && old != in && l.o.OnSwitch != nil {
		end := l.o.OnSwitch(v.Model, old.v.ID(), v.ID())
		defer func() { end(switched) }()
	}
	if in == nil {
		with.keep = old
		if in, err = l.open(ctx, m, v, with); err != nil {
			return err
		}
	}
	cerr := commit()
	l.mu.Lock()
	defer l.mu.Unlock()
	if cerr != nil || l.closed {
		if m.def != in && m.extra[v.Number] != in {
			l.retire(in)
		}
		return cerr
	}
	if m.extra[v.Number] == in {
		delete(m.extra, v.Number)
	}
	if m.def != in {
		if m.def != nil {
			l.retire(m.def)
		}
		m.def = in
	}
	m.reason, m.off, m.evicted, m.failed = "", false, false, time.Time{}
	switched = time.Now()
	in.used = switched
	return nil
}

// same reports whether two versions have the same number and files: a model
// may be deleted and made again under its name.
func same(a, b Version) bool {
	return a.Number == b.Number && slices.Equal(a.Files, b.Files)
}

// Unload stops serving a model. Requests that run finish.
func (l *Loaded) Unload(ctx context.Context, name string) error {
	if _, err := l.r.Version(name, ""); err != nil {
		return err
	}
	return l.drop(ctx, name)
}

func (l *Loaded) drop(ctx context.Context, name string) error {
	m, err := l.lockModel(ctx, name)
	if err != nil {
		return err
	}
	defer m.unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(m)
	m.off, m.reason = true, "unloaded on request"
	return nil
}

func (l *Loaded) dropLocked(m *model) {
	if m.def != nil {
		l.retire(m.def)
		m.def = nil
	}
	for _, in := range m.extra {
		l.retire(in)
	}
	clear(m.extra)
}

// Delete removes a version from the registry, or with "" the whole model, and
// stops serving it. Requests that run finish.
// Errors: ErrNotFound, ErrInUse (the default version alone).
func (l *Loaded) Delete(ctx context.Context, name, version string) error {
	if _, err := l.r.Model(name); errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
		return err
	}
	m, err := l.lockModel(ctx, name)
	if err != nil {
		return err
	}
	defer m.unlock()
	if version == "" {
		err = l.r.DeleteModel(name)
	} else {
		err = l.r.DeleteVersion(name, version)
	}
	if err != nil {
		return err
	}
	_, gone := l.r.Model(name)
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(gone, ErrNotFound) {
		l.dropLocked(m)
		m.off, m.evicted, m.reason, m.failedOf = false, false, "", 0
		return nil
	}
	if n, err := parseVersion(version); err == nil && m.extra[n] != nil {
		l.retire(m.extra[n])
		delete(m.extra, n)
	}
	return nil
}

// List returns every version of every model, by name, then number.
func (l *Loaded) List() []ModelInfo {
	ms, _ := l.r.Models() // LoadAll reports what is damaged
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []ModelInfo
	for _, m := range ms {
		for _, v := range m.Versions {
			out = append(out, l.info(v, v.Number == m.Default))
		}
	}
	return out
}

// Info returns one version; "" is the default.
func (l *Loaded) Info(name, version string) (ModelInfo, error) {
	v, err := l.r.Version(name, version)
	if err != nil {
		return ModelInfo{}, err
	}
	def, err := l.r.Version(name, "")
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.info(v, err == nil && def.Number == v.Number), nil
}

// info needs l.mu.
func (l *Loaded) info(v Version, isDefault bool) ModelInfo {
	f, _ := v.File(ModelFile)
	i := ModelInfo{
		Name: v.Model, Version: v.ID(), Default: isDefault, Scheme: v.About.Scheme, Source: v.About.Source,
		SHA256: f.SHA256, Size: v.Size(), Files: v.Files, Target: l.target(v), Created: v.Created,
	}
	i.State, i.Reason, i.Lazy = l.models[v.Model].describe(v, isDefault)
	if m := l.models[v.Model]; m != nil {
		if in := l.find(m, v); in != nil {
			i.Memory = in.charge
			if at, ok := in.queue.Placement(); ok {
				i.Engine = &at
			}
		}
	}
	return i
}

// describe tells the state of a version. Loaded.mu is held; m may be nil.
func (m *model) describe(v Version, isDefault bool) (s State, reason string, lazy bool) {
	if m == nil {
		m = &model{}
	}
	if m.def != nil && same(m.def.v, v) {
		return StateReady, m.reason, false
	}
	if in := m.extra[v.Number]; in != nil && same(in.v, v) {
		return StateReady, "", false
	}
	switch {
	case m.loading == v.Number:
		return StateLoading, "being loaded", m.flights[v.Number] != nil
	case m.off:
		return StateUnavailable, m.reason, false
	case !isDefault:
		return StateUnavailable, "not the default version; loaded on first use", true
	case m.reason != "" && m.failedOf == v.Number:
		return StateUnavailable, m.reason, false
	case m.evicted:
		return StateUnavailable, "unloaded to make room for other models; the next request loads it", true
	}
	return StateUnavailable, "not loaded yet; the first request loads it", true
}

func (l *Loaded) target(v Version) time.Duration {
	if v.About.TargetMS > 0 {
		return time.Duration(v.About.TargetMS * float64(time.Millisecond))
	}
	return l.o.Target
}

// Close stops serving and waits until ctx ends for the leases that are out.
func (l *Loaded) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.stop()
	for m := range maps.Values(l.models) {
		l.dropLocked(m)
	}
	l.mu.Unlock()
	done := make(chan struct{})
	go func() { l.sessions.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing models: requests are still running: %w", context.Cause(ctx))
	}
}

// lockModel returns the model's entry, with its busy slot taken.
func (l *Loaded) lockModel(ctx context.Context, name string) (*model, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	l.mu.Lock()
	m := l.entry(name)
	l.mu.Unlock()
	select {
	case m.busy <- struct{}{}:
		return m, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("model %s is being loaded or unloaded: %w", name, context.Cause(ctx))
	}
}

func (m *model) unlock() { <-m.busy }

// entry returns the model's entry, a new one if need be. l.mu is held.
func (l *Loaded) entry(name string) *model {
	m := l.models[name]
	if m == nil {
		m = &model{busy: make(chan struct{}, 1), extra: map[int]*instance{}}
		l.models[name] = m
	}
	return m
}
