package access

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/fewbit/fewbit/internal/bare"
)

// An audit file is renamed when it has so many megabytes; so many old ones are
// kept beside it.
const (
	AuditFileMB = 16
	AuditFiles  = 8
)

// maxAuditText bounds what a client puts into an entry, in bytes.
const maxAuditText = 512

// Event is an administrator's call, answered or refused.
type Event struct {
	Time   time.Time `json:"time"`
	Who    string    `json:"who"`  // name of the key; "" for none
	From   string    `json:"from"` // address of the connection
	Cert   string    `json:"cert,omitempty"`
	Method string    `json:"method"` // HTTP method, or gRPC
	Path   string    `json:"path"`   // without the query
	Status int       `json:"status"` // HTTP status, of gRPC the one that stands for its code
	Error  string    `json:"error,omitempty"`
	TookMS float64   `json:"took_ms"`
}

// Audit writes events down. Nil writes none.
type Audit struct {
	mu   sync.Mutex
	out  io.WriteCloser // JSON lines; nil: to log
	log  *slog.Logger
	base string
}

// OpenAudit appends events to the file at path, one JSON object a line, and
// rotates it.
func OpenAudit(path string) (*Audit, error) {
	// The library opens it at the first event: a wrong path must show now.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
	}
	return &Audit{out: &lumberjack.Logger{Filename: path, MaxSize: AuditFileMB, MaxBackups: AuditFiles}, base: filepath.Base(path)}, nil
}

// LogAudit writes events to a log: those that change something, and refusals.
// What is only read would bury the rest of it.
func LogAudit(log *slog.Logger) *Audit { return &Audit{log: log} }

// Record writes an event down.
func (a *Audit) Record(e Event) error {
	if a == nil {
		return nil
	}
	e.Path, e.Error, e.Cert = clip(e.Path), clip(e.Error), clip(e.Cert)
	if a.out == nil {
		if (e.Method == "GET" || e.Method == "HEAD") && e.Status < 400 {
			return nil
		}
		a.log.Info("admin call", "who", e.Who, "from", e.From, "cert", e.Cert, "method", e.Method, "path", e.Path, "status", e.Status, "error", e.Error, "took_ms", e.TookMS)
		return nil
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.out.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("audit log %s: %w", a.base, bare.Error(err))
	}
	return nil
}

// Close closes the file.
func (a *Audit) Close() error {
	if a == nil || a.out == nil {
		return nil
	}
	return a.out.Close()
}

func clip(s string) string {
	if len(s) <= maxAuditText {
		return s
	}
	return s[:maxAuditText] + "..."
}
