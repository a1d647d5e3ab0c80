package http

import (
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/gin-gonic/gin"
)

// profiles are the routes of net/http/pprof. They show the process's memory and
// take its time, so they are served on the administrators' own listener only.
func profiles() []route {
	var table []route
	add := func(path string, h http.HandlerFunc) {
		table = append(table, route{method: "GET", path: "/debug/pprof" + path, tag: tagOperate, summary: "Profiles of the process; only with --admin-listen",
			media: "application/octet-stream", answer: []byte{}, admin: true, private: true, fails: []int{401, 403}, handler: plain(h)})
	}
	for path, h := range map[string]http.HandlerFunc{"/": pprof.Index, "/cmdline": pprof.Cmdline, "/profile": pprof.Profile, "/symbol": pprof.Symbol, "/trace": pprof.Trace} {
		add(path, h)
	}
	for _, p := range []string{"allocs", "block", "goroutine", "heap", "mutex", "threadcreate"} {
		add("/"+p, pprof.Handler(p).ServeHTTP)
	}
	return table
}

// plain makes a route of a profile's handler, which may take minutes.
func plain(h http.HandlerFunc) func(*gin.Context) error {
	return func(c *gin.Context) error {
		_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Time{})
		h(c.Writer, c.Request)
		return nil
	}
}
