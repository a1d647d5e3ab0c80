package pipeline

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// graphOf is the graph of m, whose inputs are a body's own, as an attribute.
func graphOf(t *testing.T, name string, m *graph.Model) *pb.AttributeProto {
	t.Helper()
	p, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_GRAPH.Enum(), G: p.Graph}
}

func typed(name string, d tensor.DType) *graph.Value {
	return &graph.Value{Name: name, Type: d, Dims: []graph.Dim{}}
}

// cell is h' = tanh(x u + h w) with u of the body and w from outside, y = h' v.
func cell(r *rand.Rand, x, h, prefix string) (nodes []*graph.Node, inits map[string]*tensor.Tensor) {
	return []*graph.Node{
			node("MatMul", prefix+"in", x+" u", "xu"), node("MatMul", prefix+"state", h+" shared", "hw"),
			node("Add", prefix+"add", "xu hw", "s"), node("Tanh", prefix+"tanh", "s", "h_out")},
		map[string]*tensor.Tensor{"u": tensor.From(gauss(r, 64*64, .1), 64, 64)}
}

// outside is x -> project (weight "shared") -> p, of which a body is to be made y,
// which a last product makes the output.
func outside(r *rand.Rand, nodes ...*graph.Node) *graph.Model {
	m := newModel([]*graph.Value{value("x", -1, -1, 64)}, []*graph.Value{value("logits", -1, -1, 32)},
		append(append([]*graph.Node{node("MatMul", "project", "x shared", "p")}, nodes...), node("MatMul", "down", "y w2", "logits"))...)
	m.Graph.SetInit("shared", tensor.From(gauss(r, 64*64, .1), 64, 64))
	m.Graph.SetInit("w2", tensor.From(gauss(r, 64*32, .1), 64, 32))
	return m
}

// trips are nodes that count how often a Loop is to run: once for each position of x
// whose mean is positive, so that some samples do not run it.
func trips(m *graph.Model) []*graph.Node {
	m.Graph.SetInit("zero", tensor.From([]float32{0}))
	m.Graph.SetInit("axes", tensor.From([]int64{0, 1}, 2))
	return []*graph.Node{
		node("ReduceMean", "mean", "x", "mean", graph.AttrInts("axes", 2), graph.AttrInt("keepdims", 0)),
		node("Greater", "positive", "mean limit", "positive"), node("Cast", "ones", "positive", "ones", graph.AttrInt("to", int64(tensor.Int64))),
		node("ReduceSum", "count", "ones axes", "trips", graph.AttrInt("keepdims", 0))}
}

// loopModel carries h on, from p, as often as trips says; its body reads p too.
func loopModel(t *testing.T, limit float32, wrap func(*rand.Rand, *graph.Model) *graph.Model) *graph.Model {
	r := rand.New(rand.NewPCG(21, 0))
	nodes, inits := cell(r, "p", "h", "loop/")
	nodes = append(nodes, node("Identity", "loop/on", "on", "on_out"))
	b := newModel([]*graph.Value{typed("i", tensor.Int64), typed("on", tensor.Bool), value("h", -1, -1, 64)},
		[]*graph.Value{typed("on_out", tensor.Bool), value("h_out", -1, -1, 64)}, nodes...)
	for name, v := range inits {
		b.Graph.SetInit(name, v)
	}
	if wrap != nil {
		b = wrap(r, b)
	}
	m := outside(r)
	count := trips(m)
	m.Graph.SetInit("limit", tensor.From([]float32{limit}))
	loop := graph.NewNode("", "Loop", "loop", []string{"trips", "", "p"}, []string{"y"}, graphOf(t, "body", b))
	m.Graph.Nodes = slices.Concat(m.Graph.Nodes[:1], count, []*graph.Node{loop}, m.Graph.Nodes[1:])
	return m
}

