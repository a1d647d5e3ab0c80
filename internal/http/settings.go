package http

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/trace"
)

// The logging and trace extensions of the Open Inference Protocol.
type (
	logSettings struct {
		File    *string `json:"log_file,omitempty" doc:"always empty: the log goes to standard error"`
		Info    *bool   `json:"log_info,omitempty"`
		Warning *bool   `json:"log_warning,omitempty"`
		Error   *bool   `json:"log_error,omitempty"`
		Verbose *int    `json:"log_verbose_level,omitempty" doc:"0, or 1 for a line for each request"`
		Format  *string `json:"log_format,omitempty" doc:"default, ISO8601 or json"`
	}
	// traceRequest has values as clients send them: text, numbers or lists of text;
	// null goes back to the settings above.
	traceRequest struct {
		Level json.RawMessage `json:"trace_level,omitempty" doc:"OFF or TIMESTAMPS, alone or in a list"`
		Rate  json.RawMessage `json:"trace_rate,omitempty" doc:"one request in so many"`
		Count json.RawMessage `json:"trace_count,omitempty" doc:"how many more requests, -1 without end"`
		Every json.RawMessage `json:"log_frequency,omitempty" doc:"requests in one numbered file, 0 for all in one"`
		File  json.RawMessage `json:"trace_file,omitempty" doc:"a name in the server's folder of traces"`
		Mode  json.RawMessage `json:"trace_mode,omitempty" doc:"perfetto"`
	}
	traceSettings struct {
		Level []string `json:"trace_level"`
		Rate  string   `json:"trace_rate"`
		Count string   `json:"trace_count" doc:"what is left, -1 without end"`
		Every string   `json:"log_frequency"`
		File  string   `json:"trace_file"`
		Mode  string   `json:"trace_mode"`
	}
)

func (s *Server) getLogging(c *gin.Context) error {
	set, err := s.Logging()
	if err != nil {
		return err
	}
	empty := ""
	return s.reply(c, http.StatusOK, logSettings{&empty, &set.Info, &set.Warning, &set.Error, &set.Verbose, &set.Format})
}

func (s *Server) setLogging(c *gin.Context) error {
	var req logSettings
	if err := s.decode(c, &req, true); err != nil {
		return err
	}
	if req.File != nil && *req.File != "" {
		return errLogFile
	}
	err := s.SetLogging(func(set *logs.Settings) {
		for _, f := range []struct{ from, to *bool }{{req.Info, &set.Info}, {req.Warning, &set.Warning}, {req.Error, &set.Error}} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		if req.Verbose != nil {
			set.Verbose = *req.Verbose
		}
		if req.Format != nil {
			set.Format = *req.Format
		}
	})
	if err != nil {
		return err
	}
	return s.getLogging(c)
}

var (
	errLogFile = badf("log_file cannot be set: the log goes to standard error, which whoever starts the server leads where it should go")
	errNoLog   = failf(http.StatusNotImplemented, "this server's log has no settings")
	errNoTrace = failf(http.StatusNotImplemented, "this server writes no traces")
)

// CheckLogFile refuses to lead the log elsewhere.
func CheckLogFile(name string) error {
	if name != "" {
		return errLogFile
	}
	return nil
}

// Logging returns the settings of the log.
func (s *Server) Logging() (logs.Settings, error) {
	if s.cfg.Logs == nil {
		return logs.Settings{}, errNoLog
	}
	return s.cfg.Logs.Settings(), nil
}

// SetLogging changes the settings of the log.
func (s *Server) SetLogging(change func(*logs.Settings)) error {
	set, err := s.Logging()
	if err != nil {
		return err
	}
	change(&set)
	return s.cfg.Logs.Set(set)
}

func (s *Server) getTrace(c *gin.Context) error {
	s.settle()
	set, err := s.Tracing(c.Param("model"))
	if err != nil {
		return err
	}
	v := set.Values()
	return s.reply(c, http.StatusOK, traceSettings{v["trace_level"], v["trace_rate"][0], v["trace_count"][0], v["log_frequency"][0], v["trace_file"][0], v["trace_mode"][0]})
}

func (s *Server) setTrace(c *gin.Context) error {
	var req traceRequest
	if err := s.decode(c, &req, true); err != nil {
		return err
	}
	change := map[string][]string{}
	for name, raw := range map[string]json.RawMessage{"trace_level": req.Level, "trace_rate": req.Rate, "trace_count": req.Count,
		"log_frequency": req.Every, "trace_file": req.File, "trace_mode": req.Mode} {
		if raw == nil {
			continue
		}
		values, err := settingValues(raw)
		if err != nil {
			return badf("field %q: expected text, a number, a list of text, or null", name)
		}
		change[name] = values
	}
	if err := s.SetTracing(c.Param("model"), change); err != nil {
		return err
	}
	return s.getTrace(c)
}

// settingValues reads a setting as clients send it; nil is null.
func settingValues(raw json.RawMessage) (values []string, err error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case float64:
		return []string{strconv.FormatFloat(v, 'f', -1, 64)}, nil
	case []any:
		values = []string{}
		for _, e := range v {
			text, ok := e.(string)
			if !ok {
				return nil, errNotText
			}
			values = append(values, text)
		}
		return values, nil
	}
	return nil, errNotText
}

var errNotText = badf("expected text")

// Tracing returns the trace settings of a model, or with "" those of all that
// have none of their own.
func (s *Server) Tracing(model string) (trace.Settings, error) {
	if s.cfg.Trace == nil {
		return trace.Settings{}, errNoTrace
	}
	if model != "" {
		if _, err := s.infosOf(model, ""); err != nil {
			return trace.Settings{}, err
		}
	}
	return s.cfg.Trace.Settings(model), nil
}

// SetTracing changes them (trace.Tracer.Set).
func (s *Server) SetTracing(model string, change map[string][]string) error {
	if _, err := s.Tracing(model); err != nil {
		return err
	}
	return s.cfg.Trace.Set(model, change)
}

// traceList answers GET /v2/trace/files.
func (s *Server) traceList(c *gin.Context) error {
	if s.cfg.Trace == nil {
		return errNoTrace
	}
	files, err := s.cfg.Trace.Files()
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, traceFiles{slices.Clip(files)})
}

type traceFiles struct {
	Files []trace.FileInfo `json:"files"`
}

// traceFile answers GET /v2/trace/files/{file}. A file that is being written is
// sent as it is now, which is whole.
func (s *Server) traceFile(c *gin.Context) error {
	if s.cfg.Trace == nil {
		return errNoTrace
	}
	s.settle() // a client looks for the requests that it has its answers of
	in, size, err := s.cfg.Trace.Open(c.Param("file"))
	if err != nil {
		return err
	}
	defer in.Close()
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(s.cfg.BodyTimeout + time.Duration(size)*time.Microsecond))
	c.DataFromReader(http.StatusOK, size, typeJSON[0], in, nil)
	return nil
}
