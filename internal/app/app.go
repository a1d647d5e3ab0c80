// Package app is the server as one thing: it builds the engine, the registry,
// the loaded models, the job queue with its runner, telemetry and the HTTP
// server from a Config, runs them and takes them down in order. Both binaries
// use it.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/engine/native"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/grpc"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/telemetry"
	"github.com/fewbit/fewbit/internal/trace"
	"github.com/fewbit/fewbit/internal/trace/profiler"
)

// Layout of the data directory.
const (
	registryDir = "registry" // models and data sets
	jobsDir     = "jobs"     // the embedded queue
	reportsDir  = "reports"  // ID.json of each job that got as far as a report
	captureDir  = "capture"  // captured inputs, encrypted
	tracesDir   = "traces"   // files of /v2/trace/setting
	lockName    = "lock"
)

// closeTimeout bounds how long the models wait for their last requests, after
// the server has drained.
const closeTimeout = 10 * time.Second

// exportTimeout bounds how long the last spans may take to the collector.
const exportTimeout = 2 * time.Second

// App is a server. New opens its parts, Run or Serve serves, Close takes what
// is left down.
type App struct {
	cfg       Config
	log       *slog.Logger
	lock      *lockfile.Lock
	registry  *registry.Registry
	loaded    *registry.Loaded
	gpu       *gpu // nil: models run on the CPU
	queue     *jobs.JetStream
	telemetry *telemetry.Collector
	capture   *capture.Store
	exporter  *trace.Exporter // nil: no collector gets traces
	trace     *trace.Tracer
	pipeline  pipeline.Pipeline // copied for each job
	server    *http.Server
	guards    *guards     // keys, certificates, audit log
	starting  atomic.Bool // the default versions are still being loaded
	closing   sync.Once
	closeErr  error
}