// scanModel runs the cell over the positions of p, from the last to the first, and
// gives each state.
func scanModel(t *testing.T) *graph.Model {
	r := rand.New(rand.NewPCG(22, 0))
	nodes, inits := cell(r, "e", "h", "scan/")
	b := newModel([]*graph.Value{value("h", -1, 64), value("e", -1, 64)}, []*graph.Value{value("h_out", -1, 64), value("each", -1, 64)},
		append(nodes, node("Identity", "scan/each", "h_out", "each"))...)
	for name, v := range inits {
		b.Graph.SetInit(name, v)
	}
	m := outside(r, node("ReduceMean", "first", "p", "h0", graph.AttrInts("axes", 1), graph.AttrInt("keepdims", 0)),
		graph.NewNode("", "Scan", "scan", []string{"h0", "p"}, []string{"last", "y"}, graphOf(t, "body", b), graph.AttrInt("num_scan_inputs", 1),
			graph.AttrInts("scan_input_axes", 1), graph.AttrInts("scan_input_directions", 1), graph.AttrInts("scan_output_axes", 1), graph.AttrInts("scan_output_directions", 1)))
	return m
}

// loopWithIf has an If in the body of its Loop, by the parity of the iteration.
func loopWithIf(t *testing.T) *graph.Model {
	return loopModel(t, 0, func(r *rand.Rand, b *graph.Model) *graph.Model {
		then := newModel(nil, []*graph.Value{{Name: "k", Type: tensor.Float32}}, node("MatMul", "even", "s odd_even", "k"))
		then.Graph.SetInit("odd_even", tensor.From(gauss(r, 64*64, .1), 64, 64))
		other := newModel(nil, []*graph.Value{{Name: "k", Type: tensor.Float32}}, node("MatMul", "odd", "s shared", "k"))
		at := slices.IndexFunc(b.Graph.Nodes, func(n *graph.Node) bool { return n.Op == "Tanh" })
		b.Graph.Nodes[at].Inputs[0] = "chosen"
		b.Graph.Nodes = slices.Insert(b.Graph.Nodes, at, node("Mod", "parity", "i two", "parity"), node("Cast", "uneven", "parity", "uneven", graph.AttrInt("to", int64(tensor.Bool))),
			node("If", "gate", "uneven", "chosen", bodyOf(t, "then_branch", other), bodyOf(t, "else_branch", then)))
		b.Graph.SetInit("two", tensor.From([]int64{2}))
		return b
	})
}

// ifWithLoop has the Loop of loopModel in one branch of an If.
func ifWithLoop(t *testing.T) *graph.Model {
	m := loopModel(t, 0, nil)
	at := slices.IndexFunc(m.Graph.Nodes, func(n *graph.Node) bool { return n.Op == "Loop" })
	loop := *m.Graph.Nodes[at]
	loop.Outputs = []string{"looped"}
	then := newModel(nil, []*graph.Value{{Name: "looped", Type: tensor.Float32}}, &loop)
	other := newModel(nil, []*graph.Value{{Name: "straight", Type: tensor.Float32}}, node("MatMul", "straight", "p shared", "straight"))
	m.Graph.SetInit("few", tensor.From([]int64{4}, 1))
	m.Graph.Nodes[at] = node("If", "gate", "many", "y", bodyOf(t, "then_branch", then), bodyOf(t, "else_branch", other))
	m.Graph.Nodes = slices.Insert(m.Graph.Nodes, at, node("Greater", "many", "trips few", "many"))
	return m
}

