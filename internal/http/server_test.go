package http

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log" //nolint:depguard // as server.go
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/telemetry"
	"github.com/fewbit/fewbit/internal/tensor"
)

// echoSpec has one input and output of each kind that a body can carry.
func echoSpec() engine.IOSpec {
	ios := func(suffix string) []engine.IO {
		return []engine.IO{
			{Name: "x" + suffix, Type: tensor.Float32, Dims: []int64{-1, 3}},
			{Name: "ids" + suffix, Type: tensor.Int64, Dims: []int64{-1}},
			{Name: "s" + suffix, Type: tensor.String, Dims: []int64{-1}},
		}
	}
	return engine.IOSpec{Inputs: ios(""), Outputs: ios("_out")}
}

func oneSpec(t tensor.DType, dims ...int64) engine.IOSpec {
	return engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: t, Dims: dims}}, Outputs: []engine.IO{{Name: "y", Type: t, Dims: dims}}}
}

// testModels serves fake sessions by name, each as version 1.
type testModels struct {
	mu       sync.Mutex
	sessions map[string]*batch.Queue
	prep     map[string]Preparer
	released int
	acquired int
}

func newTestModels(t testing.TB, models map[string]fake.Model) (*testModels, *fake.Engine) {
	t.Helper()
	e := &fake.Engine{}
	scheduler := batch.New(batch.Options{})
	m := &testModels{sessions: map[string]*batch.Queue{}, prep: map[string]Preparer{}}
	for name, model := range models {
		e.Add(name, model)
		s, err := e.OpenFile(context.Background(), name, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m.sessions[name] = scheduler.Queue(s, batch.QueueOptions{})
	}
	return m, e
}

func (m *testModels) List() []ModelInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	infos := []ModelInfo{{Name: "broken", Version: "1", State: StateUnavailable, Reason: "refused"}}
	for name := range m.sessions {
		_, texts := m.prep[name].(Texts)
		infos = append(infos, ModelInfo{Name: name, Version: "1", State: StateReady, Default: true, Texts: texts})
	}
	slices.SortFunc(infos, func(a, b ModelInfo) int { return cmp.Compare(a.Name, b.Name) })
	return infos
}

func (m *testModels) Acquire(_ context.Context, name, version string) (Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sessions[name]
	switch {
	case name == "broken":
		return nil, fmt.Errorf("%w: /srv/secret/models/broken/model.onnx was refused", registry.ErrNotReady)
	case !ok || version != "" && version != "1":
		return nil, fmt.Errorf("%w: model %q version %q", registry.ErrNotFound, name, version)
	}
	m.acquired++
	return &testLease{m, s, name}, nil
}

func (m *testModels) Load(_ context.Context, name string) error   { return m.known(name) }
func (m *testModels) Unload(_ context.Context, name string) error { return m.known(name) }

func (m *testModels) known(name string) error {
	if _, ok := m.sessions[name]; !ok {
		return fmt.Errorf("%w: model %q", registry.ErrNotFound, name)
	}
	return nil
}

// balanced fails the test when a lease stays out. A lease is given back after
// the answer's last byte, so a moment is allowed.
func (m *testModels) balanced(t *testing.T) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		m.mu.Lock()
		acquired, released := m.acquired, m.released
		m.mu.Unlock()
		if acquired == released {
			return
		}
		if time.Since(start) > 5*time.Second {
			t.Errorf("%d leases acquired, %d released", acquired, released)
			return
		}
	}
}

type testLease struct {
	m    *testModels
	q    *batch.Queue
	name string
}

func (l *testLease) Spec() engine.IOSpec { return l.q.Spec() }
func (l *testLease) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, batch.Timing, error) {
	return l.q.Run(ctx, in, outs)
}
func (l *testLease) Refuses(size float64, deadline time.Time) error {
	return l.q.Refuses(size, deadline)
}
func (l *testLease) Size(in engine.Feeds) float64        { return l.q.Size(in) }
func (l *testLease) Placement() (engine.Placement, bool) { return l.q.Placement() }
func (l *testLease) Name() string                        { return l.name }
func (l *testLease) Version() string                     { return "1" }
func (l *testLease) Target() time.Duration               { return 0 }
func (l *testLease) Preparer() Preparer                  { return l.m.prep[l.name] }
func (l *testLease) Release() {
	l.m.mu.Lock()
	l.m.released++
	l.m.mu.Unlock()
}

