package pipeline

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	lstmIn     = 24
	lstmHidden = 20
	lstmSteps  = 7
)

// twoLSTMs reads [batch, steps, inputs] both ways; a second LSTM shares its weights
// with the first, and the states of the first are outputs too.
func twoLSTMs(attrs ...*pb.AttributeProto) *graph.Model {
	m := newModel([]*graph.Value{value("x", -1, lstmSteps, lstmIn)}, []*graph.Value{value("y", lstmSteps, 2, -1, lstmHidden), value("h", 2, -1, lstmHidden)},
		node("Transpose", "steps", "x", "xs", graph.AttrInts("perm", 1, 0, 2)),
		node("LSTM", "first", "xs w r b", "y1 h c", append([]*pb.AttributeProto{graph.AttrInt("hidden_size", lstmHidden), graph.AttrString("direction", "bidirectional")}, attrs...)...),
		node("LSTM", "second", "xs w r", "y2", graph.AttrInt("hidden_size", lstmHidden), graph.AttrString("direction", "bidirectional")),
		node("Add", "sum", "y1 y2", "y"))
	r := rand.New(rand.NewPCG(3, 0))
	m.Graph.SetInit("w", tensor.From(gauss(r, 2*4*lstmHidden*lstmIn, .3), 2, 4*lstmHidden, lstmIn))
	m.Graph.SetInit("r", tensor.From(gauss(r, 2*4*lstmHidden*lstmHidden, .2), 2, 4*lstmHidden, lstmHidden))
	m.Graph.SetInit("b", tensor.From(gauss(r, 2*8*lstmHidden, .1), 2, 8*lstmHidden))
	return m
}

// TestLSTM: an LSTM runs in integers, by every scheme and form that has it, close to the
// float one; its codes are to nearest by column and direction, its weights stored
// once; the file is known as quantized.
func TestLSTM(t *testing.T) {
	p := testPipeline(t)
	m := twoLSTMs()
	src := save(t, m)
	x := tensor.From(gauss(rand.New(rand.NewPCG(9, 0)), 2*lstmSteps*lstmIn, 1), 2, lstmSteps, lstmIn)
	want := outputOf(t, p, src, x)
	for _, c := range []quant.Config{
		{Scheme: quant.INT8Dynamic}, {Scheme: quant.INT8Dynamic, Target: quant.CPU}, {Scheme: quant.INT8Dynamic, Granularity: quant.PerTensor},
		{Scheme: quant.INT8Dynamic, ReduceRange: true},
	} {
		out := filepath.Join(t.TempDir(), "q.onnx")
		rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: c, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		for _, o := range rep.Operators {
			if !o.Integer {
				t.Errorf("%+v: %s is not in integers: %s", c, o.Name, o.Rule)
			}
		}
		var signal, noise float64
		for i, v := range outputOf(t, p, out, x) {
			signal += float64(want[i]) * float64(want[i])
			noise += float64(want[i]-v) * float64(want[i]-v)
		}
		if db := 10 * math.Log10(signal/noise); !(db > 25) {
			t.Errorf("%+v: %.1f dB", c, db)
		}
		q, err := graph.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		if op := q.Quantized(); op != "DynamicQuantizeLSTM" {
			t.Errorf("known as quantized by %q", op)
		}
		codes := 0
		for _, name := range q.Graph.Inits() {
			if i := q.Graph.Init(name); i.Type == tensor.Int8 && len(i.Dims) == 3 && strings.HasSuffix(name, "_quantized") {
				codes++
				checkLSTMCodes(t, m.Graph.Init(strings.TrimSuffix(name, "_quantized")), i, q.Graph.Init(strings.TrimSuffix(name, "_quantized")+"_scale"))
			}
		}
		if codes != 2 {
			t.Errorf("%d weights, of which two LSTMs share 2", codes)
		}
		q.Close()
	}
}

