package http

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestInferBinary(t *testing.T) {
	f := newFixture(t, nil, nil)
	j := `{"id":"b","parameters":{"binary_data_output":true},"inputs":[{"name":"ids","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}},` +
		`{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}},{"name":"s","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}}],` +
		`"outputs":[{"name":"s_out"},{"name":"x_out","parameters":{"binary_data":false}},{"name":"ids_out"}]}`
	body := []byte(j)
	body = binary.LittleEndian.AppendUint64(body, 5)
	body = binary.LittleEndian.AppendUint64(body, math.MaxUint64)
	for _, v := range []float32{1, 2, 0.5} {
		body = binary.LittleEndian.AppendUint32(body, math.Float32bits(v))
	}
	body = append(body, "\x02\x00\x00\x00hi\x01\x00\x00\x00\xff"...)
	for _, coding := range []string{"", "gzip", "deflate"} {
		send, headers := body, []string{headerLength, fmt.Sprint(len(j))}
		switch coding {
		case "gzip":
			send, headers = gz(string(body)), append(headers, "Content-Encoding", coding)
		case "deflate":
			send, headers = zl(string(body)), append(headers, "Content-Encoding", coding)
		}
		a := f.call(t, "POST", "/v2/models/echo/infer", send, headers...)
		if a.status != 200 || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Fatalf("%s: %d %s", coding, a.status, a.body)
		}
		var n int
		if _, err := fmt.Sscan(a.header.Get(headerLength), &n); err != nil {
			t.Fatal(err)
		}
		want := `{"model_name":"echo","model_version":"1","id":"b","outputs":[{"name":"s_out","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}},` +
			`{"name":"x_out","datatype":"FP32","shape":[1,3],"data":[1,2,0.5]},{"name":"ids_out","datatype":"INT64","shape":[2],"parameters":{"binary_data_size":16}}]}`
		if got := string(a.body[:n]); got != want {
			t.Errorf("%s: got  %s\nwant %s", coding, got, want)
		}
		if got, want := a.body[n:], append([]byte("\x02\x00\x00\x00hi\x01\x00\x00\x00\xff"), body[len(j):len(j)+16]...); !bytes.Equal(got, want) {
			t.Errorf("%s: tensors %x, want %x", coding, got, want)
		}
	}
}

