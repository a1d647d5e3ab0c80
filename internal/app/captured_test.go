package app

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggrpc "google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fewbit/fewbit/internal/grpc"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/tensor"
)

// keyFile writes a capture key and returns its path.
func keyFile(t testing.TB, b byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capture.key")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(b)), 32)))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// captured waits until the capture of a model holds what f wants.
func (c client) captured(model string, f func(capture.Status) bool) capture.Status {
	c.t.Helper()
	var st capture.Status
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st = capture.Status{}
		c.do("GET", "/models/"+model+"/capture", nil).into(c.t, 200, &st)
		if f(st) {
			return st
		}
		if time.Now().After(end) {
			c.t.Fatalf("captured: %+v", st)
		}
	}
}

// overGRPC asks the text model of a server over gRPC.
func (s *server) overGRPC(t *testing.T, name string, ids ...int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- grpc.New(s.server, grpc.Options{}).Serve(ctx, l) }()
	conn, err := ggrpc.NewClient(l.Addr().String(), ggrpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	req := &pb.ModelInferRequest{ModelName: name}
	mask := make([]int64, len(ids))
	for i := range mask {
		mask[i] = 1
	}
	for _, in := range []struct {
		name string
		v    []int64
	}{{"input_ids", ids}, {"attention_mask", mask}, {"token_type_ids", make([]int64, len(ids))}} {
		req.Inputs = append(req.Inputs, &pb.ModelInferRequest_InferInputTensor{Name: in.name, Datatype: "INT64", Shape: []int64{1, int64(len(ids))}, Contents: &pb.InferTensorContents{Int64Contents: in.v}})
	}
	if _, err := pb.NewGRPCInferenceServiceClient(conn).ModelInfer(ctx, req); err != nil {
		t.Error(err)
	}
	conn.Close()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCaptureToPromotion is what capture is for: a model is asked by every
// route, calibrates on what it was asked, and the result answers.
func TestCaptureToPromotion(t *testing.T) {
	t.Parallel()
	key := keyFile(t, 'k')
	s := start(t, "", func(c *Config) { c.CaptureKey = key })
	s.do("PUT", "/models/news", textModel(t), "Content-Type", "application/zip").into(t, 201, nil)
	s.do("GET", "/models/news/capture", nil).into(t, 404, nil)
	s.do("PUT", "/models/nobody/capture", nil).into(t, 404, nil)
	s.do("PUT", "/models/news/capture", map[string]any{"redact": map[string]any{"inputs": []string{"input_idz"}}}).into(t, 400, nil)
	s.do("PUT", "/models/news/capture", map[string]any{"shar": 1}).into(t, 400, nil)
	for _, field := range []string{"share", "max_samples", "max_bytes", "max_per_second", "seconds", "keep_seconds"} {
		s.do("PUT", "/models/news/capture", map[string]any{field: 0}).into(t, 400, nil) // not the default
	}
	spec := jobs.Spec{Model: "news", Scheme: "int8", Samples: 16, Force: true, Promote: true, Calibration: &jobs.Calibration{Captured: &jobs.Captured{}}}
	if a := s.do("POST", "/quantize", spec); a.status != 404 || !strings.Contains(string(a.body), "PUT /models/news/capture") {
		t.Errorf("calibrating on nothing: %v", a)
	}
	s.do("PUT", "/models/news/capture", capture.Settings{MaxSamples: 40, PerSecond: 1e6, Redact: capture.Redact{Inputs: []string{"token_type_ids"}, Routes: []string{"predict"}}}).into(t, 200, nil)
	if a := s.do("POST", "/quantize", spec); a.status != 400 && a.status != 409 || !strings.Contains(string(a.body), "nothing captured") {
		t.Errorf("calibrating on an empty capture: %v", a)
	}
	for line := range strings.Lines(string(texts(5, 30))) {
		var x struct{ Text string }
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatal(err)
		}
		s.do("POST", "/v1/classify", map[string]any{"model": "news", "texts": []string{x.Text, "the team"}}).into(t, 200, nil)
	}
	s.do("POST", "/predict", map[string]any{"inputs": "not to be kept"}).into(t, 200, nil)
	s.do("POST", "/v2/models/news/infer", map[string]any{"inputs": []any{
		map[string]any{"name": "input_ids", "shape": []int{1, 3}, "datatype": "INT64", "data": []int{2, 5, 3}},
		map[string]any{"name": "attention_mask", "shape": []int{1, 3}, "datatype": "INT64", "data": []int{1, 1, 1}},
		map[string]any{"name": "token_type_ids", "shape": []int{1, 3}, "datatype": "INT64", "data": []int{0, 0, 0}}}}).into(t, 200, nil)
	s.overGRPC(t, "news", 2, 6, 8, 3)
	s.do("POST", "/v2/models/news/infer", `{"inputs":[]}`).into(t, 400, nil) // refused: not captured

	st := s.captured("news", func(st capture.Status) bool { return st.Samples == 40 && st.Seen == 62 })
	if st.Routes["classify"] < 38 || st.Routes["predict"] != 0 || len(st.Inputs) != 3 {
		t.Errorf("%+v", st)
	}
	s.do("PUT", "/models/news/capture", nil).into(t, 409, nil)

	// In clear for an administrator, and usable as a data set.
	npz := s.do("GET", "/models/news/capture/samples.npz", nil).into(t, 200, nil).body
	var d struct{ Samples int }
	s.do("PUT", "/datasets/exported", npz).into(t, 201, &d)
	if d.Samples != 40 {
		t.Errorf("the export has %d samples", d.Samples)
	}

	id := s.submit(spec)
	s.do("DELETE", "/models/news/capture", nil).into(t, 204, nil) // the job has its own
	job := s.finished(id)
	var res result
	if err := json.Unmarshal(job.Result, &res); job.Status != jobs.Succeeded || err != nil || !res.Promoted || res.Version != "2" {
		t.Fatalf("job: %+v %v", job, err)
	}
	rep, err := report.ReadJSON(strings.NewReader(string(s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, nil).body)))
	if err != nil || rep.Calibration == nil || rep.Calibration.Samples != 16 {
		t.Fatalf("report: %+v %v", rep, err)
	}
	for _, want := range []string{"captured inputs of model news: 40 samples of 62 rows", "classify", "redacted token_type_ids"} {
		if !strings.Contains(rep.Calibration.Source, want) {
			t.Errorf("the report says %q, want %q in it", rep.Calibration.Source, want)
		}
	}
	s.classifies(t, flow{text: "the player and the coach of a new team", label: "sports"})
	s.do("GET", "/models/news/capture", nil).into(t, 404, nil)

	// The result may be captured in turn; both go with the model.
	s.do("PUT", "/models/news/capture", nil).into(t, 200, nil)
	s.do("POST", "/models/news/capture/stop", nil).into(t, 200, &st)
	if st.State != capture.Stopped {
		t.Errorf("stopped: %+v", st)
	}
	s.do("DELETE", "/models/news", nil).into(t, 204, nil)
	if left := s.capture.List(); len(left) != 0 {
		t.Errorf("captured inputs of a deleted model: %+v", left)
	}
}

