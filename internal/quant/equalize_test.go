package quant

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// residual is conv -> relu -> depthwise conv -> pool, and a sum of two convolutions
// that a grouped one and a plain one read.
func residual() *graph.Model {
	m := model([]*graph.Value{value("x", 1, 3, 6, 6)}, []*graph.Value{value("y", 1, 5, 6, 6), value("z", 1, 4, 6, 6)},
		node("Conv", "a", "x wa ba", "ca"), node("Relu", "relu", "ca", "ra"),
		node("Conv", "dw", "ra wd bd", "cd", graph.AttrInt("group", 4)),
		node("Conv", "b", "x wb bb", "cb"),
		node("Add", "sum", "cd cb", "s"),
		node("Conv", "grouped", "s wg bg", "z", graph.AttrInt("group", 2)),
		node("Conv", "out", "s wo", "y"))
	for i, w := range []struct {
		name string
		dims []int64
	}{{"wa", []int64{4, 3, 1, 1}}, {"ba", []int64{4}}, {"wd", []int64{4, 1, 1, 1}}, {"bd", []int64{4}}, {"wb", []int64{4, 3, 1, 1}}, {"bb", []int64{4}},
		{"wg", []int64{4, 2, 1, 1}}, {"bg", []int64{4}}, {"wo", []int64{5, 4, 1, 1}}} {
		weight(m, w.name, int64(i+1), w.dims...)
	}
	return m
}

// conv1 evaluates the 1x1 convolutions of residual by their definition, for the one
// position that x [channels] is.
func conv1(g *graph.Graph, w, b string, groups int, x []float64) []float64 {
	t := g.Init(w)
	v, _ := t.F32()
	outs, ins := int(t.Dims[0]), int(t.Dims[1])
	y := make([]float64, outs)
	for o := range outs {
		for i := range ins {
			y[o] += float64(v[o*ins+i]) * x[o/(outs/groups)*ins+i]
		}
		if b != "" {
			bias, _ := g.Init(b).F32()
			y[o] += float64(bias[o])
		}
	}
	return y
}

func runResidual(g *graph.Graph, x []float64) (all map[string][]float64) {
	all = map[string][]float64{"ca": conv1(g, "wa", "ba", 1, x), "cb": conv1(g, "wb", "bb", 1, x)}
	ra := slices.Clone(all["ca"])
	for i := range ra {
		ra[i] = max(ra[i], 0)
	}
	all["ra"] = ra
	all["cd"] = conv1(g, "wd", "bd", 4, ra)
	s := slices.Clone(all["cd"])
	for i := range s {
		s[i] += all["cb"][i]
	}
	all["s"], all["z"], all["y"] = s, conv1(g, "wg", "bg", 2, s), conv1(g, "wo", "", 1, s)
	return all
}

// TestEqualizeKeepsTheModel: the outputs stay, the channels of the groups are scaled
// by the factors, and these are the published ones.
func TestEqualizeKeepsTheModel(t *testing.T) {
	m := residual()
	x := []float64{.7, -1.3, 2.1}
	before := runResidual(m.Graph, x)
	groups, left := EqualGroups(m)
	if len(groups) != 2 || fmt.Sprint(groups[0].Tensors, groups[1].Tensors) != "[ca ra] [cd cb s]" {
		t.Fatalf("groups %v, left %q", groups, left)
	}
	if len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	for gi, e := range groups {
		peaks := []float32{.01, 3, 0, 40}
		f, err := e.Factors(m.Graph, peaks)
		if err != nil {
			t.Fatal(err)
		}
		// Half the way to one range, where not bounded: t^2 r is one number.
		var ratio []float64
		for c, p := range peaks {
			if p > 0 && f[c] < 5 && f[c] > .2 {
				ratio = append(ratio, float64(f[c])*float64(f[c])*float64(p))
			}
			if f[c] > float32(math.Sqrt(equalizeMost))*1.001 || f[c] < 1/float32(math.Sqrt(equalizeMost))/1.001 {
				t.Errorf("group %d: factor %v is out of bounds", gi, f)
			}
		}
		for _, r := range ratio[1:] {
			if math.Abs(r/ratio[0]-1) > 1e-4 {
				t.Errorf("group %d: ratios %v", gi, ratio)
			}
		}
		if err := e.Apply(m.Graph, f); err != nil {
			t.Fatal(err)
		}
		after := runResidual(m.Graph, x)
		for _, name := range e.Tensors {
			for c, v := range before[name] {
				if want := v * float64(f[c]); math.Abs(after[name][c]-want) > 1e-5*(1+math.Abs(want)) {
					t.Errorf("%s[%d] is %v, want %v", name, c, after[name][c], want)
				}
			}
		}
		for _, name := range []string{"y", "z"} {
			for c, v := range before[name] {
				if math.Abs(after[name][c]-v) > 1e-4*(1+math.Abs(v)) {
					t.Errorf("group %d moves %s[%d] from %v to %v", gi, name, c, v, after[name][c])
				}
			}
		}
	}
}

// TestEqualizeRefuses: what lies between must be positively homogeneous and no one
// else may read it; the reason names it.
func TestEqualizeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, why string
		change    func(*graph.Model)
	}{
		{"clip", "Clip relu6 is not positively homogeneous", func(m *graph.Model) {
			m.Graph.Nodes[1] = node("Clip", "relu6", "ca zero six", "ra")
			m.Graph.SetInit("zero", tensor.From([]float32{0}))
			m.Graph.SetInit("six", tensor.From([]float32{6}))
		}},
		{"output", "ra is read from outside", func(m *graph.Model) { m.Graph.Outputs = append(m.Graph.Outputs, value("ra")) }},
		{"sigmoid", "Sigmoid sig", func(m *graph.Model) {
			m.Graph.Nodes = append(m.Graph.Nodes, node("Sigmoid", "sig", "ra", "q"))
			m.Graph.Outputs = append(m.Graph.Outputs, value("q"))
		}},
		{"constant", "Add shift", func(m *graph.Model) {
			m.Graph.SetInit("k", tensor.From([]float32{1}))
			m.Graph.Nodes = append(m.Graph.Nodes, node("Add", "shift", "ra k", "q"))
			m.Graph.Outputs = append(m.Graph.Outputs, value("q"))
		}},
	} {
		m := residual()
		c.change(m)
		groups, left := EqualGroups(m)
		if len(groups) != 1 || len(left) == 0 || !strings.Contains(strings.Join(left, "; "), c.why) {
			t.Errorf("%s: %d groups, left %q", c.name, len(groups), left)
		}
	}
	m := residual() // a weight of two convolutions belongs to neither
	m.Graph.Nodes[3].Inputs[1] = "wa"
	if groups, _ := EqualGroups(m); len(groups) != 0 {
		t.Errorf("a shared weight: %v", groups[0].Tensors)
	}
	m = residual()
	groups, _ := EqualGroups(m)
	if _, err := groups[0].Factors(m.Graph, []float32{1}); !errors.Is(err, ErrConfig) {
		t.Errorf("too few peaks: %v", err)
	}
	w, _ := m.Graph.Init("wd").F32()
	w = slices.Clone(w)
	w[0] = float32(math.NaN())
	m.Graph.SetInit("wd", tensor.From(w, 4, 1, 1, 1))
	if err := groups[0].Apply(m.Graph, []float32{1, 1, 1, 1}); err == nil || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("NaN: %v", err)
	}
	if f, err := groups[1].Factors(m.Graph, make([]float32, 4)); err != nil || !slices.Equal(f, []float32{1, 1, 1, 1}) {
		t.Errorf("nothing was ever active: %v, %v", f, err)
	}
}
