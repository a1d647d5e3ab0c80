package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/access/accesstest"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestBadBytes sends what no client library does. One answer comes, of the 400s
// or none at all, and the next request is right.
func TestBadBytes(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.HeaderTimeout, c.BodyTimeout = 5*time.Second, 3*time.Second })
	const post = "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\n"
	long := fmt.Sprintf("Content-Length: %d\r\n", len(echoBody))
	for name, raw := range map[string]string{
		// Two readings of where the body ends are how requests are smuggled.
		"two lengths":            post + "Content-Length: 4\r\n" + long + "\r\n" + echoBody,
		"a list of lengths":      post + "Content-Length: 4, 5\r\n\r\n" + echoBody,
		"negative length":        post + "Content-Length: -1\r\n\r\n" + echoBody,
		"length with a plus":     post + "Content-Length: +4\r\n\r\n{}{}",
		"hexadecimal length":     post + "Content-Length: 0x4\r\n\r\n{}{}",
		"length 2^64":            post + "Content-Length: 18446744073709551616\r\n\r\n" + echoBody,
		"length 2^63-1":          post + "Content-Length: 9223372036854775807\r\n\r\n" + echoBody,
		"unknown coding":         post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"two transfer codings":   post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"gzip transfer coding":   post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunk of 2^64":          post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nx\r\n0\r\n\r\n",
		"negative chunk":         post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
		"chunk without its end":  post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
		"endless chunk header":   post + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 100_000),
		"endless trailer":        post + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + strings.Repeat("X-T: v\r\n", 20_000) + "\r\n",
		"space before the colon": post + "Content-Length : 4\r\n\r\n{}{}",
		"folded header":          post + "X-Long: a\r\n b\r\nContent-Length: 4\r\n\r\n{}{}",
		"NUL in a header":        post + "X-Nul: a\x00b\r\nContent-Length: 4\r\n\r\n{}{}",
		"CR in a header":         post + "X-Cr: a\rb\r\nContent-Length: 4\r\n\r\n{}{}",
		"header name of UTF-8":   post + "X-\xc3\xa9: a\r\nContent-Length: 4\r\n\r\n{}{}",
		"header of 1 MiB":        post + "X-Long: " + strings.Repeat("v", 1<<20) + "\r\n\r\n",
		"20,000 headers":         post + strings.Repeat("X-A: b\r\n", 20_000) + "\r\n",
		"no host":                "POST /v2/models/echo/infer HTTP/1.1\r\n" + long + "\r\n" + echoBody,
		"two hosts":              post + "Host: y\r\n" + long + "\r\n" + echoBody,
		"host with a path":       "GET /v2 HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"request line of 1 MiB":  "GET /" + strings.Repeat("v", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"no version":             "GET /v2\r\n\r\n",
		"version 9":              "GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
		"HTTP/2 in clear text":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"method of UTF-8":        "G\xc3\x89T /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
		"empty line":             "\r\n\r\n\r\n\r\n",
		"zeros":                  strings.Repeat("\x00", 10_000),
		"a TLS hello":            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("a", 500) + "\r\n\r\n",
		"asterisk":               "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT":                "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
		"a proxy's request":      "GET http://example.org/quantize HTTP/1.1\r\nHost: x\r\n\r\n",
		// Names, as bytes that a library would clean or escape.
		"dots":               "GET /v2/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"escaped dots":       "GET /v2/models/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"twice escaped dots": "GET /v2/models/%252e%252e%252fx HTTP/1.1\r\nHost: x\r\n\r\n",
		"overlong dots":      "GET /v2/models/%c0%ae%c0%ae HTTP/1.1\r\nHost: x\r\n\r\n",
		"backslashes":        "GET /v2/models/..\\..\\x HTTP/1.1\r\nHost: x\r\n\r\n",
		"NUL":                "GET /v2/models/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
		"escaped NUL":        "GET /v2/models/a%00b HTTP/1.1\r\nHost: x\r\n\r\n",
		"half an escape":     "GET /v2/models/a%2 HTTP/1.1\r\nHost: x\r\n\r\n",
		"raw UTF-8":          "GET /v2/models/\xd0\xb5cho HTTP/1.1\r\nHost: x\r\n\r\n",
		"full width":         "GET /v2/models/%EF%BD%85cho HTTP/1.1\r\nHost: x\r\n\r\n",
		"zero width":         "GET /v2/models/echo%E2%80%8B HTTP/1.1\r\nHost: x\r\n\r\n",
		"another case":       "GET /v2/models/ECHO HTTP/1.1\r\nHost: x\r\n\r\n",
		"header length list": post + "Inference-Header-Content-Length: 5\r\nInference-Header-Content-Length: 6\r\n" + long + "\r\n" + echoBody,
	} {
		got := f.raw(t, func(c net.Conn) {
			_, _ = io.WriteString(c, raw)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		if strings.Count(got, "HTTP/1.1 ") > 1 {
			t.Errorf("%s: several answers: %.300q", name, got)
		}
		if got != "" && !strings.HasPrefix(got, "HTTP/1.1 4") && !strings.HasPrefix(got, "HTTP/1.1 505") && !strings.HasPrefix(got, "HTTP/1.1 501") && !strings.HasPrefix(got, "HTTP/1.0 4") {
			t.Errorf("%s: %.200q", name, got)
		}
		for _, leak := range []string{"goroutine", ".go:", "/root", "passwd:"} {
			if strings.Contains(got, leak) {
				t.Errorf("%s: %.300q", name, got)
			}
		}
	}
	// Uploads read in another way.
	for _, chunks := range []string{"-1\r\nx\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "zz\r\n", "5\r\nab"} {
		got := f.raw(t, func(c net.Conn) {
			fmt.Fprint(c, "PUT /datasets/d HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", chunks)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		if !strings.HasPrefix(got, "HTTP/1.1 400") {
			t.Errorf("an upload in chunks %q: %.200q", chunks, got)
		}
	}
	f.fine(t)
	f.models.balanced(t)
}

// A body in a million chunks of one byte is read within its time, or given up;
// it holds no more memory than its bytes.
func TestMillionChunks(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.fine(t)
	body := strings.Repeat(" ", 1_000_000-len(echoBody)) + echoBody
	got := f.raw(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		w := bufio.NewWriterSize(c, 64<<10)
		fmt.Fprint(w, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := []byte("1\r\nx\r\n")
		for i := range len(body) {
			chunk[3] = body[i]
			if _, err := w.Write(chunk); err != nil {
				return // net/http may refuse so much overhead
			}
		}
		fmt.Fprint(w, "0\r\n\r\n")
		_ = w.Flush()
	})
	if !strings.HasPrefix(got, "HTTP/1.1 200") && !strings.HasPrefix(got, "HTTP/1.1 4") && got != "" {
		t.Errorf("%.200q", got)
	}
	f.fine(t)
	f.bodiesReturned(t)
}

// Many connections that send a header byte by byte, or nothing, do not keep
// others out, and are closed when their time is over.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	const slow = 200
	f := newFixture(t, nil, func(c *Config) { c.HeaderTimeout = 3 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range slow {
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			go func() { // one byte now and then; every other connection sends nothing
				for _, b := range []byte("GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("v", 1000)) {
					if i%2 == 0 {
						if _, err := conn.Write([]byte{b}); err != nil {
							return
						}
					}
					select {
					case <-ctx.Done():
						return
					case <-time.After(50 * time.Millisecond):
					}
				}
			}()
			if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Error("a slow connection is still open")
			}
		})
	}
	for range 20 {
		f.fine(t)
	}
	wg.Wait()
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("slow connections were held for %v", took)
	}
	f.fine(t)
}