// TestKillWhileCapturing kills the server under traffic: what was captured is
// whole, and the next one goes on.
func TestKillWhileCapturing(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), keyFile(t, 'x')
	s := startChild(t, dir, "--capture-key", key)
	s.do("PUT", "/models/m", mlp(t)).into(t, 201, nil)
	s.do("PUT", "/models/m/capture", capture.Settings{MaxSamples: 300, PerSecond: 1e6}).into(t, 200, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			rows := make([]float32, 8*mlpInputs)
			for i := range rows {
				rows[i] = float32(i%17) / 8
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := s.try("POST", "/v2/models/m/infer", map[string]any{"inputs": []any{map[string]any{"name": "x", "shape": []int{8, mlpInputs}, "datatype": "FP32", "data": rows}}})
				if err != nil {
					return // killed
				}
			}
		})
	}
	s.captured("m", func(st capture.Status) bool { return st.Samples >= 100 })
	s.kill(t)
	close(stop)
	wg.Wait()

	s = startChild(t, dir, "--capture-key", key)
	var st capture.Status
	s.do("GET", "/models/m/capture", nil).into(t, 200, &st)
	if st.State != capture.Running || st.Samples < 100 {
		t.Errorf("after the kill: %+v", st)
	}
	had := st.Samples
	s.answers()
	s.captured("m", func(st capture.Status) bool { return st.Samples > had || st.Samples == 300 })
	s.do("POST", "/models/m/capture/stop", nil).into(t, 200, &st)
	npz := s.do("GET", "/models/m/capture/samples.npz", nil).into(t, 200, nil).body
	var d struct{ Samples int }
	s.do("PUT", "/datasets/exported", npz).into(t, 201, &d)
	if d.Samples != st.Samples {
		t.Errorf("%d samples can be read, %d were counted: some are half written", d.Samples, st.Samples)
	}
	if junk, _ := filepath.Glob(filepath.Join(dir, captureDir, "*", ".*")); len(junk) != 0 {
		t.Errorf("left: %v", junk)
	}
	s.kill(t)
	// With another key nothing can be read, and with none nothing begun.
	s = startChild(t, dir, "--capture-key", keyFile(t, 'y'))
	if a := s.do("GET", "/models/m/capture/samples.npz", nil); a.status != 409 || !strings.Contains(string(a.body), "another") {
		t.Errorf("another key: %v", a)
	}
	s.kill(t)
	s = startChild(t, dir)
	if a := s.do("GET", "/models/m/capture/samples.npz", nil); a.status != 501 || !strings.Contains(string(a.body), "--capture-key") {
		t.Errorf("no key: %v", a)
	}
	s.do("DELETE", "/models/m/capture", nil).into(t, 204, nil)
	if a := s.do("PUT", "/models/m/capture", nil); a.status != 501 {
		t.Errorf("no key: %v", a)
	}
}

