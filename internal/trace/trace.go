// Package trace shows single requests on their way through the server: when each
// waited, was prepared, ran and was answered. It tells whoever watches: a file
// that ui.perfetto.dev opens, switched on while serving (the Open Inference
// Protocol's trace extension); an OpenTelemetry collector; and profilers that
// take ranges (Marker).
//
// When nobody watches, Start costs one atomic load and returns nil, whose methods
// do nothing.
package trace

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// Options of a Tracer.
type Options struct {
	// Dir is where trace files go; it is made when it is needed. "" allows none.
	Dir string
	// Process names the process in a file.
	Process string
	// Exporter sends spans to a collector; nil for none.
	Exporter *Exporter
	// Markers are the profilers that watch.
	Markers []Marker
	// Log hears of files that had to be given up. nil: nobody.
	Log *slog.Logger
}

// Marker shows ranges of time to a profiler that runs beside the server.
type Marker interface {
	// Begin opens a range. The function that it returns ends it, perhaps on
	// another thread; ranges may overlap.
	Begin(name string) (end func())
}

// Tracer follows requests. Safe for concurrent use; a nil one follows none.
type Tracer struct {
	o     Options
	on    atomic.Bool // somebody watches
	state atomic.Pointer[state]

	mu     sync.Mutex // guards what follows, and changes of state
	global overrides
	models map[string]overrides
	files  map[string]*file // open, by name
	closed bool
}

// New returns a tracer that writes no file yet.
func New(o Options) *Tracer {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tracer{o: o, models: map[string]overrides{}, files: map[string]*file{}}
	t.state.Store(&state{global: newScope(defaults())})
	t.on.Store(t.watched())
	return t
}

// watched reports whether somebody watches whatever the files do.
func (t *Tracer) watched() bool { return t.o.Exporter != nil || len(t.o.Markers) > 0 }

// On reports whether anybody watches.
func (t *Tracer) On() bool { return t != nil && t.on.Load() }

// Origin is what is known of a request before its model is.
type Origin struct {
	Arrival time.Time
	ID      string // as in the server's log
	// Header is the request's, or a gRPC call's metadata: the W3C trace context
	// is read from it.
	Header map[string][]string
}

// Outcome is what is known of a request at its end.
type Outcome struct {
	Rows  int64 // of the request
	Batch int64 // of the run that answered it, 0 for none
	// Failure is a reason as the metrics name it, "" for success.
	Failure string
}

// Request is one request that somebody watches. Its methods are called one after
// the other, from whichever goroutine has the request; on nil they do nothing.
type Request struct {
	t              *Tracer
	origin         Origin
	model, version string
	steps          [maxSteps]step
	n              int
	end            time.Time
	outcome        Outcome

	file  *file // nil: not in one
	lane  int
	marks []func() // end the ranges of the phase, by marker
	whole []func() // and those of the request
}

// step is a phase that began.
type step struct {
	phase telemetry.Phase
	at    time.Time
}

const maxSteps = 4 // each phase once

// Start follows a request from its arrival, in phase Prepare. It returns nil when
// nobody watches this one.
func (t *Tracer) Start(o Origin, model, version string) *Request {
	if !t.On() {
		return nil
	}
	r := &Request{t: t, origin: o, model: model, version: version}
	if sc := t.state.Load().scope(model); sc.sampled() {
		if lane, ok := sc.out.enter(); ok {
			r.file, r.lane = sc.out, lane
		}
	}
	if r.file == nil && !t.watched() {
		return nil
	}
	for _, m := range t.o.Markers {
		r.whole = append(r.whole, m.Begin("request "+model))
	}
	r.begin(telemetry.Prepare, o.Arrival)
	return r
}

// Begin ends the phase before and begins p.
func (r *Request) Begin(p telemetry.Phase) {
	if r == nil {
		return
	}
	r.begin(p, time.Now())
}

func (r *Request) begin(p telemetry.Phase, at time.Time) {
	if r.n == maxSteps {
		return
	}
	r.steps[r.n] = step{p, at}
	r.n++
	finish(r.marks)
	r.marks = r.marks[:0]
	for _, m := range r.t.o.Markers {
		r.marks = append(r.marks, m.Begin(p.String()+" "+r.model))
	}
}

