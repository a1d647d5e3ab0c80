// Package ort runs models on the CPU with ONNX Runtime.
//
// The library is loaded at run time (FindLibrary). github.com/yalue/onnxruntime_go
// owns the environment, session and run options; shim.c adds sessions and,
// over the same library and environment, what it lacks: one thread pool for all
// sessions that spins only during runs, outputs that stay in ONNX Runtime's memory, every
// element type, strings with any bytes, run-config entries and EndProfiling.
//
// onnxruntime_c_api.h and onnxruntime_ep_c_api.h are ONNX Runtime's own headers
// (MIT license, Copyright (c) Microsoft Corporation) as shipped with that
// module: their API version must be the module's.
package ort

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	ortgo "github.com/yalue/onnxruntime_go"

	"github.com/fewbit/fewbit/internal/engine"
)

// Name is what Engine.Name returns.
const Name = "ort-cpu"

// slowFusions are optimizers that make models slower on the CPU: the fused
// SkipLayerNormalization kernel takes 13.8 ms where Add and LayerNormalization
// take 4.1 (BERT-base, 128 tokens, one thread, ONNX Runtime 1.32.0, medians of
// 12 runs of one profile; benchmarks/results has the whole models).
const slowFusions = "SkipLayerNormFusion;BiasSkipLayerNormFusion"

// MaxThreads bounds the thread counts that New and OpenFile accept.
const MaxThreads = 1024

// envTelemetry is ONNX Runtime's own variable (docs/Privacy.md of its sources).
const envTelemetry = "ORT_DISABLE_TELEMETRY"

// Config says which library New loads and how many threads all sessions share.
type Config struct {
	// Library is the path of libonnxruntime, or of the folder it lies in; ""
	// looks for it (FindLibrary).
	Library string
	// Kernels is the path of libfewbit_cpu, or of its folder; "" looks for it
	// (FindKernels), KernelsOff does without.
	Kernels string
	// Threads is the size of the pool that sessions share, counting the
	// goroutine that calls Run; 0 is engine.AvailableCPUs().
	Threads int
	// NoSpin lets threads sleep whenever they wait for each other. Otherwise
	// they spin for a moment, but only while a run is under way: ADR 0016 has
	// what that gains and what it costs on a machine that others use too.
	NoSpin bool
}

// Engine is ONNX Runtime in this process.
type Engine struct {
	version, library string
	threads          int
	noSpin           bool
	kernels          Kernels
}

var _ engine.Engine = (*Engine)(nil)

// process holds what can exist only once: the loaded library and its OrtEnv.
// The environment lives until the process ends.
var process struct {
	sync.Mutex
	engine *Engine
}

// New loads ONNX Runtime. Library and environment are loaded once for the
// process: later calls return the same engine, or ErrUnavailable when they ask
// for another library or number of threads. ErrUnavailable also says what was
// found and what to do when there is no library, or one that does not fit.
func New(c Config) (*Engine, error) {
	if c.Threads < 0 || c.Threads > MaxThreads {
		return nil, fmt.Errorf("%w: %d threads, expected 0 (all CPUs) to %d", engine.ErrUnavailable, c.Threads, MaxThreads)
	}
	process.Lock()
	defer process.Unlock()
	if e := process.engine; e != nil {
		if err := e.accepts(c); err != nil {
			return nil, err
		}
		return e, nil
	}
	lib, err := FindLibrary(c.Library)
	if err != nil {
		return nil, err
	}
	e := &Engine{library: lib, threads: c.Threads, noSpin: c.NoSpin}
	if e.threads == 0 {
		e.threads = min(engine.AvailableCPUs(), MaxThreads)
	}
	if err := e.start(); err != nil {
		return nil, err
	}
	if err := e.loadKernels(c.Kernels); err != nil {
		return nil, err
	}
	process.engine = e
	return e, nil
}

