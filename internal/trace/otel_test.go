package trace

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collect is a collector that keeps what it is sent.
func collect(t *testing.T) (url string, sent func() []*spans.Span) {
	var mu sync.Mutex
	var all []*spans.Span
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			t.Errorf("%s: not what a collector takes (%v)", r.URL.Path, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				all = append(all, ss.Spans...)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []*spans.Span {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

func TestExporter(t *testing.T) {
	url, sent := collect(t)
	e, err := NewExporter(t.Context(), ExporterOptions{URL: url, Ratio: 0, Version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	tr := New(Options{Exporter: e})
	// The callers' decision counts: yes over HTTP and gRPC, no; one without is not
	// sampled at ratio 0.
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, h := range []map[string][]string{header("00-" + trace + "-" + span + "-01"), {"traceparent": {"00-" + trace + "-" + span + "-01"}},
		header("00-" + trace + "-" + span + "-00"), header("nonsense"), nil} {
		r := tr.Start(Origin{Arrival: time.Now().Add(-time.Second), ID: "id", Header: h}, "m", "1")
		r.End(Outcome{Rows: 1, Failure: "REJECTED"})
	}
	if err := e.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := sent()
	if len(got) != 4 {
		t.Fatalf("%d spans arrived, want those of two requests with their phase prepare", len(got))
	}
	whole := map[string]*spans.Span{}
	for _, s := range got {
		if s.Name == "infer m" {
			whole[string(s.SpanId)] = s
			if hex.EncodeToString(s.ParentSpanId) != span || hex.EncodeToString(s.TraceId) != trace || s.Kind != spans.Span_SPAN_KIND_SERVER || s.Status.Code != spans.Status_STATUS_CODE_ERROR {
				t.Errorf("span %v", s)
			}
		}
	}
	for _, s := range got {
		if p := whole[string(s.ParentSpanId)]; s.Name == "prepare" && (p == nil || s.StartTimeUnixNano != p.StartTimeUnixNano || s.EndTimeUnixNano != p.EndTimeUnixNano || s.EndTimeUnixNano-s.StartTimeUnixNano < 1e9) {
			t.Errorf("phase %v of %v", s, p)
		}
	}
}

func TestExporterRefused(t *testing.T) {
	for _, url := range []string{"", "localhost:4317", "ftp://x", "http://", "http://%zz"} {
		if _, err := NewExporter(t.Context(), ExporterOptions{URL: url}); err == nil {
			t.Errorf("address %q was taken", url)
		}
	}
}

// TestExporterAway: a collector that does not answer holds up no request.
func TestExporterAway(t *testing.T) {
	e, err := NewExporter(t.Context(), ExporterOptions{URL: "http://127.0.0.1:1", Ratio: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	tr := New(Options{Exporter: e})
	start := time.Now()
	for range 10000 { // more than the exporter keeps
		one(tr, "m", "1")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("10,000 requests took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = e.Close(ctx) // it cannot send
}
