// Package logs is the server's log: structured lines, as text or JSON, whose
// levels and form can be changed while the server runs, as the Open Inference
// Protocol's logging extension asks.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

// Forms of a line (Settings.Format). The protocol knows the first two; time
// stamps are ISO 8601 in both, and JSON is this server's own.
const (
	FormatDefault = "default"
	FormatISO8601 = "ISO8601"
	FormatJSON    = "json"
)

// MaxVerbose is the highest Settings.Verbose; level 1 has a line for each request.
const MaxVerbose = 1

// ErrSetting is a setting that cannot be.
var ErrSetting = errors.New("log setting")

// Settings are what may change while the log is written.
type Settings struct {
	Info, Warning, Error bool
	// Verbose from 1 on adds the lines of level debug.
	Verbose int
	Format  string
}

// Defaults: everything but debug, as text.
func Defaults() Settings {
	return Settings{Info: true, Warning: true, Error: true, Format: FormatDefault}
}

// Check returns what is wrong with s: an ErrSetting.
func (s Settings) Check() error {
	switch {
	case s.Verbose < 0 || s.Verbose > MaxVerbose:
		return fmt.Errorf("%w log_verbose_level is %d, expected 0 to %d", ErrSetting, s.Verbose, MaxVerbose)
	case s.Format != FormatDefault && s.Format != FormatISO8601 && s.Format != FormatJSON:
		return fmt.Errorf("%w log_format is %.40q, expected %s, %s or %s", ErrSetting, s.Format, FormatDefault, FormatISO8601, FormatJSON)
	}
	return nil
}

// enabled reports whether lines of a level are written.
func (s *Settings) enabled(l slog.Level) bool {
	switch {
	case l >= slog.LevelError:
		return s.Error
	case l >= slog.LevelWarn:
		return s.Warning
	case l >= slog.LevelInfo:
		return s.Info
	}
	return s.Verbose > 0
}

// Handler is a slog.Handler whose settings can be changed. What With and
// WithGroup make of it follows the same settings.
type Handler struct {
	settings *atomic.Pointer[Settings]
	text     slog.Handler
	json     slog.Handler
}

var _ slog.Handler = (*Handler)(nil)

// New returns a handler that writes to w. The settings must pass Check.
func New(w io.Writer, s Settings) *Handler {
	h := &Handler{settings: new(atomic.Pointer[Settings])}
	h.settings.Store(&s)
	o := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: shortTime}
	out := &line{w: w}
	h.text, h.json = slog.NewTextHandler(out, o), slog.NewJSONHandler(out, o)
	return h
}

// Settings are the present ones.
func (h *Handler) Settings() Settings { return *h.settings.Load() }

// Set changes them. Errors: ErrSetting.
func (h *Handler) Set(s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	h.settings.Store(&s)
	return nil
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return h.settings.Load().enabled(l) }

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if h.settings.Load().Format == FormatJSON {
		return h.json.Handle(ctx, r)
	}
	return h.text.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(as []slog.Attr) slog.Handler {
	return &Handler{h.settings, h.text.WithAttrs(as), h.json.WithAttrs(as)}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.settings, h.text.WithGroup(name), h.json.WithGroup(name)}
}

// shortTime writes durations as people read them, in both forms alike: the JSON
// form would give nanoseconds.
func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}
