package logs

import (
	"io"
	"sync"
)

// line lets the two forms share one writer: each writes a whole line at a time,
// under a lock of its own.
type line struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
