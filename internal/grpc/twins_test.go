package grpc

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The hostile cases of package http (TestBadInput there and what follows it), as
// they can be said in this protocol.

// askWire sends bytes as the message of a call and returns its trailer.
func askWire(t *testing.T, addr, method string, msg []byte, more ...string) map[string]string {
	t.Helper()
	w := dialWire(t, addr)
	defer w.Close()
	w.call(t, 1, method, false, more...)
	w.send(t, 1, true, msg)
	return w.trailer(t, 1)
}

func code(c codes.Code) string { return fmt.Sprint(uint32(c)) }

func TestBadTensors(t *testing.T) {
	kinds := []tensor.DType{tensor.Float32, tensor.Int64, tensor.Int8, tensor.Bool, tensor.String, tensor.Float16}
	addr, m := serve(t, echoes(kinds...), nil, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	good := func() *pb.ModelInferRequest {
		r := &pb.ModelInferRequest{ModelName: "m", RawInputContents: [][]byte{make([]byte, 8), make([]byte, 16), make([]byte, 2), {0, 1}, {1, 0, 0, 0, 'a', 0, 0, 0, 0}, make([]byte, 4)}}
		for _, k := range kinds {
			r.Inputs = append(r.Inputs, input(k.String(), nil, 1, 2))
		}
		return r
	}
	const fp32, bytes_ = 0, 4
	cases := map[string]func(*pb.ModelInferRequest){}
	for name, shape := range map[string][]int64{
		"2^63-1": {math.MaxInt64}, "-2^63": {math.MinInt64, 2}, "negative": {-1, 2}, "2^32 squared": {1 << 32, 1 << 32}, "2^62 four times": {1 << 62, 4}, "zero and negative": {0, -1},
		"a scalar": {}, "another rank": {1, 1, 2}, "another width": {2, 1}, "more than there is": {2, 2}, "nothing of it": {0, 2}, "300,000 dimensions": slices.Repeat([]int64{1}, 300_000),
	} { // items 1 and 2
		cases["shape "+name] = func(r *pb.ModelInferRequest) { r.Inputs[fp32].Shape = shape }
	}
	for name, raw := range map[string][]byte{ // item 6
		"past the end": {2, 0, 0, 0, 'a', 0, 0, 0, 0}, "2^32-1": {0xff, 0xff, 0xff, 0xff, 'a', 0, 0, 0, 0}, "2^31": {0, 0, 0, 0x80, 'a', 0, 0, 0, 0}, "one string": {1, 0, 0, 0, 'a'},
		"three strings": {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "half a length": {1, 0, 0, 0, 'a', 0, 0}, "none": {},
	} {
		cases["strings "+name] = func(r *pb.ModelInferRequest) { r.RawInputContents[bytes_] = raw }
	}
	typed := &pb.InferTensorContents{
		BoolContents: []bool{true, false}, IntContents: []int32{1, 2}, Int64Contents: []int64{1, 2}, UintContents: []uint32{1, 2}, Uint64Contents: []uint64{1, 2},
		Fp32Contents: []float32{1, 2}, Fp64Contents: []float64{1, 2}, BytesContents: [][]byte{{1}, {2}},
	}
	for i, k := range kinds { // item 3: numbers in the fields of other kinds
		cases["all fields for "+k.String()] = func(r *pb.ModelInferRequest) {
			r.Inputs = r.Inputs[i : i+1]
			r.RawInputContents = nil
			r.Inputs[0].Contents = typed
		}
	}
	for name, change := range map[string]func(*pb.ModelInferRequest){
		"no raw contents":      func(r *pb.ModelInferRequest) { r.RawInputContents = nil }, // items 4 and 5
		"fewer raw contents":   func(r *pb.ModelInferRequest) { r.RawInputContents = r.RawInputContents[1:] },
		"more raw contents":    func(r *pb.ModelInferRequest) { r.RawInputContents = append(r.RawInputContents, nil) },
		"raw too short":        func(r *pb.ModelInferRequest) { r.RawInputContents[fp32] = make([]byte, 7) },
		"raw too long":         func(r *pb.ModelInferRequest) { r.RawInputContents[fp32] = make([]byte, 9) },
		"raw of its neighbour": func(r *pb.ModelInferRequest) { slices.Reverse(r.RawInputContents) },
		"a boolean 2":          func(r *pb.ModelInferRequest) { r.RawInputContents[3] = []byte{2, 0} },
		"no name":              func(r *pb.ModelInferRequest) { r.Inputs[0].Name = "" },
		"a name of 10 kB":      func(r *pb.ModelInferRequest) { r.Inputs[0].Name = strings.Repeat("a", 10_000) },
		"a name with NUL":      func(r *pb.ModelInferRequest) { r.Inputs[0].Name = "FP32\x00" },
		"no type":              func(r *pb.ModelInferRequest) { r.Inputs[0].Datatype = "" },
		"a type of 10 kB":      func(r *pb.ModelInferRequest) { r.Inputs[0].Datatype = strings.Repeat("FP32", 2500) },
		"a nil input":          func(r *pb.ModelInferRequest) { r.Inputs[0] = nil },
		"300 inputs":           func(r *pb.ModelInferRequest) { r.Inputs = slices.Repeat(r.Inputs[:1], 300) },
		"300 outputs": func(r *pb.ModelInferRequest) {
			r.Outputs = slices.Repeat([]*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "FP32_out"}}, 300)
		},
		"an output twice": func(r *pb.ModelInferRequest) {
			r.Outputs = []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "FP32_out"}, {Name: "FP32_out"}}
		},
		"an unknown output": func(r *pb.ModelInferRequest) {
			r.Outputs = []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "/etc/passwd"}}
		},
		"a timeout of centuries": func(r *pb.ModelInferRequest) {
			r.Parameters = map[string]*pb.InferParameter{"timeout": {ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: math.MaxInt64}}}
		},
		"a timeout of 2^64": func(r *pb.ModelInferRequest) {
			r.Parameters = map[string]*pb.InferParameter{"timeout": {ParameterChoice: &pb.InferParameter_Uint64Param{Uint64Param: math.MaxUint64}}}
		},
	} {
		cases[name] = change
	}
	for name, change := range cases {
		r := good()
		change(r)
		_, err := c.ModelInfer(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		clean(t, name, err)
	}
	// Numbers that are none are numbers.
	r := good()
	r.RawInputContents[fp32] = []byte{0, 0, 0xc0, 0x7f, 0, 0, 0x80, 0xff}
	if ans, err := c.ModelInfer(t.Context(), r); err != nil || !bytes.Equal(ans.RawOutputContents[fp32], r.RawInputContents[fp32]) {
		t.Errorf("NaN and -Inf: %v, %v", ans, err)
	}
	heldIs(t, m.server, 0)
}

