package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Sizes of the test models: small enough to quantize in well under a second,
// wide enough for integers to be used.
const (
	mlpIn, mlpHidden, mlpOut = 32, 64, 5
	cnnSize, cnnClasses      = 12, 5
)

// modelKinds are what the script command mkmodel writes.
var modelKinds = map[string]func(path string) error{
	"mlp": func(p string) error { return mlp().Save(p, onnx.SaveOptions{}) },
	"nan": func(p string) error {
		m := mlp()
		tensor.View[float32](m.Graph.Init("w2"))[7] = float32(math.NaN())
		return m.Save(p, onnx.SaveOptions{})
	},
	"cnn": func(p string) error { return cnn().Save(p, onnx.SaveOptions{}) },
	// wide is large enough for a run to be interrupted.
	"wide": func(p string) error { return wide(1024, 8).Save(p, onnx.SaveOptions{}) },
	// deep is large enough to be faster in integers.
	"deep": func(p string) error { return wide(1024, 5).Save(p, onnx.SaveOptions{}) },
	"external": func(p string) error {
		m := mlp()
		m.Graph.SetInit("pad", tensor.From(make([]float32, 4096), 4096)) // large enough to go outside
		m.Graph.Nodes = append(m.Graph.Nodes, graph.NewNode("", "Identity", "", []string{"pad"}, []string{"padded"}))
		m.Graph.Outputs = append(m.Graph.Outputs, value("padded", 4096))
		return m.Save(p, onnx.SaveOptions{External: true})
	},
	"text":      func(p string) error { return os.WriteFile(p, []byte("this is no model\n"), 0o644) },
	"empty":     func(p string) error { return os.WriteFile(p, nil, 0o644) },
	"truncated": truncated,
	"lie":       lie,
	"cycle": broken(func(m *pb.ModelProto) {
		n := m.Graph.Node
		n[0].Input[0] = n[len(n)-1].Output[0]
	}),
	"missing-init": broken(func(m *pb.ModelProto) { m.Graph.Initializer = m.Graph.Initializer[1:] }),
	"domain": broken(func(m *pb.ModelProto) {
		m.Graph.Node[0].Domain = proto.String("acme.ops")
		m.OpsetImport = append(m.OpsetImport, &pb.OperatorSetIdProto{Domain: proto.String("acme.ops"), Version: proto.Int64(1)})
	}),
	"short-init": broken(func(m *pb.ModelProto) {
		t := m.Graph.Initializer[0]
		t.RawData = t.RawData[:len(t.RawData)-4]
	}),
	"huge-dims": broken(func(m *pb.ModelProto) { m.Graph.Initializer[0].Dims = []int64{1 << 40, 1 << 40} }),
	"nothing": func(p string) error {
		m := newModel("nothing", []*graph.Value{value("x", -1, 4)}, []*graph.Value{value("y", -1, 4)}, graph.NewNode("", "Relu", "relu", []string{"x"}, []string{"y"}))
		return m.Save(p, onnx.SaveOptions{})
	},
	"external-absolute":  externalAt("/etc/passwd", 0),
	"external-parent":    externalAt("../secret.bin", 0),
	"external-link":      externalAt("link.bin", 0),
	"external-past-end":  externalAt("weights.bin", 1<<20),
	"external-not-there": externalAt("nowhere.bin", 0),
}

func newModel(name string, in, out []*graph.Value, nodes ...*graph.Node) *graph.Model {
	return &graph.Model{IR: 8, Opsets: map[string]int64{graph.DomainONNX: 17}, Metadata: map[string]string{}, Graph: &graph.Graph{Name: name, Inputs: in, Outputs: out, Nodes: nodes}}
}

// value is a float input or output; -1 is the variable batch.
func value(name string, dims ...int64) *graph.Value {
	v := &graph.Value{Name: name, Type: tensor.Float32, Dims: []graph.Dim{}}
	for _, d := range dims {
		dim := graph.Dim{N: d}
		if d < 0 {
			dim.Name = "batch"
		}
		v.Dims = append(v.Dims, dim)
	}
	return v
}

// weights are fixed: the same call gives the same values everywhere.
func weights(seed uint64, gain float32, dims ...int64) *tensor.Tensor {
	rng := rand.New(rand.NewPCG(seed, 7))
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = gain * float32(rng.NormFloat64())
	}
	return tensor.From(v, dims...)
}

