package http

import (
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/rollout/capture"
)

// routeOf names the route of a request as capture.Routes does.
func routeOf(c *gin.Context) string { return path.Base(c.FullPath()) }

func (s *Server) capture() (Capture, error) {
	if s.cfg.Capture == nil {
		return nil, failf(http.StatusNotImplemented, "this server captures no inputs")
	}
	return s.cfg.Capture, nil
}

// captureAnd returns the store of captured inputs and the model in the path.
func (s *Server) captureAnd(c *gin.Context) (Capture, string, error) {
	name, err := pathName(c, "model", "model")
	if err != nil {
		return nil, "", err
	}
	k, err := s.capture()
	return k, name, err
}

// captureStart answers PUT /models/{model}/capture.
func (s *Server) captureStart(c *gin.Context) error {
	k, name, err := s.captureAnd(c)
	if err != nil {
		return err
	}
	set := capture.Defaults()
	if err := s.decode(c, &set, true); err != nil {
		return err
	}
	if err := set.Check(); err != nil { // a share of 0 that stands there is no wish for all
		return err
	}
	lease, err := s.cfg.Models.Acquire(c.Request.Context(), name, "")
	if err != nil {
		return err
	}
	spec := lease.Spec()
	lease.Release()
	for _, in := range set.Redact.Inputs { // a name with a slip would keep what must not be kept
		if !slices.ContainsFunc(spec.Inputs, func(io engine.IO) bool { return io.Name == in }) {
			return badf("field \"redact.inputs\": the model has no input %s", clip([]byte(in)))
		}
	}
	st, err := k.Start(name, set)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, st)
}

func (s *Server) captureStatus(c *gin.Context) error {
	k, name, err := s.captureAnd(c)
	if err != nil {
		return err
	}
	st, err := k.Status(name)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, st)
}

func (s *Server) captureStop(c *gin.Context) error {
	k, name, err := s.captureAnd(c)
	if err != nil {
		return err
	}
	if err := s.decode(c, &struct{}{}, true); err != nil {
		return err
	}
	st, err := k.Stop(name)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, st)
}

func (s *Server) captureDelete(c *gin.Context) error {
	k, name, err := s.captureAnd(c)
	if err != nil {
		return err
	}
	if err := k.Delete(name); err != nil {
		return err
	}
	return s.noContent(c)
}

// captureExport answers with an .npz, which may be large: it is written as it is
// made, and a failure on the way cuts the connection.
func (s *Server) captureExport(c *gin.Context) error {
	k, name, err := s.captureAnd(c)
	if err != nil {
		return err
	}
	e, err := k.Export(name)
	if err != nil {
		return err
	}
	defer e.Close()
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Time{})
	h := c.Writer.Header()
	h["Content-Type"] = typeBytes
	h["Cache-Control"] = []string{"no-store"}
	c.Status(http.StatusOK)
	_, err = e.WriteTo(c.Writer)
	return err
}
