package http

import (
	"embed"
	"net/http"
	"path"

	"github.com/gin-gonic/gin"
)

//go:embed console/index.html console/console.css console/console.js
var consoleFiles embed.FS

var consoleTypes = map[string][]string{
	".html": typeHTML, ".css": {"text/css; charset=utf-8"}, ".js": {"text/javascript; charset=utf-8"},
}

// consolePage answers with one of the console's files. The page loads nothing
// from elsewhere, and its policy says so.
func (s *Server) consolePage(c *gin.Context) error {
	file := c.Param("file")
	if file == "" {
		file = "index.html"
	}
	b, err := consoleFiles.ReadFile("console/" + path.Base(file))
	if err != nil {
		return failf(http.StatusNotFound, "the console has no such file")
	}
	h := c.Writer.Header()
	h["Content-Security-Policy"] = []string{"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	h["Referrer-Policy"] = []string{"no-referrer"}
	h["Cache-Control"] = []string{"no-cache"}
	s.write(c, http.StatusOK, consoleTypes[path.Ext(file)], b)
	return nil
}
