package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// refused checks an answer to bad input: the status, one line of JSON with the
// reason in it, and no path of the server.
func (s *server) refused(t *testing.T, a answer, status int, words ...string) {
	t.Helper()
	var e struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(a.body, &e); err != nil || e.Error == "" || a.status != status {
		t.Errorf("got %v, want status %d with {\"error\"}", a, status)
		return
	}
	s.clean(t, e.Error)
	for _, w := range words {
		if !strings.Contains(strings.ToLower(e.Error), strings.ToLower(w)) {
			t.Errorf("error %q does not say %q", e.Error, w)
		}
	}
}

// clean checks that an error is one line without a path of the server.
func (s *server) clean(t *testing.T, text string) {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{s.cfg.DataDir, os.TempDir() + "/", wd, "/registry/", "views/", "goroutine", "\n"} {
		if strings.Contains(text, bad) {
			t.Errorf("error %q has %q", text, bad)
		}
	}
}

// changed is the small model with a change.
func changed(t *testing.T, f func(*pb.ModelProto)) []byte {
	t.Helper()
	var p pb.ModelProto
	if err := proto.Unmarshal(mlp(t), &p); err != nil {
		t.Fatal(err)
	}
	f(&p)
	b, err := proto.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// external makes the first weight external data with these entries.
func external(t *testing.T, entries ...string) []byte {
	return changed(t, func(p *pb.ModelProto) {
		w := p.Graph.Initializer[0]
		w.RawData = nil
		w.DataLocation = pb.TensorProto_EXTERNAL.Enum()
		for i := 0; i < len(entries); i += 2 {
			w.ExternalData = append(w.ExternalData, &pb.StringStringEntryProto{Key: proto.String(entries[i]), Value: proto.String(entries[i+1])})
		}
	})
}

func TestBadModels(t *testing.T) {
	t.Parallel()
	s := start(t, "", func(c *Config) { c.MaxUpload = 1 << 20 })
	good := mlp(t)
	zipped := func(files map[string][]byte) []byte { return zipOf(t, files) }
	for _, c := range []struct {
		name   string
		body   []byte
		status int
		words  []string
	}{
		{"empty", []byte{}, 400, []string{"empty"}},
		{"text", []byte("this is not a model\n"), 400, []string{"model.onnx"}},
		{"truncated", good[:len(good)/2], 400, []string{"model.onnx"}},
		{"an image", []byte("\x89PNG\r\n\x1a\n0000000000000000"), 400, []string{"model.onnx"}},
		{"over the limit", bytes.Repeat([]byte{1}, 1<<20+1), 413, []string{"limit"}},
		{"no graph", changed(t, func(p *pb.ModelProto) { p.Graph = nil }), 400, []string{"graph"}},
		{"cyclic", changed(t, func(p *pb.ModelProto) { p.Graph.Node[0].Input[0] = "h2" }), 400, []string{"h2"}},
		{"missing initializer", changed(t, func(p *pb.ModelProto) { p.Graph.Initializer = p.Graph.Initializer[1:] }), 400, []string{"w1"}},
		{"unknown domain", changed(t, func(p *pb.ModelProto) {
			p.Graph.Node[1].Domain = proto.String("nobody.knows")
			p.OpsetImport = append(p.OpsetImport, &pb.OperatorSetIdProto{Domain: proto.String("nobody.knows"), Version: proto.Int64(1)})
		}), 400, []string{"nobody.knows"}},
		{"a tensor larger than memory", onnxBytes(t, hugeGraph()), 400, []string{"huge", "ConstantOfShape", "GB"}},
		{"unknown operator", changed(t, func(p *pb.ModelProto) { p.Graph.Node[1].OpType = proto.String("Frobnicate") }), 400, []string{"Frobnicate"}},
		{"short initializer", changed(t, func(p *pb.ModelProto) {
			w := p.Graph.Initializer[0]
			w.RawData = w.RawData[:len(w.RawData)/2]
		}), 400, []string{"w1"}},
		{"external data absolute", external(t, "location", "/etc/passwd"), 400, []string{"w1"}},
		{"external data above", external(t, "location", "../../secret"), 400, []string{"w1"}},
		{"external data missing", external(t, "location", "model.onnx.data"), 400, []string{"model.onnx.data"}},
		{"external data past the end", zipped(map[string][]byte{
			"model.onnx": external(t, "location", "w.bin", "offset", "4", "length", "8192"), "w.bin": make([]byte, 8192)}), 400, []string{"w1"}},
		{"zip without a model", zipped(map[string][]byte{"readme.txt": []byte("x")}), 400, []string{"model.onnx"}},
		{"zip that leaves its folder", zipped(map[string][]byte{"../model.onnx": good}), 400, []string{"name"}},
		{"tokenizer that is none", zipped(map[string][]byte{"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": []byte("{}")}), 400, []string{"tokenizer.json"}},
		{"tokenizer beside a model without texts", zipped(map[string][]byte{"model.onnx": good, "tokenizer.json": tokenizer(t)}), 400, []string{"text"}},
		{"image preparation that is none", zipped(map[string][]byte{"model.onnx": onnxBytes(t, imageGraph()), "preprocessor_config.json": []byte(`{"do_resize":`)}), 400, []string{"preprocessor_config.json"}},
		{"image preparation for another size", zipped(map[string][]byte{"model.onnx": onnxBytes(t, imageGraph()), "preprocessor_config.json": []byte(`{"image_processor_type":"ViTImageProcessor","size":{"height":9,"width":9}}`)}), 400, []string{"9x9"}},
		{"labels twice", zipped(map[string][]byte{"model.onnx": good, "labels.txt": []byte("a\na\n")}), 400, []string{"labels.txt"}},
		{"too few labels", zipped(map[string][]byte{"model.onnx": good, "labels.txt": []byte("a\nb\nc\n")}), 400, []string{"labels.txt names 3 classes", "logits is [-1 4]"}},
		{"too many labels for texts", zipped(map[string][]byte{"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": tokenizer(t), "labels.txt": []byte("a\nb\nc\nd\n")}), 400, []string{"labels.txt names 4 classes", "logits is [-1 3]"}},
		{"too few labels for scores that only a run shows", zipped(map[string][]byte{"model.onnx": onnxBytes(t, hideScores(textGraph())), "tokenizer.json": tokenizer(t), "labels.txt": []byte("a\nb\n")}), 400, []string{"labels.txt names 2 classes", "on one text logits is [1 3]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.refused(t, s.do("PUT", "/models/bad", c.body), c.status, c.words...)
			s.refused(t, s.do("GET", "/models/bad", nil), 404)
		})
	}
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	// The server still works.
	s.do("PUT", "/models/m", good).into(t, 201, nil)
	if v := s.answers(); v != "1" {
		t.Errorf("version %s answers", v)
	}
}

func TestBadDatasets(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	x := npy(t, "<f4", []int{2, 3}, make([]float32, 6))
	damaged := mlpData(t, 1, 64, true)
	damaged[len(damaged)/4] ^= 0xff // within an array's bytes
	for _, c := range []struct {
		name  string
		body  []byte
		words []string
	}{
		{"empty", []byte{}, nil}, {"text", []byte("just words\n"), nil}, {"gzip", []byte("\x1f\x8b\x08\x00000000"), nil},
		{"truncated zip", mlpData(t, 1, 4, false)[:200], nil},
		{"zip of neither", zipOf(t, map[string][]byte{"a.csv": []byte("1,2")}), nil},
		{"damaged array", damaged, []string{"damaged"}},
		{"array that is cut off", x[:len(x)-1], []string{"23 bytes", "promises 24"}},
		{"array without rows", npz(t, map[string][]byte{"x": npy(t, "<f4", []int{0, 3}, []float32{})}), []string{"empty", `"x"`}},
		{"array of objects", npy(t, "|O", []int{2}, make([]byte, 16)), []string{"pickled"}},
		{"labels alone", npz(t, map[string][]byte{"label": npy(t, "<i8", []int{2}, make([]int64, 2))}), []string{"labels"}},
		{"labels in floats", npz(t, map[string][]byte{"x": x, "label": npy(t, "<f4", []int{2}, make([]float32, 2))}), []string{"one integer a sample"}},
		{"fewer labels than samples", npz(t, map[string][]byte{"x": x, "label": npy(t, "<i8", []int{1}, make([]int64, 1))}), []string{"1 labels for 2 samples"}},
		{"line that is no JSON", []byte(`{"text":"a"}` + "\n{oops}\n"), []string{"line 2"}},
		{"line without a text", []byte(`{"text":"a"}` + "\n" + `{"txt":"b"}` + "\n"), []string{"line 2", `no "text"`}},
		{"one line without a label", []byte(`{"text":"a","label":1}` + "\n" + `{"text":"b"}` + "\n"), []string{"line 2", "label all lines or none"}},
		{"image that is none", zipOf(t, map[string][]byte{"cat/a.jpg": []byte("\xff\xd8 but no more")}), []string{`"a.jpg"`, "JPEG"}},
		{"image that is cut off", zipOf(t, map[string][]byte{"cat/a.png": picture(t)[:60]}), []string{`"a.png"`, "PNG"}},
		{"classes of files that are not there", zipOf(t, map[string][]byte{"a.png": picture(t), "labels.csv": []byte("file,label\nb.png,cat\n")}), []string{"b.png"}},
		{"images in and out of folders", zipOf(t, map[string][]byte{"a.png": picture(t), "cat/b.png": picture(t)}), []string{"sort all into folders"}},
	} {
		t.Run(c.name, func(t *testing.T) { s.refused(t, s.do("PUT", "/datasets/bad", c.body), 400, c.words...) })
	}
	s.refused(t, s.do("GET", "/datasets/bad", nil), 404)
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	for name, c := range map[string]struct {
		body    []byte
		samples int
		labels  bool
	}{
		"npz": {mlpData(t, 1, 9, true), 9, true}, "npy": {x, 2, false}, "texts": {texts(1, 5), 5, true},
		"images":     {zipOf(t, map[string][]byte{"cat/a.png": picture(t), "dog/b.png": picture(t)}), 2, true},
		"with notes": {npz(t, map[string][]byte{"x": x, "when": npy(t, "<U4", []int{1}, make([]byte, 16))}), 2, false},
	} {
		var d struct {
			Samples int
			Labels  bool
		}
		s.do("PUT", "/datasets/good", c.body).into(t, 201, &d)
		if d.Samples != c.samples || d.Labels != c.labels {
			t.Errorf("%s: %+v", name, d)
		}
	}
	s.refused(t, s.do("PUT", "/datasets/%2e%2e", mlpData(t, 1, 4, false)), 400)
}

// TestBadJobs: what can be seen to be wrong is refused before the job exists,
// with what was expected and what was found.
func TestBadJobs(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	row := func(n, width int) []float32 { return make([]float32, n*width) }
	nan := slices.Repeat([]float32{float32(math.NaN())}, 8*mlpInputs)
	sets := map[string][]byte{
		"wrong-name":  npz(t, map[string][]byte{"pixels": npy(t, "<f4", []int{4, mlpInputs}, row(4, mlpInputs)), "more": npy(t, "<f4", []int{4, 1}, row(4, 1))}),
		"wrong-rank":  npz(t, map[string][]byte{"x": npy(t, "<f4", []int{4, mlpInputs, 1}, row(4, mlpInputs))}),
		"wrong-width": npz(t, map[string][]byte{"x": npy(t, "<f4", []int{4, 5}, row(4, 5))}),
		"wrong-type":  npz(t, map[string][]byte{"x": npy(t, "<i8", []int{4, mlpInputs}, make([]int64, 4*mlpInputs))}),
		"texts":       texts(1, 4),
		"all-nan":     npz(t, map[string][]byte{"x": npy(t, "<f4", []int{8, mlpInputs}, nan)}),
	}
	for name, b := range sets {
		s.do("PUT", "/datasets/"+name, b).into(t, 201, nil)
	}
	s.do("PUT", "/models/quantized", changed(t, func(p *pb.ModelProto) {
		g, one := p.Graph, tensor.From([]float32{0.1})
		g.Initializer = append(g.Initializer, &pb.TensorProto{Name: proto.String("s"), DataType: proto.Int32(1), RawData: one.Data},
			&pb.TensorProto{Name: proto.String("z"), DataType: proto.Int32(int32(tensor.Uint8)), RawData: []byte{0}})
		g.Node = append([]*pb.NodeProto{
			{OpType: proto.String("QuantizeLinear"), Input: []string{"x", "s", "z"}, Output: []string{"xq"}},
			{OpType: proto.String("DequantizeLinear"), Input: []string{"xq", "s", "z"}, Output: []string{"xd"}},
		}, g.Node...)
		g.Node[2].Input[0] = "xd"
	})).into(t, 201, nil)

	job := func(change func(*jobs.Spec)) jobs.Spec {
		spec := longJob()
		change(&spec)
		return spec
	}
	calib := func(name string) jobs.Spec {
		return job(func(s *jobs.Spec) { s.Calibration, s.Evaluation = &jobs.Calibration{Dataset: name}, nil })
	}
	for _, c := range []struct {
		name   string
		body   any
		status int
		words  []string
	}{
		{"no body", nil, 400, nil},
		{"no JSON", "scheme=int8", 400, nil},
		{"unknown field", `{"model":"m","scheme":"int8","sheme":1}`, 400, []string{"sheme"}},
		{"wrong type", `{"model":"m","scheme":"int8","samples":"many"}`, 400, []string{"samples"}},
		{"unknown model", job(func(s *jobs.Spec) { s.Model = "nobody" }), 404, []string{"nobody"}},
		{"unknown version", job(func(s *jobs.Spec) { s.Version = "7" }), 404, []string{"7"}},
		{"unknown data", calib("nobody"), 404, []string{"nobody"}},
		{"unknown scheme", job(func(s *jobs.Spec) { s.Scheme = "int3" }), 400, []string{"int3"}},
		{"target of a later release", job(func(s *jobs.Spec) { s.Target = "tensorrt" }), 400, []string{"tensorrt", "qdq"}},
		{"no calibration", job(func(s *jobs.Spec) { s.Calibration = nil }), 400, []string{"calibration", "int8-dynamic"}},
		{"dynamic and portable", job(func(s *jobs.Spec) { s.Scheme, s.Target = "int8-dynamic", "qdq" }), 400, []string{"target"}},
		{"quantized already", job(func(s *jobs.Spec) { s.Model = "quantized" }), 400, []string{"already quantized"}},
		{"exclude nobody", job(func(s *jobs.Spec) { s.Exclude = []string{"/h2", "/h7"} }), 400, []string{`exclude "/h7" names no operator`, `"/h1" or "/h2"`}},
		{"exclude in another case", job(func(s *jobs.Spec) { s.Exclude = []string{"matmul"} }), 400, []string{`did you mean "MatMul"`}},
		{"exclude a part of a name", job(func(s *jobs.Spec) { s.Exclude, s.Scheme = []string{"logit"}, "fp16" }), 400, []string{`did you mean "/logits"`}},
		{"operators nobody", job(func(s *jobs.Spec) { s.Operators = []string{"/h7=fp16"} }), 400, []string{`operators: "/h7" names no operator`, `"/h1" or "/h2"`}},
		{"operators without a precision", job(func(s *jobs.Spec) { s.Operators = []string{"MatMul"} }), 400, []string{"operators", "Gather=int4"}},
		{"operators in an unknown precision", job(func(s *jobs.Spec) { s.Operators = []string{"MatMul=fp8"} }), 400, []string{`"fp8"`, "int8-dynamic"}},
		{"equalize without calibration", job(func(s *jobs.Spec) { s.Scheme, s.Calibration, s.Equalize = "int8-dynamic", nil, true }), 400, []string{"equalization", `"calibration": {"dataset": NAME}`}},
		{"gptq without calibration", job(func(s *jobs.Spec) { s.Scheme, s.Calibration, s.Weights = "int4", nil, "gptq" }), 400, []string{"gptq", `"calibration": {"dataset": NAME}`}},
		{"rules that leave something, without calibration", job(func(s *jobs.Spec) { s.Calibration, s.Operators = nil, []string{"/h1=fp32"} }), 400, []string{"calibration data", `"calibration": {"dataset": NAME}`}},
		{"a search of embeddings alone", job(func(s *jobs.Spec) {
			s.Scheme, s.Calibration, s.Operators = schemeSearch, nil, []string{"*=fp32", "@embeddings=int4"}
		}), 400, []string{"calibration"}},
		{"a negative ceiling", job(func(s *jobs.Spec) { s.MaxMemoryMB = -1 }), 400, []string{"max_memory_mb", "no ceiling"}},
		{"a ceiling below the program", job(func(s *jobs.Spec) { s.MaxMemoryMB = 1 }), 400, []string{`"max_memory_mb" is 1`, "at least 135"}},
		{"wrong name", calib("wrong-name"), 400, []string{`"x"`, "pixels"}},
		{"wrong rank", calib("wrong-rank"), 400, []string{"x"}},
		{"wrong width", calib("wrong-width"), 400, []string{"5", fmt.Sprint(mlpInputs)}},
		{"wrong type", calib("wrong-type"), 400, []string{"INT64", "FP32"}},
		{"texts for a model of numbers", calib("texts"), 400, []string{"text"}},
	} {
		t.Run(c.name, func(t *testing.T) { s.refused(t, s.do("POST", "/quantize", c.body), c.status, c.words...) })
	}
	var list struct{ Jobs []jobs.Status }
	s.do("GET", "/quantize", nil).into(t, 200, &list)
	if len(list.Jobs) != 0 {
		t.Errorf("refused requests made %d jobs", len(list.Jobs))
	}
	// What only reading all the data shows makes the job fail, with a reason.
	st := s.finished(s.submit(calib("all-nan")))
	if st.Status != jobs.Failed || st.Error == "" {
		t.Errorf("job on NaN: %+v", st)
	}
	s.clean(t, st.Error)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := start(t, "", func(c *Config) { c.MaxBody = 64 << 10 })
	s.seed()
	s.do("PUT", "/models/text", textModel(t)).into(t, 201, nil)
	const infer = "/v2/models/m/infer"
	input := func(name, datatype string, shape any, data any) map[string]any {
		return map[string]any{"inputs": []any{map[string]any{"name": name, "datatype": datatype, "shape": shape, "data": data}}}
	}
	row := make([]float32, mlpInputs)
	for _, c := range []struct {
		name, method, path string
		body               any
		header             []string
		status             int
		words              []string
	}{
		{"unknown model", "POST", "/v2/models/nobody/infer", input("x", "FP32", []int{1, mlpInputs}, row), nil, 404, []string{"nobody"}},
		{"unknown version", "POST", "/v2/models/m/versions/9/infer", input("x", "FP32", []int{1, mlpInputs}, row), nil, 404, []string{"9"}},
		{"wrong name", "POST", infer, input("y", "FP32", []int{1, mlpInputs}, row), nil, 400, []string{`"x" is missing`}},
		{"wrong type", "POST", infer, input("x", "INT64", []int{1, mlpInputs}, row), nil, 400, []string{"FP32"}},
		{"wrong width", "POST", infer, input("x", "FP32", []int{1, 3}, row[:3]), nil, 400, []string{"x"}},
		{"shape and data disagree", "POST", infer, input("x", "FP32", []int{2, mlpInputs}, row), nil, 400, []string{"[2 32]"}},
		{"shape overflows", "POST", infer, input("x", "FP32", []int64{1 << 62, 1 << 62}, row), nil, 400, nil},
		{"deep JSON", "POST", infer, strings.Repeat("[", 10_000), nil, 400, nil},
		{"header length past the body", "POST", infer, []byte("{}"), []string{"Inference-Header-Content-Length", "99"}, 400, nil},
		{"over the limit", "POST", infer, bytes.Repeat([]byte{' '}, 65<<10), nil, 413, []string{"limit"}},
		{"wrong method", "PUT", infer, nil, nil, 405, nil},
		{"no such route", "GET", "/v3/models", nil, nil, 404, nil},
		{"name that climbs", "GET", "/v2/models/%2e%2e%2f%2e%2e", nil, nil, 404, nil},
		{"classify without tokenizer", "POST", "/v1/classify", map[string]any{"model": "m", "text": "a"}, nil, 400, []string{"tokenizer.json"}},
		{"classify nothing", "POST", "/v1/classify", map[string]any{"model": "text", "texts": []string{}}, nil, 400, []string{"text"}},
		{"classify too many", "POST", "/v1/classify", map[string]any{"model": "text", "texts": slices.Repeat([]string{"a"}, 257)}, nil, 400, []string{"256"}},
		{"unknown job", "GET", "/quantize/nobody", nil, nil, 404, nil},
		{"name with dots", "GET", "/v2/models/a..b", nil, nil, 400, []string{"name"}},
		{"job that climbs", "GET", "/quantize/..%2f..%2flock/report", nil, nil, 404, nil},
		{"admin from a web page", "GET", "/models", nil, []string{"Origin", "https://example.com"}, 403, nil},
		{"roll back without history", "POST", "/models/m/rollback", nil, nil, 404, nil},
	} {
		t.Run(c.name, func(t *testing.T) { s.refused(t, s.do(c.method, c.path, c.body, c.header...), c.status, c.words...) })
	}
	if v := s.answers(); v != "1" {
		t.Errorf("version %s answers", v)
	}
}

// exposed serves without keys on an address that is not loopback.
func exposed(t *testing.T) *server {
	t.Helper()
	needEngine(t)
	cfg := Defaults()
	cfg.DataDir = t.TempDir()
	a, err := New(t.Context(), cfg, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{client: client{t, "http://127.0.0.1:" + port, ""}, App: a}
	s.waitReady()
	return s
}

// A tokenizer of another kind is refused when it comes, by its name.
func TestForeignTokenizers(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	for kind, model := range map[string]string{
		"BPE":       `{"type":"BPE","vocab":{"a":0},"merges":[]}`,
		"Unigram":   `{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.0]]}`,
		"WordLevel": `{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}`,
	} {
		a := s.do("PUT", "/models/text", zipOf(t, map[string][]byte{"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": []byte(`{"version":"1.0","model":` + model + `}`)}))
		if a.status != 400 || !strings.Contains(string(a.body), kind) || !strings.Contains(string(a.body), "WordPiece") || !strings.Contains(string(a.body), "token ids") {
			t.Errorf("%s: %v", kind, a)
		}
	}
	s.do("GET", "/v2/models/text", nil).into(t, 404, nil)
}
