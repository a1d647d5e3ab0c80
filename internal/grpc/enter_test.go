package grpc

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/access/accesstest"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	adminKey = "admin-key-of-32-characters-and-more"
	inferKey = "infer-key-of-32-characters-and-more"
)

func bothKeys(t *testing.T) *access.Keyring {
	t.Helper()
	keys, err := access.Parse(fmt.Appendf(nil, "ops admin sha256:%x\nshop infer sha256:%x\n", sha256.Sum256([]byte(adminKey)), sha256.Sum256([]byte(inferKey))))
	if err != nil {
		t.Fatal(err)
	}
	return access.Static(keys)
}

// right is a request that the model of these tests answers.
func right() *pb.ModelInferRequest {
	return &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 1, 2)}, RawInputContents: [][]byte{make([]byte, 8)}}
}

// Each call wants the key that its HTTP route wants, and what administrators do
// is written down.
func TestRoles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit")
	audit, err := access.OpenAudit(file)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, echoes(tensor.Float32), func(c *fhttp.Config) { c.Keys, c.Audit = bothKeys(t), audit }, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	for _, k := range []struct {
		metadata     []string
		infer, admin codes.Code
	}{
		{nil, codes.Unauthenticated, codes.Unauthenticated},
		{[]string{"authorization", "Bearer wrong"}, codes.Unauthenticated, codes.Unauthenticated},
		{[]string{"authorization", "Basic " + adminKey}, codes.Unauthenticated, codes.Unauthenticated},
		{[]string{"authorization", "bearer " + inferKey}, codes.OK, codes.PermissionDenied},
		{[]string{"x-api-key", inferKey}, codes.OK, codes.PermissionDenied},
		{[]string{"api-key", adminKey}, codes.OK, codes.OK},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), k.metadata...)
		if r, err := c.ServerLive(ctx, nil); err != nil || !r.GetLive() {
			t.Errorf("%v: live: %v", k.metadata, err)
		}
		if _, err := c.ServerReady(ctx, nil); err != nil {
			t.Errorf("%v: ready: %v", k.metadata, err)
		}
		_, inferred := c.ModelInfer(ctx, right())
		_, described := c.ServerMetadata(ctx, nil)
		_, indexed := c.RepositoryIndex(ctx, &pb.RepositoryIndexRequest{})
		stream, err := c.ModelStreamInfer(ctx)
		if err == nil {
			_ = stream.Send(right())
			_, err = stream.Recv()
		}
		for what, err := range map[string]error{"infer": inferred, "metadata": described, "index": indexed, "stream": err} {
			if status.Code(err) != k.infer {
				t.Errorf("%v: %s: %v, want %v", k.metadata, what, err, k.infer)
			}
		}
		_, loaded := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: "m"})
		_, unloaded := c.RepositoryModelUnload(ctx, &pb.RepositoryModelUnloadRequest{ModelName: "m"})
		for _, err := range []error{loaded, unloaded} {
			if status.Code(err) != k.admin {
				t.Errorf("%v: load, unload: %v, want %v", k.metadata, err, k.admin)
			}
		}
	}
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	statuses := map[string]int{}
	for line := range bytes.Lines(b) {
		var e access.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Method != "gRPC" || !strings.Contains(e.Path, "/RepositoryModel") || !strings.HasPrefix(e.From, "127.0.0.1:") || (e.Error != "") != (e.Status != 200) {
			t.Errorf("%+v", e)
		}
		statuses[fmt.Sprintf("%s %d", e.Who, e.Status)]++
	}
	if fmt.Sprint(statuses) != "map[ 401:6 ops 200:2 shop 403:4]" {
		t.Errorf("the log has %v", statuses)
	}
	if bytes.Contains(b, []byte(adminKey)) || bytes.Contains(b, []byte(inferKey)) {
		t.Error("the log holds a key")
	}
}

// Beyond loopback without keys, and where administrators have a listener of
// their own, their calls are refused.
func TestAdminElsewhere(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{NoAdmin: true})
	c := dial(t, addr, insecure.NewCredentials())
	_, err := c.RepositoryModelUnload(t.Context(), &pb.RepositoryModelUnloadRequest{ModelName: "m"})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "--admin-listen") {
		t.Errorf("%v", err)
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Error(err)
	}
	if m.loaded != 0 {
		t.Error("it was unloaded")
	}
}

