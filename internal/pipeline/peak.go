package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
)

// Peak is the result of PeakOf.
type Peak struct {
	// Bytes is the largest resident size of the process.
	Bytes int64 `json:"peak_rss_bytes"`
	// Anonymous is the resident part without a file behind it, at the end.
	Anonymous int64 `json:"anonymous_bytes"`
}

const (
	// peakRuns is how many inferences PeakOf does: the first run allocates,
	// the second may allocate once more.
	peakRuns = 3
	// peakTimeout bounds a child of PeakInChild.
	peakTimeout = 5 * time.Minute
)

// PeakOf opens the model in this process, runs it a few times on synthetic
// inputs of fixed shape and returns the process's peak memory. The number
// means something only in a process that did nothing else: see PeakInChild.
func (p *Pipeline) PeakOf(ctx context.Context, path string) (Peak, error) {
	m, err := graph.Open(path)
	if err != nil {
		return Peak{}, err
	}
	feeds, err := Synthetic(m, Shape{})
	m.Close() // its mapped pages are not the engine's
	if err != nil {
		return Peak{}, err
	}
	if err := engine.ResetPeakMemory(); err != nil && !errors.Is(err, engine.ErrUnavailable) {
		return Peak{}, err
	}
	s, err := p.Engine.OpenFile(ctx, path, engine.Options{Threads: p.Threads})
	if err != nil {
		return Peak{}, err
	}
	defer s.Close()
	for range peakRuns {
		r, err := s.Run(ctx, feeds, nil)
		if err != nil {
			return Peak{}, err
		}
		r.Close()
	}
	mem, err := engine.ReadMemory()
	if err != nil {
		return Peak{}, err
	}
	return Peak{Bytes: mem.Peak, Anonymous: mem.Anon}, nil
}

// PeakInChild returns a function for Pipeline.PeakMemory that runs this
// program again with args and the model's path; the child prints a Peak as
// JSON. The child ends with ctx.
func PeakInChild(args ...string) func(ctx context.Context, path string) (int64, error) {
	return func(ctx context.Context, path string) (int64, error) {
		exe, err := os.Executable()
		if err != nil {
			return 0, fmt.Errorf("find this program: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, peakTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, exe, append(append([]string(nil), args...), path)...)
		cmd.Args[0] = filepath.Base(os.Args[0])
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			last := strings.TrimSpace(errs.String())
			return 0, fmt.Errorf("%w: %s", err, last[strings.LastIndexByte(last, '\n')+1:])
		}
		var p Peak
		if err := json.Unmarshal(out.Bytes(), &p); err != nil {
			return 0, fmt.Errorf("read the child's answer: %w", err)
		}
		return p.Bytes, nil
	}
}

// beside is work that goes on while the run does something else. nil is not begun.
type beside[T any] struct {
	stop  context.CancelFunc
	done  chan struct{}
	value T
	err   error
}

// begin begins f, which must return soon after ctx ends.
func begin[T any](ctx context.Context, f func(context.Context) (T, error)) *beside[T] {
	b := &beside[T]{done: make(chan struct{})}
	ctx, b.stop = context.WithCancel(ctx)
	go func() {
		defer close(b.done)
		b.value, b.err = f(ctx)
	}()
	return b
}

// wait returns what the work gave; of nil, nothing.
func (b *beside[T]) wait() (value T, err error) {
	if b == nil {
		return value, nil
	}
	<-b.done
	return b.value, b.err
}

// end ends the work, if it still goes on.
func (b *beside[T]) end() {
	if b != nil {
		b.stop()
		<-b.done
	}
}

// beginPeak begins to measure a model's peak memory, in a process of its own: what runs
// beside that process does not change it. Below a ceiling, which says that memory is
// scarce, nothing begins.
func (r *run) beginPeak(ctx context.Context, path string) *beside[int64] {
	if r.PeakMemory == nil || r.req.MaxMemory > 0 {
		return nil
	}
	return begin(ctx, func(ctx context.Context) (int64, error) { return r.PeakMemory(ctx, path) })
}

// measured returns what was begun, or measures now.
func (r *run) measured(ctx context.Context, path string, begun *beside[int64]) (int64, error) {
	if begun == nil {
		return r.PeakMemory(ctx, path)
	}
	return begun.wait()
}

// peaks puts both models' peak memory into the report.
func (r *run) peaks(ctx context.Context, path string, fp32, quant *beside[int64]) error {
	if r.PeakMemory == nil {
		return nil
	}
	if r.req.MaxMemory > 0 && !r.roomy {
		r.rep.Warnings = append(r.rep.Warnings, "the models' own peak memory was not measured: they do not fit below "+r.req.Words.maxMemory()+" as they are served")
		return nil
	}
	r.progress.say("measure memory", 0)
	var err error
	if r.rep.Memory.FP32Peak, err = r.measured(ctx, r.req.Model, fp32); err == nil {
		r.rep.Memory.QuantPeak, err = r.measured(ctx, path, quant)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.rep.Memory.FP32Peak, r.rep.Memory.QuantPeak = 0, 0
		r.rep.Warnings = append(r.rep.Warnings, "peak memory was not measured: "+bare.Error(err).Error())
	}
	return nil
}
