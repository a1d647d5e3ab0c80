// Package grpc serves the Open Inference Protocol over gRPC: the same models,
// limits, counters and errors as package http, which does the work.
package grpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // requests may be compressed; their size counts after it
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/trace"
)

// Backend is what the calls are answered from: *http.Server.
type Backend interface {
	Infer(ctx context.Context, model, version string, origin trace.Origin, read func(engine.IOSpec) (fhttp.Call, error), write func(lease fhttp.Lease, names []string, res engine.Result) error) error
	Explain(method, path, id string, err error) (status int, text string, retryAfter int)
	Models() fhttp.Models
	Info() (name, version string, extensions []string)
	IsReady() bool
	Ready(name, version string) (bool, error)
	ModelVersions(name, version string) ([]fhttp.ModelInfo, error)
	Statistics(name, version string) ([]fhttp.ModelStatistics, error)
	Enter(need fhttp.Need, c *fhttp.Caller) error
	Allow(c *fhttp.Caller) error
	Hold(n int64) error
	Free(n int64)
	Record(began time.Time, e access.Event)
	Load(ctx context.Context, model string, p *fhttp.LoadParams) (version string, err error)
	Logging() (logs.Settings, error)
	SetLogging(change func(*logs.Settings)) error
	Tracing(model string) (trace.Settings, error)
	SetTracing(model string, change map[string][]string) error
}

// Limits of a connection.
const (
	// MaxStreams bounds the calls that run on one connection at a time.
	MaxStreams = 256
	// maxHeaderBytes bounds the metadata of a call.
	maxHeaderBytes = 64 << 10
	// handshakeTime bounds how long a connection may take to be set up.
	handshakeTime = 10 * time.Second
	// idleTime is how long a connection without calls is kept.
	idleTime = 5 * time.Minute
	// pingTime is how often a silent client is asked whether it is there, and
	// minPing how often a client may ask that of us.
	pingTime = time.Minute
	minPing  = 10 * time.Second
)

// Options configure a Server.
type Options struct {
	// MaxMessage bounds a request, in bytes. Default: http.MaxInferBody.
	MaxMessage int64
	// MaxConns bounds the connections. Default: http.DefaultMaxConns.
	MaxConns int
	// ReceiveTimeout is how long a request may take to arrive. Default:
	// http.DefaultBodyTimeout.
	ReceiveTimeout time.Duration
	// Drain is how long calls may take at shutdown. Default: http.DefaultDrainTimeout.
	Drain time.Duration
	// TLS is nil for clear text.
	TLS *tls.Config
	// NoAdmin refuses the calls of administrators, who have a listener of their
	// own for HTTP.
	NoAdmin bool
}

// Server answers GRPCInferenceService.
type Server struct {
	pb.UnimplementedGRPCInferenceServiceServer
	b        Backend
	o        Options
	loopback bool
	arriving atomic.Int64 // calls whose request has not arrived whole
	streams  atomic.Int64 // that are open
}

// New returns a server of b's models.
func New(b Backend, o Options) *Server {
	if o.MaxMessage <= 0 {
		o.MaxMessage = fhttp.MaxInferBody
	}
	if o.Drain <= 0 {
		o.Drain = fhttp.DefaultDrainTimeout
	}
	if o.MaxConns <= 0 {
		o.MaxConns = fhttp.DefaultMaxConns
	}
	if o.ReceiveTimeout <= 0 {
		o.ReceiveTimeout = fhttp.DefaultBodyTimeout
	}
	return &Server{b: b, o: o}
}

// Serve answers on l, which it closes, until ctx ends; calls in progress are
// then finished, at most for Options.Drain. It is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		s.loopback = tcp.IP.IsLoopback()
	}
	creds := insecure.NewCredentials()
	if s.o.TLS != nil {
		creds = credentials.NewTLS(s.o.TLS)
	}
	g := grpc.NewServer(
		grpc.Creds(metering{creds}), grpc.ForceServerCodecV2(newCodec()), grpc.InTapHandle(s.receiving), grpc.StatsHandler(wholes{}),
		grpc.MaxRecvMsgSize(int(s.o.MaxMessage)), grpc.MaxSendMsgSize(int(s.o.MaxMessage)),
		grpc.MaxConcurrentStreams(MaxStreams), grpc.MaxHeaderListSize(maxHeaderBytes), grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTime, Time: pingTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.StreamInterceptor(s.serve),
	)
	g.RegisterService(asStreams(pb.GRPCInferenceService_ServiceDesc, s.serve, s.answer), s)
	reflection.Register(g) // the description that clients such as grpcurl ask for; it is in the repository anyway
	done := make(chan error, 1)
	go func() { done <- g.Serve(netutil.LimitListener(l, s.o.MaxConns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("grpc: %w", err)
	case <-ctx.Done():
	}
	graceful := make(chan struct{})
	go func() { g.GracefulStop(); close(graceful) }()
	select {
	case <-graceful:
	case <-time.After(s.o.Drain):
		g.Stop()
	}
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("grpc: %w", err)
	}
	return nil
}