// Each message of a stream counts; what is too much is told to wait.
func TestRate(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), func(c *fhttp.Config) { c.Rate, c.RateBurst = 0.01, 3 }, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	stream, err := c.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if err := stream.Send(right()); err != nil {
			t.Fatal(err)
		}
		ans, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if (ans.GetErrorMessage() != "") != (i == 3) {
			t.Errorf("message %d: %q", i, ans.GetErrorMessage())
		}
	}
	if _, err := c.ModelInfer(t.Context(), right()); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "0.01 requests a second") {
		t.Errorf("%v", err)
	}
	if _, err := c.ServerLive(t.Context(), nil); err != nil {
		t.Errorf("a probe: %v", err)
	}
}

func TestTLS(t *testing.T) {
	ca, theirs := accesstest.NewAuthority(t, "ca"), accesstest.NewAuthority(t, "clients")
	dir := t.TempDir()
	cert, key, _ := ca.Write(t, dir, "localhost")
	clients := filepath.Join(dir, "clients.pem")
	if err := os.WriteFile(clients, theirs.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	certs, err := access.LoadCertificates(cert, key, clients)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{TLS: certs.Config("h2")})
	if _, err := dial(t, addr, credentials.NewTLS(ca.Client(t, theirs, "shop"))).ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
	for what, creds := range map[string]credentials.TransportCredentials{"no certificate": credentials.NewTLS(ca.Client(t, nil, "")), "a stranger's": credentials.NewTLS(ca.Client(t, ca, "shop")), "no TLS": insecure.NewCredentials()} {
		if _, err := dial(t, addr, creds).ModelInfer(t.Context(), right()); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The next connection has the certificate that is there now.
	ca.Write(t, dir, "other.example")
	if err := certs.Reload(); err != nil {
		t.Fatal(err)
	}
	cfg := ca.Client(t, theirs, "shop")
	cfg.ServerName = "other.example"
	if _, err := dial(t, addr, credentials.NewTLS(cfg)).ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("after the change: %v", err)
	}
}

// Loopback works with no set-up; at any other address calls of administrators
// need a key, and there must be one.
func TestBeyondLoopback(t *testing.T) {
	level := &pb.LogSettingsRequest{Settings: map[string]*pb.LogSettingsRequest_SettingValue{"log_verbose_level": {ParameterChoice: &pb.LogSettingsRequest_SettingValue_Uint32Param{Uint32Param: 0}}}}
	tracing := &pb.TraceSettingRequest{Settings: map[string]*pb.TraceSettingRequest_SettingValue{"trace_rate": {Value: []string{"7"}}}}
	for _, x := range []struct {
		listen, key string
		keys        bool
		admin       codes.Code
		says        string
	}{
		{"127.0.0.1:0", "", false, codes.OK, ""},
		{"[::1]:0", "", false, codes.OK, ""},
		{"0.0.0.0:0", "", false, codes.PermissionDenied, "--keys"},
		{"[::]:0", "", false, codes.PermissionDenied, "--keys"},
		{"0.0.0.0:0", adminKey, false, codes.PermissionDenied, "--keys"}, // a key that nobody made opens nothing
		{"0.0.0.0:0", "", true, codes.Unauthenticated, "admin key"},
		{"0.0.0.0:0", inferKey, true, codes.PermissionDenied, "admin key"},
		{"0.0.0.0:0", adminKey, true, codes.OK, ""},
		{"127.0.0.1:0", "", true, codes.Unauthenticated, "admin key"},
	} {
		addr, m := serveAt(t, x.listen, echoes(tensor.Float32), func(c *fhttp.Config) {
			if x.keys {
				c.Keys = bothKeys(t)
			}
		}, Options{})
		c := dial(t, strings.NewReplacer("0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1").Replace(addr), insecure.NewCredentials())
		ctx := t.Context()
		if x.key != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", x.key)
		}
		_, loaded := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: "m"})
		_, unloaded := c.RepositoryModelUnload(ctx, &pb.RepositoryModelUnloadRequest{ModelName: "m"})
		_, logged := c.LogSettings(ctx, level)
		_, traced := c.TraceSetting(ctx, tracing)
		for what, err := range map[string]error{"load": loaded, "unload": unloaded, "log": logged, "trace": traced} {
			// Settings that may be read want a key for inference first.
			if code := status.Code(err); code != x.admin || !strings.Contains(status.Convert(err).Message(), x.says) && code != codes.Unauthenticated {
				t.Errorf("%+v: %s: %v", x, what, err)
			}
		}
		if m.loaded != 0 {
			t.Errorf("%+v: the calls left it loaded %d times", x, m.loaded)
		}
		if x.keys && x.key == "" {
			continue
		}
		if _, err := c.ModelInfer(ctx, right()); err != nil {
			t.Errorf("%+v: infer: %v", x, err)
		}
		if _, err := c.LogSettings(ctx, &pb.LogSettingsRequest{}); err != nil {
			t.Errorf("%+v: reading the log's settings: %v", x, err)
		}
	}
}
