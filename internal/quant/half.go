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
	// BF16Max is the largest finite bfloat16; FP32 goes to 3.403e38.
	BF16Max = 0x1.fep127
	// halfMin is the size below which a tensor is not worth a Cast.
	halfMin = 256
)

// bf16Opset is the first standard opset whose Cast reads bfloat16.
const bf16Opset = 13

// Half is the pass that stores float weights in FP16 or bfloat16, with a Cast in
// front of their readers. CPUs compute in FP32: the engine converts when it loads
// the model, so the file is half the size and the speed that of FP32.
type Half struct {
	Config Config
	// BF16 stores bfloat16.
	BF16 bool
	// Only, when it is not nil, selects the operators whose weights are stored.
	Only map[*graph.Node]bool
}

var _ Pass = Half{}

// Name implements Pass.
func (h Half) Name() string { return h.form().suffix[1:] + "-weights" }

// halfForm is one of the two types of 16 bits.
type halfForm struct {
	typ     tensor.DType
	suffix  string
	largest float64 // weights past it stay in FP32
	code    func(float32) uint16
}

func (h Half) form() halfForm {
	if h.BF16 {
		return halfForm{tensor.BFloat16, "_bf16", BF16Max, tensor.F32ToBF16}
	}
	return halfForm{tensor.Float16, "_fp16", HalfMax, tensor.F32ToF16}
}

// Run implements Pass.
func (h Half) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	f := h.form()
	if h.BF16 && m.Opset() < bf16Opset {
		return Stats{}, fmt.Errorf("%w: %s needs a model of opset %d or above, this one has %d; export it anew, or use %s", ErrConfig, BF16, bf16Opset, m.Opset(), FP16)
	}
	ix := g.Index()
	count, kept, passed := 0, 0, 0
	var noise, power float64
	var casts []*graph.Node
	for _, name := range g.Inits() {
		t := g.Init(name)
		if t.Type != tensor.Float32 || t.Len() < halfMin {
			continue
		}
		if len(ix.Uses(name)) == 0 || ix.IsOutput(name) || ix.Captured(name) || h.excluded(ix.Uses(name)) {
			passed++
			continue
		}
		v, err := t.F32()
		if err != nil {
			return Stats{}, err
		}
		codes, ok := f.codes(v)
		if !ok {
			kept++
			continue
		}
		half := &tensor.Tensor{Type: f.typ, Dims: t.Dims, Data: tensor.From(codes, t.Dims...).Data}
		back, err := half.F32()
		if err != nil {
			return Stats{}, err
		}
		for i, x := range v {
			d := float64(x - back[i])
			noise += d * d
			power += float64(x) * float64(x)
		}
		base := name + f.suffix
		for i := 1; g.Init(base) != nil; i++ { // a hostile model has that name already
			base = fmt.Sprintf("%s%s_%d", name, f.suffix, i)
		}
		g.SetInit(base, half)
		casts = append(casts, graph.NewNode("", "Cast", base+"_Cast", []string{base}, []string{base + "_fp32"}, graph.AttrInt("to", int64(tensor.Float32))))
		for _, u := range ix.Uses(name) {
			u.Node.Inputs[u.Input] = base + "_fp32"
		}
		count++
	}
	g.Nodes = append(casts, g.Nodes...)
	g.Prune()
	if count == 0 && h.Only == nil {
		switch {
		case kept > 0:
			return Stats{}, fmt.Errorf("%w: the weights of %d elements or more have values past %.6g", ErrNothing, halfMin, f.largest)
		case passed > 0:
			return Stats{}, fmt.Errorf("%w: the FP32 weights of %d elements or more are excluded, outputs, or read in the body of an If, Loop or Scan", ErrNothing, halfMin)
		}
		return Stats{}, fmt.Errorf("%w: no FP32 weight of %d elements or more", ErrNothing, halfMin)
	}
	note := fmt.Sprintf("%d weights in %v, %d kept in FP32 for values past %.6g", count, f.typ, kept, f.largest)
	if noise > 0 && power > 0 {
		note += fmt.Sprintf("; relative error %.2g", math.Sqrt(noise/power))
	}
	return Stats{Changed: count, Note: note}, nil
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

// codes converts v, or reports that a value does not fit.
func (f halfForm) codes(v []float32) ([]uint16, bool) {
	out := make([]uint16, len(v))
	for i, x := range v {
		if !(math.Abs(float64(x)) <= f.largest) {
			return nil, false
		}
		out[i] = f.code(x)
	}
	return out, true
}