// clean checks that an error has no path, stack or line break of the server.
func clean(t *testing.T, name string, err error) {
	t.Helper()
	text := status.Convert(err).Message()
	for _, bad := range []string{"goroutine", ".go:", "/root", "/home", "/tmp", "\n"} {
		if strings.Contains(text, bad) {
			t.Errorf("%s: %q has %q", name, text, bad)
		}
	}
	if len(text) > 1000 {
		t.Errorf("%s: an error of %d bytes", name, len(text))
	}
}

// Messages that say the same in ways that no client does.
func TestBadMessages(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{})
	good, err := proto.Marshal(right())
	if err != nil {
		t.Fatal(err)
	}
	nested := bytes.Repeat(protowire.AppendTag(nil, 1000, protowire.StartGroupType), 100_000)
	for name, x := range map[string]struct {
		add  []byte
		want codes.Code
	}{
		"a field of the future":   {protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, 1000)), codes.OK},
		"100,000 open groups":     {nested, codes.Internal},
		"half a tag":              {[]byte{0x80}, codes.Internal},
		"field 0":                 {[]byte{0x02, 0x00}, codes.Internal},
		"a length past the end":   {protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), 1<<40), codes.Internal},
		"a length of 2^64-1":      {protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), math.MaxUint64), codes.Internal},
		"a varint without end":    {bytes.Repeat([]byte{0xff}, 20), codes.Internal},
		"a name that is no UTF-8": {protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "\xff\xfe"), codes.Internal},
		"a name as a number":      {protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7), codes.OK}, // an unknown field, by protobuf's rules
		"the last name counts":    {protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "x"), codes.NotFound},
		"100,000 empty inputs":    {bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), nil), 100_000), codes.InvalidArgument},
		"100,000 empty contents":  {bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), nil), 100_000), codes.InvalidArgument},
	} {
		msg := append(slices.Clone(good), x.add...)
		last := map[string]string{}
		if len(msg) < 60_000 {
			last = askWire(t, addr, inferMethod, message(0, uint32(len(msg)), msg))
		} else { // what the first window does not hold
			r := &pb.ModelInferRequest{}
			if err := (proto.UnmarshalOptions{}).Unmarshal(msg, r); err != nil {
				last = askWire(t, addr, inferMethod, message(0, 60_000, msg[:60_000]))
			} else {
				_, err := dial(t, addr, insecure.NewCredentials()).ModelInfer(t.Context(), r)
				last["grpc-status"], last["grpc-message"] = code(status.Code(err)), status.Convert(err).Message()
			}
		}
		if last["grpc-status"] != code(x.want) || strings.Contains(last["grpc-message"], ".go:") {
			t.Errorf("%s: %.200v, want %v", name, last, x.want)
		}
	}
	// Configuration is JSON within a message.
	c := dial(t, addr, insecure.NewCredentials())
	for name, config := range map[string]string{
		"100,000 deep": strings.Repeat("[", 100_000), "deep objects": strings.Repeat(`{"a":`, 50_000), "not JSON": "max_batch_size: 8", "twice": `{"name":"m"}{"name":"m"}`, "a number": "1e400", "null bytes": "\x00\x00",
		"a huge version": `{"version_policy":{"specific":{"versions":[9223372036854775808]}}}`, "a path": `{"name":"../../m"}`,
	} {
		_, err := c.RepositoryModelLoad(t.Context(), &pb.RepositoryModelLoadRequest{ModelName: "m", Parameters: map[string]*pb.ModelRepositoryParameter{
			"config": {ParameterChoice: &pb.ModelRepositoryParameter_StringParam{StringParam: config}}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("configuration %s: %v", name, err)
		}
		clean(t, name, err)
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
	heldIs(t, m.server, 0)
}

// Compressed messages that are cut off, compressed twice, or not what they say.
func TestBadCodings(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	good, err := proto.Marshal(right())
	if err != nil {
		t.Fatal(err)
	}
	gz := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		_ = w.Close()
		return out.Bytes()
	}
	for _, x := range []struct {
		name, coding string
		body         []byte
		want         codes.Code
	}{
		{"right", "gzip", gz(good), codes.OK}, {"twice", "gzip", gz(gz(good)), codes.Internal}, {"cut off", "gzip", gz(good)[:30], codes.Internal}, {"without its sum", "gzip", gz(good)[:len(gz(good))-4], codes.Internal},
		{"header only", "gzip", gz(good)[:10], codes.Internal}, {"one byte", "gzip", []byte{0x1f}, codes.Internal}, {"empty", "gzip", nil, codes.Internal}, {"of nothing", "gzip", gz(nil), codes.NotFound},
		{"damaged", "gzip", append(gz(good)[:20], bytes.Repeat([]byte{0xff}, 40)...), codes.Internal}, {"two codings", "gzip,gzip", gz(gz(good)), codes.Unimplemented}, {"deflate", "deflate", gz(good), codes.Unimplemented},
		{"identity", "identity", good, codes.Internal}, // the flag says that it is compressed
	} {
		last := askWire(t, addr, inferMethod, message(1, uint32(len(x.body)), x.body), "grpc-encoding", x.coding)
		if last["grpc-status"] != code(x.want) {
			t.Errorf("%s: %v, want %v", x.name, last, x.want)
		}
	}
}

// A message in 60,000 frames of a byte, among as many empty ones, is one message;
// empty frames alone end with their time.
func TestTinyFrames(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{ReceiveTimeout: 20 * time.Second})
	body := rows(t, 7500)
	w := dialWire(t, addr)
	go func() {
		w.call(t, 1, inferMethod, false)
		for i := range body {
			if w.WriteData(1, false, nil) != nil || w.WriteData(1, i == len(body)-1, body[i:i+1]) != nil {
				return
			}
		}
	}()
	if last := w.trailer(t, 1); last["grpc-status"] != "0" {
		t.Errorf("%v", last)
	}
	heldIs(t, m.server, 0)
	short, m := serve(t, echoes(tensor.Float32), nil, Options{ReceiveTimeout: 200 * time.Millisecond})
	before := heap()
	w = dialWire(t, short)
	w.call(t, 1, inferMethod, false)
	go func() {
		for w.WriteData(1, false, nil) == nil {
		}
	}()
	if got := w.result(1); got == "0" {
		t.Error("nothing was answered")
	}
	w.Close()
	heldIs(t, m.server, 0)
	if after := heap(); after > before+16<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	if _, err := dial(t, short, insecure.NewCredentials()).ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

// Names that mean something to a file system, or look like another, are refused
// or not found by every call that takes one.
func TestBadNames(t *testing.T) {
	c, m := start(t, echoes(tensor.Float32), nil)
	ctx := t.Context()
	for _, name := range []string{"..", ".", "%2e%2e", "a/b", "a\\b", "a\x00b", "\x00", "/m", "m/", "m\n", " m", "M", strings.Repeat("a", 10_000), "m\u043edel", "\uff4d", "m\u200b", "-x", ".x", "a..b", "../../etc/passwd", "m/versions/1"} {
		_, inferred := c.ModelInfer(ctx, &pb.ModelInferRequest{ModelName: name, Inputs: right().Inputs, RawInputContents: right().RawInputContents})
		_, version := c.ModelInfer(ctx, &pb.ModelInferRequest{ModelName: "m", ModelVersion: name, Inputs: right().Inputs, RawInputContents: right().RawInputContents})
		_, described := c.ModelMetadata(ctx, &pb.ModelMetadataRequest{Name: name})
		_, configured := c.ModelConfig(ctx, &pb.ModelConfigRequest{Name: name})
		_, counted := c.ModelStatistics(ctx, &pb.ModelStatisticsRequest{Name: name})
		_, loaded := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: name})
		_, unloaded := c.RepositoryModelUnload(ctx, &pb.RepositoryModelUnloadRequest{ModelName: name})
		_, traced := c.TraceSetting(ctx, &pb.TraceSettingRequest{ModelName: name, Settings: map[string]*pb.TraceSettingRequest_SettingValue{"trace_rate": {Value: []string{"1"}}}})
		_, filed := c.TraceSetting(ctx, &pb.TraceSettingRequest{Settings: map[string]*pb.TraceSettingRequest_SettingValue{"trace_file": {Value: []string{"/" + name}}}})
		for what, err := range map[string]error{"infer": inferred, "version": version, "metadata": described, "config": configured, "statistics": counted, "load": loaded, "unload": unloaded, "trace": traced, "trace file": filed} {
			if code := status.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
				t.Errorf("%s of %.40q: %v", what, name, err)
			}
			clean(t, what, err)
		}
		if r, err := c.ModelReady(ctx, &pb.ModelReadyRequest{Name: name}); r.GetReady() || err != nil && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%.40q is ready: %v, %v", name, r, err)
		}
	}
	if m.loaded != 0 {
		t.Errorf("something was loaded %d times", m.loaded)
	}
	for _, file := range []string{"file:1/../x", "file:../model.onnx", "file:/etc/passwd", "file:1/a/../../x", "file:", "file:1/", "file:-1/model.onnx", "file:99999999999999999999/model.onnx", "file:1/m\x00", "other"} {
		_, err := c.RepositoryModelLoad(ctx, &pb.RepositoryModelLoadRequest{ModelName: "m", Parameters: map[string]*pb.ModelRepositoryParameter{file: {ParameterChoice: &pb.ModelRepositoryParameter_BytesParam{BytesParam: []byte("x")}}}})
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.Unimplemented { // this server has no room for files
			t.Errorf("%q: %v", file, err)
		}
	}
}

