package native

import (
	"math"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestCausal: encoders whose masks hide later tokens are one operator, in each
// form of the mask, and give what ONNX Runtime computes from the file.
func TestCausal(t *testing.T) {
	e := newEngine(t)
	for name, form := range map[string]opstest.Causal{
		"constant": opstest.CausalConstant, "slice": opstest.CausalSlice, "Trilu": opstest.CausalTrilu, "Where": opstest.CausalWhere,
	} {
		c := opstest.TinyBERT
		c.Causal, c.NormFirst, c.Act = form, true, opstest.QuickGelu
		m := opstest.Native(t, c.Model(), quant.INT8Dynamic)
		if got := operators(t, e, m); got[opEncoderLayers] != 1 || got[opEncoderAttention]+got["MultiHeadAttention"]+got["Softmax"] != 0 {
			t.Errorf("%s: %v", name, got)
		}
		path := opstest.Save(t, m)
		for _, length := range []int{c.Positions, 1, 2, 17} {
			if form == opstest.CausalConstant && length != c.Positions {
				continue
			}
			feeds := c.Feeds(3, 3, length)
			mask := tensor.View[int64](feeds["attention_mask"])
			counts := make([]int, 3) // rows that are computed
			for b := range counts {
				real := length - b
				if b == 2 {
					real = 0 // all padding
				}
				for i := range length {
					mask[b*length+i] = 0
					if i < real {
						mask[b*length+i] = 1
					}
				}
				counts[b] = real
				if real <= 0 {
					counts[b] = length
				}
				if form == opstest.CausalConstant {
					counts[b] = length
				}
			}
			want, got := outputs(t, e.Engine, path, feeds), outputs(t, e, path, feeds)
			for out, w := range want {
				a, b := tensor.View[float32](w), tensor.View[float32](got[out])
				if len(a) != len(b) {
					t.Fatalf("%s: %s: %v, want %v", name, out, got[out].Dims, w.Dims)
				}
				var d, s float64
				for i := range a {
					if i/c.Hidden%length < counts[i/c.Hidden/length] {
						d += float64(a[i]-b[i]) * float64(a[i]-b[i])
						s += float64(a[i]) * float64(a[i])
					}
				}
				if !(math.Sqrt(d/s) <= encoderTolerance) {
					t.Errorf("%s: length %d: %s is off by %.2g", name, length, out, math.Sqrt(d/s))
				}
			}
		}
	}
}

// TestCausalSeesNothingLater: what comes later changes no bit of a token's row,
// and what comes before does.
func TestCausalSeesNothingLater(t *testing.T) {
	e := newEngine(t)
	c := opstest.TinyBERT
	c.Causal, c.NormFirst = opstest.CausalTrilu, true
	path := opstest.Save(t, opstest.Native(t, c.Model(), quant.INT8Dynamic))
	const length, changed = 40, 23
	run := func(feeds engine.Feeds) []float32 {
		return tensor.View[float32](outputs(t, e, path, feeds)["last_hidden_state"])
	}
	feeds := c.Feeds(3, 1, length)
	before := run(feeds)
	ids := tensor.View[int64](feeds["input_ids"])
	ids[changed] = (ids[changed] + 1) % int64(c.Vocab)
	after := run(feeds)
	for r := range length {
		same := true
		for i := r * c.Hidden; i < (r+1)*c.Hidden; i++ {
			same = same && math.Float32bits(before[i]) == math.Float32bits(after[i])
		}
		if same != (r < changed) {
			t.Fatalf("row %d: the same is %v", r, same)
		}
	}
}

// TestMaskOfOtherSizes: a constant mask that does not fit leaves the attention as
// the model has it.
func TestMaskOfOtherSizes(t *testing.T) {
	for name, mask := range map[string]*tensor.Tensor{
		"a vector":        tensor.From(make([]float32, 64), 64),
		"of other heads":  tensor.From(make([]float32, 3*64*64), 3, 64, 64),
		"five dimensions": tensor.From(make([]float32, 64*64), 1, 1, 1, 64, 64),
		"no dimensions":   tensor.From([]float32{0}),
		"one number":      tensor.From([]float32{0}, 1, 1, 1, 1),
	} {
		c := opstest.TinyBERT
		c.Causal = opstest.CausalConstant
		m := c.Model()
		m.Graph.SetInit("causal_mask", mask)
		if _, err := (quant.FuseAttention{}).Run(t.Context(), shaped(m)); err != nil {
			t.Fatal(err)
		}
		for _, n := range m.Graph.Nodes {
			if n.Op == "MultiHeadAttention" {
				t.Errorf("%s: fused", name)
			}
		}
	}
}

// TestScoresOfOtherForms: what replaces scores by a number that does not make them
// vanish, or scales values, is no such attention.
func TestScoresOfOtherForms(t *testing.T) {
	scaledValues := func(m *graph.Model) {
		g := m.Graph
		for i, n := range g.Nodes {
			if n.Outputs[0] == "layer.0.attention.context" {
				g.Nodes = append(g.Nodes[:i:i], append([]*graph.Node{graph.NewNode("", "Mul", "v", []string{n.In(1), "root_size"}, []string{"v"})}, g.Nodes[i:]...)...)
				n.Inputs[1] = "v"
				return
			}
		}
	}
	number := func(v float32) func(m *graph.Model) {
		return func(m *graph.Model) { m.Graph.SetInit("lowest", tensor.From([]float32{v})) }
	}
	for name, tc := range map[string]struct {
		scores opstest.Scores
		edit   func(m *graph.Model)
		want   int
	}{
		"the lowest":         {opstest.Filled, number(-math.MaxFloat32), 2},
		"minus infinity":     {opstest.Filled, number(float32(math.Inf(-1))), 2},
		"-1000":              {opstest.Filled, number(-1000), 0},
		"no number":          {opstest.Filled, number(float32(math.NaN())), 0},
		"values are scaled":  {opstest.Halved, scaledValues, 1},
		"scaled by infinity": {opstest.Halved, func(m *graph.Model) { m.Graph.SetInit("half_root", tensor.From([]float32{float32(math.Inf(1))})) }, 0},
	} {
		c := opstest.TinyBERT
		c.Scores = tc.scores
		m := c.Model()
		tc.edit(m)
		s, err := (quant.FuseAttention{}).Run(t.Context(), shaped(m))
		if err != nil || s.Changed != tc.want {
			t.Errorf("%s: %d fused, want %d: %v", name, s.Changed, tc.want, err)
		}
	}
}

func shaped(m *graph.Model) *graph.Model {
	graph.InferShapes(m)
	return m
}