func TestCaptureKeyFile(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "short.key")
	if err := os.WriteFile(bad, []byte("secretsecret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{bad: "32 random bytes", bad + "x": "no such file"} {
		c := Config{CaptureKey: path}
		if _, err := c.readCaptureKey(); err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
	t.Setenv(capture.KeyEnv, strings.Repeat("0f", 32))
	if k, err := new(Config).readCaptureKey(); err != nil || k == nil {
		t.Errorf("the key of the environment: %v", err)
	}
}

// BenchmarkCapture compares the throughput of a small model, asked by one client,
// with and without a capture that has just begun, when it takes most, in turn:
// on/off is the ratio of requests answered in equal times, the middle of the
// pairs, and spread the distance of their quartiles.
func BenchmarkCapture(b *testing.B) {
	key := keyFile(b, 'k')
	s := start(b, "", func(c *Config) { c.CaptureKey = key })
	s.do("PUT", "/models/m", mlp(b)).into(b, 201, nil)
	x := make([]float32, mlpInputs)
	for i := range x {
		x[i] = float32(i) / 8
	}
	head := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, mlpInputs, 4*mlpInputs)
	body := append([]byte(head), tensor.From(x, mlpInputs).Data...)
	length := fmt.Sprint(len(head))
	const window, settle = 500 * time.Millisecond, 100 * time.Millisecond
	run := func(d time.Duration) float64 {
		n := 0
		for end := time.Now().Add(d); time.Now().Before(end); n++ {
			if a, err := s.try("POST", "/v2/models/m/infer", body, "Inference-Header-Content-Length", length); err != nil || a.status != 200 {
				b.Fatal(a, err)
			}
		}
		return float64(n)
	}
	set := func(on bool) {
		if on {
			s.do("PUT", "/models/m/capture", nil).into(b, 200, nil)
			return
		}
		s.do("DELETE", "/models/m/capture", nil).into(b, 204, nil)
	}
	run(window)
	var ratios []float64
	for i := 0; b.Loop(); i++ {
		var got [2]float64
		for j := range 2 {
			on := (i + j) % 2 // in turn
			if on == 1 {
				set(true)
			}
			run(settle) // starting and deleting write to the disk; they are not what is measured
			got[on] = run(window)
			if on == 1 {
				set(false)
			}
		}
		ratios = append(ratios, got[1]/got[0])
	}
	slices.Sort(ratios)
	n := len(ratios)
	b.ReportMetric(ratios[n/2], "on/off")
	b.ReportMetric(ratios[3*n/4]-ratios[n/4], "spread")
}
