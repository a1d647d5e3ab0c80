package ort

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Sizes of the encoder of the tests.
const (
	encWidth, encHeads, encInner = 32, 2, 24
	encConstants                 = 16 // of a layer
	encScale                     = .25
	encEpsilon                   = 1e-5
)

// encoder is y = EncoderLayers(x, mask, ...) with made-up weights.
func encoder(t *testing.T, e *Engine, layers int) testModel {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 5))
	m := testModel{
		in:      []*pb.ValueInfoProto{rankless("x", tensor.Float32), rankless("mask", tensor.Float32)},
		out:     []*pb.ValueInfoProto{rankless("y", tensor.Float32)},
		domains: []string{"fewbit"},
	}
	in := []string{"x", "mask"}
	add := func(v *tensor.Tensor) {
		name := fmt.Sprintf("c%d", len(m.init))
		in, m.init = append(in, name), append(m.init, initializer(name, v))
	}
	weight := func(k, n int) {
		codes, scales := make([]int8, k*n), make([]float32, n)
		for i := range codes {
			codes[i] = int8(r.IntN(255) - 127)
		}
		for i := range scales {
			scales[i] = .002
		}
		packed := make([]byte, e.Int8Size(k, n))
		if err := e.PackInt8(codes, scales, k, n, packed, 1); err != nil {
			t.Fatal(err)
		}
		add(tensor.From(packed, int64(len(packed))))
		add(tensor.From([]float32{}, 0))
		add(tensor.From(randoms(r, n), int64(n)))
	}
	norm := func() {
		for range 2 {
			add(tensor.From(randoms(r, encWidth), encWidth))
		}
	}
	for range layers {
		weight(encWidth, 3*encWidth)
		weight(encWidth, encWidth)
		norm()
		weight(encWidth, encInner)
		weight(encInner, encWidth)
		norm()
	}
	m.nodes = []*pb.NodeProto{node("EncoderLayers", in, []string{"y"}, encoderAttrs(encWidth, encHeads, .25, 1e-5)...)}
	m.nodes[0].Domain = proto.String("fewbit")
	return m
}

func encoderAttrs(n, heads int64, scale, epsilon float32) []*pb.AttributeProto {
	return []*pb.AttributeProto{attrInt("N", n), attrInt("num_heads", heads), attrFloat("scale", scale), attrFloat("epsilon", epsilon)}
}

func attrFloat(name string, v float32) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_FLOAT.Enum(), F: proto.Float32(v)}
}

// TestEncoderLayers: threads change no bit, and calls at once do not disturb
// each other.
func TestEncoderLayers(t *testing.T) {
	e := withKernels(t)
	m := encoder(t, e, 2)
	for _, s := range [][2]int{{1, 1}, {1, 40}, {3, 30}, {0, 4}, {2, 0}} {
		n := s[0] * s[1]
		feeds := engine.Feeds{"x": tensor.From(randoms(rand.New(rand.NewPCG(1, 1)), n*encWidth), int64(s[0]), int64(s[1]), encWidth),
			"mask": tensor.From(randoms(rand.New(rand.NewPCG(2, 2)), n), int64(s[0]), 1, 1, int64(s[1]))}
		var want []float32
		for _, threads := range []int{1, 2, 3} {
			sess := open(t, m, engine.Options{Threads: threads})
			results := make(chan []float32, 4)
			for range cap(results) {
				go func() {
					var y []float32
					for range 5 {
						r, err := sess.Run(context.Background(), feeds, nil)
						if err != nil {
							t.Errorf("%v: %v", s, err)
							break
						}
						y = append([]float32(nil), tensor.View[float32](r.Tensors()["y"])...)
						r.Close()
					}
					results <- y
				}()
			}
			for range cap(results) {
				y := <-results
				if want == nil {
					want = y
				}
				if len(y) != n*encWidth {
					t.Fatalf("%v: %d values", s, len(y))
				}
				for i := range y {
					if y[i] != want[i] {
						t.Fatalf("%v: %d threads change element %d: %v, %v", s, threads, i, y[i], want[i])
					}
				}
			}
		}
	}
}

