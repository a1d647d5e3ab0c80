package quant

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// highBias is x -> Conv 3x3 -> Relu -> {Conv 2x2 in two groups, Conv 1x1}. Channels 1
// and 3 of the first never fall to 0.
func highBias(reader ...*pb.AttributeProto) *graph.Model {
	m := model([]*graph.Value{value("x", -1, 2, -1, -1)}, []*graph.Value{value("y", -1, 4, -1, -1), value("z", -1, 2, -1, -1)},
		node("Conv", "first", "x w1 b1", "a"), node("Relu", "relu", "a", "r"),
		node("Conv", "grouped", "r w2 b2", "y", append(reader, graph.AttrInt("group", 2))...), node("Conv", "point", "r w3 b3", "z"))
	weight(m, "w1", 1, 4, 2, 3, 3)
	weight(m, "w2", 2, 4, 2, 2, 2)
	weight(m, "w3", 3, 2, 4, 1, 1)
	weight(m, "b2", 4, 4)
	weight(m, "b3", 5, 2)
	m.Graph.SetInit("b1", tensor.From([]float32{.1, 30, -.2, 9}, 4))
	return m
}

// plainConvolution is written from the operator's definition: without padding, step 1.
func plainConvolution(x [][][]float64, g *graph.Graph, w, b string, groups int) [][][]float64 {
	t := g.Init(w)
	v, bias := tensor.View[float32](t), tensor.View[float32](g.Init(b))
	outs, ins, kh, kw := int(t.Dims[0]), int(t.Dims[1]), int(t.Dims[2]), int(t.Dims[3])
	y := make([][][]float64, outs)
	for o := range y {
		first := o / (outs / groups) * ins
		y[o] = make([][]float64, len(x[0])-kh+1)
		for i := range y[o] {
			y[o][i] = make([]float64, len(x[0][0])-kw+1)
			for j := range y[o][i] {
				sum := float64(bias[o])
				for c := range ins {
					for p := range kh {
						for q := range kw {
							sum += float64(v[((o*ins+c)*kh+p)*kw+q]) * x[first+c][i+p][j+q]
						}
					}
				}
				y[o][i][j] = sum
			}
		}
	}
	return y
}

// runHighBias returns the first convolution's output and those of the model.
func runHighBias(g *graph.Graph, x [][][]float64) (a, y, z [][][]float64) {
	a = plainConvolution(x, g, "w1", "b1", 1)
	r := make([][][]float64, len(a))
	for c := range a {
		for _, row := range a[c] {
			var out []float64
			for _, v := range row {
				out = append(out, math.Max(0, v))
			}
			r[c] = append(r[c], out)
		}
	}
	return a, plainConvolution(r, g, "w2", "b2", 2), plainConvolution(r, g, "w3", "b3", 1)
}

