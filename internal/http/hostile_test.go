package http

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

func gz(b string) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = io.WriteString(w, b)
	_ = w.Close()
	return out.Bytes()
}

func zl(b string) []byte {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	_, _ = io.WriteString(w, b)
	_ = w.Close()
	return out.Bytes()
}

// fine checks that the server answers a right request rightly.
func (f *fixture) fine(t *testing.T) {
	t.Helper()
	if a := f.call(t, "POST", "/v2/models/echo/infer", echoBody); a.status != 200 {
		t.Errorf("the next request failed: %d %s", a.status, a.body)
	}
}

// TestBadInput is the list of reference/serving.md section 7, items 1 to 10:
// every one is refused with a 4xx and {"error"}, and the next request is
// answered.
func TestBadInput(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.MaxInferBody = 4 << 20 })
	defer f.models.balanced(t)
	const url = "/v2/models/echo/infer"
	for name, body := range badBodies { // items 1, 2, 3
		a := f.call(t, "POST", url, body)
		if wantError(t, a, 400); t.Failed() {
			t.Fatalf("%s", name)
		}
	}
	f.fine(t)

	head := `{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":%s}},` +
		`{"name":"ids","shape":[1],"datatype":"INT64","data":[1]},{"name":"s","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":%s}}]}`
	body := func(x, s string, tail ...byte) (string, string) {
		j := fmt.Sprintf(head, x, s)
		return j + string(tail), fmt.Sprint(len(j))
	}
	good, n := body("12", "5", append(make([]byte, 12), 1, 0, 0, 0, 'a')...)
	if a := f.call(t, "POST", url, good, headerLength, n); a.status != 200 {
		t.Fatalf("a right binary request: %d %s", a.status, a.body)
	}
	tail := append(make([]byte, 12), 1, 0, 0, 0, 'a')
	for _, c := range []struct {
		name, body, length string
		status             int
	}{
		{"header length -1", good, "-1", 400},
		{"header length text", good, "ten", 400},
		{"header length hexadecimal", good, "0x10", 400},
		{"header length past the body", good, fmt.Sprint(len(good) + 1), 400},
		{"header length huge", good, "9223372036854775807", 400},
		{"header length 2^64", good, "18446744073709551616", 400},
		{"header length short of the JSON", good, "10", 400},
		{"header length into the tensors", good, fmt.Sprint(len(good)), 400},
		{"raw body with three inputs", good, "0", 400},
		{"no header length", good, "", 400},
	} {
		headers := []string{headerLength, c.length}
		if c.length == "" {
			headers = nil
		}
		wantError(t, f.call(t, "POST", url, c.body, headers...), c.status)
	}
	for _, sizes := range [][2]string{{"11", "5"}, {"13", "5"}, {"12", "4"}, {"12", "6"}, {"17", "0"}, {"0", "17"}, {"-1", "5"}, {"1e1", "5"}, {"9223372036854775807", "5"}, {"9223372036854775807", "9223372036854775807"}, {`"12"`, "5"}, {"null", "5"}} {
		b, n := body(sizes[0], sizes[1], tail...) // item 5
		wantError(t, f.call(t, "POST", url, b, headerLength, n), 400)
	}
	for _, s := range [][]byte{{2, 0, 0, 0, 'a'}, {0xff, 0xff, 0xff, 0xff, 'a'}, {0, 0, 0, 0x80, 'a'}, {0, 0, 0, 0, 'a'}} { // item 6
		b, n := body("12", "5", append(make([]byte, 12), s...)...)
		wantError(t, f.call(t, "POST", url, b, headerLength, n), 400)
	}
	two := strings.Replace(head, "%s}}]}", "4}},{}]}", 1)
	wantError(t, f.call(t, "POST", url, two, headerLength, fmt.Sprint(len(two))), 400)
	f.fine(t)

	for _, c := range []struct { // item 7
		name, coding string
		body         []byte
		status       int
	}{
		{"gzip bomb", "gzip", gz(strings.Repeat(" ", 8<<20)), 413},
		{"deflate bomb", "deflate", zl(strings.Repeat("[", 8<<20)), 413},
		{"double gzip", "gzip", gz(string(gz(echoBody))), 400},
		{"two codings", "gzip, gzip", gz(string(gz(echoBody))), 415},
		{"unknown coding", "br", []byte(echoBody), 415},
		{"truncated gzip", "gzip", gz(echoBody)[:50], 400},
		{"gzip without its sum", "gzip", gz(echoBody)[:len(gz(echoBody))-4], 400},
		{"truncated deflate", "deflate", zl(echoBody)[:30], 400},
		{"not gzip", "gzip", []byte(echoBody), 400},
		{"gzip header only", "gzip", gz(echoBody)[:10], 400},
		{"one byte of gzip", "gzip", []byte{0x1f}, 400},
		{"deflate as gzip", "gzip", zl(echoBody), 400},
		{"empty gzip", "gzip", []byte{}, 400},
		{"gzip of nothing", "gzip", gz(""), 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantError(t, f.call(t, "POST", url, c.body, "Content-Encoding", c.coding), c.status)
		})
	}
	f.fine(t)

	wantError(t, f.call(t, "POST", url, strings.Repeat(" ", 5<<20)), 413) // item 8
	wantError(t, f.call(t, "POST", url, struct{ io.Reader }{io.LimitReader(spaces{}, 5<<20)}), 413)
	wantError(t, f.call(t, "POST", url, nil), 400) // item 9
	f.fine(t)

	for _, name := range []string{"..", "%2e%2e", ".", "a%2fb", "a%5cb", "a%00b", "%00", strings.Repeat("a", 10_000), "m%D0%BEdel", "-x", ".x", "a..b", "a%20b", "%F0%9F%98%80", "a%0ab"} { // item 10
		for _, route := range []struct{ method, path string }{{"POST", "/v2/models/" + name + "/infer"}, {"GET", "/v2/models/" + name}, {"PUT", "/models/" + name}, {"PUT", "/datasets/" + name}, {"POST", "/v2/models/echo/versions/" + name + "/infer"}, {"GET", "/quantize/" + name}} {
			a := f.call(t, route.method, route.path, "{}")
			if a.status < 400 || a.status >= 500 {
				t.Errorf("%s %.60s: status %d", route.method, route.path, a.status)
			}
			wantError(t, a, a.status)
		}
	}
	f.fine(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/nothing", 404}, {"POST", "/v2/models/none/infer", 404}, {"POST", "/v2/models/echo/versions/2/infer", 404}, {"GET", "/v2/models/echo/infer", 405}, {"DELETE", "/v2", 405}, {"BREW", "/v2", 405},
		{"POST", "/v2/models/broken/infer", 503}, {"GET", "/v2/models/echo/", 404}, {"GET", "//v2", 404}} {
		a := f.call(t, c.method, c.path, nil)
		wantError(t, a, c.status)
		if c.status == 503 && a.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", c.path)
		}
		if c.status == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s: no Allow", c.path)
		}
	}
}