// Large binary outputs are written from where they lie; they must come whole.
func TestInferBinaryLarge(t *testing.T) {
	f := newFixture(t, nil, nil)
	const rows = 100_000
	j := fmt.Sprintf(`{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[%d,3],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, rows, rows*12)
	data := make([]byte, rows*12)
	for i := range rows * 3 {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(float32(i)))
	}
	for _, accept := range []string{"identity", "gzip"} {
		a := f.call(t, "POST", "/v2/models/one/infer", append([]byte(j), data...), headerLength, fmt.Sprint(len(j)), "Accept-Encoding", accept)
		body := unpack(t, a)
		if n := len(body) - len(data); a.status != 200 || fmt.Sprint(n) != a.header.Get(headerLength) || !bytes.Equal(body[n:], data) {
			t.Fatalf("%s: status %d, %d bytes", accept, a.status, len(body))
		}
	}
}

func TestInferRaw(t *testing.T) {
	f := newFixture(t, map[string]fake.Model{
		"vec": {Spec: oneSpec(tensor.Float32, -1, 3)}, "two": {Spec: oneSpec(tensor.Float32, -1, -1)},
		"half": {Spec: oneSpec(tensor.Float16, 2)}, "text": {Spec: oneSpec(tensor.String, -1)}}, nil)
	a := f.call(t, "POST", "/v2/models/vec/infer", make([]byte, 24), headerLength, "0")
	if a.status != 200 || !strings.Contains(string(a.body), `"shape":[2,3]`) || !bytes.HasSuffix(a.body, make([]byte, 24)) {
		t.Errorf("%d %q", a.status, a.body)
	}
	if a := f.call(t, "POST", "/v2/models/half/infer", "\x00\x3c\x00\xbc", headerLength, "0"); a.status != 200 || !bytes.HasSuffix(a.body, []byte("\x00\x3c\x00\xbc")) {
		t.Errorf("FP16: %d %q", a.status, a.body)
	}
	if a := f.call(t, "POST", "/v2/models/text/infer", "words", headerLength, "0"); a.status != 200 || !strings.Contains(string(a.body), `"words"`) {
		t.Errorf("BYTES: %d %q", a.status, a.body)
	}
	wantError(t, f.call(t, "POST", "/v2/models/vec/infer", make([]byte, 23), headerLength, "0"), 400)
	wantError(t, f.call(t, "POST", "/v2/models/two/infer", make([]byte, 24), headerLength, "0"), 400)
	// FP16 has no JSON form on the way out either.
	wantError(t, f.call(t, "POST", "/v2/models/half/infer", `{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}}]}`+"\x00\x3c\x00\xbc", headerLength, "87"), 400)
}

func TestNonFiniteOutputs(t *testing.T) {
	f := newFixture(t, map[string]fake.Model{"nan": {Spec: oneSpec(tensor.Float32, -1), Run: func(engine.Feeds) (engine.Feeds, error) {
		return engine.Feeds{"y": tensor.From([]float32{float32(math.NaN()), 1, float32(math.Inf(-1))}, 3)}, nil
	}}}, nil)
	a := f.call(t, "POST", "/v2/models/nan/infer", one("[1]", "FP32", "[1]"))
	if !strings.Contains(string(a.body), `"data":[null,1,null]`) {
		t.Errorf("%s", a.body)
	}
}

func unpack(t *testing.T, a answer) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(a.body)
	var err error
	switch a.header.Get("Content-Encoding") {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "deflate":
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswerCoding(t *testing.T) {
	f := newFixture(t, nil, nil)
	for accept, want := range map[string]string{"gzip": "gzip", "deflate": "deflate", "br": "", "gzip;q=0": "", "gzip;q=0, deflate": "deflate", "deflate, gzip;q=0.5": "gzip", "GZIP": "gzip", "*": ""} {
		a := f.call(t, "POST", "/v2/models/echo/infer", echoBody, "Accept-Encoding", accept)
		if got := a.header.Get("Content-Encoding"); got != want {
			t.Errorf("Accept-Encoding %q: %q, want %q", accept, got, want)
		}
		if !strings.HasPrefix(string(unpack(t, a)), `{"model_name":"echo"`) {
			t.Errorf("Accept-Encoding %q: %q", accept, unpack(t, a))
		}
	}
}

func TestProtocolRoutes(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.fine(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v2", "", 200, `"name":"fewbit"`},
		{"GET", "/v2/health/live", "", 200, `{"live":true,"ready":true}`},
		{"GET", "/v2/health/ready", "", 200, `{"live":true,"ready":true}`},
		{"GET", "/v2/models", "", 200, `{"models":["broken","echo","one"]}`},
		{"GET", "/v2/models/echo", "", 200, `"versions":["1"],"platform":"onnxruntime_onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}`},
		{"GET", "/v2/models/echo/versions/1", "", 200, `"name":"echo"`},
		{"GET", "/v2/models/echo/ready", "", 200, `"ready":true`},
		{"GET", "/v2/models/echo/versions/1/ready", "", 200, `"ready":true`},
		{"GET", "/v2/models/broken/ready", "", 503, `"ready":false`},
		{"GET", "/v2/models/none/ready", "", 404, `"error"`},
		{"GET", "/v2/models/echo/config", "", 200, `{"name":"s","data_type":"TYPE_STRING","dims":[-1]}`},
		{"GET", "/v2/models/stats", "", 200, `{"model_stats":[{"name":"broken"`},
		{"GET", "/v2/models/echo/stats", "", 200, `"inference_count":1,"execution_count":1,"inference_stats":{"success":{"count":1,"ns":`},
		{"GET", "/v2/models/echo/versions/9/stats", "", 404, `"error"`},
		{"POST", "/v2/repository/index", "", 200, `{"name":"broken","version":"1","state":"UNAVAILABLE","reason":"refused"}`},
		{"POST", "/v2/repository/index", `{"ready":true}`, 200, `[{"name":"echo"`},
		{"POST", "/v2/repository/index", `{"redy":true}`, 400, `unknown field`},
		{"POST", "/v2/repository/models/echo/load", "", 200, `{"name":"echo","version":"1"}`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"config":"{\"name\":\"echo\",\"backend\":\"onnxruntime\",\"max_batch_size\":8}"}}`, 200, `"version":"1"`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"config":"{\"name\":\"other\"}"}}`, 400, `is for model`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"config":"{\"backend\":\"python\"}"}}`, 400, `backend`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"config":"[]"}}`, 400, `JSON object`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"config":{}}}`, 400, `expected a string`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"colour":"red"}}`, 400, `unknown parameter`},
		{"POST", "/v2/repository/models/echo/load", `{"parameters":{"file:1/model.onnx":"aGk="}}`, 501, `PUT /models`},
		{"POST", "/v2/repository/models/echo/unload", `{"parameters":{"file:1/model.onnx":"aGk="}}`, 400, `load's`},
		{"POST", "/v2/repository/models/echo/unload", `{"parameters":{"unload_dependents":false}}`, 200, `{}`},
		{"POST", "/v2/repository/models/none/load", "", 404, `"error"`},
		{"GET", "/v2/logging", "", 501, `no settings`},
		{"POST", "/v2/models/echo/trace/setting", "{}", 501, `no traces`},
		{"GET", "/telemetry", "", 200, `"reasons":{"gpu":"no driver here"}`},
		{"GET", "/", "", 200, "<!doctype html>"},
		{"GET", "/console/console.js", "", 200, "use strict"},
		{"GET", "/console/other.js", "", 404, `"error"`},
	} {
		var body any
		if c.body != "" {
			body = c.body
		}
		a := f.call(t, c.method, c.path, body)
		if a.status != c.status || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s %s: %d %.400s, want %d %s", c.method, c.path, a.status, a.body, c.status, c.want)
		}
	}
}

