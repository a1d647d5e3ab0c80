package app

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	onnx "github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// nested wraps the bytes of a message in n levels of the fields, the last of
// them outermost.
func nested(n int, inner []byte, fields ...protowire.Number) []byte {
	for range n {
		for _, f := range fields {
			inner = protowire.AppendBytes(protowire.AppendTag(nil, f, protowire.BytesType), inner)
		}
	}
	return inner
}

// quantizing is x -> QuantizeLinear -> DequantizeLinear -> y with these scales.
func quantizing(t *testing.T, q, dq float32) []byte {
	t.Helper()
	g := &graph.Graph{Name: "quantizing", Inputs: []*graph.Value{value("x", tensor.Float32, "batch", 4)}, Outputs: []*graph.Value{value("y", tensor.Float32, "batch", 4)}}
	g.SetInit("sq", tensor.From([]float32{q}))
	g.SetInit("sd", tensor.From([]float32{dq}))
	g.Nodes = append(g.Nodes, graph.NewNode("", "QuantizeLinear", "q", []string{"x", "sq"}, []string{"c"}), graph.NewNode("", "DequantizeLinear", "d", []string{"c", "sd"}, []string{"y"}))
	return onnxBytes(t, model(g))
}

// calling is a model of one call of a function of its own, whose body is nodes.
func calling(t *testing.T, functions map[string][]string) []byte {
	return changed(t, func(p *onnx.ModelProto) {
		call := func(name string) *onnx.NodeProto {
			return &onnx.NodeProto{Domain: proto.String("own"), OpType: proto.String(name), Input: []string{"a"}, Output: []string{"b"}}
		}
		for name, body := range functions {
			f := &onnx.FunctionProto{Domain: proto.String("own"), Name: proto.String(name), Input: []string{"a"}, Output: []string{"b"}, OpsetImport: p.OpsetImport}
			for _, b := range body {
				f.Node = append(f.Node, call(b))
			}
			p.Functions = append(p.Functions, f)
		}
		first := call("f")
		first.Input[0], first.Output[0] = p.Graph.Node[1].Input[0], p.Graph.Node[1].Output[0]
		p.Graph.Node[1] = first
		p.OpsetImport = append(p.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String("own"), Version: proto.Int64(1)})
	})
}

// hostile are the files of a model, and words of why it is refused.
type hostile struct {
	files map[string][]byte
	words []string
}

