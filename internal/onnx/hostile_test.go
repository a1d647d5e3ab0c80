package onnx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// field appends a length-delimited field.
func field(b []byte, num protowire.Number, v ...byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func varint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// inGraph wraps the bytes of a GraphProto in a model.
func inGraph(g []byte) []byte { return field(nil, fieldModelGraph, g...) }

// TestParseBombs: files whose decoded form is many times their size are
// refused before it is built.
func TestParseBombs(t *testing.T) {
	repeat := func(num protowire.Number, n int, v ...byte) []byte { return bytes.Repeat(field(nil, num, v...), n) }
	nest := func(wrap func([]byte) []byte, n int) []byte {
		var b []byte
		for range n {
			b = wrap(b)
		}
		return b
	}
	graphAttribute := func(inner []byte) []byte { // node { attribute { g } }
		return field(nil, fieldGraphNode, field(nil, fieldNodeAttribute, field(nil, fieldAttributeGraph, inner...)...)...)
	}
	const limit = 2 << 20
	for _, c := range []struct {
		name  string
		limit int
		data  []byte
	}{
		{"empty nodes", limit, inGraph(repeat(fieldGraphNode, 8<<10))},
		{"empty initializers", limit, inGraph(repeat(fieldGraphInitializer, 8<<10))},
		{"empty value infos", limit, inGraph(repeat(13, 8<<10))},
		{"empty dimensions", limit, inGraph(field(nil, 13, field(nil, 2, field(nil, 1, field(nil, 2, repeat(1, 8<<10)...)...)...)...))},
		{"empty attributes", limit, inGraph(field(nil, fieldGraphNode, repeat(fieldNodeAttribute, 8<<10)...))},
		{"empty input names", limit, inGraph(bytes.Repeat(field(nil, fieldGraphNode, repeat(1, 30<<10)...), 3))},
		{"attribute integers", limit, inGraph(field(nil, fieldGraphNode, field(nil, fieldNodeAttribute, field(nil, 8, make([]byte, 400<<10)...)...)...))},
		{"tensor integers", limit, inGraph(bytes.Repeat(field(nil, fieldGraphInitializer, field(nil, 7, make([]byte, 80<<10)...)...), 5))},
		{"functions", limit, append(repeat(25, 8<<10), inGraph(nil)...)},
		{"metadata", limit, append(repeat(14, 8<<10), inGraph(nil)...)},
		{"unknown fields", limit, inGraph(repeat(3000, 1<<20))},
		{"descriptions", MaxDecodedBytes, append(field(nil, 6, make([]byte, MaxSmallBytes)...), inGraph([]byte{0x0a, 0})...)},
		{"subgraphs in subgraphs", limit, inGraph(nest(graphAttribute, MaxSubgraphDepth+1))},
		{"lists of subgraphs", limit, inGraph(field(nil, fieldGraphNode, field(nil, fieldNodeAttribute, nest(func(b []byte) []byte {
			return field(nil, 11, field(nil, 1, field(nil, 5, b...)...)...)
		}, 40)...)...))},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parse(c.data, c.limit)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrLimit) {
			t.Errorf("%s (%d bytes): %v, want ErrLimit", c.name, len(c.data), err)
		}
		// All that was allocated before the limit struck, the garbage of
		// growing slices included.
		if got := int(after.TotalAlloc - before.TotalAlloc); got > 4*c.limit {
			t.Errorf("%s (%d bytes): allocated %d MiB", c.name, len(c.data), got>>20)
		}
	}
}

