package pipeline

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// bodyOf is the graph of m as the attribute called name of an If.
func bodyOf(t *testing.T, name string, m *graph.Model) *pb.AttributeProto {
	t.Helper()
	p, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	p.Graph.Input = nil
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: p.Graph}
}

// gated is a network whose If takes one branch for about half of the samples. Both
// branches use the same inner names, weights of their own, one weight from outside,
// and a value from outside; what Insert will call things outside is taken inside.
func gated(t *testing.T) *graph.Model {
	r := rand.New(rand.NewPCG(11, 0))
	branch := func(act string) *graph.Model {
		b := newModel(nil, []*graph.Value{{Name: "y", Type: tensor.Float32}},
			node("MatMul", act+"/first", "a own", "a_quantized"), node("Add", act+"/bias", "a_quantized ownb", "s"), node(act, act+"/act", "s", "k"),
			node("MatMul", act+"/second", "k shared", "y"))
		b.Graph.SetInit("own", tensor.From(gauss(r, 256*128, .1), 256, 128))
		b.Graph.SetInit("ownb", tensor.From(gauss(r, 128, .1), 128))
		return b
	}
	m := mlp()
	m.Graph.Nodes = append(m.Graph.Nodes[:3:3],
		node("ReduceMean", "mean", "x", "mean", &pb.AttributeProto{Name: proto.String("keepdims"), Type: pb.AttributeProto_INT.Enum(), I: proto.Int64(0)}),
		node("Greater", "compare", "mean limit", "large"),
		node("If", "gate", "large", "logits", bodyOf(t, "then_branch", branch("Relu")), bodyOf(t, "else_branch", branch("Tanh"))))
	m.Graph.SetInit("limit", tensor.From([]float32{0}))
	m.Graph.SetInit("shared", tensor.From(gauss(r, 128*32, .1), 128, 32))
	m.Graph.DropInit("w2")
	return m
}

// TestBranches: both branches are quantized in every scheme and form, the result
// runs and is near the float model, weights are stored once and in few bits.
func TestBranches(t *testing.T) {
	p := testPipeline(t)
	src, calib := save(t, gated(t)), npy(t, 3, 96, 9, 64)
	for name, c := range map[string]struct {
		cfg       quant.Config
		precision string
		sqnr      float64
	}{
		"static":  {quant.Config{}, "int8", 25},
		"qdq":     {quant.Config{Target: quant.QDQ}, "int8", 25},
		"native":  {quant.Config{Target: quant.CPU}, "int8", 25},
		"dynamic": {quant.Config{Scheme: quant.INT8Dynamic}, "int8", 25},
		"4 bits":  {quant.Config{Scheme: quant.INT4}, "int4", 12},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir() + "/q.onnx"
			rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: calib, Samples: 60, Config: c.cfg, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			inside := 0
			for _, o := range rep.Operators {
				if o.Precision != c.precision {
					t.Errorf("%s: %s %s", o.Name, o.Precision, o.Rule)
				}
				if strings.Contains(o.Name, "/") {
					inside++
				}
			}
			if inside != 4 {
				t.Errorf("%d operators of bodies in the report, want 4: %+v", inside, rep.Operators)
			}
			if rep.Evaluation.SQNR < c.sqnr {
				t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
			}
			m, err := graph.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			for _, n := range m.Graph.Nodes {
				n.Bodies(func(inner *graph.Node, _ map[string]bool) {
					if inner.Is("Gemm") {
						t.Errorf("%s is a float product", inner.Name)
					}
				})
			}
			if m.Graph.Init("shared") != nil {
				t.Error("the float weight that both branches read is still there")
			}
		})
	}
	t.Run("fp16", func(t *testing.T) {
		rep, err := p.Quantize(context.Background(), Request{Model: src, Calib: calib, Samples: 60, Config: quant.Config{Scheme: quant.FP16}, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Evaluation.SQNR < 50 || rep.Quantized.Bytes > rep.Model.Bytes*6/10 {
			t.Errorf("SQNR %.1f dB, %d of %d bytes", rep.Evaluation.SQNR, rep.Quantized.Bytes, rep.Model.Bytes)
		}
	})
}

// TestNestedBranches: the body of an If in a body is quantized when samples take it;
// the other, whose condition holds where the outer one does, says that none does.
func TestNestedBranches(t *testing.T) {
	p := testPipeline(t)
	m := gated(t)
	gate := m.Graph.Nodes[len(m.Graph.Nodes)-1]
	inner := newModel(nil, []*graph.Value{{Name: "z", Type: tensor.Float32}}, node("MatMul", "deep", "k shared", "z"))
	then := gate.Attr("then_branch").G
	last := then.Node[len(then.Node)-1]
	other := newModel(nil, []*graph.Value{{Name: "z", Type: tensor.Float32}}, node("MatMul", "deeper", "k shared", "z"))
	*last = pb.NodeProto{OpType: proto.String("If"), Name: proto.String("again"), Input: []string{"large"}, Output: []string{"y"},
		Attribute: []*pb.AttributeProto{bodyOf(t, "then_branch", inner), bodyOf(t, "else_branch", other)}}
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Calib: npy(t, 3, 96, 9, 64), Samples: 60, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, o := range rep.Operators {
		got[o.Name] = o.Precision
		if want := `it is in the else_branch of If "again": calibration failed: none of`; o.Name == "deeper" && !strings.HasPrefix(o.Rule, want) {
			t.Errorf("%s: %q", o.Name, o.Rule)
		}
	}
	for name, want := range map[string]string{"up": "int8", "Relu/first": "int8", "Tanh/first": "int8", "Tanh/second": "int8", "deep": "int8", "deeper": "fp32"} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	if rep.Evaluation.SQNR < 20 {
		t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
	}
}
