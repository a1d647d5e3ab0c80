package http

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// route is one row of the table that the router and openapi.json are made of.
type route struct {
	method, path string // path in gin's form
	admin        bool   // needs an admin's key, or a loopback listener
	open         bool   // needs no key, whatever keys there are
	private      bool   // only on a listener of the administrators' own
	handler      func(*gin.Context) error
	// words, when set, gives errors the form of another API.
	words func(func(*gin.Context) error) func(*gin.Context) error
	// failure is a value of the Go type that errors then have.
	failure any

	summary  string
	tag      string
	query    []parameter
	body     any    // a value of the request's Go type; nil for none
	bodyType string // media type of the body, default application/json
	optional bool   // the body may be absent
	limit    int64  // of the body in bytes
	status   int    // of success, default 200
	answer   any    // a value of the answer's Go type; nil for none
	media    string // media type of the answer, default application/json
	fails    []int  // statuses besides 500 that the route answers
}

type parameter struct {
	name, about string
	header      bool
}

// on reports whether the route is served on the listener of the administrators,
// or on the other one.
func (r *route) on(admin, split bool) bool {
	switch {
	case admin:
		return true
	case r.private:
		return false
	case !split || r.path == openAPIRoute:
		return true
	}
	return !r.admin && r.tag != tagOperate
}

// eventStream is the media type of answers that have no end of their own.
const eventStream = "text/event-stream"

// mount gives the routes of a listener to its router and describes them.
func (s *Server) mount(e *gin.Engine, admin bool) (openapi []byte, err error) {
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.RedirectFixedPath = false
	e.ForwardedByClientIP = false
	e.Use(s.guard)
	var here []route
	for i := range s.table {
		r := &s.table[i]
		def(&r.status, http.StatusOK)
		if !r.on(admin, s.cfg.SplitAdmin) {
			continue
		}
		here = append(here, *r)
		e.Handle(r.method, r.path, s.serve(r))
		if r.method == http.MethodGet && r.media != eventStream && !r.private {
			e.HEAD(r.path, s.serve(r)) // some load balancers probe so; net/http leaves the body out
		}
	}
	s.preflights(e, here)
	e.NoRoute(func(c *gin.Context) {
		s.fail(c, failf(http.StatusNotFound, "no such route; GET %s lists them", openAPIRoute))
	})
	e.NoMethod(func(c *gin.Context) {
		s.fail(c, failf(http.StatusMethodNotAllowed, "method %s is not allowed here; see the Allow header", clip([]byte(c.Request.Method))))
	})
	return openAPI(here, s.cfg.Version)
}

// serve wraps a route's handler: it authorises, words the error, and writes down
// what administrators do.
func (s *Server) serve(r *route) gin.HandlerFunc {
	answer := func(c *gin.Context) error {
		if err := s.authorize(c, r); err != nil {
			if explain(err).status == http.StatusUnauthorized {
				c.Writer.Header()["Www-Authenticate"] = bearer
			}
			return err
		}
		return r.handler(c)
	}
	if r.words != nil {
		answer = r.words(answer)
	}
	cors := s.cors
	if r.admin {
		cors = nil
	}
	return func(c *gin.Context) {
		began := time.Now()
		if cors != nil {
			cors.HandlerFunc(c.Writer, c.Request)
		}
		err := answer(c)
		if err != nil {
			s.fail(c, err)
		}
		if r.admin {
			s.audit(c, began, err)
		}
	}
}

var bearer = []string{`Bearer realm="fewbit"`}

// progress is what guard knows of a request.
type progress struct {
	arrival   time.Time // when its header was complete
	id        string    // in the log, and for the client to quote
	answering bool      // its answer is on the way
}

const progressKey = "progress"

func progressOf(c *gin.Context) *progress {
	v, _ := c.Get(progressKey)
	return v.(*progress)
}

