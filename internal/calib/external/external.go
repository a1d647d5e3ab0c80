// Package external chooses ranges with a program of the user's own: it gets a
// histogram on its standard input and answers with a range on its standard
// output, one line of JSON each (docs/calibrators.md). What it does wrong is an
// error that says what; it can neither hang a run nor fill its memory.
package external

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/calib"
)

// ErrCalibrator: the program cannot be run or breaks the protocol.
var ErrCalibrator = errors.New("external calibrator")

// Protocol is what both sides call the form of their lines.
const Protocol = "fewbit.calibrator/1"

const (
	// maxReply bounds a line of the program in bytes, maxComplaint what is kept of
	// its standard error.
	maxReply     = 4096
	maxComplaint = 4096
	maxShown     = 200 // characters of either in an error
	// Timeout is how long the program may take for one answer.
	Timeout = 30 * time.Second
	// endTimeout is how long it may take to end when its input has ended.
	endTimeout = 2 * time.Second
)

// Process is a running calibrator. It takes one histogram at a time; callers wait
// for each other.
type Process struct {
	name    string // for errors
	timeout time.Duration
	cmd     *exec.Cmd
	in      io.WriteCloser
	replies chan reply
	ended   chan struct{} // closed when the program has ended
	cancel  context.CancelFunc
	stderr  complaint

	mu    sync.Mutex
	asked int64 // questions
	fault error // after which nothing is asked any more
}

var _ calib.Thresholder = (*Process)(nil)

type reply struct {
	line []byte
	err  error
}

// Start runs the program with its arguments and exchanges greetings. It ends with
// ctx or Close. timeout 0 is Timeout.
func Start(ctx context.Context, argv []string, timeout time.Duration) (*Process, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("%w: no program is given", ErrCalibrator)
	}
	if timeout == 0 {
		timeout = Timeout
	}
	p := &Process{name: filepath.Base(argv[0]), timeout: timeout, replies: make(chan reply, 1), ended: make(chan struct{})}
	ctx, p.cancel = context.WithCancel(ctx)
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the user's own command
	p.cmd.WaitDelay = endTimeout                           // a child of the program may hold its output open
	p.cmd.Stderr = &p.stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		p.cancel()
		return nil, p.wrap(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		p.cancel()
		return nil, p.wrap(err)
	}
	p.in, p.cmd.Stdout = in, w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		p.cancel()
		out.Close()
		return nil, fmt.Errorf("%w: %s: it does not start: %w", ErrCalibrator, p.name, bare.Error(err))
	}
	go p.read(out)
	go func() {
		_ = p.cmd.Wait() // what it says is in ProcessState
		close(p.ended)
		// What it wrote last is there to be read; what a child of it holds open is not waited for.
		_ = out.SetReadDeadline(time.Now().Add(endTimeout))
	}()
	hello := greeting{Protocol}
	var back greeting
	if err := p.ask(func(int64) any { return hello }, &back); err != nil {
		_ = p.Close() // the greeting's error says more
		return nil, err
	}
	if back.Protocol != Protocol {
		_ = p.Close()
		return nil, fmt.Errorf("%w: %s: it speaks %q, expected {\"calibrator\":%q} as its first line", ErrCalibrator, p.name, shown(back.Protocol), Protocol)
	}
	return p, nil
}

type greeting struct {
	Protocol string `json:"calibrator"`
}

// request is what the program gets for one tensor.
type request struct {
	// ID is the answer's too: a line too many is not taken for the next answer.
	ID int64 `json:"id"`
	// Type of the codes, their smallest and largest, and whether the range is to be
	// centred on zero.
	Type      string `json:"type"`
	CodeLo    int32  `json:"code_lo"`
	CodeHi    int32  `json:"code_hi"`
	Symmetric bool   `json:"symmetric"`
	// Min and Max were observed. Cells are [lo, hi, count], ascending: values
	// lie in [lo, hi).
	Min   float32      `json:"min"`
	Max   float32      `json:"max"`
	Cells [][3]float64 `json:"cells"`
}

// answer is what it gives.
type answer struct {
	ID    int64    `json:"id"`
	Lo    *float64 `json:"lo"`
	Hi    *float64 `json:"hi"`
	Error string   `json:"error"`
}