// TestLoops: the bodies of Loop and Scan, and bodies in bodies, are quantized in
// every scheme and form; the result runs and is near the float model.
func TestLoops(t *testing.T) {
	p := testPipeline(t)
	calib := npy(t, 3, 72, 9, 64)
	for model, m := range map[string]struct {
		m      *graph.Model
		inside []string
	}{
		"loop":       {loopModel(t, 0, nil), []string{"loop/in", "loop/state"}},
		"scan":       {scanModel(t), []string{"scan/in", "scan/state"}},
		"if in loop": {loopWithIf(t), []string{"loop/in", "loop/state", "even", "odd"}},
		"loop in if": {ifWithLoop(t), []string{"loop/in", "loop/state", "straight"}},
	} {
		src := save(t, m.m)
		for name, c := range map[string]struct {
			cfg       quant.Config
			precision string
			sqnr      float64
			calib     string
		}{
			"static":    {quant.Config{}, "int8", 25, calib},
			"qdq":       {quant.Config{Target: quant.QDQ}, "int8", 25, calib},
			"qoperator": {quant.Config{Target: quant.QOperator}, "int8", 22, calib},
			"native":    {quant.Config{Target: quant.CPU}, "int8", 25, calib},
			"dynamic":   {quant.Config{Scheme: quant.INT8Dynamic}, "int8", 25, ""},
			"4 bits":    {quant.Config{Scheme: quant.INT4}, "int4", 12, calib},
		} {
			t.Run(model+"/"+name, func(t *testing.T) {
				out := t.TempDir() + "/q.onnx"
				rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Calib: c.calib, Eval: calib, Samples: 48, Config: c.cfg, NoLatency: true, Force: true}, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := map[string]string{}
				for _, o := range rep.Operators {
					if got[o.Name] = o.Precision; o.Precision != c.precision {
						t.Errorf("%s: %s %s", o.Name, o.Precision, o.Rule)
					}
				}
				for _, name := range m.inside {
					if got[name] == "" {
						t.Errorf("%s is not in the report: %v", name, got)
					}
				}
				if rep.Evaluation.SQNR < c.sqnr {
					t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
				}
				q, err := graph.Open(out)
				if err != nil {
					t.Fatal(err)
				}
				defer q.Close()
				if q.Graph.Init("shared") != nil {
					t.Error("the float weight that bodies share is still there")
				}
			})
		}
	}
}

// TestIterations: what a body gets in each iteration here is what it gets in ONNX
// Runtime, which stacks it as a further output.
func TestIterations(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	calib := npy(t, 5, 12, 9, 64)
	for name, m := range map[string]*graph.Model{"loop": loopModel(t, 0, nil), "scan": scanModel(t)} {
		t.Run(name, func(t *testing.T) {
			r, err := p.start(ctx, Request{Model: save(t, m), Calib: calib, Samples: 12}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer r.close()
			if err := r.prepare(ctx); err != nil {
				t.Fatal(err)
			}
			n := r.float.Graph.Nodes[slices.IndexFunc(r.float.Graph.Nodes, func(n *graph.Node) bool { return n.HasSubgraph() })]
			sub, err := r.body(ctx, n, "body")
			if err != nil {
				t.Fatal(err)
			}
			var seen []string // what the body has seen, in the order of the samples
			ds, err := sub.samplesOf()
			if err != nil {
				t.Fatal(err)
			}
			defer ds.Close()
			for {
				s, err := ds.Next(ctx)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := engine.CheckFeeds(SpecOf(sub.m), s.Feeds); err != nil {
					t.Fatal(err)
				}
				seen = append(seen, string(s.Feeds["h"].Data))
				if e := s.Feeds["e"]; e != nil {
					seen[len(seen)-1] += string(e.Data)
				}
			}
			if want := stacked(t, p, m, calib); !slices.Equal(seen, want) {
				t.Errorf("%d iterations, ONNX Runtime has %d, or they differ", len(seen), len(want))
			}
		})
	}
}

// stacked runs the model with the values of each iteration as a further output.
func stacked(t *testing.T, p *Pipeline, m *graph.Model, calib string) (seen []string) {
	t.Helper()
	m = m.Clone()
	n := m.Graph.Nodes[slices.IndexFunc(m.Graph.Nodes, func(n *graph.Node) bool { return n.HasSubgraph() })]
	b := proto.Clone(n.Attr("body").G).(*pb.GraphProto)
	names := []string{"h"}
	if n.Op == "Scan" {
		names = append(names, "e")
	}
	for i, name := range names {
		b.Node = append(b.Node, &pb.NodeProto{OpType: proto.String("Identity"), Input: []string{name}, Output: []string{name + "_seen"}})
		b.Output = append(b.Output, &pb.ValueInfoProto{Name: proto.String(name + "_seen"), Type: b.Output[len(b.Output)-1-i].Type})
		n.Outputs = append(n.Outputs, name+"_stack")
		m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: name + "_stack", Type: tensor.Float32})
	}
	for i, a := range n.Attrs {
		switch a.GetName() {
		case "body":
			n.Attrs[i] = &pb.AttributeProto{Name: a.Name, Type: a.Type, G: b}
		case "scan_output_axes", "scan_output_directions":
			n.Attrs[i] = graph.AttrInts(a.GetName(), append(slices.Clone(a.Ints), 0, 0)...)
		}
	}
	s, err := p.Engine.OpenFile(t.Context(), save(t, m), engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ds := openNPY(t, m, calib)
	defer ds.Close()
	for {
		x, err := ds.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return seen
		}
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.Run(t.Context(), x.Feeds, nil)
		if err != nil {
			t.Fatal(err)
		}
		stacks := maps.Clone(res.Tensors())
		h := stacks["h_stack"]
		for i := range h.Dims[0] {
			of := ""
			for _, name := range names {
				v := stacks[name+"_stack"]
				size := int64(len(v.Data)) / v.Dims[0]
				of += string(v.Data[i*size : (i+1)*size])
			}
			seen = append(seen, of)
		}
		res.Close()
	}
}

