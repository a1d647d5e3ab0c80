package grpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	fhttp "github.com/fewbit/fewbit/internal/http"
)

// call is what is known of a call, from its header on.
type call struct {
	caller fhttp.Caller
	cert   string
	began  time.Time
	about  string // the model of an administrator's call

	b        Backend
	patience time.Duration // until a message that is awaited must have arrived
	slot     func()        // gives its place among those that arrive back

	mu      sync.Mutex
	clock   *time.Timer
	due     time.Time // when the message must have arrived
	waits   bool      // for a message
	rests   bool      // its client may let it wait before it begins with one
	held    int64     // bytes of messages that are not whole
	ended   bool
	refused chan struct{} // closed when the call is given up
	why     error         // set before
}

type callKey struct{}

// callIn returns what receiving knew of a call.
func callIn(ctx context.Context) *call { c, _ := ctx.Value(callKey{}).(*call); return c }

// errSlow refuses a request that does not arrive.
var errSlow = status.Error(codes.DeadlineExceeded, "the request did not arrive in time")

// expect starts the clock of a call whose header has arrived.
func (c *call) expect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits, c.refused = true, make(chan struct{})
	c.due = time.Now().Add(c.patience)
	c.clock = time.AfterFunc(c.patience, c.late)
}

// rest lets the client of a stream be silent.
func (c *call) rest() {
	c.arrived()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rests = true
}

// arrived stops the clock, and gives the call's place to another.
func (c *call) arrived() {
	c.mu.Lock()
	c.waits = false
	c.clock.Stop()
	c.mu.Unlock()
	c.slot()
}

func (c *call) late() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits && !(c.rests && c.held == 0) && !time.Now().Before(c.due) {
		c.refuse(errSlow)
	}
}

// refuse gives the call up. c.mu is held.
func (c *call) refuse(why error) {
	if c.why == nil {
		c.why = why
		close(c.refused)
	}
}

// charge takes bytes that arrived from the budget that all requests share.
func (c *call) charge(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.why != nil {
		return
	}
	if err := c.b.Hold(n); err != nil {
		c.refuse(err)
		return
	}
	if c.rests && c.waits && c.held == 0 {
		c.restart()
	}
	c.held += n
}

func (c *call) restart() {
	c.due = time.Now().Add(c.patience)
	c.clock.Reset(c.patience)
}

// whole gives the bytes of a message back that grpc has taken over.
func (c *call) whole(wire int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(int64(wire), c.held)
	c.held -= n
	c.b.Free(n)
}

// end gives everything back.
func (c *call) end() {
	c.mu.Lock()
	c.ended = true
	c.clock.Stop()
	c.b.Free(c.held)
	c.held = 0
	c.mu.Unlock()
	c.slot()
}

// receive waits for a message, or until the call is given up: grpc's own word
// for a call that is cancelled could not say why.
func (c *call) receive(recv func(any) error, m any) error {
	if c.rests {
		c.mu.Lock()
		c.waits = true
		if c.held > 0 {
			c.restart()
		}
		c.mu.Unlock()
	}
	done := make(chan error, 1)
	go func() { done <- recv(m) }() // ends with the call
	select {
	case err := <-done:
		c.arrived()
		return err
	case <-c.refused:
		return c.why
	}
}

// arriving is a stream whose messages are waited for by its call.
type arriving struct {
	grpc.ServerStream
	ctx context.Context
	c   *call
}

func (s arriving) Context() context.Context { return s.ctx }
func (s arriving) RecvMsg(m any) error      { return s.c.receive(s.ServerStream.RecvMsg, m) }

// asStreams makes streams of a service's calls that have one request and one
// answer. On the wire they are the same, and a stream's request is waited for
// within its handler, which can then say why it waits no longer. around is called
// as for every stream, before the request has arrived; within with the request.
func asStreams(d grpc.ServiceDesc, around grpc.StreamServerInterceptor, within grpc.UnaryServerInterceptor) *grpc.ServiceDesc {
	streams := d.Streams[:len(d.Streams):len(d.Streams)]
	for _, m := range d.Methods {
		one := func(srv any, ss grpc.ServerStream) error {
			res, err := m.Handler(srv, ss.Context(), ss.RecvMsg, within)
			if err != nil {
				return err
			}
			return ss.SendMsg(res)
		}
		info := &grpc.StreamServerInfo{FullMethod: "/" + d.ServiceName + "/" + m.MethodName}
		streams = append(streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: func(srv any, ss grpc.ServerStream) error {
			return around(srv, ss, info, one)
		}})
	}
	d.Methods, d.Streams = nil, streams
	return &d
}

// wholes tells calls of messages that grpc has read to their end.
type wholes struct{}

func (wholes) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		if c := callIn(ctx); c != nil {
			c.whole(in.WireLength)
		}
	}
}

func (wholes) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (wholes) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (wholes) HandleConn(context.Context, stats.ConnStats)                       {}