// TestCostBounds: what is charged is not less than two thirds of what decoding
// really allocates.
func TestCostBounds(t *testing.T) {
	value := func(i int) *pb.ValueInfoProto {
		dims := []*pb.TensorShapeProto_Dimension{{Value: &pb.TensorShapeProto_Dimension_DimParam{DimParam: "n"}}, {Value: &pb.TensorShapeProto_Dimension_DimValue{DimValue: 3}}}
		return &pb.ValueInfoProto{Name: proto.String(fmt.Sprint("value_", i)), Type: &pb.TypeProto{Value: &pb.TypeProto_TensorType{
			TensorType: &pb.TypeProto_Tensor{ElemType: proto.Int32(1), Shape: &pb.TensorShapeProto{Dim: dims}}}}}
	}
	g := &pb.GraphProto{}
	for i := range 4000 {
		g.ValueInfo = append(g.ValueInfo, value(i))
		g.Node = append(g.Node, &pb.NodeProto{OpType: proto.String("Add"), Input: []string{"a", "b"}, Output: []string{"c"},
			Attribute: []*pb.AttributeProto{{Name: proto.String("axis"), I: proto.Int64(1), Type: pb.AttributeProto_INT.Enum()}}})
		g.Initializer = append(g.Initializer, &pb.TensorProto{Name: proto.String("w"), Dims: []int64{1, 2, 3}, Int64Data: make([]int64, 6)})
	}
	b, err := proto.Marshal(&pb.ModelProto{Graph: g})
	if err != nil {
		t.Fatal(err)
	}
	p := parser{limit: MaxDecodedBytes}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = p.split(b, func(num protowire.Number, v []byte) (bool, error) {
		_, err := p.graph(v, 0)
		return true, err
	})
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	got := int(after.TotalAlloc - before.TotalAlloc)
	t.Logf("%d bytes in the file, charged %d, allocated %d", len(b), p.cost, got)
	if p.cost*3/2 < got || p.cost > 4*got {
		t.Errorf("charged %d, allocated %d", p.cost, got)
	}
}