// mlp is x[batch,32] -> 64 -> 64 -> logits[batch,5].
func mlp() *graph.Model {
	m := newModel("mlp", []*graph.Value{value("x", -1, mlpIn)}, []*graph.Value{value("logits", -1, mlpOut)},
		graph.NewNode("", "MatMul", "fc1", []string{"x", "w1"}, []string{"h1"}),
		graph.NewNode("", "Add", "bias1", []string{"h1", "b1"}, []string{"h1b"}),
		graph.NewNode("", "Relu", "relu1", []string{"h1b"}, []string{"a1"}),
		graph.NewNode("", "MatMul", "fc2", []string{"a1", "w2"}, []string{"h2"}),
		graph.NewNode("", "Add", "bias2", []string{"h2", "b2"}, []string{"h2b"}),
		graph.NewNode("", "Relu", "relu2", []string{"h2b"}, []string{"a2"}),
		graph.NewNode("", "MatMul", "head", []string{"a2", "w3"}, []string{"logits"}))
	m.Graph.SetInit("w1", weights(1, 0.2, mlpIn, mlpHidden))
	m.Graph.SetInit("b1", weights(2, 0.1, mlpHidden))
	m.Graph.SetInit("w2", weights(3, 0.15, mlpHidden, mlpHidden))
	m.Graph.SetInit("b2", weights(4, 0.1, mlpHidden))
	m.Graph.SetInit("w3", weights(5, 0.2, mlpHidden, mlpOut))
	return m
}

// cnn is image[batch,3,12,12] -> two convolutions -> logits[batch,5].
func cnn() *graph.Model {
	pads := graph.AttrInts("pads", 1, 1, 1, 1)
	m := newModel("cnn", []*graph.Value{value("image", -1, 3, cnnSize, cnnSize)}, []*graph.Value{value("logits", -1, cnnClasses)},
		graph.NewNode("", "Conv", "conv1", []string{"image", "k1", "c1"}, []string{"f1"}, pads),
		graph.NewNode("", "Relu", "relu1", []string{"f1"}, []string{"r1"}),
		graph.NewNode("", "Conv", "conv2", []string{"r1", "k2", "c2"}, []string{"f2"}, pads),
		graph.NewNode("", "Relu", "relu2", []string{"f2"}, []string{"r2"}),
		graph.NewNode("", "GlobalAveragePool", "pool", []string{"r2"}, []string{"p"}),
		graph.NewNode("", "Flatten", "flat", []string{"p"}, []string{"v"}),
		graph.NewNode("", "Gemm", "head", []string{"v", "w", "b"}, []string{"logits"}))
	m.Graph.SetInit("k1", weights(11, 0.3, 8, 3, 3, 3))
	m.Graph.SetInit("c1", weights(12, 0.1, 8))
	m.Graph.SetInit("k2", weights(13, 0.2, 16, 8, 3, 3))
	m.Graph.SetInit("c2", weights(14, 0.1, 16))
	m.Graph.SetInit("w", weights(15, 0.5, 16, cnnClasses))
	m.Graph.SetInit("b", weights(16, 0.1, cnnClasses))
	return m
}

// wide is a chain of n x n products.
func wide(n int64, layers int) *graph.Model {
	var nodes []*graph.Node
	in := "x"
	for i := range layers {
		out := fmt.Sprintf("h%d", i)
		nodes = append(nodes,
			graph.NewNode("", "MatMul", fmt.Sprintf("fc%d", i), []string{in, fmt.Sprintf("w%d", i)}, []string{out}),
			graph.NewNode("", "Tanh", "", []string{out}, []string{out + "t"}))
		in = out + "t"
	}
	m := newModel("wide", []*graph.Value{value("x", -1, n)}, []*graph.Value{value(in, -1, n)}, nodes...)
	for i := range layers {
		m.Graph.SetInit(fmt.Sprintf("w%d", i), weights(uint64(i), float32(1.6/math.Sqrt(float64(n))), n, n))
	}
	return m
}

// broken writes the MLP after an edit that no valid model survives.
func broken(edit func(*pb.ModelProto)) func(string) error {
	return func(path string) error {
		p, err := mlp().Proto()
		if err != nil {
			return err
		}
		edit(p)
		b, err := proto.Marshal(p)
		if err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o644)
	}
}

// truncated cuts the file within its graph.
func truncated(path string) error {
	if err := mlp().Save(path, onnx.SaveOptions{}); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, st.Size()/2)
}

// externalAt writes the MLP with its first weight outside, at location, and
// beside it weights.bin (of the right size) and link.bin (a symbolic link out
// of the folder).
func externalAt(location string, offset int64) func(string) error {
	return func(path string) error {
		dir := filepath.Dir(path)
		size := int64(4 * mlpIn * mlpHidden)
		if err := os.WriteFile(filepath.Join(dir, "weights.bin"), make([]byte, size), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "..", "secret.bin"), make([]byte, size), 0o644); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join("..", "secret.bin"), filepath.Join(dir, "link.bin")); err != nil && !os.IsExist(err) {
			return err
		}
		return broken(func(m *pb.ModelProto) {
			t := m.Graph.Initializer[0]
			t.RawData, t.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
			for k, v := range map[string]string{"location": location, "offset": fmt.Sprint(offset), "length": fmt.Sprint(size)} {
				t.ExternalData = append(t.ExternalData, &pb.StringStringEntryProto{Key: proto.String(k), Value: proto.String(v)})
			}
		})(path)
	}
}

// lie makes a protobuf whose graph claims more bytes than there are.
func lie(path string) error {
	b := protowire.AppendTag(nil, 7, protowire.BytesType)
	b = protowire.AppendVarint(b, 1<<40)
	return os.WriteFile(path, b, 0o644)
}