// accepts reports whether the running engine serves c too.
func (e *Engine) accepts(c Config) error {
	if c.Threads != 0 && c.Threads != e.threads {
		return fmt.Errorf("%w: ONNX Runtime already runs in this process with %d threads, not %d; give sessions their own with Options.Threads",
			engine.ErrUnavailable, e.threads, c.Threads)
	}
	if c.NoSpin && !e.noSpin {
		return fmt.Errorf("%w: ONNX Runtime already runs in this process with threads that spin", engine.ErrUnavailable)
	}
	if c.Library == "" {
		return nil
	}
	lib, err := FindLibrary(c.Library)
	if err != nil {
		return err
	}
	if !sameFile(lib, e.library) {
		return fmt.Errorf("%w: ONNX Runtime %s is already loaded from %s, a process cannot load %s as well",
			engine.ErrUnavailable, e.version, e.library, lib)
	}
	return nil
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// start loads the library, checks its version and creates the environment.
// The order matters: OrtEnv is a reference-counted singleton that keeps the
// settings of whoever creates it first, and onnxruntime_go cannot ask for a
// global thread pool.
func (e *Engine) start() error {
	// Since 1.29 ONNX Runtime's builds for Linux tell their maker which models are
	// opened and how they run, and keep an id of the device and unsent events in
	// the user's cache folder. DisableTelemetry below stops the later events only:
	// the environment has begun with it by then.
	if err := os.Setenv(envTelemetry, "1"); err != nil {
		return fmt.Errorf("%w: ONNX Runtime's telemetry cannot be disabled: %w", engine.ErrUnavailable, err)
	}
	version, path, err := load(e.library)
	if err != nil {
		return err
	}
	e.version = version
	if filepath.IsAbs(path) {
		e.library = path
	}
	if err := newEnv(e.threads, !e.noSpin); err != nil {
		return fmt.Errorf("%w: ONNX Runtime %s: %w", engine.ErrUnavailable, version, err)
	}
	if !ortgo.IsInitialized() {
		ortgo.SetSharedLibraryPath(e.library)
		if err := ortgo.InitializeEnvironment(ortgo.WithLogLevelError()); err != nil {
			return fmt.Errorf("%w: ONNX Runtime %s: %w", engine.ErrUnavailable, version, err)
		}
	}
	if err := ortgo.DisableTelemetry(); err != nil {
		return fmt.Errorf("%w: ONNX Runtime %s: telemetry cannot be disabled: %w", engine.ErrUnavailable, version, err)
	}
	return checkLayout()
}

// Name returns "ort-cpu".
func (e *Engine) Name() string { return Name }

// Library returns the path of the loaded library.
func (e *Engine) Library() string { return e.library }

// Threads returns the size of the pool that sessions share.
func (e *Engine) Threads() int { return e.threads }

// Probe returns the library's version. A loaded engine always runs.
func (e *Engine) Probe(ctx context.Context) (engine.Device, error) {
	return engine.Device{Name: "CPU (ONNX Runtime " + e.version + ")", Version: e.version}, ctx.Err()
}

// OpenFile loads the model at path. External data is read from beside it.
// Models with inputs or outputs that fewbit cannot pass (sequences, maps,
// complex and packed 4-bit types) are refused with ErrModel, as is everything
// that ONNX Runtime refuses. Texts name the file without its folder.
func (e *Engine) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	return e.Open(ctx, path, o)
}

// Open is OpenFile with the concrete type, which has EndProfile.
func (e *Engine) Open(ctx context.Context, path string, o engine.Options) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkModelFile(path); err != nil {
		return nil, err
	}
	so, err := e.sessionOptions(o)
	if err != nil {
		return nil, err
	}
	defer so.Destroy()
	if err := e.useKernels(so, o); err != nil {
		return nil, err
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		cancelLoad(so)
		close(cancelled)
	})
	c, err := openSession(path, so)
	if !stop() {
		<-cancelled // so is destroyed below
	}
	if ctx.Err() != nil {
		if err == nil {
			releaseSession(c)
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, modelError(path, err)
	}
	s, err := newSession(c, path, o)
	if err != nil {
		releaseSession(c)
		return nil, err
	}
	return s, nil
}

func checkModelFile(path string) error {
	st, err := os.Stat(path)
	name := fileName(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s: %w", engine.ErrModel, name, fs.ErrNotExist)
	case err != nil:
		return fmt.Errorf("%w: %s cannot be read: %w", engine.ErrModel, name, bare(err))
	case !st.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file", engine.ErrModel, name)
	case st.Size() == 0:
		return fmt.Errorf("%w: %s is empty", engine.ErrModel, name)
	}
	return nil
}