// testStore keeps uploads in memory.
type testStore struct {
	mu       sync.Mutex
	models   map[string][]string // bodies by name
	datasets map[string]string
	def      map[string]int
}

func newTestStore() *testStore {
	return &testStore{models: map[string][]string{}, datasets: map[string]string{}, def: map[string]int{}}
}

func (s *testStore) PutModel(_ context.Context, name string, body io.Reader, limit int64) (string, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return "", fmt.Errorf("write /srv/secret/tmp/upload: %w", err)
	}
	if bytes.HasPrefix(b, []byte("not onnx")) {
		return "", fmt.Errorf("%w: /srv/secret/tmp/model.onnx is no ONNX file", registry.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.models[name] = append(s.models[name], string(b))
	return fmt.Sprint(len(s.models[name])), nil
}

func (s *testStore) PutDataset(_ context.Context, name string, body io.Reader, contentType string, limit int64) (DatasetInfo, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return DatasetInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.datasets[name] = string(b)
	return DatasetInfo{Name: name, Kind: "jsonl", Bytes: int64(len(b))}, nil
}

func (s *testStore) Datasets() ([]DatasetInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ds []DatasetInfo
	for name, b := range s.datasets {
		ds = append(ds, DatasetInfo{Name: name, Bytes: int64(len(b))})
	}
	return ds, nil
}

func (s *testStore) DeleteDataset(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.datasets[name]; !ok {
		return registry.ErrNotFound
	}
	delete(s.datasets, name)
	return nil
}

func (s *testStore) Versions(_ context.Context, name string) ([]VersionInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.models[name]) == 0 {
		return nil, registry.ErrNotFound
	}
	var vs []VersionInfo
	for i, b := range s.models[name] {
		vs = append(vs, VersionInfo{Version: fmt.Sprint(i + 1), Bytes: int64(len(b))})
	}
	return vs, nil
}

func (s *testStore) Promote(_ context.Context, name, version string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != "1" {
		return registry.ErrNotFound
	}
	return nil
}
func (s *testStore) Rollback(context.Context, string) (string, error) { return "1", nil }
func (s *testStore) Delete(_ context.Context, name, version string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version == "2" {
		return registry.ErrInUse
	}
	delete(s.models, name)
	return nil
}

// testJobs holds jobs whose states the test sends.
type testJobs struct {
	mu     sync.Mutex
	jobs   map[string]jobs.Status
	order  []string
	events chan jobs.Status
}

func newTestJobs() *testJobs {
	return &testJobs{jobs: map[string]jobs.Status{}, events: make(chan jobs.Status, 8)}
}

func (q *testJobs) Submit(_ context.Context, s jobs.Spec) (string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := fmt.Sprintf("job%d", len(q.jobs)+1)
	q.jobs[id] = jobs.Status{ID: id, Status: jobs.Queued, Spec: s, Submitted: time.Unix(0, 0)}
	q.order = append(q.order, id)
	return id, nil
}
func (q *testJobs) Known(_ context.Context, s jobs.Spec) (string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, st := range q.jobs {
		if s.Key != "" && st.Spec.Key == s.Key {
			return st.ID, nil
		}
	}
	return "", nil
}
func (q *testJobs) Get(_ context.Context, id string) (jobs.Status, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	st, ok := q.jobs[id]
	if !ok {
		return st, jobs.ErrNotFound
	}
	return st, nil
}
func (q *testJobs) List(context.Context) ([]jobs.Status, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var l []jobs.Status
	for _, id := range q.order {
		l = append(l, q.jobs[id])
	}
	return l, nil
}
func (q *testJobs) Events(context.Context, string) (<-chan jobs.Status, error) { return q.events, nil }
func (q *testJobs) Cancel(_ context.Context, id string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := q.jobs[id]
	if st.Status.Final() {
		return jobs.ErrFinished
	}
	st.Status = jobs.Cancelled
	q.jobs[id] = st
	return nil
}
func (q *testJobs) Report(_ context.Context, id string) ([]byte, []byte, error) {
	return []byte(`{"report":1}`), []byte("<!doctype html><p>report"), nil
}

// fixture is a server over doubles, on a real loopback listener.
type fixture struct {
	*Server
	url    string
	admin  string // URL of the administrators' listener, "" for none
	models *testModels
	engine *fake.Engine
	store  *testStore
	jobs   *testJobs
	errs   chan error
	stop   func() error
}