func TestTelemetryOfRequests(t *testing.T) {
	f := newFixture(t, map[string]fake.Model{"slow": {Spec: oneSpec(tensor.Float32, -1), Delay: 60 * time.Millisecond}}, nil)
	f.call(t, "POST", "/v2/models/slow/infer", one("[1]", "FP32", "[1]"))
	m := f.call(t, "GET", "/telemetry", nil).json(t)["models"].([]any)[0].(map[string]any)
	w := m["windows"].(map[string]any)["1m"].(map[string]any)
	if m["target_ms"] != 50.0 || w["count"] != 1.0 || w["over_target_share"] != 1.0 {
		t.Errorf("%v", m)
	}
	phases := w["phases"].(map[string]any)
	ms := func(p string) float64 { return phases[p].(map[string]any)["p50_ms"].(float64) }
	if infer := ms("infer"); infer < 59 {
		t.Errorf("infer took %v ms, the model sleeps 60", infer)
	}
	if sum := ms("queue") + ms("prepare") + ms("infer") + ms("finish"); ms("total") < sum*.98 {
		t.Errorf("total %v ms, its phases %v", ms("total"), sum)
	}
	metrics := string(f.call(t, "GET", "/metrics", nil).body)
	for _, want := range []string{`nv_inference_request_success{model="slow",version="1"} 1`, `nv_inference_count{model="slow",version="1"} 1`, `fewbit_inference_phase_duration_seconds_count{model="slow",phase="total",version="1"} 1`, `fewbit_http_requests_total{code="200",method="POST",route="/v2/models/:model/infer"} 1`, `nv_inference_pending_request_count{model="slow",version="1"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// TestJobAgain: a key answers with its job, though what the request names is gone.
func TestJobAgain(t *testing.T) {
	f := newFixture(t, nil, nil)
	if a := f.call(t, "PUT", "/datasets/news", `{"text":"a"}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	first := f.call(t, "POST", "/quantize", jobBody, "Idempotency-Key", "k")
	if a := f.call(t, "DELETE", "/datasets/news", nil); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	again := f.call(t, "POST", "/quantize", jobBody, "Idempotency-Key", "k")
	if again.status != 202 || string(again.body) != string(first.body) || again.header.Get("Location") != first.header.Get("Location") {
		t.Errorf("%d %s, at first %s", again.status, again.body, first.body)
	}
	wantError(t, f.call(t, "POST", "/quantize", jobBody, "Idempotency-Key", "other"), 404)
	wantError(t, f.call(t, "POST", "/quantize", jobBody, "Idempotency-Key", strings.Repeat("k", 257)), 400)
}

const jobBody = `{"model":"echo","scheme":"int8","calibration":{"dataset":"news"},"evaluation":{"dataset":"news"},"max_loss":0.01,"promote":true}`

func TestJobs(t *testing.T) {
	f := newFixture(t, nil, nil)
	wantError(t, f.call(t, "POST", "/quantize", jobBody), 404) // no dataset yet
	if a := f.call(t, "PUT", "/datasets/news", `{"text":"a"}`); a.status != 201 || a.header.Get("Location") != "/datasets/news" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := f.call(t, "POST", "/quantize", jobBody)
	if a.status != 202 || a.header.Get("Location") != "/quantize/job1" || string(a.body) != `{"id":"job1","status":"queued"}`+"\n" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	if a := f.call(t, "GET", "/quantize/job1", nil); a.status != 200 || a.json(t)["status"] != "queued" {
		t.Errorf("%s", a.body)
	}
	if a := f.call(t, "GET", "/quantize", nil); len(a.json(t)["jobs"].([]any)) != 1 {
		t.Errorf("%s", a.body)
	}
	wantError(t, f.call(t, "GET", "/quantize/none", nil), 404)
	wantError(t, f.call(t, "GET", "/quantize/job1/report", nil), 409)
	if a := f.call(t, "DELETE", "/quantize/job1", nil); a.status != 202 || a.json(t)["status"] != "cancelled" {
		t.Errorf("%d %s", a.status, a.body)
	}
	wantError(t, f.call(t, "DELETE", "/quantize/job1", nil), 409)
	if a := f.call(t, "GET", "/quantize/job1/report", nil, "Accept", "text/html,*/*"); a.status != 200 || !strings.Contains(a.header.Get("Content-Security-Policy"), "sandbox") || !strings.Contains(string(a.body), "<p>report") {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if a := f.call(t, "GET", "/quantize/job1/report", nil); string(a.body) != `{"report":1}` {
		t.Errorf("%s", a.body)
	}
	for body, want := range map[string]string{
		``:                                 "empty",
		`[]`:                               "expected an object",
		`{}`:                               `"model" is missing`,
		`{"model":"echo"}`:                 `"scheme" is missing`,
		`{"model":"echo","scheme":"int7"}`: "expected one of int8",
		`{"model":"echo","scheme":"int8"}`: `needs field "calibration"`,
		`{"model":"../x","scheme":"fp16"}`: "bad model name",
		`{"model":"echo","shceme":"int8"}`: `unknown field "shceme"`,
		`{"model":"echo","scheme":"fp16","calibration":{"datset":"a"}}`: `unknown field "calibration.datset"`,
		`{"model":"echo","scheme":"fp16","max_loss":2}`:                 "max_loss",
		`{"model":"echo","scheme":"fp16","samples":-1}`:                 "samples",
		`{"model":"echo","scheme":"fp16","slo_ms":"fast"}`:              "expected a number",
		`{"model":"echo","scheme":"fp16","exclude":[""]}`:               "exclude",
		`{"model":"echo","scheme":"fp16","operators":[""]}`:             "operators",
		`{"model":"echo","scheme":"fp16"}{}`:                            "expected the end",
	} {
		if text := wantError(t, f.call(t, "POST", "/quantize", body), 400); !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", body, text, want)
		}
	}
	wantError(t, f.call(t, "POST", "/quantize", `{"model":"none","scheme":"fp16"}`), 404)
	wantError(t, f.call(t, "POST", "/quantize", `{"model":"echo","version":"7","scheme":"fp16"}`), 404)
}

func TestEvents(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.Heartbeat = 20 * time.Millisecond })
	f.jobs.jobs["job1"] = jobs.Status{ID: "job1", Status: jobs.Running}
	res, err := http.Get(f.url + "/quantize/job1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %q", ct)
	}
	go func() {
		f.jobs.events <- jobs.Status{ID: "job1", Status: jobs.Running, Progress: .5}
		time.Sleep(100 * time.Millisecond)
		f.jobs.events <- jobs.Status{ID: "job1", Status: jobs.Failed, Error: "open /srv/secret/m.onnx: gone"}
	}()
	b, err := io.ReadAll(res.Body) // the stream ends with the job
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if strings.Count(got, "event: status\n") != 2 || !strings.Contains(got, `"progress":0.5`) || !strings.Contains(got, ": still here") || strings.Contains(got, "/srv") {
		t.Errorf("%s", got)
	}
}