// hostileFiles are models that are refused by their files alone: cases 11 to 13 of docs/testing.md and what lies beside a graph.
func hostileFiles(t *testing.T) map[string]hostile {
	type files = map[string][]byte
	out := map[string]hostile{}
	add := func(name string, f files, words ...string) { out[name] = hostile{f, words} }
	alone := func(name string, b []byte, words ...string) { add(name, files{"model.onnx": b}, words...) }
	good := mlp(t)
	weight := func(f func(*onnx.TensorProto)) []byte {
		return changed(t, func(p *onnx.ModelProto) { f(p.Graph.Initializer[0]) })
	}

	alone("empty", []byte{}, "model.onnx")
	alone("text", []byte("this is not a model\n"), "model.onnx")
	alone("an image", picture(t), "model.onnx")
	alone("a zip in a file", zipOf(t, files{"model.onnx": good}), "model.onnx")
	for _, n := range []int{1, 3, 4, 2, 16} { // cut off in the header, in a node, in a weight
		alone(fmt.Sprintf("cut off at 1/%d", n), good[:len(good)/n-1], "model.onnx")
	}
	for i, at := range []int{0, 5, len(good) / 2} {
		b := bytes.Clone(good)
		copy(b[at:], bytes.Repeat([]byte{0xff}, 12))
		if at == len(good)/2 { // within a weight every byte is a number
			b[at], b = 0, b[:len(b)-1]
		}
		alone(fmt.Sprint("damaged ", i), b, "model.onnx")
	}
	alone("no graph", changed(t, func(p *onnx.ModelProto) { p.Graph = nil }), "graph")
	alone("no outputs", changed(t, func(p *onnx.ModelProto) { p.Graph.Output = nil }), "output")
	alone("an output of nothing", changed(t, func(p *onnx.ModelProto) { p.Graph.Output[0].Name = proto.String("nobody") }), "nobody")
	alone("a cycle", changed(t, func(p *onnx.ModelProto) { p.Graph.Node[0].Input[0] = "h2" }), "h2")
	alone("a node that reads itself", changed(t, func(p *onnx.ModelProto) { p.Graph.Node[2].Input[0] = p.Graph.Node[2].Output[0] }), "cycle")
	alone("a value made twice", changed(t, func(p *onnx.ModelProto) { p.Graph.Node[2].Output[0] = "h1" }), "h1")
	alone("a missing weight", changed(t, func(p *onnx.ModelProto) { p.Graph.Initializer = p.Graph.Initializer[1:] }), "w1")
	alone("an unknown operator", changed(t, func(p *onnx.ModelProto) { p.Graph.Node[1].OpType = proto.String("Frobnicate") }), "Frobnicate")
	alone("an unknown domain", changed(t, func(p *onnx.ModelProto) {
		p.Graph.Node[1].Domain = proto.String("nobody.knows")
		p.OpsetImport = append(p.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String("nobody.knows"), Version: proto.Int64(1)})
	}), "nobody.knows")
	alone("a domain that is not imported", changed(t, func(p *onnx.ModelProto) { p.Graph.Node[1].Domain = proto.String("com.microsoft") }), "com.microsoft")
	alone("an axis out of range", changed(t, func(p *onnx.ModelProto) {
		p.Graph.Node[1].OpType = proto.String("Softmax")
		p.Graph.Node[1].Attribute = []*onnx.AttributeProto{{Name: proto.String("axis"), Type: onnx.AttributeProto_INT.Enum(), I: proto.Int64(7)}}
	}), "model.onnx")
	alone("a function that calls itself", calling(t, map[string][]string{"f": {"f"}}), "calls itself")
	alone("functions in a circle", calling(t, map[string][]string{"f": {"g"}, "g": {"f"}}), "calls itself")
	laughs := map[string][]string{"f": {"f0", "f0"}, "f40": {}}
	for i := range 40 {
		next := fmt.Sprint("f", i+1)
		laughs[fmt.Sprint("f", i)] = []string{next, next}
	}
	alone("functions of a billion nodes", calling(t, laughs), "more than")
	alone("subgraphs in subgraphs", nested(1, nested(200, nil, 6, 5, 1), 7), "model.onnx") // node { attribute { g } }
	alone("a graph of empty nodes", nested(1, bytes.Repeat([]byte{0x0a, 0}, 4<<20), 7), "model.onnx")
	alone("a tensor larger than memory", onnxBytes(t, hugeGraph()), "huge")
	alone("scale 0", quantizing(t, 0, 1), "scale")
	alone("scale NaN", quantizing(t, float32(math.NaN()), 1), "scale")
	alone("scale infinite", quantizing(t, 1, float32(math.Inf(1))), "scale")
	alone("scale negative", quantizing(t, -1, 1), "scale")

	for name, dims := range map[string][]int64{
		"2^62 four times": {1 << 62, 4}, "2^63-1": {math.MaxInt64}, "negative": {-1, mlpHidden}, "-2^63": {math.MinInt64, mlpHidden}, "2^32 squared": {1 << 32, 1 << 32}, "more than there is": {mlpInputs + 1, mlpHidden},
		"less than there is": {mlpInputs - 1, mlpHidden}, "100,000 dimensions": append(slices.Repeat([]int64{1}, 100_000), mlpInputs, mlpHidden),
	} {
		alone("a weight of dimensions "+name, weight(func(w *onnx.TensorProto) { w.Dims = dims }), "w1")
	}
	alone("a weight of half its bytes", weight(func(w *onnx.TensorProto) { w.RawData = w.RawData[:len(w.RawData)/2] }), "w1")
	alone("a weight of no bytes", weight(func(w *onnx.TensorProto) { w.RawData = nil }), "w1")
	alone("a weight of an unknown type", weight(func(w *onnx.TensorProto) { w.DataType = proto.Int32(99) }), "w1")
	size := mlpInputs * mlpHidden * 4
	for name, entries := range map[string][]string{
		"absolute": {"location", "/etc/passwd"}, "above": {"location", "../../secret"}, "above from within": {"location", "a/../../secret"}, "in its folder by another way": {"location", "a/../w.bin/../../w"}, "a folder": {"location", "."}, "backslashes": {"location", `..\..\secret`}, "NUL": {"location", "w.bin\x00"},
		"missing": {"location", "nothing.bin"}, "no location": {"offset", "0"}, "past the end": {"location", "w.bin", "offset", "4"}, "an offset of 2^63-1": {"location", "w.bin", "offset", "9223372036854775807"}, "a negative offset": {"location", "w.bin", "offset", "-4"},
		"an offset that is no number": {"location", "w.bin", "offset", "0x0"}, "a length of its own": {"location", "w.bin", "length", "16"}, "a length of 2^63": {"location", "w.bin", "length", "9223372036854775808"}, "an unknown key": {"location", "w.bin", "basepath", "/"},
		"a name of 10 kB": {"location", strings.Repeat("w", 10_000)},
	} {
		add("external data "+name, files{"model.onnx": external(t, entries...), "w.bin": make([]byte, size)}, "external data")
	}
	add("external data that is short", files{"model.onnx": external(t, "location", "w.bin"), "w.bin": make([]byte, size-1)}, "w1")
	add("external data that is empty", files{"model.onnx": external(t, "location", "w.bin"), "w.bin": {}}, "w.bin")
	for name, file := range map[string]string{"above": "../w.bin", "deep": "a/b/c/w.bin", "absolute": "/w.bin", "hidden": ".w", "10 kB": strings.Repeat("w", 10_000), "NUL": "w\x00", "backslash": `a\w.bin`, "a device": "sub/../w.bin"} {
		add("a file name "+name, files{"model.onnx": good, file: {1}}, "name")
	}
	add("two graphs", files{"a.onnx": good, "b.onnx": good}, "model.onnx")
	add("a tokenizer that is none", files{"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": []byte(strings.Repeat("[", 100_000))}, "tokenizer.json")
	add("image preparation that is none", files{"model.onnx": onnxBytes(t, imageGraph()), "preprocessor_config.json": []byte(`{"size":{"height":1e99}}`)}, "preprocessor_config.json")
	add("labels of another number", files{"model.onnx": good, "labels.txt": []byte("a\nb\n")}, "labels.txt")
	add("labels of 10 MB", files{"model.onnx": good, "labels.txt": bytes.Repeat([]byte("a"), 10<<20)}, "labels.txt")
	return out
}

