package http

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/access"
)

// Need is what a call needs of its caller.
type Need int

// Needs. What only tells that the server is there needs nothing.
const (
	NeedNothing Need = iota
	NeedInfer        // a key, once there are keys for inference
	NeedAdmin        // an admin's key, or without keys a loopback listener
)

// Caller is who makes a call, as far as the protocol tells. Enter fills in Name.
type Caller struct {
	Key      string // what it sent as its key, "" for none
	Addr     string // of the connection, host:port
	Loopback bool   // the listener can be reached from this machine only
	Name     string // of the key, "" for none
}

// Reasons of refusals, as labels.
const (
	refusedKey      = "key"      // none, or an unknown one
	refusedRole     = "role"     // a key that does not open this
	refusedAttempts = "attempts" // too many unknown keys
	refusedRate     = "rate"     // too many requests
	refusedOff      = "off"      // admin routes are off here
)

// Enter lets a caller make a call, or says why not, for Explain.
func (s *Server) Enter(need Need, c *Caller) error {
	if need == NeedNothing {
		return nil
	}
	keys := s.cfg.Keys
	key, known := keys.Find(c.Key)
	c.Name = key.Name
	if err := s.Allow(c); err != nil {
		return err
	}
	required := need == NeedAdmin && keys.Present() || need == NeedInfer && keys.InferNeeded()
	refuse := func(reason string, status int, format string, args ...any) error {
		s.metrics.refused.WithLabelValues(reason).Inc()
		return failf(status, format, args...)
	}
	switch {
	case need == NeedAdmin && !keys.Present() && !c.Loopback:
		return refuse(refusedOff, http.StatusForbidden, "admin routes are off because this server listens beyond loopback without keys: start it with --keys FILE, or listen on 127.0.0.1")
	case !required:
		return nil
	case c.Key == "":
		return refuse(refusedKey, http.StatusUnauthorized, "this needs %s key: send it as Authorization: Bearer KEY or X-API-Key: KEY", need)
	case !known:
		if ok, wait := s.failures.Allow(access.Address(c.Addr), time.Now()); !ok {
			return s.tooMany(refusedAttempts, wait, "too many unknown keys came from this address")
		}
		return refuse(refusedKey, http.StatusUnauthorized, "the key is not known to this server")
	case need == NeedAdmin && !key.Role.Allows(access.Admin):
		return refuse(refusedRole, http.StatusForbidden, "the key %s has the role %s, this needs %s key", key.Name, key.Role, need)
	}
	return nil
}

// String words what a key must be.
func (n Need) String() string {
	if n == NeedAdmin {
		return "an admin"
	}
	return "an infer or admin"
}

// Allow counts a call of the caller, which Enter has named, and refuses it past
// the rate that a key, or an address without one, may have.
func (s *Server) Allow(c *Caller) error {
	if s.rates == nil {
		return nil
	}
	who := "key " + c.Name
	if c.Name == "" {
		who = access.Address(c.Addr)
	}
	if ok, wait := s.rates.Allow(who, time.Now()); !ok {
		return s.tooMany(refusedRate, wait, "more than %g requests a second", s.cfg.Rate)
	}
	return nil
}

func (s *Server) tooMany(reason string, wait time.Duration, format string, args ...any) error {
	s.metrics.refused.WithLabelValues(reason).Inc()
	return &httpError{status: http.StatusTooManyRequests, msg: fmt.Sprintf(format+"; retry later", args...), retry: int(min((wait+time.Second-1)/time.Second, maxRetryAfter))}
}

// keyHeaders are where clients send a key, besides Authorization: Bearer.
var keyHeaders = []string{"X-Api-Key", "Api-Key"}

// KeyOf returns the key that a request carries, "" for none. get returns the
// first value of a header or of gRPC's metadata.
func KeyOf(get func(name string) string) string {
	for _, h := range keyHeaders {
		if key := get(h); key != "" {
			return key
		}
	}
	scheme, key, _ := strings.Cut(get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(key)
	}
	return ""
}

// listener is what a request's context knows of where it came in.
type listener struct {
	loopback bool
	admin    bool // it is the one of the administrators
}

type listenerKey struct{}

// listenerOf is zero, neither loopback nor the administrators', for requests
// that did not come in through Serve.
func listenerOf(ctx context.Context) listener {
	l, _ := ctx.Value(listenerKey{}).(listener)
	return l
}

const callerKey = "caller"

// callerOf returns who makes a request that authorize let in.
func callerOf(c *gin.Context) *Caller {
	v, _ := c.Get(callerKey)
	who, _ := v.(*Caller)
	return who
}

// authorize lets a request reach a route. Without keys, admin routes answer
// requests that no web page can have made only: a page of another origin has an
// Origin header, and one that renamed itself to this address by DNS has a Host
// that is not ours.
func (s *Server) authorize(c *gin.Context, r *route) error {
	if r.open {
		return nil
	}
	req := c.Request
	who := &Caller{Key: KeyOf(req.Header.Get), Addr: req.RemoteAddr, Loopback: listenerOf(req.Context()).loopback}
	c.Set(callerKey, who)
	need := NeedInfer
	if r.admin {
		need = NeedAdmin
	}
	if err := s.Enter(need, who); err != nil {
		return err
	}
	if need != NeedAdmin || s.cfg.Keys.Present() {
		return nil
	}
	if !loopbackHost(req.Host) {
		return failf(http.StatusForbidden, "admin routes without a key answer only to the host names localhost, 127.0.0.1 and [::1]")
	}
	if origin := req.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !strings.EqualFold(u.Host, req.Host) {
			return failf(http.StatusForbidden, "admin routes without a key refuse pages of other origins")
		}
	}
	switch req.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return nil
	}
	return failf(http.StatusForbidden, "admin routes without a key refuse pages of other origins")
}

// audit writes down what became of an administrator's request.
func (s *Server) audit(c *gin.Context, began time.Time, err error) {
	if s.cfg.Audit == nil {
		return
	}
	req := c.Request
	e := access.Event{From: req.RemoteAddr, Method: req.Method, Path: req.URL.Path, Status: c.Writer.Status()}
	if who := callerOf(c); who != nil {
		e.Who = who.Name
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		e.Cert = req.TLS.PeerCertificates[0].Subject.String()
	}
	if err != nil {
		e.Error = explain(err).msg
	}
	s.Record(began, e)
}

// Record writes an administrator's call to the audit log, which began at the
// time.
func (s *Server) Record(began time.Time, e access.Event) {
	if e.Status == http.StatusTooManyRequests { // the first refusals are written; a flood must not turn the log over
		return
	}
	e.Time, e.TookMS = began.UTC(), float64(time.Since(began).Microseconds())/1000
	if err := s.cfg.Audit.Record(e); err != nil && s.cfg.OnError != nil {
		s.cfg.OnError(e.Method, e.Path, "", err)
	}
}

// loopbackHost reports whether a Host header names this machine by itself.
func loopbackHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if strings.EqualFold(strings.TrimSuffix(name, "."), "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