// bare returns what is left of a file error without its path.
func bare(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// checkWritable returns an error unless a file can be created beside path:
// ONNX Runtime itself reports nothing, or only once the session has been made.
func checkWritable(what, path string) error {
	st, err := os.Stat(filepath.Dir(path))
	if err == nil && !st.IsDir() {
		err = errors.New("its parent is not a folder")
	}
	if err != nil {
		return fmt.Errorf("%s %s cannot be written: %w", what, filepath.Base(path), bare(err))
	}
	return nil
}

// sessionOptions translates o. Keys are those of ONNX Runtime's
// onnxruntime_session_options_config_keys.h.
//
// The memory arena keeps ONNX Runtime's defaults, one a session and grown by
// powers of two: a transformer run with lengths 8 to 512 took 124 MB and gave
// all back on Close, against 271 MB, kept, with an arena shared by sessions and
// grown by what is requested (lengths that rise leave a trail of blocks too
// small to use again), and 173 MB without an arena.
//
// Threads spin from the start of a run to its end and no longer
// (force_spinning_stop): ADR 0016.
func (e *Engine) sessionOptions(o engine.Options) (*ortgo.SessionOptions, error) {
	if o.Threads < 0 || o.Threads > MaxThreads {
		return nil, fmt.Errorf("%w: a session cannot have %d threads, expected 0 (shared) to %d", engine.ErrUnavailable, o.Threads, MaxThreads)
	}
	so, err := ortgo.NewSessionOptions()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	spin := "1"
	if e.noSpin {
		spin = "0"
	}
	level := ortgo.GraphOptimizationLevel(ortgo.GraphOptimizationLevelEnableAll)
	if o.DisableOptimization {
		level = ortgo.GraphOptimizationLevelDisableAll
	}
	set := []func() error{
		func() error { return so.SetGraphOptimizationLevel(level) },
		func() error { return so.SetExecutionMode(ortgo.ExecutionModeSequential) },
		func() error { return so.AddSessionConfigEntry("session.intra_op.allow_spinning", spin) },
		func() error { return so.AddSessionConfigEntry("session.force_spinning_stop", "1") },
		func() error { return so.AddSessionConfigEntry("session.inter_op.allow_spinning", "0") },
		func() error {
			return so.AddSessionConfigEntry("optimization.disable_specified_optimizers", slowFusions)
		},
		// Weights outside the arena: closing a session then returns them to the system.
		func() error {
			return so.AddSessionConfigEntry("session.use_device_allocator_for_initializers", "1")
		},
	}
	if o.Lean {
		set = append(set,
			func() error { return so.SetCpuMemArena(false) },
			func() error { return so.SetMemPattern(false) },
			func() error { return so.AddSessionConfigEntry("session.disable_prepacking", "1") })
	}
	if o.Threads > 0 {
		set = append(set,
			func() error { return so.SetIntraOpNumThreads(o.Threads) },
			func() error { return so.SetInterOpNumThreads(1) })
	} else {
		set = append(set, func() error { return shareThreads(so) })
	}
	if o.Profile != "" {
		set = append(set,
			func() error { return checkWritable("profile", o.Profile) },
			func() error { return so.EnableProfiling(o.Profile) })
	}
	if p := o.OptimizedModelPath; p != "" {
		set = append(set,
			func() error { return checkWritable("optimized model", p) },
			func() error { return so.SetOptimizedModelFilePath(p) },
			// A single file would fail past protobuf's 2 GiB.
			func() error {
				return so.AddSessionConfigEntry("session.optimized_model_external_initializers_file_name", filepath.Base(p)+".data")
			},
			func() error {
				return so.AddSessionConfigEntry("session.optimized_model_external_initializers_min_size_in_bytes",
					strconv.Itoa(optimizedInlineBytes))
			})
	}
	for _, f := range set {
		if err := f(); err != nil {
			return nil, errors.Join(fmt.Errorf("session options: %w", err), so.Destroy())
		}
	}
	return so, nil
}

// optimizedInlineBytes is the size from which OptimizedModelPath keeps a weight
// in the second file.
const optimizedInlineBytes = 1024
