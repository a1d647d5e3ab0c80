package http

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
)

// The words that a job's request may hold, by field.
var (
	schemes       = []string{"int8", "int8-dynamic", "int4", "fp16", "bf16", "a16w8", "mixed", schemeSearch}
	granularities = []string{"per-channel", "per-tensor"}
	weightMethods = []string{"auto", "rtn", "mse", "gptq", "adaround", "hqq", "awq", "brecq"}
	targets       = []string{"cpu", "cuda", "ort-cpu", "qdq", "qoperator", "tensorrt"}
	// needCalibration are the schemes whose activations have fixed ranges.
	needCalibration = []string{"int8", "a16w8", "mixed", schemeSearch}
)

// Limits of a job's request.
const (
	maxExcludes  = 10_000 // and rules for operators
	maxExclude   = 1024   // bytes of one name or rule
	maxSamples   = 10_000_000
	maxSLOMillis = 3_600_000
	maxJobKey    = 256
	maxSizeMB    = 1e9
	maxMemoryMB  = 1e9
	maxTimeLimit = 7 * 24 * 3600 // seconds
	maxMethod    = 64            // bytes of a name; CheckJob knows the names
)

// schemeSearch is the scheme of a job that chooses one itself.
const schemeSearch = "search"

// jobAccepted answers POST /quantize.
type jobAccepted struct {
	ID     string     `json:"id"`
	Status jobs.State `json:"status"`
}

type jobList struct {
	Jobs []jobs.Status `json:"jobs"`
}

func (s *Server) jobs() (Jobs, error) {
	if s.cfg.Jobs == nil {
		return nil, failf(http.StatusNotImplemented, "this server runs no quantization jobs")
	}
	return s.cfg.Jobs, nil
}

func (s *Server) quantize(c *gin.Context) error {
	q, err := s.jobs()
	if err != nil {
		return err
	}
	var spec jobs.Spec
	if err := s.decode(c, &spec, false); err != nil {
		return err
	}
	if key := c.GetHeader("Idempotency-Key"); key != "" && spec.Key == "" {
		spec.Key = key
	}
	id := ""
	if known, ok := q.(Repeats); ok && spec.Key != "" && len(spec.Key) <= maxJobKey {
		if id, err = known.Known(c.Request.Context(), spec); err != nil {
			return err
		}
	}
	if id == "" {
		if err := s.checkSpec(&spec); err != nil {
			return err
		}
		if id, err = q.Submit(c.Request.Context(), spec); err != nil {
			return err
		}
	}
	st, err := q.Get(c.Request.Context(), id)
	if err != nil {
		st.Status = jobs.Queued
	}
	c.Header("Location", "/quantize/"+id)
	return s.reply(c, http.StatusAccepted, jobAccepted{ID: id, Status: st.Status})
}

