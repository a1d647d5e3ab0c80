// Package http serves models over REST: the Open Inference Protocol, the
// quantization jobs and uploads, telemetry, metrics and the console.
//
// The package's own name is not in scope inside it, so net/http keeps its name
// here; an importer of both renames one.
package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/net/netutil"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/telemetry"
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
	Keys    *Keys  // admin keys; nil: admin only over a loopback listener

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
	OnError func(method, path string, err error)
}

func (c *Config) defaults() error {
	if c.Models == nil {
		return errors.New("http: Config.Models is required")
	}
	if c.Telemetry == nil {
		c.Telemetry = telemetry.New(telemetry.Options{})
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

	bodies   atomic.Int64 // bytes held for inference bodies
	loopback atomic.Bool  // the listener is loopback
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
	s := &Server{cfg: cfg, engine: gin.New(), closing: make(chan struct{})}
	s.stats = newStatistics(&s.cfg)
	s.metrics = newMetrics(s)
	s.table = s.routes()
	if err := s.mount(); err != nil {
		return nil, err
	}
	return s, nil
}

// Handler returns the server's routes for tests and for mounting elsewhere.
// Admin routes want a key there, whatever the listener.
func (s *Server) Handler() http.Handler { return s.engine }

// Run listens on Config.Listen and serves until ctx ends; then it lets the
// requests in flight finish.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; choose another address with --listen", s.cfg.Listen, err)
	}
	return s.Serve(ctx, l)
}

// Serve is Run over a listener of the caller's, which it closes.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.loopback.Store(isLoopback(l.Addr()))
	srv := &http.Server{
		Handler:           s.engine,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(netutil.LimitListener(l, s.cfg.MaxConns)) }()
	select {
	case err := <-served:
		return fmt.Errorf("http: %w", err)
	case <-ctx.Done():
	}
	s.close.Do(func() {
		s.draining.Store(true)
		close(s.closing) // event streams end
	})
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		_ = srv.Close()
		return fmt.Errorf("http: requests were cut off after %v of draining: %w", s.cfg.DrainTimeout, err)
	}
	return nil
}

// isLoopback reports whether only this machine can reach a.
func isLoopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}