// A shutdown ends event streams and lets requests finish.
func TestDrain(t *testing.T) {
	gate := make(chan struct{})
	f := newFixture(t, map[string]fake.Model{"held": {Spec: oneSpec(tensor.Float32, -1), Gate: gate}}, nil)
	f.jobs.jobs["job1"] = jobs.Status{ID: "job1", Status: jobs.Running}
	res, err := http.Get(f.url + "/quantize/job1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answered := make(chan int, 1)
	go func() { answered <- f.call(t, "POST", "/v2/models/held/infer", one("[1]", "FP32", "[1]")).status }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f.engine.WaitRunning(ctx, 1); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- f.stop() }()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "shutting down") {
		t.Errorf("event stream: %q %v", b, err)
	}
	if f.isReady() {
		t.Error("ready while draining")
	}
	close(gate)
	if s := <-answered; s != 200 {
		t.Errorf("the request in flight was answered %d", s)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestUploads(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.MaxUpload = 1 << 20 })
	for version := 1; version <= 2; version++ {
		a := f.call(t, "PUT", "/models/new", "onnx bytes")
		if want := fmt.Sprintf(`{"name":"new","version":"%d"}`+"\n", version); a.status != 201 || string(a.body) != want || a.header.Get("Location") != fmt.Sprintf("/v2/models/new/versions/%d", version) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := f.call(t, "PUT", "/models/packed", gz("onnx bytes"), "Content-Encoding", "gzip"); a.status != 201 || f.store.models["packed"][0] != "onnx bytes" {
		t.Errorf("%d %s %q", a.status, a.body, f.store.models["packed"])
	}
	wantError(t, f.call(t, "PUT", "/models/x", strings.Repeat("x", 2<<20)), 413)
	wantError(t, f.call(t, "PUT", "/models/x", struct{ io.Reader }{io.LimitReader(spaces{}, 2<<20)}), 413)
	wantError(t, f.call(t, "PUT", "/models/x", gz(strings.Repeat("x", 2<<20)), "Content-Encoding", "gzip"), 413)
	wantError(t, f.call(t, "PUT", "/models/x", gz("onnx bytes")[:20], "Content-Encoding", "gzip"), 400)
	wantError(t, f.call(t, "PUT", "/models/x", "not gzip", "Content-Encoding", "gzip"), 400)
	wantError(t, f.call(t, "PUT", "/models/x", "not onnx"), 400)
	wantError(t, f.call(t, "PUT", "/models/x", nil), 400)
	if len(f.store.models["x"]) != 0 {
		t.Errorf("a refused upload was stored")
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/models", "", 200, `"models":[{"name":"broken"`},
		{"GET", "/models/new", "", 200, `{"name":"new","versions":[{"version":"1"`},
		{"GET", "/models/none", "", 404, "error"},
		{"POST", "/models/new/promote", `{"version":"1"}`, 200, `{"name":"new","version":"1"}`},
		{"POST", "/models/new/promote", `{"version":"3"}`, 404, "error"},
		{"POST", "/models/new/promote", `{}`, 400, "bad version name"},
		{"POST", "/models/new/promote", ``, 400, "empty"},
		{"POST", "/models/new/rollback", "", 200, `{"name":"new","version":"1"}`},
		{"POST", "/models/new/rollback", `{"to":1}`, 400, "unknown field"},
		{"DELETE", "/models/new/versions/2", "", 409, "error"},
		{"DELETE", "/models/new", "", 204, ""},
		{"GET", "/models/new", "", 404, "error"},
		{"PUT", "/datasets/d", "x", 201, `"name":"d"`},
		{"GET", "/datasets", "", 200, `{"datasets":[{"name":"d"`},
		{"GET", "/datasets/d", "", 200, `"name":"d"`},
		{"DELETE", "/datasets/d", "", 204, ""},
		{"GET", "/datasets/d", "", 404, "error"},
		{"DELETE", "/datasets/d", "", 404, "error"},
	} {
		var body any
		if c.body != "" {
			body = c.body
		}
		if a := f.call(t, c.method, c.path, body); a.status != c.status || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, a.status, a.body, c.status, c.want)
		}
	}
}

