package trace

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// ErrSetting is a setting that cannot be.
var ErrSetting = errors.New("trace setting")

// Settings are those of the protocol's trace extension, for all models or one.
type Settings struct {
	// On is trace_level TIMESTAMPS; off is OFF.
	On bool
	// Rate is one request in so many, Count how many more are traced (-1: without
	// end), Every (log_frequency) how many go into one file, 0 for all.
	Rate, Count, Every int64
	// File is a name in the server's folder of traces. With Every, a number is
	// added to it.
	File string
}

// Names of the settings, in the protocol's order.
const (
	nameLevel = "trace_level"
	nameRate  = "trace_rate"
	nameCount = "trace_count"
	nameEvery = "log_frequency"
	nameFile  = "trace_file"
	nameMode  = "trace_mode"

	levelOff = "OFF"
	levelOn  = "TIMESTAMPS"
	// Mode is what trace_mode says: the form of the files.
	Mode = "perfetto"
)

// DefaultFile is where traces go unless trace_file says otherwise.
const DefaultFile = "trace.json"

// MaxModels bounds the models with trace settings of their own.
const MaxModels = 256

// A default rate of 1000, as the protocol has it, keeps what is switched on in
// passing from filling the disk.
func defaults() Settings { return Settings{Rate: 1000, Count: -1, File: DefaultFile} }

// overrides are the settings that were set, by name; the others come from above.
type overrides map[string]func(*Settings)

func (o overrides) on(s Settings) Settings {
	for _, set := range o {
		set(&s)
	}
	return s
}

// state is what requests see; it is replaced, never changed.
type state struct {
	global *scope
	models map[string]*scope
}

func (s *state) scope(model string) *scope {
	if sc := s.models[model]; sc != nil {
		return sc
	}
	return s.global
}

// scope is a set of settings with the requests counted under it.
type scope struct {
	Settings
	seen, left atomic.Int64
	out        *file // nil when it is off
}

func newScope(s Settings) *scope {
	sc := &scope{Settings: s}
	sc.left.Store(s.Count)
	return sc
}

// sampled counts a request and reports whether it is to be traced.
func (s *scope) sampled() bool {
	if s.out == nil || (s.seen.Add(1)-1)%s.Rate != 0 {
		return false
	}
	for {
		left := s.left.Load()
		switch {
		case left < 0:
			return true
		case left == 0:
			return false
		case s.left.CompareAndSwap(left, left-1):
			return true
		}
	}
}

// Settings returns those in force for a model, "" for all others. Count is what
// is left.
func (t *Tracer) Settings(model string) Settings {
	sc := t.state.Load().scope(model)
	s := sc.Settings
	s.Count = sc.left.Load()
	return s
}

// Values words s as the protocol does, by name.
func (s Settings) Values() map[string][]string {
	level := levelOff
	if s.On {
		level = levelOn
	}
	num := func(n int64) []string { return []string{strconv.FormatInt(n, 10)} }
	return map[string][]string{nameLevel: {level}, nameRate: num(s.Rate), nameCount: num(s.Count), nameEvery: num(s.Every),
		nameFile: {s.File}, nameMode: {Mode}}
}

// Set changes settings by name, of a model or with "" of all without their own;
// nil clears one, back to the settings above. All or none change.
// Errors: ErrSetting; those of files.
func (t *Tracer) Set(model string, change map[string][]string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := maps.Clone(t.global)
	if model != "" {
		own = maps.Clone(t.models[model])
	}
	if own == nil {
		own = overrides{}
	}
	for _, name := range slices.Sorted(maps.Keys(change)) {
		values := change[name]
		if values == nil {
			if _, known := setters[name]; !known {
				return unknown(name)
			}
			delete(own, name)
			continue
		}
		set, err := parse(name, values)
		if err != nil {
			return err
		}
		own[name] = set
	}
	global, models := t.global, maps.Clone(t.models)
	switch {
	case model == "":
		global = own
	case len(own) == 0:
		delete(models, model)
	default:
		models[model] = own
		if len(models) > MaxModels {
			return fmt.Errorf("%w: %d models have settings of their own already: clear some with null", ErrSetting, MaxModels)
		}
	}
	next, err := t.build(global, models)
	if err != nil {
		return err
	}
	t.global, t.models = global, models
	t.state.Store(next)
	t.tidy(next)
	return nil
}