// More connections than allowed wait and are served when others end.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil, func(c *Config) { c.MaxConns, c.HeaderTimeout = 4, 2*time.Second })
	for range 4 {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	f.fine(t) // once the silent ones are closed
}

// A client that leaves while its request waits for a run with others does not
// take theirs with it.
func TestClientGoneMidBatch(t *testing.T) {
	gate := make(chan struct{})
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}, "echo": {Spec: echoSpec()}}, nil)
	wait, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	post := func(ctx context.Context) (int, error) {
		req, err := http.NewRequestWithContext(ctx, "POST", f.url+"/v2/models/held/infer", strings.NewReader(one("[1]", "FP32", "[1]")))
		if err != nil {
			return 0, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		return res.StatusCode, nil
	}
	statuses := make(chan int, 8)
	gone, leave := context.WithCancel(wait)
	var leavers sync.WaitGroup
	for i := range 8 {
		if i%2 == 0 && i > 0 {
			leavers.Go(func() { _, _ = post(gone) })
			continue
		}
		go func() { s, _ := post(wait); statuses <- s }()
		if i == 0 {
			if err := f.engine.WaitRunning(wait, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for st := f.stats.all()[0]; st.admitted.Load() < 8; time.Sleep(time.Millisecond) {
		if wait.Err() != nil {
			t.Fatalf("%d requests are admitted", st.admitted.Load())
		}
	}
	leave()
	leavers.Wait()
	close(gate)
	for range 5 {
		if s := <-statuses; s != 200 {
			t.Errorf("a request that stayed was answered %d", s)
		}
	}
	f.fine(t)
	f.models.balanced(t)
}

// bodiesReturned waits until no body is accounted for: they are given back after
// their answers.
func (f *fixture) bodiesReturned(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); f.bodies.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of bodies are still accounted for", f.bodies.Load())
		}
	}
}

