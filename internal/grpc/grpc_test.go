package grpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// oneModel serves a fake session as version 1 of "m".
type oneModel struct {
	q      *batch.Queue
	loaded int
	engine *fake.Engine
	server *fhttp.Server // that answers from it
}

func (m *oneModel) List() []fhttp.ModelInfo {
	return []fhttp.ModelInfo{{Name: "m", Version: "1", State: fhttp.StateReady, Default: true}}
}

func (m *oneModel) Acquire(_ context.Context, name, version string) (fhttp.Lease, error) {
	if name != "m" || version != "" && version != "1" {
		return nil, fmt.Errorf("%w: model %q", registry.ErrNotFound, name)
	}
	return lease{m.q}, nil
}
func (m *oneModel) Load(_ context.Context, name string) error   { return m.change(name, 1) }
func (m *oneModel) Unload(_ context.Context, name string) error { return m.change(name, -1) }
func (m *oneModel) change(name string, by int) error {
	if name != "m" {
		return fmt.Errorf("%w: model %q", registry.ErrNotFound, name)
	}
	m.loaded += by
	return nil
}

type lease struct{ *batch.Queue }

func (lease) Name() string             { return "m" }
func (lease) Version() string          { return "1" }
func (lease) Target() time.Duration    { return 0 }
func (lease) Preparer() fhttp.Preparer { return nil }
func (lease) Release()                 {}

var kinds = []tensor.DType{tensor.Float32, tensor.Int64, tensor.Int8, tensor.Uint16, tensor.Bool, tensor.Float16, tensor.String, tensor.Float64, tensor.Uint64}

// echoes has an input of every kind and answers with it.
func echoes(kinds ...tensor.DType) fake.Model {
	m := fake.Model{}
	for _, k := range kinds {
		m.Spec.Inputs = append(m.Spec.Inputs, engine.IO{Name: k.String(), Type: k, Dims: []int64{-1, 2}})
		m.Spec.Outputs = append(m.Spec.Outputs, engine.IO{Name: k.String() + "_out", Type: k, Dims: []int64{-1, 2}})
	}
	return m
}

// start serves m over a real socket.
func start(t *testing.T, m fake.Model, keys *access.Keyring) (pb.GRPCInferenceServiceClient, *oneModel) {
	t.Helper()
	addr, models := serve(t, m, func(c *fhttp.Config) { c.Keys = keys }, Options{})
	return dial(t, addr, insecure.NewCredentials()), models
}

// serve is start for a client of the caller's: it returns the address.
func serve(t *testing.T, m fake.Model, set func(*fhttp.Config), o Options) (string, *oneModel) {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", m, set, o)
}

// serveAt listens on an address.
func serveAt(t *testing.T, listen string, m fake.Model, set func(*fhttp.Config), o Options) (string, *oneModel) {
	t.Helper()
	e := &fake.Engine{}
	e.Add(fake.Any, m)
	session, err := e.OpenFile(t.Context(), "m", engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	models := &oneModel{q: batch.New(batch.Options{}).Queue(session, batch.QueueOptions{}), engine: e}
	cfg := fhttp.Config{Models: models, Version: "test", Logs: logs.New(io.Discard, logs.Defaults()), Trace: trace.New(trace.Options{Dir: t.TempDir()})}
	if set != nil {
		set(&cfg)
	}
	h, err := fhttp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	models.server = h
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	o.MaxMessage = 1 << 20
	s := New(h, o)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("shutdown: %v", err)
		}
		for end := time.Now().Add(5 * time.Second); s.arriving.Load() != 0 || s.streams.Load() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d calls are still counted as arriving, %d streams as open", s.arriving.Load(), s.streams.Load())
			}
		}
		heldIs(t, h, 0)
	})
	return l.Addr().String(), models
}

func dial(t *testing.T, addr string, creds credentials.TransportCredentials) pb.GRPCInferenceServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return pb.NewGRPCInferenceServiceClient(conn)
}

