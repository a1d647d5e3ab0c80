package app

import (
	"context"
	"encoding/json"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestTraceSurvivesKill: a process that is killed while it traces leaves a file
// that is whole JSON and has what came half a second and more before.
func TestTraceSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startChild(t, dir)
	s.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
	s.do("POST", "/v2/trace/setting", `{"trace_level":["TIMESTAMPS"],"trace_rate":"1"}`).into(t, 200, nil)
	path := filepath.Join(dir, tracesDir, "trace.json")
	read := func() (requests int) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var events []struct{ Name string }
		if err := json.Unmarshal(b, &events); err != nil {
			t.Fatalf("the file is no JSON: %v: %.300s", err, b)
		}
		for _, e := range events {
			if e.Name == "request m" {
				requests++
			}
		}
		return requests
	}
	for range 5 {
		s.answers()
	}
	for start := time.Now(); read() < 5 && time.Since(start) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
	}
	s.answers()
	s.kill(t)
	if n := read(); n < 5 {
		t.Errorf("%d requests in the file of a killed process, want 5 or 6", n)
	}
}

// TestOTLP: the server sends spans where --otlp says, and the last ones when it
// stops.
func TestOTLP(t *testing.T) {
	t.Parallel()
	var spans atomic.Int64
	c := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) {
		b, _ := io.ReadAll(r.Body)
		spans.Add(int64(strings.Count(string(b), "infer m")))
	}))
	defer c.Close()
	s := start(t, "", func(cfg *Config) { cfg.OTLP = c.URL })
	s.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
	s.answers()
	s.answers()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if n := spans.Load(); n != 2 {
		t.Errorf("%d spans of requests arrived, want 2", n)
	}
	cfg := Defaults()
	cfg.DataDir, cfg.OTLP = t.TempDir(), "localhost:4317"
	if _, err := New(context.Background(), cfg, "test", nil); err == nil || !strings.Contains(err.Error(), "--otlp") {
		t.Errorf("a collector's address without a scheme: %v", err)
	}
}
