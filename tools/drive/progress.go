package drive

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
)

// lineEvery is how often progress prints a line where it cannot redraw one.
const lineEvery = 5 * time.Second

// Progress shows a job's status: one redrawn line on a terminal, a line now
// and then elsewhere.
type Progress struct {
	out      io.Writer
	terminal bool
	start    time.Time
	last     time.Time
	phase    string
}

// NewProgress shows on out.
func NewProgress(out io.Writer) *Progress {
	f, ok := out.(*os.File)
	if ok {
		st, err := f.Stat()
		ok = err == nil && st.Mode()&os.ModeCharDevice != 0
	}
	return &Progress{out: out, terminal: ok, start: time.Now()}
}

// Show shows one status.
func (p *Progress) Show(s jobs.Status) {
	eta := ""
	if s.ETASeconds != nil {
		eta = fmt.Sprintf(", about %.0f s left", *s.ETASeconds)
	}
	line := fmt.Sprintf("    %3.0f %% %s (%s, %.0f s%s)", 100*s.Progress, s.Phase, s.Status, time.Since(p.start).Seconds(), eta)
	switch {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	case s.Phase != p.phase || s.Status.Final() || time.Since(p.last) > lineEvery:
		fmt.Fprintln(p.out, line)
		p.last, p.phase = time.Now(), s.Phase
	}
}

// Done ends the line.
func (p *Progress) Done() {
	if p.terminal {
		fmt.Fprintln(p.out)
	}
}
