// Package http serves models over REST: the Open Inference Protocol, the
// quantization jobs and uploads, telemetry, metrics and the console.
//
// The package's own name is not in scope inside it, so net/http keeps its name
// here; an importer of both renames one.
package http

import (
	"context"
	"crypto/tls"
	"errors"
	"log" //nolint:depguard // net/http's Server takes one of its loggers
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/rs/cors"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/telemetry"
	"github.com/fewbit/fewbit/internal/trace"
)

// Config says what a Server serves and within which limits. Zero numbers mean
// the defaults of limits.go.
type Config struct {
	// Models is required. Without Store or Jobs their routes answer 501.
	Models    Models
	Store     Store
	Jobs      Jobs
	Telemetry *telemetry.Collector // nil makes an own one
	Capture   Capture              // nil: its routes answer 501
	// CheckJob, when set, refuses job requests that the pipeline cannot do, with
	// an error worded for the client. The form is checked before.
	CheckJob func(jobs.Spec) error

	Listen  string // address for Run, host:port
	Version string // of the program, for GET /v2

	Keys *access.Keyring // nil: admin only over a loopback listener
	// SplitAdmin keeps the admin routes, metrics, telemetry and the console to
	// Listeners.Admin.
	SplitAdmin bool
	TLS        *tls.Config // nil: clear text
	// CORSOrigins are web pages that may infer; "*" is all of them.
	CORSOrigins []string
	// Rate is how many requests a second a key, or an address without one, may
	// send, RateBurst how many at once (0: those of a second). Rate 0 is no limit.
	Rate      float64
	RateBurst int
	Audit     *access.Audit // nil: administrators' calls are not written down
	ErrorLog  *log.Logger   // of broken connections; nil is the log package's

	// SpoolDir is where long bodies of load requests lie while they are read; "" is the
	// system's folder for temporary files.
	SpoolDir string

	MaxInferBody int64 // bytes after decoding
	MaxUpload    int64
	MaxInFlight  int // requests of one model admitted at a time; more get 503
	MaxConns     int

	HeaderTimeout time.Duration // until the header of a request has arrived
	BodyTimeout   time.Duration // for an inference body; for uploads, between two parts
	InferTimeout  time.Duration // when a request sets no timeout
	IdleTimeout   time.Duration
	DrainTimeout  time.Duration // for requests in flight at shutdown
	Heartbeat     time.Duration // between the comments that keep event streams alive

	// OnError, when set, learns of every error that a client sees as a 500,
	// and of panics with their stack. It must not block.
	OnError func(method, path, id string, err error)

	// Log, when set, has a line for each request at level debug, and one at
	// level warn for inferences that took SlowRequest (0: none).
	Log         *slog.Logger
	SlowRequest time.Duration
	// Logs are the settings of Log that clients may change, Trace is who follows
	// requests. nil: their routes answer 501.
	Logs  *logs.Handler
	Trace *trace.Tracer
}

func (c *Config) defaults() error {
	if c.Models == nil {
		return errors.New("http: Config.Models is required")
	}
	if c.Telemetry == nil {
		c.Telemetry = telemetry.New(telemetry.Options{})
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	def(&c.Listen, DefaultListen)
	def(&c.Version, "devel")
	def(&c.MaxInferBody, MaxInferBody)
	def(&c.MaxUpload, MaxUpload)
	def(&c.MaxInFlight, DefaultMaxInFlight)
	def(&c.MaxConns, DefaultMaxConns)
	def(&c.HeaderTimeout, DefaultHeaderTimeout)
	def(&c.BodyTimeout, DefaultBodyTimeout)
	def(&c.InferTimeout, DefaultInferTimeout)
	def(&c.IdleTimeout, DefaultIdleTimeout)
	def(&c.DrainTimeout, DefaultDrainTimeout)
	def(&c.Heartbeat, DefaultHeartbeat)
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Server answers requests.
type Server struct {
	cfg     Config
	engine  *gin.Engine
	table   []route
	openapi []byte
	stats   *statistics
	metrics *metrics
	slow    logs.Limit // of the lines about slow requests

	adminEngine *gin.Engine // every route, for Listeners.Admin
	adminAPI    []byte      // its openapi.json
	failures    *access.Limiter
	rates       *access.Limiter // nil: no limit
	cors        *cors.Cors      // nil: pages of other origins may not read answers

	bodies   atomic.Int64  // bytes held for inference bodies
	trim     trimmer       // of what they took
	decoding chan struct{} // taken while images are decoded
	draining atomic.Bool

	// Requests are counted after their last byte, so that their whole latency
	// counts. settle waits for those whose answer a client may already have.
	answered, accounted atomic.Int64

	closing chan struct{} // closed when draining starts
	close   sync.Once
}

var releaseMode = sync.OnceFunc(func() { gin.SetMode(gin.ReleaseMode) })

// New returns a Server; Run or Serve starts it.
func New(cfg Config) (*Server, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	releaseMode()
	s := &Server{cfg: cfg, engine: gin.New(), adminEngine: gin.New(), closing: make(chan struct{}), decoding: make(chan struct{}, engine.AvailableCPUs()),
		failures: access.NewLimiter(1/access.FailedEvery.Seconds(), access.FailedBurst), rates: access.NewLimiter(cfg.Rate, cfg.RateBurst), cors: newCORS(cfg.CORSOrigins),
		slow: logs.Limit{Burst: slowBurst, Every: slowEvery}}
	s.trim.after = trimAfter
	s.metrics = newMetrics(s)
	s.stats = newStatistics(&s.cfg, s.metrics)
	s.table = s.routes()
	var err error
	if s.openapi, err = s.mount(s.engine, false); err != nil {
		return nil, err
	}
	if s.adminAPI, err = s.mount(s.adminEngine, true); err != nil {
		return nil, err
	}
	return s, nil
}

// Handler returns the server's routes for tests and for mounting elsewhere.
// Admin routes want a key there, whatever the listener.
func (s *Server) Handler() http.Handler { return s.engine }

// AdminHandler is Handler with every route, as Listeners.Admin has them.
func (s *Server) AdminHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.adminEngine.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), listenerKey{}, listener{admin: true})))
	})
}
