package http

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/telemetry"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// inferScratch is the memory of one inference request.
type inferScratch struct {
	body  *buffer
	held  int64 // bytes that body was charged for
	req   inferRequest
	arena arena
	feeds engine.Feeds
	names []string
	outs  []outputRef
}

var scratches = sync.Pool{New: func() any { return &inferScratch{feeds: engine.Feeds{}} }}

func (x *inferScratch) free() {
	if x.body != nil {
		x.body.free()
		x.body = nil
	}
	x.req.reset()
	for i := range x.req.inputs[:cap(x.req.inputs)] {
		in := &x.req.inputs[:cap(x.req.inputs)][i]
		*in = inferInput{shape: in.shape[:0]} // lets go of the body
	}
	x.arena.reset()
	clear(x.feeds)
	clear(x.names)
	clear(x.outs)
	x.names, x.outs = x.names[:0], x.outs[:0]
	scratches.Put(x)
}

// infer answers POST /v2/models/{model}[/versions/{version}]/infer.
func (s *Server) infer(c *gin.Context) error {
	lease, _, _, err := s.acquire(c)
	if err != nil {
		return err
	}
	defer lease.Release()
	x := scratches.Get().(*inferScratch)
	defer func() {
		s.Free(x.held)
		x.held = 0
		x.free()
	}()
	return s.counted(c.Request.Context(), originOf(c), lease, func(m *modelStats, t *timing) error {
		t.route = routeOf(c)
		if err := s.ahead(c, lease, m, t.arrival); err != nil {
			return err
		}
		ctx, cancel, err := s.readInfer(c, lease.Spec(), x, t)
		if err != nil {
			return err
		}
		defer cancel()
		m.lengths.learn(len(c.Request.Header[headerLength]) > 0, lengthOf(c.Request), lease.Size(x.feeds))
		return s.run(ctx, lease, m, x.feeds, x.names, batchOf(lease.Spec(), x.feeds), t, func(res engine.Result) error {
			return s.writeInfer(c, lease, x, res)
		})
	})
}

// hold takes n bytes of the budget for bodies, which the caller gives back also
// after an error.
func (s *Server) hold(n int64) error {
	if s.bodies.Add(n) > MaxBodiesInFlight {
		return busyf("the server holds %d MiB of request bodies already; retry later", MaxBodiesInFlight>>20)
	}
	return nil
}

// timing is where a request's time went so far.
type timing struct {
	arrival time.Time
	phases  telemetry.Durations
	rows    int64  // of the request
	batch   int64  // rows of the run that answered it
	leads   bool   // the run is counted with this request
	ran     bool   // the engine was called
	route   string // one of capture.Routes
	trace   *trace.Request
}

// counted runs a request of one model and counts how it ended. Panics count
// too, as the engine's.
func (s *Server) counted(client context.Context, origin trace.Origin, lease Lease, f func(*modelStats, *timing) error) error {
	m := s.stats.of(lease)
	t := timing{arrival: origin.Arrival}
	if s.cfg.Trace.On() {
		t.trace = s.cfg.Trace.Start(origin, m.name, m.version)
	}
	reason := failBackend
	defer func() {
		if reason >= 0 {
			t.phases[telemetry.Total] = time.Since(t.arrival)
			m.failed(reason, t.phases[telemetry.Total])
		}
		if reason != failCanceled {
			s.cfg.Telemetry.Ended(m.name, t.phases[telemetry.Total], reason < 0)
		}
		s.ended(origin, m, &t, reason)
	}()
	err := f(m, &t)
	switch status := 0; {
	case err == nil:
		now := time.Now()
		t.phases[telemetry.Total] = now.Sub(t.arrival)
		m.succeeded(now, &t)
		s.metrics.succeeded(m, &t)
		reason = -1
	default:
		status = explain(err).status
		switch {
		case status == statusClientGone || client.Err() != nil:
			reason = failCanceled
		case !t.ran:
			reason = failRejected
		case errors.Is(err, context.DeadlineExceeded):
			reason = failOther
		}
	}
	return err
}

// run hands feeds to the engine within the model's limits, and the result to
// write.
func (s *Server) run(ctx context.Context, lease Lease, m *modelStats, feeds engine.Feeds, names []string, rows int64, t *timing, write func(engine.Result) error) error {
	t.phases[telemetry.Prepare] = time.Since(t.arrival)
	t.rows = rows
	if err := m.admit(); err != nil {
		return err
	}
	defer m.release()
	if t.trace != nil {
		t.trace.Begin(telemetry.Queue)
		ctx = batch.Notify(ctx, func() { t.trace.Begin(telemetry.Infer) })
	}
	res, took, err := lease.Run(ctx, feeds, names)
	t.phases[telemetry.Queue], t.phases[telemetry.Infer] = took.Queue, took.Infer
	t.batch, t.leads, t.ran = took.Rows, took.Leads, took.Infer > 0
	if err != nil {
		if errors.Is(err, batch.ErrPanic) {
			s.metrics.panics.Inc()
		}
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) && !errors.Is(err, batch.ErrOverloaded) {
			return ended // the engine's own words for being stopped
		}
		return err
	}
	defer res.Close()
	t.trace.Begin(telemetry.Finish)
	ran := time.Now()
	err = write(res)
	t.phases[telemetry.Finish] = time.Since(ran)
	if err == nil && s.cfg.Capture != nil {
		s.cfg.Capture.Offer(lease.Name(), lease.Version(), t.route, feeds, rows)
	}
	return err
}