// New opens the parts of a server in cfg.DataDir. Jobs that an earlier process
// left begin to run. version is the program's. log may be nil.
func New(ctx context.Context, cfg Config, version string, log *slog.Logger) (*App, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(logs.New(io.Discard, cfg.logSettings()))
	}
	a := &App{cfg: cfg, log: log}
	if err := a.open(ctx, version); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *App) open(ctx context.Context, version string) error {
	var err error
	if a.guards, err = a.cfg.Access.open(a.log); err != nil {
		return err
	}
	captureKey, err := a.cfg.readCaptureKey()
	if err != nil {
		return err
	}
	if err := a.openDataDir(); err != nil {
		return err
	}
	if a.capture, err = capture.Open(filepath.Join(a.cfg.DataDir, captureDir), captureKey); err != nil {
		return fmt.Errorf("data directory %s: %w", a.cfg.DataDir, err)
	}
	cpu, err := ort.New(ort.Config{Library: a.cfg.ORTLib, Kernels: a.cfg.CPULib, Threads: a.cfg.Threads, NoSpin: !a.cfg.Spin})
	if err != nil {
		return err
	}
	e := native.New(cpu, "")
	a.registry, err = registry.Open(ctx, filepath.Join(a.cfg.DataDir, registryDir), registry.Options{
		MaxUpload:       a.cfg.MaxUpload,
		Keep:            a.kept,
		ValidateModel:   func(dir string) error { return validateModel(e, dir) },
		ValidateDataset: validateDataset,
	})
	if err != nil {
		return fmt.Errorf("data directory %s: %w", a.cfg.DataDir, err)
	}
	serving := engine.Engine(e)
	if a.gpu = openGPU(ctx, a.cfg.Device, e, a.log); a.gpu != nil {
		serving = a.gpu.fallback
	}
	a.telemetry = telemetry.New(telemetry.Options{})
	a.loaded = registry.NewLoaded(a.registry, registry.LoadedOptions{
		Engine: serving, PreparerFor: preparerFor, Meter: a.meter, Target: a.cfg.Target, Alone: rowsDepend, Independent: a.independent,
		Scheduler: batch.New(batch.Options{Runs: a.cfg.MaxRuns}),
		Budget:    a.cfg.memoryBudget(), Pinned: a.cfg.Pin, Lazy: a.cfg.Lazy, Trim: e.Trim,
		OnSwitch: a.telemetry.BeginSwap,
	})
	a.pipeline = pipeline.Pipeline{Engine: e, Version: version, CaptureKey: captureKey, PeakMemory: pipeline.PeakInChild(peakArgs(e.Library(), a.cfg.CPULib, a.cfg.Threads)...)}
	if a.gpu != nil { // as models do
		if a.pipeline.Device, err = CalibrationDevice(ctx, a.cfg.Device, Arithmetics[0]); err != nil {
			return err
		}
	}
	a.starting.Store(true)
	a.queue, err = jobs.Open(ctx, jobs.Options{
		Dir: filepath.Join(a.cfg.DataDir, jobsDir), URL: a.cfg.NATSURL, Runner: a.runJob, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.prune(ctx, 0)
	if err := a.openTrace(ctx, version); err != nil {
		return err
	}
	logs, _ := a.log.Handler().(*logs.Handler) // of other logs, clients can change nothing
	a.server, err = http.New(http.Config{
		Models: models{a}, Store: store{a}, Jobs: jobsOf{a.queue, a}, Telemetry: a.telemetry, Capture: a.capture, CheckJob: a.checkJob,
		Listen: a.cfg.Listen, Version: version,
		Keys: a.guards.keys, SplitAdmin: a.cfg.AdminListen != "", TLS: a.guards.certs.Config("h2", "http/1.1"), Audit: a.guards.audit,
		CORSOrigins: a.cfg.origins(), Rate: a.cfg.RateLimit, RateBurst: a.cfg.RateBurst, MaxConns: a.cfg.MaxConns,
		SpoolDir:     a.registry.TempDir(),
		ErrorLog:     slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		MaxInferBody: a.cfg.MaxBody, MaxUpload: a.cfg.MaxUpload, MaxInFlight: a.cfg.MaxInFlight, DrainTimeout: a.cfg.Drain,
		Log: a.log, Logs: logs, SlowRequest: a.cfg.SlowRequest, Trace: a.trace,
		OnError: func(method, path, id string, err error) {
			a.log.Error("request failed", "method", method, "path", path, "request_id", id, "error", err)
		},
	})
	return err
}

// openTrace prepares what follows requests.
func (a *App) openTrace(ctx context.Context, version string) (err error) {
	if a.cfg.OTLP != "" {
		a.exporter, err = trace.NewExporter(ctx, trace.ExporterOptions{URL: a.cfg.OTLP, Ratio: a.cfg.OTLPSample, Version: version, Log: a.log})
		if err != nil {
			return usageError{fmt.Errorf("--otlp: %w", err)}
		}
	}
	var markers []trace.Marker
	profilers, err := profiler.Open()
	if err != nil {
		a.log.Warn("a profiler does not see requests", "reason", err)
	}
	for _, m := range profilers {
		a.log.Info("a profiler sees requests", "by", m)
		markers = append(markers, m)
	}
	a.trace = trace.New(trace.Options{Dir: filepath.Join(a.cfg.DataDir, tracesDir), Process: "fewbit serve " + version, Exporter: a.exporter, Markers: markers, Log: a.log})
	return nil
}

// openDataDir creates the data directory and, unless jobs live in a cluster
// that several servers share, locks it.
func (a *App) openDataDir() error {
	dir := a.cfg.DataDir
	if err := os.MkdirAll(filepath.Join(dir, reportsDir), 0o755); err != nil {
		return fmt.Errorf("data directory %s cannot be used: %w; choose another with --data-dir", dir, bare.Error(err))
	}
	if a.cfg.NATSURL != "" {
		return nil
	}
	var err error
	a.lock, err = lockfile.Exclusive(filepath.Join(dir, lockName))
	if errors.Is(err, lockfile.ErrLocked) {
		return fmt.Errorf("data directory %s: %w by another server; stop it, or choose another with --data-dir", dir, err)
	}
	return err
}

// Run listens on Config.Listen, writes one line with the URL to out, and
// serves until ctx ends; then it takes everything down.
func (a *App) Run(ctx context.Context, out io.Writer) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("cannot listen on %s: %w; choose another address with --listen", a.cfg.Listen, reason(err)), a.Close())
	}
	g, err := a.listenGRPC(ctx)
	if err != nil {
		return errors.Join(err, l.Close(), a.Close())
	}
	ls := listeners{http: l, grpc: g}
	if ls.admin, err = a.listenAdmin(ctx); err != nil {
		if g != nil {
			err = errors.Join(err, g.Close())
		}
		return errors.Join(err, l.Close(), a.Close())
	}
	s := "" // of the schemes
	if a.guards.certs != nil {
		s = "s"
	}
	also := ""
	if g != nil {
		also = fmt.Sprintf(" and grpc%s://%s", s, g.Addr())
	}
	if ls.admin != nil {
		also += fmt.Sprintf(", administrators on http%s://%s", s, ls.admin.Addr())
	}
	fmt.Fprintf(out, "fewbit serves on http%s://%s%s (data in %s, %d CPU threads)\n", s, l.Addr(), also, a.cfg.DataDir, a.threads())
	a.warn(ls)
	return a.serve(ctx, ls)
}

