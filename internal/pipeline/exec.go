// Package pipeline strings the parts together: prepare a model, calibrate it,
// choose, rewrite, judge, publish. The command line and the server's jobs both
// run what is here.
package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Lab runs models that exist only in memory: it writes them to a scratch
// folder and opens them with an engine. Close removes the folder.
type Lab struct {
	Engine  engine.Engine
	Threads int
	// Device calibrates; nil leaves it to Engine.
	Device Device
	// Precision with which Engine calibrates.
	Precision Precision

	limits  *limits // under a ceiling
	release func()  // under a ceiling: lets go of mapped weights
	dir     *scratchDir
	next    atomic.Int64
	cpus    int // engine.AvailableCPUs, once asked for
	mu      sync.Mutex
	kernels map[string]engine.Session
	rows    sync.Pool // *[]float64 of SubProduct
	packed  sync.Pool // *[]byte of AddGram
}

// NewLab makes the scratch folder inside parent ("" is the system's).
func NewLab(e engine.Engine, threads int, parent string) (*Lab, error) {
	dir, err := newScratch(parent, labPrefix)
	if err != nil && parent == "" {
		return nil, fmt.Errorf("make a scratch folder in the folder for temporary files: %w; name another one in TMPDIR", err)
	}
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	return &Lab{Engine: e, Threads: threads, dir: dir}, nil
}

// threads is Threads, or one a processor. Who asks for each product does not read the
// control groups each time.
func (l *Lab) threads() int {
	if l.Threads > 0 {
		return l.Threads
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cpus == 0 {
		l.cpus = engine.AvailableCPUs()
	}
	return l.cpus
}

// Close ends the sessions that the lab itself holds and removes its folder.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.kernels {
		s.Close()
	}
	l.kernels = nil
	return l.dir.remove()
}

// inlineMax is the size up to which a scratch model is one file; larger ones
// keep their weights in a second file, which the engine maps instead of copying.
const inlineMax = 64 << 20

// Open opens m with the inner tensors named in taps as additional outputs, in parts
// where its weights do not fit below the ceiling. The files are removed as soon as the
// engine has them.
func (l *Lab) Open(ctx context.Context, m *graph.Model, taps []string, o engine.Options) (engine.Session, error) {
	if s, err := l.openParts(ctx, m, taps, o); s != nil || err != nil {
		return s, err
	}
	return l.openWhole(ctx, m, taps, o)
}

// openWhole opens m as one session.
func (l *Lab) openWhole(ctx context.Context, m *graph.Model, taps []string, o engine.Options) (s engine.Session, err error) {
	if o.Threads == 0 {
		o.Threads = l.Threads
	}
	o.Lean = o.Lean || l.limits != nil
	err = l.withFile(m, taps, func(path string) (err error) {
		s, err = l.Engine.OpenFile(ctx, path, o)
		return err
	})
	return s, err
}

// withFile has f open m, with taps as additional outputs, from a file.
func (l *Lab) withFile(m *graph.Model, taps []string, f func(path string) error) error {
	path := filepath.Join(l.dir.path, fmt.Sprintf("m%d.onnx", l.next.Add(1)))
	defer os.Remove(path)
	defer os.Remove(path + ".data")
	large := weightBytes(m) > inlineMax || l.limits != nil
	o := onnx.SaveOptions{External: large, Scratch: true}
	if l.release != nil {
		o.Release = func() { // m may be a map of its own
			m.Unload()
			l.release()
		}
	}
	if err := Tapped(m, taps).Save(path, o); err != nil {
		return err
	}
	if large {
		m.Unload() // whoever opens it gets its own copy
	}
	return unnamed(f(path), filepath.Base(path))
}

// unnamed takes the name of a scratch file, which nobody else has heard of, out of err.
func unnamed(err error, file string) error {
	if err == nil || !strings.Contains(err.Error(), file) {
		return err
	}
	return &renamed{err, strings.ReplaceAll(strings.ReplaceAll(err.Error(), file+": ", ""), file, "the model")}
}

type renamed struct {
	err  error
	text string
}

func (r *renamed) Error() string { return r.text }
func (r *renamed) Unwrap() error { return r.err }

// Tapped returns a view of m with more outputs. It shares everything else.
func Tapped(m *graph.Model, taps []string) *graph.Model {
	c := *m
	g := *m.Graph
	have := map[string]bool{}
	for _, v := range g.Outputs {
		have[v.Name] = true
	}
	g.Outputs = append([]*graph.Value(nil), g.Outputs...)
	for _, t := range taps {
		if !have[t] {
			have[t] = true
			v := &graph.Value{Name: t, Type: tensor.Float32}
			if i := g.Info[t]; i != nil && i.Type != tensor.Undefined {
				v.Type = i.Type
			}
			g.Outputs = append(g.Outputs, v)
		}
	}
	c.Graph = &g
	return &c
}

func weightBytes(m *graph.Model) (n int64) {
	for _, name := range m.Graph.Inits() {
		n += int64(len(m.Graph.Init(name).Data))
	}
	return n
}
