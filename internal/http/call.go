package http

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// What other protocols share with the HTTP server: its models, limits, counters
// and words for errors.

// Call is an inference that another protocol has read.
type Call struct {
	Feeds engine.Feeds
	// Outputs are those asked for, in the order to answer; empty is all.
	Outputs []string
	// Timeout is the request's own, 0 for the server's.
	Timeout time.Duration
}

// Infer answers one inference: read makes the call from the model's inputs and
// outputs, write words the result, whose tensors are valid until it returns.
// Errors are for Explain.
func (s *Server) Infer(ctx context.Context, model, version string, origin trace.Origin, read func(engine.IOSpec) (Call, error), write func(lease Lease, names []string, res engine.Result) error) error {
	lease, err := s.cfg.Models.Acquire(ctx, model, version)
	if err != nil {
		return err
	}
	defer lease.Release()
	return s.counted(ctx, origin, lease, func(m *modelStats, t *timing) error {
		t.route = "grpc"
		spec := lease.Spec()
		if err := m.room(); err != nil {
			return err
		}
		if err := lease.Refuses(0, time.Time{}); err != nil {
			return err
		}
		call, err := read(spec)
		if err != nil {
			return err
		}
		if err := engine.CheckFeeds(spec, call.Feeds); err != nil {
			return err
		}
		if err := checkTokens(call.Feeds); err != nil {
			return err
		}
		names, err := outputNames(spec, call.Outputs)
		if err != nil {
			return err
		}
		limit := s.cfg.InferTimeout
		if call.Timeout > 0 {
			limit = min(call.Timeout, time.Duration(MaxTimeoutMicros)*time.Microsecond)
		}
		ctx, cancel := context.WithDeadline(ctx, t.arrival.Add(limit))
		defer cancel()
		return s.run(ctx, lease, m, call.Feeds, names, batchOf(spec, call.Feeds), t, func(res engine.Result) error {
			return write(lease, names, res)
		})
	})
}

// Hold takes n bytes of the budget for the bodies of all requests, until Free.
// After an error it has taken none.
func (s *Server) Hold(n int64) error {
	err := s.hold(n)
	if err != nil {
		s.Free(n)
	}
	return err
}

// Free gives n bytes back that Hold has taken.
func (s *Server) Free(n int64) {
	s.bodies.Add(-n)
	s.trim.dropped(n)
}

// outputNames checks the outputs that a request asks for.
func outputNames(spec engine.IOSpec, wanted []string) ([]string, error) {
	if len(wanted) == 0 {
		for _, io := range spec.Outputs {
			wanted = append(wanted, io.Name)
		}
		return wanted, nil
	}
	for i, name := range wanted {
		switch {
		case !slices.ContainsFunc(spec.Outputs, func(io engine.IO) bool { return io.Name == name }):
			return nil, badf("the model has no output %s", clip([]byte(name)))
		case slices.Contains(wanted[:i], name):
			return nil, badf("output %s is asked for twice", clip([]byte(name)))
		}
	}
	return wanted, nil
}

// BadRequest is an error that is the client's fault.
func BadRequest(format string, args ...any) error { return badf(format, args...) }

// CheckNames refuses names of a model and a version that no model can have; ""
// is none.
func CheckNames(model, version string) error {
	if model != "" {
		if err := checkName("model", model); err != nil {
			return err
		}
	}
	if version != "" {
		return checkName("version", version)
	}
	return nil
}

// Busy is an error of a server that has too much to do: another try makes sense
// soon.
func Busy(format string, args ...any) error { return busyf(format, args...) }

// Explain maps an error of this package's methods to an HTTP status, its text
// for the client and the seconds after which a retry makes sense, 0 for none.
// What the client may not see goes to Config.OnError, with the request's id.
func (s *Server) Explain(method, path, id string, err error) (status int, text string, retryAfter int) {
	e := explain(err)
	if e.status == http.StatusInternalServerError && s.cfg.OnError != nil {
		s.cfg.OnError(method, path, id, err)
	}
	return e.status, e.msg, e.retry
}

// Models are the server's.
func (s *Server) Models() Models { return s.cfg.Models }

// Platform is what model metadata and configuration call the runtime.
const Platform = platform

// Info is what the server says of itself.
func (s *Server) Info() (name, version string, implemented []string) {
	return serverName, s.cfg.Version, slices.Clone(extensions)
}

// IsReady is what the health routes answer: no default version is on its way
// in, and the server is not stopping.
func (s *Server) IsReady() bool { return s.isReady() }

// TensorOf makes an input from little-endian bytes as the protocol's binary
// form has them. It shares memory with raw where that is aligned.
func TensorOf(name, datatype string, shape []int64, raw []byte) (*tensor.Tensor, error) {
	dt, ok := tensor.ParseDType(datatype)
	if !ok {
		return nil, badf("input %s: unknown datatype %s", clip([]byte(name)), clip([]byte(datatype)))
	}
	in := inferInput{name: []byte(name), dtype: dt, shape: shape}
	if err := in.setBytes(raw, new(arena)); err != nil {
		return nil, err
	}
	return &in.tensor, nil
}

// Bytes returns a tensor's elements in that form. It shares memory with t
// unless t holds strings.
func Bytes(t *tensor.Tensor) []byte { return binaryTensor(t) }

// ModelVersions are the lines of the index for a model, or one version of it.
func (s *Server) ModelVersions(name, version string) ([]ModelInfo, error) {
	return s.infosOf(name, version)
}

// Ready reports whether requests for the model would be served: it is loaded, or
// the next request loads it.
func (s *Server) Ready(name, version string) (bool, error) {
	infos, err := s.infosOf(name, version)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(infos, func(m ModelInfo) bool {
		return (m.State == StateReady || m.Lazy) && (version != "" || m.Default || len(infos) == 1)
	}), nil
}

// ModelStatistics are the counters of a version, as GET /v2/models/stats words
// them.
type ModelStatistics = modelStatsJSON

// Duration is a count and a sum of durations.
type Duration = durationJSON

// Statistics returns the counters of a model, of one of its versions, or with
// two empty names of all.
func (s *Server) Statistics(name, version string) ([]ModelStatistics, error) {
	infos := s.cfg.Models.List()
	if name != "" {
		var err error
		if infos, err = s.infosOf(name, version); err != nil {
			return nil, err
		}
	} else if version != "" {
		return nil, badf("a version needs a model's name")
	}
	s.settle()
	stats := make([]ModelStatistics, 0, len(infos))
	for _, m := range infos {
		st := s.stats.statsOf(m.Name, m.Version)
		if m.Memory > 0 {
			st.Memory = append(st.Memory, memoryJSON{Type: "CPU", Bytes: uint64(m.Memory)})
		}
		stats = append(stats, st)
	}
	return stats, nil
}