// build makes the state of the settings. Scopes whose settings stay keep their
// counts. t.mu is held.
func (t *Tracer) build(global overrides, models map[string]overrides) (*state, error) {
	before := t.state.Load()
	make := func(s Settings, old *scope) (*scope, error) {
		if old != nil && old.Settings == s {
			return old, nil
		}
		sc := newScope(s)
		if !s.On {
			return sc, nil
		}
		var err error
		sc.out, err = t.open(s.File, s.Every)
		return sc, err
	}
	base := global.on(defaults())
	sc, err := make(base, before.global)
	next := &state{global: sc, models: map[string]*scope{}}
	for name, o := range models {
		if err != nil {
			break
		}
		next.models[name], err = make(o.on(base), before.models[name])
	}
	if err != nil {
		t.tidy(before) // what was opened for nothing
		return nil, err
	}
	return next, nil
}

// tidy closes the files that no scope of s writes. t.mu is held.
func (t *Tracer) tidy(s *state) {
	used := map[*file]bool{s.global.out: true}
	on := t.watched() || s.global.On
	for _, sc := range s.models {
		used[sc.out] = true
		on = on || sc.On
	}
	for name, f := range t.files {
		if !used[f] {
			if err := f.close(); err != nil {
				t.o.Log.Warn("closing a trace file", "file", name, "error", err)
			}
			delete(t.files, name)
		}
	}
	t.on.Store(on)
}

// Forget drops the settings of a model that is gone.
func (t *Tracer) Forget(model string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.models[model] == nil {
		return
	}
	delete(t.models, model)
	if next, err := t.build(t.global, t.models); err == nil { // it opens no file
		t.state.Store(next)
		t.tidy(next)
	}
}

var filePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func validFile(name string) bool {
	return filePattern.MatchString(name) && !strings.Contains(name, "..")
}

// setters read one value of each setting.
var setters = map[string]func(v string) (func(*Settings), error){
	nameLevel: func(v string) (func(*Settings), error) {
		switch v {
		case levelOn:
			return func(s *Settings) { s.On = true }, nil
		case levelOff:
			return func(s *Settings) { s.On = false }, nil
		}
		return nil, fmt.Errorf("expected %s or %s; tensors are not recorded", levelOff, levelOn)
	},
	nameRate:  number(1, func(s *Settings, n int64) { s.Rate = n }),
	nameCount: number(-1, func(s *Settings, n int64) { s.Count = n }),
	nameEvery: number(0, func(s *Settings, n int64) { s.Every = n }),
	nameFile: func(v string) (func(*Settings), error) {
		if !validFile(v) {
			return nil, errors.New("expected the name of a file in the server's folder of traces: 1 to 128 of A-Z a-z 0-9 . _ -, starting with a letter or digit")
		}
		return func(s *Settings) { s.File = v }, nil
	},
	nameMode: func(v string) (func(*Settings), error) {
		if v != Mode {
			return nil, fmt.Errorf("expected %s; OpenTelemetry is set up when the server starts", Mode)
		}
		return func(*Settings) {}, nil
	},
}

func number(least int64, set func(*Settings, int64)) func(string) (func(*Settings), error) {
	return func(v string) (func(*Settings), error) {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least || n > math.MaxInt32 {
			return nil, fmt.Errorf("expected a number from %d to %d", least, math.MaxInt32)
		}
		return func(s *Settings) { set(s, n) }, nil
	}
}

func unknown(name string) error {
	return fmt.Errorf("%w %.40q is not known: expected one of %s", ErrSetting, name, strings.Join(slices.Sorted(maps.Keys(setters)), ", "))
}

// parse reads the values of one setting; only trace_level may come as a list.
func parse(name string, values []string) (func(*Settings), error) {
	read := setters[name]
	if read == nil {
		return nil, unknown(name)
	}
	if len(values) != 1 {
		return nil, fmt.Errorf("%w %s has %d values, expected one", ErrSetting, name, len(values))
	}
	set, err := read(values[0])
	if err != nil {
		return nil, fmt.Errorf("%w %s is %.40q: %w", ErrSetting, name, values[0], err)
	}
	return set, nil
}
