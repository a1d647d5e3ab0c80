package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// Limits of trace files.
const (
	// MaxFile bounds a file. Past it, a file without log_frequency takes no more
	// requests, one with it is followed by the next.
	MaxFile = 256 << 20
	// MaxFiles is how many numbered files are kept; the oldest are removed.
	MaxFiles = 16
	// maxLanes bounds the requests shown at a time.
	maxLanes = 4096
)

// Requests are written after flushAfter, or from flushFrom bytes on: a process
// that is killed loses no more.
const (
	flushAfter = 500 * time.Millisecond
	flushFrom  = 64 << 10
)

// closing ends the JSON. Each write puts the next events over the one before and
// it again behind them, so that the file on disk is whole after any of them.
const closing = "\n]\n"

// file is one trace in the Trace Event Format (JSON array form), which
// ui.perfetto.dev and chrome://tracing open. Requests that overlap are on lanes
// (threads, in the format's words) of their own, with their phases below them.
type file struct {
	root    *os.Root
	name    string
	process string
	log     *slog.Logger

	mu     sync.Mutex // guards what follows
	every  int64      // requests in a numbered file; 0: one file for all
	f      *os.File
	path   string    // its name, with a number where they are numbered
	opened time.Time // ts 0
	end    int64     // where the next events go
	buf    []byte
	flush  *time.Timer
	lanes  []bool // taken
	named  int    // lanes that have their name in the file
	number int    // of the file, with every
	count  int64  // requests in it
	done   bool   // full, broken or closed
}

func (f *file) fileName(n int) string {
	if f.every == 0 {
		return f.name
	}
	return f.name + "." + strconv.Itoa(n)
}

// reuse lets other settings write the file too; false when it takes no more. The
// newest number of requests in a file counts, from the next file on.
func (f *file) reuse(every int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.every = every
	return !f.done
}

// begin starts the file, or the next numbered one. f.mu is held, or f is not
// shared yet.
func (f *file) begin() error {
	f.path = f.fileName(f.number)
	out, err := f.root.OpenFile(f.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("trace file: %w", err)
	}
	f.f, f.opened, f.end, f.named, f.count = out, time.Now(), 0, 0, 0
	pid := os.Getpid()
	b := fmt.Appendf(f.buf[:0], "[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{\"name\":%s}}", pid, quoted(f.process))
	b = fmt.Appendf(b, ",\n{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":%d,\"args\":{\"labels\":\"began %s\"}}", pid, f.opened.UTC().Format(time.RFC3339Nano))
	f.buf = b
	return f.push()
}

// enter takes a lane for a request; false when the file takes no more.
func (f *file) enter() (lane int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return 0, false
	}
	for lane < len(f.lanes) && f.lanes[lane] {
		lane++
	}
	if lane == maxLanes {
		return 0, false
	}
	if lane == len(f.lanes) {
		f.lanes = append(f.lanes, false)
	}
	f.lanes[lane] = true
	return lane, true
}

// write adds an ended request and frees its lane.
func (f *file) write(r *Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lanes[r.lane] = false
	if f.done {
		return
	}
	if f.every > 0 && f.count >= f.every || f.end+int64(len(f.buf)) > MaxFile-flushFrom {
		if err := f.turn(); err != nil {
			f.giveUp(err)
			return
		}
	}
	f.count++
	pid := os.Getpid()
	for ; f.named <= r.lane; f.named++ {
		f.buf = fmt.Appendf(f.buf, ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":\"requests %d\"}}", pid, f.named+1, f.named+1)
	}
	f.span(pid, r.lane+1, "request "+r.model, r.origin.Arrival, r.end)
	b := append(f.buf, `,"args":{"model":`...)
	b = append(b, quoted(r.model)...)
	b = append(b, `,"version":`...)
	b = append(b, quoted(r.version)...)
	b = append(b, `,"request_id":`...)
	b = append(b, quoted(r.origin.ID)...)
	if id := parentOf(r.origin.Header).TraceID(); id.IsValid() {
		b = append(b, `,"trace_id":"`+id.String()+`"`...)
	}
	b = fmt.Appendf(b, `,"rows":%d,"batch":%d`, r.outcome.Rows, r.outcome.Batch)
	if r.outcome.Failure != "" {
		b = append(b, `,"failure":`...)
		b = append(b, quoted(r.outcome.Failure)...)
	}
	f.buf = append(b, "}}"...)
	r.phases(func(p telemetry.Phase, from, to time.Time) {
		f.span(pid, r.lane+1, p.String(), from, to)
		f.buf = append(f.buf, '}')
	})
	switch {
	case len(f.buf) >= flushFrom:
		f.pushOrGiveUp()
	case f.flush == nil:
		f.flush = time.AfterFunc(flushAfter, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.flush = nil
			f.pushOrGiveUp()
		})
	}
}

// span begins the object of a range of time (ph X, microseconds).
func (f *file) span(pid, tid int, name string, from, to time.Time) {
	us := func(d time.Duration) []byte {
		return strconv.AppendFloat(nil, float64(max(d, 0))/float64(time.Microsecond), 'f', 3, 64)
	}
	f.buf = fmt.Appendf(f.buf, ",\n{\"ph\":\"X\",\"cat\":\"fewbit\",\"name\":%s,\"pid\":%d,\"tid\":%d,\"ts\":%s,\"dur\":%s",
		quoted(name), pid, tid, us(from.Sub(f.opened)), us(to.Sub(from)))
}

var errFull = errors.New("it has reached its largest size")

// turn goes on to the next numbered file.
func (f *file) turn() error {
	if err := f.push(); err != nil {
		return err
	}
	if f.every == 0 {
		return errFull
	}
	if err := f.f.Close(); err != nil {
		return err
	}
	f.number++
	if old := f.number - MaxFiles; old >= 0 {
		_ = f.root.Remove(f.fileName(old)) // somebody may have taken it away
	}
	return f.begin()
}

// push writes what is buffered, in one call.
func (f *file) push() error {
	if f.done || len(f.buf) == 0 {
		return nil
	}
	n := int64(len(f.buf))
	f.buf = append(f.buf, closing...)
	_, err := f.f.WriteAt(f.buf, f.end)
	f.end += n
	f.buf = f.buf[:0]
	return err
}

func (f *file) pushOrGiveUp() {
	if err := f.push(); err != nil {
		f.giveUp(err)
	}
}

// sync writes what is buffered and returns where the events of the named file end,
// -1 when it is not the one being written.
func (f *file) sync(name string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done || name != f.path {
		return -1
	}
	f.pushOrGiveUp()
	return f.end
}

// giveUp ends a file that cannot be written. f.mu is held.
func (f *file) giveUp(err error) {
	f.log.Warn("a trace file takes no more requests", "file", f.path, "reason", err)
	f.stop()
}

func (f *file) stop() {
	if f.flush != nil {
		f.flush.Stop()
		f.flush = nil
	}
	f.done, f.buf = true, nil
	_ = f.f.Close()
	_ = f.root.Close()
}

// close completes the file.
func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return nil
	}
	err := f.push()
	f.stop()
	return err
}

// quoted is a JSON string.
func quoted(s string) string {
	b, _ := json.Marshal(s) // strings always encode
	return string(b)
}
