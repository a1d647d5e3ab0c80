package http

import (
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/telemetry"
	"github.com/fewbit/fewbit/internal/trace"
)

// Lines about slow requests: so many at once, and then one in so long.
const (
	slowBurst = 10
	slowEvery = time.Second
)

// originOf is what is known of a request before its model is.
func originOf(c *gin.Context) trace.Origin {
	p := progressOf(c)
	return trace.Origin{Arrival: p.arrival, ID: p.id, Header: c.Request.Header}
}

// RequestID is the id of a request in the log: the client's own, the values of its
// header X-Request-Id, when that is one of printable characters, else a new one.
func RequestID(values []string) string {
	if len(values) == 1 && plainID(values[0]) {
		return values[0]
	}
	return strconv.FormatUint(rand.Uint64(), 16)
}

func plainID(id string) bool {
	if id == "" || len(id) > MaxLogID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// logRequest has a line for each request, when the log is that verbose.
func (s *Server) logRequest(c *gin.Context, p *progress) {
	ctx := c.Request.Context()
	if !s.cfg.Log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	s.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "request", slog.String("method", c.Request.Method), slog.String("path", c.Request.URL.Path),
		slog.Int("status", c.Writer.Status()), slog.Duration("took", time.Since(p.arrival)), slog.String("request_id", p.id))
}

// ended tells whoever watches how an inference ended, and the log when it took
// long. reason is below 0 for success.
func (s *Server) ended(origin trace.Origin, m *modelStats, t *timing, reason int) {
	failure := ""
	if reason >= 0 {
		failure = failureNames[reason]
	}
	t.trace.End(trace.Outcome{Rows: t.rows, Batch: t.batch, Failure: failure})
	total := t.phases[telemetry.Total]
	if s.cfg.SlowRequest <= 0 || total < s.cfg.SlowRequest {
		return
	}
	ok, more := s.slow.Allow(time.Now())
	if !ok {
		return
	}
	line := []any{"model", m.name, "version", m.version, "request_id", origin.ID, "rows", t.rows, "batch", t.batch}
	for p, d := range t.phases {
		line = append(line, telemetry.Phase(p).String(), d)
	}
	if failure != "" {
		line = append(line, "failure", failure)
	}
	if more > 0 {
		line = append(line, "not_logged_before", more)
	}
	s.cfg.Log.Warn("slow request", line...)
}