func finish(ends []func()) {
	for _, end := range ends {
		end()
	}
}

// End tells the watchers. It is called once.
func (r *Request) End(o Outcome) {
	if r == nil {
		return
	}
	r.end, r.outcome = time.Now(), o
	finish(r.marks)
	finish(r.whole)
	if r.file != nil {
		r.file.write(r)
	}
	if r.t.o.Exporter != nil {
		r.t.o.Exporter.export(r)
	}
}

// phases calls f for each phase with its begin and end.
func (r *Request) phases(f func(p telemetry.Phase, from, to time.Time)) {
	for i := range r.n {
		to := r.end
		if i+1 < r.n {
			to = r.steps[i+1].at
		}
		f(r.steps[i].phase, r.steps[i].at, to)
	}
}

// Close completes the files. Requests that end later are not in them.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	var errs []error
	for name, f := range t.files {
		errs = append(errs, f.close())
		delete(t.files, name)
	}
	return errors.Join(errs...)
}

// open returns the file of that name, a new one unless it is being written. t.mu
// is held.
func (t *Tracer) open(name string, every int64) (*file, error) {
	if f := t.files[name]; f != nil && f.reuse(every) {
		return f, nil
	}
	switch {
	case t.o.Dir == "":
		return nil, fmt.Errorf("%w trace_level: this server has no folder for trace files", ErrSetting)
	case t.closed:
		return nil, fmt.Errorf("%w trace_level: the server is stopping", ErrSetting)
	}
	if err := os.MkdirAll(t.o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder of trace files: %w", err)
	}
	root, err := os.OpenRoot(t.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("folder of trace files: %w", err)
	}
	f := &file{root: root, name: name, process: t.o.Process, every: every, log: t.o.Log}
	if err := f.begin(); err != nil {
		root.Close()
		return nil, err
	}
	t.files[name] = f
	return f, nil
}

// ErrNoFile: there is no such trace file.
var ErrNoFile = errors.New("no such trace file")

// FileInfo is one trace file.
type FileInfo struct {
	Name  string    `json:"name"`
	Bytes int64     `json:"bytes"`
	Time  time.Time `json:"time" doc:"of the last write"`
}

// Files lists the trace files by name.
func (t *Tracer) Files() ([]FileInfo, error) {
	files := []FileInfo{}
	if t.o.Dir == "" {
		return files, nil
	}
	entries, err := os.ReadDir(t.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			files = append(files, FileInfo{e.Name(), i.Size(), i.ModTime().UTC()})
		}
	}
	return files, nil
}

// Open returns a file's present contents, whole JSON also while it is written, and
// their size. Errors: ErrSetting for what is no name, ErrNoFile.
func (t *Tracer) Open(name string) (io.ReadCloser, int64, error) {
	if !validFile(name) {
		return nil, 0, fmt.Errorf("%w trace_file %.40q is not the name of a trace file", ErrSetting, name)
	}
	ends := int64(-1)
	if f := t.writing(name); f != nil {
		ends = f.sync(name)
	}
	root, err := os.OpenRoot(t.o.Dir)
	if err != nil {
		return nil, 0, fmt.Errorf("%w %.40q", ErrNoFile, name)
	}
	defer root.Close()
	in, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w %.40q", ErrNoFile, name)
	} else if err != nil {
		return nil, 0, err
	}
	if ends >= 0 { // what is written meanwhile goes over the closing bracket
		return contents{io.MultiReader(io.LimitReader(in, ends), strings.NewReader(closing)), in}, ends + int64(len(closing)), nil
	}
	i, err := in.Stat()
	if err != nil {
		in.Close()
		return nil, 0, err
	}
	return contents{io.LimitReader(in, i.Size()), in}, i.Size(), nil
}

type contents struct {
	io.Reader
	io.Closer
}

// writing returns the open file that name belongs to, nil for none.
func (t *Tracer) writing(name string) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	for base, f := range t.files {
		if name == base || strings.HasPrefix(name, base+".") {
			return f
		}
	}
	return nil
}
