package http

import (
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/rs/cors"
)

// corsAge is how long a browser may keep the answer to a preflight.
const corsAge = 10 * time.Minute

// newCORS lets pages of the origins call the routes that are not the
// administrators'; nil lets none. Keys travel in headers and never in cookies,
// so nothing is sent that the page does not have itself.
func newCORS(origins []string) *cors.Cors {
	if len(origins) == 0 {
		return nil
	}
	return cors.New(cors.Options{
		AllowedOrigins: origins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost},
		AllowedHeaders: append([]string{"Authorization", "Content-Type", "Content-Encoding", "Accept", headerLength, headerTimeout}, keyHeaders...),
		ExposedHeaders: []string{headerLength, "Retry-After"},
		MaxAge:         int(corsAge / time.Second),
	})
}

// preflights answers the question that a browser asks before it sends a page's
// request, for the routes that pages may use.
func (s *Server) preflights(e *gin.Engine, table []route) {
	if s.cors == nil {
		return
	}
	done := map[string]bool{}
	for _, r := range table {
		if r.admin || done[r.path] || r.method != http.MethodGet && r.method != http.MethodPost {
			continue
		}
		done[r.path] = true
		e.OPTIONS(r.path, func(c *gin.Context) {
			s.cors.HandlerFunc(c.Writer, c.Request)
			c.Status(http.StatusNoContent)
			c.Writer.WriteHeaderNow()
		})
	}
}

// CheckOrigin refuses what is not an origin, or "*".
func CheckOrigin(s string) error {
	scheme, host, ok := strings.Cut(s, "://")
	if s == "*" || ok && (scheme == "http" || scheme == "https") && host != "" && !strings.ContainsAny(host, "/ ,?#*@") {
		return nil
	}
	return badf("%s is not an origin such as https://app.example.org, or *", clip([]byte(s)))
}