// checkSpec refuses what can be seen to be wrong before the job runs.
func (s *Server) checkSpec(spec *jobs.Spec) error {
	if spec.Model == "" {
		return badf("field \"model\" is missing")
	}
	if err := checkName("model", spec.Model); err != nil {
		return err
	}
	if spec.Version != "" {
		if err := checkName("version", spec.Version); err != nil {
			return err
		}
	}
	if spec.Name != "" {
		if err := checkName("result", spec.Name); err != nil {
			return err
		}
	}
	if spec.Scheme == "" {
		return badf("field \"scheme\" is missing, expected one of %s", strings.Join(schemes, ", "))
	}
	for _, f := range []struct {
		field, value string
		allowed      []string
	}{{"scheme", spec.Scheme, schemes}, {"granularity", spec.Granularity, granularities}, {"weights", spec.Weights, weightMethods}, {"target", spec.Target, targets}} {
		if f.value != "" && !slices.Contains(f.allowed, f.value) {
			return badf("field %q is %s, expected one of %s", f.field, clip([]byte(f.value)), strings.Join(f.allowed, ", "))
		}
	}
	switch {
	case len(spec.Method) > maxMethod:
		return badf("field \"method\" has %d bytes, at most %d are allowed", len(spec.Method), maxMethod)
	case spec.Samples < 0 || spec.Samples > maxSamples:
		return badf("field \"samples\" is %d, expected 0 to %d", spec.Samples, maxSamples)
	case spec.MaxLoss < 0 || spec.MaxLoss > 1:
		return badf("field \"max_loss\" is %g, expected a fraction of 0 to 1 (0.01 is one in a hundred)", spec.MaxLoss)
	case spec.SLOms < 0 || spec.SLOms > maxSLOMillis:
		return badf("field \"slo_ms\" is %g, expected 0 to %d", spec.SLOms, maxSLOMillis)
	case !(spec.MaxMemoryMB >= 0 && spec.MaxMemoryMB <= maxMemoryMB):
		return badf("field \"max_memory_mb\" is %g, expected 0 (no ceiling) to %g", spec.MaxMemoryMB, float64(maxMemoryMB))
	case len(spec.Key) > maxJobKey:
		return badf("field \"key\" has %d bytes, at most %d are allowed", len(spec.Key), maxJobKey)
	}
	if err := checkSearch(spec); err != nil {
		return err
	}
	for _, f := range []struct {
		field string
		names []string
	}{{"exclude", spec.Exclude}, {"operators", spec.Operators}} {
		if len(f.names) > maxExcludes {
			return badf("field %q has %d entries, at most %d are allowed", f.field, len(f.names), maxExcludes)
		}
		for _, e := range f.names {
			if e == "" || len(e) > maxExclude {
				return badf("field %q: an entry has %d bytes, expected 1 to %d", f.field, len(e), maxExclude)
			}
		}
	}
	// Rules may leave nothing that needs data, tables of embeddings alone: CheckJob knows.
	ruled := len(spec.Operators) > 0 && spec.Scheme != schemeSearch && s.cfg.CheckJob != nil
	if slices.Contains(needCalibration, spec.Scheme) && !ruled && (spec.Calibration == nil || *spec.Calibration == jobs.Calibration{}) {
		return badf("scheme %q needs field \"calibration\": {\"dataset\": NAME} or {\"captured\": {}}; upload one with PUT /datasets/NAME, capture live inputs with PUT /models/NAME/capture, or use scheme int8-dynamic", spec.Scheme)
	}
	if err := s.checkCalibration(spec); err != nil {
		return err
	}
	if spec.Evaluation != nil {
		if err := s.checkDataset("evaluation", spec.Evaluation.Dataset); err != nil {
			return err
		}
	}
	if err := s.checkModel(spec.Model, spec.Version); err != nil {
		return err
	}
	if s.cfg.CheckJob != nil {
		if err := s.cfg.CheckJob(*spec); err != nil {
			return badf("%s", publicText(err))
		}
	}
	return nil
}

// checkSearch refuses bounds of a search that are none, or that belong to no search.
func checkSearch(spec *jobs.Spec) error {
	search := spec.Scheme == schemeSearch
	switch {
	case len(spec.Recipe) > maxMethod:
		return badf("field \"recipe\" has %d bytes, at most %d are allowed", len(spec.Recipe), maxMethod)
	case !(spec.MaxSizeMB >= 0 && spec.MaxSizeMB <= maxSizeMB):
		return badf("field \"max_size_mb\" is %g, expected 0 to %g", spec.MaxSizeMB, float64(maxSizeMB))
	case !(spec.TimeLimitS >= 0 && spec.TimeLimitS <= maxTimeLimit):
		return badf("field \"time_limit_s\" is %g, expected 0 to %d", spec.TimeLimitS, maxTimeLimit)
	case !search && (spec.MaxSizeMB > 0 || spec.TimeLimitS > 0):
		return badf("fields \"max_size_mb\" and \"time_limit_s\" belong to scheme %q, and this one is %q", schemeSearch, spec.Scheme)
	case search && spec.Evaluation == nil:
		return badf("scheme %q needs field \"evaluation\": {\"dataset\": NAME}, on which each trial is judged", schemeSearch)
	}
	return nil
}

// publicText words err for a client. An error that words itself by Public has no
// path of this server in it; those of others lose what looks like one.
func publicText(err error) string {
	var p interface{ Public() string }
	if errors.As(err, &p) {
		return p.Public()
	}
	return hidePaths(err.Error())
}

// checkCalibration refuses a source of calibration that is not there.
func (s *Server) checkCalibration(spec *jobs.Spec) error {
	c := spec.Calibration
	switch {
	case c == nil:
		return nil
	case c.Captured == nil:
		return s.checkDataset("calibration", c.Dataset)
	case c.Dataset != "":
		return badf("field \"calibration\": give \"dataset\" or \"captured\", not both")
	}
	model := cmp.Or(c.Captured.Model, spec.Model)
	if err := checkName("model", model); err != nil {
		return err
	}
	k, err := s.capture()
	if err != nil {
		return err
	}
	_, err = k.Status(model)
	return err
}

// checkDataset refuses a dataset that is not stored.
func (s *Server) checkDataset(field, name string) error {
	if name == "" {
		return badf("field \"%s.dataset\" is missing", field)
	}
	if err := checkName("dataset", name); err != nil {
		return err
	}
	if s.cfg.Store == nil {
		return nil
	}
	_, err := s.dataset(name)
	return err
}