func input(name string, c *pb.InferTensorContents, shape ...int64) *pb.ModelInferRequest_InferInputTensor {
	return &pb.ModelInferRequest_InferInputTensor{Name: name, Datatype: name, Shape: shape, Contents: c}
}

// Every type travels in both forms and comes back as it was.
func TestInferEveryType(t *testing.T) {
	c, _ := start(t, echoes(kinds...), nil)
	raw := [][]byte{
		{0, 0, 128, 63, 0, 0, 0, 64}, {1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}, {1, 255}, {1, 0, 255, 255}, {1, 0},
		{0, 60, 0, 64}, {1, 0, 0, 0, 'a', 2, 0, 0, 0, 'b', 'c'}, {0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 0, 64}, {7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0},
	}
	req := &pb.ModelInferRequest{ModelName: "m", Id: "id 7", RawInputContents: raw}
	for _, k := range kinds {
		req.Inputs = append(req.Inputs, input(k.String(), nil, 1, 2))
	}
	check := func(ans *pb.ModelInferResponse, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if ans.ModelName != "m" || ans.ModelVersion != "1" || ans.Id != "id 7" || len(ans.Outputs) != len(ans.RawOutputContents) {
			t.Errorf("%v", ans)
		}
		for i, o := range ans.Outputs {
			k := strings.TrimSuffix(o.Name, "_out")
			for j, in := range req.Inputs {
				if in.Name == k && (string(ans.RawOutputContents[i]) != string(raw[j]) || o.Datatype != k || len(o.Shape) != 2) {
					t.Errorf("%s: %v, want %v", k, ans.RawOutputContents[i], raw[j])
				}
			}
		}
	}
	check(c.ModelInfer(t.Context(), req))

	typed := echoes(tensor.Float32, tensor.Int64, tensor.Int8, tensor.Uint16, tensor.Bool, tensor.String, tensor.Float64, tensor.Uint64)
	c, _ = start(t, typed, nil)
	raw = append(raw[:5:5], raw[6:]...)
	req = &pb.ModelInferRequest{ModelName: "m", Id: "id 7", Inputs: []*pb.ModelInferRequest_InferInputTensor{
		input("FP32", &pb.InferTensorContents{Fp32Contents: []float32{1, 2}}, 1, 2), input("INT64", &pb.InferTensorContents{Int64Contents: []int64{1, -1}}, 1, 2),
		input("INT8", &pb.InferTensorContents{IntContents: []int32{1, -1}}, 1, 2), input("UINT16", &pb.InferTensorContents{UintContents: []uint32{1, 65535}}, 1, 2),
		input("BOOL", &pb.InferTensorContents{BoolContents: []bool{true, false}}, 1, 2), input("BYTES", &pb.InferTensorContents{BytesContents: [][]byte{[]byte("a"), []byte("bc")}}, 1, 2),
		input("FP64", &pb.InferTensorContents{Fp64Contents: []float64{1, 2}}, 1, 2), input("UINT64", &pb.InferTensorContents{Uint64Contents: []uint64{7, 8}}, 1, 2),
	}}
	check(c.ModelInfer(t.Context(), req))
	req.Outputs = []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "INT8_out"}, {Name: "FP32_out"}}
	ans, err := c.ModelInfer(t.Context(), req)
	check(ans, err)
	if len(ans.Outputs) != 2 || ans.Outputs[0].Name != "INT8_out" {
		t.Errorf("outputs %v, want the two asked for in their order", ans.Outputs)
	}
}