// newFixture starts a server. change may alter its configuration.
func newFixture(t testing.TB, models map[string]fake.Model, change func(*Config)) *fixture {
	t.Helper()
	if models == nil {
		models = map[string]fake.Model{"echo": {Spec: echoSpec()}, "one": {Spec: oneSpec(tensor.Float32, -1, 3)}}
	}
	f := &fixture{store: newTestStore(), jobs: newTestJobs(), errs: make(chan error, 16)}
	f.models, f.engine = newTestModels(t, models)
	cfg := Config{ErrorLog: log.New(io.Discard, "", 0), Models: f.models, Store: f.store, Jobs: f.jobs, Version: "test",
		Telemetry: telemetry.New(telemetry.Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: noGPU{}}),
		OnError: func(_, _, _ string, err error) {
			select {
			case f.errs <- err:
			default:
			}
		}}
	if change != nil {
		change(&cfg)
	}
	var err error
	if f.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:0"
	if cfg.Listen != "" {
		address = cfg.Listen
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	scheme := "http://"
	if cfg.TLS != nil {
		scheme = "https://"
	}
	ls := Listeners{Public: l}
	if cfg.SplitAdmin {
		if ls.Admin, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		f.admin = scheme + ls.Admin.Addr().String()
	}
	go func() { done <- f.ServeOn(ctx, ls) }()
	f.url = scheme + l.Addr().String()
	var once sync.Once
	f.stop = func() (err error) {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return f
}

type noGPU struct{}

func (noGPU) Open() error                    { return fmt.Errorf("no driver here") }
func (noGPU) Read() ([]telemetry.GPU, error) { return nil, nil }
func (noGPU) Close() error                   { return nil }

// answer is a response with its body read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("answer %.200q is not a JSON object: %v", a.body, err)
	}
	return v
}

// call sends a request; headers are name, value, name, value...
func (f *fixture) call(t testing.TB, method, path string, body any, headers ...string) answer {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequest(method, f.url+path, r)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	// The transport would ask for gzip by itself.
	if req.Header.Get("Accept-Encoding") == "" {
		req.Header.Set("Accept-Encoding", "identity")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

// wantError checks an error's form: its status, {"error": text}, no path.
func wantError(t testing.TB, a answer, status int) string {
	t.Helper()
	if a.status != status {
		t.Errorf("status %d, want %d: %s", a.status, status, a.body)
	}
	v := a.json(t)
	text, _ := v["error"].(string)
	if text == "" || len(v) != 1 {
		t.Errorf("answer %s, want only {\"error\": text}", a.body)
	}
	for _, leak := range []string{"/srv", "secret", "goroutine", ".go:", "/root", "/tmp"} {
		if strings.Contains(text, leak) {
			t.Errorf("error tells of the server: %q", text)
		}
	}
	return text
}

const echoBody = `{"id":"r1","inputs":[
 {"name":"x","shape":[1,3],"datatype":"FP32","data":[[1,-2.5,3e-2]]},
 {"name":"ids","shape":[2],"datatype":"INT64","data":[7,-9223372036854775808]},
 {"name":"s","shape":[2],"datatype":"BYTES","data":["a\"\u00e9","\ud83d\ude00"]}]}`

func TestInferJSON(t *testing.T) {
	f := newFixture(t, nil, nil)
	defer f.models.balanced(t)
	a := f.call(t, "POST", "/v2/models/echo/infer", echoBody)
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	want := `{"model_name":"echo","model_version":"1","id":"r1","outputs":[` +
		`{"name":"x_out","datatype":"FP32","shape":[1,3],"data":[1,-2.5,0.03]},` +
		`{"name":"ids_out","datatype":"INT64","shape":[2],"data":[7,-9223372036854775808]},` +
		`{"name":"s_out","datatype":"BYTES","shape":[2],"data":["a\"é","😀"]}]}`
	if string(a.body) != want {
		t.Errorf("got  %s\nwant %s", a.body, want)
	}
	a = f.call(t, "POST", "/v2/models/echo/versions/1/infer", strings.Replace(echoBody, `"inputs"`, `"outputs":[{"name":"ids_out"}],"inputs"`, 1))
	if got := len(a.json(t)["outputs"].([]any)); got != 1 {
		t.Errorf("%d outputs, want the one asked for", got)
	}
}

func TestInProcessHandlerRefusesAdmin(t *testing.T) {
	f := newFixture(t, nil, nil)
	fresh, err := New(Config{Models: f.models, Telemetry: f.cfg.Telemetry})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	fresh.Handler().ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/quantize", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d without a listener, want 403", w.Code)
	}
}
