package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/http"
)

// Access are the settings of who may do what.
type Access struct {
	Keys        string // file of hashed keys; "" is none
	AdminListen string // host:port of the admin routes; "" serves them on Listen
	AuditLog    string // file for the calls of administrators; "" is the log
	// TLSCert and TLSKey are a certificate chain and its key, TLSClientCA the
	// authorities of clients' certificates, as PEM files; "" for none.
	TLSCert, TLSKey, TLSClientCA string
	CORSOrigin                   string  // web pages that may infer, separated by commas
	RateLimit                    float64 // requests a second of a key, or of an address without one; 0 is no limit
	RateBurst                    int     // requests at once; 0 is those of a second
	MaxConns                     int     // connections to each address that is served
}

// Limits of these settings.
const (
	maxRate        = 1e6
	maxBurst       = 1 << 20
	maxConns       = 1 << 20
	maxCORSOrigins = 64
)

func (a *Access) flags(fs *pflag.FlagSet) {
	fs.StringVar(&a.Keys, "keys", a.Keys, "file of hashed keys that fewbit keys new makes; it is read again when it changes")
	fs.StringVar(&a.AdminListen, "admin-listen", a.AdminListen, "address for the admin routes, metrics and profiles, which are then not served on --listen; beyond loopback it needs an admin key")
	fs.StringVar(&a.AuditLog, "audit-log", a.AuditLog, "file that admin calls are written to as JSON lines (default: the log, those that change something)")
	fs.StringVar(&a.TLSCert, "tls-cert", a.TLSCert, "certificate chain in PEM: HTTP, gRPC and the admin address then speak TLS; read again when it changes")
	fs.StringVar(&a.TLSKey, "tls-key", a.TLSKey, "private key of --tls-cert in PEM")
	fs.StringVar(&a.TLSClientCA, "tls-client-ca", a.TLSClientCA, "authorities in PEM; clients then need a certificate of one of them (mTLS)")
	fs.StringVar(&a.CORSOrigin, "cors-origin", a.CORSOrigin, "web pages that may ask models, for example https://app.example.org; several with commas, * for all")
	fs.Float64Var(&a.RateLimit, "rate-limit", a.RateLimit, "requests a second that a key, or an address without one, may send (default: no limit)")
	fs.IntVar(&a.RateBurst, "rate-burst", a.RateBurst, "requests that it may send at once (default: those of a second)")
	fs.IntVar(&a.MaxConns, "max-conns", a.MaxConns, "connections to each address that is served; more wait")
}