func TestBadRequests(t *testing.T) {
	c, _ := start(t, echoes(tensor.Float32), nil)
	good := func() *pb.ModelInferRequest {
		return &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 1, 2)}, RawInputContents: [][]byte{make([]byte, 8)}}
	}
	for name, x := range map[string]struct {
		change func(*pb.ModelInferRequest)
		code   codes.Code
		says   string
	}{
		"unknown model":   {func(r *pb.ModelInferRequest) { r.ModelName = "x" }, codes.NotFound, "x"},
		"unknown version": {func(r *pb.ModelInferRequest) { r.ModelVersion = "9" }, codes.NotFound, ""},
		"unknown output": {func(r *pb.ModelInferRequest) {
			r.Outputs = []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "no"}}
		}, codes.InvalidArgument, "no output"},
		"no inputs": {func(r *pb.ModelInferRequest) { r.Inputs, r.RawInputContents = nil, nil }, codes.InvalidArgument, "FP32"},
		"twice": {func(r *pb.ModelInferRequest) {
			r.Inputs = append(r.Inputs, r.Inputs[0])
			r.RawInputContents = append(r.RawInputContents, nil)
		}, codes.InvalidArgument, "twice"},
		"unknown type":   {func(r *pb.ModelInferRequest) { r.Inputs[0].Datatype = "FP99" }, codes.InvalidArgument, "FP99"},
		"other type":     {func(r *pb.ModelInferRequest) { r.Inputs[0].Datatype = "INT32" }, codes.InvalidArgument, "INT32"},
		"short data":     {func(r *pb.ModelInferRequest) { r.RawInputContents[0] = []byte{1} }, codes.InvalidArgument, "8 bytes"},
		"negative shape": {func(r *pb.ModelInferRequest) { r.Inputs[0].Shape = []int64{-1, 2} }, codes.InvalidArgument, "shape"},
		"overflow":       {func(r *pb.ModelInferRequest) { r.Inputs[0].Shape = []int64{1 << 62, 1 << 62} }, codes.InvalidArgument, "shape"},
		"both contents": {func(r *pb.ModelInferRequest) {
			r.Inputs[0].Contents = &pb.InferTensorContents{Fp32Contents: []float32{1, 2}}
		}, codes.InvalidArgument, "both"},
		"wrong contents": {func(r *pb.ModelInferRequest) {
			r.RawInputContents = nil
			r.Inputs[0].Contents = &pb.InferTensorContents{IntContents: []int32{1, 2}}
		}, codes.InvalidArgument, "contents"},
		"two raw contents": {func(r *pb.ModelInferRequest) { r.RawInputContents = append(r.RawInputContents, nil) }, codes.InvalidArgument, "2 raw_input_contents for 1"},
		"negative timeout": {func(r *pb.ModelInferRequest) {
			r.Parameters = map[string]*pb.InferParameter{"timeout": {ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: -1}}}
		}, codes.InvalidArgument, "timeout"},
		"long id":   {func(r *pb.ModelInferRequest) { r.Id = strings.Repeat("x", 4096) }, codes.InvalidArgument, "id"},
		"too large": {func(r *pb.ModelInferRequest) { r.RawInputContents[0] = make([]byte, 2<<20) }, codes.ResourceExhausted, "larger"},
	} {
		r := good()
		x.change(r)
		_, err := c.ModelInfer(t.Context(), r)
		if status.Code(err) != x.code || !strings.Contains(status.Convert(err).Message(), x.says) {
			t.Errorf("%s: %v, want %v and %q", name, err, x.code, x.says)
		}
	}
	if _, err := c.ModelInfer(t.Context(), good()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestDeadlineAndPanic(t *testing.T) {
	m := echoes(tensor.Float32)
	m.Delay = time.Minute
	c, _ := start(t, m, nil)
	r := &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 1, 2)}, RawInputContents: [][]byte{make([]byte, 8)},
		Parameters: map[string]*pb.InferParameter{"timeout": {ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: 20000}}}}
	if _, err := c.ModelInfer(t.Context(), r); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, want DEADLINE_EXCEEDED", err)
	}
	m = echoes(tensor.Float32)
	m.Run = func(engine.Feeds) (engine.Feeds, error) { panic("secret") }
	c, _ = start(t, m, nil)
	r.Parameters = nil
	if _, err := c.ModelInfer(t.Context(), r); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, want INTERNAL without the engine's words", err)
	}
}

