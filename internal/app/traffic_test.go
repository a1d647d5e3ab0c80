package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/grpc/pb"
)

// guarded is a server with all its addresses and keys.
type guarded struct {
	public, admin client
	grpc          pb.GRPCInferenceServiceClient
	adminKey      string
	inferKey      string
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	needEngine(t)
	cfg := Defaults()
	cfg.DataDir, cfg.Keys, cfg.AdminListen = t.TempDir(), filepath.Join(t.TempDir(), "keys"), "127.0.0.1:0"
	g := &guarded{}
	var err error
	if g.adminKey, err = access.Add(cfg.Keys, "ops", access.Admin, ""); err != nil {
		t.Fatal(err)
	}
	if g.inferKey, err = access.Add(cfg.Keys, "shop", access.Infer, ""); err != nil {
		t.Fatal(err)
	}
	a, err := New(t.Context(), cfg, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	var ls [3]net.Listener
	for i := range ls {
		if ls[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.serve(ctx, listeners{http: ls[0], grpc: ls[1], admin: ls[2]}) }()
	conn, err := grpc.NewClient(ls[1].Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	g.grpc = pb.NewGRPCInferenceServiceClient(conn)
	g.public = client{t, "http://" + ls[0].Addr().String(), g.inferKey}
	g.admin = client{t, "http://" + ls[2].Addr().String(), g.adminKey}
	g.public.waitReady()
	return g
}

// TestGuarded: what each key opens, at each address of a real server.
func TestGuarded(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	g.admin.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
	open := client{t, g.public.base, ""}
	for _, c := range []struct {
		who          client
		method, path string
		status       int
	}{
		{open, "GET", "/v2/health/ready", 200}, {open, "GET", "/v2/models", 401}, {open, "GET", "/quantize", 404}, {open, "GET", "/metrics", 404}, {open, "GET", "/debug/pprof/heap", 404},
		{g.public, "GET", "/v2/models/m", 200}, {g.public, "GET", "/models", 404}, {g.public, "POST", "/v2/repository/models/m/unload", 404},
		{client{t, g.public.base, g.adminKey}, "GET", "/models", 404}, {client{t, g.admin.base, g.inferKey}, "GET", "/models", 403}, {client{t, g.admin.base, ""}, "GET", "/models", 401},
		{client{t, g.admin.base, ""}, "GET", "/debug/pprof/heap", 401}, {g.admin, "GET", "/models", 200}, {g.admin, "GET", "/metrics", 200}, {g.admin, "GET", "/debug/pprof/cmdline", 200},
	} {
		if a := c.who.do(c.method, c.path, nil); a.status != c.status {
			t.Errorf("%s %s: %v, want %d", c.method, c.path, a, c.status)
		}
	}
	for key, want := range map[string]codes.Code{"": codes.Unauthenticated, g.inferKey: codes.OK, g.adminKey: codes.OK} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-api-key", key)
		if _, err := g.grpc.ModelMetadata(ctx, &pb.ModelMetadataRequest{Name: "m"}); status.Code(err) != want {
			t.Errorf("gRPC with %.12q: %v", key, err)
		}
		if _, err := g.grpc.RepositoryModelUnload(ctx, &pb.RepositoryModelUnloadRequest{ModelName: "m"}); err == nil {
			t.Errorf("gRPC unloaded with %.12q, though administrators have an address", key)
		}
	}
}

// TestLoadUnloadUnderTraffic is item 16 of the list of bad input: while a model
// comes and goes and new versions take over, among requests that are hostile,
// each right request is answered rightly or told why not.
func TestLoadUnloadUnderTraffic(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	g.admin.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
	row, _ := json.Marshal(make([]float32, mlpInputs))
	body := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":%s}]}`, mlpInputs, row)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var answered, refused atomic.Int64
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := g.public.try("POST", "/v2/models/m/infer", body)
				switch {
				case err != nil:
					t.Errorf("a request failed: %v", err)
					return
				case a.status == 200 && strings.Contains(string(a.body), `"outputs":[{`):
					answered.Add(1)
				case (a.status == 503 || a.status == 404) && strings.HasPrefix(string(a.body), `{"error":"`):
					refused.Add(1)
				default:
					t.Errorf("%v", a)
					return
				}
			}
		})
	}
	wg.Go(func() {
		in := &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "FP32", Shape: []int64{1, mlpInputs}}}, RawInputContents: [][]byte{make([]byte, 4*mlpInputs)}}
		ctx := metadata.AppendToOutgoingContext(ctx, "x-api-key", g.inferKey)
		for ctx.Err() == nil {
			_, err := g.grpc.ModelInfer(ctx, in)
			if c := status.Code(err); c != codes.OK && c != codes.Unavailable && c != codes.NotFound && ctx.Err() == nil {
				t.Errorf("gRPC: %v", err)
				return
			}
		}
	})
	wg.Go(func() { // those who break off, and those who send nonsense
		addr := strings.TrimPrefix(g.public.base, "http://")
		for i := 0; ctx.Err() == nil; i++ {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = fmt.Fprintf(c, "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s", g.inferKey, len(body), body[:len(body)/(1+i%3)])
			if i%4 == 0 {
				_, _ = io.WriteString(c, "\x00\x00garbage\r\n\r\n")
			}
			c.Close()
			time.Sleep(2 * time.Millisecond)
		}
	})
	for i := range 12 {
		for _, what := range []string{"unload", "load"} {
			g.admin.do("POST", "/v2/repository/models/m/"+what, nil).into(t, 200, nil)
			time.Sleep(5 * time.Millisecond)
		}
		if i%4 == 3 {
			g.admin.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
			g.admin.do("POST", "/models/m/promote", map[string]string{"version": fmt.Sprint(1 + (i+1)/4)}).into(t, 200, nil)
		}
	}
	for start := answered.Load(); answered.Load() < start+20 && !t.Failed(); time.Sleep(time.Millisecond) {
	}
	stop()
	wg.Wait()
	t.Logf("%d answered, %d told that the model is not there", answered.Load(), refused.Load())
	g.public.do("POST", "/v2/models/m/infer", body).into(t, 200, nil)
}