// wordPreparer counts words: one feature per text.
type wordPreparer struct{ labels []string }

func (w wordPreparer) Labels() []string { return w.labels }
func (w wordPreparer) Text(texts []string) (engine.Feeds, error) {
	v := make([]float32, len(texts))
	for i, s := range texts {
		v[i] = float32(len(strings.Fields(s)))
	}
	return engine.Feeds{"x": tensor.From(v, int64(len(v)))}, nil
}

func TestClassify(t *testing.T) {
	spec := engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1}}}, Outputs: []engine.IO{{Name: "logits", Type: tensor.Float32, Dims: []int64{-1, 3}}}}
	run := func(in engine.Feeds) (engine.Feeds, error) {
		var out []float32
		for _, words := range tensor.View[float32](in["x"]) {
			out = append(out, 0, words, -1)
		}
		return engine.Feeds{"logits": tensor.From(out, int64(len(out)/3), 3)}, nil
	}
	f := newFixture(t, map[string]fake.Model{"news": {Spec: spec, Run: run}, "plain": {Spec: oneSpec(tensor.Float32, -1)}}, nil)
	f.models.prep["news"] = wordPreparer{[]string{"business", "sport", "tech"}}
	var got classifyAnswer
	a := f.call(t, "POST", "/v1/classify", `{"model":"news","texts":["one two three","x"]}`)
	if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || len(got.Results) != 2 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	z := 1 + math.Exp(3) + math.Exp(-1)
	r := got.Results[0]
	if r.Label != "sport" || math.Abs(r.Score-math.Exp(3)/z) > 1e-6 || len(r.Scores) != 3 || r.Scores[2].Label != "tech" {
		t.Errorf("%+v", r)
	}
	if a := f.call(t, "POST", "/v1/classify", `{"model":"news","text":"hello world"}`); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for body, status := range map[string]int{
		`{"model":"news"}`: 400, `{"model":"news","text":""}`: 400, `{"model":"news","text":"a","texts":["b"]}`: 400, `{"model":"news","texts":[]}`: 400,
		`{"model":"news","texts":[""]}`: 400, `{"model":"none","text":"a"}`: 404, `{"model":"plain","text":"a"}`: 400, `{"model":"news","txt":"a"}`: 400,
		`{"model":"../x","text":"a"}`: 400, `{"model":"news","texts":[` + strings.Repeat(`"a",`, 256) + `"a"]}`: 400,
	} {
		wantError(t, f.call(t, "POST", "/v1/classify", body), status)
	}
	// A row that is a distribution already is not softmaxed again.
	c, err := classificationOf([]float32{.2, .7, .1}, []string{"a", "b", "c"})
	if err != nil || math.Abs(c.Score-.7) > 1e-6 {
		t.Errorf("%+v %v", c, err)
	}
}