// TestAbsorbKeepsTheModel: amounts are those of the formula, the outputs stay on all
// that was seen, and the tensor's largest value falls to what is said.
func TestAbsorbKeepsTheModel(t *testing.T) {
	m := highBias()
	pairs := AbsorbPairs(m)
	if len(pairs) != 1 || pairs[0].Tensor != "a" || pairs[0].Channels != 4 {
		t.Fatalf("%+v", pairs)
	}
	r := rand.New(rand.NewPCG(9, 0))
	var images [][][][]float64
	for range 20 {
		x := make([][][]float64, 2)
		for c := range x {
			for range 6 {
				var row []float64
				for range 7 {
					row = append(row, .1*r.NormFloat64())
				}
				x[c] = append(x[c], row)
			}
		}
		images = append(images, x)
	}
	seen, all := NewChannelMoments(4), make([][]float64, 4)
	type outputs struct{ y, z [][][]float64 }
	var before []outputs
	for _, x := range images {
		a, y, z := runHighBias(m.Graph, x)
		before = append(before, outputs{y, z})
		for c := range a {
			for _, row := range a[c] {
				for _, v := range row {
					seen.Observe(c, []float32{float32(v)})
					all[c] = append(all[c], v)
				}
			}
		}
	}
	amounts, top, lower := seen.Amounts()
	// The formula, in two passes.
	could, most, target := make([]float64, 4), 0.0, 0.0
	peak := make([]float64, 4)
	for c, v := range all {
		least, mean, square := math.Inf(1), 0.0, 0.0
		peak[c] = math.Inf(-1)
		for _, x := range v {
			mean += x / float64(len(v))
			least, peak[c] = math.Min(least, x), math.Max(peak[c], x)
		}
		for _, x := range v {
			square += (x - mean) * (x - mean) / float64(len(v))
		}
		could[c] = math.Max(0, math.Min(least, mean-3*math.Sqrt(square)))
		most, target = math.Max(most, peak[c]), math.Max(target, peak[c]-could[c])
	}
	if could[1] == 0 || could[3] == 0 || could[0] > 0 || could[2] > 0 {
		t.Fatalf("the case is not what it should be: %v", could)
	}
	for c := range could {
		if want := math.Min(could[c], math.Max(0, peak[c]-target)); math.Abs(float64(amounts[c])-want) > 1e-4 {
			t.Errorf("channel %d gives %v, want %v", c, amounts[c], want)
		}
	}
	if math.Abs(top-most) > 1e-4 || math.Abs(lower-target) > 1e-4 {
		t.Errorf("the range falls from %v to %v, want %v to %v", top, lower, most, target)
	}
	if err := pairs[0].Apply(m.Graph, amounts); err != nil {
		t.Fatal(err)
	}
	worst, highest := 0.0, 0.0
	for i, x := range images {
		a, y, z := runHighBias(m.Graph, x)
		for _, pair := range [][2][][][]float64{{y, before[i].y}, {z, before[i].z}} {
			for c := range pair[0] {
				for p := range pair[0][c] {
					for q, v := range pair[0][c][p] {
						worst = math.Max(worst, math.Abs(v-pair[1][c][p][q])/(1+math.Abs(v)))
					}
				}
			}
		}
		for c := range a {
			for _, row := range a[c] {
				for _, v := range row {
					highest = math.Max(highest, v)
				}
			}
		}
	}
	if worst > 1e-5 {
		t.Errorf("outputs move by %v", worst)
	}
	if math.Abs(highest-lower) > 1e-4 {
		t.Errorf("the largest value is %v now, and %v was said", highest, lower)
	}
}

// TestAbsorbRefuses: padding, other readers and other activations; and what gains nothing.
func TestAbsorbRefuses(t *testing.T) {
	change := func(f func(m *graph.Model)) *graph.Model {
		m := highBias()
		f(m)
		return m
	}
	for name, m := range map[string]*graph.Model{
		"padding":           highBias(graph.AttrInts("pads", 0, 0, 1, 0)),
		"automatic padding": highBias(graph.AttrString("auto_pad", "SAME_UPPER")),
		"an output":         change(func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("r", -1, 4, -1, -1)) }),
		"another reader": change(func(m *graph.Model) {
			m.Graph.Nodes = append(m.Graph.Nodes, node("Sigmoid", "s", "r", "q"))
		}),
		"another activation": change(func(m *graph.Model) { m.Graph.Nodes[1].Op = "LeakyRelu" }),
		"read before it":     change(func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("a", -1, 4, -1, -1)) }),
		"no bias":            change(func(m *graph.Model) { m.Graph.Nodes[2].Inputs = m.Graph.Nodes[2].Inputs[:2] }),
		"tied weight":        change(func(m *graph.Model) { m.Graph.Nodes[3].Inputs[1] = "w2" }),
	} {
		if pairs := AbsorbPairs(m); len(pairs) > 0 {
			t.Errorf("%s: %+v", name, pairs)
		}
	}
	s := NewChannelMoments(2)
	if a, _, _ := s.Amounts(); a != nil {
		t.Errorf("nothing seen: %v", a)
	}
	s.Observe(0, []float32{0, 10})
	s.Observe(1, []float32{4, 4, 4}) // could give, but the other channel sets the range
	if a, _, _ := s.Amounts(); a != nil {
		t.Errorf("without gain: %v", a)
	}
	s.Observe(1, []float32{float32(math.NaN()), float32(math.Inf(1))})
	if a, _, _ := s.Amounts(); a != nil {
		t.Errorf("NaN and infinity: %v", a)
	}
	m := highBias()
	p := AbsorbPairs(m)[0]
	if err := p.Apply(m.Graph, []float32{1}); err == nil {
		t.Error("too few amounts")
	}
}
