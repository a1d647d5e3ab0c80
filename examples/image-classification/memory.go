package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
)

const (
	// sampleEvery is how often the memory of the process is read.
	sampleEvery = 20 * time.Millisecond
	// tracePoints are kept of it at most; more are thinned to the largest of neighbours.
	tracePoints = 120
)

// made is a quantization within the limit.
type made struct {
	Seconds float64 `json:"seconds"`
	PeakMB  float64 `json:"peak_mb"` // as the kernel counted it
	Phases  []phase `json:"phases"`
	Trace   []point `json:"trace"`
}

// phase is one that the command said it was in, and the most memory seen then.
type phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	PeakMB  float64 `json:"peak_mb"`
}

type point struct {
	Seconds    float64 `json:"seconds"`
	ResidentMB float64 `json:"resident_mb"`
}

// limited runs fewbit in a process that is killed when its resident memory passes
// the limit, as on a device of that size; this needs no rights. With c.rlimit the
// kernel limits it as well: RLIMIT_DATA (getrlimit(2)) counts all that a process
// may write, touched or not, so that it also counts what arenas reserve ahead.
func (c config) limited(ctx context.Context, args []string) (made, error) {
	cmd := exec.CommandContext(ctx, c.fewbit, args...)
	if c.rlimit {
		shell := []string{"-c", `ulimit -d "$1" && shift && exec "$@"`, "sh", strconv.FormatInt(c.limit>>10, 10), c.fewbit}
		cmd = exec.CommandContext(ctx, "sh", append(shell, args...)...)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return made{}, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return made{}, err
	}
	w := &watch{start: start, now: phase{Name: "start"}}
	var passed error // set before stopped closes
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		if mb := w.sample(cmd.Process.Pid, float64(c.limit)/1e6, stop); mb > 0 {
			passed = fmt.Errorf("quantizing took %.0f MB in phase %q, %.0f MB are allowed; give fewer -samples, or a higher -limit-mb", mb, w.phase(), float64(c.limit)/1e6)
			_ = cmd.Process.Kill()
		}
	}()
	said := w.read(stderr)
	err = cmd.Wait()
	close(stop)
	<-stopped
	if passed != nil {
		return made{}, passed
	}
	if err != nil {
		return made{}, failure(ctx, args[0], err, said)
	}
	m := made{Seconds: time.Since(start).Seconds(), Phases: w.ended(), Trace: thin(w.trace, tracePoints)}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.PeakMB = float64(u.Maxrss) * 1024 / 1e6
	}
	return m, nil
}

// watch follows a process.
type watch struct {
	mu    sync.Mutex
	start time.Time
	now   phase
	since time.Duration
	done  []phase
	trace []point
}

// progressLine is what fewbit prints of a phase: "calibrate", "evaluate 40 %, 3s left".
var progressLine = regexp.MustCompile(`^([a-z][a-z -]*?)(?: \d+ %.*)?$`)

// read follows the phases until the process closes its end, and returns what it
// said.
func (w *watch) read(r io.Reader) []byte {
	var said bytes.Buffer
	lines := bufio.NewScanner(io.TeeReader(r, &said))
	for lines.Scan() {
		m := progressLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		w.mu.Lock()
		if m[1] != w.now.Name {
			w.turn(phase{Name: m[1]})
		}
		w.mu.Unlock()
	}
	return said.Bytes()
}

// turn ends the phase and begins the next.
func (w *watch) turn(next phase) {
	at := time.Since(w.start)
	w.now.Seconds = (at - w.since).Seconds()
	w.done, w.now, w.since = append(w.done, w.now), next, at
}

func (w *watch) ended() []phase {
	w.turn(phase{})
	return w.done
}

func (w *watch) phase() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now.Name
}

// sample follows the memory until it is stopped, or passes most, which it then
// returns.
func (w *watch) sample(pid int, most float64, stop <-chan struct{}) float64 {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		if mb := float64(harness.Resident(pid)) / 1e6; mb > 0 {
			w.mu.Lock()
			w.now.PeakMB = max(w.now.PeakMB, mb)
			w.trace = append(w.trace, point{time.Since(w.start).Seconds(), mb})
			w.mu.Unlock()
			if mb > most {
				return mb
			}
		}
		select {
		case <-stop:
			return 0
		case <-tick.C:
		}
	}
}

// thin keeps the largest of each run of neighbours.
func thin(all []point, most int) []point {
	if len(all) <= most {
		return all
	}
	var kept []point
	for i := range most {
		best := all[i*len(all)/most]
		for _, p := range all[i*len(all)/most : (i+1)*len(all)/most] {
			if p.ResidentMB > best.ResidentMB {
				best = p
			}
		}
		kept = append(kept, best)
	}
	return kept
}
