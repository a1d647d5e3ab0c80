package app

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fewbit/fewbit/internal/engine"
	fgrpc "github.com/fewbit/fewbit/internal/grpc"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

// rpc serves the models over gRPC too, on a socket of its own.
func (s *server) rpc(t *testing.T) pb.GRPCInferenceServiceClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fgrpc.New(s.server, fgrpc.Options{MaxMessage: s.cfg.MaxBody}).Serve(ctx, l) }()
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return pb.NewGRPCInferenceServiceClient(conn)
}

// TestLoadWithFiles: models come with the load request, as Triton's clients send
// them, over HTTP and gRPC.
func TestLoadWithFiles(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	load := func(name string, params map[string]string) answer {
		t.Helper()
		return s.do("POST", "/v2/repository/models/"+name+"/load", map[string]any{"parameters": params})
	}
	b64 := base64.StdEncoding.EncodeToString
	served := func(name, want string) {
		t.Helper()
		var out struct {
			Version string `json:"model_version"`
		}
		s.do("POST", "/v2/models/"+name+"/infer", map[string]any{"inputs": []any{
			map[string]any{"name": "x", "shape": []int{1, mlpInputs}, "datatype": "FP32", "data": make([]float32, mlpInputs)},
		}}).into(t, 200, &out)
		if out.Version != want {
			t.Errorf("version %s of %s answers, want %s", out.Version, name, want)
		}
	}
	config := `{"backend":"onnxruntime","max_batch_size":8}`
	one, two := mlp(t), changedWeights(t)
	load("m", map[string]string{"config": config, "file:1/model.onnx": b64(one)}).into(t, 200, nil)
	served("m", "1")
	// The number is the one asked for as long as it is free, and the same files
	// are the same version.
	load("m", map[string]string{"config": config, "file:7/model.onnx": b64(two)}).into(t, 200, nil)
	served("m", "7")
	load("m", map[string]string{"config": config, "file:1/model.onnx": b64(one)}).into(t, 200, nil)
	served("m", "1")
	var out struct{ Name, Version string }
	load("m", map[string]string{"config": config, "file:1/model.onnx": b64(two)}).into(t, 200, &out)
	if out.Version != "8" { // versions never change
		t.Errorf("%+v", out)
	}
	served("m", "8")
	// A configuration alone chooses among the versions there are.
	load("m", map[string]string{"config": `{"version_policy":{"specific":{"versions":[7]}}}`}).into(t, 200, nil)
	served("m", "7")
	// Unloaded on request, it comes back with its files.
	s.do("POST", "/v2/repository/models/m/unload", nil).into(t, 200, nil)
	s.do("GET", "/v2/models/m/ready", nil).into(t, 503, nil)
	load("m", map[string]string{"file:1/model.onnx": b64(one)}).into(t, 200, nil)
	served("m", "1")

	for name, c := range map[string]struct {
		params map[string]string
		status int
		words  string
	}{
		"not base64":       {map[string]string{"file:1/model.onnx": "*"}, 400, "not base64"},
		"not a model":      {map[string]string{"file:1/model.onnx": b64([]byte("no"))}, 400, ""},
		"a path":           {map[string]string{"file:1/../../x": b64(one)}, 400, "file"},
		"without a graph":  {map[string]string{"file:1/tokenizer.json": b64([]byte("{}"))}, 400, "model.onnx"},
		"no such version":  {map[string]string{"config": `{"version_policy":{"specific":{"versions":[5]}}}`}, 404, "version 5"},
		"external outside": {map[string]string{"file:1/model.onnx": b64(external(t, "location", "../secret"))}, 400, ""},
	} {
		a := load("m", c.params)
		s.refused(t, a, c.status, c.words)
		if a.status != c.status {
			t.Errorf("%s: %v", name, a)
		}
		served("m", "1")
	}

	rpc := s.rpc(t)
	_, err := rpc.RepositoryModelLoad(t.Context(), &pb.RepositoryModelLoadRequest{ModelName: "n", Parameters: map[string]*pb.ModelRepositoryParameter{
		"config":            {ParameterChoice: &pb.ModelRepositoryParameter_StringParam{StringParam: config}},
		"file:3/model.onnx": {ParameterChoice: &pb.ModelRepositoryParameter_BytesParam{BytesParam: one}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	served("n", "3")
	if r, err := rpc.ModelReady(t.Context(), &pb.ModelReadyRequest{Name: "n", Version: "3"}); err != nil || !r.GetReady() {
		t.Error(r, err)
	}
	var index []http.ModelInfo
	s.do("POST", "/v2/repository/index", nil).into(t, 200, &index)
	states := ""
	for _, m := range index {
		states += fmt.Sprintf("%s/%s %s %v; ", m.Name, m.Version, m.State, m.Default)
	}
	if want := "m/1 READY true; m/7 UNAVAILABLE false; m/8 UNAVAILABLE false; n/3 READY true; "; states != want {
		t.Errorf("%s\nwant\n%s", states, want)
	}
	// The same as the file in a session of this process.
	x := engine.Feeds{"x": tensor.From(make([]float32, mlpInputs), 1, mlpInputs)}
	le, err := models{s.App}.Acquire(t.Context(), "n", "3")
	if err != nil {
		t.Fatal(err)
	}
	defer le.Release()
	r, _, err := le.Run(t.Context(), x, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}