// readInfer reads and checks a request into x, and starts its deadline.
func (s *Server) readInfer(c *gin.Context, spec engine.IOSpec, x *inferScratch, t *timing) (context.Context, context.CancelFunc, error) {
	n, err := jsonLength(c.Request.Header)
	if err != nil {
		return nil, nil, err
	}
	// The body starts so that the first binary tensor after n bytes of JSON is
	// aligned for every element type.
	pad := 0
	if n > 0 {
		pad = int(-n & 7)
	}
	x.body = getBuffer()
	x.arena.charge = func(n int) error {
		x.held += int64(n)
		return s.hold(int64(n))
	}
	err = s.readBody(c, x.body, pad, s.cfg.MaxInferBody, x.arena.charge)
	if err != nil {
		return nil, nil, err
	}
	body := x.body.b[pad:]
	r := &x.req
	switch {
	case n == 0:
		err = rawInput(r, spec, body, &x.arena)
	case n > int64(len(body)):
		err = badf("%s is %d, the body has %d bytes", headerLength, n, len(body))
	case n > 0:
		if err = parseInfer(body[:n], r, &x.arena); err == nil {
			err = attachBinary(r, body[n:], &x.arena)
		}
	default:
		if err = parseInfer(body, r, &x.arena); err == nil {
			err = attachBinary(r, nil, &x.arena)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	for i := range r.inputs {
		in := &r.inputs[i]
		x.feeds[string(in.name)] = &in.tensor
	}
	if err := engine.CheckFeeds(spec, x.feeds); err != nil {
		return nil, nil, err
	}
	if err := checkTokens(x.feeds); err != nil {
		return nil, nil, err
	}
	if err := x.wanted(spec); err != nil {
		return nil, nil, err
	}
	limit, err := timeoutOf(c.Request.Header)
	if err != nil {
		return nil, nil, err
	}
	switch own := time.Duration(r.timeout) * time.Microsecond; {
	case own > 0 && limit > 0:
		limit = min(limit, own)
	case own > 0:
		limit = own
	case limit == 0:
		limit = s.cfg.InferTimeout
	}
	ctx, cancel := context.WithDeadline(c.Request.Context(), t.arrival.Add(limit))
	return ctx, cancel, nil
}

// wanted lists the outputs to compute in the order to answer them.
func (x *inferScratch) wanted(spec engine.IOSpec) error {
	if len(x.req.outputs) == 0 {
		for _, io := range spec.Outputs {
			x.names = append(x.names, io.Name)
			x.outs = append(x.outs, outputRef{name: io.Name, binary: x.req.binary})
		}
		return nil
	}
next:
	for _, o := range x.req.outputs {
		for _, io := range spec.Outputs {
			if string(o.name) == io.Name {
				x.names = append(x.names, io.Name)
				x.outs = append(x.outs, outputRef{name: io.Name, binary: o.binary == 1 || o.binary < 0 && x.req.binary})
				continue next
			}
		}
		return badf("the model has no output %s", clip(o.name))
	}
	return nil
}

// writeInfer answers with the outputs of a run.
func (s *Server) writeInfer(c *gin.Context, lease Lease, x *inferScratch, res engine.Result) error {
	tensors := res.Tensors()
	outs := x.outs[:0]
	for _, o := range x.outs {
		if o.tensor = tensors[o.name]; o.tensor != nil { // an optional output may be left out
			outs = append(outs, o)
		}
	}
	buf := getBuffer()
	defer buf.free()
	ans, err := encodeAnswer(buf.b, lease.Name(), lease.Version(), x.req.id, outs)
	if err != nil {
		return err
	}
	buf.b = ans.json
	if len(ans.parts) == 0 {
		s.write(c, http.StatusOK, typeJSON, ans.json)
		return nil
	}
	h := c.Writer.Header()
	h[headerLength] = []string{strconv.Itoa(len(ans.json))}
	if ans.size <= 64<<10 && cap(buf.b)-len(buf.b) >= ans.size || len(ans.parts) > 8 {
		for _, p := range ans.parts { // one write for small answers
			buf.b = append(buf.b, p...)
		}
		s.write(c, http.StatusOK, typeBytes, buf.b)
		return nil
	}
	s.write(c, http.StatusOK, typeBytes, append([][]byte{ans.json}, ans.parts...)...)
	return nil
}

// batchOf returns the first dimension of the first input when the model leaves
// it variable, else 1.
func batchOf(spec engine.IOSpec, feeds engine.Feeds) int64 {
	if len(spec.Inputs) == 0 {
		return 1
	}
	io := spec.Inputs[0]
	if len(io.Dims) == 0 || io.Dims[0] >= 0 {
		return 1
	}
	return feeds[io.Name].Dims[0]
}

// checkTokens bounds the integer matrices of a request, padding included.
func checkTokens(feeds engine.Feeds) error {
	for name, t := range feeds {
		if (t.Type == tensor.Int64 || t.Type == tensor.Int32) && len(t.Dims) == 2 && t.Len() > MaxTokens {
			return limitf("input %s has %d tokens, at most %d are allowed in one request: send fewer rows", clip([]byte(name)), t.Len(), MaxTokens)
		}
	}
	return nil
}