// Threshold implements calib.Thresholder. The range is extended to zero and cut
// to what was observed.
func (p *Process) Threshold(h *calib.Histogram, s calib.Scheme) (calib.Range, error) {
	seen, err := calib.Builtin()[calib.MethodMinMax].Threshold(h, s) // and whether there is anything
	if err != nil {
		return calib.Range{}, err
	}
	observed, _ := h.MinMax()
	lo, hi := s.Codes()
	q := request{Type: s.Type.String(), CodeLo: lo, CodeHi: hi, Symmetric: s.Symmetric, Min: observed.Lo, Max: observed.Hi}
	for _, c := range h.Cells() {
		q.Cells = append(q.Cells, [3]float64{c.Lo, c.Hi, float64(c.Count)})
	}
	var a answer
	if err := p.ask(func(id int64) any { q.ID = id; return q }, &a); err != nil {
		return calib.Range{}, err
	}
	switch {
	case a.ID != q.ID:
		return calib.Range{}, p.fail(fmt.Errorf("%w: %s: the answer to question %d has id %d", ErrCalibrator, p.name, q.ID, a.ID))
	case a.Error != "":
		return calib.Range{}, fmt.Errorf("%w: %s: %s", ErrCalibrator, p.name, shown(a.Error))
	case a.Lo == nil || a.Hi == nil:
		return calib.Range{}, fmt.Errorf("%w: %s: its answer has no lo or no hi, expected {\"lo\":-1.5,\"hi\":2}", ErrCalibrator, p.name)
	case math.IsInf(*a.Lo, 0) || math.IsInf(*a.Hi, 0) || !(*a.Lo <= *a.Hi):
		return calib.Range{}, fmt.Errorf("%w: %s: the range %g to %g is none", ErrCalibrator, p.name, *a.Lo, *a.Hi)
	}
	r := calib.Range{Lo: float32(math.Max(*a.Lo, float64(seen.Lo))), Hi: float32(math.Min(*a.Hi, float64(seen.Hi)))}.WithZero()
	if r.Lo == 0 && r.Hi == 0 && (seen.Lo != 0 || seen.Hi != 0) {
		return calib.Range{}, fmt.Errorf("%w: %s: the range %g to %g leaves nothing of %g to %g", ErrCalibrator, p.name, *a.Lo, *a.Hi, seen.Lo, seen.Hi)
	}
	return r, nil
}

// ask writes one line and reads one. After an error nothing more is asked: what
// the program would answer could belong to an earlier question.
func (p *Process) ask(q func(id int64) any, a any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil {
		return p.fault
	}
	p.asked++
	if err := p.exchange(q(p.asked-1), a); err != nil {
		p.fault = err
		p.cancel()
		return err
	}
	return nil
}

// fail notes what ends the conversation.
func (p *Process) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = err
	p.cancel()
	return err
}

func (p *Process) exchange(q, a any) error {
	b, err := json.Marshal(q)
	if err != nil {
		return p.wrap(err)
	}
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	go func() { // a program that does not read must not block
		_, _ = p.in.Write(append(b, '\n')) // one that has ended has no answer either
	}()
	select {
	case r, open := <-p.replies:
		switch {
		case !open:
			return p.died()
		case r.err != nil:
			return fmt.Errorf("%w: %s: a line of its answer is longer than %d bytes", ErrCalibrator, p.name, maxReply)
		}
		if err := json.Unmarshal(r.line, a); err != nil {
			return fmt.Errorf("%w: %s: expected one line of JSON, got %q", ErrCalibrator, p.name, shown(string(r.line)))
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%w: %s: no answer within %v", ErrCalibrator, p.name, p.timeout)
	}
}

// read passes the program's lines on until it ends.
func (p *Process) read(out *os.File) {
	defer out.Close()
	lines := bufio.NewReaderSize(out, maxReply)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		r := reply{line: append([]byte(nil), line...)}
		if err != nil {
			r.err = err
		}
		p.replies <- r
		if err != nil {
			break
		}
	}
	close(p.replies)
}

// died words the end of the program.
func (p *Process) died() error {
	select {
	case <-p.ended:
	case <-time.After(endTimeout):
		return fmt.Errorf("%w: %s: it closed its input or output before it answered", ErrCalibrator, p.name)
	}
	last := p.stderr.last()
	if last != "" {
		last = ": " + last
	}
	return fmt.Errorf("%w: %s ended before it answered (%v)%s", ErrCalibrator, p.name, p.cmd.ProcessState, last)
}

func (p *Process) wrap(err error) error {
	return fmt.Errorf("%w: %s: %w", ErrCalibrator, p.name, bare.Error(err))
}

// Close ends the program: first its input, then, if it stays, itself.
func (p *Process) Close() error {
	_ = p.in.Close() // it may be closed already
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	defer p.cancel()
	for {
		select {
		case _, open := <-p.replies:
			if !open {
				return nil
			}
		case <-timer.C:
			p.cancel()
			timer.Reset(time.Hour) // it is killed, and ends
		}
	}
}

// complaint keeps the end of what a program writes to its standard error.
type complaint struct {
	mu sync.Mutex
	b  []byte
}

func (c *complaint) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b = append(c.b, b[max(0, len(b)-maxComplaint):]...)
	c.b = c.b[max(0, len(c.b)-maxComplaint):]
	return len(b), nil
}

// last returns the last line.
func (c *complaint) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.TrimSpace(string(c.b))
	return shown(s[strings.LastIndexByte(s, '\n')+1:])
}

// shown makes text of the program safe to show.
func shown(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.TrimSpace(s))
	if r := []rune(s); len(r) > maxShown {
		s = string(r[:maxShown]) + "…"
	}
	return s
}
