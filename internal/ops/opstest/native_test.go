package opstest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

func count(m *graph.Model) map[string]int {
	c := map[string]int{}
	for _, n := range m.Graph.Nodes {
		op := n.Op
		if n.Domain != "" {
			op = n.Domain + "." + op
		}
		c[op]++
	}
	return c
}

func cosine(a, b *tensor.Tensor) float64 {
	x, y := tensor.View[float32](a), tensor.View[float32](b)
	var xy, xx, yy float64
	for i := range x {
		xy += float64(x[i]) * float64(y[i])
		xx += float64(x[i]) * float64(x[i])
		yy += float64(y[i]) * float64(y[i])
	}
	return xy / math.Sqrt(xx*yy)
}

// TestNative: the form holds what docs/ops.md says, with shared QuantizeRows,
// runs in ONNX Runtime and gives the float model's answer.
func TestNative(t *testing.T) {
	e := Engine(t)
	bert := BERT{Vocab: 1100, Head: MeanPool}
	for _, c := range []struct {
		m       *graph.Model
		feeds   map[string]*tensor.Tensor
		out     string
		scheme  quant.Scheme
		cosine  float64 // least, measured less a third of what was lost
		present map[string]int
	}{
		// Two layers: Q, K and V share one QuantizeRows; the projection behind
		// attention and both of the feed-forward network have their own.
		{bert.Model(), bert.Feeds(5, 3, 13), "sentence_embedding", quant.INT8Dynamic, .9997, map[string]int{
			"fewbit.QuantizeRows": 8, "fewbit.MatMulQuantized": 12, "com.microsoft.MultiHeadAttention": 2, "LayerNormalization": 5, "Erf": 2, "Gather": 6}},
		{bert.Model(), bert.Feeds(5, 3, 13), "sentence_embedding", quant.INT4, .999, map[string]int{
			"com.microsoft.MatMulNBits": 12, "com.microsoft.MultiHeadAttention": 2}},
		{TinyCNN.Model(), TinyCNN.Feeds(5, 2), "logits", quant.INT8, .999, map[string]int{
			"fewbit.QuantizeRows": 1, "fewbit.MatMulQuantized": 1, "Conv": 8, "GlobalAveragePool": 1, "Flatten": 1}},
	} {
		t.Run(fmt.Sprint(c.m.Graph.Name, " ", c.scheme), func(t *testing.T) {
			q := Native(t, c.m, c.scheme)
			if err := ops.Verify(q); err != nil {
				t.Error(err)
			}
			have := count(q)
			for op, n := range c.present {
				if have[op] != n {
					t.Errorf("%d %s, want %d", have[op], op, n)
				}
			}
			ref, got := Run(t, e, Save(t, c.m), c.feeds)[c.out], Run(t, e, Save(t, q), c.feeds)[c.out]
			if cos := cosine(ref, got); cos < c.cosine {
				t.Errorf("cosine %.5f, want %.5f", cos, c.cosine)
			} else {
				t.Logf("cosine %.5f", cos)
			}
		})
	}
}

// TestOperators: inside whole models, every operator gives in ONNX Runtime what
// the reference computes of the same inputs, bit for bit.
func TestOperators(t *testing.T) {
	e := Engine(t)
	for _, c := range []struct {
		m      *graph.Model
		feeds  map[string]*tensor.Tensor
		scheme quant.Scheme
	}{
		{BERT{Head: Classifier}.Model(), BERT{}.Feeds(6, 4, 9), quant.INT8Dynamic},
		{TinyCNN.Model(), TinyCNN.Feeds(6, 2), quant.INT8},
	} {
		q := Native(t, c.m, c.scheme)
		var taps []string
		for _, n := range q.Graph.Nodes {
			if n.Domain == ops.Domain {
				taps = append(append(taps, n.In(0)), n.Outputs...)
			}
		}
		graph.InferShapes(q)
		got := Run(t, e, Save(t, pipeline.Tapped(q, taps)), c.feeds)
		rows := map[string]*ops.Rows{}
		checked := 0
		for _, n := range q.Graph.Nodes {
			if n.Domain != ops.Domain {
				continue
			}
			checked++
			if n.Op == ops.OpQuantizeRows {
				x := got[n.In(0)]
				k := int(x.Dims[len(x.Dims)-1])
				r, err := ops.QuantizeRows(tensor.View[float32](x), int(x.Len())/k, k)
				if err != nil {
					t.Fatal(err)
				}
				rows[n.Outputs[0]] = r
				if !slices.Equal(r.Codes, tensor.View[uint8](got[n.Outputs[0]])) || !slices.Equal(r.Scale, tensor.View[float32](got[n.Outputs[1]])) ||
					!slices.Equal(r.Zero, tensor.View[uint8](got[n.Outputs[2]])) {
					t.Errorf("%s differs from the reference", n.Name)
				}
				continue
			}
			w := q.Graph.Init(n.In(3))
			y, err := ops.MatMulQuantized(rows[n.In(0)], tensor.View[int8](w), int(w.Dims[1]), tensor.View[float32](q.Graph.Init(n.In(4))), tensor.View[int32](q.Graph.Init(n.In(5))))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(y, tensor.View[float32](got[n.Outputs[0]])) {
				t.Errorf("%s differs from the reference", n.Name)
			}
		}
		if checked == 0 {
			t.Error("no operator of the domain")
		}
	}
}

// TestCalibrated: calibration makes both better than the form without.
func TestCalibrated(t *testing.T) {
	e := Engine(t)
	samples := func(feeds func(seed uint64) map[string]*tensor.Tensor) (s []map[string]*tensor.Tensor) {
		for i := range 32 {
			s = append(s, feeds(100+uint64(i)))
		}
		return s
	}
	bert := BERT{Decomposed: true}
	for _, c := range []struct {
		m      *graph.Model
		feeds  func(seed uint64) map[string]*tensor.Tensor
		out    string
		cosine float64
	}{
		{bert.Model(), func(seed uint64) map[string]*tensor.Tensor { return bert.Feeds(seed, 1, 16) }, "last_hidden_state", .999},
		{TinyCNN.Model(), func(seed uint64) map[string]*tensor.Tensor { return TinyCNN.Feeds(seed, 1) }, "logits", .999},
	} {
		t.Run(c.m.Graph.Name, func(t *testing.T) {
			path := Calibrated(t, c.m, quant.Config{Target: quant.CUDA}, samples(c.feeds))
			feeds := c.feeds(1)
			plain := Run(t, e, Save(t, Native(t, c.m, quant.INT8)), feeds)[c.out]
			ref, got := Run(t, e, Save(t, c.m), feeds)[c.out], Run(t, e, path, feeds)[c.out]
			cos, without := cosine(ref, got), cosine(ref, plain)
			t.Logf("cosine %.5f, without calibration %.5f", cos, without)
			if cos < c.cosine || cos < without {
				t.Errorf("cosine %.5f, want %.5f; without calibration %.5f", cos, c.cosine, without)
			}
		})
	}
}