// Every route of the router stands in openapi.json, and nothing else does.
func TestOpenAPI(t *testing.T) {
	f := newFixture(t, nil, nil)
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID string }
		Components struct{ Schemas map[string]any }
	}
	a := f.call(t, "GET", "/openapi.json", nil)
	if err := json.Unmarshal(a.body, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	documented, ids := 0, map[string]bool{}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			documented++
			if ids[op.OperationID] {
				t.Errorf("operationId %s stands twice (%s %s)", op.OperationID, method, path)
			}
			ids[op.OperationID] = true
		}
	}
	routes := slices.DeleteFunc(f.Server.engine.Routes(), func(r gin.RouteInfo) bool { return r.Method == "HEAD" }) // of what can be got
	for _, r := range routes {
		if _, ok := doc.Paths[openAPIPath(r.Path)][strings.ToLower(r.Method)]; !ok {
			t.Errorf("%s %s is not documented", r.Method, r.Path)
		}
	}
	if documented != len(routes) {
		t.Errorf("%d operations are documented, %d routes exist", documented, len(routes))
	}
	// Every reference leads somewhere.
	for rest := string(a.body); ; {
		_, after, ok := strings.Cut(rest, `"$ref": "#/components/schemas/`)
		if !ok {
			break
		}
		name, tail, _ := strings.Cut(after, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is missing", name)
		}
		rest = tail
	}
}

