package onnx

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

func small() *pb.ModelProto {
	return &pb.ModelProto{
		IrVersion:   proto.Int64(8),
		OpsetImport: []*pb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(17)}},
		Graph: &pb.GraphProto{
			Name:   proto.String("g"),
			Input:  []*pb.ValueInfoProto{{Name: proto.String("x")}},
			Output: []*pb.ValueInfoProto{{Name: proto.String("y")}},
			Node: []*pb.NodeProto{{OpType: proto.String("Add"), Input: []string{"x", "w"}, Output: []string{"y"},
				Attribute: []*pb.AttributeProto{{Name: proto.String("t"), Type: pb.AttributeProto_TENSOR.Enum(),
					T: &pb.TensorProto{Dims: []int64{2}, DataType: proto.Int32(1), RawData: make([]byte, 8)}}}}},
			Initializer: []*pb.TensorProto{
				{Name: proto.String("w"), Dims: []int64{1024}, DataType: proto.Int32(1), RawData: bytes.Repeat([]byte{1, 2, 3, 4}, 1024)},
				{Name: proto.String("e"), Dims: []int64{0}, DataType: proto.Int32(1), RawData: []byte{}},
			},
		},
		MetadataProps: []*pb.StringStringEntryProto{{Key: proto.String("k"), Value: proto.String("v")}},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, external := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "m.onnx")
		want := small()
		if err := Save(path, want, SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(want, small()) {
			t.Fatal("Save changed its argument")
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(f.Proto, want) {
			t.Errorf("external=%v: read back differs:\n%v\n%v", external, f.Proto, want)
		}
		if external != (len(f.External) == 1) {
			t.Errorf("external files: %v", f.External)
		}
		f.Close()
		left, _ := filepath.Glob(filepath.Join(dir, ".fewbit-*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestWriteIsProtobuf: the streamed bytes are what protobuf itself decodes.
func TestWriteIsProtobuf(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, small()); err != nil {
		t.Fatal(err)
	}
	got := &pb.ModelProto{}
	if err := proto.Unmarshal(b.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, small()) {
		t.Error("differs")
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	whole, _ := proto.Marshal(small())
	for name, data := range map[string][]byte{
		"empty.onnx":     {},
		"text.onnx":      []byte("hello, this is not a model at all\n"),
		"truncated.onnx": whole[:len(whole)/2],
		"nograph.onnx":   {0x08, 0x08},
		"zeros.onnx":     make([]byte, 100),
	} {
		p := filepath.Join(dir, name)
		os.WriteFile(p, data, 0o600)
		if f, err := Open(p); err == nil {
			f.Close()
			t.Errorf("%s: accepted", name)
		} else if bytes.Contains([]byte(err.Error()), []byte(dir)) {
			t.Errorf("%s: the error shows a path: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "none.onnx")); err == nil {
		t.Error("missing file accepted")
	}
	if _, err := Open(dir); err == nil {
		t.Error("folder accepted")
	}
}

func TestExternalRefuses(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "model")
	os.MkdirAll(filepath.Join(dir, "sub"), 0o755)
	secret := filepath.Join(base, "secret")
	os.WriteFile(secret, make([]byte, 8192), 0o600)
	os.WriteFile(filepath.Join(dir, "ok"), make([]byte, 4096), 0o600)
	os.WriteFile(filepath.Join(dir, "short"), make([]byte, 100), 0o600)
	os.Symlink(secret, filepath.Join(dir, "link"))
	os.Symlink(base, filepath.Join(dir, "sub", "up"))
	for _, c := range []struct {
		name string
		kv   []string
		ok   bool
	}{
		{"good", []string{"location", "ok"}, true},
		{"good with checksum", []string{"location", "ok", "offset", "0", "length", "4096", "checksum", "x"}, true},
		{"absolute", []string{"location", secret}, false},
		{"dotdot", []string{"location", "../secret"}, false},
		{"inner dotdot", []string{"location", "sub/../../secret"}, false},
		{"symlink", []string{"location", "link"}, false},
		{"symlinked parent", []string{"location", "sub/up/secret"}, false},
		{"folder", []string{"location", "sub"}, false},
		{"missing", []string{"location", "nothing"}, false},
		{"no location", []string{"offset", "0"}, false},
		{"past the end", []string{"location", "ok", "offset", "1"}, false},
		{"short file", []string{"location", "short"}, false},
		{"negative offset", []string{"location", "ok", "offset", "-1"}, false},
		{"huge offset", []string{"location", "ok", "offset", "9223372036854775807"}, false},
		{"length differs from dims", []string{"location", "ok", "length", "100"}, false},
		{"not a number", []string{"location", "ok", "offset", "x"}, false},
		{"unknown key", []string{"location", "ok", "basepath", "/"}, false},
	} {
		m := small()
		w := m.Graph.Initializer[0]
		w.RawData, w.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
		for i := 0; i < len(c.kv); i += 2 {
			w.ExternalData = append(w.ExternalData, entry(c.kv[i], c.kv[i+1]))
		}
		p := filepath.Join(dir, "m.onnx")
		b, _ := proto.Marshal(m)
		os.WriteFile(p, b, 0o600)
		f, err := Open(p)
		if (err == nil) != c.ok {
			t.Errorf("%s: error %v, want ok=%v", c.name, err, c.ok)
		}
		if f != nil {
			f.Close()
		}
	}
}

func FuzzParse(f *testing.F) {
	b, _ := proto.Marshal(small())
	f.Add(b)
	f.Add([]byte{0x3a, 0x00})
	f.Add([]byte("text"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := Write(&out, m); err != nil {
			t.Fatalf("parsed but not written: %v", err)
		}
		again, err := Parse(out.Bytes())
		if err != nil {
			t.Fatalf("written but not parsed: %v", err)
		}
		var second bytes.Buffer
		if Write(&second, again); !bytes.Equal(out.Bytes(), second.Bytes()) {
			t.Fatal("the round trip changed the model")
		}
	})
}
