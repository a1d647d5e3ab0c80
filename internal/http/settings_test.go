package http

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// output collects a log.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// take returns what was written since, once it holds want or a while has passed.
func (o *output) take(want string) string {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		s := o.b.String()
		if strings.Contains(s, want) || time.Since(start) > 2*time.Second {
			o.b.Reset()
			o.mu.Unlock()
			return s
		}
		o.mu.Unlock()
	}
}

// watched is a fixture with a log and traces.
func watched(t *testing.T, models map[string]fake.Model) (*fixture, *output) {
	t.Helper()
	out := &output{}
	h := logs.New(out, logs.Defaults())
	tr := trace.New(trace.Options{Dir: t.TempDir(), Process: "test"})
	t.Cleanup(func() { _ = tr.Close() })
	return newFixture(t, models, func(c *Config) {
		c.Log, c.Logs, c.Trace, c.SlowRequest = slog.New(h), h, tr, 50*time.Millisecond
	}), out
}

func TestLoggingSettings(t *testing.T) {
	f, out := watched(t, nil)
	const defaults = `{"log_file":"","log_info":true,"log_warning":true,"log_error":true,"log_verbose_level":0,"log_format":"default"}`
	for _, c := range []struct {
		body   string
		status int
		want   string
	}{
		{"", 200, defaults},
		{`{}`, 200, defaults},
		{`{"log_verbose_level":2}`, 400, "log_verbose_level"},
		{`{"log_verbose_level":-1}`, 400, "log_verbose_level"},
		{`{"log_format":"xml"}`, 400, "log_format"},
		{`{"log_file":"/etc/passwd"}`, 400, "standard error"},
		{`{"log_info":"yes"}`, 400, "true or false"},
		{`{"nonsense":1}`, 400, "unknown field"},
		{`{"log_info":false,"log_format":"json","log_verbose_level":1}`, 200, `"log_info":false,"log_warning":true,"log_error":true,"log_verbose_level":1,"log_format":"json"`},
	} {
		if a := f.call(t, "POST", "/v2/logging", c.body); a.status != c.status || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.body, a.status, a.body, c.status, c.want)
		}
	}
	if a := f.call(t, "GET", "/v2/logging", nil); !strings.Contains(string(a.body), `"log_verbose_level":1`) {
		t.Errorf("what was set is not shown: %s", a.body)
	}
	// The settings act: a line for each request, as JSON, with the id that the client gave.
	out.take("/v2/logging")
	f.call(t, "GET", "/v2", nil, "X-Request-Id", "my-id.1")
	var line struct {
		Msg, Method, Path, Took string
		Status                  int
		ID                      string `json:"request_id"`
	}
	text := out.take("my-id.1")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil || line.Method != "GET" || line.Path != "/v2" || line.Status != 200 || line.ID != "my-id.1" || line.Took == "" {
		t.Errorf("the request's line is %q (%v)", text, err)
	}
	f.call(t, "POST", "/v2/logging", `{"log_verbose_level":0}`)
	out.take("/v2/logging")
	f.call(t, "GET", "/v2", nil, "X-Request-Id", "my-id.2")
	time.Sleep(20 * time.Millisecond)
	if text := out.take(""); strings.Contains(text, "my-id.2") {
		t.Errorf("a request is logged at level 0: %s", text)
	}
}

func TestRequestID(t *testing.T) {
	f, _ := watched(t, nil)
	for _, c := range []struct {
		given string
		kept  bool
	}{
		{"abc-123_/=+.:", true}, {"", false}, {"has space", false}, {"quo\"te", false}, {strings.Repeat("x", MaxLogID), true}, {strings.Repeat("x", MaxLogID+1), false}, {"ümlaut", false},
	} {
		got := f.call(t, "GET", "/v2", nil, "X-Request-Id", c.given).header.Get("X-Request-Id")
		if (got == c.given) != c.kept || got == "" {
			t.Errorf("id %q came back as %q, kept: want %v", c.given, got, c.kept)
		}
	}
}

func TestSlowRequestIsLogged(t *testing.T) {
	f, out := watched(t, map[string]fake.Model{"slow": {Spec: oneSpec(tensor.Float32, -1), Delay: 60 * time.Millisecond}, "fast": {Spec: oneSpec(tensor.Float32, -1)}})
	f.call(t, "POST", "/v2/models/fast/infer", one("[1]", "FP32", "[1]"), "X-Request-Id", "quick")
	f.call(t, "POST", "/v2/models/slow/infer", one("[1]", "FP32", "[1]"), "X-Request-Id", "late")
	text := out.take("late")
	for _, want := range []string{"level=WARN", "slow request", "model=slow", "request_id=late", "rows=1", "infer=", "queue=", "prepare=", "finish=", "total="} {
		if !strings.Contains(text, want) {
			t.Errorf("the slow request's line lacks %q: %s", want, text)
		}
	}
	if strings.Contains(text, "quick") {
		t.Errorf("a fast request is logged as slow: %s", text)
	}
}

