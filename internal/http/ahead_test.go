package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

// full serves a model whose only place is taken until the test ends.
func full(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	gate := make(chan struct{})
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}, "echo": {Spec: echoSpec()}}, func(c *Config) {
		c.MaxInFlight = 1
		if change != nil {
			change(c)
		}
	})
	done := make(chan int, 1)
	go func() { done <- f.call(t, "POST", "/v2/models/held/infer", one("[1]", "FP32", "[1]")).status }()
	if err := f.engine.WaitRunning(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(gate)
		if s := <-done; s != 200 {
			t.Errorf("the request that was admitted: %d", s)
		}
	})
	return f
}

// TestRefusedByItsHead: what cannot be admitted is answered before its body has
// arrived. A connection whose body is short goes on; any other is closed.
func TestRefusedByItsHead(t *testing.T) {
	const patience = 5 * time.Second // a tenth of what the body might take
	f := full(t, func(c *Config) { c.BodyTimeout = 10 * patience })
	addr, held := strings.TrimPrefix(f.url, "http://"), f.bodies.Load()
	for _, head := range []string{"Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 1000000\r\nExpect: 100-continue\r\n"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(c, "POST /v2/models/held/infer HTTP/1.1\r\nHost: x\r\n%s\r\n", head)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !res.Close || !strings.Contains(string(body), "in flight already") {
			t.Errorf("%q: %d %v %s", head, res.StatusCode, res.Header, body)
		}
		c.Close()
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	body := strings.Repeat("x", drainMost) // no JSON: nobody looks at it
	for _, q := range []struct {
		line, body string
		status     int
	}{{"POST /v2/models/held/infer", body, 503}, {"POST /v2/models/held/infer", "{", 503}, {"GET /v2/models/echo", "", 200}} {
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", q.line, len(q.body), q.body)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", q.line, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != q.status || res.Close {
			t.Errorf("%s: %d, closes %v, %v", q.line, res.StatusCode, res.Close, err)
		}
	}
	if n := f.bodies.Load(); n != held {
		t.Errorf("%d bytes of bodies are held, %d before", n, held)
	}
	if s := f.stats.all(); s[len(s)-1].name != "held" || s[len(s)-1].failures[failRejected].Load() != 5 {
		t.Error("the refusals were not counted")
	}
}

// TestTimeoutOfTheHead: the header Inference-Timeout is the deadline, the shorter of it
// and the parameter; nonsense is refused.
func TestTimeoutOfTheHead(t *testing.T) {
	f := full(t, func(c *Config) { c.MaxInFlight = 2 })
	for _, c := range []struct{ header, param string }{{"20000", ""}, {"20000", `"parameters":{"timeout":600000000},`}, {"600000000", `"parameters":{"timeout":20000},`}} {
		a := f.call(t, "POST", "/v2/models/held/infer", "{"+c.param+one("[1]", "FP32", "[1]")[1:], headerTimeout, c.header)
		if text := wantError(t, a, 503); !strings.Contains(text, "deadline") {
			t.Errorf("%s %s: %q", c.header, c.param, text)
		}
	}
	for _, bad := range []string{"", "0", "-1", "1.5", "20ms", "3600000001", strings.Repeat("9", 400)} {
		if text := wantError(t, f.call(t, "POST", "/v2/models/held/infer", "no body", headerTimeout, bad), 400); !strings.Contains(text, "microseconds from 1 to 3600000000") {
			t.Errorf("%q: %q", bad, text)
		}
	}
}

// TestHopelessByItsHead: once the sizes of requests are known, one that would be
// answered too late is refused before its body arrives, and now and then one is read.
func TestHopelessByItsHead(t *testing.T) {
	const takes = 300 * time.Millisecond
	f := newFixture(t, map[string]fake.Model{"slow": {Spec: oneSpec(tensor.Float32, -1), Delay: takes}}, nil)
	body := one("[1]", "FP32", "[1]")
	if a := f.call(t, "POST", "/v2/models/slow/infer", body); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	done := make(chan int)
	go func() { done <- f.call(t, "POST", "/v2/models/slow/infer", body).status }()
	if err := f.engine.WaitRunning(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	limit := fmt.Sprint((takes / 100).Microseconds())
	// Of the same length, but no JSON: who reads it answers 400.
	junk := strings.Repeat("x", len(body))
	statuses := ""
	for range refusedInRow + 2 {
		statuses += fmt.Sprint(f.call(t, "POST", "/v2/models/slow/infer", junk, headerTimeout, limit).status, " ")
	}
	if want := strings.Repeat("503 ", refusedInRow) + "400 503 "; statuses != want {
		t.Errorf("answers %swant %s", statuses, want)
	}
	// Without the header, and of a length that nobody has seen, nothing is known.
	for _, q := range [][]string{{junk}, {strings.Repeat(junk, 4), headerTimeout, limit}} {
		if a := f.call(t, "POST", "/v2/models/slow/infer", q[0], q[1:]...); a.status != 400 {
			t.Errorf("%d bytes, %q: %d", len(q[0]), q[1:], a.status)
		}
	}
	if s := <-done; s != 200 {
		t.Errorf("the one that ran: %d", s)
	}
}

func TestLengths(t *testing.T) {
	var l lengths
	if n := l.size(false, 100); n != 0 {
		t.Errorf("nothing seen: %v", n)
	}
	l.learn(false, 100, 64)
	l.learn(false, 120, 80)
	l.learn(false, 100, 48)
	l.learn(true, 100, 7)
	l.learn(false, 0, 1)
	l.learn(false, -1, 1)
	for _, c := range []struct {
		binary bool
		length int64
		want   float64
	}{{false, 64, 48}, {false, 127, 48}, {false, 128, 0}, {true, 64, 7}, {false, 0, 0}, {false, -1, 0}, {false, 1<<63 - 1, 0}} {
		if n := l.size(c.binary, c.length); n != c.want {
			t.Errorf("%v %d: %v, want %v", c.binary, c.length, n, c.want)
		}
	}
	for range 2 * learnedSizes {
		l.learn(false, 100, 200)
	}
	if n := l.size(false, 100); n != 200 {
		t.Errorf("small ones are long ago: %v", n)
	}
}
