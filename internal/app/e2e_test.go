package app

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	nethttp "net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// flow is one walk from an upload to a promoted quantized model.
type flow struct {
	model              []byte // zip
	calib, test        []byte
	spec               jobs.Spec
	text, label        string
	feeds              engine.Feeds
	smallestAgreement  float64
	minAccuracyOfINT8  float64
	smallerThanSources bool
}

func TestTextModelEndToEnd(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	walk(t, s, flow{
		model: textModel(t), calib: texts(1, 40), test: texts(2, 60),
		spec: jobs.Spec{Target: "cpu", Samples: 16, Force: true}, // so small a model may well be slower in integers
		text: "the player and the coach of a new team", label: "sports",
		feeds: engine.Feeds{
			"input_ids":      tensor.From([]int64{2, 6, 8, 3, 2, 22, 3, 0}, 2, 4),
			"attention_mask": tensor.From([]int64{1, 1, 1, 1, 1, 1, 1, 0}, 2, 4),
			"token_type_ids": tensor.From(make([]int64, 8), 2, 4),
		},
		smallestAgreement: 0.95, minAccuracyOfINT8: 0.95,
	})
}

// beginning is how many words of a news text are used: long ones take long.
const beginning = 30

// TestNewsEndToEnd is the product's main job on the real classifier.
func TestNewsEndToEnd(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a while: -short")
	}
	files := map[string][]byte{}
	for _, name := range []string{"model.onnx", "model.onnx.data", "tokenizer.json", "labels.txt"} {
		b, err := os.ReadFile(needFile(t, "models/news/"+name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	lines := func(path string, n int) []byte {
		b, err := os.ReadFile(needFile(t, path))
		if err != nil {
			t.Fatal(err)
		}
		all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
		var out bytes.Buffer
		for i := range n {
			var line struct {
				Text  string `json:"text"`
				Label any    `json:"label"`
			}
			if err := json.Unmarshal(all[i*len(all)/n], &line); err != nil { // spread over the file, which may be sorted by class
				t.Fatal(err)
			}
			line.Text = strings.Join(strings.Fields(line.Text)[:beginning], " ")
			if err := json.NewEncoder(&out).Encode(line); err != nil {
				t.Fatal(err)
			}
		}
		return out.Bytes()
	}
	s := start(t, "", nil)
	walk(t, s, flow{
		model: zipOf(t, files), calib: lines("data/bbc/calib.jsonl", 16), test: lines("data/bbc/test.jsonl", 24),
		spec: jobs.Spec{Samples: 8, Method: "minmax", Force: true}, // 24 texts prove no budget, and another test may slow this one
		text: "The striker scored twice in the final", label: "sports",
		feeds: engine.Feeds{
			"input_ids":      tensor.From([]int64{101, 1996, 11854, 3195, 3807, 1999, 1996, 2345, 102}, 1, 9),
			"attention_mask": tensor.From([]int64{1, 1, 1, 1, 1, 1, 1, 1, 1}, 1, 9),
			"token_type_ids": tensor.From(make([]int64, 9), 1, 9),
		},
		smallestAgreement: 0.9, minAccuracyOfINT8: 0.8, smallerThanSources: true,
	})
}

func walk(t *testing.T, s *server, f flow) {
	var up struct{ Name, Version string }
	a := s.do("PUT", "/models/news", f.model, "Content-Type", "application/zip").into(t, 201, &up)
	if up.Name != "news" || up.Version != "1" || a.header.Get("Location") != "/v2/models/news/versions/1" {
		t.Fatalf("%v", a)
	}
	for name, b := range map[string][]byte{"calib": f.calib, "test": f.test} {
		var d struct {
			Kind  string
			Bytes int
		}
		s.do("PUT", "/datasets/"+name, b, "Content-Type", "application/jsonl").into(t, 201, &d)
		if d.Kind != "jsonl" || d.Bytes != len(b) {
			t.Errorf("data set %s: %+v", name, d)
		}
	}
	s.servesLikeSession(t, "1", f.feeds)

	spec := f.spec
	spec.Model, spec.Scheme, spec.Promote = "news", "int8", true
	spec.Calibration, spec.Evaluation = &jobs.Calibration{Dataset: "calib"}, &jobs.Evaluation{Dataset: "test"}
	id := s.submit(spec)
	st := s.follow(t, id)
	if st.Status != jobs.Succeeded || st.Progress != 1 || st.Attempts != 1 {
		t.Fatalf("job: %+v", st)
	}
	var res result
	if err := json.Unmarshal(st.Result, &res); err != nil {
		t.Fatal(err)
	}
	checkResult(t, res, f)
	checkReport(t, s, id, res)
	s.servesLikeSession(t, "2", f.feeds)

	// What it was made from is still there, and a roll-back needs no restart.
	var vs struct {
		Versions []struct{ Version, Scheme, Source, SHA256 string }
	}
	s.do("GET", "/models/news", nil).into(t, 200, &vs)
	if len(vs.Versions) != 2 || vs.Versions[0].Scheme != "" || vs.Versions[1].Scheme != "int8" || vs.Versions[1].Source != "news/1" || vs.Versions[1].SHA256 != res.SHA256 {
		t.Errorf("versions: %+v", vs)
	}
	s.classifies(t, f)
	s.observed(t)
	s.do("POST", "/models/news/rollback", nil).into(t, 200, &up)
	if up.Version != "1" {
		t.Errorf("rolled back to %+v", up)
	}
	s.servesLikeSession(t, "1", f.feeds)
	s.do("POST", "/models/news/promote", map[string]string{"version": "2"}).into(t, 200, nil)
	s.servesLikeSession(t, "2", f.feeds)

	// Nothing is left over.
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	// A second server cannot take the directory.
	if _, err := New(t.Context(), s.cfg, "test", nil); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("a second server on one data directory: %v", err)
	}
	// A restart serves the promoted version, remembers the job, and the report.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, s.cfg.DataDir, nil)
	again.servesLikeSession(t, "2", f.feeds)
	if now := again.finished(id); now.Status != jobs.Succeeded || !bytes.Equal(compact(t, now.Result), compact(t, st.Result)) {
		t.Errorf("after a restart the job is %+v", now)
	}
	checkReport(t, again, id, res)
	// Deleting takes the model away at once.
	again.do("DELETE", "/models/news", nil).into(t, 204, nil)
	again.do("GET", "/v2/models/news", nil).into(t, 404, nil)
	again.do("DELETE", "/datasets/calib", nil).into(t, 204, nil)
	again.do("GET", "/datasets/calib", nil).into(t, 404, nil)
}

func compact(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Error(err)
	}
	return out.Bytes()
}