func TestTraceSettings(t *testing.T) {
	f, _ := watched(t, nil)
	const off = `{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","log_frequency":"0","trace_file":"trace.json","trace_mode":"perfetto"}`
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/v2/trace/setting", "", 200, off},
		{"/v2/trace/setting", `{"trace_level":["TENSORS"]}`, 400, "trace_level"},
		{"/v2/trace/setting", `{"trace_level":true}`, 400, "trace_level"},
		{"/v2/trace/setting", `{"trace_level":["OFF","TIMESTAMPS"]}`, 400, "2 values"},
		{"/v2/trace/setting", `{"trace_rate":1.5}`, 400, "trace_rate"},
		{"/v2/trace/setting", `{"trace_file":"../../etc/cron.d/x"}`, 400, "trace_file"},
		{"/v2/trace/setting", `{"trace_speed":1}`, 400, "unknown field"},
		{"/v2/models/none/trace/setting", `{}`, 404, "none"},
		{"/v2/trace/setting", `{"trace_rate":"1"}`, 200, `"trace_rate":"1"`},
		{"/v2/models/one/trace/setting", `{"trace_level":["TIMESTAMPS"],"trace_count":2,"trace_file":"one.json"}`, 200, `{"trace_level":["TIMESTAMPS"],"trace_rate":"1","trace_count":"2"`},
	} {
		if a := f.call(t, "POST", c.path, c.body); a.status != c.status || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.path, c.body, a.status, a.body, c.status, c.want)
		}
	}
	if a := f.call(t, "GET", "/v2/trace/setting", nil); !strings.Contains(string(a.body), `"OFF"`) {
		t.Errorf("one model's setting switched all on: %s", a.body)
	}
	body := one("[1,3]", "FP32", "[1,2,3]")
	for i := range 3 {
		f.call(t, "POST", "/v2/models/one/infer", body, "X-Request-Id", fmt.Sprint("r", i))
	}
	f.call(t, "POST", "/v2/models/one/infer", one("[1,3]", "FP32", "[1]")) // not traced: the count is spent
	if a := f.call(t, "GET", "/v2/models/one/trace/setting", nil); !strings.Contains(string(a.body), `"trace_count":"0"`) {
		t.Errorf("the count that is left: %s", a.body)
	}
	a := f.call(t, "GET", "/v2/trace/files/one.json", nil)
	var events []struct{ Name, Ph string }
	if err := json.Unmarshal(a.body, &events); err != nil {
		t.Fatalf("the file is no JSON: %v: %s", err, a.body)
	}
	phases := map[string]int{}
	for _, e := range events {
		if e.Ph == "X" {
			phases[e.Name]++
		}
	}
	for _, want := range []string{"request one", "prepare", "queue", "infer", "finish"} {
		if phases[want] != 2 {
			t.Errorf("%d ranges %q in the file, want 2: %s", phases[want], want, a.body)
		}
	}
	if a := f.call(t, "GET", "/v2/trace/files", nil); !strings.Contains(string(a.body), `"one.json"`) {
		t.Errorf("the list of files: %s", a.body)
	}
	for path, status := range map[string]int{"none.json": 404, "..%2f..%2fetc%2fpasswd": 404, ".hidden": 400} {
		if a := f.call(t, "GET", "/v2/trace/files/"+path, nil); a.status != status {
			t.Errorf("file %s: %d %s, want %d", path, a.status, a.body, status)
		}
	}
}

// TestSettingsNeedAdmin: nobody without a key changes settings or reads files.
func TestSettingsNeedAdmin(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) {
		c.Keys, c.Logs, c.Trace = keyring(t, access.Admin), logs.New(io.Discard, logs.Defaults()), trace.New(trace.Options{})
	})
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/v2/logging", 200}, {"GET", "/v2/trace/setting", 200}, {"GET", "/v2/models/one/trace/setting", 200},
		{"POST", "/v2/logging", 401}, {"POST", "/v2/trace/setting", 401}, {"POST", "/v2/models/one/trace/setting", 401},
		{"GET", "/v2/trace/files", 401}, {"GET", "/v2/trace/files/trace.json", 401},
	} {
		var body any
		if c.method == "POST" {
			body = io.Reader(strings.NewReader("{}"))
		}
		if a := f.call(t, c.method, c.path, body); a.status != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, a.status, c.status)
		}
	}
}
