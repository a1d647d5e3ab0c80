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
	Scheme  string // "" is as uploaded
	Source  string // NAME/N it was made from
	SHA256  string // of model.onnx
	Size    int64  // bytes of all files
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
	// Scheduler shares the engine between the models. Default: batch.New's.
	Scheduler *batch.Scheduler
	// Alone reports whether requests of the model in dir must not share a run.
	// Default: none.
	Alone func(dir string) (bool, error)
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
}

const (
	defaultTarget      = 50 * time.Millisecond
	defaultMaxExtra    = 4
	defaultWarmTimeout = 30 * time.Second
)

// Loaded serves the versions of a Registry: the default of each loaded model,
// and others on first use.
//
// A switch of the default opens and warms the new session first and moves a
// pointer then; requests that run keep the old session through their lease,
// and the last one closes it. Lock order: model.busy, then Loaded.mu.
type Loaded struct {
	r *Registry
	o LoadedOptions

	mu       sync.Mutex
	models   map[string]*model
	closed   bool
	sessions sync.WaitGroup // open sessions
}

// model is what is loaded under one name. busy (capacity 1) is held through a
// change; the fields are guarded by Loaded.mu.
type model struct {
	busy    chan struct{}
	def     *instance
	extra   map[int]*instance // other versions, by number
	loading int               // the version being opened, 0: none
	reason  string            // why def is nil, or why a later load failed
	off     bool              // unloaded on request
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
	return &Loaded{r: r, o: o, models: map[string]*model{}}
}

// LoadAll loads the default version of every model, one after the other. A
// model that cannot be loaded is UNAVAILABLE with the reason; the error joins
// these.
func (l *Loaded) LoadAll(ctx context.Context) error {
	ms, err := l.r.Models()
	errs := []error{err}
	for _, m := range ms {
		if m.Default == 0 {
			continue
		}
		if err := l.Load(ctx, m.Name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Acquire returns a lease on a version; "" is the default. A version that is
// not the default is opened on first use.
// Errors: ErrName, ErrNotFound, ErrNotReady (it exists but is not loaded).
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
	if n == 0 {
		return nil, fmt.Errorf("model %s: %w: %s", name, ErrNotReady, l.why(name, v))
	}
	return l.acquireExtra(ctx, v)
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

// why says in words why the default version v is not served.
func (l *Loaded) why(name string, v Version) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, reason := l.models[name].describe(v, true)
	return reason
}

// acquireExtra opens v beside the default.
func (l *Loaded) acquireExtra(ctx context.Context, v Version) (Lease, error) {
	m, err := l.lockModel(ctx, v.Model)
	if err != nil {
		return nil, err
	}
	defer m.unlock()
	if in := l.take(v.Model, v.Number); in != nil { // somebody else was faster
		return &lease{l: l, in: in}, nil
	}
	l.mu.Lock()
	off := m.off
	l.mu.Unlock()
	if off {
		return nil, fmt.Errorf("model %s: %w: unloaded on request, load it first", v.Model, ErrNotReady)
	}
	in, err := l.open(ctx, m, v)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.retire(in)
		return nil, fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	}
	in.refs++
	in.used = time.Now()
	m.extra[v.Number] = in
	l.evict()
	return &lease{l: l, in: in}, nil
}

// evict retires the least recently used extra versions past MaxExtra. l.mu is held.
func (l *Loaded) evict() {
	type place struct {
		m *model
		n int
	}
	var all []place
	for _, m := range l.models {
		for n := range m.extra {
			all = append(all, place{m, n})
		}
	}
	slices.SortFunc(all, func(a, b place) int { return a.m.extra[a.n].used.Compare(b.m.extra[b.n].used) })
	for i := 0; i < len(all)-l.o.MaxExtra; i++ {
		p := all[i]
		l.retire(p.m.extra[p.n])
		delete(p.m.extra, p.n)
	}
}

// Load opens the default version of a model, or the new default when it has
// changed. On failure what was loaded before stays.
func (l *Loaded) Load(ctx context.Context, name string) error {
	v, err := l.r.Version(name, "")
	if err != nil {
		return err
	}
	return l.switchTo(ctx, v, true, func() error { return nil })
}

// Promote makes a version the default, in the registry and for new requests.
// No request fails through it: the new session is open and warm before.
func (l *Loaded) Promote(ctx context.Context, name, version string) error {
	v, err := l.r.Version(name, version)
	if err != nil {
		return err
	}
	return l.switchTo(ctx, v, false, func() error { return l.r.Promote(name, v.ID()) })
}

// Rollback returns to the default before, and names it.
func (l *Loaded) Rollback(ctx context.Context, name string) (Version, error) {
	v, err := l.r.Previous(name)
	if err != nil {
		return Version{}, err
	}
	return v, l.switchTo(ctx, v, false, func() error {
		got, err := l.r.Rollback(name)
		if err == nil && got.Number != v.Number {
			err = fmt.Errorf("model %s: %w: its default changed meanwhile, try again", name, ErrInUse)
		}
		return err
	})
}

// switchTo makes v the served default once commit has made it durable. Unless
// load is set, a model that was unloaded on request stays so.
func (l *Loaded) switchTo(ctx context.Context, v Version, load bool, commit func() error) error {
	m, err := l.lockModel(ctx, v.Model)
	if err != nil {
		return err
	}
	defer m.unlock()
	l.mu.Lock()
	off, in, closed := m.off && !load, m.def, l.closed
	if in == nil || !same(in.v, v) {
		if in = m.extra[v.Number]; in != nil && !same(in.v, v) {
			in = nil
		}
	}
	l.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("model %s: %w: the server is stopping", v.Model, ErrNotReady)
	case off:
		return commit()
	case in == nil:
		if in, err = l.open(ctx, m, v); err != nil {
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
	m.reason, m.off = "", false
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
		m.off, m.reason = false, ""
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
		SHA256: f.SHA256, Size: v.Size(), Target: l.target(v), Created: v.Created,
	}
	i.State, i.Reason = l.models[v.Model].describe(v, isDefault)
	return i
}

// describe tells the state of a version. Loaded.mu is held; m may be nil.
func (m *model) describe(v Version, isDefault bool) (State, string) {
	if m == nil {
		return StateUnavailable, "not loaded"
	}
	if m.def != nil && same(m.def.v, v) {
		return StateReady, m.reason
	}
	if in := m.extra[v.Number]; in != nil && same(in.v, v) {
		return StateReady, ""
	}
	switch {
	case m.loading == v.Number:
		return StateLoading, "being loaded"
	case m.off:
		return StateUnavailable, m.reason
	case !isDefault:
		return StateUnavailable, "not the default version; loaded on first use"
	case m.reason != "":
		return StateUnavailable, m.reason
	}
	return StateUnavailable, "not loaded"
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
	m := l.models[name]
	if m == nil {
		m = &model{busy: make(chan struct{}, 1), extra: map[int]*instance{}}
		l.models[name] = m
	}
	l.mu.Unlock()
	select {
	case m.busy <- struct{}{}:
		return m, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("model %s is being loaded or unloaded: %w", name, context.Cause(ctx))
	}
}

func (m *model) unlock() { <-m.busy }