// Bodies count until their request is answered: what waits for the engine is
// memory too.
func TestBodiesHeldWhileWaiting(t *testing.T) {
	gate := make(chan struct{})
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}}, nil)
	done := make(chan answer, 1)
	body := one("[100000]", "FP32", "["+strings.Repeat("1,", 99_999)+"1]")
	go func() { done <- f.call(t, "POST", "/v2/models/held/infer", body) }()
	wait, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if err := f.engine.WaitRunning(wait, 1); err != nil {
		t.Fatal(err)
	}
	if n := f.bodies.Load(); n < int64(len(body))/2 {
		t.Errorf("%d bytes are accounted for while a body of %d waits", n, len(body))
	}
	rest := MaxBodiesInFlight - f.bodies.Load()
	if err := f.Hold(rest); err != nil {
		t.Fatal(err)
	}
	if a := f.call(t, "POST", "/v2/models/held/infer", body); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("past the budget: %d", a.status)
	}
	f.Free(rest)
	close(gate)
	if a := <-done; a.status != 200 {
		t.Errorf("%d %.200s", a.status, a.body)
	}
	f.bodiesReturned(t)
}

// TestElementsAreCharged: the elements of a short body may take many times its bytes;
// they come from the budget for bodies too.
func TestElementsAreCharged(t *testing.T) {
	f := newFixture(t, map[string]fake.Model{"texts": {Spec: oneSpec(tensor.String, -1)}, "numbers": {Spec: oneSpec(tensor.Float64, -1)}}, nil)
	const n = 100_000
	room := int64(n * 16) // for the body and its buffer, not for its elements
	quote := `"",`
	binary := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[%d],"datatype":"BYTES","parameters":{"binary_data_size":%d}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}`, n, 4*n)
	for _, c := range []struct {
		name, model, body string
		header            []string
	}{
		{"texts", "texts", one(fmt.Sprintf("[%d]", n), "BYTES", "["+strings.Repeat(quote, n-1)+`""]`), nil},
		{"escapes", "texts", one(fmt.Sprintf("[%d]", n), "BYTES", "["+strings.Repeat(`"\n",`, n-1)+`"\n"]`), nil},
		{"binary texts", "texts", binary + strings.Repeat("\x00", 4*n), []string{headerLength, strconv.Itoa(len(binary))}},
		{"numbers", "numbers", one(fmt.Sprintf("[%d]", 2*n), "FP64", "["+strings.Repeat("1,", 2*n-1)+"1]"), nil},
	} {
		path := "/v2/models/" + c.model + "/infer"
		if a := f.call(t, "POST", path, c.body, c.header...); a.status != 200 {
			t.Errorf("%s: %d %.200s", c.name, a.status, a.body)
		}
		f.bodiesReturned(t)
		if err := f.Hold(MaxBodiesInFlight - room); err != nil {
			t.Fatal(err)
		}
		if a := f.call(t, "POST", path, c.body, c.header...); a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: past the budget: %d %.200s", c.name, a.status, a.body)
		}
		f.Free(MaxBodiesInFlight - room)
		f.bodiesReturned(t)
	}
}

// secure serves with TLS, and a client that trusts it.
func secure(t *testing.T, change func(*Config)) (*fixture, *tls.Config) {
	t.Helper()
	ca := accesstest.NewAuthority(t, "ca")
	cert, key, _ := ca.Write(t, t.TempDir(), "localhost")
	certs, err := access.LoadCertificates(cert, key, "")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, map[string]fake.Model{"echo": {Spec: echoSpec()}, "panics": {Spec: oneSpec(tensor.Float32, -1), Run: func(engine.Feeds) (engine.Feeds, error) { panic("x") }}}, func(c *Config) {
		c.TLS = certs.Config("h2", "http/1.1")
		if change != nil {
			change(c)
		}
	})
	return f, ca.Client(t, nil, "")
}

// Over TLS both versions of HTTP answer, with the same limits.
func TestTLS(t *testing.T) {
	t.Parallel()
	f, trust := secure(t, func(c *Config) {
		c.SplitAdmin, c.MaxInferBody = true, 1<<20
		c.HeaderTimeout, c.BodyTimeout = 5*time.Second, 2*time.Second // a handshake has the time of a header
	})
	// Who does not speak TLS, or never ends the handshake, is let go.
	var strangers sync.WaitGroup
	for _, hello := range []string{"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01", ""} {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		strangers.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = io.WriteString(c, hello)
			if b, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") || strings.Contains(string(b), "200 OK") {
				t.Errorf("%q: %.100q, %v", hello, b, err)
			}
		})
	}
	for proto, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: h2, TLSHandshakeTimeout: 30 * time.Second}}
		do := func(url string, body io.Reader) (int, string) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", url, body)
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			if err != nil {
				return 0, err.Error()
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			if res.Proto != proto {
				t.Errorf("%s was spoken, want %s", res.Proto, proto)
			}
			return res.StatusCode, string(b)
		}
		const infer = "/v2/models/echo/infer"
		if status, body := do(f.url+infer, strings.NewReader(echoBody)); status != 200 {
			t.Errorf("%s: %d %s", proto, status, body)
		}
		if status, body := do(f.admin+"/v2/repository/index", nil); status != 200 {
			t.Errorf("%s, administrators: %d %s", proto, status, body)
		}
		if status, _ := do(f.url+infer, strings.NewReader(strings.Repeat(" ", 2<<20))); status != 413 && status != 0 {
			t.Errorf("%s: a large body: %d", proto, status)
		}
		if status, _ := do(f.url+"/v2/models/panics/infer", strings.NewReader(one("[1]", "FP32", "[1]"))); status != 500 {
			t.Errorf("%s: a panic: %d", proto, status)
		}
		stalled, w := io.Pipe()
		go func() { _, _ = w.Write([]byte("{")) }() // and no more
		begin := time.Now()
		if status, body := do(f.url+infer, stalled); status != 408 && status != 0 {
			t.Errorf("%s: a body that never ends: %d %s", proto, status, body)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s: it was held for %v", proto, took)
		}
		w.Close()
		if status, body := do(f.url+infer, strings.NewReader(echoBody)); status != 200 {
			t.Errorf("%s: the next request: %d %s", proto, status, body)
		}
		client.CloseIdleConnections()
	}
	strangers.Wait()
}

// A connection of HTTP/2 that opens and resets streams without end, or floods
// a header, is closed or told to slow down; others are answered.
func TestHTTP2Floods(t *testing.T) {
	f, trust := secure(t, nil)
	trust.NextProtos = []string{"h2"}
	open := func() (*http2.Framer, net.Conn) {
		c, err := tls.Dial("tcp", strings.TrimPrefix(f.url, "https://"), trust)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fr := http2.NewFramer(c, c)
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		if err := fr.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		return fr, c
	}
	var head strings.Builder
	enc := hpack.NewEncoder(&head)
	for _, h := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/v2/models/echo/infer"}, {Name: ":authority", Value: "x"}} {
		if err := enc.WriteField(h); err != nil {
			t.Fatal(err)
		}
	}
	fr, c := open()
	go func() { _, _ = io.Copy(io.Discard, c) }()
	for id := uint32(1); id < 20_000; id += 2 { // CVE-2023-44487
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(head.String()), EndHeaders: true}) != nil || fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	c.Close()
	fr, c = open()
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(head.String())}); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for field := ([]byte)(strings.Repeat("\x10\x01x\x7f\x81\x7e"+strings.Repeat("v", 254), 60)); sent < 64<<20; sent += len(field) { // CVE-2023-45288
		if fr.WriteContinuation(1, false, field) != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("64 MiB of header were read")
	}
	c.Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	res, err := client.Post(f.url+"/v2/models/echo/infer", "application/json", strings.NewReader(echoBody))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("the next request: %d", res.StatusCode)
	}
	f.models.balanced(t)
}
