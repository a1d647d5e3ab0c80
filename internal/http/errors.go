package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/task/vision"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// httpError is an error whose text is for the client.
type httpError struct {
	status int
	msg    string
	retry  int  // Retry-After in seconds, 0 for none
	kind   kind // where another protocol tells 400s apart
}

// kind of a 400.
type kind int

const (
	kindOther  kind = iota
	kindEmpty       // there is nothing in it
	kindLimit       // there is too much in it
	kindUnable      // the model does not do that
)

func (e *httpError) Error() string { return e.msg }

func failf(status int, format string, args ...any) error {
	return &httpError{status: status, msg: fmt.Sprintf(format, args...)}
}

// badf is a 400.
func badf(format string, args ...any) error { return failf(http.StatusBadRequest, format, args...) }

// emptyf is a 400 for a request with nothing in it, limitf one for too much,
// unablef one for a model that does not do what is asked.
func emptyf(format string, args ...any) error {
	return &httpError{status: http.StatusBadRequest, msg: fmt.Sprintf(format, args...), kind: kindEmpty}
}

func limitf(format string, args ...any) error {
	return &httpError{status: http.StatusBadRequest, msg: fmt.Sprintf(format, args...), kind: kindLimit}
}

func unablef(format string, args ...any) error {
	return &httpError{status: http.StatusBadRequest, msg: fmt.Sprintf(format, args...), kind: kindUnable}
}

func busyf(format string, args ...any) error {
	return &httpError{status: http.StatusServiceUnavailable, msg: fmt.Sprintf(format, args...), retry: 1}
}

// statusClientGone is what a request whose client left is counted as; nobody
// reads the answer (nginx's convention).
const statusClientGone = 499

// errorStatus is the table from the errors of other packages to a status and
// the seconds of Retry-After, 0 for none.
var errorStatus = []struct {
	err    error
	status int
	retry  int
}{
	{engine.ErrInput, http.StatusBadRequest, 0},
	{tensor.ErrShape, http.StatusBadRequest, 0},
	{vision.ErrDecode, http.StatusBadRequest, 0},
	{vision.ErrTooLarge, http.StatusRequestEntityTooLarge, 0},
	{registry.ErrName, http.StatusBadRequest, 0},
	{registry.ErrInvalid, http.StatusBadRequest, 0},
	// Behind ErrInvalid: in an upload it is the content that is wrong.
	{vision.ErrConfig, http.StatusUnprocessableEntity, 0},
	{jobs.ErrSpec, http.StatusBadRequest, 0},
	{logs.ErrSetting, http.StatusBadRequest, 0},
	{trace.ErrSetting, http.StatusBadRequest, 0},
	{trace.ErrNoFile, http.StatusNotFound, 0},
	{engine.ErrModel, http.StatusUnprocessableEntity, 0},
	{registry.ErrNotFound, http.StatusNotFound, 0},
	{jobs.ErrNotFound, http.StatusNotFound, 0},
	{capture.ErrNotFound, http.StatusNotFound, 0},
	{capture.ErrSettings, http.StatusBadRequest, 0},
	{capture.ErrNoKey, http.StatusNotImplemented, 0},
	{capture.ErrKey, http.StatusConflict, 0},
	{capture.ErrExists, http.StatusConflict, 0},
	{capture.ErrEmpty, http.StatusConflict, 0},
	{capture.ErrRagged, http.StatusConflict, 0},
	{capture.ErrTooMany, http.StatusConflict, 0},
	{jobs.ErrFinished, http.StatusConflict, 0},
	{jobs.ErrConflict, http.StatusConflict, 0},
	{registry.ErrInUse, http.StatusConflict, 0},
	{registry.ErrTooLarge, http.StatusRequestEntityTooLarge, 0},
	{registry.ErrMemory, http.StatusInsufficientStorage, 0},
	{registry.ErrNoSpace, http.StatusInsufficientStorage, 0},
	{syscall.ENOSPC, http.StatusInsufficientStorage, 0},
	{registry.ErrNotReady, http.StatusServiceUnavailable, 1},
	{jobs.ErrBusy, http.StatusServiceUnavailable, 5},
	{jobs.ErrClosed, http.StatusServiceUnavailable, 5},
	{batch.ErrOverloaded, http.StatusServiceUnavailable, 1},
	{engine.ErrMemory, http.StatusServiceUnavailable, 5},
	{engine.ErrUnavailable, http.StatusServiceUnavailable, 5},
	{engine.ErrClosed, http.StatusServiceUnavailable, 1},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, 1},
	{os.ErrDeadlineExceeded, http.StatusRequestTimeout, 0},
	{context.Canceled, statusClientGone, 0},
	{io.ErrUnexpectedEOF, http.StatusBadRequest, 0},
}

// explain maps an error to what the client is told. It is the only place that
// does. Errors it does not know become a 500 whose text says nothing.
func explain(err error) *httpError {
	var he *httpError
	if errors.As(err, &he) {
		return he
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &httpError{status: http.StatusRequestEntityTooLarge, msg: fmt.Sprintf("the body is larger than the limit of %d bytes", tooLarge.Limit)}
	}
	for _, e := range errorStatus {
		if errors.Is(err, e.err) {
			return &httpError{status: e.status, msg: clientText(err, e.err), retry: max(e.retry, retryAfter(err))}
		}
	}
	return &httpError{status: http.StatusInternalServerError, msg: "internal error: the server could not answer this request; its operator finds the cause in the server's log"}
}

// retryAfter is what the batcher says, in whole seconds; 0 for other errors.
func retryAfter(err error) int {
	var o *batch.Overloaded
	if !errors.As(err, &o) {
		return 0
	}
	return int(min((o.RetryAfter+time.Second-1)/time.Second, maxRetryAfter))
}

// maxRetryAfter bounds the seconds of Retry-After: a prediction further ahead
// is a guess.
const maxRetryAfter = 60

// clientText words err for a client: its own text without paths, or only the
// sentinel's when an operating-system error is inside.
func clientText(err, sentinel error) string {
	is := func(target error) bool { return errors.Is(sentinel, target) }
	switch {
	case is(context.DeadlineExceeded):
		return "the request's deadline passed before the model answered; retry later or allow more time (parameter timeout, in microseconds)"
	case is(os.ErrDeadlineExceeded):
		return "the body did not arrive in time"
	case is(io.ErrUnexpectedEOF):
		return "the body ended early"
	case is(syscall.ENOSPC):
		return "no space left on the server's disk"
	}
	var pe *fs.PathError
	var le *os.LinkError
	if errors.As(err, &pe) || errors.As(err, &le) {
		return sentinel.Error()
	}
	return hidePaths(err.Error())
}

var absPath = regexp.MustCompile(`(^|[\s"'` + "`" + `(=:\[,])(/[^/\s"'` + "`" + `:;,()\[\]][^\s"'` + "`" + `:;,()\[\]]*)`)

// publicPaths are the first parts of this server's own routes, which may be
// named in an error.
var publicPaths = map[string]bool{"v1": true, "v2": true, "quantize": true, "models": true, "datasets": true, "telemetry": true, "metrics": true, "debug": true}

// hidePaths replaces every absolute file path in s by its last part.
func hidePaths(s string) string {
	if !strings.Contains(s, "/") { // most refusals, of which an overloaded server makes many
		return s
	}
	return absPath.ReplaceAllStringFunc(s, func(m string) string {
		i := strings.IndexByte(m, '/')
		path := m[i:]
		first, _, _ := strings.Cut(path[1:], "/")
		if publicPaths[first] {
			return m
		}
		return m[:i] + path[strings.LastIndexByte(path, '/')+1:]
	})
}