// TestHostileLoads sends files that no exporter wrote with load requests, over
// HTTP and gRPC: each is refused as the client's fault, nothing of it stays, and
// the model that is there goes on answering.
func TestHostileLoads(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	rpc := s.rpc(t)
	cases := hostileFiles(t)
	load := func(t *testing.T, name, model string) {
		c := cases[name]
		byHTTP, byRPC := map[string]string{}, map[string]*pb.ModelRepositoryParameter{}
		for file, b := range c.files {
			byHTTP["file:1/"+file] = base64.StdEncoding.EncodeToString(b)
			byRPC["file:1/"+file] = &pb.ModelRepositoryParameter{ParameterChoice: &pb.ModelRepositoryParameter_BytesParam{BytesParam: b}}
		}
		s.refused(t, s.do("POST", "/v2/repository/models/"+model+"/load", map[string]any{"parameters": byHTTP}), 400, c.words...)
		_, err := rpc.RepositoryModelLoad(t.Context(), &pb.RepositoryModelLoadRequest{ModelName: model, Parameters: byRPC})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("gRPC: %v", err)
		}
		said := status.Convert(err).Message()
		s.clean(t, said)
		for _, w := range c.words {
			if !strings.Contains(strings.ToLower(said), strings.ToLower(w)) {
				t.Errorf("gRPC: error %q does not say %q", said, w)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			load(t, name, "bad") // a new model
			load(t, name, "m")   // one that is served
			if v := s.answers(); v != "1" {
				t.Errorf("version %s answers", v)
			}
		})
	}
	index, err := rpc.RepositoryIndex(t.Context(), &pb.RepositoryIndexRequest{})
	if err != nil || len(index.GetModels()) != 1 || index.Models[0].GetName() != "m" || index.Models[0].GetVersion() != "1" {
		t.Errorf("%v, %v", index, err)
	}
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
}
