// Package native opens models in the native form (docs/ops.md) with fewbit's
// kernels for the CPU: what stands in the file as a few operators with bodies
// of standard ones becomes one operator of libfewbit_cpu for each projection, and
// one for all layers of an encoder.
// Other models, and all where the library is missing, open as they are.
package native

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/ops"
)

// Engine is ONNX Runtime with the native form.
type Engine struct {
	*ort.Engine
	scratch string
}

var _ engine.Engine = (*Engine)(nil)

// New wraps e. Rewritten models lie in a folder of scratch ("" is the system's)
// while they are opened.
func New(e *ort.Engine, scratch string) *Engine { return &Engine{Engine: e, scratch: scratch} }

// OpenFile implements engine.Engine. What cannot be rewritten runs as the file
// says it.
func (e *Engine) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	if o.DisableOptimization {
		return e.Engine.OpenFile(ctx, path, o)
	}
	ready, why := e.Int8()
	if ready && o.Prepared != "" {
		if s := e.openPrepared(ctx, path, o); s != nil {
			return s, nil
		}
	}
	m, err := graph.Open(path)
	if err != nil {
		return e.Engine.OpenFile(ctx, path, o) // whose error says what is wrong
	}
	defer m.Close()
	if made := m.Metadata[metaPacked]; made != "" {
		if err := e.fits(made); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", engine.ErrModel, filepath.Base(path), err)
		}
		return e.Engine.OpenFile(ctx, path, o)
	}
	if !isNative(m) {
		return e.Engine.OpenFile(ctx, path, o)
	}
	if !ready {
		return e.openBodies(ctx, path, o, why)
	}
	threads := cmp.Or(o.Threads, e.Threads())
	if o.Prepared != "" {
		if s := e.prepare(ctx, m, path, o, threads); s != nil || ctx.Err() != nil {
			return s, ctx.Err()
		}
	}
	l := lowering{m: m, e: e.Engine, threads: threads}
	defer l.free()
	if n, err := l.run(ctx); err != nil || n == 0 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return e.Engine.OpenFile(ctx, path, o)
	}
	dir, err := os.MkdirTemp(e.scratch, ".fewbit-native-")
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", bare.Error(err))
	}
	defer os.RemoveAll(dir) // the engine maps what it needs
	// The model's own name, for errors.
	file := filepath.Join(dir, filepath.Base(path))
	if err := m.Save(file, onnx.SaveOptions{External: true, Scratch: true}); err != nil {
		return nil, err
	}
	l.free()
	m.Unload()
	return e.Engine.OpenFile(ctx, file, o)
}

// isNative reports whether m has the functions of docs/ops.md.
func isNative(m *graph.Model) bool {
	return m.Function(ops.Domain, ops.OpMatMulQuantized) != nil && ops.Verify(m) == nil
}

// openBodies opens a native model as the functions in its file, for lack of
// kernels.
func (e *Engine) openBodies(ctx context.Context, path string, o engine.Options, why string) (engine.Session, error) {
	s, err := e.Open(ctx, path, o)
	if err != nil {
		return nil, err
	}
	return &bodies{Session: s, since: time.Now(),
		reason: "it is made for fewbit's kernels and runs without them, several times slower: " + why}, nil
}

// bodies is a native model without kernels: right, and slow.
type bodies struct {
	*ort.Session
	reason   string
	since    time.Time
	requests atomic.Uint64
}

var _ engine.Placed = (*bodies)(nil)

// Placement implements engine.Placed: the reason is why there are no kernels.
func (b *bodies) Placement() engine.Placement {
	return engine.Placement{Engine: ort.Name, Reason: b.reason, Since: b.since, CPU: b.requests.Load()}
}

// Run implements engine.Session.
func (b *bodies) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	r, err := b.Session.Run(ctx, in, outs)
	if err == nil {
		b.requests.Add(uint64(engine.Requests(ctx)))
	}
	return r, err
}

func alloc(bytes int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("%w: %d bytes for a packed weight: %w", engine.ErrMemory, bytes, err)
	}
	return b, nil
}
