package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/net/netutil"
)

// maxStreams bounds the requests of one HTTP/2 connection at a time.
const maxStreams = 128

// Listeners are where a Server answers. Admin may be nil; with Config.SplitAdmin
// it serves every route, and Public none of the administrators'.
type Listeners struct{ Public, Admin net.Listener }

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
	return s.ServeOn(ctx, Listeners{Public: l})
}

// ServeOn is Serve over several listeners. When one of them fails, all end.
func (s *Server) ServeOn(ctx context.Context, ls Listeners) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	servers := []*http.Server{s.server(s.engine, listener{loopback: isLoopback(ls.Public.Addr())})}
	sockets := []net.Listener{ls.Public}
	if ls.Admin != nil {
		servers = append(servers, s.server(s.adminEngine, listener{loopback: isLoopback(ls.Admin.Addr()), admin: true}))
		sockets = append(sockets, ls.Admin)
	}
	ended := make(chan error, len(servers))
	for i, srv := range servers {
		go func() { ended <- s.serveOne(ctx, srv, sockets[i]) }()
	}
	var errs []error
	for range servers {
		err := <-ended
		stop()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Server) server(h http.Handler, l listener) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		TLSConfig:         s.cfg.TLS.Clone(), // net/http adds to it
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), listenerKey{}, l) },
		ErrorLog:          s.cfg.ErrorLog,
	}
}

func (s *Server) serveOne(ctx context.Context, srv *http.Server, l net.Listener) error {
	served := make(chan error, 1)
	go func() {
		l := netutil.LimitListener(l, s.cfg.MaxConns)
		if s.cfg.TLS != nil {
			served <- srv.ServeTLS(l, "", "")
			return
		}
		served <- srv.Serve(l)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("http: %w", err)
	case <-ctx.Done():
	}
	s.close.Do(func() {
		s.NotReady()
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

// NotReady makes readiness 503, as it is while requests drain; all else goes on.
func (s *Server) NotReady() { s.draining.Store(true) }

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