func (a *Access) check() error {
	bad := func(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
	switch {
	case (a.TLSCert == "") != (a.TLSKey == ""):
		return bad("--tls-cert and --tls-key go together: a certificate and its key")
	case a.TLSClientCA != "" && a.TLSCert == "":
		return bad("--tls-client-ca needs --tls-cert and --tls-key")
	case !(a.RateLimit >= 0 && a.RateLimit <= maxRate):
		return bad("--rate-limit is %v, expected 0 (none) to %g requests a second", a.RateLimit, float64(maxRate))
	case a.RateBurst < 0 || a.RateBurst > maxBurst:
		return bad("--rate-burst is %d, expected 0 (those of a second) to %d requests", a.RateBurst, maxBurst)
	case a.RateBurst > 0 && a.RateLimit == 0:
		return bad("--rate-burst needs --rate-limit")
	case a.MaxConns < 1 || a.MaxConns > maxConns:
		return bad("--max-conns is %d, expected 1 to %d", a.MaxConns, maxConns)
	}
	origins := a.origins()
	if len(origins) > maxCORSOrigins {
		return bad("--cors-origin has %d origins, at most %d are allowed", len(origins), maxCORSOrigins)
	}
	for _, o := range origins {
		if err := http.CheckOrigin(o); err != nil {
			return bad("--cors-origin: %w", err)
		}
	}
	return nil
}

func (a *Access) origins() []string {
	var list []string
	for o := range strings.SplitSeq(a.CORSOrigin, ",") {
		if o = strings.TrimSpace(o); o != "" {
			list = append(list, o)
		}
	}
	return list
}

// guards are what Access names, opened.
type guards struct {
	keys  *access.Keyring      // nil: no keys
	certs *access.Certificates // nil: no TLS
	audit *access.Audit
	watch [2]*access.Watcher // of the keys, of the certificates
	log   *slog.Logger
}

func (a *Access) open(log *slog.Logger) (*guards, error) {
	g := &guards{log: log, audit: access.LogAudit(log)}
	var err error
	if a.Keys != "" {
		g.watch[0] = access.NewWatcher(a.Keys)
		if g.keys, err = access.Open(a.Keys); err != nil {
			return nil, fmt.Errorf("--keys %w", err)
		}
	}
	if a.TLSCert != "" {
		g.watch[1] = access.NewWatcher(a.TLSCert, a.TLSKey, a.TLSClientCA)
		if g.certs, err = access.LoadCertificates(a.TLSCert, a.TLSKey, a.TLSClientCA); err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
	}
	if a.AuditLog != "" {
		if g.audit, err = access.OpenAudit(a.AuditLog); err != nil {
			return nil, fmt.Errorf("--audit-log %w", err)
		}
	}
	return g, nil
}

func (g *guards) reloadKeys() {
	if err := g.keys.Reload(); err != nil {
		g.log.Error("reading the keys again", "error", err)
		return
	}
	g.log.Info("keys read again", "keys", g.keys.Count(), "inference_needs_key", g.keys.InferNeeded())
}

func (g *guards) reloadCertificates() {
	if err := g.certs.Reload(); err != nil {
		g.log.Error("reading the certificates again; the old ones stay", "error", err)
		return
	}
	g.log.Info("certificates read again", "expires", g.certs.Expires())
}

// follow reads keys and certificates again when their files change and on
// SIGHUP, until ctx ends.
func (g *guards) follow(ctx context.Context) {
	var wg sync.WaitGroup
	reload := [2]func(){g.reloadKeys, g.reloadCertificates}
	var present []func()
	for i, w := range g.watch {
		if w != nil {
			present = append(present, reload[i])
			wg.Go(func() { w.Run(ctx, 0, reload[i]) })
		}
	}
	defer wg.Wait()
	if len(present) == 0 { // a hangup ends the process as it does others
		<-ctx.Done()
		return
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			for _, f := range present {
				f()
			}
		case <-ctx.Done():
			return
		}
	}
}

// close closes what stays open. g may be nil.
func (g *guards) close() error {
	if g == nil {
		return nil
	}
	return g.audit.Close()
}

// listenAdmin returns the listener for the admin routes, nil for none. Beyond
// loopback it needs an admin's key.
func (a *App) listenAdmin(ctx context.Context) (net.Listener, error) {
	if a.cfg.AdminListen == "" {
		return nil, nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.AdminListen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for administrators on %s: %w; choose another address with --admin-listen", a.cfg.AdminListen, reason(err))
	}
	if !loopback(l) && !a.guards.keys.Has(access.Admin) {
		return nil, errors.Join(usageError{fmt.Errorf("--admin-listen %s can be reached from other machines and there is no admin key: make one with fewbit keys new --role admin --name NAME and start with --keys FILE, or listen on 127.0.0.1", a.cfg.AdminListen)}, l.Close())
	}
	return l, nil
}

// loopback reports whether only this machine reaches l.
func loopback(l net.Listener) bool {
	tcp, ok := l.Addr().(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback()
}

// warn says what an operator may have missed about the addresses.
func (a *App) warn(ls listeners) {
	if !loopback(ls.http) && a.guards.keys == nil && ls.admin == nil {
		a.log.Warn("uploads, jobs and other admin routes are off: the address is not loopback and there is no --keys FILE")
	}
	for _, l := range []net.Listener{ls.http, ls.grpc, ls.admin} {
		if l != nil && !loopback(l) && a.guards.keys != nil && a.guards.certs == nil {
			a.log.Warn("keys travel in clear text: use --tls-cert and --tls-key, or a proxy with TLS", "address", l.Addr().String())
			return
		}
	}
}

// listeners are where a server answers; only http is always there.
type listeners struct{ http, grpc, admin net.Listener }