func TestStream(t *testing.T) {
	c, _ := start(t, echoes(tensor.Float32), nil)
	stream, err := c.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, model := range []string{"m", "x", "m"} {
		r := &pb.ModelInferRequest{ModelName: model, Id: fmt.Sprint(i), Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 1, 2)}, RawInputContents: [][]byte{make([]byte, 8)}}
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		ans, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if (ans.ErrorMessage != "") != (model == "x") || ans.InferResponse.GetId() != fmt.Sprint(i) {
			t.Errorf("request %d: %v", i, ans)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

// What a status says of an error is in a stream's answer too, and a client that
// asks for it as Triton's do gets the status itself.
func TestStreamErrors(t *testing.T) {
	gate := make(chan struct{})
	held := echoes(tensor.Float32)
	held.Gate = gate
	addr, m := serve(t, held, func(c *fhttp.Config) { c.MaxInFlight = 1 }, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	done := make(chan error, 1)
	go func() { _, err := c.ModelInfer(t.Context(), right()); done <- err }()
	if err := m.engine.WaitRunning(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ask := func(r *pb.ModelInferRequest, header ...string) (*pb.ModelStreamInferResponse, grpc.BidiStreamingClient[pb.ModelInferRequest, pb.ModelStreamInferResponse], error) {
		t.Helper()
		stream, err := c.ModelStreamInfer(metadata.AppendToOutgoingContext(t.Context(), header...))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		ans, err := stream.Recv()
		return ans, stream, err
	}
	nobody := right()
	nobody.ModelName = "nobody"
	for _, x := range []struct {
		r     *pb.ModelInferRequest
		code  codes.Code
		retry bool
	}{{right(), codes.Unavailable, true}, {nobody, codes.NotFound, false}} {
		ans, stream, err := ask(x.r, strictHeader, "false")
		p := ans.GetInferResponse().GetParameters()
		if err != nil || ans.GetErrorMessage() == "" || p[codeParam].GetInt64Param() != int64(x.code) || (p[retryParam].GetInt64Param() >= 1000) != x.retry {
			t.Errorf("%v, %v, want %v", ans, err, x.code)
		}
		_ = stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF || len(stream.Trailer()["retry-after"]) > 0 {
			t.Errorf("the stream ended with %v, trailer %v", err, stream.Trailer())
		}
		ans, stream, err = ask(x.r, strictHeader, "true")
		if status.Code(err) != x.code || (len(stream.Trailer()["grpc-retry-pushback-ms"]) > 0) != x.retry {
			t.Errorf("strict: %v, %v, trailer %v, want %v", ans, err, stream.Trailer(), x.code)
		}
		if x.retry {
			wantRetry(t, status.Convert(err), time.Second)
		}
	}
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAbout(t *testing.T) {
	c, _ := start(t, echoes(kinds...), nil)
	ctx := t.Context()
	if r, err := c.ServerLive(ctx, nil); err != nil || !r.GetLive() {
		t.Error(r, err)
	}
	if r, err := c.ServerReady(ctx, nil); err != nil || !r.GetReady() {
		t.Error(r, err)
	}
	if r, err := c.ModelReady(ctx, &pb.ModelReadyRequest{Name: "m"}); err != nil || !r.GetReady() {
		t.Error(r, err)
	}
	if r, err := c.ModelReady(ctx, &pb.ModelReadyRequest{Name: "x"}); err != nil || r.GetReady() {
		t.Errorf("an unknown model: %v, %v", r, err)
	}
	if r, err := c.ServerMetadata(ctx, nil); err != nil || r.GetName() != "fewbit" || r.GetVersion() != "test" || len(r.GetExtensions()) == 0 {
		t.Error(r, err)
	}
	m, err := c.ModelMetadata(ctx, &pb.ModelMetadataRequest{Name: "m"})
	if err != nil || len(m.GetInputs()) != len(kinds) || m.GetInputs()[0].GetDatatype() != "FP32" || m.GetInputs()[0].GetShape()[0] != -1 || m.GetVersions()[0] != "1" {
		t.Error(m, err)
	}
	conf, err := c.ModelConfig(ctx, &pb.ModelConfigRequest{Name: "m"})
	if err != nil || conf.GetConfig().GetInput()[0].GetDataType() != pb.DataType_TYPE_FP32 || conf.GetConfig().GetInput()[6].GetDataType() != pb.DataType_TYPE_STRING {
		t.Error(conf, err)
	}
	if r, err := c.RepositoryIndex(ctx, &pb.RepositoryIndexRequest{}); err != nil || len(r.GetModels()) != 1 || r.GetModels()[0].GetState() != "READY" {
		t.Error(r, err)
	}
	if r, err := c.ModelStatistics(ctx, &pb.ModelStatisticsRequest{Name: "m"}); err != nil || len(r.GetModelStats()) != 1 {
		t.Error(r, err)
	}
}

// Calls that change what is served need the key once there is one.
func TestAdminCalls(t *testing.T) {
	keys, err := access.Parse(fmt.Appendf(nil, "ops admin sha256:%x\n", sha256.Sum256([]byte("0123456789abcdef"))))
	if err != nil {
		t.Fatal(err)
	}
	c, m := start(t, echoes(tensor.Float32), access.Static(keys))
	for key, want := range map[string]codes.Code{"": codes.Unauthenticated, "Bearer wrong-key-wrong-key": codes.Unauthenticated, "Bearer 0123456789abcdef": codes.OK} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", key)
		if _, err := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: "m"}); status.Code(err) != want {
			t.Errorf("key %q: %v, want %v", key, err, want)
		}
	}
	if m.loaded != 1 {
		t.Errorf("loaded %d times", m.loaded)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-api-key", "0123456789abcdef")
	param := func(key string, v *pb.ModelRepositoryParameter) map[string]*pb.ModelRepositoryParameter {
		return map[string]*pb.ModelRepositoryParameter{key: v}
	}
	text := func(s string) *pb.ModelRepositoryParameter {
		return &pb.ModelRepositoryParameter{ParameterChoice: &pb.ModelRepositoryParameter_StringParam{StringParam: s}}
	}
	file := &pb.ModelRepositoryParameter{ParameterChoice: &pb.ModelRepositoryParameter_BytesParam{BytesParam: []byte("x")}}
	for name, w := range map[string]struct {
		params map[string]*pb.ModelRepositoryParameter
		want   codes.Code
	}{
		"a configuration":     {param("config", text(`{"backend":"onnxruntime"}`)), codes.OK},
		"another's":           {param("config", text(`{"name":"other"}`)), codes.InvalidArgument},
		"a file as text":      {param("file:1/model.onnx", text("aGk=")), codes.InvalidArgument},
		"a file without room": {param("file:1/model.onnx", file), codes.Unimplemented},
	} {
		if _, err := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: "m", Parameters: w.params}); status.Code(err) != w.want {
			t.Errorf("%s: %v, want %v", name, err, w.want)
		}
	}
	if _, err := c.RepositoryModelUnload(ctx, &pb.RepositoryModelUnloadRequest{ModelName: "m", Parameters: param("unload_dependents", &pb.ModelRepositoryParameter{})}); err != nil {
		t.Error(err)
	}
}

func FuzzCall(f *testing.F) {
	for _, r := range []*pb.ModelInferRequest{
		{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 1, 2)}, RawInputContents: [][]byte{make([]byte, 8)}},
		{Inputs: []*pb.ModelInferRequest_InferInputTensor{input("BYTES", &pb.InferTensorContents{BytesContents: [][]byte{{1}}}, 1)}},
		{Inputs: []*pb.ModelInferRequest_InferInputTensor{input("BYTES", nil, 2)}, RawInputContents: [][]byte{{1, 0, 0, 0, 7, 0, 0, 0, 0}}},
		{Inputs: []*pb.ModelInferRequest_InferInputTensor{input("INT8", &pb.InferTensorContents{IntContents: []int32{300}}, 1)}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &pb.ModelInferRequest{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		call, err := callOf(r)
		if err != nil {
			return
		}
		for name, x := range call.Feeds {
			if err := x.Check(); err != nil {
				t.Errorf("input %q was accepted: %v", name, err)
			}
		}
	})
}
