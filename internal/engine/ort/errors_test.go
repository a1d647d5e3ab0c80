package ort

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestCleanText(t *testing.T) {
	const model = "/srv/models/a b/m.onnx"
	for _, tc := range []struct{ name, in, want string }{
		{"source location and signature",
			"Load model from /srv/models/a b/m.onnx failed:/onnxruntime_src/onnxruntime/core/graph/model.cc:149 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&, const std::vector<std::shared_ptr<int (*)(void)> >*) Unsupported model IR version: 99\n",
			"Unsupported model IR version: 99"},
		{"template arguments",
			"Node x: /src/core/a.h:60 onnxruntime::common::Status onnxruntime::F<T>::Compute(onnxruntime::OpKernelContext*) const [with T = float; U = X<int>] left_dim == right_dim was false. cannot multiply",
			"Node x: left_dim == right_dim was false. cannot multiply"},
		{"lambda", "failed: /a/b.cc:12 ns::F(int)::<lambda(const A&)> the reason", "failed: the reason"},
		{"no signature", "at /a/b.cc:12 the reason. More (of it)", "at the reason. More (of it)"},
		{"node names stay", "running MatMul node. Name:'/encoder/layer.0/MatMul' bad", "running MatMul node. Name:'/encoder/layer.0/MatMul' bad"},
		{"folder", `cannot open "/srv/models/a b/x.data" in /srv/models/a b, nor /srv/models/a b2`,
			`cannot open "x.data" in the model's folder, nor /srv/models/a b2`},
		{"existing file", "see " + os.Args[0] + ": bad", "see " + filepath.Base(os.Args[0]) + ": bad"},
		{"lines and control characters", "a\n\tb\x00\x1bc\xff", "a b c"},
		{"nothing", "\n", "no reason given"},
		{"unbalanced", "x/y.cc:1 f(((", "f((("},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := cleanText(model, tc.in); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
	if got := cleanText(model, strings.Repeat("é", maxErrorBytes)); len(got) > maxErrorBytes+4 || !strings.HasSuffix(got, "é ...") {
		t.Errorf("a long message ends in %q", got[len(got)-10:])
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("/m/x.onnx", "Load model from /m/x.onnx failed:/a/b.cc:1 T f(int) const [with T = int] why\n")
	f.Add("x.onnx", "x.onnx::::([{<>")
	f.Add("", "a.h:1 b.h:2 c.h:3")
	f.Fuzz(func(t *testing.T, path, s string) {
		got := cleanText(path, s)
		if got == "" || strings.ContainsAny(got, "\n\r\x00") || len(got) > maxErrorBytes+4 {
			t.Errorf("cleanText(%q, %q) = %q", path, s, got)
		}
	})
}

// TestBadModels: every refusal is one line with an identity, and tells nothing
// of where files lie.
func TestBadModels(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	model := func(name string, edit func(*pb.ModelProto)) string {
		p := add("n", 2).proto()
		edit(p)
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return write(name, b)
	}
	good, err := proto.Marshal(add(2).proto())
	if err != nil {
		t.Fatal(err)
	}
	external := func(location string) func(*pb.ModelProto) {
		return func(p *pb.ModelProto) {
			p.Graph.Input = p.Graph.Input[:1]
			p.Graph.Initializer = []*pb.TensorProto{{Name: proto.String("b"), DataType: proto.Int32(1), Dims: []int64{2},
				DataLocation: pb.TensorProto_EXTERNAL.Enum(),
				ExternalData: []*pb.StringStringEntryProto{{Key: proto.String("location"), Value: proto.String(location)}}}}
		}
	}
	fifo := filepath.Join(dir, "fifo.onnx")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	sequence := &pb.ValueInfoProto{Name: proto.String("s"), Type: &pb.TypeProto{Value: &pb.TypeProto_SequenceType{
		SequenceType: &pb.TypeProto_Sequence{ElemType: tensorType(tensor.Float32)}}}}

	for name, path := range map[string]string{
		"missing":          filepath.Join(dir, "missing.onnx"),
		"folder":           dir,
		"fifo":             fifo,
		"empty":            write("empty.onnx", nil),
		"text":             write("text.onnx", []byte("hello, this is not a model\n")),
		"truncated":        write("cut.onnx", good[:len(good)-9]),
		"NUL in the path":  "a\x00b",
		"IR version":       model("ir.onnx", func(p *pb.ModelProto) { p.IrVersion = proto.Int64(9999) }),
		"opset":            model("opset.onnx", func(p *pb.ModelProto) { p.OpsetImport[0].Version = proto.Int64(9999) }),
		"unknown operator": model("op.onnx", func(p *pb.ModelProto) { p.Graph.Node[0].OpType = proto.String("Nope") }),
		"unknown domain":   model("domain.onnx", func(p *pb.ModelProto) { p.Graph.Node[0].Domain = proto.String("nope.example") }),
		"missing tensor":   model("tensor.onnx", func(p *pb.ModelProto) { p.Graph.Node[0].Input[1] = "nope" }),
		"cycle":            model("cycle.onnx", func(p *pb.ModelProto) { p.Graph.Node[0].Input[1] = "sum" }),
		"no graph":         model("graph.onnx", func(p *pb.ModelProto) { p.Graph = nil }),
		"short initializer": model("short.onnx", func(p *pb.ModelProto) {
			p.Graph.Input = p.Graph.Input[:1]
			p.Graph.Initializer = []*pb.TensorProto{{Name: proto.String("b"), DataType: proto.Int32(1), Dims: []int64{1000, 2}, RawData: []byte{1, 2, 3, 4}}}
		}),
		"external data missing":   model("ext1.onnx", external("nope.data")),
		"external data absolute":  model("ext2.onnx", external("/etc/passwd")),
		"external data elsewhere": model("ext3.onnx", external("../../../../../../../../etc/passwd")),
		"sequence input":          model("seq.onnx", func(p *pb.ModelProto) { p.Graph.Input = append(p.Graph.Input, sequence) }),
		"INT4 input": model("int4.onnx", func(p *pb.ModelProto) {
			p.Graph.Input = append(p.Graph.Input, value("q", tensor.Int4, 2))
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := e.OpenFile(t.Context(), path, engine.Options{})
			if err == nil {
				_ = s.Close()
			}
			checkLeaks(t, err, engine.ErrModel, dir)
			if name == "missing" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v is not fs.ErrNotExist", err)
			}
			t.Log(err)
		})
	}
}

func checkLeaks(t *testing.T, err, want error, dir string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, bad := range []string{"\n", dir, "onnxruntime_src", ".cc:", ".h:", "onnxruntime::", "/etc/"} {
		if strings.Contains(err.Error(), bad) {
			t.Errorf("%q contains %q", err, bad)
		}
	}
}

func TestRunErrors(t *testing.T) {
	dir := t.TempDir()
	reshape := open(t, testModel{
		in:    []*pb.ValueInfoProto{value("x", tensor.Float32, nil), value("shape", tensor.Int64, nil)},
		out:   []*pb.ValueInfoProto{rankless("y", tensor.Float32)},
		nodes: []*pb.NodeProto{node("Reshape", []string{"x", "shape"}, []string{"y"})},
	}, engine.Options{})
	_, err := reshape.Run(t.Context(), engine.Feeds{"x": tensor.From([]float32{1, 2, 3}, 3), "shape": tensor.From([]int64{2}, 1)}, nil)
	checkLeaks(t, err, engine.ErrInput, dir)
	t.Log(err)

	huge := open(t, testModel{
		in:    []*pb.ValueInfoProto{value("shape", tensor.Int64, nil)},
		out:   []*pb.ValueInfoProto{rankless("y", tensor.Float32)},
		nodes: []*pb.NodeProto{node("ConstantOfShape", []string{"shape"}, []string{"y"})},
	}, engine.Options{})
	_, err = huge.Run(t.Context(), engine.Feeds{"shape": tensor.From([]int64{1 << 30, 1 << 14}, 2)}, nil)
	checkLeaks(t, err, engine.ErrMemory, dir)
	t.Log(err)
	_, err = huge.Run(t.Context(), engine.Feeds{"shape": tensor.From(make([]int64, tensor.MaxRank+1), tensor.MaxRank+1)}, nil)
	if err == nil || !strings.Contains(err.Error(), "dimensions") {
		t.Errorf("an output of rank %d: %v", tensor.MaxRank+1, err)
	}
	if lines := newEngine(t).Log(); len(lines) == 0 {
		t.Error("ONNX Runtime's errors were not captured")
	}
	if lines := newEngine(t).Log(); len(lines) != 0 {
		t.Errorf("the log was not forgotten: %q", lines)
	}
}