// Other spellings of the calls of administrators are no calls, and a key that is
// sent in another way is none.
func TestOtherSpellings(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), func(c *fhttp.Config) { c.Keys = bothKeys(t) }, Options{})
	req, err := proto.Marshal(&pb.RepositoryModelUnloadRequest{ModelName: "m"})
	if err != nil {
		t.Fatal(err)
	}
	const unload = pb.GRPCInferenceService_RepositoryModelUnload_FullMethodName
	for _, path := range []string{strings.ToLower(unload), strings.ToUpper(unload), "/" + unload, unload + "/", unload + "?x=1", unload + "%20", strings.Replace(unload, "/", "/./", 1), strings.Replace(unload, "Repository", "%52epository", 1), "/x" + unload, strings.TrimPrefix(unload, "/"), "http://localhost" + unload, unload + "\x00", unload + ";a"} {
		w := dialWire(t, addr)
		w.call(t, 1, path, false, "x-api-key", inferKey)
		_ = w.WriteData(1, true, message(0, uint32(len(req)), req))
		if got := w.result(1); got == "0" {
			t.Errorf("%q was answered", path)
		}
		w.Close()
	}
	for _, fields := range [][]string{
		{"authorization", adminKey}, {"authorization", "Basic " + adminKey}, {"authorization", "Bearer  "}, {"authorization", "Bearer " + adminKey + "x"}, {"authorization", "Bearer " + adminKey[:20]},
		{"x-api-key", inferKey, "x-api-key", adminKey}, {"x-api-key", inferKey, "authorization", "Bearer " + adminKey}, {"authorization-bin", "QWRtaW4"}, {"cookie", "x-api-key=" + adminKey}, {"x-api-key", strings.Repeat("k", 10_000)},
	} {
		last := askWire(t, addr, unload, message(0, uint32(len(req)), req), fields...)
		if got := last["grpc-status"]; got != code(codes.Unauthenticated) && got != code(codes.PermissionDenied) && got != code(codes.ResourceExhausted) {
			t.Errorf("%.60q: %v", fields, last)
		}
	}
	if m.loaded != 0 {
		t.Errorf("it was unloaded %d times", -m.loaded)
	}
}

