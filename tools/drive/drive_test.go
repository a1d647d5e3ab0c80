package drive

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
)

// modelFiles are those of a small upload.
var modelFiles = []string{"model.onnx", "labels.txt"}

func serve(t *testing.T, routes map[string]http.HandlerFunc) *Client {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return NewClient(s.URL)
}

func answer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func TestFollowByEvents(t *testing.T) {
	api := serve(t, map[string]http.HandlerFunc{
		"GET /quantize/7/events": answer(": ping\n\nevent: status\ndata: {\"id\":\"7\",\"status\":\"running\",\"phase\":\"calibrate\",\"progress\":0.5}\n\n" +
			"data: {\"id\":\"7\",\"status\":\"succeeded\",\"progress\":1}\n\n"),
	})
	var seen []string
	s, err := api.Follow(context.Background(), "7", func(s jobs.Status) { seen = append(seen, string(s.Status)+" "+s.Phase) })
	if err != nil || s.Status != jobs.Succeeded {
		t.Fatalf("%v, %v", s.Status, err)
	}
	if got := strings.Join(seen, ", "); got != "running calibrate, succeeded " {
		t.Errorf("seen %q", got)
	}
}

// TestFollowByPolling: the events break off, as they do behind some proxies.
func TestFollowByPolling(t *testing.T) {
	asked := 0
	api := serve(t, map[string]http.HandlerFunc{
		"GET /quantize/7": func(w http.ResponseWriter, _ *http.Request) {
			asked++
			state := "running"
			if asked == 2 {
				state = "failed"
			}
			fmt.Fprintf(w, `{"id":"7","status":%q,"error":"no reason"}`, state)
		},
	})
	s, err := api.Follow(context.Background(), "7", func(jobs.Status) {})
	if err != nil || s.Status != jobs.Failed || asked != 2 {
		t.Fatalf("%v after %d questions, %v", s.Status, asked, err)
	}
}

func TestErrorsAreTheServersWords(t *testing.T) {
	api := serve(t, map[string]http.HandlerFunc{
		"POST /quantize": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"error":"model \"news\" is unknown"}`)
		},
	})
	_, err := api.Submit(context.Background(), jobs.Spec{})
	if err == nil || !strings.Contains(err.Error(), `404 Not Found: model "news" is unknown`) {
		t.Errorf("error %v", err)
	}
}

func TestPutModelSendsAZip(t *testing.T) {
	dir := t.TempDir()
	for _, f := range modelFiles {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("of "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	api := serve(t, map[string]http.HandlerFunc{
		"PUT /models/news": func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return // the upload broke off: the second case below
			}
			z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Error(err)
				return
			}
			for _, f := range z.File {
				got = append(got, f.Name)
			}
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, `{"version":"3"}`)
		},
	})
	v, err := api.PutModel(context.Background(), "news", dir, modelFiles)
	if err != nil || v != "3" {
		t.Fatalf("%q, %v", v, err)
	}
	if strings.Join(got, " ") != strings.Join(modelFiles, " ") {
		t.Errorf("zip holds %v", got)
	}
	if _, err := api.PutModel(context.Background(), "news", t.TempDir(), modelFiles); err == nil {
		t.Error("an empty folder was uploaded")
	}
}

func TestReportIsFound(t *testing.T) {
	var b bytes.Buffer
	if err := report.WriteJSON(&b, report.Report{Quantized: report.Model{Name: "q"}}); err != nil {
		t.Fatal(err)
	}
	api := serve(t, map[string]http.HandlerFunc{"GET /quantize/7/report": answer(b.String())})
	for name, result := range map[string]string{"the result is it": b.String(), "the result holds it": `{"version":"2","report":` + b.String() + `}`, "at its own address": `{"version":"2"}`} {
		r, err := api.Report(context.Background(), jobs.Status{ID: "7", Result: []byte(result)})
		if err != nil || r.Quantized.Name != "q" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Start(Config{Listen: l.Addr().String(), DataDir: t.TempDir(), Another: "make run LISTEN=127.0.0.1:8090"})
	if err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), "make run LISTEN=") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

// TestServerThatEnds starts a program that fails at once: the error holds the
// last line of its log.
func TestServerThatEnds(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "serve")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho cannot find the library >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Start(Config{Program: bad, Listen: "127.0.0.1:0", DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = s.UntilReady(ctx, NewClient("http://127.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "did not start") || !strings.Contains(err.Error(), "cannot find the library") {
		t.Errorf("error %v", err)
	}
}

func TestProgressLines(t *testing.T) {
	var b strings.Builder
	p := &Progress{out: &b, start: time.Now()}
	for _, s := range []jobs.Status{{Phase: "calibrate", Status: jobs.Running, Progress: .1}, {Phase: "calibrate", Status: jobs.Running, Progress: .2}, {Phase: "evaluate", Status: jobs.Running, Progress: .6}} {
		p.Show(s)
	}
	p.Done()
	if n := strings.Count(b.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want one a phase:\n%s", n, b.String())
	}
}

// TestSteps: what was done is kept, a failure is not, and another stamp forgets all.
func TestSteps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "steps.json")
	var out strings.Builder
	open := func(stamp string) *Steps {
		s, err := OpenSteps(path, stamp, &out)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	runs := 0
	f := func() (int, error) { runs++; return 40 + runs, nil }
	bad := errors.New("bad")
	s := open("a")
	if v, err := Do(s, "x", "first", f); v != 41 || err != nil {
		t.Fatal(v, err)
	}
	if _, err := Do(s, "y", "second", func() (int, error) { return 0, bad }); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	s = open("a")
	if v, err := Do(s, "x", "first", f); v != 41 || err != nil || runs != 1 {
		t.Errorf("%d after %d runs, %v", v, runs, err)
	}
	if v, err := Do(s, "y", "second", f); v != 42 || err != nil {
		t.Errorf("a step that failed is not done again: %d, %v", v, err)
	}
	if err := s.Forget("x"); err != nil {
		t.Fatal(err)
	}
	if v, _ := Do(open("a"), "x", "first", f); v != 43 {
		t.Errorf("a forgotten step gave %d", v)
	}
	if v, _ := Do(open("b"), "y", "second", f); v != 44 {
		t.Errorf("another stamp gave %d", v)
	}
	if n := strings.Count(out.String(), "kept from"); n != 1 {
		t.Errorf("%d steps kept, want 1:\n%s", n, out.String())
	}
}

func TestNeedSpace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	if err := NeedSpace(dir, 1); err != nil {
		t.Error(err)
	}
	if err := NeedSpace(dir, 1<<62); err == nil || !strings.Contains(err.Error(), "GB are needed") {
		t.Errorf("error %v", err)
	}
}
