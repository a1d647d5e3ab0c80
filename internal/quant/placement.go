package quant

import (
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// This file says what target qdq computes on codes beyond what ONNX Runtime's CPU engine
// gains from: accelerators run whole graphs in integers, and each operator between two
// convolutions that is left in float sends its values back to the CPU.

// codesChain are operators with integer kernels in TensorFlow Lite and in the execution
// providers of accelerators (QNN, NNAPI, XNNPACK) that take and give quantized tensors.
var codesChain = map[string]bool{
	"Clip": true, "HardSigmoid": true, "HardSwish": true, "ReduceMean": true, "Relu": true, "Softmax": true, "Sub": true, "Tanh": true,
}

// codesThrough are operators that move values or stay between them; input 0 is the data.
var codesThrough = map[string]bool{
	"DepthToSpace": true, "Pad": true, "Resize": true, "Slice": true, "SpaceToDepth": true,
}

// gates are what may follow a matrix product so that its output is quantized too. Others
// keep their output in float: a normalization, a residual sum or a softmax behind them needs its range.
var gates = map[string]bool{"HardSigmoid": true, "HardSwish": true, "LeakyRelu": true, "Sigmoid": true}

// MethodFixed is the method of a range that belongs to the operator, whatever the data.
const MethodFixed = "fixed"

// minFactorSQNR is what codes with one scale must keep of a constant factor, in dB, every
// element counted alike: one whose channels differ by orders of magnitude stays in float, and its
// operator with it. What is added is bound by its largest element, as the sum is.
const minFactorSQNR = 30

// onCodes reports whether whole graphs are to run in integers.
func (c Config) onCodes() bool { return c.Target == QDQ && c.Scheme.Static() }

// isChain and isThrough report what kind of operator n can be.
func (c Config) isChain(n *graph.Node) bool {
	return n.Domain == graph.DomainONNX && (chainOps[n.Op] || c.onCodes() && codesChain[n.Op])
}

func (c Config) isThrough(n *graph.Node) bool {
	return n.Domain == graph.DomainONNX && (throughOps[n.Op] || c.onCodes() && codesThrough[n.Op])
}

// dataInputs are the inputs of a Chain operator that are values, not axes or bounds.
func dataInputs(n *graph.Node) []string {
	switch n.Op {
	case "Add", "Sub", "Mul", "Concat":
		return n.Inputs
	}
	return n.Inputs[:min(1, len(n.Inputs))]
}

// operand reports whether input i of n is a constant that gets codes of its own.
func (b *planner) operand(n *graph.Node, i int) bool {
	if i != 1 || !b.Config.onCodes() || n.Op == "Concat" {
		return false
	}
	t := b.g.Init(n.In(i))
	if t == nil || t.Type != tensor.Float32 || t.Len() == 0 {
		return false
	}
	v, err := t.F32()
	if err != nil || checkFinite(v) != nil {
		return false
	}
	if n.Op != "Mul" {
		return true
	}
	s := b.Config.actScheme()
	var noise float64
	for i, q := range FakeQuantize(v, operandParams(v, s), s) {
		if v[i] != 0 {
			e := float64(q)/float64(v[i]) - 1
			noise += e * e
		}
	}
	return noise <= float64(len(v))*math.Pow(10, -minFactorSQNR/10.)
}

// operandParams is the scale and zero point of a constant operand.
func operandParams(v []float32, s calib.Scheme) calib.QParams {
	r := calib.Range{}
	for _, x := range v {
		r.Lo, r.Hi = min(r.Lo, x), max(r.Hi, x)
	}
	return calib.ParamsFor(r, s)
}

// movable checks what an operator of codesThrough must be so that its result has the
// parameters of its input: a border of zeros, an interpolation between neighbours.
func (b *planner) movable(n *graph.Node) bool {
	switch n.Op {
	case "Pad":
		value := n.Float("value", 0)
		if n.In(2) != "" {
			v, ok := b.g.Number(n.In(2))
			if !ok {
				return false
			}
			value = v
		}
		return n.Str("mode", "constant") == "constant" && value == 0
	case "Resize":
		mode := n.Str("mode", "nearest")
		return (mode == "nearest" || mode == "linear") && n.Str("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
	}
	return true
}

// gated reports whether the output of a matrix product goes into one operator alone that
// runs on codes, or is the model's and is to be codes.
func (b *planner) gated(out string) bool {
	n := b.ix.Only(out)
	return b.output(out) || b.Config.onCodes() && n != nil && n.Domain == graph.DomainONNX && gates[n.Op] && !b.addExcluded(n) && !b.visible(n.Outputs[0])
}

// fixedRange is the range that integer kernels give the results of n
// (TensorFlow Lite's quantization specification; HardSigmoid reaches 1, so that its codes do).
func (c Config) fixedRange(n *graph.Node) (calib.Range, bool) {
	if !c.onCodes() || c.Wide || c.Symmetric {
		return calib.Range{}, false
	}
	switch n.Op {
	case "Sigmoid", "Softmax":
		return calib.Range{Lo: 0, Hi: 255. / 256}, true
	case "Tanh":
		return calib.Range{Lo: -1, Hi: 127. / 128}, true
	case "HardSigmoid":
		return calib.Range{Lo: 0, Hi: 1}, true
	}
	return calib.Range{}, false
}

// Fixed returns the range of t where its operator leaves no choice.
func (p *Plan) Fixed(t string) (calib.Range, bool) {
	r, ok := p.fixed[t]
	return r, ok
}

// fix makes the range of t the choice.
func (c *Choice) fix(r calib.Range, s calib.Scheme) {
	c.Candidates[MethodFixed] = r
	c.set(MethodFixed, r, s)
	c.Fixed, c.Why = true, "what the operator's integer kernels give"
}

// operand gives the constant operand of op codes of its own.
func (w *inserter) operand(op *Op) error {
	base, ok := w.operands[op.Const]
	if !ok {
		v, err := w.g.Init(op.Const).F32()
		if err != nil {
			return err
		}
		s := w.Plan.Config.actScheme()
		p := operandParams(v, s)
		base = w.freeBase(op.Const)
		w.operands[op.Const] = base
		in := []string{base + "_quantized", base + "_scale", base + "_zero_point"}
		w.g.SetInit(in[0], codesTensor(v, w.g.Init(op.Const).Dims, p, s))
		w.g.SetInit(in[1], tensor.From([]float32{p.Scale}))
		w.g.SetInit(in[2], zeroTensor(s.Type, p.Zero))
		w.node(w.actDomain(), "DequantizeLinear", base+"_DequantizeLinear", in, []string{base + "_dequantized"})
	}
	op.Node.Inputs[1] = base + "_dequantized"
	return nil
}

// codesTensor is v as codes of an activation's type.
func codesTensor(v []float32, dims []int64, p calib.QParams, s calib.Scheme) *tensor.Tensor {
	if s.Type == tensor.Uint16 {
		codes := make([]uint16, len(v))
		for i, x := range v {
			codes[i] = uint16(p.Quantize(x, s))
		}
		return &tensor.Tensor{Type: s.Type, Dims: dims, Data: tensor.From(codes).Data}
	}
	codes := make([]uint8, len(v))
	for i, x := range v {
		codes[i] = uint8(p.Quantize(x, s))
	}
	return &tensor.Tensor{Type: s.Type, Dims: dims, Data: tensor.From(codes).Data}
}

// PortsFlag is how one asks for Config.Ports.
const PortsFlag = "io"

// ownOutputs puts an Identity behind what makes an output of the model, so that the value
// itself can be quantized; Insert takes it away again. It returns how many.
func ownOutputs(m *graph.Model) int {
	g := m.Graph
	ix, names := g.Index(), g.Namer()
	count := 0
	for _, v := range g.Outputs {
		p := ix.Producer(v.Name)
		if p == nil || v.Type != tensor.Float32 || ix.Captured(v.Name) {
			continue
		}
		inner := names.Name(v.Name + "_inner")
		p.Outputs[slices.Index(p.Outputs, v.Name)] = inner
		for _, u := range ix.Uses(v.Name) {
			u.Node.Inputs[u.Input] = inner
		}
		if i := g.Info[v.Name]; i != nil {
			own := *i
			own.Name = inner
			g.Info[inner] = &own
		}
		g.Nodes = append(g.Nodes, graph.NewNode(graph.DomainONNX, "Identity", inner+"_output", []string{inner}, []string{v.Name}))
		count++
	}
	return count
}

// outputs makes the dequantized copy of what ownOutputs has set apart the model's output.
func (w *inserter) outputs() {
	if !w.Plan.Config.Ports {
		return
	}
	source := make(map[string]string, len(w.dq)) // dequantized copy -> activation
	for t, copied := range w.dq {
		source[copied] = t
	}
	ix := w.g.Index()
	drop := map[*graph.Node]bool{}
	for _, v := range w.g.Outputs {
		n := ix.Producer(v.Name)
		if n == nil || !n.Is("Identity") {
			continue
		}
		x := n.In(0)
		p := ix.Producer(x)
		if p == nil || ix.IsOutput(x) || ix.Captured(x) {
			continue
		}
		p.Outputs[slices.Index(p.Outputs, x)] = v.Name
		for _, u := range ix.Uses(x) {
			u.Node.Inputs[u.Input] = v.Name
		}
		if t, ok := source[x]; ok {
			w.dq[t] = v.Name
		} else {
			w.Renamed[x] = v.Name
		}
		drop[n] = true
	}
	w.g.Nodes = without(w.g.Nodes, drop)
}

// output reports whether value becomes an output of the model and nothing else.
func (b *planner) output(value string) bool {
	n := b.ix.Only(value)
	return b.Config.Ports && n != nil && n.Is("Identity") && b.ix.IsOutput(n.Outputs[0])
}