// listenGRPC returns the listener for gRPC, nil for none.
func (a *App) listenGRPC(ctx context.Context) (net.Listener, error) {
	if a.cfg.GRPCListen == "" {
		return nil, nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.GRPCListen)
	switch {
	case err == nil:
		return l, nil
	case a.cfg.GRPCListen == DefaultGRPCListen:
		a.log.Warn("gRPC is not served: choose an address with --grpc-listen", "address", a.cfg.GRPCListen, "error", reason(err))
		return nil, nil
	}
	return nil, fmt.Errorf("cannot listen for gRPC on %s: %w; choose another address with --grpc-listen, or none with an empty one", a.cfg.GRPCListen, reason(err))
}

func (a *App) threads() int {
	if a.cfg.Threads > 0 {
		return a.cfg.Threads
	}
	return engine.AvailableCPUs()
}

// reason unwraps a network error to the words of the system.
func reason(err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err
	}
	return err
}

// Serve is Run over a listener of the caller's, which it closes, without gRPC.
func (a *App) Serve(ctx context.Context, l net.Listener) error {
	return a.serve(ctx, listeners{http: l})
}

func (a *App) serve(ctx context.Context, ls listeners) error {
	side, stop := context.WithCancel(context.WithoutCancel(ctx)) // ends when serving does, whatever ends it
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop()
		select {
		case <-side.Done():
			return
		case <-ctx.Done():
		}
		a.server.NotReady()
		select {
		case <-side.Done():
		case <-time.After(a.cfg.DrainDelay):
		}
	})
	wg.Go(func() { a.telemetry.Run(side) })
	wg.Go(func() {
		defer a.starting.Store(false)
		if err := a.loaded.LoadAll(side); err != nil && side.Err() == nil {
			a.log.Warn("some models could not be loaded; the repository index has the reasons", "error", err)
		}
	})
	wg.Go(func() { // while requests drain, jobs go back into the queue
		<-side.Done()
		if err := a.queue.Close(); err != nil {
			a.log.Warn("closing the job queue", "error", err)
		}
	})
	wg.Go(func() { a.collect(side) })
	wg.Go(func() { a.guards.follow(side) })
	var rpcErr error
	if ls.grpc != nil {
		s := grpc.New(a.server, grpc.Options{MaxMessage: a.cfg.MaxBody, MaxConns: a.cfg.MaxConns, Drain: a.cfg.Drain,
			TLS: a.guards.certs.Config("h2"), NoAdmin: ls.admin != nil})
		wg.Go(func() {
			rpcErr = s.Serve(side, ls.grpc)
			stop() // both or none
		})
	}
	err := a.server.ServeOn(side, http.Listeners{Public: ls.http, Admin: ls.admin})
	stop()
	wg.Wait()
	return errors.Join(err, rpcErr, a.Close())
}

// collectEvery is how often contents that nothing refers to are removed.
const collectEvery = time.Hour

// collect removes what deleted versions and data sets and forgotten jobs leave behind.
func (a *App) collect(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		if err := a.registry.GC(ctx, collectEvery); err != nil && ctx.Err() == nil {
			a.log.Warn("removing unreferenced files", "error", err)
		}
		a.prune(ctx, collectEvery)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// prune removes the files of jobs that the queue has forgotten, if older than minAge.
func (a *App) prune(ctx context.Context, minAge time.Duration) {
	if err := a.pruneReports(ctx, minAge); err != nil && ctx.Err() == nil {
		a.log.Warn("removing reports of forgotten jobs", "error", err)
	}
	if err := a.pruneSearches(ctx, minAge); err != nil && ctx.Err() == nil {
		a.log.Warn("removing what ended searches left", "error", err)
	}
}

// Close closes the parts that are open, in the order of their use: jobs,
// models, files. Running jobs go back into the queue.
func (a *App) Close() error {
	a.closing.Do(func() {
		var errs []error
		if a.queue != nil {
			errs = append(errs, a.queue.Close())
		}
		errs = append(errs, a.trace.Close())
		ctx, cancel := context.WithTimeout(context.Background(), exportTimeout)
		if err := a.exporter.Close(ctx); err != nil {
			a.log.Warn("the last traces could not be sent", "error", err)
		}
		cancel()
		if a.loaded != nil {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			errs = append(errs, a.loaded.Close(ctx))
			cancel()
		}
		errs = append(errs, a.gpu.Close())
		if a.capture != nil {
			errs = append(errs, a.capture.Close())
		}
		if a.registry != nil {
			errs = append(errs, a.registry.Close())
		}
		errs = append(errs, a.guards.close())
		a.lock.Release()
		a.closeErr = errors.Join(errs...)
	})
	return a.closeErr
}
