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

// peak is one model's peak memory, measured in a process of its own while the run goes
// on: what runs beside that process does not change it. nil is not begun.
type peak struct {
	stop  context.CancelFunc
	done  chan struct{}
	bytes int64
	err   error
}

// beginPeak begins to measure a model. Below a ceiling, which says that memory is
// scarce, nothing begins.
func (r *run) beginPeak(ctx context.Context, path string) *peak {
	if r.PeakMemory == nil || r.req.MaxMemory > 0 {
		return nil
	}
	p := &peak{done: make(chan struct{})}
	ctx, p.stop = context.WithCancel(ctx)
	go func() {
		defer close(p.done)
		p.bytes, p.err = r.PeakMemory(ctx, path)
	}()
	return p
}

// wait returns when the model is measured.
func (p *peak) wait() {
	if p != nil {
		<-p.done
	}
}

// end ends the measurement, if it still goes on.
func (p *peak) end() {
	if p != nil {
		p.stop()
		<-p.done
	}
}

// measured returns what was begun, or measures now.
func (r *run) measured(ctx context.Context, path string, begun *peak) (int64, error) {
	if begun == nil {
		return r.PeakMemory(ctx, path)
	}
	begun.wait()
	return begun.bytes, begun.err
}

// peaks puts both models' peak memory into the report.
func (r *run) peaks(ctx context.Context, path string, fp32, quant *peak) error {
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
		r.rep.Warnings = append(r.rep.Warnings, "peak memory was not measured: "+err.Error())
	}
	return nil
}