// guard is around every request: it counts it and turns a panic into a 500.
func (s *Server) guard(c *gin.Context) {
	state := &progress{arrival: time.Now(), id: RequestID(c.Request.Header["X-Request-Id"])}
	c.Set(progressKey, state)
	h := c.Writer.Header()
	h["X-Request-Id"] = []string{state.id}
	h["X-Content-Type-Options"] = nosniff
	ctl := http.NewResponseController(c.Writer)
	_ = ctl.SetWriteDeadline(time.Now().Add(s.cfg.BodyTimeout)) // an earlier request's may have passed
	if c.Request.ContentLength != 0 {
		// Also for bodies that no handler reads: net/http reads what is left of
		// them before it answers. Whoever reads a body to its end lifts it.
		_ = ctl.SetReadDeadline(time.Now().Add(s.cfg.BodyTimeout))
	}
	defer func() {
		if state.answering {
			s.accounted.Add(1)
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.metrics.panics.Inc()
			s.report(c, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			if c.Writer.Written() {
				panic(http.ErrAbortHandler) // the answer has begun: cut the connection
			}
			s.fail(c, failf(http.StatusInternalServerError, "internal error: the server could not answer this request; its operator finds the cause in the server's log"))
		}
		s.metrics.request(c)
		s.logRequest(c, state)
	}()
	c.Next()
}

var (
	nosniff   = []string{"nosniff"}
	typeJSON  = []string{"application/json"}
	typeBytes = []string{"application/octet-stream"}
)

func (s *Server) report(c *gin.Context, err error) {
	if s.cfg.OnError != nil {
		s.cfg.OnError(c.Request.Method, c.Request.URL.Path, progressOf(c).id, err)
	}
}

// fail answers with an error. It is the only place that does.
func (s *Server) fail(c *gin.Context, err error) {
	e := explain(err)
	if worded := new(httpError); e.status == http.StatusInternalServerError && !errors.As(err, &worded) {
		s.report(c, err)
	}
	if c.Writer.Written() {
		panic(http.ErrAbortHandler) // too late for a status: cut the connection, so that the client notices
	}
	h := c.Writer.Header()
	for _, k := range []string{"Content-Encoding", "Content-Length", headerLength, "Location"} {
		h.Del(k)
	}
	if e.retry > 0 {
		h["Retry-After"] = []string{fmt.Sprint(e.retry)}
	}
	if e.status == http.StatusRequestTimeout || e.status == http.StatusRequestEntityTooLarge {
		h["Connection"] = []string{"close"} // do not wait for the rest of the body
	}
	status, body := e.status, append(append([]byte(`{"error":`), appendString(nil, e.msg)...), '}', '\n')
	var other *formed
	if errors.As(err, &other) {
		status, body = other.status, other.body
	}
	s.write(c, status, typeJSON, body)
	c.Abort()
}

// namePattern is what models, versions, datasets and jobs may be called.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// checkName refuses names that could mean something to a file system.
func checkName(kind, name string) error {
	if !namePattern.MatchString(name) || strings.Contains(name, "..") {
		return badf("bad %s name %s: expected 1 to 128 of A-Z a-z 0-9 . _ -, starting with a letter or digit, without \"..\"", kind, clip([]byte(name)))
	}
	return nil
}

// pathName returns a checked path parameter.
func pathName(c *gin.Context, kind, param string) (string, error) {
	name := c.Param(param)
	return name, checkName(kind, name)
}

// modelParams returns the model and version of the path; version is "" for
// routes without one.
func modelParams(c *gin.Context) (name, version string, err error) {
	if name, err = pathName(c, "model", "model"); err != nil {
		return "", "", err
	}
	if version = c.Param("version"); version != "" {
		err = checkName("version", version)
	}
	return name, version, err
}

// acquire returns the model of the route, which the caller releases, with its name
// and the version that the route asks for, "" for the current one.
func (s *Server) acquire(c *gin.Context) (lease Lease, name, version string, err error) {
	if name, version, err = modelParams(c); err == nil {
		lease, err = s.cfg.Models.Acquire(c.Request.Context(), name, version)
	}
	return lease, name, version, err
}

// openAPIPath turns gin's /a/:b into /a/{b}.
func openAPIPath(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if p != "" && (p[0] == ':' || p[0] == '*') {
			parts[i] = "{" + p[1:] + "}"
		}
	}
	return strings.Join(parts, "/")
}

// pathParams lists the parameters of a gin path.
func pathParams(path string) []string {
	var names []string
	for p := range strings.SplitSeq(path, "/") {
		if p != "" && (p[0] == ':' || p[0] == '*') {
			names = append(names, p[1:])
		}
	}
	return slices.Clip(names)
}