// serve is around every call: it makes a status of every error, and of a panic.
func (s *Server) serve(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	c := callIn(ss.Context())
	if c == nil {
		return s.status(ss.Context(), info.FullMethod, errUnseen)
	}
	ctx, id := named(ss.Context())
	_ = ss.SetHeader(metadata.Pairs(idHeader, id))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		var code int
		code, err = s.word(ctx, info.FullMethod, err)
		if needOf(info.FullMethod) == fhttp.NeedAdmin {
			s.record(c, strings.TrimSpace(info.FullMethod+" "+c.about), code, err)
		}
	}()
	if info.IsClientStream {
		c.rest()
		defer s.streams.Add(-1)
		if s.streams.Add(1) > maxOpenStreams {
			return fhttp.Busy("too many streams are open; retry later")
		}
	}
	return h(srv, arriving{ss, ctx, c})
}

// answer is around every call with one request, which has arrived.
func (s *Server) answer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if about, ok := req.(interface{ GetModelName() string }); ok {
		callIn(ctx).about = about.GetModelName()
	}
	free, err := s.take(req)
	if err != nil {
		return nil, err
	}
	defer free()
	return h(ctx, req)
}

// take looks at the names in a request, and takes its memory from the budget for
// all of them.
func (s *Server) take(req any) (free func(), err error) {
	model, version := "", ""
	switch r := req.(type) {
	case interface{ GetModelName() string }:
		model = r.GetModelName()
	case interface{ GetName() string }:
		model = r.GetName()
	}
	switch r := req.(type) {
	case interface{ GetModelVersion() string }:
		version = r.GetModelVersion()
	case interface{ GetVersion() string }:
		version = r.GetVersion()
	}
	if err := fhttp.CheckNames(model, version); err != nil {
		return nil, err
	}
	m, _ := req.(proto.Message)
	n := int64(proto.Size(m))
	return func() { s.b.Free(n) }, s.b.Hold(n)
}

// idHeader carries the id that a call has in the log, both ways.
const idHeader = "x-request-id"

type idKey struct{}

// named gives a call its id.
func named(ctx context.Context) (context.Context, string) {
	md, _ := metadata.FromIncomingContext(ctx)
	id := fhttp.RequestID(md[idHeader])
	return context.WithValue(ctx, idKey{}, id), id
}

func idOf(ctx context.Context) string {
	id, _ := ctx.Value(idKey{}).(string)
	return id
}

// codeOf maps the statuses of package http to gRPC's codes
// (google/rpc/code.proto names the HTTP status of each).
var codeOf = map[int]codes.Code{
	http.StatusBadRequest: codes.InvalidArgument, http.StatusUnprocessableEntity: codes.InvalidArgument,
	http.StatusUnauthorized: codes.Unauthenticated, http.StatusForbidden: codes.PermissionDenied,
	http.StatusNotFound: codes.NotFound, http.StatusConflict: codes.FailedPrecondition,
	http.StatusRequestEntityTooLarge: codes.ResourceExhausted, http.StatusInsufficientStorage: codes.ResourceExhausted,
	http.StatusTooManyRequests: codes.ResourceExhausted,
	http.StatusNotImplemented:  codes.Unimplemented, http.StatusServiceUnavailable: codes.Unavailable,
}

// status words err for the client.
func (s *Server) status(ctx context.Context, method string, err error) error {
	_, err = s.word(ctx, method, err)
	return err
}

// word is status with the HTTP status that stands for it.
func (s *Server) word(ctx context.Context, method string, err error) (int, error) {
	if err == nil {
		return http.StatusOK, nil
	}
	code, st, retry := s.reason(ctx, method, err)
	if retry > 0 {
		// For clients with a retry policy (gRFC A6), and as HTTP has it. A call that
		// is refused by its header has no trailer but the status.
		_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", strconv.FormatInt(retry.Milliseconds(), 10), "retry-after", strconv.Itoa(int(retry/time.Second))))
	}
	return code, st.Err()
}

// reason is what a client is told of err: the HTTP status that stands for it, the
// status, and when to come again, 0 where that is of no use.
func (s *Server) reason(ctx context.Context, method string, err error) (int, *status.Status, time.Duration) {
	if st, ok := status.FromError(err); ok { // grpc's own, errSlow or errElsewhere
		if st.Code() == codes.PermissionDenied {
			return http.StatusForbidden, st, 0
		}
		return http.StatusBadRequest, st, 0
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return statusClientGone, status.New(codes.Canceled, "the client left"), 0
	}
	code, text, retry := s.b.Explain("gRPC", method, idOf(ctx), err)
	c, known := codeOf[code]
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		c = codes.DeadlineExceeded
	case !known:
		c = codes.Internal
	}
	st, after := status.New(c, text), time.Duration(retry)*time.Second
	if after > 0 {
		if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
			st = with
		}
	}
	return code, st, after
}

// statusClientGone is nginx's status of a request whose client left.
const statusClientGone = 499