// TestEncoderLayersRefuses: nodes and feeds that do not fit end in an error.
func TestEncoderLayersRefuses(t *testing.T) {
	e := withKernels(t)
	feeds := func(x, mask *tensor.Tensor) engine.Feeds { return engine.Feeds{"x": x, "mask": mask} }
	floats := func(dims ...int64) *tensor.Tensor {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		return tensor.From(make([]float32, n), dims...)
	}
	fits := feeds(floats(1, 5, encWidth), floats(0))
	replaced := func(i int, v *tensor.Tensor) func(m *testModel) {
		return func(m *testModel) { m.init[i] = initializer(fmt.Sprintf("c%d", i), v) }
	}
	attrs := func(a []*pb.AttributeProto) func(m *testModel) {
		return func(m *testModel) { m.nodes[0].Attribute = a }
	}
	for name, edit := range map[string]func(m *testModel){
		"no layer":                 func(m *testModel) { m.nodes[0].Input = m.nodes[0].Input[:2] },
		"half a layer":             func(m *testModel) { m.nodes[0].Input = m.nodes[0].Input[:2+encConstants/2] },
		"a weight that is floats":  replaced(0, floats(4)),
		"a weight of nothing":      replaced(0, tensor.From([]byte{}, 0)),
		"a weight of another size": func(m *testModel) { m.nodes[0].Input[2], m.nodes[0].Input[5] = "c3", "c0" },
		"up where down belongs":    func(m *testModel) { m.nodes[0].Input[2+11] = m.nodes[0].Input[2+8] },
		"a gain of nothing":        replaced(6, floats(0)),
		"a bias of another size":   replaced(2, floats(7)),
		"a divisor of bytes":       replaced(1, tensor.From(make([]byte, encWidth), encWidth)),
		"a constant that is fed":   func(m *testModel) { m.nodes[0].Input[2+6] = "mask" },
		"heads that do not divide": attrs(encoderAttrs(encWidth, 3, .25, 1e-5)),
		"heads of 8 columns":       attrs(encoderAttrs(encWidth, 4, .25, 1e-5)),
		"no width":                 attrs(encoderAttrs(0, encHeads, .25, 1e-5)),
		"a huge width":             attrs(encoderAttrs(1<<60, encHeads, .25, 1e-5)),
		"no scale":                 attrs(encoderAttrs(encWidth, encHeads, 0, 1e-5)),
		"an epsilon below 0":       attrs(encoderAttrs(encWidth, encHeads, .25, -1)),
		"another activation":       attrs(append(encoderAttrs(encWidth, encHeads, .25, 1e-5), attrString("activation", "swish"))),
		"another normalization":    attrs(append(encoderAttrs(encWidth, encHeads, .25, 1e-5), attrString("normalize", "last"))),
		"hidden rows are others":   attrs(append(encoderAttrs(encWidth, encHeads, .25, 1e-5), attrString("hidden", "one"))),
		"another row is read":      attrs(append(encoderAttrs(encWidth, encHeads, .25, 1e-5), attrString("read", "last"))),
		"padding of another kind":  attrs(append(encoderAttrs(encWidth, encHeads, .25, 1e-5), attrString("padding", "half"))),
	} {
		m := encoder(t, e, 1)
		edit(&m)
		refused(t, e, name, m, fits)
	}
	s := open(t, encoder(t, e, 1), engine.Options{})
	run(t, s, fits)
	for name, f := range map[string]engine.Feeds{
		"x without a batch":       feeds(floats(5, encWidth), floats(0)),
		"x of another width":      feeds(floats(1, 5, encWidth+1), floats(0)),
		"a mask of another rank":  feeds(floats(1, 5, encWidth), floats(1, 5)),
		"a mask of another batch": feeds(floats(2, 5, encWidth), floats(3, 1, 1, 5)),
		"a mask that is shorter":  feeds(floats(1, 5, encWidth), floats(1, 1, 1, 4)),
	} {
		if _, err := s.Run(context.Background(), f, nil); !errors.Is(err, engine.ErrInput) && !errors.Is(err, engine.ErrModel) {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
}

// refused demands that m does not open, or does not take in.
func refused(t *testing.T, e *Engine, name string, m testModel, in engine.Feeds) {
	t.Helper()
	s, err := e.Open(context.Background(), m.file(t), engine.Options{})
	if err == nil {
		_, err = s.Run(context.Background(), in, nil)
		s.Close()
	}
	if !errors.Is(err, engine.ErrModel) && !errors.Is(err, engine.ErrInput) {
		t.Errorf("%s: %v, want ErrModel or ErrInput", name, err)
	}
}