// TestHead: what can be got has a head, but for streams.
func TestHead(t *testing.T) {
	f := newFixture(t, map[string]fake.Model{"echo": {Spec: echoSpec()}}, nil)
	for path, status := range map[string]int{"/v2/health/live": 200, "/v2/health/ready": 200, "/v2/models/echo": 200, "/metrics": 200, "/v2/models/none": 404, "/quantize/1/events": 405, "/v2/models/echo/infer": 405} {
		got, head := f.call(t, "GET", path, nil), f.call(t, "HEAD", path, nil)
		if head.status != status || len(head.body) > 0 {
			t.Errorf("HEAD %s: %d, %q", path, head.status, head.body)
		}
		if a, b := got.header.Get("Content-Type"), head.header.Get("Content-Type"); status == 200 && a != b {
			t.Errorf("%s is %s, its head %s", path, a, b)
		}
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// raw sends bytes over a connection of its own and returns all that comes back.
func (f *fixture) raw(t *testing.T, send func(net.Conn)) string {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	send(c)
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestSlowClients(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) {
		c.HeaderTimeout, c.BodyTimeout, c.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	})
	start := time.Now()
	f.raw(t, func(c net.Conn) { fmt.Fprint(c, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ") })
	if got := f.raw(t, func(c net.Conn) {
		fmt.Fprint(c, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	}); !strings.HasPrefix(got, "HTTP/1.1 408") || !strings.Contains(got, `{"error":`) {
		t.Errorf("a body that never ends: %q", got)
	}
	if got := f.raw(t, func(c net.Conn) {
		fmt.Fprint(c, "PUT /models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
	}); !strings.HasPrefix(got, "HTTP/1.1 408") {
		t.Errorf("an upload that never ends: %q", got)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("slow clients were held for %v", took)
	}
	// A body in many chunks of one byte is slow, and fine.
	got := f.raw(t, func(c net.Conn) {
		w := bufio.NewWriter(c)
		fmt.Fprint(w, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
		for i := range len(echoBody) {
			fmt.Fprintf(w, "1\r\n%c\r\n", echoBody[i])
		}
		fmt.Fprint(w, "0\r\n\r\n")
		_ = w.Flush()
	})
	if !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Errorf("one-byte chunks: %.200q", got)
	}
	// With both lengths net/http takes the chunks (RFC 9112, 6.3) and must not
	// see a second request in what is left.
	got = f.raw(t, func(c net.Conn) {
		fmt.Fprint(c, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
	})
	if !strings.HasPrefix(got, "HTTP/1.1 400") || strings.Count(got, "HTTP/1.1") != 1 {
		t.Errorf("Content-Length with chunks: %.300q", got)
	}
	f.fine(t)
}

// A connection that idled longer than any deadline of its last request still
// serves the next one, whatever kind of route that is.
func TestIdleConnection(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
	f.fine(t)
	for _, r := range []struct {
		method, path, body string
		status             int
	}{{"PUT", "/datasets/d", "x", 201}, {"DELETE", "/datasets/d", "", 204}, {"GET", "/metrics", "", 200}, {"GET", "/v2", "", 200}} {
		time.Sleep(120 * time.Millisecond)
		if a := f.call(t, r.method, r.path, r.body); a.status != r.status {
			t.Errorf("%s %s: %d %s", r.method, r.path, a.status, a.body)
		}
	}
	// A run that takes longer than the body timeout keeps its client.
	slow := newFixture(t, map[string]fake.Model{"slow": {Spec: oneSpec(tensor.Float32, -1), Delay: 200 * time.Millisecond}}, func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
	if a := slow.call(t, "POST", "/v2/models/slow/infer", one("[1]", "FP32", "[1]")); a.status != 200 {
		t.Errorf("a slow run: %d %s", a.status, a.body)
	}
}

// A client that leaves in the middle of a run ends the run and is counted.
func TestClientGone(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}, "echo": {Spec: echoSpec()}}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", f.url+"/v2/models/held/infer", strings.NewReader(one("[1]", "FP32", "[1]")))
	done := make(chan error, 1)
	go func() {
		_, err := http.DefaultClient.Do(req)
		done <- err
	}()
	wait, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := f.engine.WaitRunning(wait, 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if err := f.engine.WaitRunning(wait, 0); err != nil {
		t.Fatal("the run went on after its client had left")
	}
	f.fine(t)
	f.models.balanced(t)
	if n := f.stats.all(); n[len(n)-1].name != "held" || n[len(n)-1].failures[failCanceled].Load() != 1 {
		t.Errorf("the cancelled request was not counted")
	}
}

func TestDeadlineAndOverload(t *testing.T) {
	gate := make(chan struct{})
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}}, func(c *Config) { c.MaxInFlight = 2 })
	body := `{"parameters":{"timeout":20000},` + one("[1]", "FP32", "[1]")[1:]
	a := f.call(t, "POST", "/v2/models/held/infer", body)
	if text := wantError(t, a, 503); !strings.Contains(text, "deadline") || a.header.Get("Retry-After") == "" {
		t.Errorf("%q, Retry-After %q", text, a.header.Get("Retry-After"))
	}
	answers := make(chan int, 2)
	for range 2 {
		go func() {
			a := f.call(t, "POST", "/v2/models/held/infer", one("[1]", "FP32", "[1]"))
			answers <- a.status
		}()
	}
	st := func() int64 { return f.stats.all()[0].admitted.Load() }
	for start := time.Now(); st() < 2 && time.Since(start) < 10*time.Second; {
		time.Sleep(time.Millisecond)
	}
	// Both places are taken: one runs, one waits.
	a = f.call(t, "POST", "/v2/models/held/infer", one("[1]", "FP32", "[1]"))
	if wantError(t, a, 503); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if _, running := f.engine.Runs(); running != 1 {
		t.Errorf("%d runs at once, want 1", running)
	}
	close(gate)
	for range 2 {
		if s := <-answers; s != 200 {
			t.Errorf("a request that waited was answered %d", s)
		}
	}
	for start := time.Now(); st() > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d requests still admitted", st())
		}
	}
}

func TestPanicAndInternalError(t *testing.T) {
	spec := oneSpec(tensor.Float32, -1)
	f := newFixture(t, map[string]fake.Model{
		"panics": {Spec: spec, Run: func(engine.Feeds) (engine.Feeds, error) { panic("secret of /srv/secret") }},
		"fails":  {Spec: spec, Run: func(engine.Feeds) (engine.Feeds, error) { return nil, fmt.Errorf("open /srv/secret/weights: broken") }},
		"echo":   {Spec: echoSpec()},
	}, nil)
	defer f.models.balanced(t)
	for _, model := range []string{"panics", "fails"} {
		wantError(t, f.call(t, "POST", "/v2/models/"+model+"/infer", one("[1]", "FP32", "[1]")), 500)
		select {
		case err := <-f.errs:
			if !strings.Contains(err.Error(), "secret") {
				t.Errorf("the operator was told %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the operator was not told", model)
		}
	}
	f.fine(t)
	if m := f.call(t, "GET", "/metrics", nil); !strings.Contains(string(m.body), "fewbit_http_panics_total 1") ||
		!strings.Contains(string(m.body), `nv_inference_request_failure{model="panics",reason="BACKEND",version="1"} 1`) {
		t.Error("the panic was not counted")
	}
}

// After a burst of large requests the memory goes back.
func TestMemoryReturns(t *testing.T) {
	f := newFixture(t, nil, nil)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	f.fine(t)
	before := heap()
	bomb := gz(strings.Repeat("[", 24<<20))
	for range 2 {
		wantError(t, f.call(t, "POST", "/v2/models/echo/infer", bomb, "Content-Encoding", "gzip"), 400)
	}
	f.fine(t)
	if after := heap(); after > before+16<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	f.bodiesReturned(t)
}

// The memory of large bodies goes back to the system too, soon after them.
func TestMemoryReturnsToTheSystem(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.trim.after = 50 * time.Millisecond
	kept := func() uint64 { // of the heap, from the system's view
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys - m.HeapReleased
	}
	f.fine(t)
	debug.FreeOSMemory()
	before := kept()
	body := gz(`{"parameters":{"file:1/model.onnx":"` + strings.Repeat("A", 160<<20) + `"}}`)
	wantError(t, f.call(t, "POST", "/v2/repository/models/echo/load", body, "Content-Encoding", "gzip"), 501)
	if now := kept(); now < before+100<<20 {
		t.Fatalf("the body took %d MiB of memory", (now-before)>>20)
	}
	for end := time.Now().Add(20 * time.Second); kept() > before+32<<20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d MiB more are kept than before", (kept()-before)>>20)
		}
	}
	f.fine(t)
}

func TestHidePaths(t *testing.T) {
	for in, want := range map[string]string{
		"open /srv/data/models/m.onnx: no such file": "open m.onnx: no such file",
		`refused ("/a/b/c", '/d/e')`:                 `refused ("c", 'e')`,
		"upload with PUT /models/m":                  "upload with PUT /models/m",
		"1/2 of a/b":                                 "1/2 of a/b",
		"path=/etc/passwd":                           "path=passwd",
		"see https://example.org/a/b":                "see https://example.org/a/b",
	} {
		if got := hidePaths(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// TestTokensAreBounded: a small body must not ask a language model for gigabytes.
func TestTokensAreBounded(t *testing.T) {
	ids := func(rows, length int64) engine.Feeds {
		x, err := tensor.New(tensor.Int64, rows, length)
		if err != nil {
			t.Fatal(err)
		}
		return engine.Feeds{"input_ids": x}
	}
	if err := checkTokens(ids(64, 256)); err != nil {
		t.Errorf("16,384 tokens: %v", err)
	}
	err := checkTokens(ids(1000, 100))
	if err == nil || !strings.Contains(err.Error(), "100000 tokens, at most 16384") {
		t.Errorf("100,000 tokens: %v", err)
	}
}

// TestElementsAreBounded: a long body of short elements is refused before lists are
// made of it.
func TestElementsAreBounded(t *testing.T) {
	f := textsFixture(t)
	for _, field := range []string{"texts", "images"} {
		body := gz(`{"model":"letters","` + field + `":[""` + strings.Repeat(`,""`, 20<<20) + `]}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		a := f.call(t, "POST", "/v1/classify", body, "Content-Encoding", "gzip", "Content-Type", "application/json")
		runtime.ReadMemStats(&after)
		if msg := wantError(t, a, 400); !strings.Contains(msg, field) {
			t.Errorf("%s: %s", field, msg)
		}
		if made := after.TotalAlloc - before.TotalAlloc; made > 400<<20 { // what a buffer of 60 MiB takes to grow
			t.Errorf("%s: %d MiB were allocated for a body of %d KiB", field, made>>20, len(body)>>10)
		}
	}
}
