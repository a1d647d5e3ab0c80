package ort

import (
	"context"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// turned is encoder with positions by rotation, of one kind.
func turned(t *testing.T, e *Engine, layers int) testModel {
	m := encoder(t, e, layers)
	m.in = append(m.in, rankless("cos", tensor.Float32), rankless("sin", tensor.Float32))
	n := m.nodes[0]
	n.Input = slices.Insert(n.Input, 2, "cos", "sin")
	n.Attribute = append(n.Attribute, attrString("rotary", "half"))
	return m
}

// TestEncoderFormsRefuse: attributes and positions that do not fit end in an error.
func TestEncoderFormsRefuse(t *testing.T) {
	e := withKernels(t)
	zeros := func(dims ...int64) *tensor.Tensor { return tensor.From(make([]float32, count(dims)), dims...) }
	feeds := func(cos, sin *tensor.Tensor) engine.Feeds {
		return engine.Feeds{"x": zeros(2, 5, encWidth), "mask": zeros(0), "cos": cos, "sin": sin}
	}
	fits := feeds(zeros(1, 5, 8), zeros(1, 5, 8))
	with := func(name, value string) func(n *pb.NodeProto) {
		return func(n *pb.NodeProto) {
			n.Attribute = slices.DeleteFunc(n.Attribute, func(a *pb.AttributeProto) bool { return a.GetName() == name })
			n.Attribute = append(n.Attribute, attrString(name, value))
		}
	}
	for name, edit := range map[string]func(n *pb.NodeProto){
		"neighbours are turned":   with("rotary", "interleaved"),
		"another norm":            with("norm", "batch"),
		"a gate that is added":    with("gate", "add"),
		"a gate without columns":  with("gate", "multiply"),
		"more kinds than layers":  with("kinds", "000"),
		"a kind without inputs":   with("kinds", "01"),
		"a kind of nothing":       with("kinds", "0x"),
		"no positions":            func(n *pb.NodeProto) { n.Input = slices.Delete(n.Input, 2, 4) },
		"cosines alone":           func(n *pb.NodeProto) { n.Input = slices.Delete(n.Input, 3, 4) },
		"positions of a constant": func(n *pb.NodeProto) { n.Input[3] = "c6" },
	} {
		m := turned(t, e, 2)
		edit(m.nodes[0])
		refused(t, e, name, m, fits)
	}
	s := open(t, turned(t, e, 1), engine.Options{})
	for _, f := range []engine.Feeds{fits, feeds(zeros(2, 5, 16), zeros(2, 5, 16)), feeds(zeros(1, 1, 5, 2), zeros(1, 1, 5, 2))} {
		run(t, s, f)
	}
	for name, f := range map[string]engine.Feeds{
		"another length":          feeds(zeros(1, 4, 8), zeros(1, 4, 8)),
		"another batch":           feeds(zeros(3, 5, 8), zeros(3, 5, 8)),
		"an odd number":           feeds(zeros(1, 5, 7), zeros(1, 5, 7)),
		"more than a head":        feeds(zeros(1, 5, 18), zeros(1, 5, 18)),
		"none":                    feeds(zeros(1, 5, 0), zeros(1, 5, 0)),
		"two dimensions":          feeds(zeros(5, 8), zeros(5, 8)),
		"of each head":            feeds(zeros(1, 2, 5, 8), zeros(1, 2, 5, 8)),
		"sines of another size":   feeds(zeros(1, 5, 8), zeros(1, 5, 6)),
		"sines of other samples":  feeds(zeros(1, 5, 8), zeros(2, 5, 8)),
		"one number for all rows": feeds(zeros(1, 1, 8), zeros(1, 1, 8)),
	} {
		if _, err := s.Run(context.Background(), f, nil); !errors.Is(err, engine.ErrInput) && !errors.Is(err, engine.ErrModel) {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
}

// TestEncoderAttentionTurned: the operator alone turns queries and keys, and refuses
// positions that do not fit.
func TestEncoderAttentionTurned(t *testing.T) {
	withKernels(t)
	const heads, size, length = 2, 4, 3
	m := testModel{
		in:      []*pb.ValueInfoProto{rankless("x", tensor.Float32), rankless("cos", tensor.Float32), rankless("sin", tensor.Float32)},
		out:     []*pb.ValueInfoProto{rankless("y", tensor.Float32), rankless("z", tensor.Float32)},
		domains: []string{"fewbit"},
	}
	attrs := []*pb.AttributeProto{attrInt("N", heads*size), attrInt("num_heads", heads), attrFloat("scale", .5)}
	m.nodes = []*pb.NodeProto{node("EncoderAttention", []string{"x", "", "cos", "sin"}, []string{"y"}, attrs...), node("EncoderAttention", []string{"x"}, []string{"z"}, attrs...)}
	for _, n := range m.nodes {
		n.Domain = proto.String("fewbit")
	}
	s := open(t, m, engine.Options{})
	x := make([]float32, length*3*heads*size)
	for i := range x {
		x[i] = float32(i%7) - 3
	}
	// With these cosines and sines halves change places, in queries and keys alike: scores, and
	// the result, are those without. With cosines of -1 they are, too.
	for _, c := range [][2]float32{{0, 1}, {-1, 0}, {1, 0}} {
		cos, sin := make([]float32, length*size), make([]float32, length*size)
		for i := range cos {
			cos[i], sin[i] = c[0], c[1]
		}
		r, err := s.Run(context.Background(), engine.Feeds{"x": tensor.From(x, 1, length, 3*heads*size), "cos": tensor.From(cos, 1, length, size), "sin": tensor.From(sin, 1, length, size)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		y, z := tensor.View[float32](r.Tensors()["y"]), tensor.View[float32](r.Tensors()["z"])
		for i := range z {
			if d := y[i] - z[i]; d > 1e-5 || d < -1e-5 {
				t.Fatalf("%v: [%d] is %v, want %v", c, i, y[i], z[i])
			}
		}
		r.Close()
	}
	short := tensor.From(make([]float32, size), 1, 1, size)
	if _, err := s.Run(context.Background(), engine.Feeds{"x": tensor.From(x, 1, length, 3*heads*size), "cos": short, "sin": short}, nil); err == nil {
		t.Error("positions of one row for three were taken")
	}
}