// leftovers lists temporary files and folders that no process needs now.
func leftovers(t *testing.T, dir string) (left []string) {
	t.Helper()
	for _, pattern := range []string{"registry/tmp/*/*", "reports/.*"} {
		m, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, m...)
	}
	return slices.DeleteFunc(left, func(f string) bool { return filepath.Base(f) == ".lock" })
}

// follow listens to a job's events to the end and checks their order.
func (c client) follow(t *testing.T, id string) jobs.Status {
	t.Helper()
	resp, err := nethttp.Get(c.base + "/quantize/" + id + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("events have the type %q", ct)
	}
	var last jobs.Status
	var seen []string
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var st jobs.Status
		if err := json.Unmarshal([]byte(data), &st); err != nil {
			t.Fatal(err)
		}
		if st.Progress < last.Progress {
			t.Errorf("progress went back from %v to %v (%s)", last.Progress, st.Progress, st.Phase)
		}
		if last.Status.Final() {
			t.Errorf("an event after the end: %s", data)
		}
		if !slices.Contains(seen, st.Phase) {
			seen = append(seen, st.Phase)
		}
		last = st
	}
	if !last.Status.Final() {
		t.Fatalf("the events ended with %+v: %v", last, lines.Err())
	}
	if last.Status == jobs.Succeeded && !slices.Contains(seen, "evaluate") {
		t.Errorf("phases seen: %q", seen)
	}
	return last
}

