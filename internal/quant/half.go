package quant

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// HalfMax is the largest finite FP16; larger weights stay in float.
	HalfMax = 65504
	// halfMin is the size below which a tensor is not worth a Cast.
	halfMin = 256
)

// Half is the pass that stores float weights in FP16, with a Cast in front of
// their readers. CPUs compute in FP32: the engine converts when it loads the
// model, so the file is half the size and the speed that of FP32.
type Half struct {
	Config Config
	// Only, when it is not nil, selects the operators whose weights are stored.
	Only map[*graph.Node]bool
}

var _ Pass = Half{}

// Name implements Pass.
func (Half) Name() string { return "fp16-weights" }

// Run implements Pass.
func (h Half) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	ix := g.Index()
	count, kept := 0, 0
	var casts []*graph.Node
	for _, name := range g.Inits() {
		t := g.Init(name)
		if t.Type != tensor.Float32 || t.Len() < halfMin || len(ix.Uses(name)) == 0 || ix.IsOutput(name) || ix.Captured(name) || h.excluded(ix.Uses(name)) {
			continue
		}
		v, err := t.F32()
		if err != nil {
			return Stats{}, err
		}
		codes, ok := halves(v)
		if !ok {
			kept++
			continue
		}
		half := &tensor.Tensor{Type: tensor.Float16, Dims: t.Dims, Data: tensor.From(codes, t.Dims...).Data}
		g.SetInit(name+"_fp16", half)
		casts = append(casts, graph.NewNode("", "Cast", name+"_Cast", []string{name + "_fp16"}, []string{name + "_fp32"}, graph.AttrInt("to", int64(tensor.Float32))))
		for _, u := range ix.Uses(name) {
			u.Node.Inputs[u.Input] = name + "_fp32"
		}
		count++
	}
	g.Nodes = append(casts, g.Nodes...)
	g.Prune()
	if count == 0 && h.Only == nil {
		return Stats{}, fmt.Errorf("%w: no float weight of %d elements or more", ErrNothing, halfMin)
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d weights in FP16, %d kept in FP32 for values past %d", count, kept, HalfMax)}, nil
}

// HalfWeight reports whether n reads a weight that Half stores.
func HalfWeight(m *graph.Model, n *graph.Node) bool {
	if len(n.Outputs) == 0 {
		return false
	}
	for _, in := range n.Inputs {
		if t := m.Graph.Init(in); t != nil && t.Type == tensor.Float32 && t.Len() >= halfMin {
			return true
		}
	}
	return false
}

func (h Half) excluded(uses []graph.Use) bool {
	for _, u := range uses {
		if h.Only != nil && !h.Only[u.Node] {
			return true
		}
		for _, e := range h.Config.Exclude {
			if e == u.Node.Name || e == u.Node.Op {
				return true
			}
		}
	}
	return false
}

// halves converts v, or reports that a value does not fit.
func halves(v []float32) ([]uint16, bool) {
	out := make([]uint16, len(v))
	for i, x := range v {
		if !(math.Abs(float64(x)) <= HalfMax) {
			return nil, false
		}
		out[i] = tensor.F32ToF16(x)
	}
	return out, true
}