// checkLSTMCodes: each weight is its code times the scale of its column and direction,
// to half of it; the codes are transposed.
func checkLSTMCodes(t *testing.T, w, codes, scale *tensor.Tensor) {
	t.Helper()
	v, err := w.F32()
	if err != nil {
		t.Fatal(err)
	}
	c, s := tensor.View[int8](codes), tensor.View[float32](scale)
	dirs, cols, rows := int(w.Dims[0]), int(w.Dims[1]), int(w.Dims[2])
	for d := range dirs {
		for j := range cols {
			step := s[d*(len(s)/dirs)+j%(len(s)/dirs)]
			for i := range rows {
				was, is := v[(d*cols+j)*rows+i], float32(c[(d*rows+i)*cols+j])*step
				if math.Abs(float64(was-is)) > float64(step)*.5001 {
					t.Fatalf("direction %d, column %d, row %d: %v became %v, scale %v", d, j, i, was, is, step)
				}
			}
		}
	}
}

// TestLSTMStatic: beside a static scheme's ranges an LSTM measures its own; a rule may keep
// it in float, and what has no such form says so.
func TestLSTMStatic(t *testing.T) {
	p := testPipeline(t)
	m := twoLSTMs()
	m.Graph.Outputs = m.Graph.Outputs[:1]
	src := save(t, m)
	req := Request{Model: src, Calib: npySteps(t), Samples: 8, NoLatency: true, Force: true}
	rep, err := p.Quantize(context.Background(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	if share, _ := rep.Integer.Share(); share != 1 || rep.Evaluation.SQNR < 25 {
		t.Errorf("%v in integers, %.1f dB", share, rep.Evaluation.SQNR)
	}
	req.Config = quant.Config{Rules: []quant.Rule{{Match: "first", Precision: quant.PrecisionFP32}}}
	if rep, err = p.Quantize(context.Background(), req, nil); err != nil {
		t.Fatal(err)
	}
	if share, _ := rep.Integer.Share(); share != .5 {
		t.Errorf("with one of two in float %v are in integers", share)
	}
	for _, c := range []struct {
		name   string
		config quant.Config
		attrs  []*pb.AttributeProto
		harm   func(*graph.Model)
		says   string
	}{
		{"portable", quant.Config{Target: quant.QDQ}, nil, nil, "no integer form with target qdq"},
		{"wide", quant.Config{Target: quant.QDQ, Wide: true}, nil, nil, "no form with scheme a16w8"},
		{"four bits", quant.Config{Scheme: quant.INT4}, nil, nil, "no form with scheme int4"},
		{"unlike weights", quant.Config{}, nil, func(m *graph.Model) {
			m.Graph.SetInit("r", tensor.From(make([]float32, 2*80*10), 2, 80, 10))
		}, "do not fit together"},
		{"NaN", quant.Config{}, nil, func(m *graph.Model) {
			v, err := m.Graph.Init("w").F32()
			if err != nil {
				t.Fatal(err)
			}
			v[3] = float32(math.NaN())
		}, `weight "w"`},
	} {
		m := twoLSTMs(c.attrs...)
		m.Graph.Outputs = m.Graph.Outputs[:1]
		if c.harm != nil {
			c.harm(m)
		}
		_, err := p.Quantize(context.Background(), Request{Model: save(t, m), Config: c.config, Calib: npySteps(t), Samples: 8, NoLatency: true, Force: true}, nil)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, expected %q", c.name, err, c.says)
		}
		if c.name != "NaN" && c.name != "unlike weights" && !errors.Is(err, quant.ErrNothing) {
			t.Errorf("%s: %v is no ErrNothing", c.name, err)
		}
	}
}

// npySteps writes samples of one sequence each, [1, steps, inputs].
func npySteps(t *testing.T) string {
	t.Helper()
	return npy(t, 5, 16, lstmSteps, lstmIn)
}

// TestLSTMSensitivity: what is not measured by itself is said.
func TestLSTMSensitivity(t *testing.T) {
	p := testPipeline(t)
	m := twoLSTMs()
	m.Graph.Outputs = m.Graph.Outputs[:1]
	got, err := p.Sensitivity(context.Background(), SensitivityRequest{Model: save(t, m), Calib: npySteps(t), Samples: 8}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(got.Warnings, "\n"), "2 LSTM are part of the whole") {
		t.Errorf("warnings %q", got.Warnings)
	}
}