func checkResult(t *testing.T, res result, f flow) {
	t.Helper()
	r := res.Report
	switch {
	case res.Model != "news" || res.Version != "2" || res.Source != "news/1" || !res.Promoted || len(res.SHA256) != 64:
		t.Errorf("result: %+v", res)
	case r.Verdict != report.Accepted && r.Verdict != report.Forced:
		t.Errorf("verdict %q", r.Verdict)
	case r.Accuracy == nil || r.Accuracy.Difference == nil || r.Accuracy.Quantized.Value < f.minAccuracyOfINT8:
		t.Errorf("accuracy: %+v", r.Accuracy)
	case r.Accuracy.FP32.N != r.Samples || r.Accuracy.FP32.Lo > r.Accuracy.FP32.Value || r.Accuracy.FP32.Hi < r.Accuracy.FP32.Value:
		t.Errorf("interval: %+v of %d samples", r.Accuracy.FP32, r.Samples)
	case r.Agreement == nil || r.Agreement.Value < f.smallestAgreement:
		t.Errorf("agreement: %+v", r.Agreement)
	case r.Cosine == nil || r.Cosine.Min > r.Cosine.Mean || r.Cosine.Mean > 1.000001:
		t.Errorf("cosine: %+v", r.Cosine)
	case r.LatencyMS == nil || r.LatencyMS.FP32.P50 <= 0 || r.LatencyMS.Quantized.P99 < r.LatencyMS.Quantized.P50 || r.LatencyMS.Ratio.Median <= 0:
		t.Errorf("latency: %+v", r.LatencyMS)
	case r.SizeBytes == nil || r.SizeBytes.FP32 <= 0 || f.smallerThanSources && r.SizeBytes.Quantized*3 > r.SizeBytes.FP32:
		t.Errorf("size: %+v", r.SizeBytes)
	case r.PeakBytes == nil || r.PeakBytes.FP32 <= 0:
		t.Errorf("peak memory: %+v (warnings %q)", r.PeakBytes, r.Warnings)
	case r.IntegerShare == nil || *r.IntegerShare < 0.5 || *r.IntegerShare > 1:
		t.Errorf("integer share: %v", r.IntegerShare)
	}
}

func checkReport(t *testing.T, s *server, id string, res result) {
	t.Helper()
	a := s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, nil)
	rep, err := report.ReadJSON(bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if rep.Quantized.SHA256 != res.SHA256 || rep.Model.Name != "news" || rep.Calibration == nil || len(rep.Operators) == 0 {
		t.Errorf("report: %+v", rep.Quantized)
	}
	page := s.do("GET", "/quantize/"+id+"/report", nil, "Accept", "text/html").into(t, 200, nil)
	if !bytes.Contains(page.body, []byte("<html")) || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
		t.Errorf("page: %v", page)
	}
	for _, b := range [][]byte{a.body, page.body} {
		if bytes.Contains(b, []byte(s.cfg.DataDir)) {
			t.Errorf("the report of job %s has a path of the server", id)
		}
	}
}

