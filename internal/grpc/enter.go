package grpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
)

// What may take memory before a call is answered.
const (
	// maxReceiving bounds the calls whose request has not arrived whole. Their
	// bytes count towards http.MaxBodiesInFlight.
	maxReceiving = 256
	// maxOpenStreams bounds the streams, which may rest for as long as their
	// client likes.
	maxOpenStreams = 4096
)

// needs are what the calls need that need not a key for inference.
var needs = map[string]fhttp.Need{
	pb.GRPCInferenceService_ServerLive_FullMethodName:            fhttp.NeedNothing,
	pb.GRPCInferenceService_ServerReady_FullMethodName:           fhttp.NeedNothing,
	pb.GRPCInferenceService_RepositoryModelLoad_FullMethodName:   fhttp.NeedAdmin,
	pb.GRPCInferenceService_RepositoryModelUnload_FullMethodName: fhttp.NeedAdmin,
}

func needOf(method string) fhttp.Need {
	if n, ok := needs[method]; ok {
		return n
	}
	return fhttp.NeedInfer
}

// errUnseen refuses a call that receiving did not let in.
var errUnseen = errors.New("grpc: a call reached its handler past the tap")

// receiving sees a call when its header has arrived: it lets the caller in
// before the request takes memory, and gives the request a time to arrive. It
// runs on the connection's own goroutine and must not wait.
func (s *Server) receiving(ctx context.Context, info *tap.Info) (context.Context, error) {
	c := &call{began: time.Now(), b: s.b, patience: s.o.ReceiveTimeout}
	c.caller = fhttp.Caller{Loopback: s.loopback, Key: fhttp.KeyOf(func(name string) string {
		if v := info.Header.Get(name); len(v) > 0 {
			return v[0]
		}
		return ""
	})}
	p, _ := peer.FromContext(ctx)
	c.caller.Addr = p.Addr.String()
	if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		c.cert = t.State.PeerCertificates[0].Subject.String()
	}
	need := needOf(info.FullMethodName)
	err := s.b.Enter(need, &c.caller)
	if need == fhttp.NeedAdmin && s.o.NoAdmin {
		err = errElsewhere
	}
	if err != nil {
		code, err := s.word(ctx, info.FullMethodName, err)
		if need == fhttp.NeedAdmin {
			s.record(c, info.FullMethodName, code, err)
		}
		return nil, err
	}
	if s.arriving.Add(1) > maxReceiving {
		s.arriving.Add(-1)
		return nil, s.status(ctx, info.FullMethodName, fhttp.Busy("too many requests are arriving; retry later"))
	}
	c.slot = sync.OnceFunc(func() { s.arriving.Add(-1) })
	c.expect()
	forget := p.Addr.(meteredAddr).m.opened(c)
	ctx = context.WithValue(ctx, callKey{}, c)
	context.AfterFunc(ctx, func() { // however the call ends
		forget()
		c.end()
	})
	return ctx, nil
}

// errElsewhere refuses an administrator's call where they have a listener.
var errElsewhere = status.Error(codes.PermissionDenied, "calls of administrators are answered by HTTP at the address of --admin-listen only")

// record writes an administrator's call down.
func (s *Server) record(c *call, path string, code int, err error) {
	e := access.Event{Who: c.caller.Name, From: c.caller.Addr, Cert: c.cert, Method: "gRPC", Path: path, Status: code}
	if err != nil {
		e.Error = status.Convert(err).Message()
	}
	s.b.Record(c.began, e)
}
