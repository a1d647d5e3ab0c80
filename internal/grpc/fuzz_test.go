package grpc

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FuzzService decodes bytes as the request of each call and answers it: no panic,
// and no error that the server has no words for.
func FuzzService(f *testing.F) {
	e := &fake.Engine{}
	e.Add(fake.Any, echoes(tensor.Float32))
	session, err := e.OpenFile(f.Context(), "m", engine.Options{})
	if err != nil {
		f.Fatal(err)
	}
	h, err := fhttp.New(fhttp.Config{Models: &oneModel{q: batch.New(batch.Options{}).Queue(session, batch.QueueOptions{})}})
	if err != nil {
		f.Fatal(err)
	}
	s := New(h, Options{})
	calls := []func(context.Context, []byte) error{
		fuzzCall(s.ModelInfer), fuzzCall(s.ModelReady), fuzzCall(s.ModelMetadata), fuzzCall(s.ModelConfig), fuzzCall(s.ModelStatistics),
		fuzzCall(s.RepositoryIndex), fuzzCall(s.RepositoryModelLoad), fuzzCall(s.RepositoryModelUnload), fuzzCall(s.ServerMetadata), fuzzCall(s.ServerReady),
	}
	for i, r := range []proto.Message{right(), &pb.ModelReadyRequest{Name: "m", Version: "1"}, &pb.ModelMetadataRequest{Name: "m"}, &pb.ModelConfigRequest{Name: "x"},
		&pb.ModelStatisticsRequest{Version: "1"}, &pb.RepositoryIndexRequest{Ready: true},
		&pb.RepositoryModelLoadRequest{ModelName: "m", Parameters: map[string]*pb.ModelRepositoryParameter{"config": {}, "file:1/../x": {ParameterChoice: &pb.ModelRepositoryParameter_BytesParam{BytesParam: []byte("x")}}}},
		&pb.RepositoryModelUnloadRequest{ModelName: "../m"}} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, i uint8, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := calls[int(i)%len(calls)](ctx, b)
		if err = s.status(ctx, "fuzz", err); status.Code(err) == codes.Internal || status.Code(err) == codes.Unknown {
			t.Fatalf("call %d of %x: %v", int(i)%len(calls), b, err)
		}
	})
}

// fuzzCall is a call that takes its request as bytes; those that are none are
// grpc's business.
func fuzzCall[R any, P interface {
	*R
	proto.Message
}, A any](call func(context.Context, P) (A, error)) func(context.Context, []byte) error {
	return func(ctx context.Context, b []byte) error {
		r := P(new(R))
		if proto.Unmarshal(b, r) != nil {
			return nil //nolint:nilerr // gRPC refuses it before
		}
		_, err := call(ctx, r)
		return err
	}
}