// servesLikeSession compares the default version's answers, as JSON and as
// binary, with those of the same file in a session of this process.
func (s *server) servesLikeSession(t *testing.T, version string, in engine.Feeds) {
	t.Helper()
	dir, err := s.registry.Path("news", version)
	if err != nil {
		t.Fatal(err)
	}
	want := tensor.View[float32](inference(t, filepath.Join(dir, "model.onnx"), in)["logits"])

	type jsonTensor struct {
		Name       string         `json:"name"`
		Shape      []int64        `json:"shape"`
		Datatype   string         `json:"datatype"`
		Data       any            `json:"data,omitempty"`
		Parameters map[string]any `json:"parameters,omitempty"`
	}
	var asJSON, asBinary []jsonTensor
	var tail []byte
	for name, x := range in {
		b := jsonTensor{Name: name, Shape: x.Dims, Datatype: "INT64"}
		asBinary = append(asBinary, b)
		asBinary[len(asBinary)-1].Parameters = map[string]any{"binary_data_size": len(x.Data)}
		tail = append(tail, x.Data...)
		b.Data = tensor.View[int64](x)
		asJSON = append(asJSON, b)
	}
	var out struct {
		ModelVersion string `json:"model_version"`
		ID           string `json:"id"`
		Outputs      []struct {
			Name  string
			Shape []int64
			Data  []float32
		}
	}
	s.do("POST", "/v2/models/news/infer", map[string]any{"id": "q7", "inputs": asJSON}).into(t, 200, &out)
	if out.ModelVersion != version || out.ID != "q7" || len(out.Outputs) != 1 || !slices.Equal(out.Outputs[0].Data, want) {
		t.Errorf("version %s: JSON answer %+v, want %v", version, out, want)
	}
	head, err := json.Marshal(map[string]any{"inputs": asBinary, "parameters": map[string]any{"binary_data_output": true}})
	if err != nil {
		t.Fatal(err)
	}
	const lengthHeader = "Inference-Header-Content-Length"
	a := s.do("POST", "/v2/models/news/infer", append(head, tail...), lengthHeader, fmt.Sprint(len(head))).into(t, 200, nil)
	var n int
	if _, err := fmt.Sscan(a.header.Get(lengthHeader), &n); err != nil || n > len(a.body) {
		t.Fatalf("binary answer %v: %v", a, err)
	}
	got := make([]float32, (len(a.body)-n)/4)
	if err := binary.Read(bytes.NewReader(a.body[n:]), binary.LittleEndian, got); err != nil || !slices.Equal(got, want) {
		t.Errorf("version %s: binary answer %v, want %v (%v)", version, got, want, err)
	}
}

func (s *server) classifies(t *testing.T, f flow) {
	t.Helper()
	var out struct {
		Version string `json:"model_version"`
		Results []struct {
			Label  string
			Score  float64
			Scores []struct{ Score float64 }
		}
	}
	s.do("POST", "/v1/classify", map[string]any{"model": "news", "texts": []string{f.text, f.text + " " + f.text}}).into(t, 200, &out)
	if out.Version != "2" || len(out.Results) != 2 {
		t.Fatalf("classify: %+v", out)
	}
	for _, r := range out.Results {
		sum := 0.0
		for _, x := range r.Scores {
			sum += x.Score
		}
		if r.Label != f.label || r.Score < 0.5 || math.Abs(sum-1) > 1e-6 {
			t.Errorf("classify: %+v, want %s", r, f.label)
		}
	}
}

// observed looks at what the requests before left in telemetry and metrics.
func (s *server) observed(t *testing.T) {
	t.Helper()
	var tel struct {
		Models []struct {
			Name, Version string
		}
		GPU     json.RawMessage
		Reasons map[string]string
	}
	s.do("GET", "/telemetry", nil).into(t, 200, &tel)
	if len(tel.Models) != 2 || tel.Models[0].Name != "news" {
		t.Errorf("telemetry: %+v", tel)
	}
	if string(tel.GPU) == "null" && tel.Reasons["gpu"] == "" {
		t.Error("telemetry: no GPU and no reason")
	}
	metrics := string(s.do("GET", "/metrics", nil).into(t, 200, nil).body)
	for _, want := range []string{`nv_inference_request_success{model="news",version="2"}`, `fewbit_http_requests_total`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	s.do("GET", "/openapi.json", nil).into(t, 200, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.") || doc.Paths["/quantize"]["post"] == nil || doc.Paths["/v2/models/{model}/infer"]["post"] == nil {
		t.Errorf("openapi.json: %s with %d paths", doc.OpenAPI, len(doc.Paths))
	}
}