// Errors stand in openapi.json in the form that they have.
func TestOpenAPIFailures(t *testing.T) {
	f := newFixture(t, nil, nil)
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Content map[string]struct{ Schema map[string]any }
			}
		}
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any
			}
		}
	}
	if err := json.Unmarshal(f.call(t, "GET", "/openapi.json", nil).body, &doc); err != nil {
		t.Fatal(err)
	}
	for path, status := range map[string]int{"/v1/embeddings": 400, "/embed": 422, "/v1/classify": 400} {
		a := f.call(t, "POST", path, "{")
		var got map[string]any
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != status {
			t.Fatalf("%s: %d %s, %v", path, a.status, a.body, err)
		}
		ref, _ := doc.Paths[path]["post"].Responses[strconv.Itoa(status)].Content["application/json"].Schema["$ref"].(string)
		want := doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")].Properties
		for name := range got {
			if want[name] == nil {
				t.Errorf("%s: %s is not in %s", path, name, ref)
			}
		}
		field, _ := want["error"].(map[string]any)
		if _, text := got["error"].(string); text != (field["type"] == "string") {
			t.Errorf("%s: error is %v, documented as %v", path, got["error"], field)
		}
	}
}

// The console loads nothing from elsewhere and has no inline script.
func TestConsoleIsSelfContained(t *testing.T) {
	f := newFixture(t, nil, nil)
	for _, file := range []string{"/", "/console/console.js", "/console/console.css"} {
		a := f.call(t, "GET", file, nil)
		for _, bad := range []string{"http://", "https://", "//cdn", "innerHTML", "eval(", " onclick=", "<style", "document.write"} {
			if strings.Contains(string(a.body), bad) {
				t.Errorf("%s holds %s", file, bad)
			}
		}
		if csp := a.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("%s: policy %q", file, csp)
		}
	}
}