func TestDuplicateFields(t *testing.T) {
	raw := field(field(nil, fieldTensorRaw, 1, 2, 3, 4), fieldTensorRaw, 5, 6, 7, 8) // the last one counts, as in protobuf
	tensor := field(nil, fieldGraphInitializer, append(varint(varint(nil, 1, 1), 2, 1), raw...)...)
	m, err := Parse(inGraph(tensor))
	if err != nil {
		t.Fatal(err)
	}
	whole := &pb.ModelProto{}
	if err := proto.Unmarshal(inGraph(tensor), whole); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(m, whole) || m.Graph.Initializer[0].RawData[0] != 5 {
		t.Errorf("%v, protobuf reads %v", m, whole)
	}
	attribute := func(fields ...[]byte) []byte {
		return inGraph(field(nil, fieldGraphNode, field(nil, fieldNodeAttribute, bytes.Join(fields, nil)...)...))
	}
	for name, b := range map[string][]byte{
		"two graphs":        append(inGraph(nil), inGraph(nil)...),
		"two tensors":       attribute(field(nil, fieldAttributeTensor), field(nil, fieldAttributeTensor)),
		"two subgraphs":     attribute(field(nil, fieldAttributeGraph), field(nil, fieldAttributeGraph)),
		"wire type of raw":  inGraph(field(nil, fieldGraphInitializer, 0x4b)), // a group that never ends
		"length past end":   {0x3a, 0x7f, 0x0a},
		"varint that never": {0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		"field number 0":    {0x02, 0x00},
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPackedDims: proto2 and proto3 writers encode dims differently.
func TestPackedDims(t *testing.T) {
	for name, dims := range map[string][]byte{
		"packed":   field(nil, 1, 2, 3),
		"unpacked": varint(varint(nil, 1, 2), 1, 3),
		"both":     field(varint(nil, 1, 2), 1, 3),
	} {
		m, err := Parse(inGraph(field(nil, fieldGraphInitializer, append(dims, field(nil, fieldTensorRaw, 1)...)...)))
		if err != nil {
			t.Fatal(err)
		}
		if d := m.Graph.Initializer[0].Dims; len(d) != 2 || d[0] != 2 || d[1] != 3 {
			t.Errorf("%s: %v", name, d)
		}
	}
}

// TestUnknownFields: what a newer exporter wrote at any level survives.
func TestUnknownFields(t *testing.T) {
	const newer = 3000
	mark := func(s string) []byte { return field(nil, newer, []byte(s)...) }
	tensor := append(field(nil, fieldTensorRaw, make([]byte, 2*streamMin)...), mark("tensor")...)
	attr := append(field(field(nil, 1, 't'), fieldAttributeTensor, tensor...), mark("attribute")...)
	node := append(field(nil, fieldNodeAttribute, attr...), mark("node")...)
	graph := append(field(field(nil, fieldGraphNode, node...), fieldGraphInitializer, tensor...), mark("graph")...)
	in := append(inGraph(graph), mark("model")...)
	m, err := Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Write(&out, m); err != nil {
		t.Fatal(err)
	}
	a, b := &pb.ModelProto{}, &pb.ModelProto{}
	if err := errors.Join(proto.Unmarshal(in, a), proto.Unmarshal(out.Bytes(), b)); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(a, b) || bytes.Count(out.Bytes(), protowire.AppendTag(nil, newer, protowire.BytesType)) != 6 {
		t.Errorf("lost a field:\n%v\n%v", a, b)
	}
}

// heavy is a model with large tensors in every place where one can be.
func heavy(raw []byte) *pb.ModelProto {
	tensor := func(name string) *pb.TensorProto {
		return &pb.TensorProto{Name: proto.String(name), Dims: []int64{int64(len(raw))}, DataType: proto.Int32(3), RawData: raw}
	}
	attr := func(t *pb.TensorProto) *pb.AttributeProto {
		return &pb.AttributeProto{Name: proto.String("value"), Type: pb.AttributeProto_TENSOR.Enum(), T: t}
	}
	sub := &pb.GraphProto{Name: proto.String("sub"), Initializer: []*pb.TensorProto{tensor("inner")},
		Node: []*pb.NodeProto{{OpType: proto.String("Constant"), Output: []string{"c"}, Attribute: []*pb.AttributeProto{attr(tensor("deep"))}}}}
	m := small()
	m.Graph.Node = append(m.Graph.Node,
		&pb.NodeProto{OpType: proto.String("Constant"), Output: []string{"k"}, Attribute: []*pb.AttributeProto{attr(tensor("const"))}},
		&pb.NodeProto{OpType: proto.String("If"), Attribute: []*pb.AttributeProto{{Name: proto.String("then_branch"), Type: pb.AttributeProto_GRAPH.Enum(), G: sub}}})
	m.Graph.Initializer = append(m.Graph.Initializer, tensor("outer"))
	return m
}

// TestHeavyAttributes: tensors in attributes and subgraphs are aliased when
// read and streamed when written.
func TestHeavyAttributes(t *testing.T) {
	const size = 8 << 20
	m := heavy(make([]byte, size))
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := Save(path, m, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(io.Discard, f.Proto); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > size/8 {
		t.Errorf("reading and writing 4 tensors of %d bytes allocated %d", size, got)
	}
	if !proto.Equal(f.Proto, m) {
		t.Error("read back differs")
	}
}

// TestPast2GiB: a message past the limit goes to external data by itself; what
// cannot leave the message is refused before anything is written.
func TestPast2GiB(t *testing.T) {
	defer func(old int64) { inlineLimit = old }(inlineLimit)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	inlineLimit = 4096
	if err := Save(path, small(), SaveOptions{}); err != nil { // w alone has 4096 bytes
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.External) != 1 || !proto.Equal(f.Proto, small()) {
		t.Errorf("external %v, equal %v", f.External, proto.Equal(f.Proto, small()))
	}
	f.Close()
	old, _ := os.ReadFile(path)
	if err := Save(path, heavy(make([]byte, 8192)), SaveOptions{}); !errors.Is(err, ErrLimit) {
		t.Errorf("%v", err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(old, now) {
		t.Error("a refused save touched the file")
	}
	// More than 2 GiB for real, of one map of zeros, to nowhere.
	zeros, err := unix.Mmap(-1, 0, 1<<30, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(zeros)
	m := small()
	for i := range 3 {
		m.Graph.Initializer = append(m.Graph.Initializer, &pb.TensorProto{Name: proto.String(fmt.Sprint("big", i)), Dims: []int64{1 << 30}, DataType: proto.Int32(3), RawData: zeros})
	}
	if err := Write(io.Discard, m); !errors.Is(err, ErrLimit) {
		t.Errorf("3 GiB message: %v", err)
	}
}

// TestSaveFails: nothing is left behind, what was there stays.
func TestSaveFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	if err := Save(path, small(), SaveOptions{External: true}); err != nil {
		t.Fatal(err)
	}
	list := func() string {
		var s []string
		es, _ := os.ReadDir(dir)
		for _, e := range es {
			s = append(s, e.Name())
		}
		return strings.Join(s, " ")
	}
	full := func(io.Writer) error { return &os.PathError{Op: "write", Path: dir, Err: unix.ENOSPC} }
	err := atomically(path, full, SaveOptions{})
	if err == nil || strings.Contains(err.Error(), dir) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	if list() != "m.onnx m.onnx.data" {
		t.Errorf("left %s", list())
	}
	if err := Save(filepath.Join(dir, "none", "m.onnx"), small(), SaveOptions{}); err == nil || strings.Contains(err.Error(), dir) {
		t.Errorf("missing folder: %v", err)
	}
	os.Mkdir(filepath.Join(dir, "dir.onnx"), 0o755)
	if err := Save(filepath.Join(dir, "dir.onnx"), small(), SaveOptions{}); err == nil || strings.Contains(err.Error(), dir) {
		t.Errorf("folder in the way: %v", err)
	}
	if list() != "dir.onnx m.onnx m.onnx.data" {
		t.Errorf("left %s", list())
	}
	if err := Save(path, &pb.ModelProto{}, SaveOptions{External: true}); !errors.Is(err, ErrFormat) {
		t.Errorf("no graph: %v", err)
	}
}

// TestOverItself: a model may be written over the file it is mapped from.
func TestOverItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	for range 2 {
		if err := Save(path, small(), SaveOptions{External: true}); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := Save(path, f.Proto, SaveOptions{External: true}); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(f.Proto, small()) {
			t.Error("the open model changed")
		}
		f.Close()
		if f, err = Open(path); err != nil || !proto.Equal(f.Proto, small()) {
			t.Fatalf("%v", err)
		}
		f.Close()
	}
}

// externalModel writes a model whose initializer w (4096 bytes) lies at loc.
func externalModel(t *testing.T, dir string, tensors int, kv ...string) string {
	t.Helper()
	m := small()
	w := m.Graph.Initializer[0]
	w.RawData, w.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
	for i := 0; i < len(kv); i += 2 {
		w.ExternalData = append(w.ExternalData, entry(kv[i], kv[i+1]))
	}
	for i := 1; i < tensors; i++ {
		c := proto.Clone(w).(*pb.TensorProto)
		c.Name = proto.String(fmt.Sprint("w", i))
		m.Graph.Initializer = append(m.Graph.Initializer, c)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "m.onnx")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExternalFiles: files that are not plain data.
func TestExternalFiles(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Link(data, filepath.Join(dir, "linked"))
	os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600)
	for _, c := range []struct {
		loc  string
		want string // of the error; "" opens
	}{
		{"fifo", "not a regular file"}, // and does not wait for a writer
		{"empty", "empty"},
		{"linked", ""}, // the same owner
		{"data\x00", "unusable"},
		{`..\data`, "not a relative path"},
		{strings.Repeat("a/", 3000), "unusable"},
		{"./data", ""},
		{".", ""},
	} {
		f, err := Open(externalModel(t, dir, 1, "location", c.loc))
		switch {
		case c.loc == ".":
			if !errors.Is(err, ErrExternal) {
				t.Errorf("%q: %v", c.loc, err)
			}
		case c.want == "" && err != nil, c.want != "" && (!errors.Is(err, ErrExternal) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%.20q: %v, want %q", c.loc, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), dir) {
			t.Errorf("%q: the error shows a path: %v", c.loc, err)
		}
		if f != nil {
			f.Close()
		}
	}
	// Many tensors on the same bytes: a few, as for tied weights, not thousands.
	if f, err := Open(externalModel(t, dir, MaxExternalReuse, "location", "data")); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if _, err := Open(externalModel(t, dir, MaxExternalReuse+1, "location", "data")); !errors.Is(err, ErrLimit) {
		t.Errorf("shared too often: %v", err)
	}
	// A hard link to another user's file.
	if err := os.Chown(data, 12345, -1); err != nil {
		t.Log("the hard link to another user's file needs root:", err)
		return
	}
	if _, err := Open(externalModel(t, dir, 1, "location", "linked")); !errors.Is(err, ErrExternal) || !strings.Contains(err.Error(), "hard link") {
		t.Errorf("hard link to another user's file: %v", err)
	}
}

// TestExternalEverywhere: external tensors in attributes, subgraphs, sparse
// initializers and local functions are found too; without elements they need
// no file.
func TestExternalEverywhere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), bytes.Repeat([]byte{7}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	external := func(name, loc string, n int64) *pb.TensorProto {
		return &pb.TensorProto{Name: proto.String(name), Dims: []int64{n}, DataType: proto.Int32(3),
			DataLocation: pb.TensorProto_EXTERNAL.Enum(), ExternalData: []*pb.StringStringEntryProto{entry("location", loc)}}
	}
	node := func() *pb.NodeProto {
		return &pb.NodeProto{OpType: proto.String("Constant"), Attribute: []*pb.AttributeProto{
			{Name: proto.String("value"), Type: pb.AttributeProto_TENSOR.Enum(), T: external("a", "data", 5)},
			{Name: proto.String("values"), Type: pb.AttributeProto_TENSORS.Enum(), Tensors: []*pb.TensorProto{external("l", "data", 5)}},
			{Name: proto.String("s"), Type: pb.AttributeProto_SPARSE_TENSOR.Enum(), SparseTensor: &pb.SparseTensorProto{Values: external("v", "data", 5), Indices: external("i", "data", 5)}},
		}}
	}
	sub := &pb.GraphProto{Node: []*pb.NodeProto{node()}, Initializer: []*pb.TensorProto{external("inner", "data", 5), external("none", "missing", 0)}}
	m := small()
	m.Graph.Node = append(m.Graph.Node, node(), &pb.NodeProto{OpType: proto.String("If"), Attribute: []*pb.AttributeProto{
		{Name: proto.String("then_branch"), Type: pb.AttributeProto_GRAPH.Enum(), G: sub},
		{Name: proto.String("list"), Type: pb.AttributeProto_GRAPHS.Enum(), Graphs: []*pb.GraphProto{proto.Clone(sub).(*pb.GraphProto)}},
	}})
	m.Graph.SparseInitializer = []*pb.SparseTensorProto{{Values: external("sv", "data", 5), Indices: external("si", "data", 5)}}
	m.Functions = []*pb.FunctionProto{{Name: proto.String("f"), Node: []*pb.NodeProto{node()}}}
	b, _ := proto.Marshal(m)
	path := filepath.Join(dir, "m.onnx")
	os.WriteFile(path, b, 0o600)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	count := 0
	seen := func(x *pb.TensorProto) error {
		if x.DataLocation != nil || x.RawData == nil || len(x.ExternalData) != 0 {
			t.Errorf("%s was not resolved", x.GetName())
		}
		if strings.HasPrefix(string(x.RawData), "\x07\x07\x07\x07\x07") {
			count++
		}
		return nil
	}
	eachTensor(f.Proto.Graph, seen)
	eachTensor(&pb.GraphProto{Node: f.Proto.Functions[0].Node}, seen)
	if count != 4+(4+1)*2+2+4 {
		t.Errorf("%d external tensors resolved", count)
	}
}
