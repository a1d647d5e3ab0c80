package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/pipeline"
)

const (
	barWidth      = 24
	barInterval   = 100 * time.Millisecond
	plainInterval = 2 * time.Second
	// plainDelay keeps short commands, and those that fail at once, to the one
	// line that matters.
	plainDelay = time.Second
)

// meter shows progress on standard error: a bar on a terminal, plain lines
// otherwise, one a phase and one every two seconds once a second has passed.
type meter struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	phase    string
	frac     float64
	begin    time.Time // of the command
	start    time.Time // of the phase
	last     time.Time // something was shown
	open     bool      // a bar stands on the terminal's line
	now      func() time.Time
	timer    *time.Timer // prints what runs when plainDelay is over
}

func newMeter() *meter {
	m := &meter{w: os.Stderr, terminal: isTerminal(os.Stderr), now: time.Now, begin: time.Now()}
	if !m.terminal {
		m.timer = time.AfterFunc(plainDelay, m.late)
	}
	return m
}

// late prints the phase that runs when the delay ends.
func (m *meter) late() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != "" && m.last.IsZero() {
		m.plain(m.now())
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

var _ pipeline.Progress = (*meter)(nil).show

// show is the pipeline's progress callback.
func (m *meter) show(phase string, frac float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	changed := phase != m.phase
	if changed {
		m.clear()
		m.phase, m.start = phase, now
	}
	frac = min(max(frac, 0), 1)
	m.frac = frac
	if m.terminal {
		if !changed && frac < 1 && now.Sub(m.last) < barInterval {
			return
		}
		m.last = now
		full := int(frac * barWidth)
		fmt.Fprintf(m.w, "\r\x1b[K%-18s [%s%s] %3.0f %%%s", phase, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*frac, m.left(now, frac))
		m.open = true
		return
	}
	if now.Sub(m.begin) >= plainDelay && (changed || now.Sub(m.last) >= plainInterval) {
		m.plain(now)
	}
}

func (m *meter) plain(now time.Time) {
	m.last = now
	if m.frac == 0 {
		fmt.Fprintf(m.w, "%s\n", m.phase)
		return
	}
	fmt.Fprintf(m.w, "%s %.0f %%%s\n", m.phase, 100*m.frac, m.left(now, m.frac))
}

// left estimates what remains of the phase, once that means something.
func (m *meter) left(now time.Time, frac float64) string {
	gone := now.Sub(m.start)
	if frac < 0.05 || frac >= 1 || gone < time.Second {
		return ""
	}
	return fmt.Sprintf(", %v left", time.Duration(float64(gone)*(1-frac)/frac).Round(time.Second))
}

// line shows a line of text that stays.
func (m *meter) line(format string, a ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	fmt.Fprintf(m.w, format+"\n", a...)
}

// done removes the bar.
func (m *meter) done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	m.phase = ""
	if m.timer != nil {
		m.timer.Stop()
	}
}

func (m *meter) clear() {
	if m.open {
		fmt.Fprint(m.w, "\r\x1b[K")
		m.open = false
	}
}
