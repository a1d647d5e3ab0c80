package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// event is one of a trace file.
type event struct {
	Ph, Name string
	Pid, Tid int
	Ts, Dur  float64
	Args     map[string]any
}

func read(t *testing.T, path string) []event {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var events []event
	if err := json.Unmarshal(b, &events); err != nil {
		t.Fatalf("%s is no JSON: %v\n%s", filepath.Base(path), err, b)
	}
	checkEvents(t, b)
	return events
}

// checkEvents holds a file against the Trace Event Format, which ui.perfetto.dev
// reads: an array of objects with a phase; complete events (X) with a name, times
// in microseconds and ids that are whole numbers; metadata (M) with a known name
// and its argument.
func checkEvents(t *testing.T, b []byte) {
	t.Helper()
	var events []map[string]any
	if err := json.Unmarshal(b, &events); err != nil {
		t.Fatal(err)
	}
	whole := func(v any) bool { f, ok := v.(float64); return ok && f == math.Trunc(f) && f >= 0 }
	for i, e := range events {
		name, _ := e["name"].(string)
		good := name != "" && whole(e["pid"])
		switch e["ph"] {
		case "X":
			ts, isTime := e["ts"].(float64)
			dur, isSpan := e["dur"].(float64)
			good = good && whole(e["tid"]) && isTime && isSpan && ts >= 0 && dur >= 0
		case "M":
			args, _ := e["args"].(map[string]any)
			_, isText := args[map[string]string{"process_name": "name", "thread_name": "name", "process_labels": "labels"}[name]].(string)
			good = good && isText
		default:
			good = false
		}
		if !good {
			t.Errorf("event %d is none of the format: %v", i, e)
		}
	}
}

func requests(events []event) (rs []event) {
	for _, e := range events {
		if strings.HasPrefix(e.Name, "request ") {
			rs = append(rs, e)
		}
	}
	return rs
}

// one follows a whole request.
func one(tr *Tracer, model, id string) {
	r := tr.Start(Origin{Arrival: time.Now(), ID: id}, model, "1")
	r.Begin(telemetry.Queue)
	r.Begin(telemetry.Infer)
	r.Begin(telemetry.Finish)
	r.End(Outcome{Rows: 2, Batch: 4})
}

func header(parent string) map[string][]string {
	h := http.Header{}
	if parent != "" {
		h.Set("Traceparent", parent)
	}
	return h
}

func set(t *testing.T, tr *Tracer, model string, pairs ...string) {
	t.Helper()
	if err := tr.Set(model, change(pairs...)); err != nil {
		t.Fatal(err)
	}
}

