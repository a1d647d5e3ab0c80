package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/jobs"
)

// childEnv makes the test binary the server's own program: its arguments are
// those of cmd/serve.
const childEnv = "FEWBIT_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" || len(os.Args) > 1 && os.Args[1] == peakCommand {
		cmd := NewServeCommand("serve", "test")
		cmd.AddCommand(NewPeakMemoryCommand())
		if err := cmd.ExecuteContext(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// root is the repository's.
const root = "../.."

// needEngine skips a test where there is no ONNX Runtime.
func needEngine(t testing.TB) *ort.Engine {
	t.Helper()
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	return e
}

// needFile skips a test where a fetched file is missing.
func needFile(t testing.TB, path string) string {
	t.Helper()
	p := filepath.Join(root, ".deps", path)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("needs .deps/%s (make deps)", path)
	}
	return p
}

// client talks to a server under test.
type client struct {
	t    testing.TB
	base string
	key  string
}

// answer is what came back.
type answer struct {
	status int
	header nethttp.Header
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %.300s", a.status, a.body) }

// into decodes the answer, which must have the status.
func (a answer) into(t testing.TB, status int, v any) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("got %v, want status %d", a, status)
	}
	if v != nil {
		if err := json.Unmarshal(a.body, v); err != nil {
			t.Fatalf("%v: %v", a, err)
		}
	}
	return a
}

func (c client) do(method, path string, body any, header ...string) answer {
	c.t.Helper()
	a, err := c.try(method, path, body, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// try sends body: bytes as they are, anything else as JSON.
func (c client) try(method, path string, body any, header ...string) (answer, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return answer{}, err
		}
		r = bytes.NewReader(j)
	}
	req, err := nethttp.NewRequest(method, c.base+path, r)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b}, err
}

// server is an App in this process, over real HTTP.
type server struct {
	client
	*App
	stop func() error // waits until it is down; may be called again
}

// start serves a new data directory, or dir.
func start(t testing.TB, dir string, set func(*Config)) *server {
	t.Helper()
	needEngine(t)
	cfg := Defaults()
	if cfg.DataDir = dir; dir == "" {
		cfg.DataDir = t.TempDir()
	}
	if set != nil {
		set(&cfg)
	}
	begin := time.Now()
	a, err := New(context.Background(), cfg, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the server took %v to open", took)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, l) }()
	s := &server{client{t, "http://" + l.Addr().String(), ""}, a, nil}
	var once error
	done := false
	s.stop = func() error {
		if !done {
			done = true
			cancel()
			nethttp.DefaultClient.CloseIdleConnections()
			select {
			case once = <-ended:
			case <-time.After(time.Minute):
				once = errors.New("the server did not stop within a minute")
			}
		}
		return once
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stopping the server: %v", err)
		}
	})
	s.waitReady()
	return s
}

func (c client) waitReady() {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		a, err := c.try("GET", "/v2/health/ready", nil)
		if err == nil && a.status == 200 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("the server is not ready: %v %v", a, err)
		}
	}
}

// submit starts a job and returns its id.
func (c client) submit(spec jobs.Spec) string {
	c.t.Helper()
	var out struct{ ID, Status string }
	a := c.do("POST", "/quantize", spec).into(c.t, 202, &out)
	if out.ID == "" || a.header.Get("Location") != "/quantize/"+out.ID {
		c.t.Fatalf("%v, Location %q", a, a.header.Get("Location"))
	}
	return out.ID
}

const jobTimeout = 3 * time.Minute

// until polls a job until f holds.
func (c client) until(id string, f func(jobs.Status) bool) jobs.Status {
	c.t.Helper()
	for end := time.Now().Add(jobTimeout); ; time.Sleep(20 * time.Millisecond) {
		var st jobs.Status
		c.do("GET", "/quantize/"+id, nil).into(c.t, 200, &st)
		if f(st) {
			return st
		}
		if st.Status.Final() || time.Now().After(end) {
			c.t.Fatalf("job is %s at %q: %s", st.Status, st.Phase, st.Error)
		}
	}
}

func (c client) finished(id string) jobs.Status {
	c.t.Helper()
	return c.until(id, func(st jobs.Status) bool { return st.Status.Final() })
}

// inference runs the model through the engine itself, in this process.
func inference(t testing.TB, path string, in engine.Feeds) engine.Feeds {
	t.Helper()
	s, err := needEngine(t).OpenFile(context.Background(), path, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := engine.Feeds{}
	for name, x := range r.Tensors() {
		out[name] = x.Clone()
	}
	return out
}