// A client that leaves while its request waits for a run with others does not take
// theirs with it, and a deadline that passes meanwhile is its own.
func TestClientGoneMidBatch(t *testing.T) {
	gate := make(chan struct{})
	held := echoes(tensor.Float32)
	held.Gate = gate
	addr, m := serve(t, held, nil, Options{})
	wait, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	c := dial(t, addr, insecure.NewCredentials())
	first := make(chan error, 1)
	go func() { _, err := c.ModelInfer(wait, right()); first <- err }()
	if err := m.engine.WaitRunning(wait, 1); err != nil {
		t.Fatal(err)
	}
	stayed, left := make(chan error, 4), make(chan error, 4)
	gone, leave := context.WithCancel(wait)
	for range 4 {
		go func() { _, err := c.ModelInfer(wait, right()); stayed <- err }()
		go func() { _, err := c.ModelInfer(gone, right()); left <- err }()
	}
	soon, cancel := context.WithTimeout(wait, 50*time.Millisecond)
	defer cancel()
	if _, err := c.ModelInfer(soon, right()); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("past its deadline: %v", err)
	}
	heldIs(t, m.server, 9*int64(proto.Size(right()))) // all wait
	leave()
	for range 4 {
		if err := <-left; status.Code(err) != codes.Canceled {
			t.Errorf("one that left: %v", err)
		}
	}
	heldIs(t, m.server, 5*int64(proto.Size(right())))
	close(gate)
	for range 4 {
		if err := <-stayed; err != nil {
			t.Errorf("one that stayed: %v", err)
		}
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// Streams that are opened and reset without end, settings and pings in a flood:
// the connection is closed or told to slow down, others are answered.
func TestFloods(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{})
	before := heap()
	for _, flood := range []func(w *wire, i uint32) error{
		func(w *wire, i uint32) error { // CVE-2023-44487
			w.call(t, 2*i+1, inferMethod, false)
			return w.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		},
		func(w *wire, i uint32) error {
			return w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i})
		}, // CVE-2019-9515
		func(w *wire, i uint32) error { return w.WritePing(false, [8]byte{byte(i)}) }, // CVE-2019-9512
		func(w *wire, i uint32) error { return w.WriteWindowUpdate(0, 1) },
		func(w *wire, i uint32) error { return w.WritePriority(2*i+1, http2.PriorityParam{Weight: 1}) },
	} {
		w := dialWire(t, addr)
		for i := range uint32(10_000) {
			if flood(w, i) != nil {
				break
			}
		}
		w.Close()
	}
	heldIs(t, m.server, 0)
	if after := heap(); after > before+16<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	if _, err := dial(t, addr, insecure.NewCredentials()).ModelInfer(metadata.AppendToOutgoingContext(t.Context(), "x-note", "fine"), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}