// TestLoopsLeft: a body that no sample runs stays in float, with what is in it, and
// the report says why.
func TestLoopsLeft(t *testing.T) {
	p := testPipeline(t)
	calib := npy(t, 3, 72, 9, 64)
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, loopModel(t, 100, nil)), Calib: calib, Samples: 48, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rep.Operators {
		want := ""
		if strings.HasPrefix(o.Name, "loop/") {
			want = `it is in the body of Loop "loop": calibration failed: none of 48 samples runs it`
		}
		if o.Rule != want {
			t.Errorf("%s: %q, want %q", o.Name, o.Rule, want)
		}
	}
	if rep.Evaluation.SQNR < 25 {
		t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
	}
}

// TestGrowingState: what is carried on may grow, as a cache of keys does, and the
// types of a body's own inputs may stand outside only.
func TestGrowingState(t *testing.T) {
	p := testPipeline(t)
	r := rand.New(rand.NewPCG(23, 0))
	b := newModel([]*graph.Value{typed("i", tensor.Int64), typed("on", tensor.Bool), {Name: "h"}}, []*graph.Value{{Name: "on_out", Type: tensor.Bool}, {Name: "h_out", Type: tensor.Float32}},
		node("ReduceMean", "loop/mean", "h", "mean", graph.AttrInts("axes", 1), graph.AttrInt("keepdims", 1)), node("MatMul", "loop/next", "mean shared", "next"),
		node("Concat", "loop/grow", "h next", "h_out", graph.AttrInt("axis", 1)), node("Less", "loop/on", "i last", "on_out"))
	b.Graph.SetInit("last", tensor.From([]int64{5}))
	m := outside(r, graph.NewNode("", "Loop", "loop", []string{"", "", "p"}, []string{"grown"}, graphOf(t, "body", b)),
		node("ReduceMean", "flat", "grown", "y", graph.AttrInts("axes", 1), graph.AttrInt("keepdims", 1)))
	for name, cfg := range map[string]quant.Config{"static": {}, "fp16": {Scheme: quant.FP16}} {
		t.Run(name, func(t *testing.T) {
			rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Calib: npy(t, 3, 40, 9, 64), Samples: 24, Config: cfg, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range rep.Operators {
				if o.Rule != "" {
					t.Errorf("%s: %s", o.Name, o.Rule)
				}
			}
			if rep.Evaluation.SQNR < 20 {
				t.Errorf("SQNR %.1f dB", rep.Evaluation.SQNR)
			}
		})
	}
}

func openNPY(t *testing.T, m *graph.Model, path string) data.Dataset {
	t.Helper()
	ds, err := data.Open(path, data.Options{Spec: SpecOf(m), Samples: 12})
	if err != nil {
		t.Fatal(err)
	}
	return ds
}