func change(pairs ...string) map[string][]string {
	c := map[string][]string{}
	for i := 0; i < len(pairs); i += 2 {
		c[pairs[i]] = []string{pairs[i+1]}
		if pairs[i+1] == "null" {
			c[pairs[i]] = nil
		}
	}
	return c
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir, Process: "test \"1\""})
	if tr.On() || tr.Start(Origin{}, "m", "1") != nil {
		t.Fatal("it follows requests that nobody asked for")
	}
	set(t, tr, "", "trace_level", "TIMESTAMPS", "trace_rate", "1")
	a := tr.Start(Origin{Arrival: time.Now(), ID: "a\n\"", Header: header("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}, "m", "1")
	b := tr.Start(Origin{Arrival: time.Now(), ID: "b"}, "m", "1")
	for _, p := range []telemetry.Phase{telemetry.Queue, telemetry.Infer, telemetry.Finish} {
		a.Begin(p)
		b.Begin(p)
	}
	b.End(Outcome{Failure: "REJECTED"})
	a.End(Outcome{Rows: 2, Batch: 4})
	one(tr, "m", "c")
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	events := read(t, filepath.Join(dir, DefaultFile))
	rs := requests(events)
	if len(rs) != 3 {
		t.Fatalf("%d requests in the file, want 3: %v", len(rs), events)
	}
	if rs[0].Tid == rs[1].Tid {
		t.Error("two requests at a time share a lane")
	}
	if rs[0].Args["failure"] != "REJECTED" || rs[1].Args["trace_id"] != "0af7651916cd43dd8448eb211c80319c" || rs[1].Args["request_id"] != "a\n\"" || rs[1].Args["batch"] != 4.0 {
		t.Errorf("arguments: %v, %v", rs[0].Args, rs[1].Args)
	}
	// Phases lie one behind the other inside their request.
	for _, r := range rs {
		at, names := r.Ts, ""
		for _, e := range events {
			if e.Ph == "X" && e.Tid == r.Tid && e.Ts >= r.Ts && e.Ts+e.Dur <= r.Ts+r.Dur+.001 && e.Name != r.Name {
				if e.Ts < at-.001 {
					t.Errorf("phase %s begins before the one before has ended", e.Name)
				}
				at, names = e.Ts+e.Dur, names+e.Name+" "
			}
		}
		if names != "prepare queue infer finish " {
			t.Errorf("request %v has phases %q", r.Args["request_id"], names)
		}
	}
}

// TestFileWhole: the file is JSON after every write, as a killed process leaves it.
func TestFileWhole(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	defer tr.Close()
	set(t, tr, "", "trace_level", "TIMESTAMPS", "trace_rate", "1", "trace_file", "t.json")
	path := filepath.Join(dir, "t.json")
	if n := len(requests(read(t, path))); n != 0 {
		t.Errorf("%d requests in a new file", n)
	}
	for n := range 2000 {
		one(tr, "m", fmt.Sprint(n))
		if n%100 == 0 {
			read(t, path)
		}
	}
	for start := time.Now(); len(requests(read(t, path))) != 2000; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 20*flushAfter {
			t.Fatalf("%d of 2000 requests in the file after %v", len(requests(read(t, path))), time.Since(start))
		}
	}
}

func TestRateCountFiles(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	set(t, tr, "", "trace_level", "TIMESTAMPS", "trace_rate", "10", "trace_count", "3")
	set(t, tr, "own", "trace_rate", "1", "trace_count", "-1", "trace_file", "own.json", "log_frequency", "4")
	set(t, tr, "quiet", "trace_level", "OFF")
	for i := range 100 {
		one(tr, "a", fmt.Sprint(i))
		one(tr, "quiet", "q")
		if i < 10 {
			one(tr, "own", fmt.Sprint(i))
		}
	}
	if s := tr.Settings(""); s.Count != 0 || s.Rate != 10 {
		t.Errorf("settings %+v, want no more to trace", s)
	}
	if s := tr.Settings("own"); s.Count != -1 || s.File != "own.json" || !s.On {
		t.Errorf("the model's settings: %+v", s)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range requests(read(t, filepath.Join(dir, DefaultFile))) {
		ids = append(ids, r.Args["model"].(string)+r.Args["request_id"].(string))
	}
	if fmt.Sprint(ids) != "[a0 a10 a20]" {
		t.Errorf("traced %v, want one in ten, three in all", ids)
	}
	for n, want := range []int{4, 4, 2} {
		if got := len(requests(read(t, filepath.Join(dir, fmt.Sprintf("own.json.%d", n))))); got != want {
			t.Errorf("own.json.%d has %d requests, want %d", n, got, want)
		}
	}
}

// TestKept: of numbered files the newest stay.
func TestKept(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	set(t, tr, "", "trace_level", "TIMESTAMPS", "trace_rate", "1", "log_frequency", "1")
	for i := range MaxFiles + 5 {
		one(tr, "m", fmt.Sprint(i))
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != MaxFiles {
		t.Fatalf("%d files are kept, want %d (%v)", len(files), MaxFiles, err)
	}
	if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("%s.%d", DefaultFile, MaxFiles+4))); err != nil {
		t.Error(err)
	}
}

// TestClear: null goes back to the settings above, and switching off closes the
// file; the next switch on begins it anew.
func TestClear(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	defer tr.Close()
	set(t, tr, "m", "trace_level", "TIMESTAMPS", "trace_rate", "1")
	one(tr, "m", "1")
	one(tr, "other", "1")
	set(t, tr, "m", "trace_level", "null", "trace_rate", "null")
	if s := tr.Settings("m"); s.On || s.Rate != 1000 || tr.On() {
		t.Errorf("cleared settings: %+v, on %v", s, tr.On())
	}
	path := filepath.Join(dir, DefaultFile)
	if n := len(requests(read(t, path))); n != 1 {
		t.Errorf("%d requests, want the model's one", n)
	}
	set(t, tr, "", "trace_level", "TIMESTAMPS")
	if n := len(requests(read(t, path))); n != 0 {
		t.Errorf("%d requests in the new file", n)
	}
	set(t, tr, "m", "trace_rate", "1")
	tr.Forget("m")
	if s := tr.Settings("m"); s.Rate != 1000 {
		t.Errorf("a forgotten model's settings: %+v", s)
	}
}

func TestSettingsRefused(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	defer tr.Close()
	before := tr.Settings("")
	for _, c := range []map[string][]string{
		change("trace_level", "TENSORS"), change("trace_level", ""), change("trace_rate", "0"), change("trace_rate", "x"), change("trace_rate", "1e3"),
		change("trace_rate", "99999999999999999999"), change("trace_count", "-2"), change("log_frequency", "-1"), change("trace_file", "../x"), change("trace_file", "a/b"),
		change("trace_file", ""), change("trace_file", "/etc/passwd"), change("trace_file", "a..b"), change("trace_mode", "opentelemetry"), change("nonsense", "1"),
		change("nonsense", "null"), {"trace_level": {"TIMESTAMPS", "TENSORS"}}, {"trace_rate": {}},
		change("trace_level", "TIMESTAMPS", "trace_rate", "0"),
	} {
		if err := tr.Set("", c); !errors.Is(err, ErrSetting) {
			t.Errorf("%v: %v, want ErrSetting", c, err)
		}
	}
	if tr.Settings("") != before || tr.On() {
		t.Error("a refused change changed something")
	}
	if err := New(Options{}).Set("", change("trace_level", "TIMESTAMPS")); !errors.Is(err, ErrSetting) {
		t.Errorf("without a folder: %v", err)
	}
	// A link in the folder must not lead out of it.
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := tr.Set("", change("trace_level", "TIMESTAMPS", "trace_file", "link.json")); err == nil {
		t.Error("a link out of the folder was followed")
	}
	if b, _ := os.ReadFile(outside); string(b) != "keep" {
		t.Error("a file outside the folder was written")
	}
}

// TestConcurrent is for the race detector: requests while settings change.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	tr := New(Options{Dir: dir})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 300 {
				one(tr, fmt.Sprintf("m%d", i%2), fmt.Sprint(n))
			}
		})
	}
	wg.Go(func() {
		for n := range 50 {
			if err := tr.Set([]string{"", "m1"}[n%2], change("trace_level", []string{"TIMESTAMPS", "OFF", "null"}[n%3], "trace_rate", "1", "log_frequency", fmt.Sprint(n%3))); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no file was written", err)
	}
	for _, f := range files {
		read(t, f)
	}
}

// marks records what a profiler would be told.
type marks struct {
	mu   sync.Mutex
	log  []string
	open int
}

func (m *marks) Begin(name string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, name)
	m.open++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open--
	}
}

func TestMarkers(t *testing.T) {
	m := &marks{}
	tr := New(Options{Markers: []Marker{m}})
	one(tr, "m", "1")
	if got := strings.Join(m.log, ", "); got != "request m, prepare m, queue m, infer m, finish m" || m.open != 0 {
		t.Errorf("ranges %s, %d still open", got, m.open)
	}
}

// BenchmarkOff is what a request costs when nobody watches.
func BenchmarkOff(b *testing.B) {
	tr := New(Options{Dir: b.TempDir()})
	b.ReportAllocs()
	for b.Loop() {
		var r *Request
		if tr.On() {
			r = tr.Start(Origin{}, "m", "1")
		}
		r.Begin(telemetry.Queue)
		r.Begin(telemetry.Infer)
		r.Begin(telemetry.Finish)
		r.End(Outcome{})
	}
}

func BenchmarkFile(b *testing.B) {
	tr := New(Options{Dir: b.TempDir()})
	if err := tr.Set("", change("trace_level", "TIMESTAMPS", "trace_rate", "1", "log_frequency", "10000")); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		one(tr, "m", "1")
	}
	if err := tr.Close(); err != nil {
		b.Fatal(err)
	}
}