// checkModel refuses a model or version that is not stored.
func (s *Server) checkModel(name, version string) error {
	_, err := s.infosOf(name, version)
	return err
}

// publicStatus is a status without file paths in its error.
func publicStatus(st jobs.Status) jobs.Status {
	st.Error = hidePaths(st.Error)
	return st
}

// jobOf reads the id of the path and the job's status.
func (s *Server) jobOf(c *gin.Context) (Jobs, jobs.Status, error) {
	q, err := s.jobs()
	if err != nil {
		return nil, jobs.Status{}, err
	}
	id, err := pathName(c, "job", "id")
	if err != nil {
		return nil, jobs.Status{}, err
	}
	st, err := q.Get(c.Request.Context(), id)
	return q, publicStatus(st), err
}

func (s *Server) job(c *gin.Context) error {
	_, st, err := s.jobOf(c)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, st)
}

func (s *Server) jobIndex(c *gin.Context) error {
	q, err := s.jobs()
	if err != nil {
		return err
	}
	list, err := q.List(c.Request.Context())
	if err != nil {
		return err
	}
	ans := jobList{Jobs: make([]jobs.Status, len(list))}
	for i, st := range list {
		ans.Jobs[i] = publicStatus(st)
	}
	return s.reply(c, http.StatusOK, ans)
}

func (s *Server) jobCancel(c *gin.Context) error {
	q, st, err := s.jobOf(c)
	if err != nil {
		return err
	}
	if err := q.Cancel(c.Request.Context(), st.ID); err != nil {
		return err
	}
	if now, err := q.Get(c.Request.Context(), st.ID); err == nil {
		st = publicStatus(now)
	}
	return s.reply(c, http.StatusAccepted, st)
}

// jobReport answers with the report of a job as HTML or JSON, by Accept.
func (s *Server) jobReport(c *gin.Context) error {
	q, st, err := s.jobOf(c)
	if err != nil {
		return err
	}
	reports, ok := q.(Reports)
	if !ok {
		return failf(http.StatusNotImplemented, "this server keeps no reports")
	}
	if !st.Status.Final() {
		return failf(http.StatusConflict, "the job is %s: its report is written when it ends", st.Status)
	}
	data, page, err := reports.Report(c.Request.Context(), st.ID)
	if err != nil {
		return err
	}
	if len(page) > 0 && wantsHTML(c.GetHeader("Accept")) {
		// The page is self-contained. Its origin is opaque, so whatever it
		// holds cannot act on this server.
		c.Header("Content-Security-Policy", "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:")
		c.Header("Vary", "Accept")
		s.write(c, http.StatusOK, typeHTML, page)
		return nil
	}
	if len(data) == 0 {
		return fmt.Errorf("%w: the job has no report", registry.ErrNotFound)
	}
	c.Header("Vary", "Accept")
	s.write(c, http.StatusOK, typeJSON, data)
	return nil
}

var typeHTML = []string{"text/html; charset=utf-8"}

// wantsHTML: the first of text/html and application/json decides.
func wantsHTML(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(media)) {
		case "text/html", "application/xhtml+xml":
			return true
		case "application/json":
			return false
		}
	}
	return false
}

// jobEvents streams a job's changes as server-sent events until it ends: event
// "status" with the same JSON as GET /quantize/{id}. Comments keep the
// connection open and notice clients that left.
func (s *Server) jobEvents(c *gin.Context) error {
	q, st, err := s.jobOf(c)
	if err != nil {
		return err
	}
	ctx := c.Request.Context()
	events, err := q.Events(ctx, st.ID)
	if err != nil {
		return err
	}
	h := c.Writer.Header()
	h["Content-Type"] = []string{eventStream}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Accel-Buffering"] = []string{"no"}
	ctl := http.NewResponseController(c.Writer)
	send := func(text string) bool {
		_ = ctl.SetWriteDeadline(time.Now().Add(s.cfg.BodyTimeout))
		if _, err := c.Writer.WriteString(text); err != nil {
			return false
		}
		c.Writer.Flush()
		return true
	}
	if !send("retry: 2000\n\n") {
		return nil
	}
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	for n := 1; ; {
		select {
		case st, ok := <-events:
			if !ok {
				return nil
			}
			data, err := json.Marshal(publicStatus(st))
			if err != nil {
				return errors.Join(errors.New("event"), err)
			}
			if !send(fmt.Sprintf("id: %d\nevent: status\ndata: %s\n\n", n, data)) || st.Status.Final() {
				return nil
			}
			n++
		case <-beat.C:
			if !send(": still here\n\n") {
				return nil
			}
		case <-s.closing:
			send(": the server is shutting down\n\n")
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
